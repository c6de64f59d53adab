"""The checked arguments of a diagnostic, and the recording of both passes that each one reads."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import bptt, call
from jaxrnn.call import Call, arrays_of, plan_of, validate, with_final_reset
from jaxrnn.cells.cell import Cell, Params, State
from jaxrnn.checks import describe, matching_arrays
from jaxrnn.dtypes import differentiable
from jaxrnn.masks import zero_unless, zero_where
from jaxrnn.plan import Plan

__all__ = [
    "Options",
    "Problem",
    "Recording",
    "cotangents_at",
    "cotangents_of",
    "prepare",
    "pull_back",
    "record",
    "require_cotangents",
    "steps_shape",
    "validated",
    "with_the_start",
    "without_float0",
]


class Options(call.Options, total=False):
    """The keyword arguments of `jaxrnn.unroll` that change what is computed, and the loss."""

    loss: Callable[[State, Any], jax.Array] | None


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
    require_cotangents(dhs, dfinal, loss)
    run = functools.partial(bptt.unroll, checked.cell, plan_of(checked))
    if loss is None:
        hs = jax.eval_shape(run, arrays_of(checked)).hs
        return cotangents_at(checked.initial_state, hs, dhs, dfinal, None)
    outputs = run(arrays_of(checked))
    final_state = with_final_reset(checked, outputs.final_state)
    return cotangents_at(final_state, outputs.hs, None, None, loss)


def require_cotangents(dhs: Any, dfinal: Any, loss: Any) -> None:
    """Refuse to follow no gradient, and two.

    Raises:
        TypeError: a function in the place of ``dhs``.
        ValueError: neither a loss nor a cotangent, or both.
    """
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


def cotangents_at(final_state: Any, hs: Any, dhs: Any, dfinal: Any, loss: Any) -> tuple[Any, Any]:
    """``(dhs, dfinal)`` at these outputs: the gradients of the loss, or the given ones, checked.

    Args:
        final_state, hs: the outputs; without a loss, arrays of their shapes and dtypes are enough.

    Returns:
        Pytrees like ``hs`` and ``final_state``, None for leaves that are not floating.
    """
    if loss is not None:
        return _gradients_of(loss, final_state, hs)
    like = differentiable((hs, final_state))
    # not like the outputs: their shapes may name a mesh that nothing here runs on
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    return (
        zeros[0] if dhs is None else matching_arrays("dhs", dhs, like[0]),
        zeros[1] if dfinal is None else matching_arrays("dfinal", dfinal, like[1]),
    )


def _gradients_of(loss: Any, final_state: Any, hs: Any) -> tuple[Any, Any]:
    if not callable(loss):
        raise TypeError(
            f"`loss` must be a function (final_state, hs) -> scalar; got {describe(loss)}"
        )
    value = jax.eval_shape(loss, final_state, hs)
    scalar = getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating)
    if not scalar:
        raise TypeError(f"`loss` must return a floating scalar; got {describe(value)}")
    found = jax.grad(loss, argnums=(0, 1), allow_int=True)(final_state, hs)
    dfinal, dhs = without_float0(found)
    return dhs, dfinal


def without_float0(gradients: Any) -> Any:
    """JAX's gradients with None for leaves that are not floating."""
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, gradients)


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
