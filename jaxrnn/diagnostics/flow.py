"""How the gradient flows back through time: where it vanishes, explodes, or stops being a number.

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
from jaxrnn.cells.contract import Cell, Params, State
from jaxrnn.diagnostics.contributions import norm, one_by_one, used_by
from jaxrnn.diagnostics.recording import Arrays, Options, Recording, prepare, pull_back, record
from jaxrnn.masks import zero_unless
from jaxrnn.products import accumulation_dtype
from jaxrnn.validation import describe, size

__all__ = ["ORIGINS", "GradientFlow", "NonFinite", "gradient_flow"]

# up to this hidden size all rows of the Jacobian are pulled back, beyond it random ones
EXACT_HIDDEN_SIZE = 64
PROBES = 32

# a sigmoid outside of 0.1..0.9 has less than this share of its steepest slope; so does a tanh
# outside of -0.8..0.8, the same points of the same curve
SATURATED_SLOPE = 0.36

ORIGINS = (
    "none",
    "params",
    "consts",
    "initial_state",
    "xs",
    "forward pass",
    "dhs",
    "dfinal",
    "backward pass",
    "sum over time",
)


class NonFinite(NamedTuple):
    """Where each row first held a NaN or an infinity: forwards first, then back.

    ``step [...]`` is the time step, int32, -1 where everything is finite; ``origin [...]`` the
    index in `ORIGINS` of the argument that brought it, or of where it came up though all that was
    read was finite: in a pass, or in the gradient of params or consts, summed over the steps from
    the last to the first and over the rows of the batch.
    """

    step: jax.Array
    origin: jax.Array


class GradientFlow(NamedTuple):
    """What `gradient_flow` finds; ``[T, ...]`` is for each time step and row, 0 in the padding.

    - ``states``: ``|dL/dh_t|`` (and ``|dL/dc_t|``), Euclidean norms over H of the whole gradient
      with respect to the state after step t, a State of ``[T, ...]``. The fields of a state are
      taken as independent: what ``h_t`` owes to ``c_t`` in step t is not in ``dL/dc_t``, as it is
      not in the gradient of an ``initial_state.c``.
    - ``jacobians``: ``|dh_T/dh_t|`` (and ``|dh_T/dc_t|``), Frobenius norms, for ``h_T`` of the last
      step processed: sqrt(H) at that step itself, and what the step Jacobians' product makes of
      it before.
    - ``spectral_radius [G]``: of each gate block of ``w_hh``; None for params without one.
    - ``saturated``: the share of units whose activation has less than 36 % of its steepest slope
      (a sigmoid outside 0.1..0.9, a tanh outside -0.8..0.8), by gate, leaves ``[T, ...]``; None
      for a cell without ``slopes``.
    - ``nonfinite``: `NonFinite`.
    """

    states: State
    jacobians: State
    spectral_radius: jax.Array | None
    saturated: Any
    nonfinite: NonFinite


def gradient_flow(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    probes: int | None = None,
    key: jax.Array | None = None,
    **options: Unpack[Options],
) -> GradientFlow:
    """How the gradient of a loss, and the sensitivity of the last state, change over time.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        probes: the norms of the Jacobians are exact with None and H <= 64, at the cost of H
            backward recursions. Otherwise they are estimated from that many random Gaussian
            vectors, None for 32: the square of the estimate is unbiased, with a relative standard
            deviation of at most sqrt(2 / probes), reached by Jacobians of rank 1.
        key: for the probes; None for ``jax.random.key(0)``.

    Raises:
        TypeError, ValueError: as `backpropagate`; ``probes`` below 1; a key that is none, or many.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.LSTM.init(jax.random.key(0), 3, 4)
        >>> xs, dfinal = jnp.ones((7, 3)), jaxrnn.LSTMState(h=jnp.ones(4), c=jnp.zeros(4))
        >>> flow = jaxrnn.diagnostics.gradient_flow(jaxrnn.LSTM, params, xs, None, dfinal)
        >>> flow.states.c.shape, round(float(flow.jacobians.h[-1]), 3), int(flow.nonfinite.step)
        ((7,), 2.0, -1)
    """
    cell, plan, arrays = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    if probes is not None:
        probes = size("probes", probes)
    elif arrays.initial_state.h.shape[-1] > EXACT_HIDDEN_SIZE:
        probes = PROBES
    if key is None:
        key = jax.random.key(0)
    if not hasattr(key, "dtype") or not (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())
        or (key.dtype == jnp.uint32 and key.ndim == 1)
    ):
        raise TypeError(f"`key` must be one jax.random.key; got {describe(key)}")
    return _gradient_flow(cell, plan, arrays, probes, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _gradient_flow(
    cell: Cell, plan: bptt.Plan, arrays: Arrays, probes: int | None, key: jax.Array
) -> GradientFlow:
    recording = record(cell, plan, arrays)
    h = arrays.initial_state.h
    if probes is None:
        seeds, count = jnp.eye(h.shape[-1], dtype=h.dtype), 1
    else:
        seeds, count = jax.random.normal(key, (probes, h.shape[-1]), h.dtype), probes
    return GradientFlow(
        states=jax.tree.map(_norm_of_units, recording.states),
        jacobians=jax.tree.map(
            lambda norms: norms / math.sqrt(count),
            _norms_pulled_back(cell, plan, arrays, recording, seeds),
        ),
        spectral_radius=_spectral_radius(arrays.params),
        saturated=_saturated(cell, arrays, recording),
        nonfinite=_first_nonfinite(cell, plan, arrays, recording),
    )


def _norm_of_units(leaf: jax.Array) -> jax.Array:
    return norm(leaf.astype(accumulation_dtype(leaf.dtype)), axis=-1)


def _norms_pulled_back(
    cell: Cell, plan: bptt.Plan, arrays: Arrays, recording: Recording, seeds: jax.Array
) -> State:
    """Root of ``sum over the seeds v [N, H] of |(dh_T/ds_t)^T v|^2`` for every t: ``[T, ...]``.

    With the unit vectors as seeds it is the Frobenius norm of the Jacobian; the square with a seed
    drawn from a standard normal distribution expects the square of that.
    """
    zeros = jax.tree.map(jnp.zeros_like, arrays.initial_state)
    dhs = jnp.zeros_like(arrays.cotangents.hs)

    def add(norms: State, seed: jax.Array) -> tuple[State, None]:
        dfinal = zeros._replace(h=jnp.broadcast_to(seed, zeros.h.shape))
        cotangents = bptt.Outputs(final_state=dfinal, hs=dhs, states=None)
        dstates = pull_back(
            cell, plan, arrays._replace(cotangents=cotangents), recording.trajectory
        ).states
        return jax.tree.map(lambda n, d: jnp.hypot(n, _norm_of_units(d)), norms, dstates), None

    nothing = jax.tree.map(lambda leaf: jnp.zeros_like(_norm_of_units(leaf)), recording.states)
    return lax.scan(add, nothing, seeds)[0]


def _spectral_radius(params: Params) -> jax.Array | None:
    """The largest eigenvalue's modulus of each square block of ``w_hh [H, G*H]``."""
    w_hh = getattr(params, "w_hh", None)
    if w_hh is None or w_hh.ndim != 2 or w_hh.shape[1] % w_hh.shape[0]:
        return None
    H = w_hh.shape[0]
    blocks = jnp.moveaxis(w_hh.reshape(H, -1, H), 1, 0).astype(accumulation_dtype(w_hh.dtype))
    return jnp.max(jnp.abs(jnp.linalg.eigvals(blocks)), axis=-1)


