"""How far back does the gradient reach, in an Elman network, an LSTM and a GRU?

Question: which steps of a sequence make the gradient of each cell's weights, before training and
after it, and what would truncated BPTT lose? On the adding problem, whose answer lies far back, and
on real data: which of nine speakers said a vowel, from 7 to 26 frames (Japanese Vowels).

    python -m experiments gradient_flow

Expected: at initialisation the gradient of w_hh comes from the last 46 (Elman), 45 (LSTM) and 8
(GRU) of the 80 steps of the adding problem, after training from the last 75 and more in the LSTM
and the GRU. They learn to add (mean squared error below 0.001, where always predicting the mean has
0.165); the Elman network hardly leaves that baseline (0.159 to 0.161). On the 370 test utterances
the GRU makes 7 errors, the LSTM 8 or 9, ridge regression 9, and the Elman network 12 to 14. The
ranges are those of two machines, which round differently: after 2,000 steps the horizon of the
Elman network was 31 steps on one and 71 on the other.
Time: a minute and a half of one CPU core, most of it compilation. A killed run continues from its
last checkpoint, and ends with the same parameters, bit for bit, on the same machine.

One gradient is looked at throughout: of the mean loss of one batch for each task, the same at
initialisation and after training (for the vowels of training utterances, with the noise of the
training). The loss reads the state after the last step alone, so that all that reaches an earlier
step was brought there by BPTT. At initialisation that gradient is compared with jax.grad of the
reference, before anything is trained.

All three cells see the same batches: new sequences at every step of the adding problem, and for the
vowels those of `spoken_vowels`, in one direction, with half the units and all 270 training
utterances. Its test set is read once, at the end; nothing was chosen by it. The learning rate is
the one that did best there by cross-validation, and was kept for the sums, where it learns. The
length, the steps and the batch size of the adding problem come from tries with another generator,
judged by the error on new sequences. With
100 steps, seed 2, the LSTM was still at the baseline when the training ended; with 60, seed 0, the
Elman network was far below it. With 80, seeds 0 to 2, every LSTM learnt to add and no Elman network
did; the GRU learnt it wherever it was tried.
"""

import dataclasses
import functools
import json
import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

import jaxrnn
from experiments.common import (
    baselines,
    classifier,
    cli,
    cross_check,
    devices,
    gradient_report,
    model,
    plots,
    records,
    tasks,
    training,
)
from experiments.common.cells import PLAIN, cell_of
from experiments.common.classifier import HANDWRITTEN
from experiments.common.errors import require_folder_name, require_option
from experiments.common.tasks import Task
from experiments.common.text import CELL_NAMES, STAGES
from experiments.data import adding, japanese_vowels
from experiments.data.training import prepare_training, standardise
from jaxrnn import diagnostics

