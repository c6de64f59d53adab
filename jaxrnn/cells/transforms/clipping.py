"""Limits inside of the recursion: of the cell state, and of the adjoint on its way back."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells.cell import Cell, Consts, Params, State
from jaxrnn.cells.gated import one_step
from jaxrnn.cells.transforms.common import (
    documented,
    each_form,
    memoised,
    require_plain_memory,
    require_vector_state,
)
from jaxrnn.checks import positive
from jaxrnn.dtypes import accumulation_dtype

__all__ = ["clip_adjoint", "clipped"]


def clipped(cell: Cell, limit: float) -> Cell:
    """The cell that hands on its cell state between ``-limit`` and ``limit``.

        c_t = min(max(c'_t, -limit), limit)              c'_t as the cell makes it
        dc'_t = dc_t where |c'_t| < limit, else 0

    ``h_t`` is made of ``c'_t``, before it is limited.

    Args:
        cell: a cell with a state ``c``, such as `jaxrnn.LSTM`.
        limit: above 0.

    Raises:
        TypeError: no cell, no number.
        ValueError: a limit of 0 or below; at the first use, a cell without ``c``; a cell whose
            output is a function of its state.
    """
    require_vector_state(cell, "clipped")
    return _clipped(cell, positive("limit", limit))


@memoised
def _clipped(cell: Cell, limit: float) -> Cell:
    def c_of(state: State) -> jax.Array:
        if not hasattr(state, "c"):
            raise ValueError(
                f"`cell` must have a cell state `c` to be clipped; the state of {cell.name} has "
                f"{', '.join(state._fields)}"
            )
        require_plain_memory(cell, state, "`clipped`")
        return state.c

    def advance(
        params: Params, before: State, inputs: Any, consts: Consts
    ) -> tuple[State, tuple[jax.Array, Any]]:
        made, gates = cell.advance(params, before, inputs, consts)
        c = c_of(made)
        return made._replace(c=_between(c, limit)), (c, gates)

    def linearize(
        params: Params, inputs: Any, before: State, after: State, kept: Any, consts: Consts
    ) -> tuple[Any, jax.Array]:
        c, gates = kept
        made = after._replace(c=c)
        return cell.linearize(params, inputs, before, made, gates, consts), jnp.abs(c) < limit

    def arrange(factors: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        inner, inside = factors
        return inner if cell.arrange is None else cell.arrange(inner), inside

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        def clipped_pull(
            params: Params, dafter: State, factors: tuple[Any, jax.Array], consts: Consts
        ) -> tuple[State, Any]:
            inner, inside = factors
            dc = jnp.where(inside, dafter.c, jnp.zeros_like(dafter.c))
            return pull(params, dafter._replace(c=dc), inner, consts)

        return clipped_pull

    def gradients(
        params: Params, xs: Any, before: State, after: State, kept: Any, deltas: Any, consts: Consts
    ) -> tuple[Params, Any, Consts]:
        c, gates = kept
        return cell.gradients(params, xs, before, after._replace(c=c), gates, deltas, consts)

    def slopes(after: State, kept: tuple[jax.Array, Any]) -> Any:
        c, gates = kept
        assert cell.slopes is not None
        return cell.slopes(after._replace(c=c), gates)

    name = f"{cell.name} clipped to {limit:g}"
    return cell._replace(
        name=name,
        step=one_step(cell.expects, cell.project, advance),
        advance=advance,
        linearize=linearize,
        arrange=arrange,
        pull=each_form(cell.pull, pulled),
        gradients=gradients,
        slopes=None if cell.slopes is None else slopes,
        doc=documented(name, clipped, cell),
    )


def clip_adjoint(cell: Cell, *, value: float | None = None, norm: float | None = None) -> Cell:
    """The cell whose adjoint is limited at every step on its way back through time.

        value:  ds_{t-1} = min(max(ds', -value), value)
        norm:   ds_{t-1} = ds' * min(1, norm / |ds'|)       |ds'| of a row, over all of its state

    ``ds'`` is the adjoint of the state before step t as it leaves that step, before the readers of
    ``h_{t-1}`` add theirs. The outputs are the cell's; the gradient is that of no function. Forward
    mode is refused by JAX, and `jaxrnn.diagnostics` that need a linear adjoint refuse the cell.

    Args:
        cell: any cell whose output is its state's ``h``.
        value, norm: one of the two, above 0.

    Raises:
        TypeError: no cell, no number.
        ValueError: both limits or none; a limit of 0 or below; a cell whose output is a function of
            its state.
    """
    require_vector_state(cell, "clip_adjoint")
    if (value is None) == (norm is None):
        raise ValueError(f"`value` or `norm` must be given, one of the two; got {value=}, {norm=}")
    if norm is None:
        return _clip_adjoint(cell, "value", positive("value", value))
    return _clip_adjoint(cell, "norm", positive("norm", norm))


@memoised
def _clip_adjoint(cell: Cell, of: str, limit: float) -> Cell:
    limit_of = {"value": _limited_by_value, "norm": _limited_by_norm}[of]

    def limited(ds: State) -> State:
        return limit_of(ds, limit)

    # autodiff of the step, as in `unroll_reference`, uses this rule; the engine uses `pull`, and
    # takes of `advance` the values alone
    @jax.custom_vjp
    def passed_on(before: State) -> State:
        return before

    passed_on.defvjp(lambda before: (before, None), lambda _, ds: (limited(ds),))

    def advance(params: Params, before: State, inputs: Any, consts: Consts) -> tuple[State, Any]:
        return cell.advance(params, passed_on(before), inputs, consts)

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        def clipped_pull(
            params: Params, dafter: State, factors: Any, consts: Consts
        ) -> tuple[State, Any]:
            dbefore, deltas = pull(params, dafter, factors, consts)
            return limited(dbefore), deltas

        return clipped_pull

    name = f"{cell.name} with its adjoint clipped to {of} {limit:g}"
    return cell._replace(
        name=name,
        step=one_step(cell.expects, cell.project, advance),
        advance=advance,
        pull=each_form(cell.pull, pulled),
        linear=False,
        doc=documented(name, clip_adjoint, cell),
    )


def _between(a: jax.Array, limit: float) -> jax.Array:
    """``a``, no less than ``-limit`` and no more than ``limit``."""
    most = jnp.asarray(limit, a.dtype)
    return lax.clamp(-most, a, most)


def _limited_by_value(ds: State, limit: float) -> State:
    return jax.tree.map(lambda leaf: _between(leaf, limit), ds)


def _limited_by_norm(ds: State, limit: float) -> State:
    """Each row of ``ds`` as it is, or shortened to that norm over all leaves."""
    leaves = jax.tree.leaves(ds)
    rows = ds.h.ndim - 1  # axes of the batch
    wide = accumulation_dtype(max((leaf.dtype for leaf in leaves), key=lambda d: jnp.finfo(d).bits))

    def of_row(reduce: Callable[..., jax.Array], leaf: jax.Array) -> jax.Array:
        return reduce(leaf.astype(wide), axis=tuple(range(rows, leaf.ndim)))

    def over_units(per_row: jax.Array, leaf: jax.Array) -> jax.Array:
        own = per_row.reshape(*per_row.shape, *[1] * (leaf.ndim - rows))
        return jnp.broadcast_to(own, leaf.shape)

    # squares of an adjoint that explodes are infinite, so entries are taken relative to the largest
    # one, or to a number whose inverse is not subnormal: XLA multiplies by it, and takes it for 0
    largest = functools.reduce(jnp.maximum, (of_row(jnp.max, jnp.abs(leaf)) for leaf in leaves))
    least, most = float(jnp.finfo(wide).tiny), float(jnp.finfo(wide).max) ** 0.75
    # any constant here gives the same derivatives
    unit = lax.stop_gradient(jnp.clip(largest, least, most))

    def relative(leaf: jax.Array) -> jax.Array:
        return leaf.astype(wide) / over_units(unit, leaf)

    square = functools.reduce(jnp.add, (of_row(jnp.sum, relative(leaf) ** 2) for leaf in leaves))
    beyond = square > (limit / unit) ** 2
    # the root has no slope at 0
    scale = limit / jnp.sqrt(jnp.where(beyond, square, 1))

    def shortened(leaf: jax.Array) -> jax.Array:
        found = relative(leaf) * over_units(scale, leaf)
        return jnp.where(over_units(beyond, leaf), found.astype(leaf.dtype), leaf)

    return jax.tree.map(shortened, ds)
