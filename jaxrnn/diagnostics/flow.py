"""The gradient's flow back through time: where it vanishes, explodes or stops being a number.

The gradient that reaches a state is a product of step Jacobians, ``dh_T/dh_t = prod dh_s/dh_{s-1}``
over t < s <= T, and its norm shrinks or grows like one.

Reference: Y. Bengio, P. Simard and P. Frasconi, "Learning long-term dependencies with gradient
descent is difficult", 1994; R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training
recurrent neural networks", 2013, section 2.
"""

import functools
import math
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import bptt
from jaxrnn.cells.cell import Cell, Params, State
from jaxrnn.checks import describe, size
from jaxrnn.diagnostics.measures import last_step, norm, one_by_one, used_by
from jaxrnn.diagnostics.networks import each_layer, takes_networks
from jaxrnn.diagnostics.recording import (
    Options,
    Problem,
    Recording,
    prepare,
    pull_back,
    record,
    steps_shape,
)
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.masks import zero_unless
from jaxrnn.pieces import consts_rows, gradients
from jaxrnn.plan import Plan

__all__ = ["ORIGINS", "GradientFlow", "NonFinite", "gradient_flow"]

# up to this size of the output all rows of the Jacobian are pulled back, beyond it random ones
EXACT_OUTPUT_SIZE = 64
PROBES = 32

# a sigmoid outside of 0.1..0.9 has less than this share of its steepest slope; so does a tanh
# outside of -0.8..0.8, the same points of the same curve
SATURATED_SLOPE = 0.36

ORIGINS = (
    "none",
    "params",
    "consts",
    "initial_state",
    "reset_state",
    "xs",
    "forward pass",
    "dhs",
    "dfinal",
    "backward pass",
    "sum over time",
)


class NonFinite(NamedTuple):
    """The first step at which each row held a NaN or an infinity: forwards first, then back.

    ``step [...]`` is the time step, int32, -1 where everything is finite; ``origin [...]`` the
    index in `ORIGINS` of the argument that brought it, or of where it came up though all that was
    read was finite: in a pass, or in the gradient of params or consts, summed over the steps from
    the last to the first and over the rows of the batch.
    """

    step: jax.Array
    origin: jax.Array


class GradientFlow(NamedTuple):
    """The results of `gradient_flow`; ``[T, ...]`` is for each step and row, 0 where not valid.

    - ``states``: ``|dL/dh_t|`` (and ``|dL/dc_t|``), Euclidean norms over H of the whole gradient
      with respect to the state after step t, a State of ``[T, ...]``. The fields of a state are
      taken as independent: what ``h_t`` owes to ``c_t`` in step t is not in ``dL/dc_t``, as it is
      not in the gradient of an ``initial_state.c``. None for leaves that are not floating.
    - ``jacobians``: ``|dh_T/dh_t|`` (and ``|dh_T/dc_t|``), Frobenius norms, for the output ``h_T``
      of each row's last step processed: sqrt(H) at that step itself, and what the step Jacobians'
      product makes of it before. Where the output is no field of the state, the last step makes
      both side by side, and has 0. None if the output is not one array.
    - ``spectral_radius [G]``: of each matrix of `Cell.recurrent`, in its order; None without one.
    - ``saturated``: the share of units whose activation has less than 36 % of its steepest slope
      (a sigmoid outside 0.1..0.9, a tanh outside -0.8..0.8), by gate, leaves ``[T, ...]``; None
      for a cell without ``slopes``.
    - ``nonfinite``: `NonFinite`.
    """

    states: State
    jacobians: State | None
    spectral_radius: jax.Array | None
    saturated: Any
    nonfinite: NonFinite


@takes_networks(each_layer)
def gradient_flow(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    probes: int | None = None,
    probe_key: jax.Array | None = None,
    **options: Unpack[Options],
) -> GradientFlow:
    """The gradient of a loss and the sensitivity of the last state, over time.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        probes: the norms of the Jacobians are exact with None and H <= 64 (the size of one output),
            at the cost of H backward recursions. Otherwise they are estimated from that many random
            Gaussian vectors, None for 32: the square of the estimate is unbiased, with a relative
            standard deviation of at most sqrt(2 / probes), reached by Jacobians of rank 1.
        probe_key: for the probes; None for ``jax.random.key(0)``.

    Raises:
        TypeError, ValueError: as `backpropagate`; ``probes`` below 1; a ``probe_key`` that is no
            key, or many; a cell that limits its adjoint (`jaxrnn.clip_adjoint`).

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.LSTM.init(jax.random.key(0), 3, 4)
        >>> xs, dfinal = jnp.ones((7, 3)), jaxrnn.LSTMState(h=jnp.ones(4), c=jnp.zeros(4))
        >>> flow = jaxrnn.diagnostics.gradient_flow(jaxrnn.LSTM, params, xs, None, dfinal)
        >>> flow.states.c.shape, round(float(flow.jacobians.h[-1]), 3), int(flow.nonfinite.step)
        ((7,), 2.0, -1)
    """
    cell, plan, problem = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    if not cell.linear:
        raise ValueError(
            "`cell` must have a linear adjoint, through which the Jacobian of its steps is pushed; "
            f"{cell.name} limits its adjoint: watch the cell without the limit"
        )
    if probes is not None:
        probes = size("probes", probes)
    elif _output_size(plan, problem) > EXACT_OUTPUT_SIZE:
        probes = PROBES
    if probe_key is None:
        probe_key = jax.random.key(0)
    if not hasattr(probe_key, "dtype") or not (
        (jnp.issubdtype(probe_key.dtype, jax.dtypes.prng_key) and probe_key.shape == ())
        or (probe_key.dtype == jnp.uint32 and probe_key.ndim == 1)
    ):
        raise TypeError(f"`probe_key` must be one jax.random.key; got {describe(probe_key)}")
    return _gradient_flow(cell, plan, problem, probes, probe_key)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _gradient_flow(
    cell: Cell, plan: Plan, problem: Problem, probes: int | None, key: jax.Array
) -> GradientFlow:
    recording = record(cell, plan, problem)
    return GradientFlow(
        states=_norms_of_rows(plan, recording.states),
        jacobians=_jacobians(cell, plan, problem, recording, probes, key),
        spectral_radius=_spectral_radius(cell, problem.arrays.params),
        saturated=_saturated(cell, plan, problem, recording),
        nonfinite=_first_nonfinite(cell, plan, problem, recording),
    )


