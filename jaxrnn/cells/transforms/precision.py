"""Mixed precision: products in few bits, the state in many."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Cell, Consts, Expects, Params, State, drawn_of
from jaxrnn.cells.gated import one_step
from jaxrnn.cells.transforms.common import (
    documented,
    each_form,
    memoised,
    require_vector_state,
    weight_of,
    with_weight,
)
from jaxrnn.checks import floating_dtype
from jaxrnn.dtypes import accumulation_dtype, in_dtype_of, zero_sums
from jaxrnn.products import (
    Weight,
    columns_apart,
    columns_gradient,
    input_gradient,
    stored,
    weight_gradient,
)

__all__ = ["with_dtypes"]


def _cast(tree: Any, dtype: Any) -> Any:
    """The floating leaves of a pytree in that dtype; None stays None."""

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


@dataclasses.dataclass(frozen=True)
class _Rounded(Weight):
    """A weight whose products are computed in another dtype than that of their operands."""

    w: Any
    dtype: Any

    def __rmatmul__(self, h: jax.Array) -> jax.Array:
        return (h.astype(self.dtype) @ self.w).astype(h.dtype)

    def input_gradient(self, dy: jax.Array) -> jax.Array:
        return input_gradient(dy.astype(self.dtype), self.w).astype(dy.dtype)

    def weight_gradient(self, h: jax.Array, dy: jax.Array) -> jax.Array:
        return weight_gradient(h.astype(self.dtype), dy.astype(self.dtype), self.w)

    def columns_apart(self, at: int) -> "tuple[_Rounded, _Rounded]":
        first, second = columns_apart(self.w, at)
        return _Rounded(first, self.dtype), _Rounded(second, self.dtype)

    def columns_gradient(self, first: jax.Array, second: jax.Array) -> jax.Array:
        return columns_gradient(self.w, first, second)

    @property
    def stored(self) -> jax.Array:
        return stored(self.w)

    def map(self, f: Callable[[jax.Array], Any]) -> "_Rounded":
        return _Rounded(self.w.map(f) if isinstance(self.w, Weight) else f(self.w), self.dtype)


def with_dtypes(
    cell: Cell, *, compute: jax.typing.DTypeLike, carry: jax.typing.DTypeLike = jnp.float32
) -> Cell:
    """The cell with products in one dtype, and its state and all that is elementwise in another.

    ``params`` and ``xs`` have one dtype, float32 say, and so have their gradients. The operands of
    every product are rounded to ``compute``; sums over time and rows are taken in float32 or more.
    The state, and so the output ``h``, is in ``carry``. A cell state of 16 bits stops growing where
    what is added is less than its last place; in ``carry`` it does not.

    Args:
        cell: a cell with its recurrent weight as the field ``w_hh`` of its params.
        compute: `jax.numpy.bfloat16` or another floating dtype.
        carry: the dtype of the state.

    Raises:
        TypeError: no cell, no floating dtype.
        ValueError: a cell whose output is a function of its state.
    """
    require_vector_state(cell, "with_dtypes")
    return _with_dtypes(cell, floating_dtype("compute", compute), floating_dtype("carry", carry))


@memoised
def _with_dtypes(cell: Cell, compute: jnp.dtype, carry: jnp.dtype) -> Cell:
    def of_weight(w: Any) -> Any:
        return w.map(of_weight) if isinstance(w, Weight) else w.astype(compute)

    def in_compute(params: Params) -> Params:
        others = _cast(with_weight(params, lambda w: None), compute)
        return with_weight(others, lambda _: of_weight(weight_of(params)))

    def in_carry(params: Params) -> Params:
        """All in ``carry``, but for the recurrent weight, whose products are in ``compute``."""
        others = _cast(with_weight(params, lambda w: None), carry)
        return with_weight(others, lambda _: _Rounded(of_weight(weight_of(params)), compute))

    def expects(params: Params) -> Expects:
        inner = cell.expects(params)
        state = jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape, carry)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else leaf
            ),
            inner.state,
        )
        return inner._replace(state=state)

    def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> State:
        return _cast(cell.initial_state(params, batch_shape), carry)

    def project(params: Params, xs: Any, consts: Consts) -> Any:
        return cell.project(in_compute(params), _cast(xs, compute), consts)

    def advance(params: Params, before: State, inputs: Any, consts: Consts) -> tuple[State, Any]:
        return cell.advance(in_carry(params), before, _cast(inputs, carry), _cast(consts, carry))

    def linearize(
        params: Params, inputs: Any, before: State, after: State, gates: Any, consts: Consts
    ) -> Any:
        inputs, consts = _cast((inputs, consts), carry)
        return cell.linearize(in_carry(params), inputs, before, after, gates, consts)

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        def rounded_pull(
            params: Params, dafter: State, factors: Any, consts: Consts
        ) -> tuple[State, Any]:
            return pull(in_carry(params), dafter, factors, _cast(consts, carry))

        return rounded_pull

    def gradients(
        params: Params,
        xs: Any,
        before: State,
        after: State,
        gates: Any,
        deltas: Any,
        consts: Consts,
    ) -> tuple[Params, Any, Consts]:
        few = _cast((xs, before, after, gates, deltas, consts), compute)
        dparams, dxs, dconsts = cell.gradients(in_compute(params), *few)
        # params have one dtype, and transforms around this one a weight that is no array
        first, *_ = jax.tree.leaves(with_weight(params, lambda w: None))
        dparams = _cast(dparams, accumulation_dtype(first.dtype))
        dconsts = in_dtype_of(zero_sums(drawn_of(consts).given), dconsts)
        return dparams, in_dtype_of(drawn_of(xs).given, dxs), dconsts

    name = f"{cell.name} in {compute.name} with a state of {carry.name}"
    return cell._replace(
        name=name,
        initial_state=initial_state,
        step=one_step(expects, project, advance),
        expects=expects,
        project=project,
        advance=advance,
        linearize=linearize,
        pull=each_form(cell.pull, pulled),
        gradients=gradients,
        doc=documented(name, with_dtypes, cell),
    )
