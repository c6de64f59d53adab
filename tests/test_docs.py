"""What the documentation shows is what runs: code, links and commands of its pages, docstrings."""

import ast
import doctest
import importlib
import json
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
CODE = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
BLOCKS = CODE.findall(README)
MODULES = [
    "platforms",
    "initializers",
    "cells.elman",
    "cells.leaky",
    "cells.from_step",
    "sequence",
    "network",
    "streaming",
    "batches",
    "embedding",
    "decoding",
    "readout",
    "training",
    "parallel",
    "diagnostics",
    "diagnostics.backpropagation",
    "diagnostics.contributions",
    "diagnostics.flow",
    "diagnostics.truncation",
    "testing.compare",
    "testing.gradients",
    "testing.cells",
    "textbook",
    "convert.textbook",
    "convert.torch",
]


@pytest.fixture(autouse=True)
def _default_flags():
    """As a reader would run it, without the tests' strict flags."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block_{i}" for i in range(len(BLOCKS))])
def test_the_code_of_the_readme_runs(code, tmp_path, monkeypatch):
    # it may write files
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """Its blocks in order, each with the names of those before it."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for n, code in enumerate(CODE.findall(page.read_text())):
        exec(compile(code, f"{page.name}, block {n}", "exec"), names)
    assert names


def test_there_is_code_to_run():
    assert BLOCKS
    assert PAGES


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_the_docstrings_print_what_they_say(module):
    results = doctest.testmod(importlib.import_module(f"jaxrnn.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_every_module_with_examples_is_tested():
    library = ROOT / "jaxrnn"
    with_examples = []
    for path in library.rglob("*.py"):
        if ">>> " in path.read_text():
            parts = path.relative_to(library).with_suffix("").parts
            with_examples.append(".".join(part for part in parts if part != "__init__"))
    assert sorted(with_examples) == sorted(MODULES)


def test_every_test_that_the_readme_names_exists():
    links = re.findall(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)", README)
    assert len(links) > 10
    for name, file in links:
        functions = [
            node.name
            for node in ast.parse((ROOT / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        ]
        assert name in functions, f"{file} has no {name}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_file_that_a_page_links_exists(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_command_of_the_readme_is_a_target_of_the_makefile():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in re.findall(r"^    (?:\w+=\S+ )?make ([\w-]+)", README, flags=re.MULTILINE):
        assert command in targets, command


def test_the_readme_shows_the_launches_that_were_counted():
    """The table of the section on GPUs, entry by entry."""
    saved = json.loads((ROOT / "tests/gpu_compile/counts/jax-0.12.0.1.json").read_text())
    counted = {(line["program"], line["cell"], line["shape"]): line for line in saved}
    programs = {
        "`unroll`": "training",
        "`unroll_reference`": "training, reference",
        "`unroll`, forward alone": "forward",
    }
    section = README.partition("## On a GPU")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) == 5
    for row in rows:
        what, shape, *cells = (cell.strip() for cell in row)
        for cell, shown in zip(("ELMAN", "GRU", "LSTM"), cells, strict=True):
            line = counted[programs[what], cell, shape]
            launches, _, megabytes = shown.partition(", ")
            # half a unit of the last place that is shown, and the rounding of floats
            assert abs(float(launches) - line["in all"]) < 0.0501
            if megabytes:
                assert abs(float(megabytes.removesuffix(" MB")) - line["MB"]) <= 0.5
