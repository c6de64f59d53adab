"""Backpropagation through time, called explicitly: what all diagnostics begin with."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from jaxrnn import bptt
from jaxrnn.arguments import cut_final, engine_steps, plan_engine, validate
from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.masks import zero_unless
from jaxrnn.validation import matching_arrays

__all__ = [
    "Arrays",
    "Gradients",
    "Options",
    "Recording",
    "backpropagate",
    "prepare",
    "pull_back",
    "record",
    "require_known",
]


class Gradients(NamedTuple):
    """What backpropagation through time finds.

    ``params``, ``xs [T, ..., I]``, ``initial_state`` and ``consts`` are the gradients of the
    arguments of that name. ``states`` is the whole gradient of the loss with respect to the state
    after every step, along every path, leaves ``[T, ..., H]``; ``deltas`` the gradients with
    respect to every step's pre-activations, in the cell's gate order (``[T, ..., 4H]`` for the
    LSTM). Both are zero in the padding.
    """

    params: Params
    xs: jax.Array
    initial_state: State
    consts: Consts
    states: State
    deltas: Any


class Options(TypedDict, total=False):
    """The keyword arguments that every diagnostic shares, as in `jaxrnn.unroll`."""

    lengths: jax.Array | None
    resets: jax.Array | None
    reverse: bool
    consts: Consts


class Arrays(NamedTuple):
    """The checked arguments that are arrays, as the engine takes them."""

    params: Params
    initial_state: State
    consts: Consts
    steps: bptt.Steps
    cotangents: bptt.Outputs


class Recording(NamedTuple):
    """One pass forwards and one back, with every step kept; nothing is summed over time yet."""

    trajectory: bptt.Trajectory
    deltas: Any
    states: State
    initial_state: State


def backpropagate(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
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
            readers send it (without what returns through later steps: that is the result); None
            for zeros.
        dfinal: the same for the final state, leaves ``[..., H]``; None for zeros.

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
    options = Options(lengths=lengths, resets=resets, reverse=reverse, consts=consts)
    cell, plan, arrays = prepare(cell, params, xs, dhs, dfinal, initial_state, options)
    return _backpropagate(cell, plan, arrays)


def prepare(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
    dfinal: State | None,
    initial_state: State | None,
    options: Mapping[str, Any],
) -> tuple[Cell, bptt.Plan, Arrays]:
    """Check the arguments of a diagnostic: what is static, and what is not.

    Raises:
        TypeError: an unknown keyword; otherwise as `jaxrnn.unroll`.
    """
    require_known(options)
    defaults = Options(lengths=None, resets=None, reverse=False, consts=None)
    s = validate(cell, params, xs, initial_state, **{**defaults, **options})
    zeros = jax.tree.map(jnp.zeros_like, s.initial_state)
    like: Any = jax.eval_shape(lambda: zeros)
    dhs_like = jax.ShapeDtypeStruct((s.xs.shape[0], *like.h.shape), like.h.dtype)
    if dhs is None:
        dhs = jnp.zeros(dhs_like.shape, dhs_like.dtype)
    dhs = matching_arrays("dhs", dhs, dhs_like)
    dfinal = zeros if dfinal is None else matching_arrays("dfinal", dfinal, like)
    # to cut a state is to multiply it by zero: its adjoint is the same cut
    cotangents = bptt.Outputs(final_state=cut_final(s, dfinal), hs=dhs, states=None)
    plan = plan_engine(s, residuals=None, return_states=False)
    return s.cell, plan, Arrays(s.params, s.initial_state, s.consts, engine_steps(s), cotangents)


def require_known(options: Mapping[str, Any]) -> None:
    """Refuse a keyword argument that is none of `Options`."""
    known = Options.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"unknown argument `{name}`: the options are {', '.join(known)}")


def record(cell: Cell, plan: bptt.Plan, arrays: Arrays) -> Recording:
    """Run the sequence forwards and its adjoint back, keeping every step of both."""
    params, initial_state, consts, steps, _ = arrays
    trajectory = bptt.trajectory(cell, plan, params, initial_state, consts, steps)
    return pull_back(cell, plan, arrays, trajectory)


def pull_back(
    cell: Cell, plan: bptt.Plan, arrays: Arrays, trajectory: bptt.Trajectory
) -> Recording:
    """Run the adjoint alone, along a trajectory that is there already."""
    params, _, consts, steps, cotangents = arrays
    dinitial, deltas, dstates = bptt.adjoints(
        cell, plan, params, consts, steps, trajectory.factors, cotangents
    )
    return Recording(trajectory, deltas, dstates, dinitial)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backpropagate(cell: Cell, plan: bptt.Plan, arrays: Arrays) -> Gradients:
    recording = record(cell, plan, arrays)
    xs, before, _, gates, _ = recording.trajectory
    dparams, dxs, dconsts = bptt.contract(
        cell, arrays.params, arrays.consts, xs, before, gates, recording.deltas
    )
    return Gradients(
        params=bptt.in_dtype_of(arrays.params, dparams),
        xs=zero_unless(arrays.steps.valid, dxs),
        initial_state=recording.initial_state,
        consts=bptt.in_dtype_of(arrays.consts, dconsts),
        states=recording.states,
        deltas=recording.deltas,
    )
