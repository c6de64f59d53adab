"""Choosing by a mask over rows: ``mask [...]`` against pytrees of ``[..., H]``.

A mask of None stands for no mask at all, and costs nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["random_mask", "select", "zero_unless", "zero_where"]


def random_mask(key: jax.Array, share: float, shape: tuple[int, ...]) -> jax.Array:
    """True with a probability of ``share``: the same for a key whether or not float64 is on."""
    return jax.random.bernoulli(key, jnp.float32(share), shape)


def select(mask: jax.Array | None, chosen: Any, other: Any) -> Any:
    """``chosen`` where the mask holds, else ``other``; ``chosen`` where there is no mask."""
    if mask is None:
        return chosen

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    return jax.tree.map(choose, chosen, other)


def zero_unless(mask: jax.Array | None, tree: Any) -> Any:
    """``tree`` where the mask holds, else zeros; its own adjoint."""
    return select(mask, tree, jax.tree.map(jnp.zeros_like, tree))


def zero_where(mask: jax.Array | None, tree: Any) -> Any:
    """Zeros where the mask holds, else ``tree``; its own adjoint."""
    return tree if mask is None else select(mask, jax.tree.map(jnp.zeros_like, tree), tree)
