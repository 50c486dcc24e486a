"""Per-example losses: float[B], no means, no config; those of logits in nats.

Dim letters: B batch, K classes, h w c feature map.
"""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits)[label], float[B].

  Args:
    logits: float[B, K].
    labels: int[B] in [0, K); where negative (unlabelled) the loss is that of class 0, finite and
      meaningless: give it weight 0.
  """
  chex.assert_rank([logits, labels], [2, 1])
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))


def kl_divergence(
  target_logits: jax.Array, logits: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """T^2 KL(softmax(target/T) || softmax(logits/T)), float[B] (Hinton et al. 2015, section 2.1).

  Args:
    target_logits, logits: float[B, K].
    temperature: T > 0; the factor T^2 keeps gradients comparable between temperatures.
  """
  chex.assert_rank([target_logits, logits], 2)
  chex.assert_equal_shape([target_logits, logits])
  target = jax.nn.log_softmax(target_logits / temperature)
  predicted = jax.nn.log_softmax(logits / temperature)
  return temperature**2 * optax.losses.kl_divergence_with_log_targets(predicted, target)


def mixed_cross_entropy(
  logits: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of a batch's own labels, mixup included: (value[B], weight[B]).

  The weight is 1 where the example (and, under mixup, its partner) is labelled, else 0.
  Mixup (Zhang et al. 2018): w CE(label) + (1 - w) CE(partner's label).
  """
  value, weight = cross_entropy(logits, batch["label"]), batch["label"] >= 0
  if "mix_label" in batch:
    share = batch["mix_weight"]
    value = share * value + (1 - share) * cross_entropy(logits, batch["mix_label"])
    weight = weight & (batch["mix_label"] >= 0)
  return value, weight.astype(value.dtype)


# Of feature maps float[B, h, w, c]; whatever their dtype, the arithmetic is float32.


def overhaul(connected: jax.Array, teacher: jax.Array, margin: jax.Array) -> jax.Array:
  """OFD's partial squared distance, summed over h, w, c (Heo et al. 2019, section 3.4): float[B].

  With t = max(teacher, margin): (s - t)^2 where s > t or t > 0, so a student below a negative t is
  let be.

  Args:
    connected: s, float[B, h, w, c], the student's features in the teacher's channels.
    teacher: float[B, h, w, c], before the ReLU.
    margin: float[c] <= 0, see `methods.ofd.normal_tail_mean`.
  """
  s, t = _float32(connected, teacher)
  t = jnp.maximum(t, margin.reshape(1, 1, 1, -1))
  return jnp.where((s > t) | (t > 0), (s - t) ** 2, 0).sum((1, 2, 3))


def attention_map(feature: jax.Array) -> jax.Array:
  """Sum of squares over channels, flattened and L2-normalised: float[B, h * w], 0 where all is 0.

  Zagoruyko & Komodakis (2017), section 3.1, F_sum^2. Finite gradient at 0.
  """
  chex.assert_rank(feature, 4)
  energy = jnp.square(feature.astype(jnp.float32)).sum(-1).reshape(len(feature), -1)
  return energy * jax.lax.rsqrt(jnp.square(energy).sum(-1, keepdims=True) + 1e-24)


def attention_transfer(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean over h, w of the squared difference of two attention maps, float[B].

  As in the authors' code (Zagoruyko & Komodakis 2017); their eq. 2 has the norm, not its square.

  Args:
    student, teacher: float[B, h, w, c]; their channels may differ.
  """
  chex.assert_equal_shape([student, teacher], dims=(0, 1, 2))
  return jnp.square(attention_map(student) - attention_map(teacher)).mean(-1)


def hint(connected: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean over h, w, c of the squared difference, float[B].

  FitNets (Romero et al. 2015), eq. 3, has half the sum; benchmarks have the mean and no half.
  """
  s, t = _float32(connected, teacher)
  return jnp.square(s - t).mean((1, 2, 3))


def residual_variance(connected: jax.Array, teacher: jax.Array) -> jax.Array:
  """Var(connected - teacher) / Var(teacher), each over h, w, c; no gradient below: float[B]."""
  s, t = _float32(connected, teacher)
  scale = jax.lax.stop_gradient(t.var((1, 2, 3)) + 1e-6)
  return (s - t).var((1, 2, 3)) / scale


def moment_gap(connected: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean over channels of (std of connected - std of teacher)^2: a scalar of the whole batch.

  The deviations are biased ones over b, h, w. Finite gradient where a channel is constant.
  """
  s, t = _float32(connected, teacher)
  return jnp.square(_deviation(s) - _deviation(t)).mean()


def view_variance(connected: jax.Array, other: jax.Array) -> jax.Array:
  """The variance of two views, (a - b)^2 / 4, meaned over h, w, c: float[B]."""
  a, b = _float32(connected, other)
  return jnp.square(a - b).mean((1, 2, 3)) / 4


def _deviation(x: jax.Array) -> jax.Array:
  """Per channel, float[c]; where it is 0, so is its gradient (that of the root is infinite)."""
  var = x.var((0, 1, 2))
  return jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1)), 0)


def _float32(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  chex.assert_rank([a, b], 4)
  chex.assert_equal_shape([a, b])
  return a.astype(jnp.float32), b.astype(jnp.float32)
