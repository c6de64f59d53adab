"""The command line of an experiment: options from its `Config`, words from its docstring."""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent


def names() -> tuple[str, ...]:
    """The experiments: the modules of the top folder."""
    return tuple(sorted(path.stem for path in FOLDER.glob("[a-z]*.py")))


def run(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run an experiment with options from the command line, and return what result.json holds."""
    # imported by the command line alone, because a machine with a GPU may lack it
    import tyro

    experiment = importlib.import_module(f"experiments.{name}")
    config = tyro.cli(
        experiment.Config,
        prog=f"python -m experiments {name}",
        description=(experiment.__doc__ or "").partition("\n")[0],
        args=arguments,
    )
    result: dict[str, Any] = experiment.run(config)
    return result


def json_config(config: Any) -> dict[str, Any]:
    """The options as JSON gives them back: lists for tuples, text for paths."""
    options: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return options
