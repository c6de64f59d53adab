"""Gates side by side: arrays ``[..., G*H]`` of G blocks, worked on as one.

On a CPU, XLA runs a few dense operations over ``[..., G*H]`` much faster than many over its slices:
each operation of a step costs a fixed time, and slices of a product are not vectorised together
with their activations. These helpers keep the blocks together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["block", "in_one_piece", "sigmoid_or_tanh"]


def block(a: jax.Array, k: int, blocks: int) -> jax.Array:
    """The k-th of that many equal blocks of the last axis."""
    H = a.shape[-1] // blocks
    return a[..., k * H : (k + 1) * H]


def in_one_piece(a: jax.Array) -> jax.Array:
    """``a``, behind a barrier: XLA must not rewrite it block by block.

    Whether it is stored or fused into its reader is still XLA's choice.
    """
    return lax.optimization_barrier(a)


def sigmoid_or_tanh(a: jax.Array, functions: str) -> jax.Array:
    """``a [..., G*H]`` with one of the two applied to each of its G blocks, named in order.

    All by one tanh: sigmoid(a) = (1 + tanh(a / 2)) / 2.
    """
    sigmoid = np.array([name == "sigmoid" for name in functions.split()])
    blocks = np.where(sigmoid, 0.5, 1.0), np.where(sigmoid, 0.5, 0.0)
    H = a.shape[-1] // len(sigmoid)
    scale, shift = (jnp.broadcast_to(np.repeat(b, H).astype(a.dtype), a.shape) for b in blocks)
    return in_one_piece(jnp.tanh(a * scale) * scale + shift)
