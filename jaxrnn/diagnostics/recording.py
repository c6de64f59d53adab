"""Backpropagation through time, called explicitly: what all diagnostics begin with."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxrnn import bptt, call
from jaxrnn.call import Call, arrays_of, plan_of, validate, with_final_reset
from jaxrnn.cells.cell import Cell, Consts, Params, State
from jaxrnn.checks import describe, matching_arrays
from jaxrnn.dtypes import differentiable, in_dtype_of
from jaxrnn.masks import zero_unless, zero_where
from jaxrnn.pieces import gradients
from jaxrnn.plan import Plan

__all__ = [
    "Gradients",
    "Options",
    "Problem",
    "Recording",
    "backpropagate",
    "cotangents_of",
    "prepare",
    "pull_back",
    "record",
    "steps_shape",
    "validated",
    "with_the_start",
]


class Options(call.Options, total=False):
    """The keyword arguments of `jaxrnn.unroll` that change what is computed, and the loss."""

    loss: Callable[[State, Any], jax.Array] | None


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
    """

    params: Params
    xs: Any
    initial_state: State
    consts: Consts
    states: State
    deltas: Any
    reset_state: State | None


class Problem(NamedTuple):
    """The checked arguments of a diagnostic that are arrays, as the engine takes them.

    ``dended`` is the cotangent of the final state in the rows where it is the reset state, which it
    reaches without any step; None without such rows. ``made_start`` and ``made_reset`` are empty
    tuples if the cell made the initial and the reset state of the params, None if they were given:
    so the two are known while tracing.
    """

    arrays: bptt.Arrays
    cotangents: bptt.Outputs
    dended: State | None
    made_start: tuple[()] | None
    made_reset: tuple[()] | None


class Recording(NamedTuple):
    """One pass forwards and one back, with every step kept; nothing is summed over time yet.

    ``states`` are the adjoints of the states after the steps, ``initial_state`` and ``reset_state``
    the gradients of those.
    """

    trajectory: bptt.Trajectory
    deltas: Any
    states: State
    initial_state: State
    reset_state: State | None


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
        cell, params, xs, initial_state: as in `jaxrnn.unroll`.
        dhs: the gradient of the loss with respect to the outputs, ``[T, ..., H]``, as the outputs'
            readers send it (without what returns through later steps: that is the result); None
            for zeros.
        dfinal: the same for the final state, leaves ``[..., H]``; None for zeros.
        options: the keyword arguments of `jaxrnn.unroll` (lengths, mask, resets, reset_state,
            detach, reverse, consts, key) and ``loss``, a function ``(final_state, hs) -> scalar``:
            ``dhs`` and ``dfinal`` are its gradients at the outputs of `jaxrnn.unroll`. Give either
            a loss or at least one of the two.

    Raises:
        TypeError, ValueError: as `jaxrnn.unroll`; no cotangent and no loss, or both; cotangents
            that do not fit the outputs; a loss that returns no floating scalar.

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


def prepare(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any,
    dfinal: State | None,
    initial_state: State | None,
    options: Mapping[str, Any],
) -> tuple[Cell, Plan, Problem]:
    """Check the arguments of a diagnostic: what is static, and what is not.

    Raises:
        TypeError: an unknown keyword; otherwise as `backpropagate`.
        ValueError: as `backpropagate`.
    """
    checked, loss = validated(cell, params, xs, initial_state, options)
    dhs, dfinal = cotangents_of(checked, dhs, dfinal, loss)
    made_reset = checked.reset_state is not None and options.get("reset_state") is None
    problem = Problem(
        arrays=arrays_of(checked),
        cotangents=bptt.Outputs(
            # the adjoint of a state that was reset after the last step does not reach that step
            final_state=zero_where(checked.ended, dfinal),
            hs=dhs,
            states=None,
        ),
        dended=None if checked.ended is None else zero_unless(checked.ended, dfinal),
        made_start=() if initial_state is None else None,
        made_reset=() if made_reset else None,
    )
    return cell, plan_of(checked), problem


def validated(
    cell: Cell, params: Params, xs: Any, initial_state: State | None, options: Mapping[str, Any]
) -> tuple[Call, Any]:
    """The checked call of `jaxrnn.unroll`, and the loss among the options."""
    of_unroll = {name: value for name, value in options.items() if name != "loss"}
    return validate(cell, params, xs, initial_state, of_unroll), options.get("loss")


