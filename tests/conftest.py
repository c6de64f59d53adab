"""Every test runs under JAX's strict flags; float64 unless a test asks for another dtype.

Compiling is most of what the tests cost, and each program runs once or twice on little data: so the
compiler's last stage does not optimise. With another ``XLA_FLAGS`` in the environment it may.
"""

import gc
import importlib.metadata
import os
from pathlib import Path

# before the first import of jax: tests never need an accelerator, and must not depend on one
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    # a module that is not split for several threads takes three quarters of the time with jax 0.10,
    # and fewer of the mappings of memory of which a process may have 65530
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # XLA's older way to compile what is elementwise takes half as long, where it is still there
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import jax
import pytest

# what JAX keeps of every program is millions of objects: to look through them again and again is a
# twentieth of the tests' time
gc.set_threshold(200_000, 20, 100)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# one whose state has two fields, and one that reads its state beside the product; all cells are in
# test_every_cell.py
@pytest.fixture(params=[pytest.param("ELMAN", marks=pytest.mark.slow), "LSTM", "GRU"])
def cell(request):
    import jaxrnn

    return getattr(jaxrnn, request.param)


@pytest.fixture(autouse=True, scope="module")
def _few_programs_at_once():
    """Forget compiled programs before their mappings of memory are more than Linux allows."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()
        gc.collect()
