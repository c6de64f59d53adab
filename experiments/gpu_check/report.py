"""The table and the picture of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.common import plots

_BASE = "unroll_reference"


def progress(line: Mapping[str, Any]) -> str:
    """One line of the result, as it is printed when it is there."""
    if line["part"] == "values" and "cell" in line:
        about = f"{line['cell']}, {line['case']}, {line['precision']}"
        found = f"{line['difference']:.0e} of {line['tolerance']:.0e}"
        return f"{line['at_seconds']:6.1f} s  values: {about}: {found}, {line['status']}"
    about = ": ".join(line[key] for key in ("what", "who") if key in line) or line["part"]
    time = f"{line['median_ms']:.3f} ms, " if "median_ms" in line else ""
    return f"{line['at_seconds']:6.1f} s  {about}: {time}{line['status']}"


def wrong(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines that failed or differ from what is right."""
    return [
        line
        for line in result["lines"]
        if line["status"].startswith(("WRONG", "DISAGREES", "FAILED", "failed"))
    ]


def text(result: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    machine, versions = result["machine"], result["versions"]
    source = result["source"]
    parts = [
        f"# jaxrnn on {machine['device']}",
        f"jax {versions['jax']}, {machine['cores']} cores of {machine['processor']}, "
        f"{source['date']}, commit {(source['commit'] or 'unknown')[:10]}.",
    ]
    if result["small"]:
        parts.append("In miniature: the times mean nothing.")
    bad = wrong(result)
    if bad:
        parts.append("**Wrong:**\n\n" + "\n".join(f"- {progress(line)}" for line in bad))
    parts.append(_values(result["lines"]))
    parts += _times(result["lines"])
    return "\n\n".join(part for part in parts if part)


def _values(lines: Sequence[Mapping[str, Any]]) -> str:
    checks = [line for line in lines if line["part"] == "values" and "cell" in line]
    if not checks:
        return ""
    rows = []
    for cell in dict.fromkeys(line["cell"] for line in checks):
        for precision in dict.fromkeys(line["precision"] for line in checks):
            these = [
                line for line in checks if (line["cell"], line["precision"]) == (cell, precision)
            ]
            if these:
                worst = max(these, key=lambda line: (line["status"] != "ok", line["difference"]))
                rows.append(
                    [
                        cell,
                        precision,
                        str(len(these)),
                        f"{worst['difference']:.1e}",
                        f"{worst['tolerance']:.0e}",
                        f"`{worst['worst']}`",
                    ]
                )
    head = ["cell", "precision", "cases", "largest difference", "allowed", "of"]
    title = "## Values and gradients against float64, relative to each array's largest entry"
    return f"{title}\n\n{_table(head, rows)}"


def _times(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    timed = [line for line in lines if line["part"] != "values"]
    tables = []
    for part in dict.fromkeys(line["part"] for line in timed):
        rows = []
        for line in (line for line in timed if line["part"] == part):
            any_timed = any("median_ms" in other for other in _same(timed, line))
            base = _base(timed, line)
            rows.append(
                [
                    line.get("what", ""),
                    line.get("who", ""),
                    f"{line['median_ms']:.3f}" if "median_ms" in line else "",
                    f"{line['least_ms']:.3f}" if "least_ms" in line else "",
                    f"{line['us_per_step']:.2f}" if "us_per_step" in line else "",
                    f"{base / line['median_ms']:.2f}" if base and "median_ms" in line else "",
                    _number(line.get("temporary_MB")),
                    line["status"] if line["status"] != "ok" or not any_timed else "",
                ]
            )
        head = [
            *("what", "who", "median [ms]", "least [ms]", "per step [us]"),
            *(f"faster than {_BASE}", "temporaries [MB]", ""),
        ]
        tables.append(f"## {part.replace('_', ' ')}\n\n{_table(head, rows)}")
    return tables


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _same(lines: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [other for other in lines if other.get("what") == line.get("what")]


def _base(lines: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> float | None:
    """The median of the differentiated scan beside which the line stands."""
    return next(
        (
            other["median_ms"]
            for other in _same(lines, line)
            if other.get("who") == _BASE and "median_ms" in other
        ),
        None,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that no row fills are left out."""
    kept = [n for n in range(len(head)) if any(row[n] for row in rows)]
    lines = [
        [head[n] for n in kept],
        ["---"] * len(kept),
        *([row[n] for n in kept] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(result: Mapping[str, Any]) -> bytes:
    """Time per step: the cells beside their peers, options and loops, and larger networks."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    small = ", in miniature" if result["small"] else ""
    figure.suptitle(
        f"A training step on {result['machine']['device']}{small}: microseconds per time step"
    )
    panels = {
        "cells": "each cell, float32",
        "sizes": "larger LSTMs: T, B, H, precision",
        "options": "LSTM: compiler options",
        "loops": "LSTM: step loops and chunks",
    }
    grid = figure.subplots(2, 2, height_ratios=(3, 2)).flat
    for axes, (part, title) in zip(grid, panels.items(), strict=True):
        lines = [line for line in result["lines"] if line["part"] == part and "us_per_step" in line]
        axes.set_title(title)
        if lines:
            draw = _groups if part in ("cells", "sizes") else _bars
            draw(axes, lines)
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.spines[["top", "right"]].set_visible(False)
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
    return plots.png(figure)


def _bars(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """A bar for each line, from the top."""
    bars = axes.barh([line["who"] for line in lines], [line["us_per_step"] for line in lines])
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)


def _groups(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """The lines about the same thing together, one colour for each contender."""
    groups = list(dict.fromkeys(line["what"] for line in lines))
    contenders = list(dict.fromkeys(line["who"] for line in lines))
    first, places = 0, []
    for what in groups:
        these = [line for line in lines if line["what"] == what]
        for n, line in enumerate(these):
            who = line["who"]
            bars = axes.barh(first + n, line["us_per_step"], color=f"C{contenders.index(who)}")
            axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        places.append(first + (len(these) - 1) / 2)
        first += len(these) + 1
    names = [what.removeprefix("training, ").removeprefix("LSTM, T, B, H = ") for what in groups]
    axes.set_yticks(places, names)
    handles = [Patch(color=f"C{n}", label=who) for n, who in enumerate(contenders)]
    # below the axis, where no bar can be
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=5, fontsize=8
    )
