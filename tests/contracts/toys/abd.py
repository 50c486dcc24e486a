"""ABD around any base: a vaccine for its generator, self-retrospection for its student."""

import jax
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.implicit import fixed_point
from rkd_jax.methods import base


def shuffled(key, made, example):
  params = traverse_util.flatten_dict(made["teacher"].params)
  params["conv2", "kernel"] = jax.random.permutation(key, params["conv2", "kernel"], axis=2)
  return made["teacher"].with_params(traverse_util.unflatten_dict(params)).variables


def kl(net, images, delta):
  logits = [net(x, train=False)[0].logits for x in (images, images + delta[None])]
  return losses.kl_divergence(*logits).mean()


def climb(net, images, delta):
  return 0.9 * delta + 0.1 * jax.grad(kl, argnums=2)(net, images, delta)


class Method(base.Plugin):
  def roles(self, networks):
    return super().roles(networks) | {"vaccine": base.Role(networks["teacher"], init=shuffled)}

  def loss(self, player, variables, state, batch, targets, key, step):
    terms, aux = super().loss(player, variables, state, batch, targets, key, step)
    images = variables["generator"](batch["noise"])
    if player == "student":
      delta = fixed_point(climb, 3, variables["student"], images, 0.01 + 0 * images[0])
      return terms | {"retrospection": kl(variables["student"], images, delta)}, aux
    a, b = (variables[role](images, train=False)[0].logits for role in ("teacher", "vaccine"))
    term = -0.1 * losses.kl_divergence(a, b), 1.0 * (a.argmax(-1) == b.argmax(-1))
    return terms | {"vaccine": term}, aux
