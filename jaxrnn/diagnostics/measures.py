"""Norms of any scale, and the steps that a gradient is summed over, one at a time or in line."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells.cell import State
from jaxrnn.diagnostics.recording import Recording

__all__ = ["Used", "in_line", "last_step", "norm", "one_by_one", "steps_left", "unit", "used_by"]


class Used(NamedTuple):
    """The arrays that `jaxrnn.pieces.gradients` sums over: leaves ``[T, ...]``, or some steps."""

    xs: Any
    before: State
    after: State
    gates: Any
    deltas: Any


def used_by(recording: Recording) -> Used:
    """The arrays of a recording that the params' gradient is summed from."""
    xs, before, after, gates, _ = recording.trajectory
    return Used(xs, before, after, gates, recording.deltas)


def one_by_one(used: Used) -> Used:
    """Leaves ``[T, 1, ...]``: sequences of one step."""
    return jax.tree.map(lambda leaf: leaf[:, None], used)


def in_line(tree: Any, valid: jax.Array | None, *, reverse: bool) -> Any:
    """Leaves ``[T, ...]`` with the valid steps of each row moved together, in unchanged order.

    The last step to be processed stands last, or first with ``reverse``, in every row; steps that
    are not valid stand at the other end. No mask: the tree as it is.
    """
    if valid is None:
        return tree
    source = jnp.argsort(~valid if reverse else valid, axis=0, stable=True)

    def move(leaf: jax.Array) -> jax.Array:
        index = source.reshape(source.shape + (1,) * (leaf.ndim - source.ndim))
        return jnp.take_along_axis(leaf, index, axis=0)

    return jax.tree.map(move, tree)


def steps_left(valid: jax.Array, *, reverse: bool) -> jax.Array:
    """For each step, the number of valid steps that are processed from it on, int32."""
    return lax.cumsum(valid.astype(jnp.int32), axis=0, reverse=not reverse)


def last_step(valid: jax.Array, *, reverse: bool) -> jax.Array:
    """The mask ``[T, ...]`` of the last step of each row to be processed; none without a step."""
    return valid & (steps_left(valid, reverse=reverse) == 1)


def norm(tensor: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Euclidean norm over some axes, or over all (Frobenius): of any scale.

    A gradient that vanishes or explodes is what is looked for, and its square is out of range long
    before it is.
    """
    largest = jnp.max(jnp.abs(tensor), axis=axis, keepdims=True, initial=0)
    # all zero, or not finite: nothing to scale by
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    scaled = tensor / jnp.broadcast_to(scale, tensor.shape)
    root = jnp.sqrt(jnp.sum(scaled * scaled, axis=axis, keepdims=True))
    return jnp.squeeze(scale * root, axis)


def unit(tensor: jax.Array) -> jax.Array:
    """``tensor`` divided by its norm; zeros stay zeros."""
    size = norm(tensor)
    return tensor / jnp.where(size == 0, 1, size)
