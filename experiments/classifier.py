"""A sequence classifier: the final states of one or two directions, read out by an affine map."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrnn
from experiments.data.japanese_vowels import Utterances

CELLS = {"elman": jaxrnn.ELMAN, "lstm": jaxrnn.LSTM, "gru": jaxrnn.GRU}


class Functions(NamedTuple):
    """What the gradient of the loss passes through; `jaxrnn`'s signatures."""

    unroll: Callable
    affine: Callable
    cross_entropy: Callable
    squared_error: Callable


HANDWRITTEN = Functions(
    jaxrnn.unroll, jaxrnn.affine, jaxrnn.softmax_cross_entropy, jaxrnn.squared_error
)


def _plain_affine(readout: jaxrnn.AffineParams, h: jax.Array) -> jax.Array:
    return h @ readout.w + readout.b


def _plain_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _plain_squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    return 0.5 * ((predictions - targets) ** 2).sum(axis=-1).mean()


# the same values without any rule of ours: what the cross-check compares with
AUTODIFF = Functions(
    jaxrnn.unroll_reference, _plain_affine, _plain_cross_entropy, _plain_squared_error
)


class Params(NamedTuple):
    """Parameters: a cell per direction (``backward`` may be None), and the readout."""

    forward: Any
    backward: Any
    readout: jaxrnn.AffineParams


@functools.partial(
    jax.jit,
    static_argnames=("cell", "input_size", "hidden_size", "output_size", "bidirectional"),
)
def init(
    cell: jaxrnn.Cell,
    key: jax.Array,
    input_size: int,
    hidden_size: int,
    output_size: int,
    *,
    bidirectional: bool,
) -> Params:
    """Draw the initial parameters; the readout is [H, O], or [2 H, O] of both directions."""
    forward_key, backward_key, readout_key = jax.random.split(key, 3)
    backward = cell.init(backward_key, input_size, hidden_size) if bidirectional else None
    width = hidden_size * (2 if bidirectional else 1)
    return Params(
        forward=cell.init(forward_key, input_size, hidden_size),
        backward=backward,
        readout=jaxrnn.init_affine(readout_key, width, output_size),
    )


def make_loss(cell: jaxrnn.Cell, noise: float, functions: Functions = HANDWRITTEN) -> Callable:
    """Make ``loss(params, batch, key)``: mean cross-entropy of a batch with noise on its inputs.

    Args:
        cell: the recurrent cell.
        noise: standard deviation of the Gaussian noise.
        functions: with the handwritten rules, or with JAX's autodiff for the cross-check.
    """

    def loss(params: Params, batch: Utterances, key: jax.Array) -> jax.Array:
        noisy = batch.xs + noise * jax.random.normal(key, batch.xs.shape, batch.xs.dtype)
        logits = outputs(cell, params, batch._replace(xs=noisy), functions)
        return functions.cross_entropy(logits, batch.labels)

    return loss


@functools.partial(jax.jit, static_argnames="cell")
def evaluate(
    cell: jaxrnn.Cell, params: Params, utterances: Utterances
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and predicted labels [N] of utterances, without noise."""
    logits = outputs(cell, params, utterances, HANDWRITTEN)
    return jaxrnn.softmax_cross_entropy(logits, utterances.labels), logits.argmax(-1)


@functools.partial(jax.jit, static_argnames="cell")
def hidden_gradient_norms(
    cell: jaxrnn.Cell, params: Params, utterances: Utterances
) -> dict[str, jax.Array]:
    """Norm of the gradient of each utterance's own loss with respect to every hidden state.

    Returns:
        For each direction by name ("forward", "backward"): norms [T, N], zero in the padding.
    """

    def total_loss(finals: tuple[Any, ...]) -> jax.Array:
        # a sum, so that one utterance's gradient does not shrink with the number of utterances
        logits = jaxrnn.affine(params.readout, _side_by_side(finals))
        return jaxrnn.softmax_cross_entropy(logits, utterances.labels) * len(utterances.labels)

    dfinals = jax.grad(total_loss)(final_states(cell, params, utterances, jaxrnn.unroll))
    return {
        # the loss reads the final states only
        name: jaxrnn.diagnostics.gradient_flow(
            *(cell, cell_params, utterances.xs, None, dfinal),
            lengths=utterances.lengths,
            reverse=reverse,
        ).states.h
        for (name, cell_params, reverse), dfinal in zip(_directions(params), dfinals, strict=True)
    }


def _directions(params: Params) -> list[tuple[str, Any, bool]]:
    """Name, cell parameters and ``reverse`` of each direction."""
    directions = [("forward", params.forward, False), ("backward", params.backward, True)]
    return [direction for direction in directions if direction[1] is not None]


def final_states(
    cell: jaxrnn.Cell, params: Params, batch: Any, unroll: Callable
) -> tuple[Any, ...]:
    """State of each direction after its last step over ``batch.xs`` [T, N, I]; leaves [N, H]."""
    return tuple(
        unroll(cell, cell_params, batch.xs, lengths=batch.lengths, reverse=reverse)[0]
        for _, cell_params, reverse in _directions(params)
    )


def _side_by_side(finals: tuple[Any, ...]) -> jax.Array:
    """Final hidden states of all directions, [N, H] or [N, 2 H]."""
    return jnp.concatenate([state.h for state in finals], axis=-1)


def outputs(cell: jaxrnn.Cell, params: Params, batch: Any, functions: Functions) -> jax.Array:
    """What the readout makes of the final states [N, O]: a classifier's logits.

    ``batch`` has ``xs`` [T, N, I] and ``lengths``, which may be None.
    """
    finals = final_states(cell, params, batch, functions.unroll)
    return functions.affine(params.readout, _side_by_side(finals))
