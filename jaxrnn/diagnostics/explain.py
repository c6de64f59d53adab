"""One report on a gradient: a table to print and a figure to look at."""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import jax
import numpy as np

from jaxrnn.call import Call
from jaxrnn.cells.cell import Cell, Params, State
from jaxrnn.checks import describe, size
from jaxrnn.diagnostics.backpropagation import Gradients, backpropagate
from jaxrnn.diagnostics.contributions import StepContributions, horizon, step_contributions
from jaxrnn.diagnostics.drawing import Parameter, Part, Time, draw_cell, draw_network
from jaxrnn.diagnostics.flow import ORIGINS, GradientFlow, gradient_flow
from jaxrnn.diagnostics.measures import in_line
from jaxrnn.diagnostics.networks import (
    DirectionParams,
    Watched,
    assembled,
    of_direction,
    takes_networks,
)
from jaxrnn.diagnostics.recording import Options, cotangents_of, validated
from jaxrnn.diagnostics.truncation import (
    TruncationBias,
    truncation_bias,
    truncation_bias_of_network,
)

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["Explanation", "explain"]


class Explanation(NamedTuple):
    """The report of `explain`: in words, as a picture, and as NumPy arrays.

    ``gradients`` are those of `backpropagate`; ``contributions``, ``flow`` and ``horizons`` the
    results of `step_contributions` (with ``from_end`` if there are ``lengths`` or a ``mask``),
    `gradient_flow` and `horizon`; ``biases`` holds that of `truncation_bias` for each window. Those
    of a network have its structure.

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


def _explain_network(
    watched: Watched,
    *,
    windows: Sequence[int] | None,
    title: str | None,
    figure: "FigureBase | None",
) -> Explanation:
    _require_canvas(title, figure)
    _require_numbers((watched.params, watched.xs, watched.calls))
    checked = [
        validated(call.cell, call.params, call.xs, call.initial_state, call.options)[0]
        for call in watched.calls
    ]
    # the steps are the same in all of them
    longest = _longest(checked[0], watched.options)
    windows = _validate_windows(windows, checked[0].T, longest)
    masked = checked[0].valid is not None
    found = [_find(call.diagnosed, masked) for call in watched.calls]
    biases = jax.device_get({k: truncation_bias_of_network(watched, k) for k in windows})
    parts = []
    for call, results, (layer, direction, *_) in zip(checked, found, watched.calls, strict=True):
        own = {
            k: TruncationBias(*(of_direction(measure, layer, direction) for measure in bias))
            for k, bias in biases.items()
        }
        name = f"layer {layer}, {direction}: {call.cell.name}"
        parts.append(_part(name, call, results, own))
    if title is None:
        layers = len(watched.network.layers)
        count = f"{layers} layer{'s' * (layers != 1)}"
        title = f"network of {count}: {_sizes(checked[0], watched.xs, watched.dhs, 'output')}"
    figure = draw_network(figure, title, parts)
    by_kind = zip(*found, strict=True)
    together = _Found(*(assembled(watched.network, results) for results in by_kind))
    dxs = jax.device_get(watched.dxs)
    together = together._replace(gradients=together.gradients._replace(xs=dxs))
    return Explanation(_table_of_network(title, parts), figure, *together, biases)


@takes_networks(lambda _, watched, **own: _explain_network(watched, **own))
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

    Of a network, the figure has one row for each layer and direction, the first layer on top, with
    these panels side by side. Panels of one kind share their scale. The table has a block for each.

    Args:
        cell, params, xs, dhs, dfinal, initial_state, options: as in `backpropagate`.
        windows: windows of truncated BPTT to compare with, each in 1..T; None for about a tenth, a
            quarter and a half of the longest row's valid steps. The last window ends at each row's
            last step.
        title: of the table and the figure; None for the cell or the number of layers, and sizes.
        figure: a matplotlib ``Figure`` or ``SubFigure`` to draw into; None for a new one.

    Returns:
        `Explanation`: ``print(explanation.table)``, ``explanation.figure.savefig("bptt.png")``.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: as `backpropagate`; no step of any row; windows out of range; traced
            arguments; a title or a figure that is none.
    """
    _require_canvas(title, figure)
    _require_numbers((params, xs, dhs, dfinal, initial_state, options))
    call, loss = validated(cell, params, xs, initial_state, options)
    dhs, dfinal = cotangents_of(call, dhs, dfinal, loss)
    options.pop("loss", None)
    windows = _validate_windows(windows, call.T, _longest(call, options))

    def diagnosed(diagnostic: Callable[..., Any], **own: Any) -> Any:
        return diagnostic(cell, params, xs, dhs, dfinal, initial_state, **own, **options)

    found = _find(diagnosed, call.valid is not None)
    biases = jax.device_get({k: diagnosed(truncation_bias, k=k) for k in windows})
    part = _part(cell.name, call, found, biases)
    if title is None:
        title = f"{cell.name}: {_sizes(call, call.xs, dhs, 'unit')}"
    figure = draw_cell(figure, title, part)
    return Explanation(_table(title, part), figure, *found, biases)


