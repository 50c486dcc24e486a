r"""Why ABD's search misses a trigger: what docs/abd.md says of one teacher and its generator.

  PYTHONPATH=. python benchmarks/abd.py --trigger badnets --seed 0 --workdir runs/badnets
  PYTHONPATH=. python benchmarks/abd.py --config cifar10_abd --trigger short-gtsrb-trojan_wm \
    --data-dir DIR --workdir runs/short-gtsrb-trojan_wm

Trains (or finds in the workdir) the teacher and the undefended ZSKT student of the config, and
looks at them with the trigger known:

  shuffled   how many triggered images, images of the target class, and others keep their class
             when the last 1 to 5 convolutions read their inputs in another order; of three draws
  place      mean pixel of synthetic images where the trigger is, by the teacher's class
  universal  what the published search adds there, in standard deviations, and elsewhere
  classes    l_1 norm of the perturbation into each class, its size (geometric mean of l_1 and l_2),
             and how often it works
  batches    how many triggered images of other classes the undefended student sends to the target
             where so much of their batch is triggered and the batch normalises itself
  means      what a class's synthetic images have more than the others' in the mean: l_2 norm of it
             from which on 9 in 10 of them go to the class; for the target its cosine with the
             trigger, and how many real images follow it, the trigger's mean, and what of that is
             along it and what is not; the teacher
  found      where the workdir holds `abd`'s student: the same of its own search, the l_1 norm of
             the trigger itself, its cosine with what was found for the target, and how many
             images of other classes follow either; the teacher, and the student, which is
             also shown what was found as many times as the student was

Writes `<out>/<trigger>-seed<n>.json`.
"""

import argparse
import importlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from rkd_jax import config as configs
from rkd_jax import experiment, recipes
from rkd_jax.methods import inversion, retrospection, unlearning, vaccine
from rkd_jax.reporting.files import write_json
from rkd_jax.reporting.progress import Reporter
from rkd_jax.runner import Runner
from rkd_jax.setup import Setup
from rkd_jax.story import Interview
from rkd_jax.training import update
from rkd_jax.training.loop import StopSignal

DRAWS, COPIES, IMAGES, STEPS = 3, 3, 2048, 150
SHARES = (0.02, 0.1, 0.3, 0.5, 0.7, 1.0)
SIZES = [2 ** (k / 4) for k in range(25)]  # l_2, 1 to 64


def kept(teacher: Any, shown: dict[str, jax.Array]) -> dict[str, dict[str, list[float]]]:
  """{layers: {who: share that keeps its class, a draw each}}."""
  found: dict[str, dict[str, list[float]]] = {}
  for layers in range(1, 6):
    of = found[str(layers)] = {who: [] for who in shown}
    for draw in range(DRAWS):
      orders = vaccine.draw(jax.random.key(draw), teacher.module, layers, COPIES)
      asked = jax.jit(lambda x, orders=orders: vaccine.answers(teacher, orders, x))
      for who, images in shown.items():
        of[who].append(float(vaccine.suspicious(*asked(images)).mean()))
  return found


def by_class(teacher: Any, images: jax.Array, labels: jax.Array, method: Any) -> dict[str, Any]:
  """The search of `unlearning.Method`, outside a phase: {"lengths", "sizes", "rates"}, a
  number a class each."""
  shape = (teacher.module.classes, *teacher.module.image_shape)
  deltas = retrospection.beside(jax.random.key(0), shape)
  adam, known = optax.adam(method.rate), inversion.untallied(len(deltas))

  @jax.jit
  def move(deltas, state, known, images, labels):
    def objective(deltas):
      terms, *tally = unlearning.reach(teacher, images, labels, deltas, method.price)
      return update.reduce_terms(terms)[0], tally

    gradient, tally = jax.grad(objective, has_aux=True)(deltas)
    steps, state = adam.update(gradient, state)
    return deltas + steps, state, inversion.tallied(known, *tally)

  state = adam.init(deltas)
  for step in range(STEPS):
    rows = np.arange(step * method.searched, (step + 1) * method.searched) % len(images)
    deltas, state, known = move(deltas, state, known, images[rows], labels[rows])
  sizes, rates = unlearning.sizes(deltas), inversion.rates_of(known)
  return {
    "lengths": unlearning.lengths(deltas).tolist(),
    "sizes": sizes.tolist(),
    "rates": rates.tolist(),
    "suspected": int(inversion.suspected(sizes, rates, method.success)),
  }


def by_share(student: Any, shown: dict[str, jax.Array], target: int, size: int) -> dict[str, float]:
  """{share of a batch that is triggered: how many of those follow, BatchNorms in training}."""
  answers = jax.jit(lambda x: student(x, train=True)[0].logits.argmax(-1))
  clean, triggered, rates = shown["others"], shown["triggered"], {}
  for share in SHARES:
    count, hits = max(1, int(share * size)), []
    for start in range(0, len(clean) - size + 1, size):
      rows = slice(start, start + size)
      mixed = jnp.concatenate([triggered[rows][:count], clean[rows][count:]])
      hits.append((answers(mixed)[:count] == target).mean())
    rates[str(share)] = float(jnp.stack(hits).mean())
  return rates


