"""The page of a run, and the index of all runs: HTML that needs no network."""

import base64
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from experiments.common import cli, machine, records, scores, text


class Picture(NamedTuple):
    """A PNG file of a run, and a sentence under it."""

    file: str
    content: bytes
    caption: str


class Text(NamedTuple):
    """Lines that a run leaves, such as samples, under a title."""

    title: str
    lines: str


def finish(
    config: Any,
    doc: str | None,
    *,
    experiment: str,
    found: Sequence[scores.Score],
    params: Any,
    cross_check: Mapping[str, Any],
    started: float,
    pictures: Sequence[Picture] = (),
    texts: Sequence[Text] = (),
    **more: Any,
) -> dict[str, Any]:
    """Write result.json, the pictures and report.html into a run's folder.

    Args:
        config: the options, with ``out``.
        doc: the docstring of the experiment, whose first line is its question.
        experiment: its name.
        found: the scores.
        params: all trained parameters; the result has their SHA-256.
        cross_check: the differences of the gradients from autodiff's.
        started: of `time.monotonic`.
        pictures: in the order of the page.
        texts: after the pictures.
        more: further entries of the result, as JSON takes them.

    Returns:
        The content of result.json.
    """
    result = {
        "experiment": experiment,
        "scores": [score.as_json() for score in found],
        **more,
        "params_sha256": records.sha256_of_arrays(params),
        "cross_check": cross_check,
        "config": cli.json_config(config),
        "versions": records.versions(),
        "machine": machine.words(),
        "seconds": round(time.monotonic() - started, 1),
    }
    files = {picture.file: picture.content for picture in pictures}
    files["result.json"] = json.dumps(result, indent=2).encode() + b"\n"
    files["report.html"] = page(doc or "", result, pictures, texts).encode()
    for file, content in files.items():
        records.write_atomically(config.out / file, content)
    print(f"{result['seconds']} s; the report is {config.out / 'report.html'}")
    return result


def page(
    doc: str,
    result: Mapping[str, Any],
    pictures: Sequence[Picture] = (),
    texts: Sequence[Text] = (),
) -> str:
    """The report of one run."""
    question, _, _ = doc.partition("\n")
    return _PAGES.get_template("run.html").render(
        title=question,
        result=result,
        scores=[scores.from_json(score) for score in result["scores"]],
        pictures=pictures,
        texts=texts,
        command=command(result),
    )


def index(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """One page over all runs: their scores, and links to their reports.

    Args:
        runs: the content of each result.json, by the path of its folder from the page.
    """
    rows = [
        (folder, result, scores.from_json(score))
        for folder, result in runs.items()
        for score in result["scores"]
    ]
    return _PAGES.get_template("index.html").render(title="Experiments", rows=rows)


def command(result: Mapping[str, Any]) -> str:
    """The command of the same run: every option that has not its default."""
    name, given = result["experiment"], result["config"]
    default = cli.json_config(importlib.import_module(f"experiments.{name}").Config())
    words = ["python -m experiments", name]
    for option, value in given.items():
        flag = option.replace("_", "-")
        if option == "out" or value == default[option]:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return " ".join(words)


def _png(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
_PAGES.filters["png"] = _png


def finished_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of all finished runs in a folder, by the name of their own folders."""
    found = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        if "scores" in result:
            found[path.parent.name] = result
    return found


def summary_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each score of each run, in Markdown."""
    rows = []
    for result in runs.values():
        for score in map(scores.from_json, result["scores"]):
            other = score.best_baseline()
            best = f"{other[0]}: {score.shown(other[1])}" if other else ""
            goal = "" if score.goal is None else score.shown(score.goal)
            seconds = f"{result['seconds']:.0f} s"
            shown = (score.name, score.measure, score.shown(score.value), goal, best, seconds)
            rows.append((result["experiment"], *shown))
    header = ("experiment", "network", "measure", "value", "goal", "best baseline", "time")
    return text.markdown_table(header, rows, words=3)


def write_index(folder: Path) -> Path:
    """Write index.html over all finished runs of a folder, and return its path."""
    path = folder / "index.html"
    records.write_atomically(path, index(finished_runs(folder)).encode())
    return path
