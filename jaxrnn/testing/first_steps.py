"""At which time step each gradient begins to be wrong."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrnn.sequence import unroll, unroll_reference
from jaxrnn.testing.arrays import Arrays, compiled, named
from jaxrnn.testing.cases import Problem, flat, inputs_of
from jaxrnn.testing.compare import Setup, begins, differences

__all__ = ["first_steps"]


def first_steps(setup: Setup, problem: Problem, cotangents: Arrays) -> dict[str, str]:
    """Where the gradient of each input begins to be wrong, by its share of every time step.

    The sequence is run as T sequences of one step, forwards and then back, so that the gradients
    are those of each step. It is the same sequence, because each piece does for many steps what it
    does for one. Each runs forwards, with the cut that is due before it in the order of
    processing.
    """
    T, (params, xs, state, reset_state, consts) = problem.case.T, problem.args
    order = range(T)[:: -1 if setup.reverse else 1]
    masks, ended = _masks_in_order(problem, order)
    same: dict[str, Any] = {
        name: value for name, value in problem.options.items() if name in ("residuals", "key")
    }
    drawn_consts, drawn_steps = None, None
    if "key" in same:
        assert problem.cell.draw is not None
        drawn_consts, drawn_steps = problem.cell.draw(same["key"], params, T, problem.case.batch)

    def compiled_step(unroll: Callable[..., Any]) -> Callable[..., tuple[Arrays, Arrays]]:
        @compiled
        def run(inputs: Arrays, at: Any, cotangents: Arrays) -> tuple[Arrays, Arrays]:
            x, state, masks, steps = at
            cell = problem.cell
            if "key" in same:
                # the arrays of this step, not those that the key gives a sequence of one
                cell = cell._replace(draw=lambda *_: (drawn_consts, steps))
            one = problem._replace(
                cell=cell, args=(params, x, state, reset_state, consts), options={**same, **masks}
            )
            values, pull, more = jax.vjp(flat(unroll, one), inputs, has_aux=True)
            return {**values, **more}, pull(cotangents)[0]

        return lambda *given: jax.tree.map(np.asarray, run(*given))

    rule, autodiff = compiled_step(unroll), compiled_step(unroll_reference)
    states, steps = named(["final_state"], [state]), {}
    dfinal = {path: leaf for path, leaf in cotangents.items() if path in states}
    for t in order:
        at = jax.tree.map(lambda a, t=t: a[t : t + 1], (xs, masks, drawn_steps))
        inputs = inputs_of(problem._replace(args=(params, at[0], state, reset_state, consts)))
        direct = {path: leaf[t : t + 1] for path, leaf in cotangents.items() if path not in states}
        steps[t] = inputs, (at[0], state, *at[1:]), direct
        values, _ = autodiff(inputs, steps[t][1], {**direct, **dfinal})
        state = jax.tree.unflatten(jax.tree.structure(state), [values[path] for path in states])

    def shares(run: Callable[..., tuple[Arrays, Arrays]]) -> Arrays:
        # a final state that is the reset state was made by no step
        carry = {p: d if ended is None else _zero_where(ended, d) for p, d in dfinal.items()}
        found = {}
        for t in reversed(order):
            inputs, at, direct = steps[t]
            _, found[t] = run(inputs, at, {**direct, **carry})
            carry = {p: found[t][p.replace("final_state", "initial_state", 1)] for p in carry}
        return {p: np.stack([found[t][p] for t in range(T)]) for p in inputs_of(problem) if T}

    wrong = differences(shares(rule), shares(autodiff), setup.tolerance)
    first = {p: begins(mask, 0, last=not setup.reverse) for p, (_, mask) in wrong.items()}
    return {path: first.get(path, "right at every single step") for path in inputs_of(problem)}


def _masks_in_order(
    problem: Problem, order: range
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The masks of a call that runs forwards in that order, and the rows that end on a reset."""
    options, T = problem.options, problem.case.T
    masks = {name: a for name, a in options.items() if name in ("mask", "detach", "resets")}
    if "lengths" in options:
        steps = np.arange(T).reshape((T,) + (1,) * len(problem.case.batch))
        masks["mask"] = steps < options["lengths"]
    if "resets" not in options or not options["reverse"]:
        return masks, None
    valid = masks.get("mask", np.ones((T, *problem.case.batch), bool))
    due = np.zeros(problem.case.batch, bool)
    cut = np.zeros((T, *problem.case.batch), bool)
    for t in order:
        cut[t] = due
        due = np.where(valid[t], options["resets"][t], due)
    return {**masks, "resets": cut}, due


def _zero_where(rows: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    return np.where(rows.reshape(rows.shape + (1,) * (leaf.ndim - rows.ndim)), 0, leaf)
