"""One report on a gradient: a table to print and a figure to look at."""

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import jax
import numpy as np

from jaxrnn.cells.cell import Cell, Params, State
from jaxrnn.checks import describe, size
from jaxrnn.diagnostics.backpropagation import Gradients, backpropagate
from jaxrnn.diagnostics.contributions import StepContributions, horizon, step_contributions
from jaxrnn.diagnostics.flow import ORIGINS, GradientFlow, gradient_flow
from jaxrnn.diagnostics.measures import in_line
from jaxrnn.diagnostics.recording import Options, cotangents_of, validated
from jaxrnn.diagnostics.truncation import TruncationBias, truncation_bias

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["Explanation", "explain"]

# the range of the colours is fixed, so that figures can be compared
SHARES = (1e-4, 1.0)


class Explanation(NamedTuple):
    """The report of `explain`: in words, as a picture, and as NumPy arrays.

    ``gradients`` are those of `backpropagate`; ``contributions``, ``flow`` and ``horizons`` the
    results of `step_contributions` (with ``from_end`` if there are ``lengths`` or a ``mask``),
    `gradient_flow` and `horizon`; ``biases`` holds that of `truncation_bias` for each window.

    In a Python session it shows its table, in a notebook its figure, too.
    """

    table: str
    figure: "FigureBase"
    gradients: Gradients
    contributions: StepContributions
    flow: GradientFlow
    horizons: Params
    biases: dict[int, TruncationBias]

    def __repr__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        picture = io.BytesIO()
        # of a part of a figure, the whole
        whole: Any = self.figure.figure
        whole.savefig(picture, format="png")
        encoded = base64.b64encode(picture.getvalue()).decode()
        return (
            f"<pre>{html.escape(self.table)}</pre>"
            f'<img src="data:image/png;base64,{encoded}" alt="the same as a figure">'
        )


