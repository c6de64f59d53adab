"""The machine's own rate of float32 products, through XLA, with operands that stay in a cache."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.cases import Arrays, Case
from experiments.benchmarks.contenders.contender import Contender, Program

# columns and rows of the square operands; the best rate of all counts
_SIZES = {"cpu": (256, 384, 512, 768), "gpu": (2048, 4096, 8192)}
# products in a call: enough that the call itself is nothing
_REPEATS = 8


@jax.jit
def _products(x: jax.Array, w: jax.Array) -> jax.Array:
    # each needs the one before: none can be left out, and the buffers are not new ones
    return lax.fori_loop(0, _REPEATS, lambda _, y: y @ w, x)


def programs(case: Case, arrays: Arrays) -> Mapping[str, Program]:
    del case, arrays
    return _programs()


@functools.cache
def _programs() -> Mapping[str, Program]:
    generator = np.random.default_rng(0)

    def program(size: int) -> Program:
        # orthogonal: the products neither grow nor vanish
        orthogonal, _ = np.linalg.qr(generator.standard_normal((size, size)))
        x, w = (jnp.array(orthogonal, jnp.float32) for _ in range(2))
        flops = np.array(_REPEATS * 2 * size**3)
        return Program(lambda: jax.block_until_ready(_products(x, w)), lambda _: {str(size): flops})

    sizes = _SIZES.get(jax.default_backend(), _SIZES["gpu"])
    return {str(size): program(size) for size in sizes}


CONTENDER = Contender(
    how="the best of a few jitted square products, repeated in a loop",
    programs=programs,
)
