"""Who made the gradient: its share of every time step, and of every row of the batch.

A weight is used at every step t, for every row b, and its gradient is the sum of what each adds:

    dW = sum_t dW_t = sum_b dW_b,    dW_t = (dF/dW)^T ds_t    (the pull-back of step t alone)

where ``ds_t`` is the whole gradient that reaches the state after step t, along every later path.
The terms are taken one at a time and measured: no more than one of them is ever in memory.

A cell may make its initial state of the params. What reaches them on this path is part of a row's
gradient and of no step's. The same holds for the learned initial state of a layer in a network.
"""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import bptt
from jaxrnn.cells.cell import Cell, Params, State
from jaxrnn.checks import describe, size, static_bool
from jaxrnn.diagnostics.measures import Used, in_line, norm, one_by_one, unit, used_by
from jaxrnn.diagnostics.networks import Watched, each_layer, takes_networks
from jaxrnn.diagnostics.recording import (
    Options,
    Problem,
    Recording,
    prepare,
    record,
    steps_shape,
    with_the_start,
)
from jaxrnn.dtypes import differentiable, in_dtype_of
from jaxrnn.pieces import Bound, consts_rows, gradients
from jaxrnn.plan import Plan

__all__ = [
    "ExampleGradientNorms",
    "StepContributions",
    "example_gradient_norms",
    "gradient_of",
    "horizon",
    "step_contributions",
]


class StepContributions(NamedTuple):
    """Each time step's part in the gradient of every parameter; leaves ``[T]``, shaped as params.

    ``norms`` is the Frobenius norm of the step's term ``dW_t``, ``shares`` its part in the sum:
    ``<dW_t, dW> / <dW, dW>``, signed (a step may pull against the others), and 1 in total (all zero
    where the sum is zero). ``gradients`` holds the terms themselves, ``[stop - start, ...]`` of the
    window asked for, or None.
    """

    norms: Params
    shares: Params
    gradients: Params


class ExampleGradientNorms(NamedTuple):
    """The norm of each batch row's own gradient.

    ``params`` holds it for every parameter, leaves ``[...]``; ``total [...]`` is the norm over all
    parameters together, what clipping per example compares with its bound. Of a network, these are
    the parameters of all layers, learned initial states included.
    """

    params: Params
    total: jax.Array


@takes_networks(each_layer)
def step_contributions(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    from_end: bool = False,
    window: tuple[int, int] | None = None,
    **options: Unpack[Options],
) -> StepContributions:
    """Each time step's share of every parameter's gradient, exactly.

    Costs about one backward pass. A step's term is summed over the rows of the batch where the step
    is valid.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        from_end: count the valid steps of each row from the last one to be processed: entry T-1 is
            every row's last valid step, T-2 the valid one before it, whatever is masked. With
            ``reverse``, entry 0 is every row's first valid step, entry 1 the next. Otherwise
            entry t is step t of all rows.
        window: ``(start, stop)`` with 0 <= start < stop <= T: also return the terms of these steps
            in full. They take ``stop - start`` times the memory of the parameters.

    Raises:
        TypeError, ValueError: as `backpropagate`; a window that is no such pair.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.GRU.init(jax.random.key(0), 3, 5)
        >>> xs, dhs = jnp.ones((7, 3)), jnp.zeros((7, 5)).at[-1].set(1.0)
        >>> parts = jaxrnn.diagnostics.step_contributions(jaxrnn.GRU, params, xs, dhs)
        >>> parts.norms.w_hh.shape, round(float(parts.shares.w_hh.sum()), 3)
        ((7,), 1.0)
    """
    cell, plan, problem = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    from_end = static_bool("from_end", from_end)
    window = _validate_window(window, steps_shape(plan, problem)[0])
    return _step_contributions(cell, plan, problem, from_end, window)