def explain(
    cell: Cell,
    params: Params,
    xs: Any,
    dhs: Any = None,
    dfinal: State | None = None,
    initial_state: State | None = None,
    *,
    windows: Sequence[int] | None = None,
    title: str | None = None,
    figure: "FigureBase | None" = None,
    **options: Unpack[Options],
) -> Explanation:
    """Explain a gradient: which steps make it, how far it reaches, what truncation would lose.

    The figure has time on its x axis: for each parameter the norm of every step's term in its
    gradient, as colour, relative to the sum of these norms, with a line before the last steps that
    hold 95 % of the gradient (`horizon`); the norm of the gradient that passes every state; the
    sensitivity of the last output to every earlier state; and the share of saturated gates, where
    the cell tells their slopes. Lines are medians over the rows of the batch that are finite there,
    with bands from the 10th to the 90th percentile. With ``lengths`` or a ``mask``, each row's
    valid steps are drawn side by side, so that all rows end together (with ``reverse``: begin).

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        windows: windows of truncated BPTT to compare with, each in 1..T; None for about a tenth, a
            quarter and a half of the longest row's valid steps. The last window ends at each row's
            last step.
        title: of the table and the figure; None for the cell and its sizes.
        figure: a matplotlib ``Figure`` or ``SubFigure`` to draw into; None for a new one.

    Returns:
        `Explanation`: ``print(explanation.table)``, ``explanation.figure.savefig("bptt.png")``.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: as `backpropagate`; no step of any row; windows out of range; traced
            arguments; a title or a figure that is none.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`jaxrnn.diagnostics.explain` draws with matplotlib, which is not installed: "
            "pip install matplotlib, or jaxrnn with its extra [experiments]"
        ) from error
    if title is not None and not isinstance(title, str):
        raise TypeError(f"`title` must be a string or None; got {describe(title)}")
    if figure is not None and not (hasattr(figure, "subplots") and hasattr(figure, "suptitle")):
        raise TypeError(
            f"`figure` must be a matplotlib Figure or SubFigure; got {describe(figure)}"
        )
    arguments = (params, xs, dhs, dfinal, initial_state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arguments, options))):
        raise TypeError("`explain` prints and draws numbers: call it outside of jax.jit")
    call, loss = validated(cell, params, xs, initial_state, options)
    dhs, dfinal = cotangents_of(call, dhs, dfinal, loss)
    options.pop("loss", None)
    T, rows = call.T, math.prod(call.batch_shape)
    if T * rows == 0:
        raise ValueError(f"`xs` must hold at least one step of one row; got {describe(xs)}")
    masked = call.valid is not None
    valid = np.ones((T, rows), bool) if not masked else np.asarray(call.valid).reshape(T, rows)
    if not valid.any():
        name = "lengths" if options.get("mask") is None else "mask"
        raise ValueError(f"`{name}` must leave a step to explain; got no valid step of any row")
    longest = int(valid.sum(axis=0).max())
    windows = _validate_windows(windows, T, longest)
    arguments = (params, xs, dhs, dfinal, initial_state)
    gradients, contributions, flow, horizons, biases = jax.device_get(
        (
            backpropagate(cell, *arguments, **options),
            step_contributions(cell, *arguments, from_end=masked, **options),
            gradient_flow(cell, *arguments, **options),
            horizon(cell, *arguments, **options),
            {k: truncation_bias(cell, *arguments, k=k, **options) for k in windows},
        )
    )
    time = _Time(T, longest, call.reverse, masked)
    if title is None:
        leading = 1 + len(call.batch_shape)
        I, H = (
            sum(math.prod(leaf.shape[leading:]) for leaf in jax.tree.leaves(tree))
            for tree in (call.xs, dhs)
        )
        counts = {"step": T, "row": rows, "input": I, "unit": H}
        counted = (f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
        title = f"{cell.name}: {', '.join(counted)}"
    running = np.sort(valid, axis=0)[:: -1 if call.reverse else 1]

    def bands_of(leaf: Any) -> np.ndarray:
        leaf = in_line(leaf, call.valid, reverse=call.reverse)
        return _bands(np.asarray(leaf, np.float64).reshape(T, rows), running)

    records = {"states": flow.states, "jacobians": flow.jacobians, "saturated": flow.saturated}
    bands = {
        kind: {name: bands_of(leaf) for name, leaf in _by_path(record, "state").items()}
        for kind, record in records.items()
        if record is not None
    }
    parameters = _parameters(gradients.params, horizons, contributions.norms, biases)
    if figure is None:
        figure = Figure(figsize=(7, 8.5), layout="constrained")
    _draw(figure, title, parameters, bands, time)
    matrices = [] if cell.recurrent is None else list(cell.recurrent(params))
    table = _table(title, parameters, bands, flow, matrices, time)
    return Explanation(table, figure, gradients, contributions, flow, horizons, biases)


class _Parameter(NamedTuple):
    """One parameter as it is shown."""

    name: str
    norm: float
    horizon: int
    shares: np.ndarray
    biases: dict[int, tuple[float, float]]


class _Time(NamedTuple):
    """The axis of time: all steps, those of the longest row, their order, and their places.

    ``in_line``: the valid steps of a row stand side by side, the last one processed at an end.
    """

    T: int
    longest: int
    reverse: bool
    in_line: bool

    @property
    def first(self) -> int:
        """The number of the first place: places before the last one count down to 0."""
        return 1 - self.T if self.in_line and not self.reverse else 0

    def place(self, t: int) -> str:
        if not self.in_line:
            return f"at t = {t}"
        n, end = (t, "first") if self.reverse else (self.T - 1 - t, "last")
        where = "after the first" if self.reverse else "before the last"
        return f"{n} step{'s' * (n != 1)} {where}" if n else f"at the {end}"


def _by_path(tree: Any, alone: str) -> dict[str, Any]:
    """The leaves of a pytree by where they stand in it; a single array has the other name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") or alone: leaf
        for path, leaf in leaves
    }


