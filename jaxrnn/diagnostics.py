"""Watching backpropagation through time: the gradient as it passes every step."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import bptt
from jaxrnn.arguments import cut_final, engine_steps, plan_engine, validate
from jaxrnn.bptt import Gradients
from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.validation import matching_arrays

__all__ = ["Gradients", "backpropagate"]


def backpropagate(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    consts: Consts = None,
) -> Gradients:
    """Backpropagation through time, called explicitly, with what it finds at every step.

    The rule that `jaxrnn.unroll` applies under `jax.grad`, given the cotangents by hand.

    Args:
        cell, params, xs, initial_state, lengths, resets, reverse, consts: as in `jaxrnn.unroll`.
        dhs: the gradient of the loss with respect to the outputs, ``[T, ..., H]``, as the outputs'
            readers send it (without what returns through later steps: that is the result).
        dfinal: the same for the final state, leaves ``[..., H]``; None for zeros.

    Returns:
        `Gradients`: the gradients of ``params``, ``xs``, ``initial_state`` and ``consts``; in
        ``states`` the whole gradient of the loss with respect to the state after every step,
        leaves ``[T, ..., H]``, along every path; in ``deltas`` the gradients with respect to every
        step's pre-activations, in the cell's gate order (``[T, ..., 4H]`` for the LSTM). Both are
        zero in the padding.

    Raises:
        TypeError, ValueError: as `jaxrnn.unroll`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.LSTM.init(jax.random.key(0), 3, 5)
        >>> xs, dhs = jnp.ones((7, 3)), jnp.zeros((7, 5)).at[-1].set(1.0)
        >>> gradients = jaxrnn.diagnostics.backpropagate(jaxrnn.LSTM, params, xs, dhs)
        >>> gradients.params.w_hh.shape, gradients.states.h.shape
        ((5, 20), (7, 5))
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
    zeros = jax.tree.map(jnp.zeros_like, s.initial_state)
    like: Any = jax.eval_shape(lambda: zeros)
    T, h = s.xs.shape[0], like.h
    dhs = matching_arrays("dhs", dhs, jax.ShapeDtypeStruct((T, *h.shape), h.dtype))
    dfinal = zeros if dfinal is None else matching_arrays("dfinal", dfinal, like)
    return bptt.backpropagate(
        cell,
        plan_engine(s, residuals=None, return_states=False),
        s.params,
        s.initial_state,
        s.consts,
        engine_steps(s),
        # to cut a state is to multiply it by zero: its adjoint is the same cut
        bptt.Outputs(final_state=cut_final(s, dfinal), hs=dhs, states=None),
    )
