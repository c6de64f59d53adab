"""`make gpu-check` in miniature on a CPU, so that it works the first time on a GPU."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import jaxrnn
from experiments.gpu_check import __main__ as gpu_check
from experiments.gpu_check import report, rows, values
from experiments.gpu_check.programs import CELLS, Shape, Spec, agreement, training

ROOT = Path(__file__).parent.parent
MEASURED = [name for name in gpu_check.PARTS if name != "experiment"]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The folder of a run of everything but the experiment, which has its own tests."""
    out = tmp_path_factory.mktemp("gpu_check") / "out"
    # a machine with a GPU may lack what reads the command line of the experiments
    program = (
        "import sys; sys.modules['tyro'] = None; from experiments.gpu_check.__main__ import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--small", "--out", out, "--parts", *MEASURED],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_miniature_leaves_a_line_of_every_part_a_table_and_a_picture(miniature):
    lines = json.loads((miniature / "result.json").read_text())["lines"]
    assert [*dict.fromkeys(line["part"] for line in lines)] == MEASURED
    assert not [line for line in lines if line["status"].startswith("FAILED")]
    for cell in CELLS:
        assert any(line.get("cell") == cell for line in lines)
        for who in ("jaxrnn", "unroll_reference"):
            (line,) = (
                line
                for line in lines
                if (line.get("what"), line.get("who")) == (f"training, {cell}", who)
            )
            assert line["status"] == "ok"
            assert len(line["seconds"]) == 10
    text = (miniature / "report.md").read_text()
    assert "| LSTM |" in text
    assert "| training, GRU | jaxrnn |" in text
    assert (miniature / "gpu_check.png").read_bytes().startswith(b"\x89PNG")


def test_no_time_is_left_for_what_begins_too_late_and_it_says_so(tmp_path, capsys):
    assert gpu_check.main(["--small", "--seconds", "-1", "--out", str(tmp_path)]) == 0
    lines = json.loads((tmp_path / "result.json").read_text())["lines"]
    assert [line["part"] for line in lines] == list(gpu_check.PARTS)
    assert {line["status"] for line in lines} == {"left out: -1 s are over"}
    assert "left out" in capsys.readouterr().out
    assert (tmp_path / "gpu_check.png").exists()


def test_without_a_gpu_it_says_what_to_do(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert "error: JAX runs on cpu here: install it for CUDA" in capsys.readouterr().err


def wrong_elman():
    def pull(params, dstate, slope, consts):
        return jaxrnn.ELMAN.pull(params, dstate, 0 * slope + 1, consts)

    return jaxrnn.ELMAN._replace(pull=pull)


@pytest.fixture
def wrong(monkeypatch):
    for name in [*CELLS]:
        monkeypatch.delitem(CELLS, name)
    monkeypatch.setitem(CELLS, "ELMAN", wrong_elman())


def test_wrong_gradients_are_found_and_not_timed(wrong, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        lines = [{"part": "values", **line} for line in values.checks(pool, small=True)]
        assert {line["status"] for line in lines} == {"WRONG"}
        setting = rows.Setting(True, math.inf, pool, peers={}, out=tmp_path)
        lines += [{"part": "cells", **line} for line in rows.cells(setting)]
    ours = next(line for line in lines if line.get("who") == "jaxrnn")
    assert ours["status"].startswith("DISAGREES")
    assert "seconds" not in ours
    assert len(report.wrong({"lines": lines})) == 2


def test_a_nan_is_wrong_wherever_it_stands():
    right = {"hs": np.ones(3), "final": np.ones(3), "dxs": np.ones(3)}
    for name in right:
        found = right | {name: np.array([1, np.nan, 1])}
        worst, difference, agrees = agreement(found, right, 1e-2)
        assert (worst, agrees) == (name, False)
        assert math.isnan(difference)


def test_a_cell_that_a_peer_has_not_is_not_compared(monkeypatch, tmp_path):
    monkeypatch.setitem(CELLS, "NEW", jaxrnn.GRU._replace(name="NEW"))
    line = rows._peer(rows.Setting(True, math.inf, None, {}, tmp_path), "NEW", None)
    assert line["status"].startswith("not compared")


def test_a_part_that_fails_says_so_and_ends():
    def part():
        yield {"status": "ok"}
        raise RuntimeError("out of memory\nand more")

    lines = [*gpu_check.guarded(part())]
    assert [line["status"] for line in lines] == ["ok", "FAILED: RuntimeError: out of memory"]


def test_options_that_this_xla_does_not_know_fail_alone(tmp_path):
    spec = Spec("ELMAN", Shape(4, 2, 3, 5))
    specs = {"right": spec, "unknown": spec._replace(options={"xla_gpu_gone": True})}
    with ThreadPoolExecutor(2) as pool:
        setting = rows.Setting(True, math.inf, pool, peers={}, out=tmp_path)
        lines = dict(rows._timed(setting, specs))
    assert lines["right"]["status"] == "ok"
    assert "No such compile option" in lines["unknown"]["status"]
    assert training(spec).temporary_bytes > 0
