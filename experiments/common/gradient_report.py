"""The table and the findings of `gradient_flow`: made from the numbers of result.json alone.

Other numbers make other sentences; none is written in advance.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.common.text import CELL_NAMES, STAGES, markdown_table

# what the findings speak of: all cells have it, and it acts from one step to the next
PARAMETER = "w_hh"
# the gradient of a state has vanished below the one share of the last step's, exploded above the
# other
VANISHED, EXPLODED = 0.01, 100.0
# of a gradient with less than this share of its norm before training, only a remainder is left
SHRUNK = 0.1
# a window of truncated BPTT is long enough where the gradient is off by no more than this
TOLERATED = 0.1


def table(tasks: Mapping[str, Any]) -> str:
    """Show every task in Markdown, 80 columns wide: its summary, then each gradient.

    A row of the second table is a cell at one stage, and one of its parameters.
    """
    introduction = (
        "Norm of each parameter's gradient; the horizon, the last steps that hold 95 % of it; and "
        "the relative error that truncated BPTT with windows of k steps makes in it. Windows start "
        "at a sequence's first step, so that its last one may be shorter than k. The cosines are "
        "in result.json."
    )
    parts = [textwrap.fill(introduction, 80)]
    for result in tasks.values():
        rows = [
            [
                CELL_NAMES[cell],
                stage,
                parameter,
                f"{numbers['gradient_norm'][parameter]:.2g}",
                str(horizon),
                *(
                    f"{bias['relative_error'][parameter]:.1%}"
                    for bias in numbers["truncation"].values()
                ),
            ]
            for cell, of_cell in result["cells"].items()
            for stage, numbers in of_cell["stages"].items()
            for parameter, horizon in numbers["horizon"].items()
        ]
        windows = [f"k = {k}" for k in result["last_window"]]
        title = (
            f"{_capitalised(result['title'])}. The longest sequence has {result['steps']} steps; "
            f"the last window holds on average {_last_windows(result)}:"
        )
        header = ["cell", "stage", "parameter", "norm", "horizon", *windows]
        parts += [
            textwrap.fill(title, 80),
            summary(result),
            markdown_table(header, rows, words=3),
        ]
    return "\n\n".join(parts)


def summary(result: Mapping[str, Any]) -> str:
    """Show one task in Markdown: horizon and norm of one gradient, and the scores."""
    score = result["score"]
    reach = _of_stages(result["cells"], lambda numbers: numbers["horizon"][PARAMETER])
    norms = _of_stages(result["cells"], lambda numbers: numbers["gradient_norm"][PARAMETER])
    counted = "errors" in next(iter(score["networks"].values()))
    header = ["", f"{PARAMETER}: horizon", "norm", "errors" if counted else "squared error"]
    rows = [
        [
            CELL_NAMES[cell],
            " → ".join(map(str, reach[CELL_NAMES[cell]])),
            " → ".join(f"{norm:.2g}" for norm in norms[CELL_NAMES[cell]]),
            str(network["errors"]) if counted else f"{network['error']:.4f}",
        ]
        for cell, network in score["networks"].items()
    ]
    baselines = (
        f"{name} {value if counted else format(value, '.4f')}"
        for name, value in score["baselines"].items()
    )
    compared = textwrap.fill(f"In comparison: {'; '.join(baselines)}.", 80)
    return f"{markdown_table(header, rows, words=1)}\n\n{compared}"


def findings(tasks: Mapping[str, Any], *, rows: int, seed: int) -> str:
    """Say in a paragraph what the numbers show, task by task; "a → b" is before → after training.

    Args:
        tasks: as in result.json.
        rows: sequences of the batch whose gradient was analysed.
        seed: of the run.
    """
    sentences = []
    for result in tasks.values():
        sentences += [
            f"{_capitalised(result['title'])}.",
            *_scores(result["score"]),
            *_horizons(result),
            *_state_gradients(result),
            *_truncation(result),
        ]
    sentences.append(
        f"All of this is one run with seed {seed}, and the gradients are those of one batch of "
        f"{rows} sequences for each task."
    )
    return " ".join(sentences)


def _capitalised(title: str) -> str:
    return f"{title[0].upper()}{title[1:]}"


def _scores(score: Mapping[str, Any]) -> list[str]:
    """Which networks beat each baseline, and which do not."""
    sentences = []
    for baseline, value in score["baselines"].items():
        groups: dict[str, list[str]] = {"better": [], "equal": [], "worse": []}
        for cell, numbers in score["networks"].items():
            if "errors" in numbers:
                # told as a count, not as a verdict: a few sequences more or less may be chance
                gain, doubt = value - numbers["errors"], 0
                shown = f"{CELL_NAMES[cell]} ({numbers['errors']})"
            else:
                # a gain within two standard errors may be chance
                gain, doubt = numbers["gain"], 2 * numbers["gain_standard_error"]
                share = numbers["error"] / value
                shown = f"{CELL_NAMES[cell]} ({numbers['error']:.4f}, {share:.1%} of it)"
            verdict = "better" if gain > doubt else "worse" if gain < -doubt else "equal"
            groups[verdict].append(shown)
        counted = "errors" in numbers
        verbs = {
            "better": ("beats it", "beat it"),
            "equal": ("is not told apart from it", "are not told apart from it"),
            "worse": ("LOSES to it", "LOSE to it"),
        }
        if counted:
            verbs = {
                "better": ("makes fewer", "make fewer"),
                "equal": ("makes as many", "make as many"),
                "worse": ("makes MORE", "make MORE"),
            }
        verdicts = [
            f"{_listed(cells)} {verbs[verdict][len(cells) > 1]}"
            for verdict, cells in groups.items()
            if cells
        ]
        measure = f"makes {value} errors" if counted else f"has a mean squared error of {value:.4f}"
        sentences.append(
            f"On {score['count']} test sequences {baseline} {measure}: {'; '.join(verdicts)}."
        )
    return sentences


def _horizons(result: Mapping[str, Any]) -> list[str]:
    """How far back each cell's gradient reaches, and what training did to that."""
    reach = _of_stages(result["cells"], lambda numbers: numbers["horizon"][PARAMETER])
    norms = _of_stages(result["cells"], lambda numbers: numbers["gradient_norm"][PARAMETER])
    changes: dict[str, list[str]] = {"lengthened": [], "shortened": [], "kept": []}
    for name, (before, after) in reach.items():
        change = "lengthened" if after > before else "shortened" if after < before else "kept"
        changes[change].append(name)
    said = [
        f"{change} the horizon of {_listed(names)}" for change, names in changes.items() if names
    ]
    trained = {name: after for name, (_, after) in reach.items()}
    longest, shortest = (
        [name for name, steps in trained.items() if steps == extreme]
        for extreme in (max(trained.values()), min(trained.values()))
    )
    compared = "it is the same for all"
    if longest != shortest:
        compared = f"it is longest for {_listed(longest)} and shortest for {_listed(shortest)}"
    halves = _of_stages(result["cells"], lambda numbers: numbers["rows_with_half"])
    sentences = [
        f"The horizon, the last steps, of {result['steps']}, that hold 95 % of the gradient of "
        f"{PARAMETER}, before → after training: {_arrows(reach, str)}.",
        f"Training {_listed(said)}; after it, {compared}.",
        f"The norm of that gradient: {_arrows(norms, lambda norm: f'{norm:.2g}')}.",
    ]
    shrunk = [
        f"{after / before:.1%} in {name}"
        for name, (before, after) in norms.items()
        if after < SHRUNK * before
    ]
    if shrunk:
        sentences.append(
            f"After training {_listed(shrunk)} of it is left: a horizon then tells of what is left "
            "to learn, not of what was learnt."
        )
    sentences.append(
        "So many sequences make half of the sum of all sequences' own gradient norms: "
        f"{_arrows(halves, str)}."
    )
    return sentences


