"""In which dtype values are summed, and which leaves have gradients."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["accumulation_dtype", "differentiable", "in_dtype_of", "sum_bytes", "zero_sums"]


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which values of that dtype are summed: float32 for 16-bit types."""
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def differentiable(tree: Any) -> Any:
    """The pytree with None for every leaf that is not floating: only the others have adjoints."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def zero_sums(tree: Any) -> Any:
    """Zeros in the accumulation dtype, to sum gradients of these leaves into."""
    # like the leaf: inside a shard_map, the type of zeros tells along which axes devices differ
    return jax.tree.map(
        lambda a: jnp.zeros_like(a, accumulation_dtype(a.dtype)), differentiable(tree)
    )


def sum_bytes(tree: Any) -> int:
    """The bytes of `zero_sums`, without an array or a trace."""
    return sum(
        leaf.size * accumulation_dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(differentiable(tree))
    )


def in_dtype_of(tree: Any, sums: Any) -> Any:
    """Sums in the dtypes of the leaves whose gradients they are; None stays None."""
    return jax.tree.map(
        lambda d, leaf: None if d is None else d.astype(leaf.dtype),
        sums,
        tree,
        is_leaf=lambda d: d is None,
    )
