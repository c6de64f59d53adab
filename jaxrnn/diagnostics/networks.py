"""Diagnostics of a network: those of a cell, for each layer and direction.

A network runs `jaxrnn.unroll` once for each layer and direction. `watch` finds the arguments of
every one of these calls, the inputs after dropout included, and its cotangents ``dhs`` and
``dfinal``: the gradients that everything above sends to the outputs of the call. To find them, a
*tap* of zeros is added to the outputs of the call. The gradient of the loss with respect to the tap
is the cotangent, without the part that returns through later steps of the same call.

With its call and its cotangents, each direction of a layer is a cell on its own. `takes_networks`
lets a diagnostic of a cell run on all of them, and `assembled` puts the results together in the
network's structure.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Cell, Forms, Params, State
from jaxrnn.diagnostics.recording import cotangents_at, require_cotangents, without_float0
from jaxrnn.dtypes import differentiable, zero_sums
from jaxrnn.layers import LayerParams, LayerState, rows_of
from jaxrnn.network import Network, StackParams, StackState

__all__ = [
    "DirectionParams",
    "LayerCall",
    "Watched",
    "assembled",
    "each_layer",
    "gradient_of_params",
    "of_direction",
    "takes_networks",
    "watch",
]

# the keyword arguments of `Network.apply` that change its values
OPTIONS = ("lengths", "mask", "resets", "detach", "key")
# those of a cell that a network does not have
OF_CELLS = {
    "reverse": "in a network, each layer has its own directions",
    "reset_state": "in a network, resets return to each layer's own initial state",
    "consts": "the layers of a network read none",
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


class DirectionParams(NamedTuple):
    """The params of one direction of a layer: the cell's, and the learned initial state or None."""

    cell: Params
    start: State | None


class LayerCall(NamedTuple):
    """One call of `jaxrnn.unroll` in a network, as the arguments of a diagnostic of a cell.

    The params of ``cell`` are `DirectionParams`. ``initial_state`` is None where the cell makes it
    of them.
    """

    layer: int
    direction: str
    cell: Cell
    params: DirectionParams
    xs: Any
    dhs: Any
    dfinal: State
    initial_state: State | None
    options: dict[str, Any]

    def diagnosed(self, diagnose: Callable[..., Any], **more: Any) -> Any:
        """The result of a diagnostic of this call; ``more`` are its own keyword arguments."""
        arguments = (self.params, self.xs, self.dhs, self.dfinal, self.initial_state)
        return diagnose(self.cell, *arguments, **more, **self.options)


class Watched(NamedTuple):
    """A network with its arguments and the gradients of its outputs, and the calls it is made of.

    ``dxs`` is the gradient with respect to ``xs``, ``dparams`` with respect to ``params`` in their
    dtypes; None for leaves that are not floating.
    """

    network: Network
    params: StackParams
    xs: Any
    dhs: Any
    dfinal: Any
    initial_state: StackState | None
    options: dict[str, Any]
    calls: tuple[LayerCall, ...]
    dparams: Any
    dxs: Any


def takes_networks(
    of_network: Callable[..., Any],
) -> Callable[[Callable[Concatenate[Cell, _P], _R]], Callable[Concatenate[Cell | Network, _P], _R]]:
    """Decorator of a diagnostic: a network goes to ``of_network(diagnostic, watched, **own)``.

    ``own`` are the keyword arguments that the diagnostic has beside those of all. A cell goes to
    the diagnostic itself.
    """

    def decorate(
        diagnostic: Callable[Concatenate[Cell, _P], _R],
    ) -> Callable[Concatenate[Cell | Network, _P], _R]:
        signature = inspect.signature(diagnostic)
        own = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]

        @functools.wraps(diagnostic)
        def of_either(*arguments: Any, **named: Any) -> Any:
            first = arguments[0] if arguments else named.get("cell")
            if not isinstance(first, Network):
                return diagnostic(*arguments, **named)
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            given = bound.arguments
            network, options = given.pop("cell"), given.pop("options")
            own_given = {name: given.pop(name) for name in own}
            return of_network(diagnostic, watch(network, **given, options=options), **own_given)

        return of_either

    return decorate


