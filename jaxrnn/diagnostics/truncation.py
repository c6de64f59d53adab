"""What truncated backpropagation through time gets wrong.

Truncated BPTT cuts the sequence into windows of k steps. The state crosses from one window to the
next, its gradient does not: ``ds_t`` of a window's last step lacks everything that later windows
would have sent back. What is lost is the bias of the truncated gradient.

Reference: R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training
of recurrent network trajectories", 1990.
"""

import functools
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import bptt
from jaxrnn.cells.contract import Cell, Params, State
from jaxrnn.diagnostics.contributions import gradient_of, norm, unit
from jaxrnn.diagnostics.recording import Arrays, Options, prepare, pull_back, record
from jaxrnn.validation import size

__all__ = ["TruncationBias", "truncation_bias"]


class TruncationBias(NamedTuple):
    """The truncated gradient beside the exact one: scalars, shaped as params.

    ``relative_error`` is ``|truncated - exact| / |exact|`` in Frobenius norm: 0 where nothing is
    lost, 1 where everything is. ``cosine`` is that of the angle between the two: 1 for the same
    direction, 0 where one of them is zero and the other is not.
    """

    relative_error: Params
    cosine: Params


def truncation_bias(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    k: int,
    **options: Unpack[Options],
) -> TruncationBias:
    """The gradient of truncated BPTT with windows of k steps, compared with the exact one.

    The windows follow each other in the order of processing, from each row's first step on; the
    last one is shorter where k does not divide the row's length. The cotangents are the same for
    both. Only steps are cut apart, not padding: what the final state's cotangent sends to a row
    that ended before T reaches its last step.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        k: the steps of a window, 1..T. With T nothing is truncated.

    Raises:
        TypeError, ValueError: as `backpropagate`; k out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.LSTM.init(jax.random.key(0), 3, 5)
        >>> xs, dfinal = jnp.ones((8, 3)), jaxrnn.LSTMState(h=jnp.ones(5), c=jnp.zeros(5))
        >>> bias = jaxrnn.diagnostics.truncation_bias(jaxrnn.LSTM, params, xs, None, dfinal, k=8)
        >>> bool(bias.relative_error.w_hh < 1e-6)
        True
    """
    cell, plan, arrays = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    T, k = len(arrays.steps.xs), size("k", k)
    # a sequence of no steps has one window, of any size
    if k > max(T, 1):
        raise ValueError(f"`k` must be in 1..{T=}, the steps of `xs`; got {k}")
    return _truncation_bias(cell, plan, arrays, jnp.asarray(k, jnp.int32))


# one compiled program for all windows
@functools.partial(jax.jit, static_argnums=(0, 1))
def _truncation_bias(cell: Cell, plan: bptt.Plan, arrays: Arrays, k: jax.Array) -> TruncationBias:
    T, *batch_shape, _ = arrays.steps.xs.shape
    processed = lax.broadcasted_iota(jnp.int32, (T, *batch_shape), 0)
    if plan.reverse:
        # a row begins at its own last step, wherever its padding ends
        valid = arrays.steps.valid
        last = T - 1 if valid is None else jnp.sum(valid, axis=0, dtype=jnp.int32)[None] - 1
        processed = last - processed
    windows = arrays.steps._replace(stop=processed % k == 0)
    recording = record(cell, plan, arrays)
    # the states are the same: only the way back is another
    cut = pull_back(cell, plan, arrays._replace(steps=windows), recording.trajectory)
    exact, truncated = (gradient_of(cell, arrays, each) for each in (recording, cut))

    def error(truncated: jax.Array, exact: jax.Array) -> jax.Array:
        lost = norm(truncated - exact)
        return jnp.where(lost == 0, 0, lost / norm(exact))

    def cosine(truncated: jax.Array, exact: jax.Array) -> jax.Array:
        product = jnp.sum(unit(truncated) * unit(exact))
        return jnp.where(norm(truncated - exact) == 0, 1, product)

    return TruncationBias(
        relative_error=jax.tree.map(error, truncated, exact),
        cosine=jax.tree.map(cosine, truncated, exact),
    )
