"""The bias of truncated backpropagation through time.

Truncated BPTT cuts the sequence into windows of k steps. The state crosses from one window to the
next, its gradient does not: ``ds_t`` of a window's last step lacks everything that later windows
would have sent back. What is lost is the bias of the truncated gradient.

Reference: R. J. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training
of recurrent network trajectories", 1990.
"""

import functools
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxrnn.call import steps_before
from jaxrnn.cells.cell import Cell, Params, State
from jaxrnn.checks import size
from jaxrnn.diagnostics.contributions import gradient_of
from jaxrnn.diagnostics.measures import norm, steps_left, unit
from jaxrnn.diagnostics.networks import Watched, gradient_of_params, takes_networks
from jaxrnn.diagnostics.recording import (
    Options,
    Problem,
    prepare,
    pull_back,
    record,
    steps_shape,
)
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.plan import Plan

__all__ = ["TruncationBias", "truncation_bias", "truncation_bias_of_network"]


class TruncationBias(NamedTuple):
    """The truncated gradient beside the exact one: scalars, shaped as params.

    ``relative_error`` is ``|truncated - exact| / |exact|`` in Frobenius norm: 0 where nothing is
    lost, 1 where everything is. ``cosine`` is that of the angle between the two: 1 for the same
    direction, 0 where one of them is zero and the other is not.
    """

    relative_error: Params
    cosine: Params


def truncation_bias_of_network(watched: Watched, k: int) -> TruncationBias:
    """`truncation_bias` with every layer and direction in windows of k steps."""
    run, options = watched.network.unroll, watched.options
    T, *batch_shape = jnp.shape(jax.tree.leaves(watched.xs)[0])[:-1]
    k = _window(k, T)
    valid = jnp.ones((T, *batch_shape), jnp.bool_)
    if options.get("mask") is not None:
        valid = options["mask"]
    if options.get("lengths") is not None:
        valid = steps_before(options["lengths"], T, tuple(batch_shape))

    def in_windows(*arguments: Any, detach: jax.Array | None, reverse: bool, **given: Any) -> Any:
        first = _first_steps(valid, k, reverse=reverse)
        detach = first if detach is None else detach | first
        return run(*arguments, detach=detach, reverse=reverse, **given)

    return _compared(gradient_of_params(watched, in_windows), watched.dparams)


@takes_networks(lambda _, watched, k: truncation_bias_of_network(watched, k))
def truncation_bias(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    k: int,
    **options: Unpack[Options],
) -> TruncationBias:
    """The gradient of truncated BPTT with windows of k steps, compared with the exact one.

    The windows follow each other in the order of processing and hold k valid steps of each row. The
    last one ends at the row's last step, and the first one is shorter where k does not divide the
    row's steps: so the error does not depend on how a loss at the last step falls into windows.
    The cotangents are the same for both gradients. Only steps are cut apart: what the final state's
    cotangent sends past masked steps reaches the row's last valid one.

    Of a network, every layer and direction is truncated at once: a layer gets the cotangents that
    the truncated layers above send.

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
    cell, plan, problem = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    k = _window(k, steps_shape(plan, problem)[0])
    return _truncation_bias(cell, plan, problem, jnp.asarray(k, jnp.int32))


def _window(k: Any, T: int) -> int:
    k = size("k", k)
    # a sequence of no steps has one window, of any size
    if k > max(T, 1):
        raise ValueError(f"`k` must be in 1..{T=}, the steps of `xs`; got {k}")
    return k


def _first_steps(valid: jax.Array, k: Any, *, reverse: bool) -> jax.Array:
    """The first steps of all windows of k but each row's first one: a mask ``[T, ...]``."""
    left = steps_left(valid, reverse=reverse)
    # a row's first window reads the initial state, which is no window's
    row_starts = left == jnp.max(left, axis=0, keepdims=True, initial=0)
    return (left % k == 0) & ~row_starts


# one compiled program for all windows
@functools.partial(jax.jit, static_argnums=(0, 1))
def _truncation_bias(cell: Cell, plan: Plan, problem: Problem, k: jax.Array) -> TruncationBias:
    shape, steps = steps_shape(plan, problem), problem.arrays.steps
    valid = jnp.ones(shape, jnp.bool_) if steps.valid is None else steps.valid
    stop = _first_steps(valid, k, reverse=plan.reverse)
    windows = steps._replace(stop=stop if steps.stop is None else steps.stop | stop)
    recording = record(cell, plan, problem)
    # the states are the same: only the way back is another
    cut = problem._replace(arrays=problem.arrays._replace(steps=windows))
    truncated_recording = pull_back(cell, plan, cut, recording.trajectory)
    exact, truncated = (
        gradient_of(cell, plan, problem, each) for each in (recording, truncated_recording)
    )

    return _compared(truncated, exact)


@jax.jit
def _compared(truncated: Params, exact: Params) -> TruncationBias:
    def error(truncated: jax.Array, exact: jax.Array) -> jax.Array:
        lost = norm(truncated - exact)
        return jnp.where(lost == 0, 0, lost / norm(exact))

    def cosine(truncated: jax.Array, exact: jax.Array) -> jax.Array:
        product = jnp.sum(unit(truncated) * unit(exact))
        return jnp.where(norm(truncated - exact) == 0, 1, product)

    summed = functools.partial(
        jax.tree.map, lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype))
    )
    truncated, exact = summed(truncated), summed(exact)
    return TruncationBias(
        relative_error=jax.tree.map(error, truncated, exact),
        cosine=jax.tree.map(cosine, truncated, exact),
    )