def each_layer(diagnostic: Callable[..., Any], watched: Watched, **own: Any) -> Any:
    """Run a diagnostic on every call; the results in the network's structure."""
    return assembled(watched.network, [call.diagnosed(diagnostic, **own) for call in watched.calls])


def watch(
    network: Network,
    params: StackParams,
    xs: Any,
    dhs: Any,
    dfinal: StackState | None,
    initial_state: StackState | None,
    options: Mapping[str, Any],
) -> Watched:
    """Run a network forwards and back, and keep every layer's call.

    Args:
        network, params, xs, initial_state: as in `Network.apply`.
        dhs, dfinal: the gradients of the loss with respect to the network's outputs, or None.
        options: ``lengths, mask, resets, detach, key`` of `Network.apply`, and ``loss``.

    Raises:
        TypeError: an option of a cell, or an unknown one; otherwise as `Network.apply`.
        ValueError: as `Network.apply`; no cotangent and no loss, or both.
    """
    masks, key, loss = _checked(options)
    require_cotangents(dhs, dfinal, loss)

    def apply(params: Any, xs: Any, taps: Any) -> Any:
        """The differentiable outputs; and all outputs with ``(xs, key, outputs)`` of each call."""
        seen: list[tuple[Any, Any, Any]] = []

        def tapped(cell: Cell, params: Params, xs: Any, state: State, **given: Any) -> Any:
            outputs = network.unroll(cell, params, xs, state, **given)
            if taps is not None:
                outputs = _added(taps[len(seen)], outputs)
            seen.append((xs, given.get("key"), outputs))
            return outputs

        outputs = network._replace(unroll=tapped).apply(params, xs, initial_state, key=key, **masks)
        return differentiable(outputs), (outputs, seen)

    _, (_, seen) = jax.eval_shape(lambda: apply(params, xs, None))
    taps = [jax.tree.map(jnp.zeros_like, differentiable(outputs)) for _, _, outputs in seen]
    _, pull, (outputs, seen) = jax.vjp(apply, params, xs, taps, has_aux=True)
    final_state, hs = outputs
    dhs, dfinal = cotangents_at(final_state, hs, dhs, dfinal, loss)
    dparams, dxs, cotangents = pull((dfinal, dhs))
    calls = tuple(
        LayerCall(
            layer=n,
            direction=direction,
            cell=_with_start(network.layers[n].cell),
            params=of_direction(params, n, direction),
            xs=inputs,
            dhs=call_dhs,
            dfinal=call_dfinal,
            initial_state=_state_of(initial_state, n, direction),
            options=dict(masks, reverse=direction == "backward", key=own_key),
        )
        for (n, direction), (inputs, own_key, _), (call_dfinal, call_dhs) in zip(
            _directions(network), seen, cotangents, strict=True
        )
    )
    return Watched(
        network=network,
        params=params,
        xs=xs,
        dhs=dhs,
        dfinal=dfinal,
        initial_state=initial_state,
        options=dict(masks, key=key),
        calls=calls,
        dparams=without_float0(dparams),
        dxs=without_float0(dxs),
    )


def gradient_of_params(watched: Watched, unroll: Callable[..., Any]) -> Any:
    """The params' gradient of the same cotangents, with ``unroll`` in the place of the network's.

    A pytree like the params, in their dtypes, None for leaves that are not floating.
    """
    network = watched.network._replace(unroll=unroll)

    def outputs(params: StackParams) -> Any:
        return differentiable(
            network.apply(params, watched.xs, watched.initial_state, **watched.options)
        )

    pull = jax.vjp(outputs, watched.params)[1]
    return without_float0(pull((watched.dfinal, watched.dhs))[0])


def assembled(network: Network, found: Sequence[Any]) -> Any:
    """The results of all calls, in their order, as one result of the network.

    A result that is shaped as the params becomes `StackParams`, any other one `StackState`. Of a
    record, each field does. A field that is None in every result stays None.
    """
    record = type(found[0])
    if not hasattr(record, "_fields") or record is DirectionParams:
        return _of_layers(network, found)
    fields = zip(*found, strict=True)
    return record(*(_of_layers(network, values) for values in fields))


