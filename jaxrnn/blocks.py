"""Gates side by side: arrays ``[..., G*H]`` of G blocks, worked on as one.

On a CPU, XLA runs a few dense operations over ``[..., G*H]`` much faster than many over its slices:
each operation of a step costs a fixed time, and slices of a product are not vectorised together
with their activations. These helpers keep the blocks together.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.platforms import target_platform

__all__ = ["block", "in_one_piece", "sigmoid_and_complement", "sigmoid_or_tanh"]


def block(a: jax.Array, k: int, blocks: int) -> jax.Array:
    """The k-th of that many equal blocks of the last axis."""
    H = a.shape[-1] // blocks
    return a[..., k * H : (k + 1) * H]


def in_one_piece(a: jax.Array) -> jax.Array:
    """``a``, behind a barrier: XLA must not rewrite it block by block.

    Whether it is stored or fused into its reader is still XLA's choice.
    """
    return lax.optimization_barrier(a)


def _in_one_piece_on_cpu(a: jax.Array) -> jax.Array:
    """`in_one_piece` on a CPU; for a GPU ``a``, where the barrier would split a kernel in two."""
    return a if target_platform() == "gpu" else in_one_piece(a)


# jit makes one program of a call outside of another jit; inside, inline leaves no trace of it
@functools.partial(jax.jit, inline=True)
def sigmoid_and_complement(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``sigmoid(a)`` and ``1 - sigmoid(a)``, each exact relative to its own size.

    With e = exp(-|a|), the larger one is 1 / (1 + e) and the smaller one e / (1 + e). 16-bit types
    are computed in float32.
    """
    return _sigmoid_and_complement(a)


@jax.custom_jvp
def _sigmoid_and_complement(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = a.astype(accumulation_dtype(a.dtype))
    e = jnp.exp(-jnp.abs(wide))
    larger = 1 / (1 + e)
    smaller, positive = e * larger, wide >= 0
    pair = jnp.where(positive, larger, smaller), jnp.where(positive, smaller, larger)
    return pair[0].astype(a.dtype), pair[1].astype(a.dtype)


@_sigmoid_and_complement.defjvp
def _sigmoid_and_complement_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    s, complement = _sigmoid_and_complement(*primals)
    slope = s * complement * tangents[0]
    return (s, complement), (slope, -slope)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def sigmoid_or_tanh(a: jax.Array, functions: str) -> jax.Array:
    """Apply one of the two to each block of ``a [..., G*H]``, named in order: ``[..., G*H]``.

    Every value is exact to a few roundings relative to its own size, also where a gate is shut.
    The identity sigmoid(a) = (1 + tanh(a / 2)) / 2 would be exact only relative to 1. 16-bit types
    are computed in float32.
    """
    return _in_one_piece_on_cpu(_activate(a, tuple(name == "tanh" for name in functions.split())))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _activate(a: jax.Array, tanh_blocks: tuple[bool, ...]) -> jax.Array:
    """Compute both functions as one ratio ``[..., G*H]`` with one exp and one division.

        sigmoid(a) = 1 / (1 + e),         e = exp(-a)
        tanh(a)    = (1 - e) / (1 + e),   e = exp(-2 a)

    Near 0 the difference cancels, and tanh is a / (1 + a^2 / (3 + a^2 / (5 + ...))) (J. H. Lambert,
    "Mémoire sur quelques propriétés remarquables des quantités transcendantes", 1768).
    """
    dtype, a = a.dtype, a.astype(accumulation_dtype(a.dtype))
    rate = _by_block(a, tanh_blocks, -2.0, -1.0)
    near = _by_block(a, tanh_blocks, 0.2**2, 0.0)
    # an infinite e would make the ratio of tanh NaN
    e = jnp.exp(jnp.minimum(a * rate, math.floor(math.log(jnp.finfo(a.dtype).max))))
    square = a * a
    numerator, denominator = _lambert(square, levels=6 if a.dtype == jnp.float64 else 3)
    far = jnp.where(near > 0, 1 - e, 1)
    is_near = square < near
    ratio = jnp.where(is_near, a * numerator, far) / jnp.where(is_near, denominator, 1 + e)
    return ratio.astype(dtype)


@_activate.defjvp
def _activate_jvp(
    tanh_blocks: tuple[bool, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # the slope as a function of the value; that of the ratio overflows where e is large
    y = _activate(*primals, tanh_blocks)
    is_tanh = jnp.broadcast_to(np.repeat(tanh_blocks, y.shape[-1] // len(tanh_blocks)), y.shape)
    return y, tangents[0] * jnp.where(is_tanh, 1 - y * y, y * (1 - y))


def _by_block(a: jax.Array, tanh_blocks: tuple[bool, ...], tanh: float, other: float) -> jax.Array:
    """A constant per block, like ``a``."""
    row = np.repeat(np.where(tanh_blocks, tanh, other), a.shape[-1] // len(tanh_blocks))
    constant = jnp.broadcast_to(row.astype(a.dtype), a.shape[-2:])
    # XLA:CPU divides a loop among threads if it has more operations than bytes to read and write:
    # for the gates of one step, to wait for another thread takes as long as to compute them. With
    # a barrier the constants are read from memory and count as bytes; loops write them once
    return jnp.broadcast_to(_in_one_piece_on_cpu(constant), a.shape)


def _lambert(square: jax.Array, levels: int) -> tuple[jax.Array, jax.Array]:
    """``1 / (1 + square / (3 + square / (5 + ...)))`` as numerator and denominator."""
    numerator, denominator = jnp.ones_like(square), jnp.full_like(square, 2 * levels - 1)
    for odd in range(2 * levels - 3, 0, -2):
        numerator, denominator = denominator, odd * denominator + square * numerator
    return numerator, denominator
