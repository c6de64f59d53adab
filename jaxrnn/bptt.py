"""The engine: one loop over time for every cell, and backpropagation through time by hand.

Forward. A cell maps the state before a step and the step's input to the state after it,
``s_t = F(s_{t-1}, x_t; W)``, and emits an output ``h_t``, a field of ``s_t`` or a function of it.

Backward. Let ``ds_t`` be the gradient of the loss with respect to ``s_t`` along every path: the
cotangents that its readers outside of the recursion send (of ``hs``, of the states, of the final
state), and the share that comes back through step t+1. The chain rule through one step is

    ds_{t-1} = (dF/ds_{t-1})^T ds_t + cotangent of s_{t-1}       the recursion: sequential
    dx_t     = (dF/dx_t)^T ds_t                                  bulk
    dW       = sum_t (dF/dW)^T ds_t                              bulk

(P. J. Werbos, "Backpropagation through time: what it does and how to do it", 1990). All three
pass through the adjoints of the step's pre-activations, the deltas. So the loop over time only
takes ``ds_t`` to the deltas and to ``ds_{t-1}``, which is one product with ``W_hh^T``
(`Cell.pull`); the local derivatives that it multiplies by (`Cell.linearize`) and the sums over time
(`Cell.gradients`) are taken outside of it, for many steps at once. The loop carries the state's
adjoint and nothing else; in particular no gradient of a weight.

Memory. Time is cut into chunks of K steps. Arrays that live only while a chunk is worked on are
buffers of K steps, which the loop over chunks reuses. `Plan.residuals` decides what is kept from
the forward to the backward pass:

- ``"gates"``   the states and the gates of every step; nothing is computed twice;
- ``"states"``  the states of every step; the gates are computed again in bulk, by one product;
- ``"carries"`` the state that enters each chunk; a chunk's states are computed again in sequence.

A forward pass works on less at once, so its chunks may be longer (`Plan.forward_chunk`), except
with ``"carries"``: there, the backward pass starts from the states that enter these chunks.

A cotangent that is zero throughout stays symbolic: a loss that reads the final state alone has no
zeros ``[T, ..., H]``.

Masks. ``valid [T, ...]`` false: the step does not happen; the state is held, the input is replaced
by zeros before anything reads it, and the step's deltas are zero. ``cut [T, ...]`` true: the reset
state takes the place of the carry before the step reads it, and so does its gradient.
``stop [T, ...]`` true: the step reads the carry, and still no gradient leaves it towards earlier
steps.

Direction. ``reverse`` runs the recursion from the last step to the first; "before" and "after" are
meant in the order of processing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxrnn import pieces
from jaxrnn.cells.cell import Cell, Consts, Params, State
from jaxrnn.chunks import entering_chunks, scan_chunks, shifted
from jaxrnn.dtypes import differentiable, in_dtype_of, zero_sums
from jaxrnn.loops import Ahead, Back, Pulled
from jaxrnn.masks import select, zero_unless
from jaxrnn.pieces import Bound
from jaxrnn.plan import Plan
from jaxrnn.sharding import over_rows, zeros_beside

__all__ = ["Arrays", "Outputs", "Steps", "Trajectory", "adjoints", "bind", "trajectory", "unroll"]


class Steps(NamedTuple):
    """Leaves ``[T, ...]``: the inputs, the arrays drawn for each step, and the masks, or None."""

    xs: Any
    drawn: Any = None
    valid: jax.Array | None = None
    cut: jax.Array | None = None
    stop: jax.Array | None = None


class Arrays(NamedTuple):
    """All arrays of a call. ``drawn`` are the consts that the cell drew; a reset needs its state.

    Also their gradients, with None for zero.
    """

    params: Params
    initial_state: State
    reset_state: State | None
    consts: Consts
    drawn: Any
    steps: Steps


class Outputs(NamedTuple):
    """``hs [T, ..., H]``, zero where not valid; every state ``[T, ..., H]`` if asked for.

    Also their cotangents, with None for those that are zero throughout.
    """

    final_state: State
    hs: Any
    states: State | None


class Trajectory(NamedTuple):
    """Every step as the adjoint reads it, leaves ``[T, ...]``.

    ``xs`` and ``before`` are zero where not valid, ``before`` is the state that a step reads (cut
    where it is), ``after`` the one that it makes, ``gates`` and ``factors`` are the cell's own.
    """

    xs: Any
    before: State
    after: State
    gates: Any
    factors: Any


class Kept(NamedTuple):
    """The residuals of a chunk or of all: None for those that `Plan.residuals` does not keep.

    ``entering`` is the state that enters each chunk, leaves ``[N, ...]``; ``states`` and ``gates``
    are those of every step, leaves ``[T, ...]``. Of one chunk, the leading axis of ``entering`` is
    gone, and that of the others is K.
    """

    entering: State | None
    states: State | None
    gates: Any


def bind(cell: Cell, arrays: Arrays) -> Bound:
    return Bound(cell, arrays.params, pieces.with_drawn(cell, arrays.consts, arrays.drawn))


# one compiled program per (cell, plan, shapes), also if the caller does not jit
@functools.partial(jax.jit, static_argnums=(0, 1))
def unroll(cell: Cell, plan: Plan, arrays: Arrays) -> Outputs:
    """Scan a cell over time; differentiated by the handwritten rule below."""
    state = arrays.initial_state
    consts, drawn = (
        jax.tree.map(lambda of_a_row: 0 if of_a_row else None, rows)
        for rows in pieces.consts_rows(cell, arrays.consts, arrays.drawn)
    )
    run = over_rows(
        functools.partial(_unroll, cell, plan),
        jax.tree.leaves(arrays.steps.xs)[0],
        batch_axes=plan.batch_axes,
        in_axes=Arrays(None, 0, 0, consts, drawn, steps=1),  # type: ignore[arg-type]
        out_axes=Outputs(final_state=0, hs=1, states=1),
        out_like=Outputs(
            final_state=state,
            hs=state.h if cell.output is None else None,
            states=state if plan.return_states else None,
        ),
    )
    return run(arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(cell: Cell, plan: Plan, arrays: Arrays) -> Outputs:
    return _forward(cell, plan._replace(residuals=None), arrays)[0]


def _unroll_fwd(cell: Cell, plan: Plan, arrays: Arrays) -> tuple[Outputs, Any]:
    # with symbolic zeros, leaves are CustomVJPPrimal(value, perturbed)
    reads_reset = any(leaf.perturbed for leaf in jax.tree.leaves(arrays.reset_state))
    arrays = jax.tree.map(lambda leaf: leaf.value, arrays)
    outputs, kept = _forward(cell, plan, arrays)
    # whether the reset state has a gradient is known while tracing: told by a shape, because JAX
    # takes the structure of the residuals from another call of the same program, if there is one
    flag = jnp.zeros(int(reads_reset), bool)
    return outputs, (arrays._replace(initial_state=None), kept, flag)


def _unroll_bwd(cell: Cell, plan: Plan, residuals: Any, cotangents: Outputs) -> tuple[Arrays]:
    arrays, _, _ = residuals
    return (_backward(cell, plan, residuals, _materialised(cotangents, arrays.steps)),)


_unroll.defvjp(_unroll_fwd, _unroll_bwd, symbolic_zeros=True)


def _materialised(cotangents: Outputs, beside: Any) -> Outputs:
    """None for sequences that no loss reads: zeros ``[T, ...]`` would cost their memory."""

    def dense(leaf: Any) -> jax.Array | None:
        # leaves of a state that are not floating have no adjoint
        if leaf.dtype == jax.dtypes.float0:
            return None
        return zeros_beside(leaf, beside) if isinstance(leaf, SymbolicZero) else leaf

    def unless_zero(tree: Any) -> Any:
        if all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tree)):
            return None
        return jax.tree.map(dense, tree)

    dfinal, dhs, dstates = cotangents
    return Outputs(jax.tree.map(dense, dfinal), unless_zero(dhs), unless_zero(dstates))


def trajectory(cell: Cell, plan: Plan, arrays: Arrays) -> Trajectory:
    """The forward pass of `unroll` once more, with everything kept: for watching, not for speed."""
    plan = plan._replace(residuals="gates")
    bound, steps, initial_state = bind(cell, arrays), arrays.steps, arrays.initial_state
    _, inputs, advanced = _advance_chunk(bound, plan, arrays, steps, initial_state)
    kept = Kept(initial_state, advanced.after, advanced.gates)
    xs, _, before, after, gates = _restore_chunk(bound, plan, arrays, steps, kept)
    factors = pieces.linearize(bound, inputs, before, after, gates)
    return Trajectory(xs, before, after, gates, factors)


def adjoints(cell: Cell, plan: Plan, arrays: Arrays, factors: Any, cotangents: Outputs) -> Pulled:
    """The adjoint recursion of `unroll` along a trajectory, with every step recorded.

    ``dreset`` is None if there is no reset state.
    """
    dfinal, dhs, dstates = cotangents
    bound = bind(cell, arrays)
    dreset = None if arrays.reset_state is None else jax.tree.map(jnp.zeros_like, dfinal)
    back, K = _back(factors, arrays.steps, dhs, dstates), _length(arrays.steps)
    return plan.loops.pull(bound, dfinal, dreset, back, K, reverse=plan.reverse, record=True)


def _forward(cell: Cell, plan: Plan, arrays: Arrays) -> tuple[Outputs, Kept]:
    """All chunks in order: the outputs, and per chunk the residuals of `Plan.residuals`."""
    bound, initial_state, steps = bind(cell, arrays), arrays.initial_state, arrays.steps
    by_carries, by_states = plan.residuals == "carries", plan.residuals in ("gates", "states")
    store_states = plan.return_states or by_states
    # where nothing is masked, hs is a field of the states: not stored twice
    in_states = cell.output is None and steps.valid is None and store_states

    def forward_chunk(entering: State, chunk: Steps, _: None) -> tuple[State, Any, Any]:
        _, _, (leaving, after, gates) = _advance_chunk(bound, plan, arrays, chunk, entering)
        hs = None if in_states else zero_unless(chunk.valid, pieces.output(bound, after, gates))
        kept_states = after if store_states else None
        kept_gates = gates if plan.residuals == "gates" else None
        return leaving, (hs, kept_states, kept_gates), entering if by_carries else None

    K = plan.chunk if by_carries else plan.forward_chunk
    final_state, (hs, states, gates), entering = scan_chunks(
        forward_chunk, initial_state, steps, None, K, reverse=plan.reverse
    )
    if by_states:
        entering = entering_chunks(initial_state, states, plan.chunk, reverse=plan.reverse)
    outputs = Outputs(
        final_state=final_state,
        hs=states.h if in_states else hs,
        states=states if plan.return_states else None,
    )
    return outputs, Kept(entering, None if by_carries else states, gates)


def _backward(cell: Cell, plan: Plan, residuals: Any, cotangents: Outputs) -> Arrays:
    """All chunks against the order: the adjoint recursion in each, then the sums over its steps.

    Textbook: the sums over time rnn-11, lstm-25, step-31.
    """
    arrays, kept, reads_reset = residuals
    bound = bind(cell, arrays)
    dfinal, dhs, dstates = cotangents

    def backward_chunk(carry: Any, inputs: Any, entering: State) -> tuple[Any, Any, None]:
        dleaving, dreset, dparams, dconsts = carry
        chunk, dhs, dstates, states, gates = inputs
        xs, inputs, before, after, gates = _restore_chunk(
            bound, plan, arrays, chunk, Kept(entering, states, gates)
        )
        factors = pieces.linearize(bound, inputs, before, after, gates)
        if cell.output is not None and dhs is None:
            like = jax.eval_shape(functools.partial(pieces.output, bound), after, gates)
            dhs = zeros_beside(differentiable(like), before)
        back, K = _back(factors, chunk, dhs, dstates), _length(chunk)
        pulled = plan.loops.pull(
            bound, dleaving, dreset, back, K, reverse=plan.reverse, record=False
        )
        more_dparams, dxs, more_dconsts = pieces.gradients(
            bound, xs, before, after, gates, pulled.deltas
        )
        dparams = jax.tree.map(jnp.add, dparams, more_dparams)
        dconsts = jax.tree.map(jnp.add, dconsts, more_dconsts)
        carry = pulled.dentering, pulled.dreset, dparams, dconsts
        return carry, zero_unless(chunk.valid, dxs), None

    dreset = jax.tree.map(jnp.zeros_like, dfinal) if reads_reset.size else None
    (dinitial, dreset, dparams, dconsts), dxs, _ = scan_chunks(
        backward_chunk,
        (dfinal, dreset, zero_sums(arrays.params), zero_sums(arrays.consts)),
        (arrays.steps, dhs, dstates, kept.states, kept.gates),
        kept.entering,
        plan.chunk,
        reverse=not plan.reverse,
    )
    return Arrays(
        params=in_dtype_of(arrays.params, dparams),
        initial_state=dinitial,
        reset_state=dreset,
        consts=in_dtype_of(arrays.consts, dconsts),
        drawn=None,
        steps=Steps(xs=dxs),
    )


def _length(steps: Steps) -> Any:
    return jax.tree.leaves(steps.xs)[0].shape[0]


def _read(bound: Bound, chunk: Steps) -> tuple[Any, Any]:
    """The ``xs`` of a chunk, zero where not valid, and the cell's inputs made of them."""
    xs = pieces.with_drawn(bound.cell, zero_unless(chunk.valid, chunk.xs), chunk.drawn)
    return xs, pieces.project(bound, xs)


