"""Eight CPU devices, strict broadcasting, quick compilation, absl flags as if parsed."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

# Compiling is most of a small test's time. Subprocesses inherit it, so bytes stay comparable.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# XLA's older emitters compile a step in a third of the time. A version without them ends at once.
if "XLA_FLAGS" not in os.environ:
  older = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  begin = [sys.executable, "-c", "import jax; jax.devices()"]
  tried = subprocess.run(begin, env={**os.environ, "XLA_FLAGS": older}, capture_output=True)
  os.environ["XLA_FLAGS"] = "" if tried.returncode else older
# What one test has compiled, the other workers, subprocesses and files need not compile again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rkd_jax-compiled-")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read them


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module():
  """Thousands of compiled programs in one process end it, so each file's are let go after it."""
  yield
  jax.clear_caches()
