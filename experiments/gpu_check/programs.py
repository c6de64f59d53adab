"""Training steps of one cell, compiled and ready to be compared and timed."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import bptt
from jaxrnn.call import arrays_of, plan_of, validate
from jaxrnn.testing import relative_differences

# all cells of the library, those to come included
CELLS = {name: cell for name, cell in vars(jaxrnn).items() if isinstance(cell, jaxrnn.Cell)}

# largest difference from float64 relative to an array's largest entry. Those of float32 are a few
# roundings, of 2**-24; TF32 rounds the operands of products to 2**-11, bfloat16 all to 2**-9
TOLERANCES = {"float32": 2e-5, "TF32": 2e-2, "bfloat16": 1e-1}
_PRODUCTS = {"float32": "highest", "TF32": "tensorfloat32", "bfloat16": "default"}

WARM_UPS, REPEATS = 2, 10


class Shape(NamedTuple):
    T: int
    B: int
    I: int
    H: int


class Spec(NamedTuple):
    """A program to compile: a cell at a shape, in a precision, and how it is run.

    ``unroll`` has the signature of `jaxrnn.unroll`, ``options`` are the compiler's.
    """

    cell: str
    shape: Shape
    unroll: Callable[..., Any] = jaxrnn.unroll
    precision: str = "float32"
    options: dict[str, Any] | None = None


class Program(NamedTuple):
    """``run()`` returns the gradients."""

    run: Callable[[], Any]
    compile_seconds: float
    temporary_bytes: int | None


def dtype_of(precision: str) -> Any:
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def products(precision: str) -> Any:
    """The context in which products have that precision."""
    return jax.default_matmul_precision(_PRODUCTS[precision])


@functools.cache
def inputs(cell: str, shape: Shape, dtype: Any) -> tuple[Any, jax.Array, jax.Array]:
    """Params, ``xs`` and cotangents of ``hs``, the same for the same arguments."""
    generator = np.random.default_rng(tuple(shape))
    T, B, I, H = shape
    params = CELLS[cell].init(jax.random.key(0), I, H, dtype=dtype)
    xs, dhs = (jnp.asarray(generator.standard_normal((T, B, n)), dtype) for n in (I, H))
    return params, xs, dhs


def gradients(
    unroll: Callable[..., Any], cell: str, params: Any, xs: jax.Array, dhs: jax.Array
) -> tuple[Any, jax.Array]:
    """The gradients of params and inputs for a cotangent of every output."""
    _, pull = jax.vjp(lambda params, xs: unroll(CELLS[cell], params, xs)[1], params, xs)
    return pull(dhs)


def training(spec: Spec) -> Program:
    """`gradients`, compiled as it says."""
    arrays = inputs(spec.cell, spec.shape, dtype_of(spec.precision))
    step = functools.partial(gradients, spec.unroll, spec.cell)
    with products(spec.precision):
        jitted = jax.jit(step, compiler_options=spec.options)
        started = time.perf_counter()
        compiled = jitted.lower(*arrays).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    return Program(
        run=functools.partial(compiled, *arrays),
        compile_seconds=round(seconds, 2),
        temporary_bytes=memory and memory.temp_size_in_bytes,
    )


def with_plan(**changes: Any) -> Callable[..., Any]:
    """`jaxrnn.unroll` with other loops or another length of chunks."""

    def unroll(cell: jaxrnn.Cell, params: Any, xs: Any) -> Any:
        call = validate(cell, params, xs, None, {})
        plan = plan_of(call)._replace(**changes)
        return bptt.unroll(cell, plan, arrays_of(call))

    return unroll


def agreement(found: Any, right: Any, tolerance: float) -> tuple[str, float, bool]:
    """The array that differs most, by how much of its largest entry, and whether that is little.

    An array with a NaN differs more than any other.
    """
    differences = relative_differences(found, right)
    worst = max(differences, key=lambda name: (math.isnan(differences[name]), differences[name]))
    # not `>`: a NaN must not pass
    return worst, differences[worst], differences[worst] <= tolerance


def seconds_of(run: Callable[..., Any], *arguments: Any) -> list[float]:
    """The time of each call to the end of its computation, after the first ones."""
    for _ in range(WARM_UPS):
        jax.block_until_ready(run(*arguments))
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        found.append(time.perf_counter() - started)
    return found


def times(seconds: list[float], steps: int | None = None) -> dict[str, Any]:
    """The entries of a line that has times."""
    median = statistics.median(seconds)
    found: dict[str, Any] = {
        "median_ms": round(1e3 * median, 4),
        "least_ms": round(1e3 * min(seconds), 4),
        "seconds": [round(each, 7) for each in seconds],
    }
    return found if steps is None else found | {"us_per_step": round(1e6 * median / steps, 3)}
