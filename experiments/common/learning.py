"""From a loss to trained parameters: the cross-check, then the resumable loop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

import jaxrnn
from experiments.common import cli, cross_check, devices, training

# where a run is saved, how often, and what runs it, does not change its numbers
_NO_MATTER = ("out", "save_every", "devices")


class Task(NamedTuple):
    """A loss to make small.

    - ``title``: "the LSTM on ...", for messages.
    - ``network``, ``make_loss``: ``make_loss(network)`` is ``loss(params, batch, key)``.
    - ``params``: the initial ones.
    - ``optimizer``: of optax.
    - ``draw``: makes the batch of a step, 1..steps, from its number alone.
    - ``steps``: the number of steps.
    - ``evaluate``: makes further metrics of an evaluated step from the params after it.
    - ``line``: one line about an evaluated step, from its metrics.
    - ``axes``: the axis of the rows in each array of a batch.
    """

    title: str
    network: jaxrnn.Network
    make_loss: Callable[[jaxrnn.Network], Callable[[Any, Any, jax.Array], jax.Array]]
    params: Any
    optimizer: optax.GradientTransformation
    draw: Callable[[int], Any]
    steps: int
    evaluate: Callable[[Any], Mapping[str, float]]
    line: Callable[[Mapping[str, float]], str]
    axes: Any = 0


class Learned(NamedTuple):
    """Trained params, the metrics of every step, and the differences of the cross-check."""

    params: Any
    rows: list[dict[str, float]]
    differences: dict[str, float]


def learn(
    config: Any, task: Task, folder: Path, *, origin: Mapping[str, Any], mesh: Mesh | None = None
) -> Learned:
    """Compare the gradient of the first batch with autodiff's, then train, or go on where it was.

    Args:
        config: with ``seed``, ``learning_rate``, ``eval_every``, ``save_every`` and ``out``.
        task: what is learned.
        folder: holds metrics.jsonl and the checkpoints of this training alone.
        origin: the experiment, and what else tells this training from others beside ``config``.
        mesh: the devices to train on, from `devices.start`.

    Raises:
        CrossCheckError: the two gradients differ.
        InputError: the folder holds another run, or damaged files.
        NumericalError: the training diverged.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    loss = task.make_loss(task.network)
    print(f"{task.title}: compiling both gradients of the cross-check")
    differences = cross_check.gradient_differences(
        *(loss, task.make_loss(jaxrnn.reference(task.network))), task.params, task.draw(1), key
    )
    print(cross_check.table(differences))
    cross_check.require_agreement(differences)
    options = cli.json_config(config)
    plan = training.Plan(
        title=task.title,
        steps=task.steps,
        learning_rate=config.learning_rate,
        origin={**origin, **{name: options[name] for name in options if name not in _NO_MATTER}},
        out=config.out,
        folder=folder,
        eval_every=config.eval_every,
        save_every=config.save_every,
    )
    state, rows = training.train(
        plan,
        jaxrnn.init_train_state(task.params, task.optimizer, key),
        devices.make_train_step(loss, task.optimizer, mesh),
        draw=task.draw,
        evaluate=task.evaluate,
        line=task.line,
        mesh=mesh,
        axes=task.axes,
    )
    return Learned(jax.device_get(state.params), rows, differences)
