"""`python -m experiments` lists the experiments; `python -m experiments NAME` runs one."""

import ast
import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import CrossCheckError, InputError, NumericalError

EXPERIMENTS = ("spoken_vowels", "gradient_flow")


def summary(name: str) -> str:
    """First line of the experiment's docstring, read without importing it (that imports JAX)."""
    source = (Path(__file__).parent / f"{name}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def listing() -> str:
    """What `python -m experiments` prints: each experiment with one line."""
    width = max(map(len, EXPERIMENTS))
    lines = [f"  {name:{width}}  {summary(name)}" for name in EXPERIMENTS]
    return "\n".join(
        [
            "usage: python -m experiments NAME [OPTIONS]",
            "",
            "experiments:",
            *lines,
            "",
            "benchmarks, a command of their own:",
            f"  python -m experiments.benchmarks  {summary('benchmarks/__main__')}",
            "",
            "`python -m experiments NAME --help` shows an experiment's options.",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0, 1 (the run failed) or 2 (bad input)."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *options = arguments
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        print(f"error: unknown experiment {name!r}; the known ones are: {known}", file=sys.stderr)
        return 2
    if not {"-h", "--help"} & set(options):
        # to load JAX and the rest takes seconds
        print(f"{name}: {summary(name)}\nloading JAX", flush=True)
    experiment = importlib.import_module(f"experiments.{name}")
    try:
        experiment.main(options)
    except (InputError, CrossCheckError, NumericalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print(
            "stopped; the same command continues from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    # progress is for now, even through a pipe
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main(sys.argv[1:]))
