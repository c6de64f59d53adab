"""Products: the affine map and its adjoint, shared by the cells and the readout.

Every function takes any number of leading axes (time, batch) and never merges them: a merged
axis would lose its sharding. Sums over leading axes run in at least float32, so that a gradient
summed over many steps in a 16-bit type is rounded once, at the end.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.sharding import product_sharding

__all__ = [
    "add_bias",
    "affine",
    "bias_gradient",
    "columns_apart",
    "input_gradient",
    "weight_gradient",
]


def add_bias(z: jax.Array, b: jax.Array) -> jax.Array:
    """``z [..., O] + b [O]``, with the broadcast spelled out for strict rank promotion."""
    return z + jnp.broadcast_to(b, z.shape)


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """``x [..., I] @ w [I, O] + b [O]``."""
    return add_bias(x @ w, b)


def columns_apart(w: jax.Array, at: int) -> tuple[jax.Array, jax.Array]:
    """``w[:, :at]`` and ``w[:, at:]``, for a step that multiplies by one after the other."""
    # XLA moves a barrier out of the loop over steps together with the slice that it reads; the
    # slice alone would be copied at every step
    return lax.optimization_barrier(w[:, :at]), lax.optimization_barrier(w[:, at:])


def input_gradient(dy: jax.Array, w: jax.Array) -> jax.Array:
    """``dx [..., I] = dy [..., O] @ w^T``, for ``y = x @ w``."""
    # XLA:CPU is slow on dy @ w.T with w row-major: a copied transpose is fast, and the barrier
    # keeps XLA from undoing it
    return dy @ lax.optimization_barrier(w.T)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """``dw [I, O] = sum over the leading axes of x^T dy``, in the accumulation dtype."""
    leading, wide = tuple(range(x.ndim - 1)), accumulation_dtype(x.dtype)

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        return lax.dot_general(
            x,
            dy,
            ((leading, leading), ((), ())),
            preferred_element_type=wide,
            out_sharding=product_sharding(x, dy),
        )

    if x.dtype == wide:
        return product(x, dy)
    # XLA:CPU has no product of 16-bit arrays with a 32-bit result and no summed axis
    # ("Unsupported element type for DotThunk"), which rows mapped by jax.vmap can make of this one
    return lax.platform_dependent(
        x, dy, cpu=lambda *args: product(*(a.astype(wide) for a in args)), default=product
    )


def bias_gradient(dy: jax.Array) -> jax.Array:
    """``db [O] = sum over the leading axes of dy``, in the accumulation dtype."""
    return jnp.sum(dy, axis=tuple(range(dy.ndim - 1)), dtype=accumulation_dtype(dy.dtype))