def cotangents_of(checked: Call, dhs: Any, dfinal: State | None, loss: Any) -> tuple[Any, State]:
    """``(dhs, dfinal)`` of a call, as they were given or from the loss: no leaf is left out."""
    if callable(dhs):
        raise TypeError("`dhs` must be an array; got a function: give a loss by name, `loss=`")
    if dhs is None and dfinal is None and loss is None:
        raise ValueError(
            "`dhs` and `dfinal` are both None, so there is no gradient to follow: give one of them "
            "(the loss's gradient with respect to `hs` or to the final state), or the `loss` itself"
        )
    if loss is not None and not (dhs is None and dfinal is None):
        raise ValueError(
            "`loss` takes the place of `dhs` and `dfinal`: give either; got "
            f"dhs={describe(dhs)}, dfinal={describe(dfinal)}"
        )
    plan, arrays = plan_of(checked), arrays_of(checked)
    if loss is not None:
        outputs = bptt.unroll(checked.cell, plan, arrays)
        return _gradients_of(loss, with_final_reset(checked, outputs.final_state), outputs.hs)
    like = jax.eval_shape(functools.partial(bptt.unroll, checked.cell, plan), arrays)
    like = differentiable(like)
    if dhs is None:
        dhs = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like.hs)
    else:
        dhs = matching_arrays("dhs", dhs, like.hs)
    if dfinal is None:
        dfinal = jax.tree.map(jnp.zeros_like, differentiable(checked.initial_state))
    else:
        dfinal = matching_arrays("dfinal", dfinal, like.final_state)
    return dhs, dfinal


def _gradients_of(loss: Any, final_state: State, hs: Any) -> tuple[Any, State]:
    if not callable(loss):
        raise TypeError(
            f"`loss` must be a function (final_state, hs) -> scalar; got {describe(loss)}"
        )
    value = jax.eval_shape(loss, final_state, hs)
    scalar = getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating)
    if not scalar:
        raise TypeError(f"`loss` must return a floating scalar; got {describe(value)}")
    found = jax.grad(loss, argnums=(0, 1), allow_int=True)(final_state, hs)
    dfinal, dhs = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, found)
    return dhs, dfinal


def record(cell: Cell, plan: Plan, problem: Problem) -> Recording:
    """Run the sequence forwards and its adjoint back, keeping every step of both."""
    trajectory = bptt.trajectory(cell, plan, problem.arrays)
    return pull_back(cell, plan, problem, trajectory)


def pull_back(cell: Cell, plan: Plan, problem: Problem, trajectory: bptt.Trajectory) -> Recording:
    """Run the adjoint alone, along a trajectory that is there already."""
    pulled = bptt.adjoints(cell, plan, problem.arrays, trajectory.factors, problem.cotangents)
    dreset = pulled.dreset
    if problem.dended is not None:
        dreset = jax.tree.map(jnp.add, dreset, problem.dended)
    return Recording(trajectory, pulled.deltas, pulled.dafter, pulled.dentering, dreset)


def steps_shape(plan: Plan, problem: Problem) -> tuple[int, ...]:
    """``(T, *batch)``."""
    return jax.tree.leaves(problem.arrays.steps.xs)[0].shape[: 1 + plan.batch_axes]


def with_the_start(
    cell: Cell,
    problem: Problem,
    dparams: Params,
    dinitial: State,
    dreset: State | None,
    batch_shape: tuple[int, ...],
) -> Params:
    """The params' gradient: the sum over the steps, and what reaches it through states made of it.

    Args:
        dparams: summed over the steps, in the accumulation dtype.
        dinitial, dreset: the adjoints of the initial and of the reset state, ``[*batch, ...]``.
        batch_shape: of the rows that both are summed over.
    """
    made = (problem.made_start, dinitial), (problem.made_reset, dreset)
    adjoints = [adjoint for empty, adjoint in made if empty is not None]
    if not adjoints:
        return dparams

    def start(params: Params) -> State:
        return differentiable(cell.initial_state(params, batch_shape))

    pull = jax.vjp(start, problem.arrays.params)[1]
    (through_start,) = pull(functools.reduce(functools.partial(jax.tree.map, jnp.add), adjoints))
    return jax.tree.map(
        lambda of_steps, d: of_steps + d.astype(of_steps.dtype),
        dparams,
        differentiable(through_start),
    )


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
