"""Networks of layers: pure functions of one record, made of `jaxrnn.unroll`.

    network = stack(layer(LSTM, 64, bidirectional=True), layer(LSTM, 64), dropout=0.2)
    params = network.init(key, input_size)
    final_state, hs = network.apply(params, xs, lengths=lengths, key=dropout_key)

A layer is a stack of one, and a stack of stacks is the stack of all their layers. Every layer runs
through `jaxrnn.unroll`, so that the gradient is the handwritten one; `reference(network)` takes the
same params through `jaxrnn.unroll_reference`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from jaxrnn.budget import layer_budgets
from jaxrnn.call import check_policy, steps_before
from jaxrnn.cells.cell import Cell
from jaxrnn.checks import (
    batch_shape_of,
    describe,
    floating_dtype,
    prng_key,
    rate_of,
    require_hashable,
    size,
    static_bool,
)
from jaxrnn.layers import (
    MERGES,
    Dropout,
    Layer,
    LayerParams,
    LayerState,
    learnable,
    noted,
    output_size,
    require_dtype,
    run,
    start_of,
)
from jaxrnn.sequence import unroll, unroll_reference

__all__ = [
    "LayerParams",
    "LayerState",
    "Network",
    "StackParams",
    "StackState",
    "layer",
    "reference",
    "stack",
]


class StackParams(NamedTuple):
    """The params of a network."""

    layers: tuple[LayerParams, ...]


class StackState(NamedTuple):
    """The state of a network, as `Network.apply` takes and returns it."""

    layers: tuple[LayerState, ...]


for _record in (StackParams, StackState):
    register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")


class Network(NamedTuple):
    """A stack of layers as a hashable record; its methods are pure functions.

    Made by `layer` and `stack`. Like a cell, it is static: close over it. ``unroll`` is
    `jaxrnn.unroll`, or `jaxrnn.unroll_reference` in what `reference` returns.
    """

    layers: tuple[Layer, ...]
    unroll: Callable[..., tuple[Any, ...]] = unroll

    def __repr__(self) -> str:
        described = ", ".join(
            f"{each.cell.name} {each.hidden_size}" + " in both directions" * each.bidirectional
            for each in self.layers
        )
        return f"<jaxrnn.Network {described}>"

    def init(self, key: jax.Array, input_size: int, *, dtype: Any = jnp.float32) -> StackParams:
        """Draw the params; one key for each layer, of which each direction has its own.

        Raises:
            TypeError: a size that is no int, another dtype, a cell without ``init``.
            ValueError: a residual layer whose output is not as wide as its input.
        """
        width, dtype = size("input_size", input_size), floating_dtype("dtype", dtype)
        prng_key("key", key)
        made = []
        for n, (each, layer_key) in enumerate(
            zip(self.layers, jax.random.split(key, len(self.layers)), strict=True)
        ):
            if each.cell.init is None:
                raise TypeError(
                    f"layer {n} must have a cell with `init`; {each.cell.name} has none: make "
                    "StackParams of your own params"
                )
            forward, backward = (
                each.cell.init(direction_key, width, each.hidden_size, dtype=dtype)
                for direction_key in jax.random.split(layer_key)
            )
            if not each.bidirectional:
                backward = None
            start = None
            if each.learned_initial_state:
                start = learnable(each.cell, LayerState(forward, backward))
            made.append(LayerParams(forward, backward, start))
            width = output_size(each, forward, jax.ShapeDtypeStruct((width,), dtype))
        return StackParams(tuple(made))

    def initial_state(self, params: StackParams, batch_shape: tuple[int, ...] = ()) -> StackState:
        """The state before the first step: the learned one, or else what each cell starts from."""
        batch_shape = batch_shape_of(batch_shape)
        return StackState(
            tuple(
                start_of(each, of_layer, batch_shape)
                for each, of_layer in zip(self.layers, self.checked(params), strict=True)
            )
        )

    def apply(
        self,
        params: StackParams,
        xs: Any,
        initial_state: StackState | None = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        detach: jax.Array | None = None,
        key: jax.Array | None = None,
        residuals: str | None = None,
        memory_budget: int | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layers over time, one after the other.

        Args:
            params: from `init`.
            xs: inputs ``[T, ..., I]``, time first; a pytree if the first layer's cell takes one.
            initial_state: the state before the first step, of a backward direction before the last
                one; None for `initial_state`.
            lengths, mask, resets, detach: as in `jaxrnn.unroll`, for every layer and direction.
                Resets return to the learned initial state, if there is one, whatever
                ``initial_state`` is.
            key: a `jax.random.key` for dropout and for cells that draw; None: nothing is drawn, and
                dropout is the identity. Layer n draws from ``jax.random.fold_in(key, n)``, split in
                three: dropout, forward, backward.
            residuals: as in `jaxrnn.unroll`.
            memory_budget: the bytes that the whole network may hold for its gradient, dropout and
                the gradients between layers included. The least is known from shapes; below it the
                error says how much it is.
            return_states: also return the state after every step.

        Returns:
            ``(final_state, hs)``: the state after the last step of each layer and direction, and
            the last layer's outputs ``[T, ..., O]``, zero where not valid; with ``return_states``
            also the states, a `StackState` of leaves ``[T, ..., H]``.

        Raises:
            TypeError: an argument of another type, container or dtype.
            ValueError: an argument of another shape or range. A note says in which layer.
        """
        layers = self.checked(params)
        return_states = static_bool("return_states", return_states)
        check_policy(residuals, memory_budget)
        starts = self.checked_state("initial_state", initial_state)
        if key is not None:
            prng_key("key", key)
        shape = jnp.shape(jax.tree.leaves(xs)[0])[:-1] if jax.tree.leaves(xs) else ()
        masks = {"lengths": lengths, "mask": mask, "resets": resets, "detach": detach}
        budgets = layer_budgets(self.layers, layers, xs, masks, key, memory_budget)
        valid = mask
        residual = any(each.residual for each in self.layers)
        # without an axis of time, unroll says what is missing
        if lengths is not None and mask is None and residual and shape:
            valid = steps_before(lengths, shape[0], shape[1:])
        finals: list[Any] = []
        states: list[Any] = []
        for n, (each, of_layer, start) in enumerate(zip(self.layers, layers, starts, strict=True)):
            with noted(f"in layer {n}, of {each.cell.name}"):
                require_dtype(n, self.layers, of_layer, xs)
                final, xs, of_steps = run(
                    each,
                    of_layer,
                    xs,
                    start_of(each, of_layer, shape[1:]) if start is None else start,
                    masks,
                    valid,
                    key=None if key is None else jax.random.fold_in(key, n),
                    unroll=functools.partial(
                        self.unroll,
                        residuals=residuals,
                        memory_budget=budgets[n],
                        return_states=return_states,
                    ),
                )
            finals.append(final)
            states.append(of_steps)
        outputs = StackState(tuple(finals)), xs
        return (*outputs, StackState(tuple(states))) if return_states else outputs

    def step(
        self, params: StackParams, state: StackState, x: Any, *, key: jax.Array | None = None
    ) -> tuple[StackState, jax.Array]:
        """One step of all layers: ``x [..., I]`` -> (state, h [..., O]).

        Args:
            params: from `init`.
            state: from `initial_state`, or from the step before.
            x: one input, or a pytree if the first layer's cell takes one.
            key: as in `apply`. Masks per sequence are those that `apply` draws of the same key;
                masks per step are as new as the key is, so give every step a key of its own.

        Raises:
            TypeError: a state that is no StackState.
            ValueError: a layer in both directions, whose backward one begins at the end.
        """
        layers = self.checked(params)
        states = self.checked_state("state", state)
        if state is None:
            raise TypeError("`state` must be a jaxrnn.StackState, from initial_state; got None")
        for n, each in enumerate(self.layers):
            if each.bidirectional:
                raise ValueError(
                    f"layer {n} reads its sequence in both directions, and a stream has no end to "
                    "begin from: `step` needs layers that run forwards"
                )
        if key is not None:
            final_state, hs = self.apply(params, jax.tree.map(lambda a: a[None], x), state, key=key)
            return final_state, jax.tree.map(lambda h: h[0], hs)
        after = []
        for n, (each, of_layer, before) in enumerate(zip(self.layers, layers, states, strict=True)):
            with noted(f"in layer {n}, of {each.cell.name}"):
                require_dtype(n, self.layers, of_layer, x)
                forward, h = each.cell.step(of_layer.forward, before.forward, x)
            after.append(LayerState(forward, None))
            x = x + h if each.residual else h
        return StackState(tuple(after)), x

    def checked_state(self, name: str, state: Any) -> tuple[Any, ...]:
        """The state of each layer, if it can be this network's; Nones for None."""
        if state is None:
            return (None,) * len(self.layers)
        states = _layers_of(name, state, StackState, len(self.layers))
        for n, (each, of_layer) in enumerate(zip(self.layers, states, strict=True)):
            if not isinstance(of_layer, LayerState):
                raise TypeError(
                    f"`{name}.layers[{n}]` must be a jaxrnn.LayerState; got {describe(of_layer)}"
                )
            for field, wanted in (("forward", True), ("backward", each.bidirectional)):
                if (getattr(of_layer, field) is not None) != wanted:
                    raise ValueError(
                        f"`{name}.layers[{n}].{field}` must {'not ' * wanted}be None, as the layer "
                        f"was made; got {describe(getattr(of_layer, field))}"
                    )
        return states

    def checked(self, params: Any) -> tuple[LayerParams, ...]:
        """The params of each layer, if they can be this network's."""
        layers = _layers_of("params", params, StackParams, len(self.layers))
        for n, (each, of_layer) in enumerate(zip(self.layers, layers, strict=True)):
            if not isinstance(of_layer, LayerParams):
                raise TypeError(
                    f"`params.layers[{n}]` must be jaxrnn.LayerParams; got {describe(of_layer)}"
                )
            for field, wanted in (
                ("backward", each.bidirectional),
                ("initial_state", each.learned_initial_state),
            ):
                if (getattr(of_layer, field) is not None) != wanted:
                    raise ValueError(
                        f"`params.layers[{n}].{field}` must {'not ' * wanted}be None, as the layer "
                        f"was made; got {describe(getattr(of_layer, field))}"
                    )
        return layers


