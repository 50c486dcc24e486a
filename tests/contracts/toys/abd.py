"""ABD around any base: a vaccine for its generator, self-retrospection for its student."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.implicit import fixed_point
from rkd_jax.methods import base


def kl(network, images, delta):
  a, b = (network(x, train=False)[0].logits for x in (images, images + delta[None]))
  return losses.kl_divergence(a, b).mean()


def climb(network, images, delta):
  return 0.9 * delta + 0.1 * jax.grad(kl, argnums=2)(network, images, delta)


@dataclasses.dataclass(frozen=True)
class Method(base.Plugin):
  def init_state(self, key, variables, example):
    teacher = variables["teacher"]
    params, last = traverse_util.flatten_dict(teacher.params), teacher.module.convs[-1]
    params[last] = jax.random.permutation(key, params[last], axis=2)
    vaccine = traverse_util.unflatten_dict(params)
    return {**super().init_state(key, variables, example), "vaccine": vaccine}

  def loss(self, player, variables, state, batch, targets, key, step):
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    teacher, images = variables["teacher"], variables["generator"](batch["noise"])
    if player == "generator":
      pair = teacher, teacher.with_params(state["vaccine"])
      a, b = (network(images, train=False)[0].logits for network in pair)
      suspect = (a.argmax(-1) == b.argmax(-1)).astype(jnp.float32)
      return {**terms, "vaccine": (-0.1 * losses.kl_divergence(a, b), suspect)}, aux
    student, images = variables["student"], jax.lax.stop_gradient(images)
    delta = fixed_point(climb, 3, student, images, jnp.full(images.shape[1:], 0.01))
    return {**terms, "retrospection": kl(student, images, delta)}, aux
