"""Time in chunks: one loop over them, whatever their number, and what enters each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.sharding import zeros_beside

__all__ = ["entering_chunks", "scan_chunks", "shifted"]


def scan_chunks(
    body: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    carry: Any,
    by_step: Any,
    by_chunk: Any,
    K: int | None,
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """``body(carry, by_step, by_chunk)`` over chunks of K steps; None for one chunk of all steps.

    Beside the carry, the body reads and returns pytrees of steps, ``[T, ...]`` of which a chunk is
    ``[K, ...]``, and pytrees of ``[N, ...]`` with one entry per chunk. The remainder chunk comes
    last in time and is shorter.
    """
    T = jax.tree.leaves(by_step)[0].shape[0]
    if K is None or T <= K:
        alone = jax.tree.map(lambda a: a[0], by_chunk)
        carry, stacked, outs = body(carry, by_step, alone)
        return carry, stacked, jax.tree.map(lambda a: a[None], outs)
    N, remainder = divmod(T, K)
    if not remainder:

        def whole(carry: Any, inputs: Any) -> tuple[Any, Any]:
            carry, *outs = body(carry, *inputs)
            return carry, outs

        chunks = jax.tree.map(lambda a: a.reshape(N, K, *a.shape[1:]), by_step)
        carry, (stacked, outs) = lax.scan(whole, carry, (chunks, by_chunk), reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(T, *a.shape[2:]), stacked), outs

    # each chunk reads from the whole sequences and writes into the whole outputs, because slicing
    # off the remainder and concatenating two outputs would copy them
    def at(index: Any, length: int) -> tuple[Any, Any]:
        return (
            jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index * K, length), by_step),
            jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, keepdims=False), by_chunk),
        )

    def part(carry: Any, written: Any, index: Any, length: int) -> tuple[Any, Any]:
        carry, *new = body(carry, *at(index, length))
        return carry, (
            jax.tree.map(
                lambda a, b: lax.dynamic_update_slice_in_dim(a, b, index * K, 0), written[0], new[0]
            ),
            jax.tree.map(
                lambda a, b: lax.dynamic_update_index_in_dim(a, b, index, 0), written[1], new[1]
            ),
        )

    _, *like = jax.eval_shape(lambda: body(carry, *at(0, K)))
    whole_like = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape[1:]), a.dtype), like[0]),
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((N + 1, *a.shape), a.dtype), like[1]),
    )
    written = zeros_beside(whole_like, (carry, by_step))
    if reverse:
        carry, written = part(carry, written, N, remainder)
    (carry, written), _ = lax.scan(
        lambda state, index: (part(*state, index, K), None),
        (carry, written),
        jnp.arange(N),
        reverse=reverse,
    )
    if not reverse:
        carry, written = part(carry, written, N, remainder)
    return carry, *written


def entering_chunks(initial: Any, after: Any, K: int | None, *, reverse: bool) -> Any:
    """The state that enters each chunk, ``[N, ...]``: the one after the step processed before it.

    Args:
        initial: the state that enters the first chunk to be processed.
        after: the states after all steps, ``[T, ...]``.
        K: steps of a chunk, or None for one chunk.
        reverse: the last step is processed first.
    """

    def entering(initial: jax.Array, after: jax.Array) -> jax.Array:
        if K is None or after.shape[0] <= K:
            return initial[None]
        if reverse:
            return jnp.concatenate([after[K::K], initial[None]])
        return jnp.concatenate([initial[None], after[K - 1 : -1 : K]])

    return jax.tree.map(entering, initial, after)


def shifted(entering: Any, after: Any, *, reverse: bool) -> Any:
    """The carry that each step of a chunk finds, ``[K, ...]``: what the step before it left."""

    def shift(entering: jax.Array, after: jax.Array) -> jax.Array:
        K = after.shape[0]
        if K == 0:
            return after
        # a pad, because XLA:CPU compiles a concatenation in a loop half as fast
        edges, first = ((-1, 1, 0), K - 1) if reverse else ((1, -1, 0), 0)
        zero = jnp.zeros((), after.dtype)
        moved = lax.pad(after, zero, [edges] + [(0, 0, 0)] * (after.ndim - 1))
        return lax.dynamic_update_index_in_dim(moved, entering, first, 0)

    return jax.tree.map(shift, entering, after)
