"""Sequences as arrays: padded to one length, and cut into windows."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.checks import describe, size

__all__ = ["pad_sequences", "windows"]


def pad_sequences(sequences: Sequence[Any], *, padding: Any = 0) -> tuple[np.ndarray, np.ndarray]:
    """One array of sequences of several lengths, time first, and these lengths.

    Args:
        sequences: arrays ``[T_b, ...]`` of one dtype, alike but for ``T_b``, which may be 0.
        padding: the value behind the end of each.

    Returns:
        ``(xs [T, B, ...], lengths [B])`` with T the longest; NumPy arrays, lengths int32.

    Raises:
        TypeError: no arrays of numbers of one dtype.
        ValueError: no sequences, or of different shapes; a padding that the dtype does not have.

    Example:
        >>> import jaxrnn
        >>> xs, lengths = jaxrnn.pad_sequences([[1, 2, 3], [4]])
        >>> xs.tolist(), lengths.tolist()
        ([[1, 4], [2, 0], [3, 0]], [3, 1])
    """
    arrays = [np.asarray(each) for each in sequences]
    if not arrays:
        raise ValueError("`sequences` must be at least one; got none")
    # an empty list has no dtype of its own
    filled = [each for each in arrays if each.size]
    first = filled[0] if filled else arrays[0]
    arrays = [each if each.size else each.astype(first.dtype) for each in arrays]
    if not (jnp.issubdtype(first.dtype, jnp.number) or first.dtype == bool):
        raise TypeError(f"`sequences` must be arrays of numbers; got dtype {first.dtype}")
    # a NaN is no equal of itself
    if padding == padding and np.asarray(padding).astype(first.dtype) != padding:
        raise ValueError(f"`padding` must be a value of {first.dtype}; got {padding!r}")
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


def windows(sequences: Any, length: int, *, stride: int | None = None) -> Any:
    """Cut sequences into windows of time, one for each update of truncated BPTT.

    Window n ends with the steps ``n * stride`` to ``(n + 1) * stride - 1``, which no window before
    it has, and begins ``length - stride`` steps earlier. Places before the first and after the last
    step of the sequences hold zeros, False in a leaf of booleans: let one leaf be the ``mask``.

    Args:
        sequences: a pytree of arrays ``[T, ...]``: inputs, targets, mask, resets.
        length: steps in a window, through which the gradient passes: k2 of R. J. Williams and
            J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent
            network trajectories", 1990.
        stride: steps from one window to the next, at most ``length``: their k1. None for
            ``length``: the windows share no step.

    Returns:
        The pytree with leaves ``[N, length, ...]``, where N is T / stride, rounded up.

    Raises:
        TypeError: no arrays; a length or a stride that is no int.
        ValueError: arrays of different T; a length or a stride below 1; a stride above ``length``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> xs, mask = jnp.arange(1, 6), jnp.ones(5, bool)
        >>> xs, mask = jaxrnn.windows((xs, mask), 3, stride=2)
        >>> xs.tolist(), mask[-1].tolist()
        ([[0, 1, 2], [2, 3, 4], [4, 5, 0]], [True, True, False])
    """
    length = size("length", length)
    stride = length if stride is None else size("stride", stride)
    if stride > length:
        raise ValueError(
            f"`stride` must be at most {length=}, or steps between two windows are in neither; "
            f"got {stride}"
        )
    leaves, structure = jax.tree.flatten(sequences)
    if not leaves or any(np.ndim(leaf) == 0 for leaf in leaves):
        raise TypeError(f"`sequences` must be arrays [T, ...]; got {describe(sequences)}")
    steps = {len(leaf) for leaf in leaves}
    if len(steps) > 1:
        raise ValueError(f"`sequences` must be arrays of one T; got {sorted(steps)}")
    (T,) = steps
    N, overlap = -(-T // stride), length - stride

    def cut(leaf: jax.Array) -> jax.Array:
        around = [(overlap, N * stride - T), *[(0, 0)] * (leaf.ndim - 1)]
        padded = jnp.pad(leaf, around)
        if not overlap:
            return padded.reshape(N, length, *leaf.shape[1:])
        return padded[np.add.outer(stride * np.arange(N), np.arange(length))]

    return jax.tree.unflatten(structure, [cut(jnp.asarray(leaf)) for leaf in leaves])
