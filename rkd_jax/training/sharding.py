"""The mesh, and where arrays live: batches split over `data`, everything else on every device.

One axis with Auto sharding: `jax.jit` and GSPMD place the collectives (gradients, BatchNorm).
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rkd_jax import hosts
from rkd_jax.errors import UserError


def make_mesh(devices: int = 0) -> Mesh:
  """A mesh with the one axis `data` over the first `devices` devices (0: all)."""
  found = jax.devices()
  if hosts.count() > 1 and devices not in (0, len(found)):
    raise UserError(
      f"config.devices is {devices}, but the run has {hosts.count()} processes with {len(found)} "
      "devices, and uses all of them: leave it at 0."
    )
  if devices > len(found):
    raise UserError(
      f"config.devices is {devices}, but JAX sees {len(found)} ({found[0].platform})."
    )
  return jax.make_mesh(
    (devices or len(found),),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=found[: devices or None],
  )


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Host arrays onto every device of the mesh; each process holds the whole.

  The one door through which arrays are moved while transfers are otherwise forbidden.
  """
  sharding = NamedSharding(mesh, P())

  def put(leaf):
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
      return leaf
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  with jax.transfer_guard("allow"):
    return jax.tree.map(put, tree)


def spread(mesh: Mesh, tree: Any) -> Any:
  """This process's equal share of a batch onto its devices, the leading axis over all of them.

  A batch of a single process that its devices do not divide lies whole on each.
  """
  processes = jax.process_count()

  def put(leaf):
    if processes == 1 and leaf.shape[0] % mesh.size:
      return replicate(mesh, leaf)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), leaf)

  with jax.transfer_guard("allow"):
    return jax.tree.map(put, tree)


def split(mesh: Mesh, tree: Any) -> Any:
  """Inside jit: lays the leading axis over the devices.

  A batch that they do not divide stays whole on each (the same result, no gain).
  """

  def lay(leaf):
    whole = leaf.ndim == 0 or leaf.shape[0] % mesh.size
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P() if whole else P("data")))

  return jax.tree.map(lay, tree)


def keep_whole(mesh: Mesh, tree: Any) -> Any:
  """Inside jit: the same value on every device."""
  return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))
