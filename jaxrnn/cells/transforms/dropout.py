"""Noise on the recurrent path: recurrent dropout and zoneout.

Both draw from the ``key`` of `jaxrnn.unroll` and `jaxrnn.Network.apply`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Cell, Consts, Params, State
from jaxrnn.cells.gated import one_step
from jaxrnn.cells.transforms.common import (
    documented,
    draws_beside,
    each_form,
    memoised,
    own_and_inner,
    require_plain_memory,
    require_vector_state,
    with_weight,
)
from jaxrnn.checks import rate_of
from jaxrnn.masks import random_mask
from jaxrnn.products import (
    Weight,
    columns_apart,
    columns_gradient,
    input_gradient,
    stored,
    weight_gradient,
)

__all__ = ["recurrent_dropout", "zoneout"]


@dataclasses.dataclass(frozen=True)
class _Masked(Weight):
    """``(mask * h) W``, and its adjoint ``mask * (dy W^T)``; dW reads ``mask * h``."""

    w: Any
    mask: jax.Array

    def _masked(self, h: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.mask, h.shape).astype(h.dtype) * h

    def __rmatmul__(self, h: jax.Array) -> jax.Array:
        return self._masked(h) @ self.w

    def input_gradient(self, dy: jax.Array) -> jax.Array:
        return self._masked(input_gradient(dy, self.w))

    def weight_gradient(self, h: jax.Array, dy: jax.Array) -> jax.Array:
        return weight_gradient(self._masked(h), dy, self.w)

    def columns_apart(self, at: int) -> "tuple[_Masked, _Masked]":
        first, second = columns_apart(self.w, at)
        return _Masked(first, self.mask), _Masked(second, self.mask)

    def columns_gradient(self, first: jax.Array, second: jax.Array) -> jax.Array:
        return columns_gradient(self.w, first, second)

    @property
    def stored(self) -> jax.Array:
        return stored(self.w)

    def map(self, f: Callable[[jax.Array], Any]) -> "_Masked":
        return _Masked(self.w.map(f) if isinstance(self.w, Weight) else f(self.w), self.mask)


def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    """The cell whose recurrent products read ``m * h``, with one mask m for each sequence.

        m ~ Bernoulli(1 - rate) / (1 - rate), one entry per unit and row, the same at every step
        u_t = (m * h_{t-1}) W_hh
        dh_{t-1} += m * (du_t W_hh^T),   dW_hh = sum_t (m * h_{t-1})^T du_t

    Where a cell reads ``h`` beside its products, as the GRU's update gate does, it reads all of it.
    Without a key there is no mask. Reference: Y. Gal and Z. Ghahramani, "A theoretically grounded
    application of dropout in recurrent neural networks", 2016.

    Args:
        cell: with its recurrent weight as the field ``w_hh`` of its params.
        rate: the share of units that is dropped, in 0..1, 1 excluded.

    Raises:
        TypeError: no cell, no number.
        ValueError: a rate out of range; a cell whose output is a function of its state.
    """
    require_vector_state(cell, "recurrent_dropout")
    return _recurrent_dropout(cell, rate_of("rate", rate))


@memoised
def _recurrent_dropout(cell: Cell, rate: float) -> Cell:
    kept = 1 - rate

    def draw(
        key: jax.Array, params: Params, T: int, batch_shape: tuple[int, ...]
    ) -> tuple[jax.Array, None]:
        like = cell.expects(params).state.h
        mask = random_mask(key, kept, (*batch_shape, *like.shape))
        return mask.astype(like.dtype) / kept, None

    def of(params: Params, consts: Consts) -> tuple[Params, Consts]:
        mask, inner = own_and_inner(cell, consts)
        if mask is None:
            return params, inner
        return with_weight(params, lambda w: _Masked(w, mask)), inner

    def project(params: Params, xs: Any, consts: Consts) -> Any:
        return cell.project(params, own_and_inner(cell, xs)[1], own_and_inner(cell, consts)[1])

    def advance(params: Params, before: State, inputs: Any, consts: Consts) -> tuple[State, Any]:
        params, inner = of(params, consts)
        return cell.advance(params, before, inputs, inner)

    def linearize(
        params: Params, inputs: Any, before: State, after: State, gates: Any, consts: Consts
    ) -> Any:
        params, inner = of(params, consts)
        return cell.linearize(params, inputs, before, after, gates, inner)

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        def masked_pull(
            params: Params, dafter: State, factors: Any, consts: Consts
        ) -> tuple[State, Any]:
            params, inner = of(params, consts)
            return pull(params, dafter, factors, inner)

        return masked_pull

    def gradients(
        params: Params,
        xs: Any,
        before: State,
        after: State,
        gates: Any,
        deltas: Any,
        consts: Consts,
    ) -> tuple[Params, Any, Consts]:
        (params, inner), (_, xs) = of(params, consts), own_and_inner(cell, xs)
        return cell.gradients(params, xs, before, after, gates, deltas, inner)

    name = f"{cell.name} with recurrent dropout {rate:g}"
    return cell._replace(
        name=name,
        step=one_step(cell.expects, project, advance),
        project=project,
        advance=advance,
        linearize=linearize,
        pull=each_form(cell.pull, pulled),
        gradients=gradients,
        doc=documented(name, recurrent_dropout, cell),
        **draws_beside(cell, draw),
    )


def zoneout(cell: Cell, *, h: float = 0.0, c: float = 0.0) -> Cell:
    """The cell whose units keep their state of the step before, at random at every step.

        k_t ~ Bernoulli(rate), one entry per unit, row and step
        h_t = k_t * h_{t-1} + (1 - k_t) * h'_t           h'_t as the cell makes it; the same for c
        dh'_t = (1 - k_t) * dh_t,   dh_{t-1} += k_t * dh_t

    Without a key, ``k_t`` is its expectation, the rate itself. Reference: D. Krueger et al.,
    "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017.

    Args:
        cell: any cell whose output is its state's ``h``.
        h, c: the rates of these fields of the state, in 0..1, 1 excluded.

    Raises:
        TypeError: no cell, no numbers.
        ValueError: a rate out of range; a rate of a field that the cell's state does not have, at
            the first use; a cell whose output is a function of its state.
    """
    require_vector_state(cell, "zoneout")
    h, c = rate_of("h", h), rate_of("c", c)
    if not (h or c):
        raise ValueError("`h` or `c` must be above 0: a rate for one of the fields of the state")
    return _zoneout(cell, h, c)


@memoised
def _zoneout(cell: Cell, h: float, c: float) -> Cell:
    rates = {name: rate for name, rate in (("h", h), ("c", c)) if rate}

    def draw(
        key: jax.Array, params: Params, T: int, batch_shape: tuple[int, ...]
    ) -> tuple[None, dict[str, jax.Array]]:
        like = fields_of(cell.expects(params).state)
        keys = jax.random.split(key, len(rates))
        return None, {
            name: random_mask(each, rates[name], (T, *batch_shape, *like[name].shape))
            for each, name in zip(keys, rates, strict=True)
        }

    def fields_of(state: State) -> dict[str, Any]:
        missing = [name for name in rates if not hasattr(state, name)]
        if missing:
            raise ValueError(
                f"`{missing[0]}` must be 0: the state of {cell.name} has no such field, only "
                f"{', '.join(state._fields)}"
            )
        if "c" in rates:
            require_plain_memory(cell, state, "`zoneout`")
        return state._asdict()

    def mixed(kept: dict[str, jax.Array] | None, before: State, after: State) -> State:
        """``before`` where a unit is kept, else ``after``."""
        old, new = fields_of(before), fields_of(after)
        if kept is None:
            found = {name: r * old[name] + (1 - r) * new[name] for name, r in rates.items()}
        else:
            found = {name: jnp.where(kept[name], old[name], new[name]) for name in rates}
        return after._replace(**found)

    def project(params: Params, xs: Any, consts: Consts) -> tuple[Any, Any]:
        kept, inner = own_and_inner(cell, xs)
        return cell.project(params, inner, own_and_inner(cell, consts)[1]), kept

    def advance(
        params: Params, before: State, inputs: tuple[Any, Any], consts: Consts
    ) -> tuple[State, tuple[State, Any]]:
        inner, kept = inputs
        made = cell.advance(params, before, inner, own_and_inner(cell, consts)[1])
        return mixed(kept, before, made[0]), made

    def linearize(
        params: Params,
        inputs: tuple[Any, Any],
        before: State,
        after: State,
        made: tuple[State, Any],
        consts: Consts,
    ) -> tuple[Any, Any]:
        inner, kept = inputs
        factors = cell.linearize(params, inner, before, *made, own_and_inner(cell, consts)[1])
        return factors, kept

    def arrange(factors: tuple[Any, Any]) -> tuple[Any, Any]:
        inner, kept = factors
        return inner if cell.arrange is None else cell.arrange(inner), kept

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        def mixed_pull(
            params: Params, dafter: State, factors: tuple[Any, Any], consts: Consts
        ) -> tuple[State, Any]:
            inner, kept = factors
            zeros = jax.tree.map(jnp.zeros_like, dafter)
            dbefore, deltas = pull(
                params, mixed(kept, zeros, dafter), inner, own_and_inner(cell, consts)[1]
            )
            direct = fields_of(mixed(kept, dafter, zeros))
            dbefore = dbefore._replace(
                **{name: getattr(dbefore, name) + direct[name] for name in rates}
            )
            return dbefore, deltas

        return mixed_pull

    def gradients(
        params: Params,
        xs: Any,
        before: State,
        after: State,
        made: tuple[State, Any],
        deltas: Any,
        consts: Consts,
    ) -> tuple[Params, Any, Consts]:
        (_, xs), (_, consts) = own_and_inner(cell, xs), own_and_inner(cell, consts)
        return cell.gradients(params, xs, before, *made, deltas, consts)

    def slopes(after: State, made: tuple[State, Any]) -> Any:
        assert cell.slopes is not None
        return cell.slopes(*made)

    name = f"{cell.name} with zoneout " + " ".join(f"{n} {r:g}" for n, r in rates.items())
    return cell._replace(
        name=name,
        step=one_step(cell.expects, project, advance),
        project=project,
        advance=advance,
        linearize=linearize,
        arrange=arrange,
        pull=each_form(cell.pull, pulled),
        gradients=gradients,
        slopes=None if cell.slopes is None else slopes,
        doc=documented(name, zoneout, cell),
        **draws_beside(cell, draw),
    )
