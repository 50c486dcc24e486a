"""Per-example losses: float[B] in nats, no means, no config. Dim letters: B batch, K classes."""

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
