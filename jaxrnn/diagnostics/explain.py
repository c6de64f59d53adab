"""One report on a gradient: a table to print and a figure to look at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import jax
import numpy as np

from jaxrnn.cells.contract import Cell, Params, State
from jaxrnn.diagnostics.contributions import StepContributions, horizon, step_contributions
from jaxrnn.diagnostics.flow import ORIGINS, GradientFlow, gradient_flow
from jaxrnn.diagnostics.recording import Gradients, Options, backpropagate, require_known
from jaxrnn.diagnostics.truncation import TruncationBias, truncation_bias
from jaxrnn.validation import describe, size

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["Explanation", "explain"]

# the range of the colours is fixed, so that figures can be compared
SHARES = (1e-4, 1.0)


class Explanation(NamedTuple):
    """What `explain` found, in words, as a picture, and as NumPy arrays.

    ``gradients`` are those of `backpropagate`; ``contributions``, ``flow`` and ``horizons`` the
    results of `step_contributions` (with ``from_end`` where there are ``lengths`` and no
    ``reverse``), `gradient_flow` and `horizon`; ``biases`` holds that of `truncation_bias` for
    each window.
    """

    table: str
    figure: "FigureBase"
    gradients: Gradients
    contributions: StepContributions
    flow: GradientFlow
    horizons: Params
    biases: dict[int, TruncationBias]


def explain(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    dhs: jax.Array | None,
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
    sensitivity of the last state to every earlier one; and the share of saturated gates, where the
    cell tells their slopes. Lines are medians over the rows of the batch that are finite there,
    with bands from the 10th to the 90th percentile. Rows of different ``lengths`` are drawn so that
    they end together.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        windows: windows of truncated BPTT to compare with, each in 1..T; None for about a tenth, a
            quarter and a half of T.
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
    require_known(options)
    arguments = (params, xs, dhs, dfinal, initial_state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arguments, options))):
        raise TypeError("`explain` prints and draws numbers: call it outside of jax.jit")
    gradients = backpropagate(cell, *arguments, **options)
    T, *batch_shape, I = gradients.xs.shape
    if gradients.xs.size == 0:
        raise ValueError(f"`xs` must hold at least one step of one row; got {describe(xs)}")
    windows = _validate_windows(windows, T)
    reverse = bool(options.get("reverse", False))
    lengths = options.get("lengths")
    from_end = lengths is not None and not reverse
    rows = np.broadcast_to(T if lengths is None else np.asarray(lengths), batch_shape).ravel()
    if rows.max() == 0:
        raise ValueError("`lengths` must leave a step to explain; got zeros only")
    gradients, contributions, flow, horizons, biases = jax.device_get(
        (
            gradients,
            step_contributions(cell, *arguments, from_end=from_end, **options),
            gradient_flow(cell, *arguments, **options),
            horizon(cell, *arguments, **options),
            {k: truncation_bias(cell, *arguments, k=k, **options) for k in windows},
        )
    )
    if title is None:
        H = gradients.states.h.shape[-1]
        counts = {"step": T, "row": len(rows), "input": I, "unit": H}
        counted = (f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
        title = f"{cell.name}: {', '.join(counted)}"
    records = {"states": flow.states, "jacobians": flow.jacobians, "saturated": flow.saturated}
    bands = {
        kind: {name: _bands(leaf, rows, from_end) for name, leaf in record._asdict().items()}
        for kind, record in records.items()
        if record is not None
    }
    parameters = _by_name(gradients.params, horizons, contributions.norms, biases)
    if figure is None:
        figure = Figure(figsize=(7, 8.5), layout="constrained")
    _draw(figure, title, parameters, bands, rows.max(), reverse=reverse, from_end=from_end)
    table = _table(title, T, parameters, bands, flow, from_end=from_end)
    return Explanation(table, figure, gradients, contributions, flow, horizons, biases)


class _Parameter(NamedTuple):
    """What is shown of one parameter."""

    name: str
    norm: float
    horizon: int
    shares: np.ndarray
    biases: dict[int, tuple[float, float]]


def _by_name(
    gradients: Params, horizons: Params, norms: Params, biases: dict[int, TruncationBias]
) -> list[_Parameter]:
    reach, of_steps = jax.tree.leaves(horizons), jax.tree.leaves(norms)
    errors = {k: jax.tree.leaves(bias.relative_error) for k, bias in biases.items()}
    cosines = {k: jax.tree.leaves(bias.cosine) for k, bias in biases.items()}
    parameters = []
    for n, (path, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(gradients)):
        sizes = np.asarray(of_steps[n], np.float64)
        parameters.append(
            _Parameter(
                name=jax.tree_util.keystr(path, simple=True, separator="."),
                norm=float(np.linalg.norm(np.asarray(gradient, np.float64))),
                horizon=int(reach[n]),
                shares=sizes / (sizes.sum() or 1.0),
                biases={k: (float(errors[k][n]), float(cosines[k][n])) for k in biases},
            )
        )
    return parameters


def _bands(values: np.ndarray, lengths: np.ndarray, from_end: bool) -> np.ndarray:
    """10th, 50th and 90th percentile over the rows still running, of ``[T, ...]``: ``[3, T]``."""
    T = len(values)
    values = np.asarray(values, np.float64).reshape(T, len(lengths))
    bands = np.full((3, T), np.nan)
    for j in range(T):
        # the step of each row that stands in this place
        t = j - T + lengths if from_end else np.full_like(lengths, j)
        (running,) = np.nonzero((t >= 0) & (t < lengths))
        found = values[t[running], running]
        found = found[np.isfinite(found)]
        if found.size:
            bands[:, j] = np.percentile(found, [10, 50, 90])
    return bands


def _draw(
    figure: "FigureBase",
    title: str,
    parameters: list[_Parameter],
    bands: dict[str, dict[str, np.ndarray]],
    longest: int,
    *,
    reverse: bool,
    from_end: bool,
) -> None:
    from matplotlib.colors import LogNorm

    T = len(parameters[0].shares)
    first = 1 - T if from_end else 0
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
        edge = first - 0.5 + (parameter.horizon if reverse else T - parameter.horizon)
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
            marker = "o" if longest == 1 else None
            (line,) = axes.plot(t, band[1], label=label.format(name), marker=marker)
            axes.fill_between(t, band[0], band[2], color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if logarithmic:
            axes.set_yscale("log")
        if kind == "saturated":
            axes.set_ylim(-3, 103)
        axes.legend(fontsize="small", ncols=4)
    # no row has a step beyond these
    axes.set_xlim(*((0.5 - longest, 0.5) if from_end else (-0.5, longest - 0.5)))
    axes.set_xlabel("time step, counted from each row's last" if from_end else "time step t")


def _table(
    title: str,
    T: int,
    parameters: list[_Parameter],
    bands: dict[str, dict[str, np.ndarray]],
    flow: GradientFlow,
    *,
    from_end: bool,
) -> str:
    """The same in words, as wide as a terminal."""
    windows = list(parameters[0].biases)
    width = max(len(parameter.name) for parameter in parameters)
    width = max(width, len("parameter"))
    lines = [
        title,
        "",
        f"{'':{width}}  {'':>10}  {'last steps':>10}   truncated to windows of k steps: "
        "relative error (cosine)",
        f"{'parameter':{width}}  {'|gradient|':>10}  {'with 95 %':>10}"
        + "".join(f"   {f'k = {k}':>14}" for k in windows),
    ]
    for parameter in parameters:
        biases = "".join(f"   {e:6.1%} ({c:+.2f})" for e, c in parameter.biases.values())
        lines.append(
            f"{parameter.name:{width}}  {parameter.norm:10.3g}  "
            f"{f'{parameter.horizon} of {T}':>10}{biases}"
        )
    lines.append("")
    for kind, label in (("states", "|dL/d{}_t|"), ("jacobians", "|dh_T/d{}_t|")):
        for name, (_, middle, _) in bands[kind].items():
            lines.append(f"{label.format(name)}: {_ends(middle, from_end)}")
    gates = tuple(bands.get("saturated", {}))
    if flow.spectral_radius is not None:
        radii = np.asarray(flow.spectral_radius)
        names = gates if len(gates) == len(radii) else [f"block {n}" for n in range(len(radii))]
        shown = ", ".join(f"{n} {r:.3f}" for n, r in zip(names, radii, strict=True))
        lines.append(f"spectral radius of w_hh: {shown}")
    if gates:
        means = (f"{n} {np.nanmean(band[1]):.0%}" for n, band in bands["saturated"].items())
        lines.append(f"saturated units, mean over time: {', '.join(means)}")
    lines.append(_nonfinite(flow))
    return "\n".join(lines)


def _ends(line: np.ndarray, from_end: bool) -> str:
    (steps,) = np.nonzero(np.isfinite(line))
    if not steps.size:
        return "not finite anywhere"
    said = []
    for t in steps[[0, -1]]:
        left = len(line) - 1 - t
        place = f"{left} steps before the last" if from_end and left else f"at t = {t}"
        said.append(f"{line[t]:.3g} {'at the last' if from_end and not left else place}")
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


def _validate_windows(windows: Any, T: int) -> tuple[int, ...]:
    if windows is None:
        return tuple(sorted({max(T // part, 1) for part in (10, 4, 2)}))
    if isinstance(windows, str) or not hasattr(windows, "__iter__"):
        raise TypeError(f"`windows` must be a tuple of ints; got {describe(windows)}")
    lengths = tuple(size(f"windows[{n}]", k) for n, k in enumerate(windows))
    for n, k in enumerate(lengths):
        if k > T:
            raise ValueError(f"`windows[{n}]` must be in 1..{T=}, the steps of `xs`; got {k}")
    return lengths
