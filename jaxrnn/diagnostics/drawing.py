"""The figures of `jaxrnn.diagnostics.explain`: one cell, or all layers of a network."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrnn.diagnostics.flow import NonFinite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["Parameter", "Part", "Time", "draw_cell", "draw_network"]

# the range of the colours is fixed, so that figures can be compared
SHARES = (1e-4, 1.0)

# of each kind of lines: the label of the y axis, and that of a line
PANELS = {
    "states": ("gradient norm", r"$\partial L\,/\,\partial {}_t$"),
    "jacobians": ("Jacobian norm", r"$\partial h_T\,/\,\partial {}_t$"),
    "saturated": ("saturated [%]", "{}"),
}


class Parameter(NamedTuple):
    """One parameter as it is shown.

    ``horizon`` is None for a learned initial state, to which no step adds: it has no ``shares``.
    """

    name: str
    norm: float
    horizon: int | None
    shares: np.ndarray
    biases: dict[int, tuple[float, float]]


class Time(NamedTuple):
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

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis: no row has a step beyond these."""
        return (0.5 - self.longest, 0.5) if self.first else (-0.5, self.longest - 0.5)

    @property
    def places(self) -> str:
        """The label of the axis."""
        end = "first" if self.reverse else "last"
        return f"valid step, counted from each row's {end}" if self.in_line else "time step t"

    def place(self, t: int) -> str:
        if not self.in_line:
            return f"at t = {t}"
        n, end = (t, "first") if self.reverse else (self.T - 1 - t, "last")
        where = "after the first" if self.reverse else "before the last"
        return f"{n} step{'s' * (n != 1)} {where}" if n else f"at the {end}"


class Part(NamedTuple):
    """A cell, or one direction of a layer, as it is shown.

    ``bands`` are the lines of each panel by name, percentiles of the rows ``[3, T]``; ``radii``
    the spectral radii of the recurrent matrices by name.
    """

    name: str
    parameters: list[Parameter]
    bands: dict[str, dict[str, np.ndarray]]
    time: Time
    radii: dict[str, float]
    nonfinite: NonFinite


def draw_cell(figure: "FigureBase | None", title: str, part: Part) -> "FigureBase":
    """Draw one panel below the other, over the same axis of time; None makes a new figure."""
    from matplotlib.figure import Figure

    if figure is None:
        figure = Figure(figsize=(7, 8.5), layout="constrained")
    figure.suptitle(title)
    shares, *panels = figure.subplots(
        1 + len(part.bands), 1, sharex=True, height_ratios=[1.2, *(1 for _ in part.bands)]
    )
    image = _draw_shares(shares, part)
    figure.colorbar(
        image,
        ax=shares,
        location="top",
        aspect=50,
        label="norm of each step's term / their sum, and the last steps that hold 95 %",
    )
    for axes, (kind, lines) in zip(panels, part.bands.items(), strict=True):
        _draw_lines(axes, kind, lines, part.time)
        axes.set_ylabel(PANELS[kind][0])
        axes.legend(fontsize="small", ncols=4)
    axes.set_xlim(*part.time.limits)
    axes.set_xlabel(part.time.places + ", processed backwards" * part.time.reverse)
    return figure


def draw_network(figure: "FigureBase | None", title: str, parts: list[Part]) -> "FigureBase":
    """Draw one row for each part, the first one on top, and one column for each kind of panel.

    Axes of one column share their scale, so that layers can be compared; None makes a new figure.
    """
    from matplotlib.figure import Figure

    kinds = [kind for kind in PANELS if any(part.bands.get(kind) for part in parts)]
    heights = [max(1.5, 0.25 * len(part.parameters)) for part in parts]
    if figure is None:
        size = (4.5 + 2.2 * len(kinds), 1.5 + sum(heights) + 0.3 * len(parts))
        figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    head, *rows = figure.subplots(
        1 + len(parts),
        1 + len(kinds),
        height_ratios=[0.12, *heights],
        width_ratios=[1.4, *(1 for _ in kinds)],
        squeeze=False,
    )
    for part, (shares, *_) in zip(parts, rows, strict=True):
        image = _draw_shares(shares, part)
        shares.set_title(part.name, loc="left", fontsize="medium", fontweight="bold")
    colours = figure.colorbar(image, cax=head[0], orientation="horizontal", ticklocation="top")
    colours.set_label("norm of each step's term / their sum,\nand the last steps that hold 95 %")
    for kind, of_head, *column in zip(kinds, head[1:], *(row[1:] for row in rows), strict=True):
        of_head.set_axis_off()
        limits = _limits([part.bands[kind] for part in parts if part.bands.get(kind)])
        shown: list[str] = []
        for part, axes in zip(parts, column, strict=True):
            lines = part.bands.get(kind)
            if not lines:
                axes.set_axis_off()
                continue
            _draw_lines(axes, kind, lines, part.time)
            if axes.get_yscale() == "log":
                axes.set_ylim(*limits)
                axes.yaxis.set_minor_formatter("")
            # of rows with the same lines, the first one shows which they are
            if list(lines) != shown:
                _legend(axes, of_head if not shown else axes, None if shown else PANELS[kind][0])
                shown = list(lines)
    for n, (part, row) in enumerate(zip(parts, rows, strict=True)):
        same_below = n + 1 < len(parts) and parts[n + 1].time.limits == part.time.limits
        for axes in row:
            axes.set_xlim(*part.time.limits)
            axes.tick_params(labelbottom=not same_below)
    places = [each.time.places for each in parts if not each.time.reverse]
    backward = [each.time.places for each in parts if each.time.places not in places]
    figure.supxlabel("; backward: ".join([places[0], *backward[:1]]), fontsize="medium")
    return figure


