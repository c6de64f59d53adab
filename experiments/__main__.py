"""`python -m experiments` lists the experiments; `python -m experiments NAME` runs one.

`python -m experiments all` runs those that have not finished yet, one after the other, and
`python -m experiments report` makes one page over all that have.
"""

import ast
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common import cli
from experiments.common.errors import CrossCheckError, InputError, NumericalError

EXPERIMENTS = cli.names()
RUNS = Path("runs")


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
            "`python -m experiments all` runs all that have not finished in runs/, and",
            "`python -m experiments report` makes runs/index.html over all that have.",
        ]
    )


def run_all(options: Sequence[str]) -> int:
    """Run every experiment that has no result in runs/, each in a process of its own."""
    failed = []
    for name in EXPERIMENTS:
        if (RUNS / name / "result.json").exists():
            print(f"{name}: finished before", flush=True)
        elif subprocess.run(
            [sys.executable, "-m", "experiments", name, *options], check=False
        ).returncode:
            failed.append(name)
    report_all()
    if failed:
        print(f"error: these failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def report_all() -> int:
    """Write the page over all finished runs, and print its table."""
    # with pictures and templates, which a listing needs not
    from experiments.common import report

    runs = report.finished_runs(RUNS)
    if not runs:
        print(f"error: no experiment has finished in {RUNS}/", file=sys.stderr)
        return 2
    print(f"{report.summary_table(runs)}\n\nthe page is {report.write_index(RUNS)}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0, 1 (the run failed) or 2 (bad input)."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *options = arguments
    if name == "all":
        return run_all(options)
    if name == "report":
        return report_all()
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        print(f"error: unknown experiment {name!r}; the known ones are: {known}", file=sys.stderr)
        return 2
    if not {"-h", "--help"} & set(options):
        # to load JAX and the rest takes seconds
        print(f"{name}: {summary(name)}\nloading JAX", flush=True)
    try:
        cli.run(name, options)
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
