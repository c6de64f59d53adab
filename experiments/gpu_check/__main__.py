"""Does the library compute the right values on this GPU, and how fast is it there?

    make gpu-check                               # or python3 -m experiments.gpu_check
    python3 -m experiments.gpu_check --small     # the same in miniature, on any device

Needs JAX with a GPU, optax, chex and matplotlib, and no network; flax, torch and what the
experiment needs are measured where they are installed. After seven minutes nothing more is begun;
what was left out is listed. First values and
gradients of every cell on the device are held against float64 on the CPU, then training steps are
timed: medians of 10 after 2 warm-ups, no time without the right gradients. Every line is saved as
soon as it is there (result.json), the table (report.md) and the picture after every part.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# before JAX takes the memory: the peers' processes need some of it
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from experiments.benchmarks import processes
from experiments.benchmarks.contenders import PEERS
from experiments.common import machine, records
from experiments.common.errors import InputError
from experiments.gpu_check import report, rows, values

# in the order in which one wants to know them
PARTS: dict[str, Callable[[rows.Setting], Iterable[dict[str, Any]]]] = {
    "values": lambda setting: values.checks(setting.pool, small=setting.small),
    **{row.__name__: row for row in rows.ROWS},
}
_PEERS = ("flax.linen", "jax.experimental.rnn", "torch")


def run(*, parts: Sequence[str], small: bool, seconds: float, out: Path) -> dict[str, Any]:
    """Check and measure, and return what result.json holds.

    Args:
        parts: names of `PARTS`.
        small: in miniature, on whatever device there is.
        seconds: nothing is begun after these; the parts and lines left out are listed.
        out: folder for the results; what is there is overwritten.

    Raises:
        InputError: no GPU; a folder that cannot be written.
    """
    started = time.monotonic()
    if jax.default_backend() != "gpu" and not small:
        raise InputError(
            f"JAX runs on {jax.default_backend()} here: install it for CUDA (the extra cuda13), or "
            "take --small, which runs anywhere and measures nothing"
        )
    out = records.prepare_folder(out)
    result: dict[str, Any] = {
        "check": "jaxrnn on a GPU",
        "small": small,
        "machine": machine.describe(jax.default_backend(), jax.devices()[0].device_kind),
        "versions": machine.versions(),
        "source": machine.source("experiments.gpu_check"),
        "lines": [],
    }
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(processes.worker(PEERS[name])) for name in _PEERS}
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        setting = rows.Setting(small, started + seconds, pool, peers, out)
        for name in parts:
            lines: Iterable[dict[str, Any]] = [{"status": f"left out: {seconds:.0f} s are over"}]
            if time.monotonic() <= setting.deadline:
                lines = guarded(PARTS[name](setting))
            for line in lines:
                line = {"part": name, **line, "at_seconds": round(time.monotonic() - started, 1)}
                result["lines"].append(line)
                print(report.progress(line), flush=True)
                save(result, out)
            records.write_atomically(out / "gpu_check.png", report.picture(result))
    result["seconds"] = round(time.monotonic() - started, 1)
    save(result, out)
    print(f"\n{report.text(result)}\n{result['seconds']} s; all of it is in {out}")
    return result


def guarded(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of a part, with a last one for an error: the parts after it are still measured."""
    try:
        yield from lines
    except ImportError as error:
        yield {"status": f"not installed: {error}"}
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        yield {"status": f"FAILED: {type(error).__name__}: {message[:300]}"}


def save(result: dict[str, Any], out: Path) -> None:
    records.write_atomically(out / "result.json", json.dumps(result, indent=1).encode() + b"\n")
    records.write_atomically(out / "report.md", report.text(result).encode() + b"\n")


def main(arguments: Sequence[str]) -> int:
    """Run with options from the command line; the exit code is 0, 1 (something is wrong) or 2."""
    # the standard library's, because a machine with a GPU may have no other
    parser = argparse.ArgumentParser(
        prog="python3 -m experiments.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to do (default: all)"
    )
    parser.add_argument("--small", action="store_true", help="in miniature, on any device")
    parser.add_argument(
        "--seconds", type=float, default=420, help="nothing is begun after these (default: 420)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check"), help="folder for the results"
    )
    options = parser.parse_args(arguments)
    try:
        result = run(**vars(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.wrong(result) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