def _legend(axes: "Axes", place: "Axes", title: str | None) -> None:
    """The names of the lines, above the axes or in the place of other ones."""
    handles, labels = axes.get_legend_handles_labels()
    place.legend(
        handles,
        labels,
        title=title,
        loc="lower center",
        bbox_to_anchor=(0.5, 0 if title else 1),
        borderaxespad=0.2,
        ncols=4,
        handlelength=1,
        columnspacing=1,
        frameon=False,
    )


def _limits(of_parts: list[dict[str, np.ndarray]]) -> tuple[float, float]:
    """Powers of ten around all numbers above zero, two at least."""
    values = np.concatenate([np.ravel(band) for lines in of_parts for band in lines.values()])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.1, 1.0
    # larger exponents leave the range of float64
    low, high = np.clip(np.log10([values.min(), values.max()]), -307, 307)
    return 10.0 ** np.floor(low), 10.0 ** max(np.ceil(high), np.floor(low) + 1)


def _draw_shares(axes: "Axes", part: Part) -> Any:
    """The shares of every step by parameter as colours, and a line before the horizon."""
    from matplotlib.colors import LogNorm

    time = part.time
    parameters = [each for each in part.parameters if each.horizon is not None]
    horizons = [each.horizon or 0 for each in parameters]
    image = axes.imshow(
        np.clip([parameter.shares for parameter in parameters], *SHARES),
        norm=LogNorm(*SHARES),
        cmap="magma",
        aspect="auto",
        interpolation="nearest",
        extent=(time.first - 0.5, time.first + time.T - 0.5, len(parameters) - 0.5, -0.5),
    )
    rows = range(len(parameters))
    axes.set_yticks(rows, [parameter.name for parameter in parameters])
    for row, horizon in zip(rows, horizons, strict=True):
        edge = time.first - 0.5 + (horizon if time.reverse else time.T - horizon)
        axes.plot([edge, edge], [row - 0.5, row + 0.5], color="tab:cyan", linewidth=2)
    reach = axes.secondary_yaxis("right")
    reach.set_yticks(rows, [f"last {horizon}" for horizon in horizons])
    reach.tick_params(length=0, labelcolor="tab:cyan")
    return image


def _draw_lines(axes: "Axes", kind: str, lines: dict[str, np.ndarray], time: Time) -> None:
    """The median of the rows by name, in a band."""
    t = np.arange(time.first, time.first + time.T)
    logarithmic = False
    for name, band in lines.items():
        if kind == "saturated":
            band = 100 * band
        else:
            band = np.where(band > 0, band, np.nan)
            logarithmic |= bool(np.isfinite(band[1]).any())
        # a single step makes no line
        marker = "o" if time.longest == 1 else None
        label = PANELS[kind][1].format(name if kind == "saturated" else _symbol(name))
        (line,) = axes.plot(t, band[1], label=label, marker=marker)
        axes.fill_between(t, band[0], band[2], color=line.get_color(), alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    if logarithmic:
        axes.set_yscale("log")
    if kind == "saturated":
        axes.set_ylim(-3, 103)


def _symbol(name: str) -> str:
    """The name of a state's leaf, for a formula."""
    if len(name) == 1:
        return name
    return r"\mathrm{" + re.sub(r"\W", r"\\ ", name).replace("_", r"\_") + "}"
