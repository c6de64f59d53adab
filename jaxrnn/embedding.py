"""Integer tokens as vectors: a lookup with its gradient by hand, and sequences of several lengths.

    x_t = E[k_t]                dE[k] = sum of dx_t over all t and rows with k_t = k

The sum is one scatter-add, in at least float32. The same table read the other way makes logits of
hidden states, as in O. Press and L. Wolf, "Using the output embedding to improve language models",
2017: ``jaxrnn.affine(jaxrnn.AffineParams(w=params.table.T, b=b), hs)``, whose gradient reaches the
table by both ways.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import register_namedtuple_serialization

from jaxrnn.checks import array, concrete, describe, floating, floating_dtype, size
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.initializers import Initializer

__all__ = ["EmbeddingParams", "embed", "init_embedding", "pad_sequences"]


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
        padding: a token whose vector gets no gradient, and so stays as it is.

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
    # a negative token would count from the end
    tokens = jnp.where(tokens < 0, table.shape[0], tokens)
    return jnp.take(table, tokens, axis=0, mode="fill", fill_value=jnp.nan)


def _lookup_fwd(
    table: jax.Array, tokens: jax.Array, padding: int | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _lookup(table, tokens, padding), (table, tokens)


def _lookup_bwd(
    padding: int | None, residuals: tuple[jax.Array, jax.Array], dxs: jax.Array
) -> tuple[jax.Array, None]:
    table, tokens = residuals
    wide = accumulation_dtype(table.dtype)
    tokens = jnp.where(tokens < 0, table.shape[0], tokens)
    dtable = jnp.zeros(table.shape, wide).at[tokens].add(dxs.astype(wide), mode="drop")
    if padding is not None:
        dtable = dtable.at[padding].set(0)
    return dtable.astype(table.dtype), None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)


def pad_sequences(sequences: Sequence[Any], *, padding: Any = 0) -> tuple[np.ndarray, np.ndarray]:
    """One array of sequences of several lengths, time first, and these lengths.

    Args:
        sequences: arrays ``[T_b, ...]`` that are alike but for ``T_b``, which may be 0.
        padding: what stands behind the end of a sequence.

    Returns:
        ``(xs [T, B, ...], lengths [B])`` with T the longest; NumPy arrays, lengths int32.

    Raises:
        TypeError: no arrays of one dtype.
        ValueError: no sequences, or of different shapes.

    Example:
        >>> import jaxrnn
        >>> xs, lengths = jaxrnn.pad_sequences([[1, 2, 3], [4]])
        >>> xs.tolist(), lengths.tolist()
        ([[1, 4], [2, 0], [3, 0]], [3, 1])
    """
    arrays = [np.asarray(each) for each in sequences]
    if not arrays:
        raise ValueError("`sequences` must be at least one; got none")
    for b, each in enumerate(arrays):
        if each.ndim == 0 or each.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"`sequences` must be arrays [T, ...], alike but for T; got {arrays[0].shape} and, "
                f"at {b}, {each.shape}"
            )
        if each.dtype != arrays[0].dtype:
            raise TypeError(
                f"`sequences` must have one dtype; got {arrays[0].dtype} and, at {b}, {each.dtype}"
            )
    lengths = np.array([len(each) for each in arrays], np.int32)
    xs = np.full((lengths.max(), len(arrays), *arrays[0].shape[1:]), padding, arrays[0].dtype)
    for b, each in enumerate(arrays):
        xs[: len(each), b] = each
    return xs, lengths
