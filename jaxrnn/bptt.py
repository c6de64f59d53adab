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

A forward pass works on less at once, so its chunks may be longer (`Plan.forward_chunk`), except
with ``"carries"``: the states that enter its chunks are those that the backward pass starts from.

A cotangent that is zero throughout stays symbolic: a loss that reads the final state alone has no
zeros ``[T, ..., H]``. Where chunks do not divide T, each reads from the whole sequences and writes
into the whole outputs, for to cut and join them would copy them.

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
from jax.custom_derivatives import SymbolicZero

from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.masks import select, zero_unless, zero_where
from jaxrnn.products import accumulation_dtype, few_rows
from jaxrnn.sharding import over_rows
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
    "parts",
    "require_like",
    "trajectory",
    "unroll",
]

RESIDUALS = ("gates", "states", "carries")

# bytes that a chunk works on, counted as if nothing were fused: of its gates, about two megabytes
_CACHED = 2**24


class Plan(NamedTuple):
    """What is decided before tracing: direction, chunk lengths, what is kept, what is returned.

    ``chunk`` is K, and ``forward_chunk`` that of a forward pass that keeps all states, or none.
    """

    reverse: bool
    chunk: int
    forward_chunk: int
    residuals: str | None
    return_states: bool


class Steps(NamedTuple):
    """What the steps read, stacked over time: ``xs [T, ..., I]`` and the masks ``[T, ...]``."""

    xs: jax.Array
    valid: jax.Array | None = None
    cut: jax.Array | None = None
    stop: jax.Array | None = None


class Outputs(NamedTuple):
    """``hs [T, ..., H]``, zero where not valid; every state ``[T, ..., H]`` if asked for.

    Also their cotangents, with None for those that are zero throughout.
    """

    final_state: State
    hs: Any
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


class Kept(NamedTuple):
    """What the forward pass leaves to the backward pass, by `Plan.residuals`; else None.

    ``entering`` is the state that enters each chunk, leaves ``[N, ...]``; ``states`` and ``gates``
    are those of every step, leaves ``[T, ...]``. Of one chunk, the leading axis of ``entering`` is
    gone, and that of the others is K.
    """

    entering: State | None
    states: State | None
    gates: Any


def chunk_length(steps: int, residuals: str, *, useful: int = 1, workspace: int = 1) -> int:
    """Steps in a chunk: a divisor of the sequence's length where one is near the target.

    Longer chunks make the products in bulk faster, up to so many ``useful`` steps; shorter ones
    keep what a chunk works on, ``workspace`` bytes per step, in a core's cache. With one carry kept
    per chunk, memory is the sum of the carries and of one chunk's states, least when both are as
    many.
    """
    if residuals == "carries":
        target = max(math.isqrt(steps), 1)
    else:
        target = min(max(useful, 16), max(_CACHED // workspace, 8), max(steps // 4, 16))
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
    run = over_rows(
        functools.partial(_unroll, cell, plan),
        steps.xs,
        initial_state.h,
        in_axes=(None, 0, None, 1),
        out_axes=Outputs._make((0, 1, 1)),
        # which axes of the consts are rows, the cell alone knows
        apart=not jax.tree.leaves(consts),
    )
    return run(params, initial_state, consts, steps)


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
    # with symbolic zeros, each leaf comes with whether it is differentiated: all are handled alike
    args = (params, initial_state, consts, steps)
    params, initial_state, consts, steps = jax.tree.map(lambda leaf: leaf.value, args)
    outputs, kept = _forward(cell, plan, params, initial_state, consts, steps)
    return outputs, (params, consts, steps, kept)


def _unroll_bwd(cell: Cell, plan: Plan, residuals: Any, cotangents: Outputs) -> tuple[Any, ...]:
    dparams, dinitial, dconsts, dxs = _backward(cell, plan, residuals, _materialised(cotangents))
    return dparams, dinitial, dconsts, Steps(xs=dxs)


_unroll.defvjp(_unroll_fwd, _unroll_bwd, symbolic_zeros=True)


def _materialised(cotangents: Outputs) -> Outputs:
    """None for sequences that no loss reads: zeros ``[T, ...]`` would cost their memory."""

    def dense(leaf: Any) -> jax.Array:
        zero = isinstance(leaf, SymbolicZero)
        return jnp.zeros(leaf.shape, leaf.dtype) if zero else leaf

    def unless_zero(tree: Any) -> Any:
        if all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tree)):
            return None
        return jax.tree.map(dense, tree)

    dfinal, dhs, dstates = cotangents
    return Outputs(jax.tree.map(dense, dfinal), unless_zero(dhs), unless_zero(dstates))


