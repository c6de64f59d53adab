"""How far back does the gradient reach, in an Elman network, an LSTM and a GRU?

Question: which steps of a sequence make the gradient of each cell's weights, before training and
after it, and what would truncated BPTT lose? On the adding problem, whose answer lies far back, and
on real data: which of nine speakers said a vowel, from 7 to 26 frames (Japanese Vowels).

    python -m experiments gradient_flow

Expected: at initialisation the gradient of w_hh comes from the last 46 (Elman), 45 (LSTM) and 8
(GRU) of the 80 steps of the adding problem, after training from the last 71, 76 and 77. LSTM and
GRU learn to add (mean squared error 0.0005 and 0.0001, where always predicting the mean has 0.165),
the Elman network hardly leaves that baseline (0.159). On the 370 test utterances the GRU makes 7
errors, the LSTM 9, as many as ridge regression, and the Elman network 14, more than that.
Time: two to three minutes on two CPU cores, half of it compilation.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import SubFigure

import jaxrnn
from experiments import baselines, classifier, cross_check, gradient_report, plots, records, tasks
from experiments.classifier import CELLS, HANDWRITTEN
from experiments.data import adding, japanese_vowels
from experiments.data.training import prepare_training, standardise
from experiments.errors import require_option
from experiments.gradient_report import STAGES
from experiments.tasks import Task

# frames of the longest training utterance
VOWEL_FRAMES = 26
# points of a learning curve in result.json, each the mean of successive steps
CURVE_POINTS = 50


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; the module's docstring tells how the defaults were chosen."""

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
    smoke: bool = False
    """Run every stage in seconds, with tiny sizes and few steps: for tests, not for results."""
    out: Path = Path("runs/gradient_flow")
    """Folder for the results, the table and the pictures; what is there is overwritten."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "adding_steps", "adding_batch", "vowel_steps"):
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
        expected = "the name of a folder other than the current one (which an empty name means)"
        require_option(self, "out", self.out != Path(), expected)


def smoke_version(config: Config) -> Config:
    """Return the same work in miniature."""
    return dataclasses.replace(
        config,
        length=8,
        hidden_size=3,
        adding_steps=4,
        adding_batch=4,
        vowel_steps=3,
        vowel_batch=4,
        rows=5,
        test_sequences=50,
        windows=(2, 4),
    )


def analyse(
    cell: jaxrnn.Cell,
    task: Task,
    params: classifier.Params,
    batch: Any,
    *,
    windows: tuple[int, ...],
    figure: SubFigure,
    title: str,
) -> dict[str, Any]:
    """Draw the gradient of the batch's loss into ``figure``, and return its numbers."""
    # the loss reads the final states only
    arguments = (cell, params.forward, batch.xs, None, final_gradient(cell, task, params, batch))
    explanation = jaxrnn.diagnostics.explain(
        *arguments, lengths=batch.lengths, windows=windows, title=title, figure=figure
    )
    T, rows = batch.xs.shape[:2]
    lengths = np.full(rows, T) if batch.lengths is None else np.asarray(batch.lengths)
    flow = explanation.flow
    # of h and c together: either alone leaves out what passes through the other
    norms = np.sqrt(sum(leaf.astype(np.float64) ** 2 for leaf in flow.states))
    own_norms = jaxrnn.diagnostics.example_gradient_norms(*arguments, lengths=batch.lengths).total
    return {
        "gradient_norm": by_parameter(jax.tree.map(np.linalg.norm, explanation.gradients.params)),
        "rows_with_half": rows_with_half(np.asarray(own_norms)),
        "horizon": by_parameter(explanation.horizons),
        "truncation": {
            str(k): {
                "relative_error": by_parameter(bias.relative_error),
                "cosine": by_parameter(bias.cosine),
            }
            for k, bias in explanation.biases.items()
        },
        "step_norms": by_parameter(explanation.contributions.norms),
        "state_gradient": medians_from_the_end(norms, lengths),
        "spectral_radius": np.asarray(flow.spectral_radius).tolist(),
        "saturated": {
            gate: float(shares.sum() / lengths.sum())
            for gate, shares in flow.saturated._asdict().items()
        },
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def final_gradient(cell: jaxrnn.Cell, task: Task, params: classifier.Params, batch: Any) -> Any:
    """Gradient of the batch's loss with respect to the final state."""
    (final,) = classifier.final_states(cell, params, batch, HANDWRITTEN.unroll)

    def loss(final: Any) -> jax.Array:
        outputs = HANDWRITTEN.affine(params.readout, final.h)
        return task.loss(outputs, batch, HANDWRITTEN)

    return jax.grad(loss)(final)


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


def study(
    name: str,
    task: Task,
    initial: classifier.Params,
    batch: Any,
    parts: Sequence[SubFigure],
    batches: Any,
    config: Config,
) -> tuple[classifier.Params, dict[str, Any]]:
    """Train a cell on a task, and analyse the gradient of the batch before and after.

    Args:
        name: of the cell.
        task: what it learns.
        initial: the parameters before training.
        batch: the rows whose gradient is analysed.
        parts: a figure for each stage.
        batches: of all training steps.
        config: the options.

    Returns:
        The trained parameters, and the report that result.json holds.
    """
    started = time.monotonic()
    cell = CELLS[name]
    trained, losses = tasks.train(
        cell, task, initial, batches, learning_rate=config.learning_rate, clip=config.clip
    )
    seconds = time.monotonic() - started
    print(f"trained {name} on {task.title}: {task.steps} steps in {seconds:.1f} s", flush=True)
    stages = {
        stage: analyse(
            cell,
            task,
            params,
            batch,
            windows=config.windows,
            figure=figure,
            title=f"{gradient_report.CELL_NAMES[name]}, {words}",
        )
        for (stage, words), params, figure in zip(
            STAGES.items(), (initial, trained), parts, strict=True
        )
    }
    curve = [float(part.mean()) for part in np.array_split(losses, min(CURVE_POINTS, len(losses)))]
    return trained, {"learning_curve": curve, "stages": stages}


def run(config: Config) -> dict[str, Any]:
    """Do the whole experiment and return what result.json holds."""
    started = time.monotonic()
    if config.smoke:
        config = smoke_version(config)
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
    analysed, training, tested = (np.random.default_rng((config.seed, n)) for n in range(3))
    batches = {name: task.draw(analysed, config.rows) for name, task in learnt.items()}
    init_key = jax.random.key(config.seed)
    initial = {
        task_name: {
            name: tasks.init(cell, task, init_key, config.hidden_size)
            for name, cell in CELLS.items()
        }
        for task_name, task in learnt.items()
    }

    differences = {
        f"{task_name} {name} {parameter}": difference
        for task_name, task in learnt.items()
        for name, cell in CELLS.items()
        for parameter, difference in cross_check.gradient_differences(
            tasks.batch_loss(cell, task),
            tasks.batch_loss(cell, task, classifier.AUTODIFF),
            initial[task_name][name],
            batches[task_name],
        ).items()
    }
    print(cross_check.table(differences))
    cross_check.require_agreement(differences)

    trained: dict[str, dict[str, classifier.Params]] = {name: {} for name in learnt}
    reports: dict[str, Any] = {}
    for task_name, task in learnt.items():
        batch = batches[task_name]
        training_batches = tasks.training_batches(task, training)
        figure, parts = plots.grid_of_figures(
            len(STAGES),
            len(CELLS),
            title=f"Gradient of the loss of {config.rows} sequences, {config.hidden_size} units: "
            f"{task.title}",
        )
        cells = {}
        for name, column in zip(CELLS, parts.T, strict=True):
            trained[task_name][name], cells[name] = study(
                name, task, initial[task_name][name], batch, column, training_batches, config
            )
        plots.share_limits(parts)
        records.write_atomically(config.out / f"{task_name}.png", plots.png(figure))
        lengths = np.full(config.rows, len(batch.xs)) if batch.lengths is None else batch.lengths
        reports[task_name] = {
            "title": task.title,
            "steps": int(max(lengths)),
            "last_window": steps_of_last_windows(np.asarray(lengths), config.windows),
            "cells": cells,
        }

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
    table = gradient_report.table(reports)
    findings = gradient_report.findings(reports, rows=config.rows, seed=config.seed)
    print(f"\n{table}\n\n{textwrap.fill(findings, 100)}\n")

    result = {
        "experiment": "gradient_flow",
        "findings": findings,
        "tasks": reports,
        "params_sha256": records.sha256_of_arrays(trained),
        "cross_check": {"tolerance": cross_check.TOLERANCE, "differences": differences},
        "config": {**dataclasses.asdict(config), "out": str(config.out)},
        "versions": records.versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    contents = {
        "result.json": json.dumps(result, indent=2),
        "report.md": f"{table}\n\n{textwrap.fill(findings, 100)}",
    }
    for name, content in contents.items():
        records.write_atomically(config.out / name, content.encode() + b"\n")
    print(f"{result['seconds']} s; the numbers, the table and the pictures are in {config.out}")
    return result


def main(arguments: Sequence[str]) -> None:
    """Run with options from the command line."""
    config = tyro.cli(
        Config,
        prog="python -m experiments gradient_flow",
        description=(__doc__ or "").partition("\n")[0],
        args=arguments,
    )
    run(config)
