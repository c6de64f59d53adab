"""The experiment `gradient_flow`: its data, its numbers, and sentences that follow from them."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.text import Text
from support import commands

import jaxrnn
from experiments.__main__ import main
from experiments.common import gradient_report, plots, tasks
from experiments.common.errors import InputError
from experiments.common.text import CELL_NAMES
from experiments.data import adding
from experiments.data.training import prepare_training
from experiments.gradient_flow import (
    VOWEL_FRAMES,
    Config,
    analyse,
    medians_from_the_end,
    rows_with_half,
    steps_of_last_windows,
)

ROOT = Path(__file__).parent.parent
CELLS = {
    "elman": ("w_ih", "w_hh", "b"),
    "lstm": ("w_ih", "w_hh", "b"),
    "gru": ("w_ih", "w_hh", "b", "b_hn"),
}
STAGES = ("initial", "trained")

# a whole run; and one without pictures that is stopped in its second training, and continued
TWO_RUNS = """
import sys
from pathlib import Path
from experiments import __main__, gradient_flow
from experiments.common import plots, records
first, second, *cells = sys.argv[1:]
config = gradient_flow.Config(cells=cells, smoke=True, out=Path(second))
code = __main__.main(["gradient_flow", "--smoke", "--out", first, "--cells", *cells])
plots.png = lambda *_, **__: b""
append = records.append_rows
def append_or_stop(path, rows):
    if "vowels" in str(path) and rows[-1]["step"] == 3:
        raise KeyboardInterrupt
    append(path, rows)
records.append_rows = append_or_stop
try:
    gradient_flow.run(config)
except KeyboardInterrupt:
    print("STOPPED")