class _Found(NamedTuple):
    """The results of the diagnostics that `explain` shows beside the biases, as NumPy arrays."""

    gradients: Gradients
    contributions: StepContributions
    flow: GradientFlow
    horizons: Params


def _find(diagnosed: Callable[..., Any], masked: bool) -> _Found:
    return _Found(
        *jax.device_get(
            (
                diagnosed(backpropagate),
                diagnosed(step_contributions, from_end=masked),
                diagnosed(gradient_flow),
                diagnosed(horizon),
            )
        )
    )


def _require_canvas(title: Any, figure: Any) -> None:
    """Refuse to draw without matplotlib, under no title, and on nothing that can be drawn on."""
    try:
        import matplotlib.figure  # noqa: F401
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


def _require_numbers(arguments: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        raise TypeError("`explain` prints and draws numbers: call it outside of jax.jit")


def _valid(call: Call) -> np.ndarray:
    """The valid steps ``[T, rows]``."""
    shape = call.T, math.prod(call.batch_shape)
    return np.ones(shape, bool) if call.valid is None else np.asarray(call.valid).reshape(shape)


def _longest(call: Call, options: Any) -> int:
    """The valid steps of the longest row, at least one."""
    valid = _valid(call)
    if valid.size == 0:
        raise ValueError(f"`xs` must hold at least one step of one row; got {describe(call.xs)}")
    if not valid.any():
        name = "lengths" if options.get("mask") is None else "mask"
        raise ValueError(f"`{name}` must leave a step to explain; got no valid step of any row")
    return int(valid.sum(axis=0).max())


def _sizes(call: Call, xs: Any, dhs: Any, output: str) -> str:
    leading = 1 + len(call.batch_shape)
    I, O = (
        sum(math.prod(leaf.shape[leading:]) for leaf in jax.tree.leaves(tree)) for tree in (xs, dhs)
    )
    counts = {"step": call.T, "row": math.prod(call.batch_shape), "input": I, output: O}
    return ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())


def _part(name: str, call: Call, found: _Found, biases: dict[int, TruncationBias]) -> Part:
    """A cell or one direction of a layer, as it is shown."""
    valid, flow = _valid(call), found.flow
    running = np.sort(valid, axis=0)[:: -1 if call.reverse else 1]

    def bands_of(leaf: Any) -> np.ndarray:
        leaf = in_line(leaf, call.valid, reverse=call.reverse)
        return _bands(np.asarray(leaf, np.float64).reshape(valid.shape), running)

    records = {"states": flow.states, "jacobians": flow.jacobians, "saturated": flow.saturated}
    matrices = {} if call.cell.recurrent is None else call.cell.recurrent(call.params)
    radii = () if flow.spectral_radius is None else flow.spectral_radius
    return Part(
        name=name,
        parameters=_parameters(found, biases),
        bands={
            kind: {path: bands_of(leaf) for path, leaf in _by_path(record, "state").items()}
            for kind, record in records.items()
            if record is not None
        },
        time=Time(call.T, _longest(call, {}), call.reverse, call.valid is not None),
        radii=dict(zip(matrices, map(float, radii), strict=True)),
        nonfinite=flow.nonfinite,
    )


