"""Scanning a cell over time: the public `unroll` and its cross-check `unroll_reference`.

Both take the same arguments and return the same values. `unroll` is differentiated by the
handwritten rule of `jaxrnn.bptt`; `unroll_reference` is the plain recurrence, written here in the
most direct way, and differentiated by JAX.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from jaxrnn import bptt
from jaxrnn.call import (
    Options,
    arrays_of,
    check_policy,
    plan_of,
    steps_before,
    validate,
    with_final_reset,
)
from jaxrnn.cells.cell import Cell, Consts, Params, State
from jaxrnn.checks import array, size, static_bool
from jaxrnn.masks import select, zero_unless
from jaxrnn.pieces import with_drawn
from jaxrnn.sharding import of_one_type

__all__ = ["unroll", "unroll_reference", "valid_steps"]


def unroll(
    cell: Cell,
    params: Params,
    xs: Any,
    initial_state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_state: State | None = None,
    detach: jax.Array | None = None,
    reverse: bool = False,
    residuals: str | None = None,
    memory_budget: int | None = None,
    return_states: bool = False,
    consts: Consts = None,
    key: jax.Array | None = None,
) -> tuple[Any, ...]:
    """Scan a cell over time, with backpropagation through time by a handwritten rule.

    Gradients are exact for ``params``, ``xs``, ``initial_state``, ``reset_state`` and ``consts``,
    with any cotangent of any output, and can be differentiated again. Works under `jax.jit`,
    `jax.vmap`, `jax.grad`, `jax.checkpoint`, `jax.shard_map`, `jax.export`, inside `jax.lax.scan`.
    The cell is static: close over it, or jit with ``jax.jit(unroll, static_argnums=0)``. Forward
    mode (`jax.jvp`) raises, as for every `jax.custom_vjp`: use `unroll_reference` there.

    Args:
        cell: `jaxrnn.ELMAN`, `jaxrnn.LSTM`, `jaxrnn.GRU`, or a user-defined `jaxrnn.Cell`.
        params: the cell's parameters, from ``cell.init``.
        xs: inputs ``[T, ..., I]``, time first, any number of batch axes, in the params' dtype; for
            cells that take several, a pytree of such arrays.
        initial_state: the state before the first step, leaves ``[..., H]``; None for
            ``cell.initial_state(params, batch_shape)``, zeros for the built-in cells.
        lengths: integers ``[...]`` in 0..T, the valid prefix of each row; None for all T. Past it
            ``hs`` is zero, the input is not read, the state is held, and ``dxs`` is zero. Concrete
            lengths outside 0..T raise; traced ones are clipped.
        mask: booleans ``[T, ...]``, the valid steps in any pattern, in the place of ``lengths``. A
            masked step does not happen: as past the lengths, and resets and detach there have no
            effect.
        resets: booleans ``[T, ...]`` that mark the first step of an episode. With ``resets[t]``
            the state is the reset state before step t is read; no gradient crosses. With
            ``reverse`` the same boundary holds from the other side: step t is the last of its
            episode to be processed, and the state is reset before the next valid step, or in the
            final state if none follows (``states[t]`` is the state that step t made).
        reset_state: the state that resets return to, leaves ``[..., H]``, or ``[H]`` for all rows;
            None for ``cell.initial_state(params, batch_shape)``.
        detach: booleans ``[T, ...]``: step t reads the state, and no gradient passes from it to
            the steps processed earlier. It never cuts the path to a reset state.
        reverse: run from each row's last valid step to its first.
        residuals: what is kept from the forward to the backward pass: ``"gates"`` (most memory),
            ``"states"``, or ``"carries"`` (one state per chunk of about sqrt(T) steps, least
            memory). Values and gradients are the same; `jaxrnn.memory` has the bytes. None
            chooses by speed: the states, or, up to 64 MiB, the gates too, and sequences under
            1 MiB of ``hs`` run as one chunk. A named policy always chunks.
        memory_budget: the bytes that the call may hold for its gradient, outputs ``hs`` included,
            arguments and gradients not: the fastest plan that fits is taken. In the place of
            ``residuals``. Under `jax.vmap`, the budget applies to each mapped call, not to the
            batch.
        return_states: also return the state after every step.
        consts: a pytree of arrays that the cell reads at every step, for cells that take it.
        key: a `jax.random.key`, for cells that draw noise or masks; None: nothing is drawn. The
            same key draws the same under every policy and sharding.

    Returns:
        ``(final_state, hs)``: the state after each row's last step (if no step is valid, the
        initial state) and the outputs ``hs [T, ..., H]``; with ``return_states`` also the states,
        leaves ``[T, ..., H]``, held where a step is not valid.

    Raises:
        TypeError: an argument of another type, container or dtype.
        ValueError: an argument of another shape or range; a ``memory_budget`` in which nothing
            fits (the message says the least), or one beside ``residuals``.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.LSTM.init(jax.random.key(0), 3, 5)
        >>> final_state, hs = jaxrnn.unroll(jaxrnn.LSTM, params, jnp.ones((7, 2, 3)))
        >>> hs.shape, final_state.c.shape
        ((7, 2, 5), (2, 5))
    """
    options = Options(
        lengths=lengths,
        mask=mask,
        resets=resets,
        reset_state=reset_state,
        detach=detach,
        reverse=reverse,
        consts=consts,
        key=key,
    )
    call = validate(cell, params, xs, initial_state, options)
    plan = plan_of(
        call, residuals=residuals, memory_budget=memory_budget, return_states=return_states
    )
    try:
        outputs = bptt.unroll(cell, plan, arrays_of(call))
    except TypeError as error:
        if "custom_vjp" in str(error):
            error.add_note(
                "jaxrnn.unroll_reference has forward mode: the same arguments and values"
            )
        raise
    final_state = with_final_reset(call, outputs.final_state)
    return (final_state, outputs.hs, outputs.states) if return_states else (final_state, outputs.hs)


def unroll_reference(
    cell: Cell,
    params: Params,
    xs: Any,
    initial_state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_state: State | None = None,
    detach: jax.Array | None = None,
    reverse: bool = False,
    residuals: str | None = None,
    memory_budget: int | None = None,
    return_states: bool = False,
    consts: Consts = None,
    key: jax.Array | None = None,
) -> tuple[Any, ...]:
    """The same values as `unroll`, from a plain `jax.lax.scan` that JAX differentiates.

    The ground truth for the handwritten rule, and the way to forward-mode derivatives
    (`jax.jvp`, `jax.linearize`). Arguments, returned values and errors are those of `unroll`;
    ``residuals`` and ``memory_budget`` are ignored once they are checked, because JAX decides what
    it keeps.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.GRU.init(jax.random.key(0), 3, 5)
        >>> f = lambda xs: jaxrnn.unroll_reference(jaxrnn.GRU, params, xs)[1]
        >>> hs, dhs = jax.jvp(f, (jnp.ones((7, 3)),), (jnp.ones((7, 3)),))
        >>> dhs.shape
        (7, 5)
    """
    options = Options(
        lengths=lengths,
        mask=mask,
        resets=resets,
        reset_state=reset_state,
        detach=detach,
        reverse=reverse,
        consts=consts,
        key=key,
    )
    call = validate(cell, params, xs, initial_state, options)
    check_policy(residuals, memory_budget)
    return_states = static_bool("return_states", return_states)
    final_state, hs, states = _scan(
        cell,
        call.reverse,
        call.params,
        call.initial_state,
        call.reset_state,
        with_drawn(cell, call.consts, call.drawn),
        (with_drawn(cell, call.xs, call.drawn_steps), call.valid, call.resets, call.detach),
    )
    return (final_state, hs, states) if return_states else (final_state, hs)


def valid_steps(lengths: jax.Array, T: Any) -> jax.Array:
    """The mask ``[T, ...]`` that is true on each row's first ``lengths [...]`` steps.

    The losses take it as ``mask``, to leave the padding out.

    Raises:
        TypeError: lengths that are not integers; T that is not an int.
        ValueError: concrete lengths outside 0..T (traced ones are clipped); a negative T.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> print(jaxrnn.valid_steps(jnp.array([2, 0]), 3).astype(int))
        [[1 0]
         [1 0]
         [0 0]]
    """
    if not is_symbolic_dim(T):
        T = size("T", T, least=0)
    return steps_before(lengths, T, array("lengths", lengths).shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan(cell: Cell, reverse: bool, *arrays: Any) -> tuple[State, Any, State]:
    """The recurrence as the documentation states it, one step after another.

    ``arrays`` are ``params, initial_state, reset_state, consts, steps``; the steps are the inputs
    and, for each step, whether it is valid, reset and detached.
    """
    params, initial_state, reset_state, consts, steps = of_one_type(*arrays)

    def step(carry: tuple[State, Any], at: tuple[Any, ...]) -> tuple[Any, Any]:
        state, due = carry
        x, valid, reset, detach = at
        before = state if detach is None else select(detach, lax.stop_gradient(state), state)
        if reset is not None:
            before = select(due if reverse else reset, reset_state, before)
        # masking the output alone would let a NaN in the padding into the gradient, as 0 * NaN
        x, before = zero_unless(valid, (x, before))
        after, h = cell.step(params, before, x, consts)
        after = select(valid, after, state)
        # in reverse, the reset of a step is due before the next one that happens
        due = select(valid, reset, due) if due is not None else None
        return (after, due), (zero_unless(valid, h), after)

    resets = steps[2]
    due = None if resets is None else jnp.zeros_like(jnp.any(resets, axis=0))
    (final_state, due), (hs, states) = lax.scan(step, (initial_state, due), steps, reverse=reverse)
    if reverse and due is not None:
        final_state = select(due, reset_state, final_state)
    return final_state, hs, states