# frames of the longest training utterance
VOWEL_FRAMES = 26
# the options of each task that decide the numbers of a training
TASK_OPTIONS = {
    "adding": ("length", "adding_steps", "adding_batch"),
    "vowels": ("vowel_steps", "vowel_batch", "noise"),
}
# points of a learning curve in result.json, each the mean of successive steps
CURVE_POINTS = 50


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; the module's docstring tells how the defaults were chosen."""

    cells: tuple[Literal["elman", "lstm", "gru"], ...] | None = None
    """Cells to compare. By default all three; in a smoke run the one that compiles fastest."""
    length: int = 80
    """Steps of the adding problem: so many that only gated cells learn it in time."""
    hidden_size: int = 32
    """Units of every network; so few that the Jacobians are exact, and enough for both tasks."""
    adding_steps: int = 2000
    """Training steps on the adding problem; the LSTM needs up to half of them to start."""
    adding_batch: int = 32
    """Sequences in a training step of the adding problem, new ones at every step."""
    vowel_steps: int = 1000
    """Training steps on the vowels, as in `spoken_vowels`."""
    vowel_batch: int = 64
    """Utterances in a training step, drawn without replacement, as in `spoken_vowels`."""
    noise: float = 1.0
    """Standard deviation of the noise on the vowels' training inputs, as in `spoken_vowels`."""
    learning_rate: float = 1e-2
    """Adam's learning rate at the first step; it falls to zero along a cosine, to settle."""
    clip: float = 1.0
    """Bound on the gradient's norm: an Elman network's gradient may explode."""
    rows: int = 64
    """Sequences of the batch whose gradient is analysed: enough for quantiles over them."""
    test_sequences: int = 2000
    """Test sequences of the adding problem: the baseline's error is then known to about 2 %."""
    windows: tuple[int, ...] = (5, 10, 20)
    """Windows of truncated BPTT, in steps: short to long for the vowels, short for the sums."""
    seed: int = 0
    """Decides the initial parameters, the batches, the noise and the generated test sequences."""
    save_every: int = 500
    """Steps between checkpoints and lines of progress; a killed run continues from the last."""
    smoke: bool = False
    """Run every stage in seconds, with tiny sizes and few steps: for tests, not for results."""
    out: Path = Path("runs/gradient_flow")
    """Folder for results, table, pictures and checkpoints; run again to continue there."""

    def __post_init__(self) -> None:
        cells = PLAIN if self.cells is None else self.cells
        known = set(cells) <= set(PLAIN) and len(set(cells)) == len(cells) > 0
        require_option(self, "cells", known, f"different ones of {', '.join(PLAIN)}")
        for name in ("hidden_size", "adding_steps", "adding_batch", "vowel_steps", "save_every"):
            require_option(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("length", "test_sequences"):
            require_option(self, name, getattr(self, name) >= 2, "at least 2")
        for name in ("learning_rate", "clip"):
            require_option(self, name, 0 < getattr(self, name) < math.inf, "above 0 and finite")
        require_option(self, "noise", 0 <= self.noise < math.inf, "at least 0 and finite")
        require_option(self, "seed", 0 <= self.seed < 2**31, f"in 0..{2**31 - 1}")
        utterances = japanese_vowels.SPEAKERS * japanese_vowels.TRAINING_UTTERANCES
        for name in ("vowel_batch", "rows"):
            expected = f"in 1..{utterances} (the training utterances)"
            require_option(self, name, 1 <= getattr(self, name) <= utterances, expected)
        longest = min(self.length, VOWEL_FRAMES)
        fit = bool(self.windows) and all(1 <= k <= longest for k in self.windows)
        rising = list(self.windows) == sorted(set(self.windows))
        expected = f"different numbers of steps in rising order, each in 1..{longest}"
        require_option(self, "windows", fit and rising, expected)
        require_folder_name(self)


def smoke_version(config: Config) -> Config:
    """Return the same work in miniature, for one cell unless others are given."""
    return dataclasses.replace(
        config,
        cells=config.cells or ("elman",),
        length=8,
        hidden_size=3,
        adding_steps=4,
        adding_batch=4,
        vowel_steps=3,
        vowel_batch=4,
        rows=5,
        test_sequences=50,
        windows=(2, 4),
        save_every=2,
    )


def network_of(name: str, config: Config) -> jaxrnn.Network:
    """Make the network of the cell of that name: one layer."""
    return jaxrnn.layer(cell_of(name, config.hidden_size), config.hidden_size)


class Measurements(NamedTuple):
    """The numbers behind one stage of the report, as arrays; fields by the names in jaxrnn."""

    gradients: Any
    contributions: Any
    horizons: Any
    biases: dict[int, diagnostics.TruncationBias]
    flow: diagnostics.GradientFlow
    row_norms: jax.Array


@functools.partial(jax.jit, static_argnames=("network", "task", "windows"))
def measure(
    network: jaxrnn.Network,
    task: Task,
    params: model.Params,
    batch: Any,
    windows: tuple[int, ...],
) -> Measurements:
    """Measure the gradient of the batch's loss: one program, compiled once for both stages."""
    lengths = batch.lengths
    final_state, _ = network.apply(params.network, batch.xs, lengths=lengths)

    def loss(final: Any) -> jax.Array:
        outputs = HANDWRITTEN.affine(params.readout, final.h)
        return task.loss(outputs, batch, HANDWRITTEN)

    ((final, _),), (layer,), (of_layer,) = final_state.layers, network.layers, params.network.layers
    # the loss reads the final states only
    arguments = (layer.cell, of_layer.forward, batch.xs, None, jax.grad(loss)(final))
    contributions = diagnostics.step_contributions(
        *arguments, lengths=lengths, from_end=lengths is not None
    )
    return Measurements(
        gradients=diagnostics.backpropagate(*arguments, lengths=lengths).params,
        contributions=contributions.norms,
        horizons=diagnostics.horizon(*arguments, lengths=lengths),
        biases={k: diagnostics.truncation_bias(*arguments, lengths=lengths, k=k) for k in windows},
        flow=diagnostics.gradient_flow(*arguments, lengths=lengths),
        row_norms=diagnostics.example_gradient_norms(*arguments, lengths=lengths).total,
    )


def analyse(
    network: jaxrnn.Network,
    task: Task,
    params: model.Params,
    batch: Any,
    windows: tuple[int, ...],
) -> dict[str, Any]:
    """Return the numbers of one stage, as result.json holds them."""
    found = jax.device_get(measure(network, task, params, batch, windows))
    T, rows = batch.xs.shape[:2]
    lengths = np.full(rows, T) if batch.lengths is None else np.asarray(batch.lengths)
    # of h and c together: either alone leaves out what passes through the other
    norms = np.sqrt(sum(leaf.astype(np.float64) ** 2 for leaf in found.flow.states))
    return {
        "gradient_norm": by_parameter(jax.tree.map(np.linalg.norm, found.gradients)),
        "rows_with_half": rows_with_half(found.row_norms),
        "horizon": by_parameter(found.horizons),
        "truncation": {
            str(k): {
                "relative_error": by_parameter(bias.relative_error),
                "cosine": by_parameter(bias.cosine),
            }
            for k, bias in found.biases.items()
        },
        "step_norms": by_parameter(found.contributions),
        "state_gradient": medians_from_the_end(norms, lengths),
        "spectral_radius": found.flow.spectral_radius.tolist(),
        "saturated": {
            gate: float(shares.sum() / lengths.sum())
            for gate, shares in found.flow.saturated._asdict().items()
        },
    }


def by_parameter(tree: Any) -> dict[str, Any]:
    """Return the arrays of a record by the names of its fields, as JSON takes them."""
    return {name: np.asarray(leaf).tolist() for name, leaf in tree._asdict().items()}


def rows_with_half(norms: np.ndarray) -> int:
    """How few of the rows make half of the sum of their norms [N]."""
    if not norms.any():
        return 0
    held = np.cumsum(np.sort(norms)[::-1])
    return 1 + int(np.argmax(held >= held[-1] / 2))


def steps_of_last_windows(lengths: np.ndarray, windows: Sequence[int]) -> dict[str, float]:
    """Mean number of steps in each row's last window, the only one that the loss reads."""
    return {str(k): float(np.mean((lengths - 1) % k + 1)) for k in windows}


def medians_from_the_end(values: np.ndarray, lengths: np.ndarray) -> list[float]:
    """Median over the rows at their last step, one step before it, and so on.

    Ends where fewer than half of the rows have such a step: the few longest rows are others than
    those at the end, and would be compared with them.

    Args:
        values: [T, N].
        lengths: valid steps of each row [N], at least 1.
    """
    medians = []
    for n in range(max(lengths)):
        (long_enough,) = np.nonzero(lengths > n)
        if 2 * len(long_enough) < len(lengths):
            break
        medians.append(float(np.median(values[lengths[long_enough] - 1 - n, long_enough])))
    return medians


def train_network(
    name: str, task_name: str, task: Task, params: model.Params, batches: Any, config: Config
) -> tuple[model.Params, np.ndarray]:
    """Train a cell on a task, from the last checkpoint in ``config.out`` where there is one.

    Returns:
        The parameters after the last step, and the loss of each step's batch [steps].
    """
    # the options that decide the numbers of this training, and no others
    options = ("hidden_size", "learning_rate", "clip", "seed", *TASK_OPTIONS[task_name])
    plan = training.Plan(
        title=f"{CELL_NAMES[name]} on {task.title}",
        steps=task.steps,
        learning_rate=config.learning_rate,
        origin={
            "experiment": "gradient_flow",
            "task": task_name,
            "cell": name,
            **{option: getattr(config, option) for option in options},
        },
        out=config.out,
        folder=config.out / f"{task_name}-{name}",
        eval_every=config.save_every,
        save_every=config.save_every,
    )
    loss = tasks.batch_loss(network_of(name, config), task)
    schedule = optax.cosine_decay_schedule(config.learning_rate, task.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule))
    state, rows = training.train(
        plan,
        # the noise is in the batches: nothing reads the key
        jaxrnn.init_train_state(params, optimizer, jax.random.key(0)),
        devices.make_train_step(lambda params, batch, key: loss(params, batch), optimizer, None),
        draw=lambda step: jax.tree.map(lambda each: each[step - 1], batches),
        evaluate=lambda params: {},
        line=lambda row: f"step {row['step']:>5}   loss of its batch {float(row['loss']):.4g}",
    )
    return state.params, np.array([row["loss"] for row in rows])


