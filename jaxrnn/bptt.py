"""The engine: one loop over time for every cell, and backpropagation through time by hand.

Forward. A cell maps the state before a step and the step's input to the state after it,
``s_t = F(s_{t-1}, x_t; W)``, and the outputs are ``h_t``, a field of ``s_t``.

Backward. Let ``ds_t`` be the gradient of the loss with respect to ``s_t`` along every path: what
its readers outside the recursion send (the cotangents of ``hs``, of the states, of the final
state), plus what comes back through step t+1. The chain rule through one step is

    ds_{t-1} = (dF/ds_{t-1})^T ds_t + cotangent of s_{t-1}       the recursion: sequential
    dx_t     = (dF/dx_t)^T ds_t                                  bulk
    dW       = sum_t (dF/dW)^T ds_t                              bulk

(P. J. Werbos, "Backpropagation through time: what it does and how to do it", 1990). All three
pass through the adjoints of the step's pre-activations, the deltas. So the loop over time needs to
do no more than take ``ds_t`` to the deltas and to ``ds_{t-1}``, which is one product with
``W_hh^T`` (`Cell.pull`); the local derivatives that it multiplies by (`Cell.linearize`) and the
sums over time (`Cell.contract`) are taken outside of it, for many steps at once. The loop carries
the state's adjoint and nothing else; in particular no gradient of a weight.

Memory. Time is cut into chunks of K steps. What a chunk needs only while it is worked on lives in
buffers of K steps that the loop over chunks reuses; what is kept from the forward to the backward
pass is the caller's choice (`Plan.residuals`):

- ``"gates"``   the states and the gates of every step; nothing is computed twice;
- ``"states"``  the states of every step; the gates are computed again in bulk, by one product;
- ``"carries"`` the state that enters each chunk; a chunk's states are computed again in sequence.

Masks. ``valid [T, ...]`` false: the step does not happen; the state is held, the input is replaced
by zeros before anything reads it, and the step's deltas are zero. ``cut [T, ...]`` true: the state
is replaced by zeros before the step reads it, so no gradient leaves the step towards the past.
``stop [T, ...]`` true: the step reads the state, and still no gradient leaves it towards the past.

Direction. ``reverse`` runs the recursion from the last step to the first; "before" and "after" are
meant in the order of processing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.masks import select, zero_unless, zero_where
from jaxrnn.products import accumulation_dtype
from jaxrnn.validation import describe

__all__ = [
    "RESIDUALS",
    "Outputs",
    "Plan",
    "Steps",
    "Trajectory",
    "adjoints",
    "contract",
    "in_dtype_of",
    "trajectory",
    "unroll",
]

RESIDUALS = ("gates", "states", "carries")


class Plan(NamedTuple):
    """What is decided before tracing: direction, chunk length K, what is kept, what is returned."""

    reverse: bool
    chunk: int
    residuals: str | None
    return_states: bool


class Steps(NamedTuple):
    """What the steps read, stacked over time: ``xs [T, ..., I]`` and the masks ``[T, ...]``."""

    xs: jax.Array
    valid: jax.Array | None = None
    cut: jax.Array | None = None
    stop: jax.Array | None = None


class Outputs(NamedTuple):
    """``hs [T, ..., H]``, zero where not valid; every state ``[T, ..., H]`` if asked for."""

    final_state: State
    hs: jax.Array
    states: State | None


class Trajectory(NamedTuple):
    """What the adjoint needs to know of every step, leaves ``[T, ...]``.

    ``xs`` are zero where not valid, ``before`` is the state that a step reads (cut where it is),
    ``after`` the one that it makes, ``gates`` and ``factors`` are the cell's own.
    """

    xs: jax.Array
    before: State
    after: State
    gates: Any
    factors: Any


def chunk_length(steps: int, residuals: str) -> int:
    """Steps in a chunk: a divisor of the sequence's length where one is near the target.

    Chunks that stay in cache are the fastest; with one carry kept per chunk, memory is the sum of
    the carries and of one chunk's states, least when both are as many.
    """
    target = max(math.isqrt(steps), 1) if residuals == "carries" else 16
    if steps <= 2 * target:
        return max(steps, 1)
    divisors = [k for k in range(target // 2 + 1, 2 * target) if steps % k == 0]
    return min(divisors, key=lambda k: abs(k - target), default=target)


# one compiled program per (cell, plan, shapes), also when the caller does not jit
@functools.partial(jax.jit, static_argnums=(0, 1))
def unroll(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> Outputs:
    """Scan a cell over time; differentiated by the handwritten rule below."""
    return _unroll(cell, plan, params, initial_state, consts, steps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> Outputs:
    keep_nothing = plan._replace(residuals=None)
    outputs, _ = _forward(cell, keep_nothing, params, initial_state, consts, steps)
    return outputs


def _unroll_fwd(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> tuple[Outputs, Any]:
    outputs, kept = _forward(cell, plan, params, initial_state, consts, steps)
    return outputs, (params, consts, steps, kept)


def _unroll_bwd(cell: Cell, plan: Plan, residuals: Any, cotangents: Outputs) -> tuple[Any, ...]:
    dparams, dinitial, dconsts, dxs = _backward(cell, plan, residuals, cotangents)
    return dparams, dinitial, dconsts, Steps(xs=dxs)


_unroll.defvjp(_unroll_fwd, _unroll_bwd)


def trajectory(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> Trajectory:
    """The forward pass of `unroll` once more, with everything kept: for watching, not for speed."""
    plan = plan._replace(residuals="gates")
    _, after, gates = _advance_chunk(cell, plan, params, consts, initial_state, steps)
    kept = (initial_state, after, gates)
    before, after, gates = _restore_chunk(cell, plan, params, consts, steps, kept)
    factors = cell.linearize(params, before, after, gates, consts)
    return Trajectory(zero_unless(steps.valid, steps.xs), before, after, gates, factors)


def adjoints(
    cell: Cell,
    plan: Plan,
    params: Params,
    consts: Consts,
    steps: Steps,
    factors: Any,
    cotangents: Outputs,
) -> tuple[State, Any, State]:
    """The adjoint recursion of `unroll` along a trajectory, with every step shown.

    Returns:
        ``(dinitial_state, deltas, dstates)``: the adjoints of every step's pre-activations, and
        ``ds_t``, the adjoint of the state after every step; both ``[T, ...]``, zero where not
        valid.
    """
    dfinal, dhs, dstates = cotangents
    dinitial, (deltas, dafter) = _pull_chunk(
        cell, plan, params, consts, dfinal, factors, steps, dhs, dstates, record=True
    )
    return dinitial, deltas, dafter


def contract(
    cell: Cell,
    params: Params,
    consts: Consts,
    xs: jax.Array,
    before: State,
    gates: Any,
    deltas: Any,
) -> tuple[Params, jax.Array, Consts]:
    """`Cell.contract` of any number of steps, checked: ``(dparams, dxs, dconsts)``.

    The sums are in the accumulation dtype: `in_dtype_of` rounds them once all are added.
    """
    sums = cell.contract(params, xs, before, gates, deltas, consts)
    dparams, dxs, dconsts = _parts(cell, "contract", 3, sums)
    # they are added to others, and to add is to broadcast: another shape would go unnoticed
    _require_like(cell, "contract", "dparams", dparams, _zero_sums(params))
    _require_like(cell, "contract", "dxs", dxs, xs)
    _require_like(cell, "contract", "dconsts", dconsts, _zero_sums(consts))
    return dparams, dxs, dconsts


def _forward(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> tuple[Outputs, Any]:
    """All chunks in order: the outputs, and per chunk what `Plan.residuals` keeps of it."""

    def forward_chunk(entering: State, inputs: tuple[Steps]) -> tuple[State, tuple[Any, ...]]:
        (chunk,) = inputs
        leaving, states, gates = _advance_chunk(cell, plan, params, consts, entering, chunk)
        hs = zero_unless(chunk.valid, states.h)
        kept = {
            None: None,
            "gates": (entering, states, gates),
            "states": (entering, states),
            "carries": (entering,),
        }[plan.residuals]
        return leaving, (hs, states if plan.return_states else None, kept)

    final_state, (hs, states, kept) = _scan_chunks(
        forward_chunk, initial_state, (_split(steps, plan.chunk),), reverse=plan.reverse
    )
    return Outputs(final_state, _join(hs), _join(states)), kept


def _advance_chunk(
    cell: Cell, plan: Plan, params: Params, consts: Consts, entering: State, chunk: Steps
) -> tuple[State, State, Any]:
    """K steps of the recursion: the state that leaves, and all states and gates ``[K, ...]``."""

    def step(carry: State, at: Any) -> tuple[State, Any]:
        inputs, valid, cut = at
        before = zero_where(cut, carry)
        state, gates = _parts(cell, "advance", 2, cell.advance(params, before, inputs, consts))
        _require_like(cell, "advance", "state", state, carry)
        state = select(valid, state, carry)
        return state, (state, gates)

    inputs = cell.project(params, zero_unless(chunk.valid, chunk.xs), consts)
    leaving, (states, gates) = lax.scan(
        step, entering, (inputs, chunk.valid, chunk.cut), reverse=plan.reverse
    )
    return leaving, states, gates


def _backward(
    cell: Cell, plan: Plan, residuals: Any, cotangents: Outputs
) -> tuple[Params, State, Consts, jax.Array]:
    """All chunks against the order: the adjoint recursion in each, then its contraction.

    Textbook: the sums over time rnn-11, lstm-25, step-31.
    """
    params, consts, steps, kept = residuals
    dfinal, dhs, dstates = cotangents

    def backward_chunk(carry: Any, inputs: tuple[Any, ...]) -> tuple[Any, tuple[jax.Array]]:
        dleaving, dparams, dconsts = carry
        chunk, dhs, dstates, kept = inputs
        chunk = chunk._replace(xs=zero_unless(chunk.valid, chunk.xs))
        before, after, gates = _restore_chunk(cell, plan, params, consts, chunk, kept)
        factors = cell.linearize(params, before, after, gates, consts)
        dentering, (deltas, _) = _pull_chunk(
            cell, plan, params, consts, dleaving, factors, chunk, dhs, dstates, record=False
        )
        more_dparams, dxs, more_dconsts = contract(
            cell, params, consts, chunk.xs, before, gates, deltas
        )
        dparams = jax.tree.map(jnp.add, dparams, more_dparams)
        dconsts = jax.tree.map(jnp.add, dconsts, more_dconsts)
        return (dentering, dparams, dconsts), (zero_unless(chunk.valid, dxs),)

    (dinitial, dparams, dconsts), (dxs,) = _scan_chunks(
        backward_chunk,
        (dfinal, _zero_sums(params), _zero_sums(consts)),
        (*(_split(tree, plan.chunk) for tree in (steps, dhs, dstates)), kept),
        reverse=not plan.reverse,
    )
    return in_dtype_of(params, dparams), dinitial, in_dtype_of(consts, dconsts), _join(dxs)


def _restore_chunk(
    cell: Cell, plan: Plan, params: Params, consts: Consts, chunk: Steps, kept: Any
) -> tuple[State, State, Any]:
    """The states before and after every step of a chunk, and its gates, from what was kept."""
    entering = kept[0]
    if plan.residuals == "carries":
        _, after, gates = _advance_chunk(cell, plan, params, consts, entering, chunk)
    else:
        after = kept[1]

    def shift(entering: jax.Array, after: jax.Array) -> jax.Array:
        if after.shape[0] == 0:
            return after
        if plan.reverse:
            return jnp.concatenate([after[1:], entering[None]])
        return jnp.concatenate([entering[None], after[:-1]])

    before = zero_where(chunk.cut, jax.tree.map(shift, entering, after))
    if plan.residuals == "gates":
        gates = kept[2]
    elif plan.residuals == "states":
        _, gates = cell.advance(params, before, cell.project(params, chunk.xs, consts), consts)
    return before, after, gates


def _pull_chunk(
    cell: Cell,
    plan: Plan,
    params: Params,
    consts: Consts,
    dleaving: State,
    factors: Any,
    chunk: Steps,
    dhs: jax.Array,
    dstates: State | None,
    *,
    record: bool,
) -> tuple[State, tuple[Any, State | None]]:
    """K steps of the adjoint recursion, against the order of processing.

    Invariant: the carry is the gradient of the loss with respect to the state between two steps,
    along every path that runs through the later one; the cotangents of that state's own readers
    (``dhs``, ``dstates``) are added when the step that made it is reached.
    Textbook: rnn-10, lstm-24, step-29, step-30.
    """

    def step(dcarry: State, at: Any) -> tuple[State, Any]:
        factors, valid, cut, stop, dh, dstate = at
        if dstate is not None:
            dcarry = jax.tree.map(jnp.add, dcarry, dstate)
        dafter = dcarry._replace(h=dcarry.h + dh)
        dbefore, deltas = _parts(cell, "pull", 2, cell.pull(params, dafter, factors, consts))
        _require_like(cell, "pull", "dstate_before", dbefore, dafter)
        # a held state passes its gradient on as it is
        dbefore = select(valid, zero_where(stop, zero_where(cut, dbefore)), dafter)
        recorded = zero_unless(valid, dafter) if record else None
        return dbefore, (zero_unless(valid, deltas), recorded)

    dhs = zero_unless(chunk.valid, dhs)
    at = (factors, chunk.valid, chunk.cut, chunk.stop, dhs, dstates)
    return lax.scan(step, dleaving, at, reverse=not plan.reverse)


def _split(tree: Any, chunk: int) -> tuple[Any, Any]:
    """Leaves ``[T, ...]`` as whole chunks ``[T // K, K, ...]``, and the rest, or None."""

    def whole(leaf: jax.Array) -> jax.Array:
        n = leaf.shape[0] // chunk
        return leaf[: n * chunk].reshape(n, chunk, *leaf.shape[1:])

    def rest(leaf: jax.Array) -> jax.Array | None:
        r = leaf.shape[0] % chunk
        return leaf[leaf.shape[0] - r :] if r else None

    return jax.tree.map(whole, tree), jax.tree.map(rest, tree)


def _join(parts: tuple[Any, Any]) -> Any:
    """The inverse of `_split`."""
    whole, rest = parts
    whole = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), whole)
    if not jax.tree.leaves(rest):
        return whole
    return jax.tree.map(lambda *a: jnp.concatenate(a), whole, rest)


