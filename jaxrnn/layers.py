"""One layer of a network: a cell in one direction or both, dropout of its input, a residual sum."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from jaxrnn.cells.cell import Cell, State
from jaxrnn.checks import array, describe
from jaxrnn.masks import random_mask, zero_unless
from jaxrnn.sharding import of_one_layout

__all__ = [
    "MERGES",
    "Dropout",
    "Layer",
    "LayerParams",
    "LayerState",
    "learnable",
    "noted",
    "output_size",
    "require_dtype",
    "rows_of",
    "run",
    "start_of",
]

MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": jnp.add,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "multiply": jnp.multiply,
}


class LayerState(NamedTuple):
    """The state of each direction of a layer; ``backward`` is None where there is none."""

    forward: State
    backward: State | None


class LayerParams(NamedTuple):
    """The params of each direction, and the learned state before the first step, without rows.

    ``backward`` and ``initial_state`` are None where there is none.
    """

    forward: Any
    backward: Any
    initial_state: LayerState | None


for _record in (LayerParams, LayerState):
    register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")


class Dropout(NamedTuple):
    """Dropout of a layer's input; ``mask``: a new mask for every step, or one per sequence."""

    rate: float
    mask: str


class Layer(NamedTuple):
    """The options of `jaxrnn.layer`, and the dropouts of its input, the first one first."""

    cell: Cell
    hidden_size: int
    bidirectional: bool
    merge: str
    residual: bool
    learned_initial_state: bool
    dropouts: tuple[Dropout, ...] = ()


def run(
    layer: Layer,
    params: LayerParams,
    xs: Any,
    start: LayerState,
    masks: Mapping[str, Any],
    valid: jax.Array | None,
    *,
    key: jax.Array | None,
    unroll: Callable[..., tuple[Any, ...]],
) -> tuple[LayerState, Any, LayerState | None]:
    """``(final_state, outputs, states)`` of a layer; no states unless ``unroll`` returns them.

    Args:
        masks: the arguments of `jaxrnn.unroll` that say which steps happen, and how.
        valid: the steps that do, ``[T, ...]``, or None for all.
        unroll: `jaxrnn.unroll` or its reference, with what is kept and returned.
    """
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    xs = _dropped(layer.dropouts, keys[0], xs)

    def of_direction(name: str, key: jax.Array | None) -> tuple[Any, ...]:
        options = dict(masks, reverse=name == "backward")
        if masks["resets"] is not None and params.initial_state is not None:
            options["reset_state"] = getattr(params.initial_state, name)
        if layer.cell.draw is not None:
            options["key"] = key
        return unroll(layer.cell, getattr(params, name), xs, getattr(start, name), **options)

    final, hs, *states = of_direction("forward", keys[1])
    finals, of_steps = LayerState(final, None), LayerState(states[0], None) if states else None
    if layer.bidirectional:
        final, backward_hs, *states = of_direction("backward", keys[2])
        finals = finals._replace(backward=final)
        of_steps = of_steps and of_steps._replace(backward=states[0])
        hs = MERGES[layer.merge](hs, backward_hs)
    if layer.residual:
        # the residual sum must not read the padding, which may be NaN
        hs = zero_unless(valid, xs) + hs
    return finals, hs, of_steps


def require_dtype(n: int, layers: Sequence[Layer], params: LayerParams, xs: Any) -> None:
    """Refuse outputs of layer n - 1, ``xs``, in another dtype than layer n reads."""
    if n == 0:
        return
    like = layers[n].cell.expects(params.forward).x
    if isinstance(like, jax.ShapeDtypeStruct) and getattr(xs, "dtype", None) != like.dtype:
        raise TypeError(
            f"layer {n}, of {layers[n].cell.name}, reads the dtype of its params, {like.dtype}, "
            f"and layer {n - 1}, of {layers[n - 1].cell.name}, puts out {describe(xs)}: give layer "
            f"{n - 1} params of {like.dtype}, and if its cell is made by `with_dtypes`, "
            f"carry={like.dtype}"
        )


def start_of(each: Layer, params: LayerParams, batch_shape: tuple[int, ...]) -> LayerState:
    """The state before the first step of both directions."""
    if params.initial_state is not None:
        return rows_of(params.initial_state, batch_shape)
    backward = params.backward
    return LayerState(
        forward=each.cell.initial_state(params.forward, batch_shape),
        backward=None if backward is None else each.cell.initial_state(backward, batch_shape),
    )


def rows_of(state: Any, batch_shape: tuple[int, ...]) -> Any:
    """The state ``[*]`` of one row as that of every row, leaves ``[*batch_shape, *]``."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)), state)


def learnable(cell: Cell, params: LayerState) -> LayerState:
    """Zeros like the state of one row in each direction."""

    def of_direction(params: Any) -> Any:
        like = cell.expects(params).state
        for leaf in jax.tree.leaves(like):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"the layer cannot learn its initial state: that of {cell.name} has a leaf of "
                    f"dtype {leaf.dtype}, which has no gradient"
                )
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    return LayerState(*(None if each is None else of_direction(each) for each in params))


def output_size(each: Layer, params: Any, x: jax.ShapeDtypeStruct) -> int:
    """The features of a layer's output, from shapes alone."""
    _, h = jax.eval_shape(lambda p, x: each.cell.step(p, each.cell.initial_state(p), x), params, x)
    if not hasattr(h, "shape") or h.ndim != 1:
        raise TypeError(
            f"the layer must have one vector of features as its output; {each.cell.name} has "
            f"{describe(h)}"
        )
    (width,) = h.shape
    if each.bidirectional and each.merge == "concat":
        width = 2 * width
    if each.residual and (width,) != x.shape:
        raise ValueError(
            f"the layer is residual, so its output must be as wide as its input; it makes {width} "
            f"features of {x.shape[0]}"
        )
    return width


def _dropped(dropouts: tuple[Dropout, ...], key: jax.Array | None, xs: Any) -> Any:
    """The input of a layer after dropout: features are zero or divided by 1 - rate."""
    if key is None:
        return xs
    for n, (rate, mask) in enumerate(dropouts):
        xs = array("xs", xs)
        shape = (1, *xs.shape[1:]) if mask == "sequence" else xs.shape
        kept = random_mask(jax.random.fold_in(key, n), 1 - rate, shape)
        xs, kept = of_one_layout(xs, jnp.broadcast_to(kept, xs.shape))
        xs = jnp.where(kept, xs / (1 - rate), jnp.zeros_like(xs))
    return xs


@contextlib.contextmanager
def noted(note: str) -> Iterator[None]:
    """Errors of one layer say which it is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(note)
        raise