def study(
    name: str,
    task_name: str,
    task: Task,
    initial: model.Params,
    batch: Any,
    batches: Any,
    config: Config,
) -> tuple[model.Params, dict[str, Any]]:
    """Train a cell on a task, and analyse the gradient of the batch before and after.

    Args:
        name: of the cell.
        task_name, task: the task that it learns.
        initial: the parameters before training.
        batch: the rows whose gradient is analysed.
        batches: of all training steps.
        config: the options.

    Returns:
        The trained parameters, and the report that result.json holds.
    """
    trained, losses = train_network(name, task_name, task, initial, batches, config)
    print(f"{CELL_NAMES[name]} on {task.title}: compiling and measuring the gradient")
    stages = {
        stage: analyse(network_of(name, config), task, params, batch, config.windows)
        for stage, params in zip(STAGES, (initial, trained), strict=True)
    }
    curve = [float(part.mean()) for part in np.array_split(losses, min(CURVE_POINTS, len(losses)))]
    return trained, {"learning_curve": curve, "stages": stages}


def check_gradients(
    learnt: Mapping[str, Task],
    initial: Mapping[str, Any],
    batches: Mapping[str, Any],
    config: Config,
) -> dict[str, float]:
    """Compare every network's gradient by hand with jax.grad of the reference."""
    differences: dict[str, float] = {}
    for task_name, task in learnt.items():
        for name, params in initial[task_name].items():
            print(f"{CELL_NAMES[name]} on {task.title}: compiling both gradients")
            network = network_of(name, config)
            found = cross_check.gradient_differences(
                tasks.batch_loss(network, task),
                tasks.batch_loss(network, task, classifier.AUTODIFF),
                params,
                batches[task_name],
            )
            differences |= {f"{task_name} {name} {each}": found[each] for each in found}
    print(cross_check.table(differences))
    cross_check.require_agreement(differences)
    return differences


