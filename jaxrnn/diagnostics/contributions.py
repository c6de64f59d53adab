"""Who made the gradient: its share of every time step, and of every row of the batch.

A weight is used at every step t, for every row b, and its gradient is the sum of what each adds:

    dW = sum_t dW_t = sum_b dW_b,    dW_t = (dF/dW)^T ds_t    (the pull-back of step t alone)

where ``ds_t`` is the whole gradient that reaches the state after step t, along every later path.
The terms are taken one at a time and measured: no more than one of them is ever in memory.
"""

import functools
import math
import numbers
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import bptt
from jaxrnn.cells.contract import Cell, Params, State
from jaxrnn.diagnostics.recording import Arrays, Options, Recording, prepare, record
from jaxrnn.masks import zero_unless
from jaxrnn.validation import describe, size, static_bool

__all__ = [
    "ExampleGradientNorms",
    "StepContributions",
    "example_gradient_norms",
    "gradient_of",
    "horizon",
    "norm",
    "one_by_one",
    "step_contributions",
    "unit",
    "used_by",
]


class StepContributions(NamedTuple):
    """Each time step's part in the gradient of every parameter; leaves ``[T]``, shaped as params.

    ``norms`` is the Frobenius norm of the step's term ``dW_t``, ``shares`` its part in the sum:
    ``<dW_t, dW> / <dW, dW>``, signed (a step may pull against the others), and 1 in total (all zero
    where the gradient is zero). ``gradients`` holds the terms themselves, ``[stop - start, ...]``
    of the window asked for, or None.
    """

    norms: Params
    shares: Params
    gradients: Params


class ExampleGradientNorms(NamedTuple):
    """The norm of each batch row's own gradient.

    ``params`` holds it for every parameter, leaves ``[...]``; ``total [...]`` is the norm over all
    parameters together, what clipping per example compares with its bound.
    """

    params: Params
    total: jax.Array


def step_contributions(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    from_end: bool = False,
    window: tuple[int, int] | None = None,
    **options: Unpack[Options],
) -> StepContributions:
    """Each time step's share of every parameter's gradient, exactly.

    Costs about one backward pass. A step's term is summed over the rows of the batch that are
    still running.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        from_end: count the steps of rows of different ``lengths`` from the end of each: entry T-1
            is every row's last valid step, T-2 the one before. Otherwise entry t is step t of all.
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
    cell, plan, arrays = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    from_end = static_bool("from_end", from_end)
    window = _validate_window(window, len(arrays.steps.xs))
    return _step_contributions(cell, plan, arrays, from_end, window)


def horizon(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    fraction: float = 0.95,
    **options: Unpack[Options],
) -> Params:
    """How many of the last steps hold a fraction of each parameter's gradient.

    The smallest n such that the terms of the last n steps add up to the gradient with a relative
    error of at most ``1 - fraction`` (in Frobenius norm), and so do those of any more steps. The
    last steps are the last ones in the order of processing, counted from each row's own last step
    where there are ``lengths``; from t = 0 on with ``reverse``.

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
    cell, plan, arrays = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    return _horizon(cell, plan, arrays, float(fraction))


