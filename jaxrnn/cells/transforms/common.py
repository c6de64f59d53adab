"""Helpers of the transforms: refusals, `Cell.doc`, the recurrent weight, and arrays that are drawn.

A transform is a public function that checks and normalises its arguments, and a `memoised` one that
makes the cell.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from jaxrnn.cells.cell import Cell, Consts, Drawn, Forms, Params, documentation, drawn_of
from jaxrnn.checks import describe, require_hashable

__all__ = [
    "dense_params",
    "documented",
    "draws_beside",
    "each_form",
    "memoised",
    "own_and_inner",
    "require_plain_memory",
    "require_vector_state",
    "weight_of",
    "with_weight",
]

# bounded: a cell holds the cell that it is made of, and whatever that closes over
memoised = functools.lru_cache(maxsize=128)


def documented(name: str, transform: Callable[..., Cell], cell: Cell, *records: type) -> str:
    """`Cell.doc` of a transformed cell: its name, the transform's equations, the inner cell's."""
    equations, _, _ = inspect.cleandoc(transform.__doc__ or "").partition("\n\nArgs:")
    own = documentation(f"{name}.\n\n{equations}", *records)
    return own if cell.doc is None else f"{own}\n\n{cell.name}:\n\n{cell.doc}"


def require_vector_state(cell: Any, transform: str) -> None:
    """Refuse what is no cell, and a cell whose output is no field of its state."""
    if not isinstance(cell, Cell):
        raise TypeError(f"`cell` must be a jaxrnn.Cell such as jaxrnn.LSTM; got {describe(cell)}")
    require_hashable(cell)
    if cell.output is not None:
        raise ValueError(
            f"`{transform}` changes the state `h` that a cell has as its output, and the output of "
            f"{cell.name} is a function of its state: write the change into its step"
        )


def require_plain_memory(cell: Cell, state: Any, name: str) -> None:
    """Refuse to change a cell state ``c`` that means something only beside another field.

    Raises:
        ValueError: `name` says which argument asks for it.
    """
    if hasattr(state, "m"):
        raise ValueError(
            f"{name} must leave `c` of {cell.name} alone: it is relative to the stabiliser `m` of "
            "its own step, so that neither a limit nor the state of another step fits it"
        )


def dense_params(cell: Cell, input_size: int, hidden_size: int, *, made: str) -> Params:
    """The shapes of the params of a cell whose recurrent weight is one matrix.

    Raises:
        TypeError: a cell without `init`. ``made`` says what the transform makes of the cell.
        ValueError: a cell with heads or a projection.
    """
    if cell.init is None:
        raise TypeError(
            f"`cell` must have `init` to be {made}, because its recurrent weight becomes another; "
            f"{cell.name} has none"
        )
    params, refusal = None, None
    try:
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, hidden_size))
    except ValueError as error:
        # no multiple of the heads that it has
        refusal = error
    if len(getattr(getattr(params, "w_hh", None), "shape", ())) != 2:
        raise ValueError(
            f"`cell` must have a dense recurrent weight `w_hh` as a field of its params to be "
            f"{made}, neither heads already nor a projection; got {cell.name}"
        ) from refusal
    return params


def with_weight(params: Params, make: Callable[[Any], Any]) -> Params:
    """The params with ``make(w_hh)`` in the place of the recurrent weight.

    Raises:
        TypeError: params without such a field.
    """
    if hasattr(params, "w_hh"):
        return params._replace(w_hh=make(params.w_hh))
    # projected params hold the cell's
    if hasattr(params, "cell"):
        return params._replace(cell=with_weight(params.cell, make))
    raise TypeError(f"`params` must have the recurrent weight as `w_hh`; got {describe(params)}")


def weight_of(params: Params) -> Any:
    """The recurrent weight of the params."""
    return params.w_hh if hasattr(params, "w_hh") else weight_of(params.cell)


def each_form(
    pull: Callable[..., Any], make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """``make(pull)``, of both forms where there are two."""
    if isinstance(pull, Forms):
        return Forms(make(pull.default), gpu=make(pull.gpu))
    return make(pull)


def own_and_inner(cell: Cell, value: Any) -> tuple[Any, Any]:
    """``(own, inner)`` of ``xs``, ``x`` or ``consts``: the arrays that the transform drew, or None,
    and the argument as the pieces of ``cell`` take it.
    """
    given, drawn = drawn_of(value)
    own, inner = (None, None) if drawn is None else drawn
    return own, given if cell.draw is None else Drawn(given, inner)


def draws_beside(cell: Cell, own_draw: Callable[..., tuple[Any, Any]]) -> dict[str, Any]:
    """`Cell.draw` and `Cell.consts_rows` of a cell around ``cell`` that draws arrays of its own.

    The consts that ``own_draw`` draws start with the batch axes. What both draw is kept in pairs,
    which `own_and_inner` takes apart.
    """

    def draw(key: Any, params: Params, T: int, batch_shape: tuple[int, ...]) -> tuple[Any, Any]:
        own_key, inner_key = jax.random.split(key)
        own_consts, own_steps = own_draw(own_key, params, T, batch_shape)
        consts, steps = None, None
        if cell.draw is not None:
            consts, steps = cell.draw(inner_key, params, T, batch_shape)
        return (own_consts, consts), (own_steps, steps)

    def consts_rows(consts: Consts) -> Drawn:
        own, inner = own_and_inner(cell, consts)
        rows: Any = None
        if cell.consts_rows is not None:
            rows = cell.consts_rows(inner)
        elif jax.tree.leaves(drawn_of(inner).given):
            raise TypeError(f"`consts` must be None: {cell.name} takes none")
        given, drawn = rows if isinstance(rows, Drawn) else (rows, rows)
        if drawn_of(consts).drawn is None:
            return Drawn(given, None)
        if drawn_of(inner).drawn is None:
            drawn = None
        return Drawn(given, (None if own is None else True, drawn))

    return {"draw": draw, "consts_rows": consts_rows}
