"""One case, measured: every contender checked, then timed in turn, round after round."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import gate, processes
from experiments.benchmarks.cases import CELLS, OPERATIONS, Arrays, Case, arrays, product_flops
from experiments.benchmarks.contenders import PRODUCTS, RATE
from experiments.benchmarks.processes import Worker, WorkerError

# for the threads of the contender timed last to go to sleep: while they wait for more work they
# take the processor from the next one's
_PAUSE_SECONDS = 0.03
# a burst is as many calls as fit, so that a scheduler's hiccup meets few of them
_BURST_SECONDS = 0.08
_BURST_CALLS = 100


class Effort(NamedTuple):
    """How much is measured."""

    operations: tuple[str, ...]
    rounds: int
    compilations: int


class Entrant(NamedTuple):
    """A contender that has begun: its worker, and what `begin` answered."""

    worker: Worker
    description: Mapping[str, Any]


def measure(
    case: Case,
    entrants: Mapping[str, Entrant],
    reference: Worker,
    effort: Effort,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Check every contender on a case, and time those that are right.

    Args:
        case: the cell and its shape.
        entrants: all that could begin, by name, the matrix rate among them.
        reference: the worker that computes in float64 what is right.
        effort: how much is measured.
        generator: for the order of the turns.

    Returns:
        The case's record, as result.json holds it.
    """
    names = [name for name in OPERATIONS[case.kind] if name in effort.operations]
    given = arrays(case)

    @functools.cache
    def truth(without: tuple[str, ...]) -> dict[str, np.ndarray]:
        right = _in_float64(_zeroed(given, without))
        return processes.ask(reference, "evaluate", case, right)

    records, calls = {}, {}
    for name, entrant in entrants.items():
        if name != RATE:
            records[name], calls[name] = _check(case, given, name, entrant, truth, effort, names)
    rate = entrants[RATE].worker
    answers = processes.ask(rate, "prepare", case, given, 0)
    products: dict[str, dict[str, Any]] = {
        size: {"flops": int(flops), "seconds": []} for size, flops in answers["outputs"].items()
    }
    for operation in names:
        for _ in range(effort.rounds):
            running = [name for name, record in records.items() if record["status"] == "ok"]
            for name in generator.permutation([*running, RATE]):
                time.sleep(_PAUSE_SECONDS)
                if name == RATE:
                    for size, product in products.items():
                        seconds = answers["costs"][size]["call_seconds"]
                        n = _calls(seconds, _BURST_SECONDS / len(products), 2)
                        product["seconds"].append(processes.ask(rate, "time", size, n))
                else:
                    _time(entrants[name].worker, records[name], operation, calls[name][operation])
    for record in records.values():
        if record["status"] != "ok":
            record["operations"] = {}
    return {
        **case._asdict(),
        "product_flops": {name: product_flops(case, name) for name in names},
        "contenders": records,
        "products": products,
    }


def _check(
    case: Case,
    given: Arrays,
    name: str,
    entrant: Entrant,
    truth: Callable[[tuple[str, ...]], Mapping[str, np.ndarray]],
    effort: Effort,
    names: Sequence[str],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Prepare a contender and compare it with the reference.

    Returns:
        Its record, without any time yet, and the calls in a burst of each operation.
    """
    worker, description = entrant
    not_compared = description["not_compared"]
    reason = not_compared.get(case.cell) or not_compared.get(case.kind)
    if case.cell not in description["cells"]:
        reason = "it has no such cell"
    if reason:
        return _record("not compared", reason), {}
    without = description["without"].get(case.cell, ())
    try:
        answers = processes.ask(
            worker, "prepare", case, _zeroed(given, without), effort.compilations
        )
    except WorkerError as error:
        return _record("failed", str(error)), {}
    if "not_compared" in answers:
        return _record("not compared", answers["not_compared"]), {}
    record = _record("ok", None)
    record["without"] = list(without)
    for operation in names:
        costs = answers["costs"][operation]
        kept = {key: costs[key] for key in ("compile_seconds", "temporary_bytes")}
        record["operations"][operation] = {"seconds": [], **kept}
    # the products are no cell's equations: a test holds their adjoint
    if name != PRODUCTS:
        # a weight that it lacks has no gradient either
        outputs, right = (
            {name: array for name, array in side.items() if name[1:] not in without}
            for side in (answers["outputs"], truth(without))
        )
        record["differences"] = gate.differences(outputs, right)
        wrong = gate.disagreement(record["differences"], CELLS[case.cell].dtype)
        if wrong:
            record |= {"status": "disagrees", "reason": wrong}
    return record, {name: _calls(answers["costs"][name]["call_seconds"]) for name in names}


def _record(status: str, reason: str | None) -> dict[str, Any]:
    return {
        "status": status,
        "reason": reason,
        "without": [],
        "differences": {},
        "operations": {},
    }


def _zeroed(given: Arrays, without: tuple[str, ...]) -> Arrays:
    """The arrays with some weights at zero."""
    zeros = {name: np.zeros_like(given.weights[name]) for name in without}
    return given._replace(weights=given.weights | zeros)


def _in_float64(given: Arrays) -> Arrays:
    return Arrays(
        *({name: array.astype(np.float64) for name, array in part.items()} for part in given)
    )


def _calls(call_seconds: float, burst_seconds: float = _BURST_SECONDS, least: int = 1) -> int:
    """How many calls make a burst."""
    return min(max(int(burst_seconds / call_seconds), least), _BURST_CALLS)


def _time(worker: Worker, record: dict[str, Any], operation: str, calls: int) -> None:
    """Add a burst to a contender's record, or that it failed."""
    try:
        seconds = processes.ask(worker, "time", operation, calls)
    except WorkerError as error:
        record |= {"status": "failed", "reason": str(error)}
    else:
        # no clock tells more than nanoseconds
        record["operations"][operation]["seconds"].append([round(each, 9) for each in seconds])
