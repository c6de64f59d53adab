"""Products: of one step, and the affine map and its adjoint, shared by the cells and the readout.

Every function takes any number of leading axes (time, batch) and never merges them: a merged
axis would lose its sharding. Sums over leading axes run in at least float32, so that a gradient
summed over many steps in a 16-bit type is rounded once, at the end.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.sharding import product_sharding

__all__ = [
    "Product",
    "accumulation_dtype",
    "add_bias",
    "affine",
    "bias_gradient",
    "few_rows",
    "input_gradient",
    "step_product",
    "weight_gradient",
]


Product: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""``x [..., I], w [I, O] -> x @ w``."""


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which values of that dtype are summed: float32 for 16-bit types."""
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def add_bias(z: jax.Array, b: jax.Array) -> jax.Array:
    """``z [..., O] + b [O]``, with the broadcast spelled out for strict rank promotion."""
    return z + jnp.broadcast_to(b, z.shape)


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """``x [..., I] @ w [I, O] + b [O]``."""
    return add_bias(x @ w, b)


def few_rows(x: jax.Array, w: jax.Array) -> bool:
    """Whether XLA:CPU multiplies the rows of ``x [..., I]`` faster by a weight on the left.

    Then it reads the weight once for all rows. That pays where the weight does not fit into a
    core's cache: 1.2 times as fast at 2 MB, 3 times at 16 MB. One row reads it once anyway; for 64
    rows or more, it is read no more often the other way round.
    """
    return 4 <= math.prod(x.shape[:-1]) < 64 and w.nbytes >= 2**21


def step_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x [..., I] @ w [I, O]`` of one step, in a loop over many.

    With `few_rows`, it reads ``w`` with its axes exchanged in memory. The loop makes that copy.
    """
    if not few_rows(x, w):
        return x @ w
    return lax.platform_dependent(x, w, cpu=_from_left, default=jnp.matmul)


def _from_left(x: jax.Array, w: jax.Array) -> jax.Array:
    # with barriers, or XLA exchanges the operands again, or makes a loop of its own of the product
    columns = lax.optimization_barrier(jnp.moveaxis(x, -1, 0))
    y = lax.optimization_barrier(jnp.tensordot(w.T, columns, 1))
    return lax.optimization_barrier(jnp.moveaxis(y, 0, -1))


def input_gradient(dy: jax.Array, w: jax.Array) -> jax.Array:
    """``dx [..., I] = dy [..., O] @ w^T``, for ``y = x @ w``."""
    if few_rows(dy, w):
        return step_product(dy, w.T)
    # a transposed copy pays: XLA:CPU multiplies from the right by a weight as it lies in memory,
    # and makes the copy outside of loops; the barrier keeps it from going back to the original
    return dy @ lax.optimization_barrier(w.T)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """``dw [I, O] = sum over the leading axes of x^T dy``, in the accumulation dtype."""
    leading = tuple(range(x.ndim - 1))
    return lax.dot_general(
        x,
        dy,
        ((leading, leading), ((), ())),
        preferred_element_type=accumulation_dtype(x.dtype),
        out_sharding=product_sharding(x, dy),
    )


def bias_gradient(dy: jax.Array) -> jax.Array:
    """``db [O] = sum over the leading axes of dy``, in the accumulation dtype."""
    return jnp.sum(dy, axis=tuple(range(dy.ndim - 1)), dtype=accumulation_dtype(dy.dtype))