def _saturated(cell: Cell, arrays: Arrays, recording: Recording) -> Any:
    if cell.slopes is None:
        return None
    slopes = cell.slopes(recording.trajectory.after, recording.trajectory.gates)

    def share(slope: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(slope.dtype)
        flat = jnp.mean(slope < SATURATED_SLOPE, axis=-1, dtype=dtype)
        return zero_unless(arrays.steps.valid, flat)

    return jax.tree.map(share, slopes)


def _first_nonfinite(
    cell: Cell, plan: bptt.Plan, arrays: Arrays, recording: Recording
) -> NonFinite:
    shape = arrays.steps.xs.shape[:-1]
    found = NonFinite(*(jnp.full(shape[1:], n, jnp.int32) for n in (-1, 0)))
    if shape[0] == 0:
        return found
    everywhere = jnp.ones(shape, jnp.bool_)
    valid = everywhere if arrays.steps.valid is None else arrays.steps.valid
    trajectory, cotangents = recording.trajectory, arrays.cotangents
    t = lax.broadcasted_iota(jnp.int32, shape, 0)
    end = _first(valid, reverse=not plan.reverse)[None]
    used = used_by(recording)
    dparams, dxs, dconsts = bptt.contract(cell, arrays.params, arrays.consts, *used)
    # in the order of ORIGINS: at one step, an argument is named before what was made of it
    forwards = [
        _nonfinite(arrays.params, axes=0) & everywhere,
        _nonfinite(arrays.consts, axes=0) & everywhere,
        # what left a step finite enters the next one so: this is the initial state
        _nonfinite(trajectory.before, axes=len(shape)),
        _nonfinite(trajectory.xs, axes=len(shape)),
        _nonfinite((trajectory.after, trajectory.gates), axes=len(shape)),
    ]
    backwards = [
        _nonfinite(cotangents.hs, axes=len(shape)),
        _nonfinite(cotangents.final_state, axes=len(shape) - 1)[None] & (t == end),
        _nonfinite((recording.states, recording.deltas, dxs), axes=len(shape)),
    ]
    first_origin = 1
    for masks, reverse in ((forwards, plan.reverse), (backwards, not plan.reverse)):
        stacked = jnp.stack(masks) & valid[None]
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
            terms = bptt.contract(cell, arrays.params, arrays.consts, *step)
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