def trajectory(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> Trajectory:
    """The forward pass of `unroll` once more, with everything kept: for watching, not for speed."""
    plan = plan._replace(residuals="gates")
    _, after, gates = _advance_chunk(cell, plan, params, consts, initial_state, steps)
    kept = Kept(initial_state, after, gates)
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
    dparams, dxs, dconsts = parts(cell, "contract", 3, sums)
    # they are added to others, and to add is to broadcast: another shape would go unnoticed
    require_like(cell, "contract", "dparams", dparams, _zero_sums(params))
    require_like(cell, "contract", "dxs", dxs, xs)
    require_like(cell, "contract", "dconsts", dconsts, _zero_sums(consts))
    return dparams, dxs, dconsts


def _forward(
    cell: Cell, plan: Plan, params: Params, initial_state: State, consts: Consts, steps: Steps
) -> tuple[Outputs, Any]:
    """All chunks in order: the outputs, and per chunk what `Plan.residuals` keeps of it."""

    def advance(entering: State, chunk: Steps, _: None) -> tuple[State, Any, Any]:
        leaving, states, gates = _advance_chunk(cell, plan, params, consts, entering, chunk)
        # where nothing is masked, hs is a field of the states: not stored twice
        hs = zero_unless(chunk.valid, states.h) if masked or not store_states else None
        kept_states = states if store_states else None
        kept_gates = gates if plan.residuals == "gates" else None
        return leaving, (hs, kept_states, kept_gates), entering if by_carries else None

    masked = steps.valid is not None
    by_carries, by_states = plan.residuals == "carries", plan.residuals in ("gates", "states")
    store_states = plan.return_states or by_states
    K = plan.chunk if by_carries else plan.forward_chunk
    final_state, (hs, states, gates), entering = _scan_chunks(
        advance, initial_state, steps, None, K, reverse=plan.reverse
    )
    if by_states:
        entering = _entering_chunks(plan, initial_state, states)
    outputs = Outputs(
        final_state=final_state,
        hs=states.h if hs is None else hs,
        states=states if plan.return_states else None,
    )
    return outputs, Kept(entering, None if by_carries else states, gates)


def _entering_chunks(plan: Plan, initial_state: State, states: State) -> State:
    """The state that enters each chunk: the one after the step before it, in the order."""
    K = plan.chunk

    def entering(initial: jax.Array, after: jax.Array) -> jax.Array:
        if plan.reverse:
            return jnp.concatenate([after[K::K], initial[None]])
        return jnp.concatenate([initial[None], after[K - 1 : -1 : K]])

    # where T is 0, there are no chunks
    return jax.tree.map(
        lambda initial, after: entering(initial, after)[: after.shape[0]], initial_state, states
    )


def _advance_chunk(
    cell: Cell, plan: Plan, params: Params, consts: Consts, entering: State, chunk: Steps
) -> tuple[State, State, Any]:
    """K steps of the recursion: the state that leaves, and all states and gates ``[K, ...]``."""

    def step(carry: State, at: Any) -> tuple[State, Any]:
        inputs, valid, cut = at
        before = zero_where(cut, carry)
        returned = cell.advance(weights(), before, inputs, consts)
        state, gates = parts(cell, "advance", 2, returned)
        require_like(cell, "advance", "state", state, carry)
        state = select(valid, state, carry)
        return state, (state, gates)

    weights = _stored(params, exchanged=lambda w: few_rows(entering.h, w))
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

    def backward_chunk(carry: Any, inputs: Any, entering: State) -> tuple[Any, jax.Array, None]:
        dleaving, dparams, dconsts = carry
        chunk, dhs, dstates, states, gates = inputs
        chunk = chunk._replace(xs=zero_unless(chunk.valid, chunk.xs))
        before, after, gates = _restore_chunk(
            cell, plan, params, consts, chunk, Kept(entering, states, gates)
        )
        factors = cell.linearize(params, before, after, gates, consts)
        dentering, (deltas, _) = _pull_chunk(
            cell, plan, params, consts, dleaving, factors, chunk, dhs, dstates, record=False
        )
        more_dparams, dxs, more_dconsts = contract(
            cell, params, consts, chunk.xs, before, gates, deltas
        )
        dparams = jax.tree.map(jnp.add, dparams, more_dparams)
        dconsts = jax.tree.map(jnp.add, dconsts, more_dconsts)
        return (dentering, dparams, dconsts), zero_unless(chunk.valid, dxs), None

    (dinitial, dparams, dconsts), dxs, _ = _scan_chunks(
        backward_chunk,
        (dfinal, _zero_sums(params), _zero_sums(consts)),
        (steps, dhs, dstates, kept.states, kept.gates),
        kept.entering,
        plan.chunk,
        reverse=not plan.reverse,
    )
    return in_dtype_of(params, dparams), dinitial, in_dtype_of(consts, dconsts), dxs


def _restore_chunk(
    cell: Cell, plan: Plan, params: Params, consts: Consts, chunk: Steps, kept: Kept
) -> tuple[State, State, Any]:
    """The states before and after every step of a chunk, and its gates, from what was kept."""
    entering, after, gates = kept
    if plan.residuals == "carries":
        _, after, gates = _advance_chunk(cell, plan, params, consts, entering, chunk)

    def shift(entering: jax.Array, after: jax.Array) -> jax.Array:
        K = after.shape[0]
        if K == 0:
            return after
        # in a loop, a concatenation takes XLA:CPU half as long again to compile
        edges, first = ((-1, 1, 0), K - 1) if plan.reverse else ((1, -1, 0), 0)
        zero = jnp.zeros((), after.dtype)
        moved = lax.pad(after, zero, [edges] + [(0, 0, 0)] * (after.ndim - 1))
        return lax.dynamic_update_index_in_dim(moved, entering, first, 0)

    before = zero_where(chunk.cut, jax.tree.map(shift, entering, after))
    # with a barrier, or every reader makes a copy of its own
    before = lax.optimization_barrier(before)
    if plan.residuals == "states":
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
    dhs: jax.Array | None,
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
        dafter = dcarry if dh is None else dcarry._replace(h=dcarry.h + dh)
        dbefore, deltas = parts(cell, "pull", 2, cell.pull(weights(), dafter, factors, consts))
        require_like(cell, "pull", "dstate_before", dbefore, dafter)
        # a held state passes its gradient on as it is
        dbefore = select(valid, zero_where(stop, zero_where(cut, dbefore)), dafter)
        recorded = zero_unless(valid, dafter) if record else None
        return dbefore, (zero_unless(valid, deltas), recorded)

    # `pull` multiplies by the transposed weights
    weights = _stored(params, exchanged=lambda w: not few_rows(dleaving.h, w))
    if dhs is not None:
        dhs = zero_unless(chunk.valid, dhs)
    if cell.arrange is not None:
        factors = cell.arrange(factors)
    at = (factors, chunk.valid, chunk.cut, chunk.stop, dhs, dstates)
    return lax.scan(step, dleaving, at, reverse=not plan.reverse)


def _stored(params: Params, *, exchanged: Callable[[jax.Array], bool]) -> Callable[[], Params]:
    """The params for a loop's body, some with their last two axes exchanged in memory.

    So they are written once, before the loop, and not at every step that reads them that way.
    """
    copies = jax.tree.map(
        lambda w: lax.optimization_barrier(_swap(w)) if exchanged(w) else w, params
    )
    return lambda: jax.tree.map(
        lambda w, copy: _swap(copy) if exchanged(w) else copy, params, copies
    )


def _swap(w: jax.Array) -> jax.Array:
    return w if w.ndim < 2 else jnp.swapaxes(w, -1, -2)


def _scan_chunks(
    body: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    carry: Any,
    by_step: Any,
    by_chunk: Any,
    K: int,
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """``body(carry, by_step, by_chunk)`` over chunks of time; a rest, last in time, is shorter.

    It reads and returns, beside the carry, pytrees of ``[T, ...]``, of which a chunk is
    ``[K, ...]``, and pytrees of ``[N, ...]``, one entry per chunk.
    """
    T = jax.tree.leaves(by_step)[0].shape[0]
    N, rest = divmod(T, K)
    if not rest:

        def whole(carry: Any, inputs: Any) -> tuple[Any, Any]:
            carry, *outs = body(carry, *inputs)
            return carry, outs

        chunks = jax.tree.map(lambda a: a.reshape(N, K, *a.shape[1:]), by_step)
        carry, (stacked, outs) = lax.scan(whole, carry, (chunks, by_chunk), reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(T, *a.shape[2:]), stacked), outs

    # to cut [T, ...] in two and join two outputs would copy them: each chunk reads from the whole
    # and writes into the whole
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
    written = (
        jax.tree.map(lambda a: jnp.zeros((T, *a.shape[1:]), a.dtype), like[0]),
        jax.tree.map(lambda a: jnp.zeros((N + 1, *a.shape), a.dtype), like[1]),
    )
    if reverse:
        carry, written = part(carry, written, N, rest)
    (carry, written), _ = lax.scan(
        lambda state, index: (part(*state, index, K), None),
        (carry, written),
        jnp.arange(N),
        reverse=reverse,
    )
    if not reverse:
        carry, written = part(carry, written, N, rest)
    return carry, *written


def parts(cell: Cell, piece: str, count: int, returned: Any) -> tuple[Any, ...]:
    """The values that a piece of a cell returns, which must be that many."""
    if not isinstance(returned, tuple) or len(returned) != count:
        raise TypeError(f"{cell.name}.{piece} must return {count} values; got {describe(returned)}")
    return returned


def require_like(cell: Cell, piece: str, name: str, value: Any, like: Any) -> None:
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
        # like the leaf: inside a shard_map, zeros have a type that tells where they differ
        return jnp.zeros_like(leaf, accumulation_dtype(leaf.dtype))

    return jax.tree.map(zeros, tree)


def in_dtype_of(tree: Any, sums: Any) -> Any:
    """Sums in the dtypes of what they are the gradients of; None stays None."""
    return jax.tree.map(
        lambda d, leaf: None if d is None else d.astype(leaf.dtype),
        sums,
        tree,
        is_leaf=lambda d: d is None,
    )