def _parameters(
    gradients: Params, horizons: Params, norms: Params, biases: dict[int, TruncationBias]
) -> list[_Parameter]:
    reach, of_steps = jax.tree.leaves(horizons), jax.tree.leaves(norms)
    errors = {k: jax.tree.leaves(bias.relative_error) for k, bias in biases.items()}
    cosines = {k: jax.tree.leaves(bias.cosine) for k, bias in biases.items()}
    parameters = []
    for n, (name, gradient) in enumerate(_by_path(gradients, "params").items()):
        sizes = np.asarray(of_steps[n], np.float64)
        parameters.append(
            _Parameter(
                name=name,
                norm=float(np.linalg.norm(np.asarray(gradient, np.float64))),
                horizon=int(reach[n]),
                shares=sizes / (sizes.sum() or 1.0),
                biases={k: (float(errors[k][n]), float(cosines[k][n])) for k in biases},
            )
        )
    return parameters


def _bands(values: np.ndarray, running: np.ndarray) -> np.ndarray:
    """10th, 50th and 90th percentile over the running rows of ``[T, rows]``: ``[3, T]``."""
    bands = np.full((3, len(values)), np.nan)
    for t, of_rows in enumerate(values):
        found = of_rows[running[t] & np.isfinite(of_rows)]
        if found.size:
            bands[:, t] = np.percentile(found, [10, 50, 90])
    return bands


