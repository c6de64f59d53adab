"""From a loss to trained parameters: the cross-check, then the resumable loop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import jaxrnn
from experiments.common import cross_check, devices, training


class Task(NamedTuple):
    """A loss to make small.

    - ``title``: "the LSTM on ...", for messages.
    - ``network``, ``make_loss``: ``make_loss(network)`` is ``loss(params, batch, key)``.
    - ``params``: the initial ones.
    - ``optimizer``: of optax.
    - ``draw``: makes the batch of a step, 1..steps, from its number alone.
    - ``steps``: the number of steps.
    - ``line``: one line about an evaluated step, from its metrics.
    """

    title: str
    network: jaxrnn.Network
    make_loss: Callable[[jaxrnn.Network], Callable[[Any, Any, jax.Array], jax.Array]]
    params: Any
    optimizer: optax.GradientTransformation
    draw: Callable[[int], Any]
    steps: int
    line: Callable[[Mapping[str, float]], str]


class Learned(NamedTuple):
    """Trained params, the metrics of every step, and the differences of the cross-check."""

    params: Any
    rows: list[dict[str, float]]
    differences: dict[str, float]


def learn(config: Any, task: Task, folder: Path, *, origin: Mapping[str, Any]) -> Learned:
    """Compare the gradient of the first batch with autodiff's, then train, or go on where it was.

    Args:
        config: with ``seed``, ``learning_rate``, ``eval_every``, ``save_every`` and ``out``.
        task: what is learned.
        folder: holds metrics.jsonl and the checkpoints of this training alone.
        origin: the experiment, and what else tells this training from others beside ``config``.

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
    plan = training.Plan(
        title=task.title,
        steps=task.steps,
        learning_rate=config.learning_rate,
        origin={**origin, **training.options_that_matter(config)},
        out=config.out,
        folder=folder,
        eval_every=config.eval_every,
        save_every=config.save_every,
    )
    state, rows = training.train(
        plan,
        jaxrnn.init_train_state(task.params, task.optimizer, key),
        devices.make_train_step(loss, task.optimizer, None),
        draw=task.draw,
        evaluate=lambda params: {},
        line=task.line,
    )
    return Learned(jax.device_get(state.params), rows, differences)