def _valid(plan: Plan, problem: Problem) -> jax.Array:
    valid = problem.arrays.steps.valid
    return jnp.ones(steps_shape(plan, problem), jnp.bool_) if valid is None else valid


def _units(plan: Plan, leaf: jax.Array) -> tuple[int, ...]:
    """The axes of ``[T, *batch, ...]`` behind the batch."""
    return tuple(range(1 + plan.batch_axes, leaf.ndim))


def _norms_of_rows(plan: Plan, tree: Any) -> Any:
    """Euclidean norms ``[T, *batch]`` of leaves ``[T, *batch, ...]``."""
    return jax.tree.map(
        lambda leaf: norm(leaf.astype(accumulation_dtype(leaf.dtype)), _units(plan, leaf)), tree
    )


def _output_shape(plan: Plan, problem: Problem) -> tuple[int, ...] | None:
    """The shape of one output without time and batch axes; None if it is not one floating array."""
    hs = problem.cotangents.hs
    return hs.shape[1 + plan.batch_axes :] if isinstance(hs, jax.Array) else None


def _output_size(plan: Plan, problem: Problem) -> int:
    return math.prod(_output_shape(plan, problem) or ())


def _jacobians(
    cell: Cell,
    plan: Plan,
    problem: Problem,
    recording: Recording,
    probes: int | None,
    key: jax.Array,
) -> State | None:
    """Frobenius norms of ``dh_T/ds_t`` for every t: ``[T, ...]``.

    The root of ``sum over seeds v of |(dh_T/ds_t)^T v|^2``. With the unit vectors as seeds, that is
    the norm; with a seed drawn from a standard normal distribution, its square expects the norm's.
    """
    shape = _output_shape(plan, problem)
    if shape is None:
        return None
    H, hs = math.prod(shape), problem.cotangents.hs
    if probes is None:
        seeds, count = jnp.eye(H, dtype=hs.dtype), 1
    else:
        seeds, count = jax.random.normal(key, (probes, H), hs.dtype), probes
    nothing = problem.cotangents._replace(
        final_state=jax.tree.map(jnp.zeros_like, problem.cotangents.final_state)
    )
    last = last_step(_valid(plan, problem), reverse=plan.reverse)

    def add(norms: State, seed: jax.Array) -> tuple[State, None]:
        everywhere = jnp.broadcast_to(seed.reshape(shape), hs.shape)
        seeded = nothing._replace(hs=zero_unless(last, everywhere))
        pulled = pull_back(
            cell, plan, problem._replace(cotangents=seeded), recording.trajectory
        ).states
        return jax.tree.map(jnp.hypot, norms, _norms_of_rows(plan, pulled)), None

    zeros = jax.tree.map(jnp.zeros_like, _norms_of_rows(plan, recording.states))
    norms, _ = lax.scan(add, zeros, seeds)
    return jax.tree.map(lambda leaf: leaf / math.sqrt(count), norms)


def _spectral_radius(cell: Cell, params: Params) -> jax.Array | None:
    """The largest eigenvalue's modulus of each recurrent matrix."""
    matrices = {} if cell.recurrent is None else cell.recurrent(params)
    if not matrices:
        return None

    def radius(matrix: jax.Array) -> jax.Array:
        eigenvalues = jnp.linalg.eigvals(matrix.astype(accumulation_dtype(matrix.dtype)))
        return jnp.max(jnp.abs(eigenvalues))

    return jnp.stack([radius(matrix) for matrix in matrices.values()])


