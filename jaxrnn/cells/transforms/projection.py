"""A smaller hidden state: the output of the cell, projected."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Cell, Consts, Expects, Params, State
from jaxrnn.cells.gated import one_step, zero_start
from jaxrnn.cells.transforms.common import (
    dense_params,
    documented,
    each_form,
    memoised,
    require_vector_state,
    with_weight,
)
from jaxrnn.checks import describe, size
from jaxrnn.initializers import Initializer, glorot_uniform
from jaxrnn.products import input_gradient, weight_gradient

__all__ = ["ProjectedParams", "projected"]


class ProjectedParams(NamedTuple):
    """Weights of a projected cell: the cell's own, with ``w_hh [P, G*H]``, and ``w_hr [H, P]``."""

    cell: Params
    w_hr: Any


def projected(cell: Cell, projection_size: int) -> Cell:
    """The cell whose output of H units is projected to P, which the recurrent product then reads.

        h_t = m_t W_hr                                     m_t [..., H] as the cell makes it
        dm_t = dh_t W_hr^T,   dW_hr = sum_t m_t^T dh_t

    Two products per step: this one, and the recurrent one, which is smaller. PyTorch's
    ``proj_size``. Reference: H. Sak, A. Senior and F. Beaufays, "Long short-term memory recurrent
    neural network architectures for large scale acoustic modeling", 2014.

    Args:
        cell: a cell that reads ``h`` in its recurrent product alone, such as `jaxrnn.LSTM`.
        projection_size: P, at most H.

    Raises:
        TypeError: no cell, a cell without ``init``, no int.
        ValueError: a size below 1; a cell that reads ``h`` unit by unit, such as the GRU, draws,
            takes consts, or has heads or a projection; at `init`, a size above H.
    """
    require_vector_state(cell, "projected")
    P = size("projection_size", projection_size)
    if cell.draw is not None:
        raise ValueError(
            f"`cell` must draw nothing to be projected, because it would draw for units that the "
            f"projection does not have: project first, then add what {cell.name} has"
        )
    if cell.consts_rows is not None:
        raise ValueError(
            f"`cell` must take no consts to be projected, because they may be for units that the "
            f"projection does not have; {cell.name} takes some"
        )
    return _projected(cell, P)