def example_gradient_norms(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    **options: Unpack[Options],
) -> ExampleGradientNorms:
    """The norm of each batch row's gradient, exactly, one weight-shaped array at a time.

    A row's gradient is what it adds to the gradient of the batch: where the loss is a mean over B
    rows, so that ``dhs`` and ``dfinal`` carry a factor 1/B, multiply by B for the gradient of the
    row's own loss.

    With ``consts`` every row costs as much as the whole batch, since a cell's constants may belong
    to single rows (a dropout mask) or to all of them.

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
    cell, plan, arrays = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    return _example_gradient_norms(cell, plan, arrays)


class _Used(NamedTuple):
    """What a gradient is contracted from, leaves ``[T, ...]`` or any part of them."""

    xs: jax.Array
    before: State
    gates: Any
    deltas: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _step_contributions(
    cell: Cell,
    plan: bptt.Plan,
    arrays: Arrays,
    from_end: bool,
    window: tuple[int, int] | None,
) -> StepContributions:
    used = used_by(record(cell, plan, arrays))
    gradient = _term(cell, arrays, used)
    if from_end:
        used = _rows_end_together(used, arrays.steps.valid)
    steps = one_by_one(used)

    direction, whole = jax.tree.map(unit, gradient), jax.tree.map(norm, gradient)

    def share(dparams: jax.Array, direction: jax.Array, whole: jax.Array) -> jax.Array:
        return jnp.sum(dparams / jnp.where(whole == 0, 1, whole) * direction)

    def measure(step: _Used) -> tuple[Params, Params]:
        dparams = _term(cell, arrays, step)
        shares = jax.tree.map(share, dparams, direction, whole)
        return jax.tree.map(norm, dparams), shares

    norms, shares = lax.map(measure, steps)
    terms = None
    if window is not None:
        inside = jax.tree.map(lambda leaf: leaf[slice(*window)], steps)
        terms = lax.map(
            lambda step: bptt.in_dtype_of(arrays.params, _term(cell, arrays, step)), inside
        )
    return StepContributions(norms, shares, terms)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _horizon(cell: Cell, plan: bptt.Plan, arrays: Arrays, fraction: float) -> Params:
    used = used_by(record(cell, plan, arrays))
    gradient = _term(cell, arrays, used)
    norms = jax.tree.map(norm, gradient)
    if not plan.reverse:
        used = _rows_end_together(used, arrays.steps.valid)

    def add(held: Params, step: _Used) -> tuple[Params, Params]:
        missing = jax.tree.map(lambda h, g: norm(g - h), held, gradient)
        # a comparison with NaN is false: what is not finite is never enough
        enough = jax.tree.map(lambda m, n: m <= (1 - fraction) * n, missing, norms)
        return jax.tree.map(jnp.add, held, _term(cell, arrays, step)), enough

    nothing = jax.tree.map(jnp.zeros_like, gradient)
    # against the order of processing: the last step is the first to be added
    _, enough = lax.scan(add, nothing, one_by_one(used), reverse=not plan.reverse)

    def steps_needed(enough: jax.Array) -> jax.Array:
        enough = enough if plan.reverse else enough[::-1]
        one_more = 1 + jnp.arange(len(enough), dtype=jnp.int32)
        return jnp.max(jnp.where(enough, 0, one_more), initial=0)

    return jax.tree.map(steps_needed, enough)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _example_gradient_norms(cell: Cell, plan: bptt.Plan, arrays: Arrays) -> ExampleGradientNorms:
    used = used_by(record(cell, plan, arrays))
    T, *batch_shape = used.xs.shape[:-1]
    rows = math.prod(batch_shape)

    def rows_first(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(T, rows, *leaf.shape[1 + len(batch_shape) :]).swapaxes(0, 1)

    def alone(n: jax.Array) -> _Used:
        row = (jnp.arange(rows) == n).reshape(batch_shape)
        deltas = zero_unless(jnp.broadcast_to(row, (T, *batch_shape)), used.deltas)
        return used._replace(deltas=deltas)

    def norms_of(parameter: int) -> jax.Array:
        def of_row(row: _Used) -> jax.Array:
            return norm(jax.tree.leaves(_term(cell, arrays, row))[parameter])

        if arrays.consts is None:
            return lax.map(of_row, jax.tree.map(rows_first, used))
        # the constants may have batch axes: all rows stay, one has a gradient
        return lax.map(lambda n: of_row(alone(n)), jnp.arange(rows))

    leaves, structure = jax.tree.flatten(arrays.params)
    # a loop for each parameter: in one loop, the terms of all would be in memory at once
    each = [norms_of(parameter).reshape(batch_shape) for parameter in range(len(leaves))]
    norms = jax.tree.unflatten(structure, each)
    return ExampleGradientNorms(norms, norm(jnp.stack(each), axis=0))


def gradient_of(cell: Cell, arrays: Arrays, recording: Recording) -> Params:
    """The gradient of the params, in the accumulation dtype."""
    return _term(cell, arrays, used_by(recording))


def used_by(recording: Recording) -> _Used:
    """What `Cell.contract` reads of a recording."""
    xs, before, _, gates, _ = recording.trajectory
    return _Used(xs, before, gates, recording.deltas)


def _term(cell: Cell, arrays: Arrays, used: _Used) -> Params:
    """What these steps and rows add to the gradient of every parameter."""
    return bptt.contract(cell, arrays.params, arrays.consts, *used)[0]


def one_by_one(used: _Used) -> _Used:
    """Leaves ``[T, 1, ...]``: sequences of one step."""
    return jax.tree.map(lambda leaf: leaf[:, None], used)


def _rows_end_together(used: _Used, valid: jax.Array | None) -> _Used:
    """The rows moved so that all end at the last step; their padding, without gradient, first."""
    if valid is None:
        return used
    t = lax.broadcasted_iota(jnp.int32, valid.shape, 0)
    source = (t + jnp.sum(valid, axis=0, dtype=jnp.int32)[None]) % max(len(valid), 1)

    def move(leaf: jax.Array) -> jax.Array:
        index = source.reshape(source.shape + (1,) * (leaf.ndim - source.ndim))
        return jnp.take_along_axis(leaf, index, axis=0)

    return jax.tree.map(move, used)


def norm(tensor: jax.Array, axis: int | None = None) -> jax.Array:
    """Euclidean norm over an axis, or over all (Frobenius): of any scale.

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
