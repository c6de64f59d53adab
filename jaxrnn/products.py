"""Products: the affine map and its adjoint, shared by the cells and the readout.

Every function takes any number of leading axes (time, batch) and never merges them: a merged
axis would lose its sharding. Sums over leading axes run in at least float32, so that a gradient
summed over many steps in a 16-bit type is rounded once, at the end.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.sharding import product_sharding

__all__ = [
    "Weight",
    "add_bias",
    "affine",
    "bias_gradient",
    "columns_apart",
    "columns_gradient",
    "input_gradient",
    "stored",
    "summed_product",
    "weight_gradient",
]


class Weight(abc.ABC):
    """A weight whose product is not the plain one, in the place of an array ``w [I, O]``.

    ``x @ w``, `input_gradient`, `weight_gradient`, `columns_apart` and
    `columns_gradient` take it. Cells transformed by
    `jaxrnn.cells.transforms` read such weights: masked, block-diagonal, or in another dtype.
    """

    @abc.abstractmethod
    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """``x [..., I] @ w``, ``[..., O]``."""

    @abc.abstractmethod
    def input_gradient(self, dy: jax.Array) -> jax.Array:
        """``dx [..., I]`` of ``y = x @ w``, from ``dy [..., O]``."""

    @abc.abstractmethod
    def weight_gradient(self, x: jax.Array, dy: jax.Array) -> jax.Array:
        """The gradient of the array that the weight is stored as, in the accumulation dtype."""

    @property
    @abc.abstractmethod
    def stored(self) -> jax.Array:
        """The array that the weight is stored as."""

    @abc.abstractmethod
    def map(self, f: Callable[[jax.Array], Any]) -> "Weight":
        """The weight of ``f`` of the array that it is stored as."""

    @abc.abstractmethod
    def columns_apart(self, at: int) -> "tuple[Weight, Weight]":
        """The weights of the outputs before ``at``, and from there on."""

    @abc.abstractmethod
    def columns_gradient(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """The gradient of the stored array, from those of the two parts."""


def stored(w: jax.Array | Weight) -> jax.Array:
    """The array that a weight is stored as."""
    return w.stored if isinstance(w, Weight) else w


def add_bias(z: jax.Array, b: jax.Array) -> jax.Array:
    """``z [..., O] + b [O]``, with the broadcast spelled out for strict rank promotion."""
    return z + jnp.broadcast_to(b, z.shape)


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """``x [..., I] @ w [I, O] + b [O]``."""
    return add_bias(x @ w, b)


def columns_apart(w: jax.Array | Weight, at: int) -> tuple[jax.Array | Weight, jax.Array | Weight]:
    """``w[:, :at]`` and ``w[:, at:]``, for a step that multiplies by one after the other."""
    if isinstance(w, Weight):
        return w.columns_apart(at)
    # XLA moves a barrier out of the loop over steps together with the slice that it reads; the
    # slice alone would be copied at every step
    return lax.optimization_barrier(w[:, :at]), lax.optimization_barrier(w[:, at:])


def columns_gradient(w: jax.Array | Weight, first: jax.Array, second: jax.Array) -> jax.Array:
    """The gradient of ``w``, from those of its two parts by `columns_apart`."""
    if isinstance(w, Weight):
        return w.columns_gradient(first, second)
    return jnp.concatenate([first, second], axis=-1)


def input_gradient(dy: jax.Array, w: jax.Array | Weight) -> jax.Array:
    """``dx [..., I] = dy [..., O] @ w^T``, for ``y = x @ w``."""
    if isinstance(w, Weight):
        return w.input_gradient(dy)
    # XLA:CPU is slow on dy @ w.T with w row-major: a copied transpose is fast, and the barrier
    # keeps XLA from undoing it
    return dy @ lax.optimization_barrier(w.T)


def weight_gradient(x: jax.Array, dy: jax.Array, w: jax.Array | Weight | None = None) -> jax.Array:
    """``dw [I, O] = sum over the leading axes of x^T dy``, in the accumulation dtype.

    ``w`` is the weight itself, where it may be a `Weight`.
    """
    if isinstance(w, Weight):
        return w.weight_gradient(x, dy)
    leading = tuple(range(x.ndim - 1))
    return summed_product(x, dy, ((leading, leading), ((), ())))


def summed_product(x: jax.Array, dy: jax.Array, dimension_numbers: Any) -> jax.Array:
    """`jax.lax.dot_general` over the leading axes, in the accumulation dtype."""
    wide = accumulation_dtype(x.dtype)

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        return lax.dot_general(
            x,
            dy,
            dimension_numbers,
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
