"""The picture of a run: every contender's time beside ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.benchmarks import summary
from experiments.benchmarks.contenders import CHOICES, OURS, PRODUCTS
from experiments.common import plots
from experiments.common.text import CELL_NAMES

_TITLES = {"forward": "forward", "training": "training step", "step": "streaming step"}
# one for each, whoever is missing; the yardsticks below are grey
_COLORS = ["black", *(f"C{n}" for n in range(8))]
_STYLES = dict(zip(CHOICES, zip("dovs^DPX*", _COLORS, strict=True), strict=True))


def picture(result: Mapping[str, Any]) -> bytes:
    """A panel for each cell, operation by operation; times as multiples of ours."""
    operations = [name for name in _TITLES if any(summary.cases_of(result, name))]
    cells = list(dict.fromkeys(case["cell"] for case in result["cases"]))
    columns = min(len(cells), _COLUMNS)
    # of each operation
    rows = -(-len(cells) // columns)
    height = 1.5 + 3.6 * rows * len(operations)
    figure = Figure(figsize=(max(1.5 + 4.2 * columns, 9), height), layout="constrained")
    machine = result["machine"]
    where = machine["device"] if machine["jax_platform"] == "gpu" else machine["processor"]
    figure.suptitle(
        f"Least time as a multiple of {OURS}'s, {machine['cores']} cores of {where}:\n"
        f"above the line, slower than {OURS}"
    )
    grid = figure.subplots(rows * len(operations), columns, squeeze=False)
    handles: dict[str, Any] = {}
    for n, operation in enumerate(operations):
        panels = grid[n * rows : (n + 1) * rows].ravel()
        for axes in panels[len(cells) :]:
            axes.remove()
        for cell, axes in zip(cells, panels, strict=False):
            handles |= _panel(axes, result, operation, cell)
            axes.set_title(f"{CELL_NAMES[cell]}, {_TITLES[operation]}")
        for axes in panels[: len(cells) : columns]:
            axes.set_ylabel(f"time / {OURS}'s")
        # of all cells, and at least so far, for the scale to have marks
        lows, highs = zip(*(axes.get_ylim() for axes in panels[: len(cells)]), strict=True)
        for place, axes in enumerate(panels[: len(cells)]):
            axes.set_ylim(min(*lows, 0.45), max(*highs, 2.2))
            axes.tick_params(labelleft=place % columns == 0)
            if place + columns < len(cells):
                # the panel below has the same shapes
                axes.tick_params(labelbottom=False)
                axes.set_xlabel("")
    ordered = [name for name in (*CHOICES, *_YARDSTICKS) if name in handles]
    figure.legend([handles[name] for name in ordered], ordered, loc="outside lower center", ncols=4)
    return plots.png(figure)


# panels beside each other: so many can be read on a page
_COLUMNS = 4
# yardsticks are lines: nobody has to run as fast as these
_LOOP, _RATE = "products alone in the same loop", "products at the matrix rate"
_YARDSTICKS = {_LOOP: "-", _RATE: ":"}


def _panel(axes: Axes, result: Mapping[str, Any], operation: str, cell: str) -> dict[str, Any]:
    """Draw one panel, and return what its legend needs."""
    cases = list(summary.cases_of(result, operation, cell))
    places = np.arange(len(cases))
    ours = [summary.seconds(case, OURS, operation) for case in cases]
    rate = summary.matrix_rate(result)
    shown = [
        name for name in CHOICES if any(summary.seconds(case, name, operation) for case in cases)
    ]
    times = {
        name: [summary.seconds(case, name, operation) for case in cases]
        for name in (*shown, PRODUCTS)
    }
    times[_LOOP] = times.pop(PRODUCTS)
    if operation != "step":
        times[_RATE] = [case["product_flops"][operation] / rate for case in cases]
    handles: dict[str, Any] = {}
    axes.axhline(1, color="black", linewidth=1)
    for place in places[::2]:
        axes.axvspan(place - 0.5, place + 0.5, color="0.95", linewidth=0)
    for name, values in times.items():
        known = [
            (place, other / own)
            for place, other, own in zip(places, values, ours, strict=True)
            if other and own
        ]
        if not known:
            continue
        at, ratios = np.transpose(np.array(known))
        if name in _YARDSTICKS:
            handles[name] = axes.hlines(
                ratios, at - 0.45, at + 0.45, color="0.4", linestyle=_YARDSTICKS[name]
            )
        else:
            n, (marker, color) = shown.index(name), _STYLES[name]
            # beside one another, so that equal times do not hide each other
            shift = 0.8 * ((n + 0.5) / len(shown) - 0.5)
            (handles[name],) = axes.plot(
                at + shift, ratios, marker, color=color, markersize=6, markeredgewidth=0
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(places, [summary.label(case) for case in cases], rotation=30, ha="right")
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.set_xlabel("I,H" if operation == "step" else "T,B,I,H")
    return handles