def layer(
    cell: Cell,
    hidden_size: int,
    *,
    bidirectional: bool = False,
    merge: Literal["concat", "sum", "mean", "multiply"] = "concat",
    residual: bool = False,
    learned_initial_state: bool = False,
) -> Network:
    """A network of one layer.

    Args:
        cell: a `jaxrnn.Cell`. Its ``init`` draws the weights; `stack` has dropout between layers,
            `jaxrnn.recurrent_dropout` and `jaxrnn.zoneout` make cells with noise of their own.
        hidden_size: units of each direction.
        bidirectional: also read every sequence from its last valid step to its first.
        merge: how the outputs of both directions are combined: ``[..., 2 H]`` by ``"concat"``, else
            ``[..., H]``.
        residual: add the layer's input to its output; they must be as wide as each other. Dropout
            of `stack` comes before the layer, so the sum has the dropped input; TensorFlow's
            ``ResidualWrapper`` around a ``DropoutWrapper`` adds the input as it was.
        learned_initial_state: the state before the first step, to which resets return, is a
            parameter, zeros at first.

    Raises:
        TypeError: an argument of another type.
        ValueError: a size below 1; an unknown merge, or one of a single direction; a cell that
            needs ``consts``, such as a masked `jaxrnn.leaky`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> network = jaxrnn.layer(jaxrnn.GRU, 5, bidirectional=True)
        >>> params = network.init(jax.random.key(0), 3)
        >>> final_state, hs = network.apply(params, jnp.ones((7, 2, 3)))
        >>> hs.shape, final_state.layers[0].backward.h.shape
        ((7, 2, 10), (2, 5))
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"`cell` must be a jaxrnn.Cell such as jaxrnn.LSTM; got {describe(cell)}")
    require_hashable(cell)
    if cell.needs_consts:
        raise ValueError(
            "`cell` must have steps without `consts` to be a layer, because a network has none for "
            f"it; {cell.name} needs them: call jaxrnn.unroll(cell, params, xs, consts=...)"
        )
    if merge not in MERGES:
        raise ValueError(f"`merge` must be one of {', '.join(MERGES)}; got {merge!r}")
    if merge != "concat" and not bidirectional:
        raise ValueError(f"`merge` must be 'concat' for a layer of one direction; got {merge!r}")
    made = Layer(
        cell=cell,
        hidden_size=size("hidden_size", hidden_size),
        bidirectional=static_bool("bidirectional", bidirectional),
        merge=merge,
        residual=static_bool("residual", residual),
        learned_initial_state=static_bool("learned_initial_state", learned_initial_state),
    )
    return Network((made,))


def stack(
    *networks: Network,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    dropout_mask: Literal["step", "sequence"] = "step",
) -> Network:
    """The layers of all these networks, one after the other.

    Args:
        networks: from `layer` or `stack`, whose own dropout stays where it is.
        dropout: the share of the features that is set to zero between two of ``networks``, while
            the others grow by ``1 / (1 - dropout)``; only with a ``key``. A nested stack keeps its
            own.
        input_dropout: the same for the inputs of the first one.
        dropout_mask: drawn anew for every ``"step"``, or once for the ``"sequence"`` of each row
            (Y. Gal and Z. Ghahramani, "A theoretically grounded application of dropout in recurrent
            neural networks", 2016): then the same for all segments that are given the same key.

    Raises:
        TypeError: an argument of another type.
        ValueError: no networks; dropout between fewer than two; a rate out of 0..1 (1 excluded);
            an unknown ``dropout_mask``; a reference beside what is none.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> network = jaxrnn.stack(jaxrnn.layer(jaxrnn.LSTM, 8), jaxrnn.layer(jaxrnn.LSTM, 5))
        >>> params = network.init(jax.random.key(0), 3)
        >>> state = network.initial_state(params, (2,))
        >>> state, h = network.step(params, state, jnp.ones((2, 3)))
        >>> h.shape
        (2, 5)
    """
    if not networks:
        raise ValueError("`networks` must be at least one jaxrnn.Network; got none")
    for network in networks:
        if not isinstance(network, Network):
            hint = ": pass them one by one, stack(*layers)" * isinstance(network, (list, tuple))
            raise TypeError(
                "`networks` must be jaxrnn.Network, such as layer(cell, hidden_size); got "
                f"{describe(network)}{hint * (not isinstance(network, Cell))}"
            )
        if network.unroll is not networks[0].unroll:
            raise ValueError(
                "`networks` must all be differentiated alike: take the `reference` of the stack, "
                "not of some of its layers"
            )
    if len(networks) == 1 and dropout:
        raise ValueError(
            "`dropout` stands between two networks, and there is one: `input_dropout` is for its "
            f"inputs; got {dropout}"
        )
    if dropout_mask not in ("step", "sequence"):
        raise ValueError(f"`dropout_mask` must be 'step' or 'sequence'; got {dropout_mask!r}")
    layers: list[Layer] = []
    for n, network in enumerate(networks):
        name, rate = ("dropout", dropout) if n else ("input_dropout", input_dropout)
        outer = Dropout(rate_of(name, rate), dropout_mask)
        first, *others = network.layers
        if outer.rate:
            first = first._replace(dropouts=(outer, *first.dropouts))
        layers += [first, *others]
    rate_of("dropout", dropout)
    return Network(tuple(layers), networks[0].unroll)


def reference(network: Network) -> Network:
    """The same network of the same params through `jaxrnn.unroll_reference`.

    For the cross-check of gradients, and for forward mode.
    """
    if not isinstance(network, Network):
        raise TypeError(f"`network` must be a jaxrnn.Network; got {describe(network)}")
    return network._replace(unroll=unroll_reference)


def _layers_of(name: str, given: Any, record: Any, count: int) -> tuple[Any, ...]:
    """The layers of params or of a state."""
    if not isinstance(given, record):
        raise TypeError(f"`{name}` must be a jaxrnn.{record.__name__}; got {describe(given)}")
    if len(given.layers) != count:
        raise ValueError(f"`{name}` must have {count} layers; got {len(given.layers)}")
    return tuple(given.layers)
