"""Integer tokens as vectors: a lookup with its gradient by hand.

    x_t = E[k_t]                dE[k] = sum of dx_t over all t and rows with k_t = k

The sum is one scatter-add, in at least float32. The same table read the other way makes logits of
hidden states, as in O. Press and L. Wolf, "Using the output embedding to improve language models",
2017: ``jaxrnn.affine(jaxrnn.AffineParams(w=params.table.T, b=b), hs)``, whose gradient reaches the
table by both ways.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from jaxrnn.checks import array, concrete, describe, floating, floating_dtype, size
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.initializers import Initializer

__all__ = ["EmbeddingParams", "embed", "init_embedding"]


class EmbeddingParams(NamedTuple):
    """A vector for each token: ``table [V, E]``."""

    table: jax.Array


register_namedtuple_serialization(EmbeddingParams, serialized_name="jaxrnn.EmbeddingParams")


def init_embedding(
    key: jax.Array,
    vocabulary_size: int,
    embedding_size: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    table_init: Initializer = jax.random.normal,
) -> EmbeddingParams:
    """A table of standard normal vectors, or of another initializer ``(key, shape, dtype)``."""
    shape = size("vocabulary_size", vocabulary_size), size("embedding_size", embedding_size)
    return EmbeddingParams(table=table_init(key, shape, floating_dtype("dtype", dtype)))


def embed(params: EmbeddingParams, tokens: Any, *, padding: int | None = None) -> jax.Array:
    """The vectors of ``tokens [T, ...]``, integers in 0..V-1: ``[T, ..., E]``.

    Args:
        params: from `init_embedding`.
        tokens: integers of any shape. Concrete ones out of 0..V-1 raise; nothing can under
            `jax.jit`, so the vector of a traced one is NaN.
        padding: a token whose vector gets no gradient from the lookup. Weight decay and tied output
            weights change it nevertheless: no step reads it where ``lengths`` leave it out.

    Raises:
        TypeError: params of another type, tokens that are no integers.
        ValueError: tokens or a padding out of 0..V-1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.init_embedding(jax.random.key(0), 10, 4)
        >>> jaxrnn.embed(params, jnp.array([[3, 1], [0, 9]])).shape
        (2, 2, 4)
    """
    if not isinstance(params, EmbeddingParams):
        raise TypeError(f"`params` must be jaxrnn.EmbeddingParams; got {describe(params)}")
    table, given = floating("params.table", params.table), tokens
    tokens = array("tokens", tokens)
    if table.ndim != 2:
        raise ValueError(f"`params.table` must be [V, E]; got shape {table.shape}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"`tokens` must be integers; got dtype {tokens.dtype}")
    V = table.shape[0]
    known = concrete(given)
    if known is not None and known.size and not (known.min() >= 0 and known.max() < V):
        raise ValueError(f"`tokens` must be in 0..{V - 1}; got {known.min()}..{known.max()}")
    if padding is not None and size("padding", padding, least=0) >= V:
        raise ValueError(f"`padding` must be in 0..{V - 1}; got {padding}")
    return _lookup(table, tokens, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: jax.Array, tokens: jax.Array, padding: int | None) -> jax.Array:
    return jnp.take(table, _rows(table, tokens), axis=0, mode="fill", fill_value=jnp.nan)


def _rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """The row of each token, V where there is none."""
    # a dtype of fewer bits may not hold V
    tokens = tokens if tokens.dtype.itemsize >= 4 else tokens.astype(jnp.int32)
    # a negative token would count from the end
    return jnp.where(tokens < 0, table.shape[0], tokens)


def _lookup_fwd(
    table: jax.Array, tokens: jax.Array, padding: int | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _lookup(table, tokens, padding), (table, tokens)


def _lookup_bwd(
    padding: int | None, residuals: tuple[jax.Array, jax.Array], dxs: jax.Array
) -> tuple[jax.Array, None]:
    table, tokens = residuals
    wide = accumulation_dtype(table.dtype)
    rows = _rows(table, tokens)
    dtable = jnp.zeros(table.shape, wide).at[rows].add(dxs.astype(wide), mode="drop")
    if padding is not None:
        dtable = dtable.at[padding].set(0)
    return dtable.astype(table.dtype), None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)
