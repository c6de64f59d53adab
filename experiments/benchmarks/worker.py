"""One contender in a process of its own: `python -m experiments.benchmarks.worker MODULE PIPE`.

It answers one request after another until its parent closes the pipe, or is gone. Nothing runs
between two requests, so that all other contenders have the machine for themselves.
"""

import contextlib
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from experiments.benchmarks.contenders.contender import Contender, NotComparedError, Program

# of untimed calls before the timed ones: caches and threads are then those of a program at work
_WARM_UP_SECONDS = 0.01


def serve(connection: Connection, contender: Contender | None, missing: str | None) -> None:
    """Answer every request ``(name, *arguments)`` with ``("answer", value)``, or say what failed.

    - ``begin platform``: a description of the contender, and the reason where it cannot run
    - ``evaluate case arrays``: the outputs of its operations
    - ``prepare case arrays compilations``: the same, and what each costs; or why it is left out
    - ``time operation calls``: the seconds of every call
    """
    programs: Mapping[str, Program] = {}
    while True:
        name, *arguments = connection.recv()
        try:
            answer: Any
            if contender is None:
                answer = {"unavailable": missing}
            elif name == "begin":
                answer = _begin(contender, *arguments)
            elif name == "evaluate":
                answer = _evaluate(contender.programs(*arguments))
            elif name == "prepare":
                case, arrays, compilations = arguments
                # the last case's arrays go before the next one's come
                programs = {}
                programs = contender.programs(case, arrays)
                answer = _prepare(programs, compilations)
            else:
                operation, calls = arguments
                answer = _time(programs[operation].run, calls)
        except NotComparedError as reason:
            connection.send(("answer", {"not_compared": str(reason)}))
        except Exception as error:
            traceback.print_exc()
            connection.send(("error", f"{type(error).__name__}: {error}"))
        else:
            connection.send(("answer", answer))


def _begin(contender: Contender, platform: str | None) -> dict[str, Any]:
    """What the parent has to know of the contender; ``platform`` None for JAX's own choice."""
    jax = sys.modules.get("jax")
    platform = platform or (jax.default_backend() if jax else None)
    assert platform is not None
    if jax and platform == "gpu":
        # float32 proper: by default its products are rounded to fewer bits there
        jax.config.update("jax_default_matmul_precision", "highest")
    return {
        "unavailable": contender.begin(platform),
        "how": contender.how,
        "not_compared": dict(contender.not_compared),
        "cells": list(contender.cells),
        "without": dict(contender.without),
        "platform": platform,
        "device": jax.devices()[0].device_kind if jax else None,
    }


def _evaluate(programs: Mapping[str, Program]) -> dict[str, Any]:
    """The outputs of all programs; no two have an output of the same name."""
    outputs: dict[str, Any] = {}
    for program in programs.values():
        outputs |= program.canonical(program.run())
    return outputs


def _prepare(programs: Mapping[str, Program], compilations: int) -> dict[str, Any]:
    """The outputs of all programs, and the costs of each."""
    # all compilations come first: they empty the caches
    costs = {name: _compile(program, compilations) for name, program in programs.items()}
    outputs = _evaluate(programs)
    for name, program in programs.items():
        costs[name]["call_seconds"] = min(_time(program.run, 2))
    return {"outputs": outputs, "costs": costs}


def _compile(program: Program, compilations: int) -> dict[str, Any]:
    """Seconds of every compilation, and the bytes that the program needs beside its arguments."""
    if program.compile is None or not compilations:
        return {"compile_seconds": None, "temporary_bytes": None}
    seconds = []
    for _ in range(compilations):
        started = time.perf_counter()
        compiled = program.compile()
        seconds.append(time.perf_counter() - started)
    memory = compiled.memory_analysis()
    return {
        "compile_seconds": seconds,
        "temporary_bytes": memory and memory.temp_size_in_bytes,
    }


def _time(run: Callable[[], Any], calls: int) -> list[float]:
    """The seconds of each call, to the end of its computation."""
    clock = time.perf_counter
    # a single call is one that takes as long as a burst: it hardly feels how it starts
    warm = clock() + _WARM_UP_SECONDS
    while calls > 1 and clock() < warm:
        run()
    seconds = []
    for _ in range(calls):
        started = clock()
        run()
        seconds.append(clock() - started)
    return seconds


def main(module: str, pipe: str) -> None:
    """Import the contender and serve until the parent is gone, by whatever end."""
    with Connection(int(pipe)) as connection:
        contender, missing = None, None
        try:
            contender = importlib.import_module(module).CONTENDER
        except ImportError as error:
            missing = f"missing: {error}"
        with contextlib.suppress(EOFError, ConnectionError):
            serve(connection, contender, missing)


if __name__ == "__main__":
    main(*sys.argv[1:])
