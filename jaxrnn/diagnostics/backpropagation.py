"""Backpropagation through time, called explicitly."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax

from jaxrnn import bptt
from jaxrnn.cells.cell import Cell, Consts, Params, State
from jaxrnn.diagnostics.networks import Watched, each_layer, takes_networks
from jaxrnn.diagnostics.recording import (
    Options,
    Problem,
    prepare,
    record,
    steps_shape,
    with_the_start,
)
from jaxrnn.dtypes import in_dtype_of
from jaxrnn.masks import zero_unless
from jaxrnn.pieces import gradients
from jaxrnn.plan import Plan

__all__ = ["Gradients", "backpropagate"]


class Gradients(NamedTuple):
    """The gradients of backpropagation through time.

    ``params``, ``xs [T, ..., I]``, ``initial_state``, ``consts`` and ``reset_state [..., H]`` are
    the gradients of the arguments of that name; None where there is none, as for leaves that are
    not floating, and for ``reset_state`` without resets.

    ``states`` is the whole gradient of the loss with respect to the state after every step, along
    every path, leaves ``[T, ..., H]``; ``deltas`` the gradients with respect to every step's
    pre-activations, in the cell's gate order (``[T, ..., 4H]`` for the LSTM). Both are zero where a
    step is not valid. Where the output is no field of the state, a step makes both side by side:
    what reads the output of step t itself is not in ``states[t]``.

    Of a network, ``params`` is a `jaxrnn.StackParams`, and ``xs`` the gradient of the network's
    inputs. All other fields are `jaxrnn.StackState` of the gradients in each layer and direction.
    """

    params: Params
    xs: Any
    initial_state: State
    consts: Consts
    states: State
    deltas: Any
    reset_state: State | None


def _of_network(diagnostic: Callable[..., Gradients], watched: Watched) -> Gradients:
    return each_layer(diagnostic, watched)._replace(xs=watched.dxs)


@takes_networks(_of_network)
def backpropagate(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    **options: Unpack[Options],
) -> Gradients:
    """Backpropagation through time, called explicitly, with what it finds at every step.

    The rule that `jaxrnn.unroll` applies under `jax.grad`, given the cotangents by hand.

    Args:
        cell, params, xs, initial_state: as in `jaxrnn.unroll`; or a `jaxrnn.Network` and the
            arguments of its ``apply``.
        dhs: the gradient of the loss with respect to the outputs, ``[T, ..., H]``, as the outputs'
            readers send it (without what returns through later steps: that is the result); None
            for zeros.
        dfinal: the same for the final state, leaves ``[..., H]``; None for zeros.
        options: the keyword arguments of `jaxrnn.unroll` (lengths, mask, resets, reset_state,
            detach, reverse, consts, key) and ``loss``, a function ``(final_state, hs) -> scalar``:
            ``dhs`` and ``dfinal`` are its gradients at the outputs of `jaxrnn.unroll`. Give either
            a loss or at least one of the two. Of a network: lengths, mask, resets, detach, key of
            its ``apply``, and ``loss``, a function of its outputs.

    Raises:
        TypeError, ValueError: as `jaxrnn.unroll` or `Network.apply`; no cotangent and no loss, or
            both; cotangents that do not fit the outputs; a loss that returns no floating scalar;
            an option that a network does not have.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.LSTM.init(jax.random.key(0), 3, 5)
        >>> xs, dhs = jnp.ones((7, 3)), jnp.zeros((7, 5)).at[-1].set(1.0)
        >>> gradients = jaxrnn.diagnostics.backpropagate(jaxrnn.LSTM, params, xs, dhs)
        >>> gradients.params.w_hh.shape, gradients.states.h.shape
        ((5, 20), (7, 5))
        >>> def loss(final_state, hs):
        ...     return hs[-1].sum()
        >>> same = jaxrnn.diagnostics.backpropagate(jaxrnn.LSTM, params, xs, loss=loss)
        >>> bool(jnp.allclose(same.params.w_hh, gradients.params.w_hh))
        True
    """
    cell, plan, problem = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    return _backpropagate(cell, plan, problem)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backpropagate(cell: Cell, plan: Plan, problem: Problem) -> Gradients:
    recording, arrays = record(cell, plan, problem), problem.arrays
    xs, before, after, gates, _ = recording.trajectory
    dparams, dxs, dconsts = gradients(
        bptt.bind(cell, arrays), xs, before, after, gates, recording.deltas
    )
    batch_shape = steps_shape(plan, problem)[1:]
    dparams = with_the_start(
        cell, problem, dparams, recording.initial_state, recording.reset_state, batch_shape
    )
    return Gradients(
        params=in_dtype_of(arrays.params, dparams),
        xs=zero_unless(arrays.steps.valid, dxs),
        initial_state=recording.initial_state,
        consts=in_dtype_of(arrays.consts, dconsts),
        states=recording.states,
        deltas=recording.deltas,
        reset_state=recording.reset_state,
    )
