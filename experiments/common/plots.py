"""The pictures of the experiments, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.common.text import CELL_NAMES, STAGES

# colours that differ in lightness too, so that they are told apart in grey
_TRAIN, _HELD_OUT = "tab:blue", "tab:orange"


def learning_curves(rows: Sequence[Mapping[str, float]], *, title: str) -> bytes:
    """Loss and accuracy against the training step, on the training and the held-out utterances.

    Args:
        rows: one per step with "step" and "loss" (of that step's batch); the steps that were
            evaluated also hold "train_loss", "train_accuracy" and, where utterances were held out,
            "holdout_loss" and "holdout_accuracy".
        title: what was trained.
    """
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    figure.suptitle(title)
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    losses.plot(
        [row["step"] for row in rows],
        [row["loss"] for row in rows],
        color="0.75",
        linewidth=0.8,
        label="batch of that step, with noise",
    )
    evaluated = [row for row in rows if "train_loss" in row]
    steps = [row["step"] for row in evaluated]
    curves = [("train", "training utterances", _TRAIN), ("holdout", "held out", _HELD_OUT)]
    for prefix, label, color in curves:
        if evaluated and f"{prefix}_loss" in evaluated[0]:
            for axes, quantity, scale in ((losses, "loss", 1), (accuracies, "accuracy", 100)):
                values = [scale * row[f"{prefix}_{quantity}"] for row in evaluated]
                axes.plot(steps, values, color=color, marker=".", label=label)
    losses.set(ylabel="cross-entropy [nats]", yscale="log")
    accuracies.set(ylabel="accuracy [%]", xlabel="training step")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.legend()
    return png(figure)


def losses(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    baselines: Mapping[str, float],
    quantity: str,
    title: str,
) -> bytes:
    """A loss against the training step, a curve for each network, a panel for each task.

    Args:
        panels: the loss of every step, by network, by the title of the panel.
        baselines: the loss of a simpler method, by the title of the panel.
        quantity: what the losses are, with their unit.
        title: of the figure.
    """
    figure = Figure(figsize=(8.3, 3.9), layout="constrained")
    figure.suptitle(title)
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (panel, networks) in zip(row, panels.items(), strict=True):
        for name, values in networks.items():
            # of so many successive steps, to tell the curve from its noise
            count = max(1, len(values) // 100)
            ends = range(count, len(values) + 1, count)
            axes.plot(ends, [np.mean(values[end - count : end]) for end in ends], label=name)
        axes.axhline(baselines[panel], color="0.4", linestyle="--", label="baseline")
        axes.set(title=panel, xlabel="training step", yscale="log")
        axes.grid(alpha=0.3)
    row[0].set_ylabel(quantity)
    row[-1].legend(loc="best")
    return png(figure)


def gradient_by_step(norms: Mapping[str, Mapping[str, np.ndarray]], *, title: str) -> bytes:
    """The gradient with respect to the state, from the last step back: a panel for each network.

    Args:
        norms: ``[T, N]`` of N sequences, by stage, by network.
        title: of the figure.
    """
    figure = Figure(figsize=(8.3, 3.6), layout="constrained")
    figure.suptitle(title)
    row = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    for axes, (name, stages) in zip(row, norms.items(), strict=True):
        for (stage, values), color in zip(stages.items(), ("0.45", "tab:red"), strict=True):
            median = np.median(values, axis=1)
            if median[-1] > 0:
                back = np.arange(len(median)) - len(median) + 1
                # far below, float32 has nothing: the axis ends where no training would notice
                relative = np.maximum(median / median[-1], 1e-12)
                axes.plot(back, relative, color=color, label=f"{stage} training")
        axes.set(title=name, xlabel="step, from the last one back", yscale="log")
        axes.grid(alpha=0.3)
    row[0].set_ylabel("gradient, relative to the last step's")
    row[0].legend(loc="best")
    return png(figure)


def confusion_matrix(counts: np.ndarray, *, names: Sequence[str], what: str, title: str) -> bytes:
    """Counts [true class, predicted class]; errors stand out in red.

    Args:
        counts: integers [C, C].
        names: of the classes.
        what: a class is, ``"speaker"``.
        title: what was classified, and how well.
    """
    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    # the few errors would vanish beside the diagonal on one scale: each has its own
    right = np.eye(len(counts), dtype=bool)
    for cells, colors in ((right, "Blues"), (~right, "Reds")):
        shown = np.ma.masked_where(~cells | (counts == 0), counts)
        # twice the largest count, to keep the cells light enough for black figures
        axes.imshow(shown, cmap=colors, vmin=0, vmax=2 * max(1, counts[cells].max()))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=11)
    numbers = range(len(counts))
    axes.set_xticks(numbers, names)
    axes.set_yticks(numbers, names)
    # thin lines between the cells, on the minor ticks
    edges = np.arange(len(counts) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what}")
    return png(figure)


def gradient_flow(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    lengths: np.ndarray,
    *,
    frame_shift: float,
    title: str,
) -> bytes:
    """Norm of the loss's gradient with respect to the hidden state, at every frame.

    A column per direction. Above, every utterance (sorted by length) and frame, before and after
    training; below, how much of the gradient is left n frames away from the state that is read out.

    Args:
        before: per direction ("forward", "backward"), norms [T, N] at the initial parameters.
        after: the same at the trained ones.
        lengths: frames of each utterance [N].
        frame_shift: milliseconds between frames.
        title: what was trained.
    """
    order = np.argsort(lengths, kind="stable")
    frames = np.arange(max(lengths))
    valid = frames[:, None] < lengths
    directions = [name for name in ("forward", "backward") if name in before]
    figure = Figure(figsize=(1.5 + 4.5 * len(directions), 10.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(3, len(directions), squeeze=False, height_ratios=(1, 1, 0.9))
    colors = matplotlib.colormaps["viridis"].with_extremes(bad="white")
    for axes_row, norms, when in zip(grid, (before, after), ("before", "after"), strict=False):
        inside = np.concatenate([norms[name][: len(frames)][valid] for name in directions])
        # a loss that is zero in float32 has no gradient: keep the scale above zero
        strongest = max(inside.max(), np.finfo(np.float32).tiny)
        # the weakest percent would stretch the scale over decades that hold nothing
        weakest = np.quantile(inside, 0.01)
        scale = LogNorm(np.clip(weakest, 1e-6 * strongest, 0.1 * strongest), strongest)
        for axes, name in zip(axes_row, directions, strict=True):
            shown = np.where(valid, norms[name][: len(frames)], np.nan).T[order]
            image = axes.imshow(
                shown, norm=scale, cmap=colors, aspect="auto", origin="lower", interpolation="none"
            )
            axes.set(title=f"{name} direction, {when} training", xlabel="frame")
        axes_row[0].set_ylabel("utterance, from short to long")
        figure.colorbar(image, ax=axes_row, label="norm of the gradient [nats]")
    for axes, name in zip(grid[2], directions, strict=True):
        away = frames[:, None] if name == "backward" else lengths - 1 - frames[:, None]
        for norms, when, color in ((before, "before", "0.45"), (after, "after", "tab:red")):
            _share_left(axes, norms[name][: len(frames)], away, valid, when, color)
        axes.set(xlabel="frames from the read-out state", yscale="log")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="upper right")
        milliseconds = axes.secondary_xaxis(
            "top", functions=(lambda n: n * frame_shift, lambda ms: ms / frame_shift)
        )
        milliseconds.set_xlabel(f"{name} direction: milliseconds from the read-out state")
    grid[2][0].set_ylabel("norm, relative to the read-out state's")
    return png(figure)


def _share_left(
    axes: matplotlib.axes.Axes,
    norms: np.ndarray,
    away: np.ndarray,
    valid: np.ndarray,
    when: str,
    color: str,
) -> None:
    """Median and 10..90 % band, over utterances, of the norm n frames from the read-out state."""
    at_read_out = np.sum(np.where(valid & (away == 0), norms, 0), axis=0)
    some = at_read_out > 0
    if not some.any():
        return
    shares = norms / np.where(some, at_read_out, 1)
    at_distance = [valid & some & (away == n) for n in range(len(norms))]
    # the few longest utterances alone make no quantiles
    enough = min(10, np.sum(some))
    distances = [n for n, where in enumerate(at_distance) if np.sum(where) >= enough]
    low, median, high = np.transpose(
        [np.quantile(shares[at_distance[n]], (0.1, 0.5, 0.9)) for n in distances]
    )
    axes.fill_between(distances, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(distances, median, color=color, label=f"{when} training: median, 10 to 90 %")


def gradient_reach(task: Mapping[str, Any], *, width: float = 8.3) -> Figure:
    """Draw how far back the gradient of each cell reaches: a column per cell.

    Above, the median norm of the gradient of the state, relative to the last step's, before and
    after training. Below, at both stages, the share of each step in the gradient of each parameter,
    and the last steps that hold 95 % of it.

    Args:
        task: of result.json, with title, steps, score and cells.
        width: in inches; text is of 10 points.
    """
    cells, steps = task["cells"], task["steps"]
    figure = Figure(figsize=(width, 6.2), layout="constrained")
    figure.suptitle(_heading(task))
    grid = figure.subplots(
        1 + len(STAGES), len(cells), squeeze=False, sharex=True, height_ratios=(1.5, 1, 1)
    )
    shares = LogNorm(1e-4, 1.0)
    bottom = 0.1
    for (cell, of_cell), column in zip(cells.items(), grid.T, strict=True):
        above, *below = column
        above.set_title(f"{CELL_NAMES[cell]}: {_score(task['score']['networks'][cell])}")
        for (stage, words), axes, color in zip(
            STAGES.items(), below, ("0.45", "tab:red"), strict=True
        ):
            numbers = of_cell["stages"][stage]
            curve = np.array(numbers["state_gradient"])
            if curve[0] > 0:
                relative = curve / curve[0]
                bottom = min(bottom, relative[relative > 0].min())
                above.plot(-np.arange(len(curve)), relative, color=color, label=words)
            image = _shares_of_steps(axes, numbers, steps, shares)
        below[-1].set_xlabel("step, from the last one back")
    for axes in grid[0]:
        axes.set(yscale="log", ylim=(bottom / 3, 5), xlim=(0.5 - steps, 0.5))
        axes.grid(alpha=0.3)
        axes.label_outer()
    figure.align_ylabels()
    grid[0][0].set_ylabel("gradient of the state,\nrelative to the last step's")
    for row, words in zip(grid[1:], STAGES.values(), strict=True):
        row[0].set_ylabel(words)
    if grid[0][0].lines:
        grid[0][0].legend(loc="best")
    figure.colorbar(
        image,
        ax=grid[1:],
        location="bottom",
        aspect=60,
        label="norm of each step's term in a gradient / sum of these norms\n"
        "blue: how many of the last steps hold 95 % of the gradient",
    )
    return figure


def _shares_of_steps(
    axes: matplotlib.axes.Axes, numbers: Mapping[str, Any], steps: int, scale: LogNorm
) -> matplotlib.image.AxesImage:
    """Draw a row for each parameter, a column for each step, and the horizon."""
    horizons = numbers["horizon"]
    norms = np.array([numbers["step_norms"][name] for name in horizons])[:, -steps:]
    shown = norms / np.maximum(norms.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    image = axes.imshow(
        np.clip(shown, scale.vmin, scale.vmax),
        norm=scale,
        cmap="magma",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5 - steps, 0.5, len(norms) - 0.5, -0.5),
    )
    rows = range(len(norms))
    axes.set_yticks(rows, list(horizons))
    for row, horizon in zip(rows, horizons.values(), strict=True):
        edge = 0.5 - horizon
        axes.plot([edge, edge], [row - 0.5, row + 0.5], color="tab:cyan", linewidth=2)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows, [str(horizon) for horizon in horizons.values()])
    right.tick_params(length=0, labelcolor="tab:blue")
    return image


def _heading(task: Mapping[str, Any]) -> str:
    score = task["score"]
    counted = all("errors" in network for network in score["networks"].values())
    measure = "errors" if counted else "mean squared error"
    baselines = (
        f"{name}: {value if counted else format(value, '.4f')}"
        for name, value in score["baselines"].items()
    )
    first = (
        f"{task['title'][0].upper()}{task['title'][1:]}: {measure} on {score['count']} sequences"
    )
    return f"{first}\n({', '.join(baselines)})"


def _score(network: Mapping[str, Any]) -> str:
    return f"{network['errors']} errors" if "errors" in network else f"error {network['error']:.4f}"


def png(figure: Figure, *, dpi: int = 120) -> bytes:
    """Render the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
