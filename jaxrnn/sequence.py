"""Scanning a cell over time: the public `unroll` and its cross-check `unroll_reference`.

Both take the same arguments and return the same values. `unroll` is differentiated by the
handwritten rule of `jaxrnn.bptt`; `unroll_reference` is the plain recurrence, written here in the
most direct way, and differentiated by JAX.
"""

import functools
from typing import Any

import jax
from jax import lax

from jaxrnn import bptt
from jaxrnn.arguments import (
    check_policy,
    cut_final,
    engine_steps,
    plan_engine,
    steps_before,
    validate,
)
from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.masks import select, zero_unless, zero_where
from jaxrnn.validation import array, size, static_bool

__all__ = ["unroll", "unroll_reference", "valid_steps"]


def unroll(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    initial_state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    residuals: str | None = None,
    memory_budget: int | None = None,
    return_states: bool = False,
    consts: Consts = None,
) -> Any:
    """Scan a cell over time, with backpropagation through time by a handwritten rule.

    Gradients are exact for ``params``, ``xs``, ``initial_state`` and ``consts``, with any cotangent
    of any output, and can be differentiated again. Works under `jax.jit`, `jax.vmap`, `jax.grad`,
    `jax.checkpoint`, inside `jax.lax.scan`. Forward mode (`jax.jvp`) raises, as for every
    `jax.custom_vjp`: use `unroll_reference` there.

    Args:
        cell: `jaxrnn.ELMAN`, `jaxrnn.LSTM`, `jaxrnn.GRU`, or a `jaxrnn.Cell` of your own.
        params: the cell's parameters, from ``cell.init``.
        xs: inputs ``[T, ..., I]``, time first, any number of batch axes, in the params' dtype.
        initial_state: the state before the first step, leaves ``[..., H]``; None for zeros.
        lengths: integers ``[...]`` in 0..T, the valid prefix of each row; None for all T. Past it
            ``hs`` is zero, the input is not read, the state is held, and ``dxs`` is zero. Concrete
            lengths outside 0..T raise; traced ones are clipped.
        resets: booleans ``[T, ...]`` that mark the first step of an episode. With ``resets[t]``
            the state is zero before step t is read; with ``reverse`` it is zero after step t was
            processed (``states[t]`` is the state that step t made, before that). No gradient
            crosses. Resets past ``lengths`` have no effect.
        reverse: run from each row's last valid step to its first.
        residuals: what the forward pass keeps for the backward pass: ``"gates"`` (most memory),
            ``"states"``, or ``"carries"`` (one state per chunk of about sqrt(T) steps, least
            memory). Values and gradients are the same; `jaxrnn.memory` has the bytes. None
            chooses by speed: the states, or, up to 64 MiB, the gates too; and small sequences are
            not cut into chunks, as those with a policy by name are.
        memory_budget: the bytes that the call may hold for its gradient, outputs ``hs`` included,
            arguments and gradients not: the fastest plan that fits is taken. In the place of
            ``residuals``. Under `jax.vmap`, these are the bytes of one of the calls that it makes
            one: give rows a batch axis instead, where that can be.
        return_states: also return the state after every step.
        consts: a pytree of arrays that the cell reads at every step, for cells that take it.

    Returns:
        ``(final_state, hs)``: the state after each row's last step (``lengths`` 0: the initial
        state) and the outputs ``hs [T, ..., H]``; with ``return_states`` also the states, leaves
        ``[T, ..., H]``, held in the padding.

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
    s = validate(
        cell,
        params,
        xs,
        initial_state,
        lengths=lengths,
        resets=resets,
        reverse=reverse,
        consts=consts,
    )
    plan = plan_engine(
        s, residuals=residuals, return_states=return_states, memory_budget=memory_budget
    )
    outputs = bptt.unroll(cell, plan, s.params, s.initial_state, s.consts, engine_steps(s))
    final_state = cut_final(s, outputs.final_state)
    return (final_state, outputs.hs, outputs.states) if return_states else (final_state, outputs.hs)


def unroll_reference(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    initial_state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    residuals: str | None = None,
    memory_budget: int | None = None,
    return_states: bool = False,
    consts: Consts = None,
) -> Any:
    """The same values as `unroll`, from a plain `jax.lax.scan` that JAX differentiates.

    The ground truth for the handwritten rule, and the way to forward-mode derivatives
    (`jax.jvp`, `jax.linearize`). ``residuals`` and ``memory_budget`` are accepted so that both can
    be called alike; JAX keeps what it keeps. Arguments, returned values and errors are those of
    `unroll`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.GRU.init(jax.random.key(0), 3, 5)
        >>> f = lambda xs: jaxrnn.unroll_reference(jaxrnn.GRU, params, xs)[1]
        >>> hs, dhs = jax.jvp(f, (jnp.ones((7, 3)),), (jnp.ones((7, 3)),))
        >>> dhs.shape
        (7, 5)
    """
    s = validate(
        cell,
        params,
        xs,
        initial_state,
        lengths=lengths,
        resets=resets,
        reverse=reverse,
        consts=consts,
    )
    check_policy(residuals, memory_budget)
    return_states = static_bool("return_states", return_states)
    final_state, hs, states = _scan(
        cell, s.reverse, s.params, s.initial_state, s.consts, s.xs, s.valid, s.resets
    )
    return (final_state, hs, states) if return_states else (final_state, hs)


def valid_steps(lengths: jax.Array, T: int) -> jax.Array:
    """The mask ``[T, ...]`` that is true on each row's first ``lengths [...]`` steps.

    What the losses take as ``mask`` to leave the padding out.

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
    T = size("T", T, least=0)
    return steps_before(lengths, T, array("lengths", lengths).shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scan(
    cell: Cell,
    reverse: bool,
    params: Params,
    initial_state: State,
    consts: Consts,
    xs: jax.Array,
    valid: jax.Array | None,
    resets: jax.Array | None,
) -> tuple[State, jax.Array, State]:
    """The recurrence as the documentation states it, one step after another."""

    def step(carry: State, at: Any) -> tuple[State, Any]:
        x, valid, reset = at
        before = carry if reverse else zero_where(reset, carry)
        # masking the output alone would let a NaN in the padding into the gradient, as 0 * NaN
        after, h = cell.step(params, before, zero_unless(valid, x), consts)
        leaving = zero_where(reset, after) if reverse else after
        return select(valid, leaving, carry), (zero_unless(valid, h), select(valid, after, carry))

    final_state, (hs, states) = lax.scan(step, initial_state, (xs, valid, resets), reverse=reverse)
    return final_state, hs, states