def _scan_chunks(
    body: Callable[[Any, tuple[Any, ...]], tuple[Any, tuple[Any, ...]]],
    carry: Any,
    inputs: tuple[tuple[Any, Any], ...],
    *,
    reverse: bool,
) -> tuple[Any, tuple[tuple[Any, Any], ...]]:
    """`lax.scan` over whole chunks, and over the rest, last in time, as a shorter one.

    Each input and each output is a pair as `_split` makes it.
    """
    whole, rest = zip(*inputs, strict=True)
    ragged = bool(jax.tree.leaves(rest))
    if ragged and reverse:
        carry, last = body(carry, rest)
    carry, outs = lax.scan(body, carry, whole, reverse=reverse)
    if ragged and not reverse:
        carry, last = body(carry, rest)
    return carry, tuple(zip(outs, last if ragged else (None,) * len(outs), strict=True))


def _parts(cell: Cell, piece: str, count: int, returned: Any) -> tuple[Any, ...]:
    if not isinstance(returned, tuple) or len(returned) != count:
        raise TypeError(f"{cell.name}.{piece} must return {count} values; got {describe(returned)}")
    return returned


def _require_like(cell: Cell, piece: str, name: str, value: Any, like: Any) -> None:
    """Refuse what a piece of a cell returns with other containers, shapes or dtypes."""
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(value, like)
    except (AssertionError, AttributeError, ValueError) as error:
        raise TypeError(
            f"{cell.name}.{piece} must return `{name}` as {describe(like)}; got {describe(value)}"
        ) from error


def _zero_sums(tree: Any) -> Any:
    """What gradients of these leaves are summed into; None for leaves that have none."""

    def zeros(leaf: jax.Array) -> jax.Array | None:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return None
        return jnp.zeros(leaf.shape, accumulation_dtype(leaf.dtype))

    return jax.tree.map(zeros, tree)


def in_dtype_of(tree: Any, sums: Any) -> Any:
    """Sums in the dtypes of what they are the gradients of; None stays None."""
    return jax.tree.map(
        lambda d, leaf: None if d is None else d.astype(leaf.dtype),
        sums,
        tree,
        is_leaf=lambda d: d is None,
    )