def _state_gradients(result: Mapping[str, Any]) -> list[str]:
    """Where the gradient of the state vanishes on its way back, and where it explodes."""
    curves = _of_stages(result["cells"], lambda numbers: numbers["state_gradient"])
    exploded = [
        f"{max(curve) / curve[0]:.0f}-fold in {name} {when}"
        for name, both in curves.items()
        for curve, when in zip(both, STAGES.values(), strict=True)
        if max(curve) > EXPLODED * curve[0] > 0
    ]
    sentences = [
        f"Going back from the last step, the median norm of the gradient with respect to the state "
        f"falls below {VANISHED:.0%} of its value there after so many steps: "
        f"{_arrows(curves, _vanishes)}."
    ]
    if exploded:
        sentences.append(f"On the way it grows {_listed(exploded)}.")
    factors = _of_stages(result["cells"], lambda numbers: _factor(numbers["state_gradient"]))
    sentences.append(
        f"From one step to the one before, it changes on average by the factor: "
        f"{_arrows(factors, lambda factor: f'{factor:.2f}')}."
    )
    initial = {name: before for name, (before, _) in factors.items()}
    gru = initial.get(CELL_NAMES["gru"], math.nan)
    if len(initial) > 1 and gru == min(initial.values()) and gru <= 0.75:
        sentences.append(
            "The GRU vanishes fastest at initialisation because its gates start near 1/2: a step "
            "back keeps z = 1/2 of the gradient directly and (1 - z) r = 1/4 of it through the "
            "orthogonal recurrent weights of the candidate, together at most 3/4."
        )
    return sentences


