"""One training loop for the experiments: saved on the way, continued after a kill.

The batches of a step depend on the step alone, and a checkpoint holds everything else. A run that
was killed at any moment therefore ends with the same parameters as one that was not, bit for bit.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import jaxrnn
from experiments.common import checkpoints, cli, devices, records
from experiments.common.errors import NumericalError


class Plan(NamedTuple):
    """A training: its length, where it is kept, and how often it reports.

    - ``title``: "the LSTM on ...", for messages.
    - ``steps``, ``learning_rate``: the latter is named where the training diverges.
    - ``origin``: the options that decide the numbers, as JSON; a checkpoint of others is refused.
    - ``out``: the folder that `--out` names, which a message says to remove.
    - ``folder``: holds metrics.jsonl and the checkpoints of this training alone.
    - ``eval_every``, ``save_every``: steps between evaluations, and between checkpoints.
    """

    title: str
    steps: int
    learning_rate: float
    origin: Mapping[str, Any]
    out: Path
    folder: Path
    eval_every: int
    save_every: int


def options_that_matter(config: Any) -> dict[str, Any]:
    """The options that decide the numbers of a run: not its folder, its saves, its devices."""
    options = cli.json_config(config)
    for name in ("out", "save_every", *devices.Placement._fields):
        options.pop(name, None)
    return options


def train(
    plan: Plan,
    state: jaxrnn.TrainState,
    train_step: Callable[[jaxrnn.TrainState, Any], tuple[jaxrnn.TrainState, dict[str, Any]]],
    draw: Callable[[int], Any],
    evaluate: Callable[[Any], Mapping[str, float]],
    line: Callable[[Mapping[str, float]], str],
    *,
    mesh: Mesh | None = None,
    axes: Any = 0,
) -> tuple[jaxrnn.TrainState, list[dict[str, float]]]:
    """Train to the last step, from the last checkpoint in the plan's folder where there is one.

    With several processes, the first one alone reads and writes there, and evaluates.

    Args:
        plan: steps, folder, and how often.
        state: the state of a new run.
        train_step: from `devices.make_train_step`.
        draw: makes the batch of a step, 1..steps.
        evaluate: makes further metrics of an evaluated step from the params after it.
        line: one line about an evaluated step, from its metrics.
        mesh: the devices to train on, from `devices.start`.
        axes: the axis of the rows in each array of a batch.

    Returns:
        The final state, and the metrics of every step, as metrics.jsonl holds them.

    Raises:
        InputError: the folder holds another run, or damaged files.
        NumericalError: the training diverged; metrics.jsonl shows how.
    """
    started = time.monotonic()
    metrics_path = plan.folder / "metrics.jsonl"
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        written: list[dict[str, Any]] = []
        if first:
            manager = stack.enter_context(checkpoints.open_checkpoints(plan.folder / "checkpoints"))
            state = checkpoints.restore_latest(manager, state, plan.origin, run_folder=plan.out)
            written = records.read_rows(metrics_path, int(state.step))
            if written:
                print(f"{plan.title}: continuing after step {len(written)}")
        state = devices.place_state(state, mesh)
        start = int(state.step)
        if first and start < plan.steps:
            print(f"{plan.title}: compiling the training step")
        # metrics that are still on the device
        fresh: list[dict[str, Any]] = []
        for step in tqdm(
            range(start + 1, plan.steps + 1),
            initial=start,
            total=plan.steps,
            unit="step",
            disable=None if first else True,
        ):
            state, metrics = train_step(state, devices.place_rows(draw(step), mesh, axes))
            fresh.append({"step": step} | metrics)
            last = step == plan.steps
            evaluating = last or step % plan.eval_every == 0
            saving = last or step % plan.save_every == 0
            if evaluating and first:
                fresh[-1] |= evaluate(jax.device_get(state.params))
                tqdm.write(line(fresh[-1]))
            if evaluating or saving:
                # fetched here only, so that the steps between need not wait for each other; and
                # written before the checkpoint, which promises the rows of all its steps
                fresh = [
                    {name: np.asarray(value).item() for name, value in row.items()} for row in fresh
                ]
                if first:
                    records.append_rows(metrics_path, fresh)
                _require_finite_losses(plan, fresh)
                written, fresh = written + fresh, []
            if saving and first:
                checkpoints.save(manager, state, plan.origin)
    if first:
        seconds = time.monotonic() - started
        print(f"{plan.title}: trained {plan.steps - start} steps in {seconds:.1f} s")
    return state, written


def _require_finite_losses(plan: Plan, rows: Sequence[Mapping[str, float]]) -> None:
    """Raise NumericalError where a loss of a batch or of an evaluation is not finite."""
    for row in rows:
        losses = {name: value for name, value in row.items() if name.endswith("loss")}
        if not all(map(math.isfinite, losses.values())):
            found = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise NumericalError(
                f"the training of {plan.title} diverged: at step {row['step']} a loss is not "
                f"finite ({found}). Try a --learning-rate below {plan.learning_rate:g}, after "
                f"removing {plan.out} or with another --out; metrics.jsonl in {plan.folder} has "
                f"the steps up to here"
            )