@takes_networks(each_layer)
def horizon(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    fraction: float = 0.95,
    **options: Unpack[Options],
) -> Params:
    """The number of last steps that hold a fraction of each parameter's gradient.

    The smallest n such that the terms of the last n steps add up to those of all steps with a
    relative error of at most ``1 - fraction`` (in Frobenius norm), and so do those of any more
    steps. The last steps are each row's own last valid ones in the order of processing: with
    ``reverse``, the first ones in time.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        fraction: above 0, below 1.

    Returns:
        An int32 in 0..T for every parameter, shaped as params. 0: there is no gradient. A gradient
        that is not finite has all T.

    Raises:
        TypeError, ValueError: as `backpropagate`; a fraction out of range.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real):
        raise TypeError(f"`fraction` must be a number; got {describe(fraction)}")
    # all of it is never reached: the last bit is lost to rounding
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be above 0 and below 1; got {fraction}")
    cell, plan, problem = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    return _horizon(cell, plan, problem, float(fraction))


def _example_gradient_norms_of_network(
    diagnostic: Callable[..., ExampleGradientNorms], watched: Watched
) -> ExampleGradientNorms:
    norms = each_layer(diagnostic, watched).params
    return ExampleGradientNorms(norms, norm(jnp.stack(jax.tree.leaves(norms)), axis=0))


@takes_networks(_example_gradient_norms_of_network)
def example_gradient_norms(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    **options: Unpack[Options],
) -> ExampleGradientNorms:
    """The norm of each batch row's gradient, exactly, one weight-shaped array at a time.

    A row's gradient is what it adds to the gradient of the batch: where the loss is a mean over B
    rows, so that ``dhs`` and ``dfinal`` carry a factor 1/B, multiply by B for the gradient of the
    row's own loss.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.

    Raises:
        TypeError, ValueError: as `backpropagate`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.ELMAN.init(jax.random.key(0), 3, 5)
        >>> xs, dfinal = jnp.ones((7, 2, 3)), jaxrnn.ElmanState(h=jnp.ones((2, 5)))
        >>> norms = jaxrnn.diagnostics.example_gradient_norms(
        ...     jaxrnn.ELMAN, params, xs, None, dfinal, lengths=jnp.array([7, 0])
        ... )
        >>> norms.params.w_ih.shape, float(norms.total[1])
        ((2,), 0.0)
    """
    cell, plan, problem = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    return _example_gradient_norms(cell, plan, problem)


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _step_contributions(
    cell: Cell,
    plan: Plan,
    problem: Problem,
    from_end: bool,
    window: tuple[int, int] | None,
) -> StepContributions:
    used = used_by(record(cell, plan, problem))
    bound = bptt.bind(cell, problem.arrays)
    gradient = _term(bound, used)
    if from_end:
        used = in_line(used, problem.arrays.steps.valid, reverse=plan.reverse)
    steps = one_by_one(used)

    direction, whole = jax.tree.map(unit, gradient), jax.tree.map(norm, gradient)

    def share(dparams: jax.Array, direction: jax.Array, whole: jax.Array) -> jax.Array:
        return jnp.sum(dparams / jnp.where(whole == 0, 1, whole) * direction)

    def measure(step: Used) -> tuple[Params, Params]:
        dparams = _term(bound, step)
        shares = jax.tree.map(share, dparams, direction, whole)
        return jax.tree.map(norm, dparams), shares

    norms, shares = lax.map(measure, steps)
    terms = None
    if window is not None:
        inside = jax.tree.map(lambda leaf: leaf[slice(*window)], steps)
        terms = lax.map(lambda step: in_dtype_of(problem.arrays.params, _term(bound, step)), inside)
    return StepContributions(norms, shares, terms)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _horizon(cell: Cell, plan: Plan, problem: Problem, fraction: float) -> Params:
    used = used_by(record(cell, plan, problem))
    bound = bptt.bind(cell, problem.arrays)
    gradient = _term(bound, used)
    norms = jax.tree.map(norm, gradient)
    used = in_line(used, problem.arrays.steps.valid, reverse=plan.reverse)

    def add(held: Params, step: Used) -> tuple[Params, Params]:
        missing = jax.tree.map(lambda h, g: norm(g - h), held, gradient)
        # a comparison with NaN is false: what is not finite is never enough
        enough = jax.tree.map(lambda m, n: m <= (1 - fraction) * n, missing, norms)
        return jax.tree.map(jnp.add, held, _term(bound, step)), enough

    nothing = jax.tree.map(jnp.zeros_like, gradient)
    # against the order of processing: the last step is the first to be added
    _, enough = lax.scan(add, nothing, one_by_one(used), reverse=not plan.reverse)

    def steps_needed(enough: jax.Array) -> jax.Array:
        enough = enough if plan.reverse else enough[::-1]
        one_more = 1 + jnp.arange(len(enough), dtype=jnp.int32)
        return jnp.max(jnp.where(enough, 0, one_more), initial=0)

    return jax.tree.map(steps_needed, enough)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _example_gradient_norms(cell: Cell, plan: Plan, problem: Problem) -> ExampleGradientNorms:
    recording, arrays = record(cell, plan, problem), problem.arrays
    _, *batch_shape = steps_shape(plan, problem)
    rows, one_row = math.prod(batch_shape), (1,) * len(batch_shape)

    def rows_first(leaf: jax.Array, axis: int) -> jax.Array:
        """The batch axes from that one on as the first axis, each of size 1 in their place."""
        before, behind = leaf.shape[:axis], leaf.shape[axis + len(batch_shape) :]
        return jnp.moveaxis(leaf.reshape(*before, rows, *one_row, *behind), axis, 0)

    read, structure = jax.tree.flatten((arrays.consts, arrays.drawn))
    of_rows = jax.tree.leaves(consts_rows(cell, arrays.consts, arrays.drawn))
    by_row = (
        jax.tree.map(functools.partial(rows_first, axis=1), used_by(recording)),
        [rows_first(leaf, 0) for leaf, of_row in zip(read, of_rows, strict=True) if of_row],
        jax.tree.map(
            functools.partial(rows_first, axis=0),
            (recording.initial_state, recording.reset_state),
        ),
    )

    def gradient_of_row(row: tuple[Used, list[jax.Array], tuple[State, State | None]]) -> Params:
        used, own, start = row
        each = iter(own)
        consts, drawn = jax.tree.unflatten(
            structure,
            [next(each) if of_row else leaf for leaf, of_row in zip(read, of_rows, strict=True)],
        )
        bound = bptt.bind(cell, arrays._replace(consts=consts, drawn=drawn))
        return with_the_start(cell, problem, _term(bound, used), *start, one_row)

    def norms_of(parameter: int) -> jax.Array:
        return lax.map(
            lambda row: norm(jax.tree.leaves(gradient_of_row(row))[parameter]), by_row
        ).reshape(batch_shape)

    leaves, structure_of_params = jax.tree.flatten(differentiable(arrays.params))
    # a loop for each parameter: in one loop, the terms of all would be in memory at once
    each = [norms_of(parameter) for parameter in range(len(leaves))]
    norms = jax.tree.unflatten(structure_of_params, each)
    return ExampleGradientNorms(norms, norm(jnp.stack(each), axis=0))


def gradient_of(cell: Cell, plan: Plan, problem: Problem, recording: Recording) -> Params:
    """The gradient of the params, in the accumulation dtype."""
    dparams = _term(bptt.bind(cell, problem.arrays), used_by(recording))
    start = recording.initial_state, recording.reset_state
    return with_the_start(cell, problem, dparams, *start, steps_shape(plan, problem)[1:])


def _term(bound: Bound, used: Used) -> Params:
    """The share of these steps and rows in the gradient of every parameter."""
    return gradients(bound, *used)[0]


def _validate_window(window: Any, T: int) -> tuple[int, int] | None:
    if window is None:
        return None
    if not (isinstance(window, tuple) and len(window) == 2):
        raise TypeError(f"`window` must be a pair (start, stop) or None; got {describe(window)}")
    start, stop = (size(f"window[{i}]", edge, least=0) for i, edge in enumerate(window))
    if not start < stop <= T:
        raise ValueError(
            f"`window` must be (start, stop) with 0 <= start < stop <= {T=}; got {window}"
        )
    return start, stop
