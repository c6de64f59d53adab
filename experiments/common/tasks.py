"""What a recurrent network learns from its last state: a sum of two numbers, or a speaker."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

import jaxrnn
from experiments.common import classifier, model
from experiments.common.classifier import HANDWRITTEN, Functions
from experiments.data import adding, japanese_vowels
from experiments.data.japanese_vowels import Utterances
from experiments.data.training import select

Trained: TypeAlias = Mapping[str, tuple[jaxrnn.Network, model.Params]]
"""Networks with their parameters, by name."""


class Task(NamedTuple):
    """Batches to learn from, and the loss of a network's outputs.

    ``draw(generator, rows)`` makes a batch of numpy arrays, with ``xs [T, rows, inputs]`` and
    ``lengths [rows]`` or None; ``loss(outputs, batch, functions)`` is a scalar, from the outputs
    ``[rows, outputs]`` that `classifier.outputs` returns. Training takes ``steps`` steps on batches
    of ``batch_size`` rows.
    """

    title: str
    inputs: int
    outputs: int
    draw: Callable[[np.random.Generator, int], Any]
    loss: Callable[[jax.Array, Any, Functions], jax.Array]
    steps: int
    batch_size: int


def adding_problem(length: int, *, steps: int, batch_size: int) -> Task:
    """Make the task of the sum of two marked numbers among ``length``: half the squared error."""

    def draw(generator: np.random.Generator, rows: int) -> adding.Sequences:
        return adding.draw(generator, length, rows)

    def loss(outputs: jax.Array, batch: adding.Sequences, functions: Functions) -> jax.Array:
        return functions.squared_error(outputs, batch.targets)

    title = f"the adding problem over {length} steps"
    return Task(title, adding.CHANNELS, 1, draw, loss, steps, batch_size)


def speaker_of_a_vowel(train: Utterances, noise: float, *, steps: int, batch_size: int) -> Task:
    """Make the task of the speaker of a vowel: cross-entropy, with noise on the inputs."""

    def draw(generator: np.random.Generator, rows: int) -> Utterances:
        drawn = select(train, generator.choice(len(train.labels), rows, replace=False))
        added = noise * generator.standard_normal(drawn.xs.shape, np.float32)
        return drawn._replace(xs=drawn.xs + added)

    def loss(outputs: jax.Array, batch: Utterances, functions: Functions) -> jax.Array:
        return functions.cross_entropy(outputs, batch.labels)

    title = f"the speaker of a spoken vowel of {train.lengths.min()} to {len(train.xs)} frames"
    channels, speakers = japanese_vowels.CHANNELS, japanese_vowels.SPEAKERS
    return Task(title, channels, speakers, draw, loss, steps, batch_size)


def training_batches(task: Task, generator: np.random.Generator) -> Any:
    """Draw the batches of all training steps, stacked: leaves [steps, ...]."""
    batches = [task.draw(generator, task.batch_size) for _ in range(task.steps)]
    return jax.tree.map(lambda *each: np.stack(each), *batches)


def init(network: jaxrnn.Network, task: Task, key: jax.Array) -> model.Params:
    """Draw the initial parameters of a network of one layer in one direction.

    Not under `jax.jit`: what draws one network's weights is then compiled for all of them.
    """
    (layer,) = network.layers
    cell_key, readout_key = jax.random.split(key)
    of_cell = layer.cell.init(cell_key, task.inputs, layer.hidden_size)
    params = jaxrnn.StackParams((jaxrnn.LayerParams(of_cell, None, None),))
    return model.with_readout(network, params, readout_key, task.inputs, task.outputs)


def batch_loss(
    network: jaxrnn.Network, task: Task, functions: Functions = HANDWRITTEN
) -> Callable[[model.Params, Any], jax.Array]:
    """Make ``loss(params, batch)``."""
    return lambda params, batch: task.loss(
        classifier.outputs(network, params, batch, functions), batch, functions
    )


def score_sums(networks: Trained, test: adding.Sequences) -> dict[str, Any]:
    """Mean squared error on new sequences, beside that of always predicting the mean.

    A network's "gain" over the baseline has a standard error, of the difference sequence by
    sequence.
    """
    count = len(test.targets)
    targets = np.asarray(test.targets, np.float64)
    baseline = np.square(adding.MEAN - targets).ravel()
    scores = {}
    outputs = jax.jit(classifier.outputs, static_argnums=0)
    for name, (network, params) in networks.items():
        sums = outputs(network, params, test)
        errors = np.square(np.asarray(sums, np.float64) - targets).ravel()
        gains = baseline - errors
        scores[name] = {
            "error": float(errors.mean()),
            "gain": float(gains.mean()),
            "gain_standard_error": float(gains.std(ddof=1) / math.sqrt(count)),
        }
    always_the_mean = float(baseline.mean())
    return {
        "count": count,
        "baselines": {"always predicting the mean": always_the_mean},
        "networks": scores,
    }


def score_speakers(networks: Trained, test: Utterances, others: dict[str, float]) -> dict[str, Any]:
    """Wrongly classified utterances, beside those of other methods, given by their accuracies.

    ``test`` is standardised like the training utterances.
    """
    count = len(test.labels)
    scores = {}
    for name, (network, params) in networks.items():
        predicted = classifier.evaluate(network, params, test)[1]
        scores[name] = {"errors": int(np.sum(np.asarray(predicted) != test.labels))}
    baselines = {name: round((1 - accuracy) * count) for name, accuracy in others.items()}
    return {"count": count, "baselines": baselines, "networks": scores}