def by_means(
  teacher: Any,
  images: jax.Array,
  labels: jax.Array,
  real: jax.Array,
  trigger: jax.Array,
  target: int,
) -> dict[str, Any]:
  """Without any gradient: `trigger` is the mean of what it adds, float[H, W, C]; `real` images of
  other classes than the target."""
  std = jnp.asarray(teacher.module.std)
  answers = jax.jit(lambda x: teacher(x, train=False)[0].logits.argmax(-1))

  def follow(images, delta, label):
    return float((answers(jnp.clip(images + delta * std, 0, 1)) == label).mean())

  sizes: list[float | None] = []
  directions = []
  for label in range(teacher.module.classes):
    own = labels == label
    more = (images[own].mean(0) - images[~own].mean(0)) / std
    directions.append(more / jnp.linalg.norm(more))
    works = (s for s in SIZES if follow(images[~own], s * directions[-1], label) >= 0.9)
    sizes.append(next(works, None))
  delta, size = directions[target], sizes[target]
  along = (trigger * delta).sum() * delta
  shown = {"trigger": trigger, "along": along, "rest": trigger - along}
  if size is not None:
    shown["found"] = size * delta
  return {
    "sizes": sizes,
    "cosine": float((trigger * delta).sum() / jnp.linalg.norm(trigger)),
    "trigger": float(jnp.linalg.norm(trigger)),
    "follow": {name: follow(real, x, target) for name, x in shown.items()},
  }


def found(
  networks: Any, memory: Any, times: float, clean: jax.Array, triggered: jax.Array, target: int
) -> dict[str, Any]:
  """What a finished search by class found, beside the trigger; images of other classes than it."""
  teacher, deltas = networks["teacher"], networks[unlearning.SEEKER]
  shown = {
    name: jnp.clip(retrospection.moved(teacher.module.std, clean, more * deltas[target]), 0, 1)
    for name, more in (("found", 1.0), ("shown", times))
  }
  shown["trigger"] = triggered
  trigger = (triggered - clean) / jnp.asarray(teacher.module.std)
  mean, own = trigger.mean(0).ravel(), deltas[target].ravel()

  def follow(network, images):
    answers = jax.jit(lambda x: network(x, train=False)[0].logits.argmax(-1))(images)
    return float((answers == target).mean())

  return {
    "lengths": unlearning.lengths(deltas).tolist(),
    "sizes": unlearning.sizes(deltas).tolist(),
    "rates": inversion.rates_of(memory).tolist(),
    "trigger_size": float(jnp.abs(trigger).sum((1, 2, 3)).mean()),
    "cosine": float(mean @ own / jnp.linalg.norm(mean) / jnp.linalg.norm(own)),
    "follow_found": follow(teacher, shown["found"]),
    "follow_trigger": follow(teacher, triggered),
    "student_follows": {name: follow(networks["student"], x) for name, x in shown.items()},
  }


def asked() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="digits_abd", choices=("digits_abd", "cifar10_abd"))
  parser.add_argument("--trigger", default="badnets", help="the config's argument")
  parser.add_argument("--data-dir", default="")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--images", type=int, default=10_000, help="test images, at most")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/inside_abd"))
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/inside_abd"))
  return parser.parse_args()


def main() -> None:
  options = asked()
  config = importlib.import_module(f"configs.{options.config}").get_config(options.trigger)
  config.data.data_dir = options.data_dir
  configs.normalise(config)
  dataset = experiment.load(config, Reporter(quiet=True))
  runner = Runner(config, dataset, options.workdir, Reporter(), StopSignal())
  setup = Setup(config, dataset, options.seed)
  phases = {name: recipes.phases(setup, spec) for name, spec in recipes.specs(config).items()}
  made = runner.finish(phases["zskt"]["student"])
  networks = made.program.bind(made.trees)
  method: Any = made.program.method
  teacher: Any = networks["teacher"]
  second: Any = phases["abd"]["student"].method
  seen = Interview(runner, options.seed)
  truth, count = seen.truth, min(len(seen.truth.labels), options.images)
  clean, triggered = (
    jnp.concatenate(list(side.batches()))[:count] for side in (seen.clean, seen.triggered)
  )
  others = (truth.labels != truth.goals)[:count]
  place = np.asarray(jnp.abs(triggered - clean).max((0, 3)) > 0)  # [H, W]
  shown = {"triggered": triggered[others], "target": clean[~others], "others": clean[others]}

  batches = IMAGES // config.student.batch_size  # the generator normalises by its batch
  invented = [
    method.invent(jax.random.key(k), networks, made.memory, config.student.batch_size)
    for k in range(batches)
  ]
  images = jnp.concatenate(invented)
  labels = teacher(images, train=False)[0].logits.argmax(-1)
  of_target = np.asarray(labels) == config.target
  there = np.asarray(images)[:, place].mean((1, 2))
  added = ((triggered - clean)[others] / jnp.asarray(teacher.module.std)).mean(0)
  published: Any = phases["abd_published"]["student"].method
  how, search = (teacher.module.std, method.looks_back), (published.rate, published.search_decay)
  delta = retrospection.universal(teacher, *how, invented[0], jax.random.key(0), 10, *search)[0]
  report = {
    "schema": 1, **measure.context(), "trigger": options.trigger, "seed": options.seed,
    "shuffled": kept(teacher, shown),
    "place": {"target": float(there[of_target].mean()), "others": float(there[~of_target].mean())},
    "universal": {
      "there": float(delta[place].mean()), "elsewhere": float(jnp.abs(delta[~place]).mean()),
    },
    "classes": by_class(teacher, images, labels, second),
    "batches": by_share(networks["student"], shown, config.target, config.student.batch_size),
    "means": by_means(teacher, images, labels, clean[others], added, config.target),
  }  # fmt: skip
  if (runner.directory(phases["abd"]["student"]) / "done.json").exists():
    end = runner.finish(phases["abd"]["student"])
    real = clean[others], triggered[others], config.target
    report["found"] = found(end.program.bind(end.trees), end.memory, second.shown, *real)
  path = options.out / f"{options.trigger}-seed{options.seed}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, report)
  for key in ("shuffled", "place", "universal", "classes", "batches", "means", "found"):
    print(key, report.get(key))


if __name__ == "__main__":
  main()
