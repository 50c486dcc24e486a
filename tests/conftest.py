"""Eight CPU devices, strict broadcasting, and absl flags as if `app.run` had parsed them."""

import jax
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read them
