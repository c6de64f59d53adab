"""Is the library as fast as its peers, and how near is it to what the machine can do?

Question: how long do a forward pass, a training step and a single step of an Elman network, an
LSTM and a GRU take, beside torch.nn, flax.nnx, flax.linen, Haiku, Equinox, Keras on JAX, on a GPU
`jax.experimental.rnn`, and a plain scan that JAX differentiates? And how much of it is products
that nothing could save?

    python -m experiments.benchmarks           # needs the extra `bench`; `make bench` sets it up
    python -m experiments.benchmarks --quick

Time: 17 to 25 minutes on two cores, `--quick` under two minutes. The folder given by `--out` then
holds every time of every round (result.json), the tables (report.md) and a picture.

Each contender runs in a process of its own, which stays alive; they take turns in an order drawn
anew for every round. The machine is meant to do nothing else meanwhile. No time is reported for a
contender whose values and gradients do not agree with the plain recurrence in float64, on weights
copied across. A peer that is not installed is listed as missing; one with other equations too.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks import gate, plot, processes, report, summary
from experiments.benchmarks.cases import CELLS, OPERATIONS, PLAIN, SHAPES, STREAMS, Case
from experiments.benchmarks.contenders import CHOICES, MODULES, OURS, PRODUCTS, RATE
from experiments.benchmarks.measure import Effort, Entrant, measure
from experiments.benchmarks.processes import WorkerError
from experiments.common import machine, records
from experiments.common.errors import InputError, require_option

REFERENCE = "unroll_reference"
# what is right is computed in float64, away from any device
REFERENCE_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    cells: tuple[str, ...] = tuple(PLAIN)
    """The cells, and transforms of the LSTM; peers have the default ones alone."""
    shapes: tuple[str, ...] = tuple(",".join(map(str, shape)) for shape in SHAPES)
    """Shapes of the sequences, each T,B,I,H, or the number of one of the default ones, from 0."""
    operations: tuple[str, ...] = tuple(name for names in OPERATIONS.values() for name in names)
    """Operations to time: forward and training on sequences, step on a stream."""
    contenders: tuple[str, ...] = CHOICES
    """Contenders beside jaxrnn: itself with a device for each core, and the peers."""
    rounds: int = 10
    """Turns of each contender: so many that their quartiles tell how far to trust the medians."""
    compilations: int = 3
    """Times that each cell's programs are compiled at the first shape; once at the others."""
    quick: bool = False
    """The first shape and the first stream alone, in few rounds: to see that all is well."""
    out: Path = Path("runs/benchmarks")
    """Folder for the results; what is there is overwritten."""

    def __post_init__(self) -> None:
        for name, known in (
            ("cells", CELLS),
            ("operations", sum(OPERATIONS.values(), ())),
            ("contenders", CHOICES),
        ):
            chosen = getattr(self, name)
            expected = f"different ones of: {', '.join(known)}"
            fit = len(set(chosen)) == len(chosen) and set(chosen) <= set(known)
            # jaxrnn alone is a measurement, no cell is none
            require_option(self, name, fit and (chosen or name == "contenders"), expected)
        for name in ("rounds", "compilations"):
            require_option(self, name, getattr(self, name) >= 1, "at least 1")
        expected = f"T,B,I,H, each at least 1, or a number in 0..{len(SHAPES) - 1}"
        try:
            shapes = [shape_of(text) for text in self.shapes]
        except (ValueError, IndexError):
            shapes = [(0,)]
        fit = all(len(shape) == 4 and min(shape) >= 1 for shape in shapes)
        require_option(self, "shapes", fit and bool(shapes), expected)


def shape_of(text: str) -> tuple[int, ...]:
    """``"64,32,64,128"``, or the number of a default shape."""
    if "," in text:
        return tuple(map(int, text.split(",")))
    if not text.isdecimal():
        raise ValueError(text)
    return SHAPES[int(text)]


def quick_version(config: Config) -> Config:
    """The same work, less of it."""
    return dataclasses.replace(config, shapes=config.shapes[:1], rounds=3, compilations=1)


