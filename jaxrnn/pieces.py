"""The pieces of a cell, as the engine calls them: one bundle, and what they return is checked.

A shape that differs would be broadcast, and the wrong sum would go unnoticed.
"""

from typing import Any, NamedTuple

import chex
import jax

from jaxrnn.cells.cell import Cell, Consts, Drawn, Params, State
from jaxrnn.checks import describe
from jaxrnn.dtypes import differentiable, zero_sums

__all__ = [
    "Bound",
    "advance",
    "advance_in_bulk",
    "consts_rows",
    "gradients",
    "linearize",
    "output",
    "project",
    "pull",
    "with_drawn",
]


class Bound(NamedTuple):
    """A cell with the arrays that it reads at every step, as its pieces take them."""

    cell: Cell
    params: Params
    consts: Consts


def with_drawn(cell: Cell, given: Any, drawn: Any) -> Any:
    """``xs`` or ``consts`` as the pieces of the cell take them."""
    return given if cell.draw is None else Drawn(given, drawn)


def consts_rows(cell: Cell, consts: Any, drawn: Any) -> tuple[Any, Any]:
    """Booleans for the leaves of the given and drawn consts: True if batch axes come first."""
    both = with_drawn(cell, consts, drawn)
    if not jax.tree.leaves(both):
        return consts, drawn
    if cell.consts_rows is None:
        raise TypeError(f"{cell.name} draws consts, so it must have `consts_rows`")
    prefix = cell.consts_rows(both)
    try:
        rows = jax.tree.broadcast(prefix, both)
    except ValueError as error:
        raise TypeError(
            f"{cell.name}.consts_rows must return booleans for {describe(both)}, or a prefix of "
            f"it; got {describe(prefix)}"
        ) from error
    return tuple(rows) if isinstance(rows, Drawn) else (rows, None)


def project(bound: Bound, xs: Any) -> Any:
    return bound.cell.project(bound.params, xs, bound.consts)


def advance(bound: Bound, before: State, inputs: Any) -> tuple[State, Any]:
    cell, params, consts = bound

    def run(before: State) -> Any:
        return cell.advance(params, before, inputs, consts)

    # a limit of the adjoint is a rule within `advance`, of the first derivative: here, second ones
    # run through, and autodiff's forward half of a rule has the values without it
    made = run(before) if cell.linear else jax.vjp(run, before)[0]
    after, gates = _parts(cell, "advance", 2, made)
    _require_like(cell, "advance", "state", after, before)
    return after, gates


def advance_in_bulk(bound: Bound, before: State, inputs: Any) -> tuple[State, Any]:
    """`advance` of many steps at once, from states that are known."""
    return jax.vmap(lambda before, inputs: advance(bound, before, inputs))(before, inputs)


def output(bound: Bound, after: State, gates: Any) -> Any:
    cell, params, consts = bound
    return after.h if cell.output is None else cell.output(params, after, gates, consts)


def linearize(bound: Bound, inputs: Any, before: State, after: State, gates: Any) -> Any:
    """The factors, as `pull` reads them fastest."""
    cell, params, consts = bound
    factors = cell.linearize(params, inputs, before, after, gates, consts)
    return factors if cell.arrange is None else cell.arrange(factors)


def pull(bound: Bound, dafter: State, dh: Any, factors: Any) -> tuple[State, Any]:
    """`Cell.pull`; ``dh`` is the output's adjoint where the output is no field of the state."""
    cell, params, consts = bound
    adjoint = dafter if cell.output is None else (dafter, dh)
    dbefore, deltas = _parts(cell, "pull", 2, cell.pull(params, adjoint, factors, consts))
    _require_like(cell, "pull", "dbefore", dbefore, dafter)
    return dbefore, deltas


def gradients(
    bound: Bound, xs: Any, before: State, after: State, gates: Any, deltas: Any
) -> tuple[Params, Any, Consts]:
    """`Cell.gradients` of any number of steps: ``(dparams, dxs, dconsts)``.

    The sums are in the accumulation dtype: `jaxrnn.dtypes.in_dtype_of` rounds them once all are
    added.
    """
    cell, params, consts = bound
    sums = cell.gradients(params, xs, before, after, gates, deltas, consts)
    dparams, dxs, dconsts = _parts(cell, "gradients", 3, sums)
    given_xs, given_consts = (a.given if isinstance(a, Drawn) else a for a in (xs, consts))
    _require_like(cell, "gradients", "dparams", dparams, zero_sums(params))
    _require_like(cell, "gradients", "dxs", dxs, differentiable(given_xs))
    _require_like(cell, "gradients", "dconsts", dconsts, zero_sums(given_consts))
    return dparams, dxs, dconsts


def _parts(cell: Cell, piece: str, count: int, returned: Any) -> tuple[Any, ...]:
    if not isinstance(returned, tuple) or len(returned) != count:
        raise TypeError(f"{cell.name}.{piece} must return {count} values; got {describe(returned)}")
    return returned


def _require_like(cell: Cell, piece: str, name: str, value: Any, like: Any) -> None:
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(value, like)
    except (AssertionError, AttributeError, ValueError) as error:
        raise TypeError(
            f"{cell.name}.{piece} must return `{name}` as {describe(like)}; got {describe(value)}"
        ) from error
