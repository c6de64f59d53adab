"""From a run's raw times to its figures. Everything here reads result.json's content alone."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.cases import CELLS, OPERATIONS
from experiments.benchmarks.contenders import CORES, OURS, PEERS

# the least time is what the code can do; the median is what one gets on a machine that does more
STATISTICS: dict[str, Callable[..., Any]] = {"minimum": np.min, "median": np.median}
JAX_PEERS = tuple(name for name in PEERS if name != "torch")

Record = Mapping[str, Any]


def seconds(case: Record, name: str, operation: str, statistic: str = "minimum") -> float | None:
    """A contender's seconds for one call; None where none are reported."""
    measured = case["contenders"].get(name, {}).get("operations", {}).get(operation)
    if not measured or not measured["seconds"]:
        return None
    return float(STATISTICS[statistic](np.concatenate(measured["seconds"])))


def spread(case: Record, name: str, operation: str) -> float | None:
    """Distance between the quartiles of the rounds' medians, relative to their median."""
    if seconds(case, name, operation) is None:
        return None
    bursts = case["contenders"][name]["operations"][operation]["seconds"]
    low, middle, high = np.quantile([np.median(burst) for burst in bursts], (0.25, 0.5, 0.75))
    return float((high - low) / middle)


def fastest(
    case: Record, operation: str, statistic: str = "minimum", among: Iterable[str] = tuple(PEERS)
) -> tuple[str, float] | None:
    """The fastest of the peers and its seconds."""
    times = {name: seconds(case, name, operation, statistic) for name in among}
    measured = {name: value for name, value in times.items() if value is not None}
    if not measured:
        return None
    return min(measured.items(), key=lambda item: item[1])


def advantage(
    case: Record,
    operation: str,
    statistic: str = "minimum",
    among: Iterable[str] = tuple(PEERS),
    of: str = OURS,
) -> float | None:
    """The fastest peer's time as a multiple of ours: above 1 where we are faster."""
    ours = seconds(case, of, operation, statistic)
    other = fastest(case, operation, statistic, among)
    return other[1] / ours if ours and other else None


def multiple(case: Record, operation: str, of: float | None) -> float | None:
    """Our least time as a multiple of another."""
    ours = seconds(case, OURS, operation)
    return ours / of if ours and of else None


def beside_plain(
    result: Record, case: Record, operation: str, statistic: str = "minimum"
) -> float | None:
    """A variant's time as a multiple of its plain cell's at the same shape, in the same run."""
    plain = CELLS[case["cell"]].plain
    mine = seconds(case, OURS, operation, statistic)
    for other in cases_of(result, operation, plain):
        if plain and other["kind"] == case["kind"] and label(other) == label(case):
            theirs = seconds(other, OURS, operation, statistic)
            return mine / theirs if mine and theirs else None
    return None


def matrix_rate(result: Record) -> float:
    """The machine's rate of float32 products: the best seen in the whole run, in flops a second."""
    return max(
        product["flops"] / min(map(min, product["seconds"]))
        for case in result["cases"]
        for product in case["products"].values()
        if product["seconds"]
    )


def compile_seconds(case: Record, name: str, operation: str) -> float | None:
    """The least of a contender's compile times; None where nothing is compiled."""
    measured = case["contenders"].get(name, {}).get("operations", {}).get(operation)
    return min(measured["compile_seconds"]) if measured and measured["compile_seconds"] else None


def temporary_units(case: Record, name: str, operation: str) -> float | None:
    """Bytes of a compiled program's temporaries, in units of a float32 for each entry of hs."""
    measured = case["contenders"].get(name, {}).get("operations", {}).get(operation)
    if not measured or measured["temporary_bytes"] is None:
        return None
    return measured["temporary_bytes"] / (4 * case["T"] * case["B"] * case["H"])


def cases_of(result: Record, operation: str, cell: str | None = None) -> Iterator[Record]:
    """The cases that have an operation, of one cell or of all."""
    for case in result["cases"]:
        if operation in case["product_flops"] and cell in (None, case["cell"]):
            yield case


def label(case: Record) -> str:
    """A case's shape, as the tables and the command line have it."""
    letters = "TBIH" if case["kind"] == "sequence" else "IH"
    return ",".join(str(case[letter]) for letter in letters)


class Aggregate(NamedTuple):
    """Geometric mean of a ratio over several cases, and the case where it is least.

    Each ratio is another's quantity divided by ours: above 1 where ours is less. ``cell`` None is
    all cells together.
    """

    operation: str
    cell: str | None
    ratio: str
    mean: float
    least: float
    least_case: str


def aggregates(result: Record) -> list[Aggregate]:
    """Every operation, cell and ratio of which the run has a figure."""
    rows = []
    for operation in (name for names in OPERATIONS.values() for name in names):
        for cell in (*CELLS, None):
            cases = list(cases_of(result, operation, cell))
            for name, ratio in RATIOS.items():
                values = [(ratio(case, operation), _title(case)) for case in cases]
                known = [(value, title) for value, title in values if value is not None]
                if known:
                    mean = math.exp(sum(math.log(value) for value, _ in known) / len(known))
                    rows.append(Aggregate(operation, cell, name, mean, *min(known)))
    return rows


def _title(case: Record) -> str:
    return f"{case['cell']} {label(case)}"


def _compilation(case: Record, operation: str) -> float | None:
    """The compile time of the JAX peer that compiles fastest, as a multiple of ours."""
    ours = compile_seconds(case, OURS, operation)
    known = [each for name in JAX_PEERS if (each := compile_seconds(case, name, operation))]
    return min(known) / ours if ours and known else None


# what is averaged, by the name it has in result.json
RATIOS: dict[str, Callable[[Record, str], float | None]] = {
    **{
        f"fastest {title}, {statistic}": functools.partial(
            advantage, statistic=statistic, among=among
        )
        for title, among in (("peer", tuple(PEERS)), ("JAX peer", JAX_PEERS))
        for statistic in STATISTICS
    },
    f"fastest peer, minimum, of {CORES}": functools.partial(advantage, of=CORES),
    "compilation": _compilation,
}
