"""Block-diagonal recurrence: units in groups that read their own group alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

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
from jaxrnn.checks import size
from jaxrnn.products import Weight, summed_product

__all__ = ["heads"]


@dataclasses.dataclass(frozen=True)
class _BlockDiagonal(Weight):
    """``[N, H/N, G, H/N]``: head, unit that is read, gate, unit; outputs ``[..., G*H]``."""

    w: jax.Array

    def _by_head(self, h: jax.Array) -> jax.Array:
        return h.reshape(*h.shape[:-1], *self.w.shape[:2])

    def _by_gate(self, dy: jax.Array) -> jax.Array:
        N, _, G, K = self.w.shape
        return dy.reshape(*dy.shape[:-1], G, N, K)

    def __rmatmul__(self, h: jax.Array) -> jax.Array:
        y = jnp.einsum("...nr,nrgk->...gnk", self._by_head(h), self.w)
        return y.reshape(*h.shape[:-1], math.prod(y.shape[-3:]))

    def input_gradient(self, dy: jax.Array) -> jax.Array:
        dh = jnp.einsum("...gnk,nrgk->...nr", self._by_gate(dy), self.w)
        return dh.reshape(*dy.shape[:-1], math.prod(dh.shape[-2:]))

    def weight_gradient(self, h: jax.Array, dy: jax.Array) -> jax.Array:
        h, dy = self._by_head(h), self._by_gate(dy)
        leading = tuple(range(h.ndim - 2))
        head = len(leading)
        # [N, H/N, G, H/N]
        return summed_product(h, dy, ((leading, leading), ((head,), (head + 1,))))

    def columns_apart(self, at: int) -> "tuple[_BlockDiagonal, _BlockDiagonal]":
        gate = at // (self.w.shape[0] * self.w.shape[3])
        return _BlockDiagonal(self.w[:, :, :gate]), _BlockDiagonal(self.w[:, :, gate:])

    def columns_gradient(self, first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.concatenate([first, second], axis=2)

    @property
    def stored(self) -> jax.Array:
        return self.w

    def map(self, f: Callable[[jax.Array], Any]) -> "_BlockDiagonal":
        return _BlockDiagonal(f(self.w))


def heads(cell: Cell, count: int) -> Cell:
    """The cell whose units recur in ``count`` heads: a unit reads the units of its own head alone.

        u_t[g, n] = h_{t-1}[n] W_hh[n, :, g, :]          head n, gate g; w_hh [N, H/N, G, H/N]

    The recurrent weight is 1/N of the dense one, and so are its products. Each head has initial
    weights of a cell of its size. With one head the cell is as before. xLSTM (M. Beck et al.,
    "xLSTM: extended long short-term memory", 2024) and Dreamer (D. Hafner et al., "Mastering
    diverse domains through world models", 2023) have such cells.

    Args:
        cell: a cell with its recurrent weight ``[H, G*H]`` as the field ``w_hh`` of its params.
        count: N, a divisor of H.

    Raises:
        TypeError: no cell, a cell without ``init``, no int.
        ValueError: a count below 1; a cell that has heads or a projection; at `init`, a hidden size
            that the count does not divide.
    """
    require_vector_state(cell, "heads")
    return _heads(cell, size("count", count))


@memoised
def _heads(cell: Cell, N: int) -> Cell:
    dense_params(cell, 2, 3, made="split into heads")

    def init(
        key: jax.Array,
        input_size: int,
        hidden_size: int,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        **options: Any,
    ) -> Params:
        """Initial weights, the recurrent ones of each head those of a cell of its size."""
        H = size("hidden_size", hidden_size)
        if H % N:
            raise ValueError(f"`hidden_size` must be a multiple of {N}, the heads; got {H}")
        cell_key, *head_keys = jax.random.split(key, 1 + N)

        def of_head(key: jax.Array) -> jax.Array:
            w = cell.init(key, 1, H // N, dtype=dtype, **options).w_hh
            return w.reshape(H // N, w.shape[1] // (H // N), H // N)

        params = cell.init(cell_key, input_size, H, dtype=dtype, **options)
        return params._replace(w_hh=jnp.stack([of_head(each) for each in head_keys]))

    def dense(params: Params) -> Params:
        """The params with the shape of a dense recurrent weight."""
        w = params.w_hh
        if len(w.shape) != 4 or w.shape[0] != N or w.shape[1] != w.shape[3]:
            raise ValueError(
                f"`params.w_hh` must be [{N}, H/{N}, gates, H/{N}], of {cell.name} in {N} heads; "
                f"got shape {w.shape}"
            )
        H = N * w.shape[1]
        return params._replace(w_hh=jax.ShapeDtypeStruct((H, w.shape[2] * H), w.dtype))

    def expects(params: Params) -> Expects:
        if not hasattr(params, "w_hh"):
            return cell.expects(params)
        inner = cell.expects(dense(params))
        w_hh = jax.ShapeDtypeStruct(params.w_hh.shape, inner.params.w_hh.dtype)
        return inner._replace(params=inner.params._replace(w_hh=w_hh))

    def of_blocks(w: Any) -> Weight:
        # transforms around this one have made their weights of the stored array already
        return w.map(_BlockDiagonal) if isinstance(w, Weight) else _BlockDiagonal(w)

    def blocks(params: Params) -> Params:
        return with_weight(params, of_blocks)

    def project(params: Params, xs: Any, consts: Consts) -> Any:
        return cell.project(blocks(params), xs, consts)

    def advance(params: Params, before: State, inputs: Any, consts: Consts) -> tuple[State, Any]:
        return cell.advance(blocks(params), before, inputs, consts)

    def linearize(params: Params, *arguments: Any) -> Any:
        return cell.linearize(blocks(params), *arguments)

    def pulled(pull: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *arguments: pull(blocks(params), *arguments)

    def gradients(params: Params, *arguments: Any) -> tuple[Params, Any, Consts]:
        return cell.gradients(blocks(params), *arguments)

    def recurrent(params: Params) -> dict[str, jax.Array]:
        assert cell.recurrent is not None
        # [N, R, G, K] to [N, R, G, N, K], zero between heads
        between = jnp.eye(N, dtype=params.w_hh.dtype)
        spread = jnp.einsum("nrgk,nm->nrgmk", params.w_hh, between)
        H = N * params.w_hh.shape[1]
        return cell.recurrent(params._replace(w_hh=spread.reshape(H, spread.shape[2] * H)))

    def draw(key: Any, params: Params, T: int, batch_shape: tuple[int, ...]) -> Any:
        assert cell.draw is not None
        return cell.draw(key, dense(params), T, batch_shape)

    name = f"{cell.name} in {N} heads"
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
        draw=None if cell.draw is None else draw,
        recurrent=None if cell.recurrent is None else recurrent,
        doc=documented(name, heads, cell),
    )