def _by_path(tree: Any, alone: str) -> dict[str, Any]:
    """The leaves of a pytree by where they stand in it; a single array has the other name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") or alone: leaf
        for path, leaf in leaves
    }


def _parameters(found: _Found, biases: dict[int, TruncationBias]) -> list[Parameter]:
    params = found.gradients.params
    named = _by_path(params, "params")
    if isinstance(params, DirectionParams):
        named = {
            **_by_path(params.cell, "params"),
            **{f"initial {name}": leaf for name, leaf in _by_path(params.start, "state").items()},
        }
        used = len(jax.tree.leaves(params.cell))
    else:
        used = len(named)
    horizons, norms = map(jax.tree.leaves, (found.horizons, found.contributions.norms))
    errors = {k: jax.tree.leaves(bias.relative_error) for k, bias in biases.items()}
    cosines = {k: jax.tree.leaves(bias.cosine) for k, bias in biases.items()}
    parameters = []
    for n, (name, gradient) in enumerate(named.items()):
        terms = np.asarray(norms[n], np.float64)
        parameters.append(
            Parameter(
                name=name,
                norm=float(np.linalg.norm(np.asarray(gradient, np.float64))),
                horizon=int(horizons[n]) if n < used else None,
                shares=terms / (terms.sum() or 1.0),
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


def _table(title: str, part: Part) -> str:
    """The same in words, as wide as a terminal."""
    width = _width([part])
    lines = [title, "", *_parameter_lines(part, width), *_footnote(part), "", *_flow_lines(part)]
    return "\n".join([*lines, _nonfinite(part) or "every number is finite"])


def _table_of_network(title: str, parts: list[Part]) -> str:
    """A block for each part, the first layer first, and what holds for all of them."""
    width, lines = _width(parts), [title]
    for part in parts:
        lines += ["", part.name, *_parameter_lines(part, width), *_flow_lines(part)]
        lines += [said for said in [_nonfinite(part)] if said]
    lines += ["", *_footnote(parts[0]), _first_nonfinite(parts)]
    return "\n".join(lines)


def _width(parts: list[Part]) -> int:
    """The width of the column of names."""
    names = [parameter.name for part in parts for parameter in part.parameters]
    return max(map(len, [*names, "parameter"]))


def _parameter_lines(part: Part, width: int) -> list[str]:
    windows = list(part.parameters[0].biases)
    truncated = "   truncated to windows of k steps: relative error (cosine)" if windows else ""
    lines = [
        f"{'':{width}}  {'':>10}  {'last steps':>10}{truncated}",
        f"{'parameter':{width}}  {'|gradient|':>10}  {'with 95 %':>10}"
        + "".join(f"   {f'k = {k}':>14}" for k in windows),
    ]
    for parameter in part.parameters:
        biases = "".join(f"   {e:6.1%} ({c:+.2f})" for e, c in parameter.biases.values())
        reach = "-" if parameter.horizon is None else f"{parameter.horizon} of {part.time.longest}"
        lines.append(f"{parameter.name:{width}}  {parameter.norm:10.3g}  {reach:>10}{biases}")
    return lines


def _footnote(part: Part) -> list[str]:
    said = "(the last window ends at each row's last step, the first one may be shorter)"
    return [said] if part.parameters[0].biases else []


def _flow_lines(part: Part) -> list[str]:
    lines = []
    for kind, label in (("states", "|dL/d{}_t|"), ("jacobians", "|dh_T/d{}_t|")):
        for name, (_, middle, _) in part.bands.get(kind, {}).items():
            lines.append(f"{label.format(name)}: {_ends(middle, part.time)}")
    if part.radii:
        shown = ", ".join(f"{name} {radius:.3f}" for name, radius in part.radii.items())
        lines.append(f"spectral radius of the recurrent matrices: {shown}")
    if part.bands.get("saturated"):
        means = (f"{n} {np.nanmean(band[1]):.0%}" for n, band in part.bands["saturated"].items())
        lines.append(f"saturated units, mean over time: {', '.join(means)}")
    return lines


def _ends(line: np.ndarray, time: Time) -> str:
    (steps,) = np.nonzero(np.isfinite(line))
    if not steps.size:
        return "not finite anywhere"
    said = [f"{line[t]:.3g} {time.place(int(t))}" for t in steps[[0, -1]]]
    return f"{', '.join(said)} (median of the rows)"


def _nonfinite(part: Part) -> str | None:
    steps, origins = (np.atleast_1d(leaf) for leaf in part.nonfinite)
    found = np.argwhere(steps >= 0)
    if not len(found):
        return None
    row = tuple(found[0])
    where = f", row {', '.join(map(str, row))}" if np.ndim(part.nonfinite.step) else ""
    more = f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
    return f"NOT FINITE from step {steps[row]}{where}: began in {ORIGINS[origins[row]]}{more}"


def _first_nonfinite(parts: list[Part]) -> str:
    """The part that the first number that is not finite came up in.

    The forward pass goes from the first part to the last one, the backward pass the other way.
    """
    forwards = range(1, ORIGINS.index("forward pass") + 1)
    in_order = [
        *(part.name for part in parts if np.isin(part.nonfinite.origin, forwards).any()),
        *(part.name for part in reversed(parts) if _nonfinite(part)),
    ]
    return f"NOT FINITE first in {in_order[0]}" if in_order else "every number is finite"


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