def run(config: Config) -> dict[str, Any]:
    """Do the whole experiment and return what result.json holds."""
    started = time.monotonic()
    if config.smoke:
        config = smoke_version(config)
    cells: Sequence[str] = config.cells or PLAIN
    config = dataclasses.replace(config, out=records.prepare_folder(config.out))
    data = prepare_training(holdout=0)
    learnt = {
        "adding": tasks.adding_problem(
            config.length, steps=config.adding_steps, batch_size=config.adding_batch
        ),
        "vowels": tasks.speaker_of_a_vowel(
            data.train, config.noise, steps=config.vowel_steps, batch_size=config.vowel_batch
        ),
    }
    # one generator for each purpose: the size of one draw must not change another
    analysed, trained_on, tested = (np.random.default_rng((config.seed, n)) for n in range(3))
    batches = {name: task.draw(analysed, config.rows) for name, task in learnt.items()}
    init_key = jax.random.key(config.seed)
    initial = {
        task_name: {name: tasks.init(network_of(name, config), task, init_key) for name in cells}
        for task_name, task in learnt.items()
    }
    differences = check_gradients(learnt, initial, batches, config)

    trained: dict[str, dict[str, Any]] = {name: {} for name in learnt}
    reports: dict[str, Any] = {}
    for task_name, task in learnt.items():
        batch = batches[task_name]
        training_batches = tasks.training_batches(task, trained_on)
        of_cells: dict[str, Any] = {}
        for name in cells:
            params, of_cells[name] = study(
                name, task_name, task, initial[task_name][name], batch, training_batches, config
            )
            trained[task_name][name] = network_of(name, config), params
        lengths = np.full(config.rows, len(batch.xs)) if batch.lengths is None else batch.lengths
        reports[task_name] = {
            "title": task.title,
            "steps": int(max(lengths)),
            "last_window": steps_of_last_windows(np.asarray(lengths), config.windows),
            "cells": of_cells,
        }

    print("reading the test sequences, and drawing the pictures")
    # the only place that reads the vowels' test set, after all that could learn from it
    test = japanese_vowels.load("test")
    reports["adding"]["score"] = tasks.score_sums(
        trained["adding"], adding.draw(tested, config.length, config.test_sequences)
    )
    reports["vowels"]["score"] = tasks.score_speakers(
        trained["vowels"],
        standardise(test, data.mean, data.deviation),
        baselines.accuracies(japanese_vowels.load("train"), test),
    )
    findings = gradient_report.findings(reports, rows=config.rows, seed=config.seed)
    report = f"{gradient_report.table(reports)}\n\n{textwrap.fill(findings, 80)}"
    print(f"\n{report}\n")

    result = {
        "experiment": "gradient_flow",
        "findings": findings,
        "tasks": reports,
        "params_sha256": records.sha256_of_arrays(trained),
        "cross_check": {"tolerance": cross_check.TOLERANCES["float32"], "differences": differences},
        "config": {**cli.json_config(config), "cells": cells},
        "versions": records.versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    contents = {
        "result.json": json.dumps(result, indent=2).encode() + b"\n",
        "report.md": report.encode() + b"\n",
    }
    for task_name, of_task in reports.items():
        contents[f"{task_name}.png"] = plots.png(plots.gradient_reach(of_task), dpi=200)
    for file, content in contents.items():
        records.write_atomically(config.out / file, content)
    print(f"{result['seconds']} s; the numbers, the table and the pictures are in {config.out}")
    return result