def of_direction(params: StackParams, layer: int, direction: str) -> DirectionParams:
    """The entry of one direction in params, or in a pytree that is shaped as params."""
    of_layer = params.layers[layer]
    start = of_layer.initial_state
    own_start = None if start is None else getattr(start, direction)
    return DirectionParams(getattr(of_layer, direction), own_start)


def _checked(options: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Any]:
    """The options of a network: ``(masks, key, loss)``."""
    for name in options:
        if name in OF_CELLS:
            raise TypeError(f"`{name}` is an option of a cell: {OF_CELLS[name]}")
        if name not in (*OPTIONS, "loss"):
            known = ", ".join((*OPTIONS, "loss"))
            raise TypeError(f"unknown argument `{name}`: the options of a network are {known}")
    masks = {name: mask for name, mask in options.items() if name not in ("key", "loss")}
    return masks, options.get("key"), options.get("loss")


def _directions(network: Network) -> list[tuple[int, str]]:
    """``(layer, direction)`` of every call, in the order in which a network makes them."""
    return [
        (n, direction)
        for n, each in enumerate(network.layers)
        for direction in ("forward", "backward")[: 1 + each.bidirectional]
    ]


def _state_of(state: StackState | None, layer: int, direction: str) -> State | None:
    of_layer = None if state is None else state.layers[layer]
    return None if of_layer is None else getattr(of_layer, direction)


def _of_layers(network: Network, values: Sequence[Any]) -> Any:
    """One value of each call as `StackParams` or `StackState`; None if all are None."""
    if all(value is None for value in values):
        return None
    each = iter(values)
    layers = [
        LayerState(next(each), next(each) if layer.bidirectional else None)
        for layer in network.layers
    ]
    if isinstance(values[0], DirectionParams):
        return StackParams(tuple(_layer_params(*layer) for layer in layers))
    return StackState(tuple(layers))


def _layer_params(forward: DirectionParams, backward: DirectionParams | None) -> LayerParams:
    of_backward = DirectionParams(None, None) if backward is None else backward
    start = None if forward.start is None else LayerState(forward.start, of_backward.start)
    return LayerParams(forward.cell, of_backward.cell, start)


def _added(tap: Any, outputs: Any) -> Any:
    """The outputs with the tap added to every leaf that has one."""
    return jax.tree.map(
        lambda zeros, leaf: leaf if zeros is None else leaf + zeros,
        tap,
        outputs,
        is_leaf=lambda zeros: zeros is None,
    )


@functools.cache
def _with_start(cell: Cell) -> Cell:
    """The cell of `DirectionParams` params: a learned initial state is one of them.

    Initial and reset state are made of it, as those of any cell may be made of its params.
    """

    def of_cell(piece: Any) -> Any:
        if piece is None:
            return None
        if isinstance(piece, Forms):
            return Forms(of_cell(piece.default), of_cell(piece.gpu))
        return lambda params, *arguments: piece(params.cell, *arguments)

    def initial_state(params: DirectionParams, batch_shape: tuple[int, ...] = ()) -> State:
        if params.start is None:
            return cell.initial_state(params.cell, batch_shape)
        return rows_of(params.start, batch_shape)

    def gradients(params: DirectionParams, *arguments: Any) -> tuple[DirectionParams, Any, Any]:
        dparams, dxs, dconsts = cell.gradients(params.cell, *arguments)
        return DirectionParams(dparams, zero_sums(params.start)), dxs, dconsts

    def draw(key: Any, params: DirectionParams, *sizes: Any) -> tuple[Any, Any]:
        assert cell.draw is not None
        return cell.draw(key, params.cell, *sizes)

    return cell._replace(
        initial_state=initial_state,
        step=of_cell(cell.step),
        # the network has checked the params
        expects=lambda params: cell.expects(params.cell)._replace(params=None),
        project=of_cell(cell.project),
        advance=of_cell(cell.advance),
        linearize=of_cell(cell.linearize),
        pull=of_cell(cell.pull),
        gradients=gradients,
        output=of_cell(cell.output),
        draw=None if cell.draw is None else draw,
        recurrent=of_cell(cell.recurrent),
    )
