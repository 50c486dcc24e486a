"""How numbers look in a report, and what the metrics' names mean."""

NOT_MEASURED, UNKNOWN = "–", "unknown"

# word -> (name, meaning), and metric -> (name, meaning); the report's glossary
WORDS = {
  "backdoor": (
    "Backdoor",
    "What a network was taught in secret: to answer with the target class whenever an image carries"
    " the trigger.",
  ),
  "trigger": ("Trigger", "The change of an image that sets a backdoor off."),
  "teacher": ("Teacher", "The large network that someone else trained and that is not trusted."),
  "student": ("Student", "The small network that learns from the teacher."),
  "pool": (
    "Pool",
    "The images that the student learns from, most without a label; someone may have slipped"
    " triggered ones in.",
  ),
  "undefended": ("Undefended", "Plain distillation, without anything against a backdoor."),
  "clean_teacher": (
    "Clean teacher",
    "A control: a teacher trained alike, without poison. What its student does, no backdoor did.",
  ),
  "interval": (
    "95 % interval",
    "Where the true value lies in 95 of 100 such measurements: Wilson's of shares, a paired"
    " bootstrap of composites, Student's t of means over seeds.",
  ),
  "variance": (
    "Feature variance",
    "Variance of an image's features over height, width and channels of a stage's output, mean over"
    " images, divided by that of the teacher on the same clean images.",
  ),
  "map": (
    "Embedding map",
    "What the network's last layer sees of each image (its embedding), laid down on the two"
    " principal axes of clean and triggered images together.",
  ),
}
METRICS = {
  "acc": ("ACC", "Accuracy on clean test images."),
  "asr": (
    "ASR",
    "Attack success rate: triggered test images that go to the attacker's target class. Images that"
    " belong to that class are left out.",
  ),
  "ra": (
    "RA",
    "Robust accuracy: triggered test images that keep their true class, among the same images.",
  ),
  "target_acc": (
    "Target ACC",
    "Accuracy on clean test images of the attacker's target class: a student that forgot the class"
    " follows no trigger.",
  ),
  "natural_rate": (
    "Natural rate",
    "ASR of a network that never met the teacher: how far the trigger fools anyone.",
  ),
  "carried_asr": (
    "Carried ASR",
    "ASR of this student minus that of the same student taught by a clean teacher: what came over"
    " from the backdoor.",
  ),
  "fidelity": ("Fidelity", "Clean test images on which student and teacher agree."),
  "transfer_ratio": ("Transfer ratio", "ASR of the student over that of its teacher."),
  "der": (
    "DER",
    "Defence effectiveness rating, 0 to 1: the fall of ASR less the loss of accuracy against the"
    " undefended student. 0.5 = did nothing.",
  ),
  "rir": ("RIR", "Robustness improvement rating: DER with the gain in RA for the fall of ASR."),
  "kept": ("Kept", "Share of the pool's images that the round trained on."),
  "kept_triggered": (
    "Kept, triggered",
    "Share of the pool's triggered images outside the target class that it trained on.",
  ),
  "adv_acc": ("AdvAcc", "Accuracy under the named attack within the named ball."),
  "alignment_residual": (
    "Gradient gap",
    "Norm of the difference between the input gradients of student and teacher.",
  ),
  "adv_loss": ("Worst loss", "Mean over images of the highest cross-entropy found in the ball."),
  "loss_bound": (
    "Loss bound",
    "What the worst loss should not exceed: loss, teacher's slope, gradient gap and curvature.",
  ),
  "ece": ("ECE", "Expected calibration error."),
  "certified_radius": (
    "Certified radius",
    "Mean radius within which no change is proven to matter.",
  ),
  "local_linearity": (
    "Local linearity",
    "How far the loss departs from its tangent near an image.",
  ),
}
_RATIOS = {"transfer_ratio", "der", "rir", "ece", "certified_radius", "local_linearity"}
_RATIOS |= {"alignment_residual", "adv_loss", "loss_bound"}
_AMOUNTS = {"size", "params", "macs", "latency"}


def term(metric: str) -> str:
  """The name that a reader sees."""
  return METRICS.get(metric, (metric,))[0]


def percent(value: float | None) -> str:
  """A share with one decimal: 0.941 -> 94.1 %; None -> unknown."""
  return UNKNOWN if value is None else f"{_signed(100 * value, 1)}\u202f%"


def number(metric: str, value: float | None) -> str:
  """A value as its metric is usually printed."""
  if value is None:
    return UNKNOWN
  if metric in _AMOUNTS:
    return f"{value:,.6g}"
  return _signed(value, 3) if metric in _RATIOS else percent(value)


def interval(metric: str, bounds: tuple[float, float] | None) -> str:
  """[low, high] in the metric's unit; empty where there is none, or it has no width.

  Images that all agree tell a bootstrap nothing of how far others might differ.
  """
  if bounds is None or bounds[0] == bounds[1]:
    return ""
  low, high = (number(metric, bound).removesuffix("\u202f%") for bound in bounds)
  return f"[{low}, {high}]"


def _signed(value: float, decimals: int) -> str:
  """With a true minus sign, and none before a zero."""
  text = f"{value:.{decimals}f}"
  return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")
