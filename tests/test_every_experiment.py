"""Every experiment in miniature: it ends, leaves what it promises, and resumes to the same bits."""

import json
import re
from pathlib import Path

import pytest
from support import commands

from experiments import adding_problem, spoken_vowels
from experiments.common import cli, report, scores

ROOT = Path(__file__).parent.parent
# these have files of tests of their own
OTHERS = {"spoken_vowels", "gradient_flow"}
NAMES = [name for name in cli.names() if name not in OTHERS]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the command line in a process of its own."""
    env = commands.environment(
        tmp_path_factory.mktemp("compiled"),
        # what needs a fetched file must not be part of a smoke run
        XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")),
        PIP_NO_INDEX="1",
    )

    def start(*arguments):
        program = ("-m", "experiments")
        return commands.run(program, *arguments, env=env, cwd=tmp_path_factory.getbasetemp())

    return start


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_run_leaves_its_scores_and_a_page(name, run, tmp_path):
    done = run(name, "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["experiment"] == name
    assert len(result["params_sha256"]) == 64
    found = [scores.from_json(score) for score in result["scores"]]
    assert found
    for score in found:
        # nothing is reported without something simpler beside it
        assert score.baselines
        assert score.verdict() in done.stdout.replace("\n", " ")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=.?https?:", page)
    assert page.count("<img") == len(list(tmp_path.glob("*.png"))) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_is_not_trained_again_and_says_the_same(name, run, tmp_path):
    results = []
    for _ in range(2):
        done = run(name, "--smoke", "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / "result.json").read_text()))
    assert re.search("trained 0 steps", done.stdout)
    first, again = results
    assert again["params_sha256"] == first["params_sha256"]
    assert again["scores"] == first["scores"]


def test_the_page_says_what_to_type_for_the_same_run():
    config = spoken_vowels.Config(cell="gru", seed=3, bidirectional=False, out=Path("elsewhere"))
    result = {"experiment": "spoken_vowels", "config": cli.json_config(config)}
    expected = "python -m experiments spoken_vowels --cell gru --no-bidirectional --seed 3"
    assert report.command(result) == expected
    cells = {**cli.json_config(adding_problem.Config()), "cells": ["gru", "elman"]}
    shown = report.command({"experiment": "adding_problem", "config": cells})
    assert shown == "python -m experiments adding_problem --cells gru elman"


def test_a_page_over_all_runs_links_each_and_says_which_goals_are_missed(tmp_path):
    (tmp_path / "one").mkdir()
    score = scores.Score("net", "accuracy", 0.5, {"simple": 0.75}, 0.9, True, ".1%")
    result = {"experiment": "one", "scores": [score.as_json()], "seconds": 3.2}
    (tmp_path / "one" / "result.json").write_text(json.dumps(result))
    (tmp_path / "half").mkdir()
    page = report.write_index(tmp_path).read_text()
    assert 'href="one/report.html"' in page
    assert "missed" in page
    (row,) = report.summary_table(report.finished_runs(tmp_path)).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["one", "net", "accuracy", "50.0%", "90.0%", "simple: 75.0%", "3 s"]