records.append_rows = append
gradient_flow.run(config)
sys.exit(code)
"""


class Smoke(NamedTuple):
    """Folder and output of a smoke run of these cells, and the folder of a second one."""

    out: Path
    output: str
    again: Path
    cells: tuple[str, ...]


@pytest.fixture(
    scope="module",
    params=[("elman",), pytest.param(tuple(CELLS), marks=pytest.mark.slow)],
    ids=", ".join,
)
def smoke(request, tmp_path_factory):
    """Both runs, in a process of their own."""
    folder = tmp_path_factory.mktemp("gradient_flow")
    done = commands.run(
        *(("-c", TWO_RUNS), folder / "out", folder / "again", *request.param),
        env=commands.environment(folder / "compiled"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return Smoke(folder / "out", done.stdout, folder / "again", request.param)


def result_of(out):
    return json.loads((out / "result.json").read_text())


# a run


def test_smoke_run_writes_every_promised_file(smoke):
    out, output = smoke.out, smoke.output
    trainings = [f"{task}-{cell}" for task in ("adding", "vowels") for cell in smoke.cells]
    files = ["adding.png", "report.md", "result.json", "vowels.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(trainings + files)
    for picture in out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    # the cross-check comes before any training, the findings last
    parts = ("tolerance", "steps: trained 4 steps", "| cell", "one run")
    places = [output.index(part) for part in parts]
    assert places == sorted(places)
    assert (out / "report.md").read_text().strip() in output


def test_result_holds_every_number(smoke):
    result = result_of(smoke.out)
    assert set(result["tasks"]) == {"adding", "vowels"}
    for task, steps, training_steps in (("adding", 8, 4), ("vowels", VOWEL_FRAMES, 3)):
        of_task = result["tasks"][task]
        # of the longest sequence of the batch, which padding may exceed
        assert of_task["steps"] == steps if task == "adding" else 7 <= of_task["steps"] <= steps
        assert all(0 < kept <= int(k) for k, kept in of_task["last_window"].items())
        assert set(of_task["score"]["networks"]) == set(smoke.cells)
        for cell in smoke.cells:
            parameters, of_cell = CELLS[cell], of_task["cells"][cell]
            assert len(of_cell["learning_curve"]) == training_steps
            for stage in STAGES:
                numbers = of_cell["stages"][stage]
                assert list(numbers["truncation"]) == ["2", "4"]
                assert 1 <= numbers["rows_with_half"] <= 5
                per_parameter = [numbers["horizon"], numbers["gradient_norm"]]
                for bias in numbers["truncation"].values():
                    per_parameter += [bias["relative_error"], bias["cosine"]]
                for values in per_parameter:
                    assert set(values) == set(parameters)
                    assert all(math.isfinite(value) for value in values.values())
                assert all(len(norms) == steps for norms in numbers["step_norms"].values())
                assert all(norm > 0 for norm in numbers["state_gradient"])
                assert all(0 <= share <= 1 for share in numbers["saturated"].values())
    differences = result["cross_check"]["differences"]
    expected = 2 * sum(len(CELLS[cell]) + len(("w", "b")) for cell in smoke.cells)
    assert len(differences) == expected
    assert max(differences.values()) <= result["cross_check"]["tolerance"]


def test_a_run_that_was_stopped_continues_to_the_same_numbers(smoke):
    _, continued = smoke.output.split("STOPPED")
    # a training that had ended is not done again
    for part in ("8 steps: continuing after step 4", "26 frames: continuing after step 2"):
        assert part in continued
    first, second = map(result_of, (smoke.out, smoke.again))
    for numbers in ("tasks", "findings", "params_sha256", "cross_check"):
        assert first[numbers] == second[numbers]


def test_tables_have_a_row_for_every_cell_stage_and_parameter(smoke):
    lines = (smoke.out / "report.md").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    found = [
        tuple(cell.strip() for cell in line.strip("|").split("|")[:3])
        for line in lines
        if line.startswith("|") and ("initial" in line or "trained" in line)
    ]
    assert found == 2 * [
        (CELL_NAMES[cell], stage, parameter)
        for cell, stage in itertools.product(smoke.cells, STAGES)
        for parameter in CELLS[cell]
    ]


# the options


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cells", ()),
        ("cells", ("gru", "gru")),
        ("cells", ("gru", "transformer")),
        ("save_every", 0),
        ("length", 1),
        ("hidden_size", 0),
        ("adding_steps", 0),
        ("adding_batch", -1),
        ("vowel_steps", 0),
        ("vowel_batch", 271),
        ("noise", -1.0),
        ("noise", math.inf),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("clip", 0.0),
        ("rows", 0),
        ("rows", 271),
        ("test_sequences", 1),
        ("windows", ()),
        ("windows", (0, 5)),
        ("windows", (5, VOWEL_FRAMES + 1)),
        ("windows", (5, 5)),
        ("windows", (10, 5)),
        ("seed", -1),
        ("out", Path("")),
    ],
)
def test_bad_option_is_refused_by_name_with_what_was_expected(field, value):
    option = "--" + field.replace("_", "-")
    with pytest.raises(InputError) as refused:
        Config(**{field: value})
    message = str(refused.value)
    assert message.startswith(f"{option} must be ")
    assert message.endswith(f"; got {value}")


def test_bad_option_on_the_command_line_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["gradient_flow", "--windows", "5", "50"])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert "--windows must be" in errors
    assert "Traceback" not in errors


def test_longest_training_utterance_is_what_the_windows_are_checked_against():
    assert len(prepare_training(holdout=0).train.xs) == VOWEL_FRAMES


# the tasks


@pytest.mark.parametrize("length", [2, 7, 80])
def test_adding_problem_marks_a_value_in_each_half_and_asks_for_their_sum(length):
    xs, lengths, targets = adding.draw(np.random.default_rng(0), length, 100)
    assert (xs.shape, xs.dtype, lengths) == ((length, 100, 2), np.float32, None)
    assert (targets.shape, targets.dtype) == ((100, 1), np.float32)
    values, marked = xs[..., 0], xs[..., 1]
    assert set(np.unique(marked)) <= {0, 1}
    assert (marked[: length // 2].sum(axis=0) == 1).all()
    assert (marked[length // 2 :].sum(axis=0) == 1).all()
    assert 0 <= values.min() <= values.max() < 1
    sums = [values[marked[:, n] == 1, n].sum() for n in range(100)]
    np.testing.assert_allclose(targets[:, 0], sums, rtol=1e-6)


def test_adding_problem_uses_every_step_and_predicting_its_mean_has_error_one_sixth():
    xs, _, targets = adding.draw(np.random.default_rng(0), 10, 20000)
    np.testing.assert_allclose(xs[..., 1].mean(axis=1), 0.2, atol=0.02)
    assert np.mean((targets - adding.MEAN) ** 2) == pytest.approx(1 / 6, rel=0.03)


def test_training_utterances_are_drawn_once_each_with_noise():
    train = prepare_training(holdout=0).train
    count = len(train.labels)
    for noise in (0.0, 0.5):
        task = tasks.speaker_of_a_vowel(train, noise, steps=1, batch_size=3)
        batch = task.draw(np.random.default_rng(0), count)
        assert batch.xs.dtype == np.float32
        assert np.bincount(batch.labels).tolist() == [30] * 9
        # the same rows in both cases: the noise is drawn after them
        order = np.random.default_rng(0).choice(count, count, replace=False)
        assert np.std(batch.xs - train.xs[:, order]) == pytest.approx(noise, abs=0.01)


def test_score_of_the_sums_is_the_mean_squared_error_beside_the_baseline_s(monkeypatch):
    test = adding.draw(np.random.default_rng(0), 5, 400)
    predictions = {"elman": np.ones_like(test.targets), "gru": test.targets + np.float32(0.1)}
    monkeypatch.setattr(jax, "jit", lambda *_, **__: lambda _, params, __: predictions[params])
    score = tasks.score_sums({name: (None, name) for name in predictions}, test)
    baseline = score["baselines"]["always predicting the mean"]
    assert baseline == pytest.approx(np.mean((test.targets - 1) ** 2))
    elman, gru = score["networks"]["elman"], score["networks"]["gru"]
    assert (elman["gain"], elman["gain_standard_error"]) == (0, 0)
    assert gru["error"] == pytest.approx(0.01, rel=1e-3)
    assert gru["gain"] == pytest.approx(baseline - 0.01, rel=1e-3)


# the report


def test_medians_are_taken_from_each_row_s_last_step_back():
    values = np.array([[1.0, 4, 7], [2, 5, 8], [3, 6, 9]])
    assert medians_from_the_end(values, np.array([3, 3, 3])) == [6, 5, 4]
    # the last steps are 3, 5 and 7; two of the rows have a step before; the third is too long
    assert medians_from_the_end(values, np.array([3, 2, 1])) == [5, 3]


def stage(horizon, error, curve, norm=1.0):
    bias = {"relative_error": {"w_hh": error}, "cosine": {"w_hh": 1 - error}}
    small = {"relative_error": {"w_hh": min(2 * error, 1.0)}, "cosine": {"w_hh": 1 - error}}
    return {
        "horizon": {"w_hh": horizon},
        "rows_with_half": 3,
        "gradient_norm": {"w_hh": norm},
        "truncation": {"5": small, "10": bias},
        "step_norms": {"w_hh": np.linspace(0, norm, 20).tolist()},
        "state_gradient": curve,
    }


@pytest.fixture
def results():
    """Made-up results of one task."""
    flat, falling = [1.0, 0.9, 0.8], [1.0, 0.5, 0.001]
    stages = {
        "elman": {"initial": stage(12, 0.2, flat), "trained": stage(4, 0.01, falling)},
        "lstm": {"initial": stage(6, 0.08, falling), "trained": stage(20, 0.9, flat)},
    }
    networks = {
        "elman": {"error": 0.3, "gain": -0.1, "gain_standard_error": 0.01},
        "lstm": {"error": 0.01, "gain": 0.19, "gain_standard_error": 0.01},
    }
    score = {"count": 50, "baselines": {"always predicting the mean": 0.2}, "networks": networks}
    cells = {cell: {"stages": each} for cell, each in stages.items()}
    kept = {"5": 5.0, "10": 7.25}
    return {
        "sums": {"title": "sums", "steps": 20, "last_window": kept, "score": score, "cells": cells}
    }


def findings(results):
    return gradient_report.findings(results, rows=7, seed=3)


def test_findings_say_what_the_numbers_show(results):
    said = findings(results)
    for part in (
        "On 50 test sequences always predicting the mean has a mean squared error of 0.2000: "
        "LSTM (0.0100, 5.0% of it) beats it; Elman (0.3000, 150.0% of it) LOSES to it.",
        "of 20, that hold 95 % of the gradient of w_hh, before → after training: "
        "Elman 12 → 4, LSTM 6 → 20.",
        "Training lengthened the horizon of LSTM and shortened the horizon of Elman; after it, it "
        "is longest for LSTM and shortest for Elman.",
        "gradient norms: Elman 3 → 3, LSTM 3 → 3.",
        "holds on average 5.0 of 5, 7.2 of 10 steps.",
        "Elman never in 2 → 2, LSTM 2 → never in 2.",
        "by the factor: Elman 0.89 → 0.03, LSTM 0.03 → 0.89.",
        "windows of 10 steps",
        "Elman 20.0% (+0.80) → 1.0% (+0.99), LSTM 8.0% (+0.92) → 90.0% (+0.10).",
        "within 10%: at initialisation 10 for LSTM; after training 5 for Elman.",
        "one run with seed 3",
        "one batch of 7 sequences",
    ):
        assert part in said
    assert "On the way it grows" not in said
    assert "left to learn" not in said


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.021, "Elman (0.1000, 50.0% of it) and LSTM (0.0100, 5.0% of it) beat it."),
        (0.019, "Elman (0.1000, 50.0% of it) is not told apart from it"),
        (-0.019, "Elman (0.1000, 50.0% of it) is not told apart from it"),
        (-0.021, "Elman (0.1000, 50.0% of it) LOSES to it"),
    ],
)
def test_a_gain_within_two_standard_errors_is_no_gain(results, gain, words):
    results["sums"]["score"]["networks"]["elman"] |= {"error": 0.1, "gain": gain}
    assert words in findings(results)


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ((8, 9), "Elman (8) makes fewer; LSTM (9) makes as many."),
        ((9, 9), "Elman (9) and LSTM (9) make as many."),
        ((10, 11), "Elman (10) and LSTM (11) make MORE."),
    ],
)
def test_counted_errors_are_compared_as_they_are(results, errors, words):
    networks = {cell: {"errors": n} for cell, n in zip(("elman", "lstm"), errors, strict=True)}
    results["sums"]["score"] |= {"baselines": {"ridge": 9}, "networks": networks}
    assert f"On 50 test sequences ridge makes 9 errors: {words}" in findings(results)


def test_the_remainder_of_a_gradient_is_called_one(results):
    lstm = results["sums"]["cells"]["lstm"]["stages"]
    lstm["trained"]["gradient_norm"]["w_hh"] = 0.09
    lstm["trained"]["rows_with_half"] = 1
    said = findings(results)
    assert "After training 9.0% in LSTM of it is left: a horizon then tells of what is left" in said
    assert "gradient norms: Elman 3 → 3, LSTM 3 → 1." in said


@pytest.mark.parametrize(("left", "said"), [(0.2, True), (0.6, False), (1.1, False)])
def test_the_gru_s_vanishing_is_explained_where_it_vanishes_fastest(results, left, said):
    cells = results["sums"]["cells"]
    cells["gru"] = copy.deepcopy(cells["elman"])
    cells["gru"]["stages"]["initial"]["state_gradient"] = [1.0, 0.5, left]
    cells["lstm"]["stages"]["initial"]["state_gradient"] = [1.0, 0.9, 0.7]
    assert ("The GRU vanishes fastest" in findings(results)) == said


def test_a_step_of_a_new_gru_keeps_half_of_the_gradient_and_a_quarter_through_its_candidate():
    params = jaxrnn.GRU.init(jax.random.key(0), 2, 5)
    state = jaxrnn.GRU.initial_state(params)
    x = jnp.zeros(2, jnp.float32)
    found = jax.jacrev(lambda state: jaxrnn.GRU.step(params, state, x)[1])(state).h
    w_hn = np.asarray(params.w_hh[:, 10:])
    np.testing.assert_allclose(found, 0.5 * np.eye(5) + 0.25 * w_hn.T, atol=1e-6)
    np.testing.assert_allclose(w_hn.T @ w_hn, np.eye(5), atol=1e-6)


def test_rows_with_half_of_the_norms_are_counted_from_the_largest():
    assert rows_with_half(np.array([1.0, 5, 1, 1, 1])) == 1
    assert rows_with_half(np.array([1.0, 1, 1, 1])) == 2
    assert rows_with_half(np.zeros(3)) == 0


def test_the_last_window_holds_what_the_windows_before_it_leave():
    kept = steps_of_last_windows(np.array([7, 10, 26]), (5, 20))
    assert kept == {"5": (2 + 5 + 1) / 3, "20": (7 + 10 + 6) / 3}


def test_the_gradient_analysed_is_that_of_the_batch_s_loss():
    task = tasks.adding_problem(6, steps=1, batch_size=2)
    network = jaxrnn.layer(jaxrnn.ELMAN, 3)
    params = tasks.init(network, task, jax.random.key(0))
    batch = task.draw(np.random.default_rng(0), 4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        numbers = analyse(network, task, params, batch, windows=(2,))
        gradient = (
            jax.grad(tasks.batch_loss(network, task))(params, batch).network.layers[0].forward
        )
    for name, leaf in gradient._asdict().items():
        assert numbers["gradient_norm"][name] == pytest.approx(np.linalg.norm(leaf), rel=1e-5)


def test_other_gradients_make_other_sentences(results):
    other = copy.deepcopy(results)
    cells = other["sums"]["cells"]
    cells["elman"]["stages"] = {"initial": stage(5, 0.5, [0.0, 0.0]), "trained": stage(5, 0.5, [1])}
    cells["lstm"]["stages"] = {
        "initial": stage(5, math.nan, [1.0, 250.0]),
        "trained": stage(5, 0.5, [1.0, 2.0]),
    }
    said = findings(other)
    for part in (
        "Training kept the horizon of Elman and LSTM; after it, it is the same for all.",
        "Elman no gradient → never in 0",
        "On the way it grows 250-fold in LSTM at initialisation.",
        "within 10%: at initialisation none; after training none.",
    ):
        assert part in said
        assert part not in findings(results)


def test_every_panel_of_the_picture_has_its_numbers_and_every_column_its_error(results):
    cells = results["sums"]["cells"]
    # of a loss that is zero nothing is left to draw
    cells["elman"]["stages"]["trained"] = stage(0, 0.0, [0.0, 0.0], norm=0.0)
    figure = plots.gradient_reach(results["sums"])
    panels = [axes for axes in figure.axes if axes.get_subplotspec()]
    assert len(panels) == 3 * len(cells)
    assert [axes.get_title() for axes in panels[:2]] == [
        "Elman: error 0.3000",
        "LSTM: error 0.0100",
    ]
    assert [len(axes.lines) for axes in panels[:2]] == [1, 2]
    for axes, (stage_name, cell) in zip(panels[2:], itertools.product(STAGES, cells), strict=True):
        numbers = cells[cell]["stages"][stage_name]
        assert axes.images
        assert axes.lines[0].get_xdata()[0] == 0.5 - numbers["horizon"]["w_hh"]


def test_text_of_the_picture_is_legible_at_the_width_of_the_page(results):
    figure = plots.gradient_reach(results["sums"])
    figure.draw_without_rendering()
    pixels = 830 / (72 * figure.get_figwidth())
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(texts) > 20
    assert min(text.get_fontsize() for text in texts) * pixels >= 9


def test_readme_s_tables_are_those_of_the_saved_run():
    report = (ROOT / "experiments" / "figures" / "gradient_flow.md").read_text()
    readme = (ROOT / "README.md").read_text()
    # the short table of each task, and the baselines below it
    parts = [part for part in report.split("\n\n") if "w_hh: horizon" in part or "In comp" in part]
    assert len(parts) == 4
    for part in parts:
        assert part in readme
