"""Every test runs under JAX's strict flags; float64 unless a test asks for another dtype."""

import os

# before the first import of jax: tests never need an accelerator, and must not depend on one
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["ELMAN", "LSTM", "GRU"])
def cell(request):
    import jaxrnn

    return getattr(jaxrnn, request.param)