def _draw(
    figure: "FigureBase",
    title: str,
    parameters: list[_Parameter],
    bands: dict[str, dict[str, np.ndarray]],
    time: _Time,
) -> None:
    from matplotlib.colors import LogNorm

    T, first = time.T, time.first
    figure.suptitle(title)
    shares, *panels = figure.subplots(
        1 + len(bands), 1, sharex=True, height_ratios=[1.2, *(1 for _ in bands)]
    )

    image = shares.imshow(
        np.clip([parameter.shares for parameter in parameters], *SHARES),
        norm=LogNorm(*SHARES),
        cmap="magma",
        aspect="auto",
        interpolation="nearest",
        extent=(first - 0.5, first + T - 0.5, len(parameters) - 0.5, -0.5),
    )
    rows = range(len(parameters))
    shares.set_yticks(rows, [parameter.name for parameter in parameters])
    for row, parameter in zip(rows, parameters, strict=True):
        edge = first - 0.5 + (parameter.horizon if time.reverse else T - parameter.horizon)
        shares.plot([edge, edge], [row - 0.5, row + 0.5], color="tab:cyan", linewidth=2)
    horizons = shares.secondary_yaxis("right")
    horizons.set_yticks(rows, [f"last {parameter.horizon}" for parameter in parameters])
    horizons.tick_params(length=0, labelcolor="tab:cyan")
    figure.colorbar(
        image,
        ax=shares,
        location="top",
        aspect=50,
        label="norm of each step's term / their sum, and the last steps that hold 95 %",
    )

    t = np.arange(first, first + T)
    drawn = {
        "states": ("gradient norm", r"$\partial L\,/\,\partial {}_t$"),
        "jacobians": ("Jacobian norm", r"$\partial h_T\,/\,\partial {}_t$"),
        "saturated": ("saturated [%]", "{}"),
    }
    for axes, (kind, lines) in zip(panels, bands.items(), strict=True):
        ylabel, label = drawn[kind]
        logarithmic = False
        for name, band in lines.items():
            if kind == "saturated":
                band = 100 * band
            else:
                band = np.where(band > 0, band, np.nan)
                logarithmic |= bool(np.isfinite(band[1]).any())
            # a single step makes no line
            marker = "o" if time.longest == 1 else None
            symbol = name if kind == "saturated" else _symbol(name)
            (line,) = axes.plot(t, band[1], label=label.format(symbol), marker=marker)
            axes.fill_between(t, band[0], band[2], color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if logarithmic:
            axes.set_yscale("log")
        if kind == "saturated":
            axes.set_ylim(-3, 103)
        axes.legend(fontsize="small", ncols=4)
    # no row has a step beyond these
    outermost = (0.5 - time.longest, 0.5) if first else (-0.5, time.longest - 0.5)
    axes.set_xlim(*outermost)
    end = "first" if time.reverse else "last"
    places = f"valid step, counted from each row's {end}" if time.in_line else "time step t"
    axes.set_xlabel(places + (", processed backwards" if time.reverse else ""))


def _symbol(name: str) -> str:
    """The name of a state's leaf, for a formula."""
    if len(name) == 1:
        return name
    return r"\mathrm{" + re.sub(r"\W", r"\\ ", name).replace("_", r"\_") + "}"


def _table(
    title: str,
    parameters: list[_Parameter],
    bands: dict[str, dict[str, np.ndarray]],
    flow: GradientFlow,
    matrices: list[str],
    time: _Time,
) -> str:
    """The same in words, as wide as a terminal."""
    windows = list(parameters[0].biases)
    width = max(len(parameter.name) for parameter in parameters)
    width = max(width, len("parameter"))
    truncated = "   truncated to windows of k steps: relative error (cosine)" if windows else ""
    lines = [
        title,
        "",
        f"{'':{width}}  {'':>10}  {'last steps':>10}{truncated}",
        f"{'parameter':{width}}  {'|gradient|':>10}  {'with 95 %':>10}"
        + "".join(f"   {f'k = {k}':>14}" for k in windows),
    ]
    for parameter in parameters:
        biases = "".join(f"   {e:6.1%} ({c:+.2f})" for e, c in parameter.biases.values())
        lines.append(
            f"{parameter.name:{width}}  {parameter.norm:10.3g}  "
            f"{f'{parameter.horizon} of {time.longest}':>10}{biases}"
        )
    if windows:
        lines.append("(the last window ends at each row's last step, the first one may be shorter)")
    lines.append("")
    for kind, label in (("states", "|dL/d{}_t|"), ("jacobians", "|dh_T/d{}_t|")):
        for name, (_, middle, _) in bands.get(kind, {}).items():
            lines.append(f"{label.format(name)}: {_ends(middle, time)}")
    if flow.spectral_radius is not None:
        radii = zip(matrices, flow.spectral_radius, strict=True)
        shown = ", ".join(f"{name} {radius:.3f}" for name, radius in radii)
        lines.append(f"spectral radius of the recurrent matrices: {shown}")
    if bands.get("saturated"):
        means = (f"{n} {np.nanmean(band[1]):.0%}" for n, band in bands["saturated"].items())
        lines.append(f"saturated units, mean over time: {', '.join(means)}")
    lines.append(_nonfinite(flow))
    return "\n".join(lines)


def _ends(line: np.ndarray, time: _Time) -> str:
    (steps,) = np.nonzero(np.isfinite(line))
    if not steps.size:
        return "not finite anywhere"
    said = [f"{line[t]:.3g} {time.place(int(t))}" for t in steps[[0, -1]]]
    return f"{', '.join(said)} (median of the rows)"


def _nonfinite(flow: GradientFlow) -> str:
    steps, origins = (np.atleast_1d(leaf) for leaf in flow.nonfinite)
    found = np.argwhere(steps >= 0)
    if not len(found):
        return "every number is finite"
    row = tuple(found[0])
    where = f", row {', '.join(map(str, row))}" if np.ndim(flow.nonfinite.step) else ""
    more = f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
    return f"NOT FINITE from step {steps[row]}{where}: began in {ORIGINS[origins[row]]}{more}"


def _validate_windows(windows: Any, T: int, longest: int) -> tuple[int, ...]:
    if windows is None:
        return tuple(sorted({max(longest // part, 1) for part in (10, 4, 2)}))
    if isinstance(windows, str) or not hasattr(windows, "__iter__"):
        raise TypeError(f"`windows` must be a tuple of ints; got {describe(windows)}")
    lengths = tuple(size(f"windows[{n}]", k) for n, k in enumerate(windows))
    for n, k in enumerate(lengths):
        if k > T:
            raise ValueError(f"`windows[{n}]` must be in 1..{T=}, the steps of `xs`; got {k}")
    return lengths