def _factor(curve: Sequence[float]) -> float:
    """Geometric mean of the change per step; NaN for a single step, or without a gradient."""
    if len(curve) < 2 or curve[0] == 0:
        return math.nan
    return (curve[-1] / curve[0]) ** (1 / (len(curve) - 1))


def _vanishes(curve: Sequence[float]) -> str:
    """After how many steps, from the last one back."""
    if curve[0] == 0:
        return "no gradient"
    below = [n for n, norm in enumerate(curve) if norm < VANISHED * curve[0]]
    return str(below[0]) if below else f"never in {len(curve) - 1}"


def _last_windows(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{steps:.1f} of {k}" for k, steps in result["last_window"].items())


def _truncation(result: Mapping[str, Any]) -> list[str]:
    """What truncated BPTT would lose."""
    biases = _of_stages(result["cells"], lambda numbers: numbers["truncation"])
    windows = list(next(iter(biases.values()))[0])
    longest = windows[-1]
    enough = []
    for stage, when in enumerate(STAGES.values()):
        shortest = {name: _shortest_window(both[stage]) for name, both in biases.items()}
        found = [f"{k} for {name}" for name, k in shortest.items() if k is not None]
        enough.append(f"{when} {_listed(found) if found else 'none'}")

    def shown(truncation: Mapping[str, Any]) -> str:
        bias = truncation[longest]
        return f"{bias['relative_error'][PARAMETER]:.1%} ({bias['cosine'][PARAMETER]:+.2f})"

    return [
        "The windows of truncated BPTT start at a sequence's first step, so that the last one, "
        f"which is all that the loss reaches, holds on average {_last_windows(result)} steps.",
        f"Truncated BPTT with windows of {longest} steps would miss the gradient of "
        f"{PARAMETER} by a relative error (cosine) of: {_arrows(biases, shown)}.",
        f"The shortest of the windows {', '.join(windows)} that keeps this error within "
        f"{TOLERATED:.0%}: {'; '.join(enough)}.",
    ]


def _shortest_window(truncation: Mapping[str, Any]) -> str | None:
    """The window from which on all that were tried keep the error within what is tolerated."""
    shortest = None
    for k, bias in reversed(list(truncation.items())):
        # not `>`: a NaN is not within
        if not bias["relative_error"][PARAMETER] <= TOLERATED:
            break
        shortest = k
    return shortest


def _of_stages(cells: Mapping[str, Any], pick: Callable[[Any], Any]) -> dict[str, list[Any]]:
    """For each cell, by the name that is shown, what is picked before and after training."""
    return {
        CELL_NAMES[cell]: [pick(of_cell["stages"][stage]) for stage in STAGES]
        for cell, of_cell in cells.items()
    }


def _arrows(values: Mapping[str, Sequence[Any]], show: Callable[[Any], str]) -> str:
    return ", ".join(f"{name} {' → '.join(map(show, both))}" for name, both in values.items())


def _listed(words: Sequence[str]) -> str:
    """Join by commas, and "and" before the last."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last
