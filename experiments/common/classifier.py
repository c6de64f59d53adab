"""A sequence classifier: a network, and an affine readout of its last layer's final states."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrnn
from experiments.common.model import Params, last_states, side_by_side, with_readout
from experiments.data.japanese_vowels import Utterances


class Functions(NamedTuple):
    """The functions that the gradient of the loss passes through; `jaxrnn`'s signatures.

    ``differentiated(network)`` is the network with the gradient that is meant.
    """

    differentiated: Callable[[jaxrnn.Network], jaxrnn.Network]
    affine: Callable
    cross_entropy: Callable
    squared_error: Callable


def _as_it_is(network: jaxrnn.Network) -> jaxrnn.Network:
    return network


HANDWRITTEN = Functions(
    _as_it_is, jaxrnn.affine, jaxrnn.softmax_cross_entropy, jaxrnn.squared_error
)


def _plain_affine(readout: jaxrnn.AffineParams, h: jax.Array) -> jax.Array:
    return h @ readout.w + readout.b


def _plain_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _plain_squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    return 0.5 * ((predictions - targets) ** 2).sum(axis=-1).mean()


# the same values without any rule of ours, for the cross-check
AUTODIFF = Functions(jaxrnn.reference, _plain_affine, _plain_cross_entropy, _plain_squared_error)


@functools.partial(jax.jit, static_argnames=("network", "input_size", "output_size"))
def init(network: jaxrnn.Network, key: jax.Array, input_size: int, output_size: int) -> Params:
    """Draw the initial parameters of a network of one layer.

    The readout is [H, O], or [2 H, O] of both directions.
    """
    (layer,) = network.layers
    forward_key, backward_key, readout_key = jax.random.split(key, 3)
    forward, backward = (
        layer.cell.init(direction_key, input_size, layer.hidden_size)
        for direction_key in (forward_key, backward_key)
    )
    of_layer = jaxrnn.LayerParams(forward, backward if layer.bidirectional else None, None)
    params = jaxrnn.StackParams((of_layer,))
    return with_readout(network, params, readout_key, input_size, output_size)


def make_loss(
    network: jaxrnn.Network, noise: float, functions: Functions = HANDWRITTEN
) -> Callable:
    """Make ``loss(params, batch, key)``: mean cross-entropy of a batch with noise on its inputs.

    Args:
        network: the recurrent network.
        noise: standard deviation of the Gaussian noise.
        functions: with the handwritten rules, or with JAX's autodiff for the cross-check.
    """

    def loss(params: Params, batch: Utterances, key: jax.Array) -> jax.Array:
        noisy = batch.xs + noise * jax.random.normal(key, batch.xs.shape, batch.xs.dtype)
        # of cells that draw
        key = jax.random.fold_in(key, 1)
        logits = outputs(network, params, batch._replace(xs=noisy), functions, key)
        return functions.cross_entropy(logits, batch.labels)

    return loss


@functools.partial(jax.jit, static_argnames="network")
def evaluate(
    network: jaxrnn.Network, params: Params, utterances: Utterances
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and predicted labels [N] of utterances, without noise."""
    logits = outputs(network, params, utterances)
    return jaxrnn.softmax_cross_entropy(logits, utterances.labels), logits.argmax(-1)


@functools.partial(jax.jit, static_argnames="network")
def hidden_gradient_norms(
    network: jaxrnn.Network, params: Params, utterances: Utterances
) -> dict[str, jax.Array]:
    """Norm of the gradient of each utterance's own loss with respect to every hidden state.

    Returns:
        For each direction by name ("forward", "backward") of a network of one layer: norms [T, N],
        zero in the padding.
    """
    (layer,), (of_layer,) = network.layers, params.network.layers

    def total_loss(final: jaxrnn.LayerState) -> jax.Array:
        # a sum, so that one utterance's gradient does not shrink with the number of utterances
        logits = jaxrnn.affine(params.readout, side_by_side(final))
        return jaxrnn.softmax_cross_entropy(logits, utterances.labels) * len(utterances.labels)

    final_state, _ = network.apply(params.network, utterances.xs, lengths=utterances.lengths)
    # the loss reads the final states only
    dfinals = jax.grad(total_loss)(final_state.layers[-1])

    def norms(name: str, dfinal: Any) -> jax.Array:
        found = jaxrnn.diagnostics.backpropagate(
            *(layer.cell, getattr(of_layer, name), utterances.xs, None, dfinal),
            lengths=utterances.lengths,
            reverse=name == "backward",
        )
        return jnp.linalg.norm(found.states.h, axis=-1)

    return {
        name: norms(name, dfinal)
        for name, dfinal in dfinals._asdict().items()
        if dfinal is not None
    }


def outputs(
    network: jaxrnn.Network,
    params: Params,
    batch: Any,
    functions: Functions = HANDWRITTEN,
    key: jax.Array | None = None,
) -> jax.Array:
    """The readout of the last layer's final states [N, O]: a classifier's logits.

    ``batch`` has ``xs`` [T, N, I] and ``lengths``, which may be None.
    """
    differentiated = functions.differentiated(network)
    h = last_states(differentiated, params, batch.xs, lengths=batch.lengths, key=key)
    return functions.affine(params.readout, h)
