"""Variables as Flax saves them, {"params": ..., "batch_stats": ...}, as the network that is named.

Their names are the network's own, so nothing is translated or turned; but which network has them
is not told by them: it is asked for. JAX is imported only to convert.
"""

from rkd_jax.errors import UserError
from rkd_jax.interop.checkpoint import Checkpoint
from rkd_jax.interop.converted import Converted

HEAD = "params/head/kernel"


def root(checkpoint: Checkpoint) -> str | None:
  """What stands before "params/head/kernel"; None: no such tree is in the file."""
  found = [name for name in checkpoint.tensors if f"/{name}".endswith(f"/{HEAD}")]
  return min(found, key=len).removesuffix(HEAD) if found and checkpoint.kind != "phase" else None


def convert(checkpoint: Checkpoint, network: str, side: int, channels: int) -> Converted:
  """The tree as `network`.

  Raises:
    UserError: no network is named, there is none of that name, or its variables are others.
  """
  from rkd_jax.interop import layout

  above = root(checkpoint) or ""
  if not network:
    raise UserError(
      f"{checkpoint.path} holds variables of Flax, whose names do not say which network has them. "
      "Name it, as --config.teacher.network=resnet-20."
    )
  collections = tuple(f"{above}{name}/" for name in ("params", "batch_stats"))
  tensors = {
    name.removeprefix(above): array
    for name, array in checkpoint.tensors.items()
    if name.startswith(collections)
  }
  shape = tensors[HEAD].shape
  wanted = layout.expected(network, shape[1] if len(shape) == 2 else 1, channels, side)
  names = {leaf: leaf for leaf in wanted}
  found = {name: array.shape for name, array in tensors.items()}
  difference = layout.compare(network, "its own names", names, wanted, found, turned=False)
  if len(difference):
    raise UserError(
      f"{checkpoint.path} holds variables of Flax, but not those of {network} for images of {side} "
      f"pixels and {channels} channels: {difference}. Name the network that they are of, as "
      "--config.teacher.network=resnet-20. Nothing is loaded in part."
    )
  return Converted(
    network=network,
    variables=layout.variables(names, wanted, tensors, turned=False),
    classes=shape[1],
    channels=channels,
    side=None,
    normalisation=None,
    family="Flax's variables",
    place=f"under {above.rstrip('/')!r}" if above else "at the top",
  )