def cases_of(config: Config) -> list[Case]:
    """Every cell at every shape."""
    cases = []
    for cell in config.cells:
        if set(config.operations) & set(OPERATIONS["sequence"]):
            for text in config.shapes:
                T, B, I, H = shape_of(text)
                cases.append(Case("sequence", cell, T, B, I, H))
        if set(config.operations) & set(OPERATIONS["stream"]):
            streams = STREAMS[:1] if config.quick else STREAMS
            cases += [Case("stream", cell, 1, 1, I, H) for I, H in streams]
    return cases


def run(config: Config, modules: Mapping[str, str] = MODULES) -> dict[str, Any]:
    """Measure everything and return what result.json holds.

    Args:
        config: the options.
        modules: the contenders' modules by name.
    """
    started = time.monotonic()
    config = dataclasses.replace(config, out=records.prepare_folder(config.out))
    if config.quick:
        config = quick_version(config)
    cases = cases_of(config)
    generator = np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        # all at once: what they import is much of a short run's time
        workers = {
            name: stack.enter_context(processes.worker(modules[name]))
            for name in (RATE, OURS, *config.contenders, PRODUCTS)
        }
        reference = stack.enter_context(
            processes.worker(modules[REFERENCE], **REFERENCE_ENVIRONMENT)
        )
        processes.ask(reference, "begin", "cpu")
        # the one that tells all others what JAX runs on here
        chosen = processes.ask(workers[RATE], "begin", None)
        entrants, unavailable = begin(workers, chosen["platform"])
        result: dict[str, Any] = {
            "benchmark": "jaxrnn and its peers",
            "config": {**dataclasses.asdict(config), "out": str(config.out)},
            "tolerances": gate.TOLERANCES,
            "machine": {
                **machine.describe(chosen["platform"], chosen["device"]),
                "dtype": "float32, products in full precision (no TF32)",
            },
            "versions": machine.versions(),
            "source": machine.source("experiments.benchmarks"),
            "contenders": {
                name: {key: entrant.description[key] for key in ("how", "not_compared")}
                for name, entrant in entrants.items()
            },
            "unavailable": unavailable,
            "cases": [],
        }
        for name, reason in unavailable.items():
            print(f"{name}: {reason}")
        for n, case in enumerate(cases):
            # a compilation's time hardly depends on the shape
            first = all((case.kind, case.cell) != (other.kind, other.cell) for other in cases[:n])
            compilations = config.compilations if first else 1
            effort = Effort(config.operations, config.rounds, compilations)
            record = measure(case, entrants, reference, effort, generator)
            result["cases"].append(record)
            result["seconds"] = round(time.monotonic() - started, 1)
            print(report.progress(record), flush=True)
            save(result, config.out)
    picture = plot.picture(result)
    records.write_atomically(config.out / "benchmarks.png", picture)
    print(f"\n{report.text(result)}\n{result['seconds']} s; all of it is in {config.out}")
    return result


def begin(
    workers: Mapping[str, processes.Worker], platform: str
) -> tuple[dict[str, Entrant], dict[str, str]]:
    """Ask the workers what they are: those that can run, and why the others cannot."""
    entrants, unavailable = {}, {}
    for name, worker in workers.items():
        try:
            description = processes.ask(worker, "begin", platform)
        except WorkerError as error:
            unavailable[name] = f"failed: {error}"
            continue
        if description["unavailable"]:
            unavailable[name] = description["unavailable"]
        else:
            entrants[name] = Entrant(worker, description)
    return entrants, unavailable


def save(result: Mapping[str, Any], out: Path) -> None:
    """Write what has been measured so far: a run that is stopped leaves its finished cases."""
    aggregates = [row._asdict() for row in summary.aggregates(result)]
    contents = {
        "result.json": json.dumps({**result, "aggregates": aggregates}),
        "report.md": report.text(result),
    }
    for name, content in contents.items():
        records.write_atomically(out / name, content.encode() + b"\n")


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line; the exit code is 0, 1 (a contender failed) or 2."""
    try:
        config = tyro.cli(
            Config,
            prog="python -m experiments.benchmarks",
            description=(__doc__ or "").partition("\n")[0],
            args=arguments,
        )
        result = run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"error: the yardsticks cannot be measured: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was measured before is in the folder given by --out", file=sys.stderr)
        return 130
    return 1 if report.failures(result) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