def _advance_chunk(
    bound: Bound, plan: Plan, arrays: Arrays, chunk: Steps, entering: State
) -> tuple[Any, Any, Any]:
    """K steps of the recursion: their xs, their inputs, and `jaxrnn.loops.Advanced`."""
    xs, inputs = _read(bound, chunk)
    ahead = Ahead(inputs, chunk.valid, chunk.cut, chunk.stop)
    advanced = plan.loops.advance(
        bound, entering, arrays.reset_state, ahead, _length(chunk), reverse=plan.reverse
    )
    return xs, inputs, advanced


def _restore_chunk(
    bound: Bound, plan: Plan, arrays: Arrays, chunk: Steps, kept: Kept
) -> tuple[Any, Any, State, State, Any]:
    """``(xs, inputs, before, after, gates)`` of every step of a chunk, from what was kept."""
    entering, after, gates = kept
    if plan.residuals == "carries":
        xs, inputs, (_, after, gates) = _advance_chunk(bound, plan, arrays, chunk, entering)
    else:
        xs, inputs = _read(bound, chunk)
    before = shifted(entering, after, reverse=plan.reverse)
    if chunk.stop is not None:
        # for second derivatives: the state that a stopped step reads is a constant to it
        before = select(chunk.stop, jax.tree.map(lax.stop_gradient, before), before)
    if chunk.cut is not None:
        every_step = jax.tree.map(
            lambda reset, carry: jnp.broadcast_to(reset, carry.shape), arrays.reset_state, before
        )
        before = select(chunk.cut, every_step, before)
    # a NaN in the state of a row that has ended would reach the sums as 0 * NaN
    before = zero_unless(chunk.valid, before)
    # with a barrier, or every reader makes a copy of its own
    before = lax.optimization_barrier(before)
    if plan.residuals == "states":
        _, gates = pieces.advance_in_bulk(bound, before, inputs)
    else:
        gates = zero_unless(chunk.valid, gates)
    return xs, inputs, before, zero_unless(chunk.valid, after), gates


def _back(factors: Any, steps: Steps, dhs: Any, dstates: State | None) -> Back:
    # the cotangent of an output that is zero is not read
    dhs = None if dhs is None else zero_unless(steps.valid, dhs)
    return Back(factors, steps.valid, steps.cut, steps.stop, dhs, dstates)