def _saturated(cell: Cell, plan: Plan, problem: Problem, recording: Recording) -> Any:
    if cell.slopes is None:
        return None
    slopes = cell.slopes(recording.trajectory.after, recording.trajectory.gates)

    def share(slope: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(slope.dtype)
        flat = jnp.mean(slope < SATURATED_SLOPE, axis=_units(plan, slope), dtype=dtype)
        return zero_unless(problem.arrays.steps.valid, flat)

    return jax.tree.map(share, slopes)


def _first_nonfinite(cell: Cell, plan: Plan, problem: Problem, recording: Recording) -> NonFinite:
    shape, arrays = steps_shape(plan, problem), problem.arrays
    found = NonFinite(*(jnp.full(shape[1:], n, jnp.int32) for n in (-1, 0)))
    if shape[0] == 0:
        return found
    valid = _valid(plan, problem)
    trajectory, cotangents, bound = (
        recording.trajectory,
        problem.cotangents,
        bptt.bind(cell, arrays),
    )
    t = lax.broadcasted_iota(jnp.int32, shape, 0)
    start, end = (_first(valid, reverse=r)[None] for r in (plan.reverse, not plan.reverse))
    used = used_by(recording)
    dparams, dxs, dconsts = gradients(bound, *used)
    bad_before = _nonfinite(trajectory.before, axes=len(shape))
    is_reset = jnp.zeros_like(valid) if arrays.steps.cut is None else arrays.steps.cut

    def of_rows(tree: Any) -> jax.Array:
        return jnp.broadcast_to(_nonfinite(tree, axes=len(shape) - 1), shape)

    # in the order of ORIGINS: at one step, an argument is named before what was made of it
    forwards = [
        _nonfinite(arrays.params, axes=0),
        _nonfinite_consts(cell, arrays, axes=len(shape) - 1),
        # a state that was finite after a step is finite before the next one, so this can only be
        # the initial state, or the one that a reset returned to
        bad_before & ~is_reset,
        bad_before & is_reset,
        _nonfinite(arrays.steps.xs, axes=len(shape)),
        _nonfinite((trajectory.after, trajectory.gates), axes=len(shape)),
    ]
    backwards = [
        _nonfinite(cotangents.hs, axes=len(shape)),
        of_rows((cotangents.final_state, problem.dended)) & (t == end),
        _nonfinite((recording.states, recording.deltas, dxs), axes=len(shape))
        | (of_rows(recording.initial_state) & (t == start)),
    ]
    first_origin = 1
    for masks, reverse in ((forwards, plan.reverse), (backwards, not plan.reverse)):
        stacked = jnp.stack([jnp.broadcast_to(mask, shape) for mask in masks]) & valid[None]
        step = _first(jnp.any(stacked, axis=0), reverse=reverse)
        at_step = jnp.take_along_axis(stacked, step[None, None], axis=1, mode="clip")[:, 0]
        origin = first_origin + jnp.argmax(at_step, axis=0).astype(jnp.int32)
        new = (found.step < 0) & (step >= 0)
        found = NonFinite(
            step=jnp.where(new, step, found.step), origin=jnp.where(new, origin, found.origin)
        )
        first_origin += len(masks)

    def where_the_sum_left_the_range() -> jax.Array:
        def add(sums: Any, step: Any) -> tuple[Any, jax.Array]:
            terms = gradients(bound, *step)
            sums = jax.tree.map(jnp.add, sums, (terms[0], terms[2]))
            return sums, _nonfinite(sums, axes=0)

        nothing = jax.tree.map(jnp.zeros_like, (dparams, dconsts))
        _, bad = lax.scan(add, nothing, one_by_one(used), reverse=not plan.reverse)
        return _first(bad, reverse=not plan.reverse)

    overflowed = _nonfinite((dparams, dconsts), axes=0) & jnp.all(found.step < 0)
    step = lax.cond(overflowed, where_the_sum_left_the_range, lambda: jnp.int32(-1))
    new = jnp.any(valid & (t == step), axis=0)
    return NonFinite(
        step=jnp.where(new, step, found.step),
        origin=jnp.where(new, ORIGINS.index("sum over time"), found.origin),
    )


def _nonfinite_consts(cell: Cell, arrays: bptt.Arrays, axes: int) -> jax.Array:
    """Whether the rows read a NaN or an infinity in the consts that were given: ``[*batch]``."""
    rows, _ = consts_rows(cell, arrays.consts, arrays.drawn)
    found = [
        _nonfinite(leaf, axes=axes if of_row else 0)
        for leaf, of_row in zip(jax.tree.leaves(arrays.consts), jax.tree.leaves(rows), strict=True)
    ]
    return functools.reduce(jnp.logical_or, found, jnp.zeros((), jnp.bool_))


def _first(mask: jax.Array, *, reverse: bool) -> jax.Array:
    """The first step in that order at which ``mask [T, ...]`` holds, ``[...]``; -1 for none."""
    index = jnp.argmax(mask[::-1] if reverse else mask, axis=0).astype(jnp.int32)
    return jnp.where(jnp.any(mask, axis=0), len(mask) - 1 - index if reverse else index, -1)


def _nonfinite(tree: Any, axes: int) -> jax.Array:
    """Whether any floating leaf holds a NaN or an infinity, for each entry of the first axes."""
    found = [
        jnp.any(~jnp.isfinite(leaf), axis=tuple(range(axes, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_or, found, jnp.zeros((), jnp.bool_))