@memoised
def _projected(cell: Cell, P: int) -> Cell:
    if not _reads_h_in_products_alone(cell):
        raise ValueError(
            f"`cell` must read `h` in its recurrent product alone to be projected; {cell.name} "
            "reads it unit by unit too, and a projection has other units"
        )

    def init(
        key: jax.Array,
        input_size: int,
        hidden_size: int,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        projection_init: Initializer = glorot_uniform,
        **options: Any,
    ) -> ProjectedParams:
        """Initial weights; of the recurrent one as many rows as the projection has."""
        H = size("hidden_size", hidden_size)
        if P > H:
            raise ValueError(f"`hidden_size` must be at least {P}, the projection's; got {H}")
        cell_key, projection_key = jax.random.split(key)
        inner = cell.init(cell_key, input_size, H, dtype=dtype, **options)
        return ProjectedParams(
            cell=with_weight(inner, lambda w: w[:P]),
            w_hr=projection_init(projection_key, (H, P), dtype),
        )

    def expects(params: ProjectedParams) -> Expects:
        if not isinstance(params, ProjectedParams):
            raise TypeError(
                f"`params` must be ProjectedParams of {cell.name}; got {describe(params)}"
            )
        H = params.w_hr.shape[0]
        inner = cell.expects(with_weight(params.cell, lambda w: _rows(w, H)))
        like = with_weight(inner.params, lambda w: _rows(w, P))
        h = inner.state.h
        return Expects(
            params=ProjectedParams(like, jax.ShapeDtypeStruct((H, P), inner.x.dtype)),
            x=inner.x,
            state=inner.state._replace(h=jax.ShapeDtypeStruct((P,), h.dtype)),
        )

    def project(params: ProjectedParams, xs: Any, consts: Consts) -> Any:
        return cell.project(params.cell, xs, consts)

    def advance(
        params: ProjectedParams, before: State, inputs: Any, consts: Consts
    ) -> tuple[State, tuple[jax.Array, Any]]:
        made, gates = cell.advance(params.cell, before, inputs, consts)
        return made._replace(h=made.h @ params.w_hr.astype(made.h.dtype)), (made.h, gates)

    def linearize(
        params: ProjectedParams,
        inputs: Any,
        before: State,
        after: State,
        kept: tuple[jax.Array, Any],
        consts: Consts,
    ) -> Any:
        m, gates = kept
        return cell.linearize(params.cell, inputs, before, after._replace(h=m), gates, consts)

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        def projected_pull(
            params: ProjectedParams, dafter: State, factors: Any, consts: Consts
        ) -> tuple[State, tuple[Any, jax.Array]]:
            dm = input_gradient(dafter.h, params.w_hr.astype(dafter.h.dtype))
            dbefore, deltas = pull(params.cell, dafter._replace(h=dm), factors, consts)
            return dbefore, (deltas, dafter.h)

        return projected_pull

    def gradients(
        params: ProjectedParams,
        xs: Any,
        before: State,
        after: State,
        kept: tuple[jax.Array, Any],
        deltas: tuple[Any, jax.Array],
        consts: Consts,
    ) -> tuple[ProjectedParams, Any, Consts]:
        (m, gates), (inner, dh) = kept, deltas
        made = after._replace(h=m)
        dcell, dxs, dconsts = cell.gradients(params.cell, xs, before, made, gates, inner, consts)
        return ProjectedParams(dcell, weight_gradient(m, dh)), dxs, dconsts

    def slopes(after: State, kept: tuple[jax.Array, Any]) -> Any:
        m, gates = kept
        assert cell.slopes is not None
        return cell.slopes(after._replace(h=m), gates)

    def recurrent(params: ProjectedParams) -> dict[str, jax.Array]:
        assert cell.recurrent is not None
        return {name: params.w_hr @ w for name, w in cell.recurrent(params.cell).items()}

    name = f"{cell.name} projected to {P}"
    return cell._replace(
        name=name,
        init=init,
        initial_state=zero_start(expects),
        step=one_step(expects, project, advance),
        expects=expects,
        project=project,
        advance=advance,
        linearize=linearize,
        pull=each_form(cell.pull, pulled),
        gradients=gradients,
        slopes=None if cell.slopes is None else slopes,
        recurrent=None if cell.recurrent is None else recurrent,
        doc=documented(name, projected, cell, ProjectedParams),
    )


def _rows(w: Any, rows: int) -> jax.ShapeDtypeStruct:
    """The shape of a weight with another number of rows."""
    return jax.ShapeDtypeStruct((rows, *w.shape[1:]), w.dtype)


def _reads_h_in_products_alone(cell: Cell) -> bool:
    """Whether a step is defined where ``h`` has another size than the cell has units."""
    I, H, P = 2, 5, 3
    params = dense_params(cell, I, H, made="projected")
    expected = cell.expects(params)

    def units_after(size: int) -> tuple[int, ...]:
        """The shape of ``h`` after a step that reads an ``h`` of this size."""
        h = jax.ShapeDtypeStruct((size,), expected.state.h.dtype)

        def step(params: Params, before: State, x: Any) -> State:
            return cell.advance(params, before, cell.project(params, x, None), None)[0]

        resized = with_weight(params, lambda w: _rows(w, size))
        after = jax.eval_shape(step, resized, expected.state._replace(h=h), expected.x)
        return after.h.shape

    # errors of its own size are about something else
    units_after(H)
    try:
        return units_after(P) == (H,)
    except (TypeError, ValueError):
        return False
