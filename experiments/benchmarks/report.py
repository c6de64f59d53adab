"""The tables of a run, in Markdown: made from result.json's content alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.benchmarks import summary
from experiments.benchmarks.cases import CELLS
from experiments.benchmarks.contenders import CHOICES, OURS, PRODUCTS
from experiments.common.text import CELL_NAMES, markdown_table

_TITLES = {
    "forward": "Forward, milliseconds",
    "training": "Training step, milliseconds",
    "step": "Streaming: one step of one row, microseconds",
}
_KINDS = {"sequence": "Sequences", "stream": "Streaming"}
_UNITS = {"forward": 1e3, "training": 1e3, "step": 1e6}


def text(result: Mapping[str, Any]) -> str:
    """The whole report."""
    operations = [name for name in _TITLES if any(summary.cases_of(result, name))]
    parts = [_head(result)]
    parts += [f"## {_TITLES[name]}\n\n{_times(result, name)}" for name in operations]
    parts += ["## Where a peer is faster\n\n" + _bounds(result, operations)]
    parts += ["## Over all shapes\n\n" + _aggregates(result)]
    if variants := _variants(result, operations):
        parts += ["## Variants beside their plain cells\n\n" + variants]
    parts += ["## Memory and compilation\n\n" + _costs(result, operations)]
    parts += ["## Who was compared\n\n" + _contenders(result)]
    return "\n\n".join(parts)


def progress(case: Mapping[str, Any]) -> str:
    """A line for a case that was just measured."""
    parts = []
    for operation in case["product_flops"]:
        ours = summary.seconds(case, OURS, operation)
        peer = summary.fastest(case, operation)
        if ours is not None:
            against = f" ({peer[0]} {_UNITS[operation] * peer[1]:.3g})" if peer else ""
            parts.append(f"{operation} {_UNITS[operation] * ours:.3g}{against}")
    wrong = [f"{name} {words}" for name, words in _failures_in(case)]
    return f"{case['cell']} {summary.label(case)}: {', '.join([*parts, *wrong])}"


def failures(result: Mapping[str, Any]) -> list[str]:
    """What kept a contender that could run from being timed."""
    found = [
        f"{name} {reason}"
        for name, reason in result["unavailable"].items()
        if reason.startswith("failed")
    ]
    for case in result["cases"]:
        found += [
            f"{name}, {case['cell']} {summary.label(case)}: {words}"
            for name, words in _failures_in(case)
        ]
    return found


def _failures_in(case: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, f"{record['status']}: {record['reason']}")
        for name, record in case["contenders"].items()
        if record["status"] in ("disagrees", "failed")
    ]


def _head(result: Mapping[str, Any]) -> str:
    machine, versions, source = result["machine"], result["versions"], result["source"]
    changed = ", changed since" if source["changed_files"] else ""
    commit = f"commit {source['commit'][:10]}{changed}; " if source["commit"] else ""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"# jaxrnn and its peers\n\n{machine['processor']}, {machine['cores']} cores, JAX on "
        f"{machine['jax_platform']} ({machine['device']}); {machine['dtype']}. "
        f"{source['date'][:10]}; {commit}{listed}.\n\n"
        f"Least time of {result['config']['rounds']} interleaved rounds, the median in brackets "
        f"for {OURS}. Products in float32 run at {summary.matrix_rate(result) / 1e9:.0f} GFLOP/s "
        f'here; "x rate" is {OURS}\'s time as a multiple of what the necessary products take at '
        f'that rate, "x loop" as a multiple of what the products alone take in {OURS}\'s loop. '
        f"\"peer\" is the fastest peer's time as a multiple of {OURS}'s, by least times (by "
        f'medians); "spread" the distance between the quartiles of the rounds\' medians, of '
        f"{OURS} / of that peer."
    )


def _times(result: Mapping[str, Any], operation: str) -> str:
    unit, rate = _UNITS[operation], summary.matrix_rate(result)
    stream = operation == "step"
    shown = [name for name in CHOICES if _measured(result, name, operation)]
    header = ["cell", "I,H" if stream else "T,B,I,H", OURS, *shown, "peer", "spread"]
    header += [] if stream else ["x loop", "x rate"]
    rows = []
    for case in summary.cases_of(result, operation):
        times = [_number(summary.seconds(case, name, operation), unit) for name in (OURS, *shown)]
        median = _number(summary.seconds(case, OURS, operation, "median"), unit)
        times[0] += f" ({median})"
        ratios = [summary.advantage(case, operation, kind) for kind in summary.STATISTICS]
        row = [CELL_NAMES[case["cell"]], summary.label(case), *times]
        row.append(f"{_number(ratios[0])} ({_number(ratios[1])})")
        peer = summary.fastest(case, operation)
        timed = (OURS, peer[0]) if peer else (OURS,)
        spreads = [summary.spread(case, name, operation) for name in timed]
        row.append(" / ".join(_NOTHING if each is None else f"{each:.0%}" for each in spreads))
        if not stream:
            yardsticks = (
                summary.seconds(case, PRODUCTS, operation),
                case["product_flops"][operation] / rate,
            )
            row += [_number(summary.multiple(case, operation, each)) for each in yardsticks]
        rows.append(row)
    return markdown_table(header, rows, words=2)


def _bounds(result: Mapping[str, Any], operations: Iterable[str]) -> str:
    """The cases that a peer wins, beside what the products alone take."""
    rows, compared = [], False
    for operation in operations:
        unit = _UNITS[operation]
        for case in summary.cases_of(result, operation):
            ours, peer = summary.seconds(case, OURS, operation), summary.fastest(case, operation)
            if ours is None or peer is None:
                continue
            compared = True
            if peer[1] >= ours:
                continue
            products = summary.seconds(case, PRODUCTS, operation)
            times = [_number(each, unit) for each in (ours, peer[1], products)]
            share = _number(products / peer[1] if products else None)
            where = [operation, CELL_NAMES[case["cell"]], summary.label(case), peer[0]]
            rows.append([*where, *times, share])
    if not rows:
        return "Nowhere." if compared else "Nothing was compared."
    header = ["operation", "cell", "shape", "peer", OURS, "peer's", "products", "products / peer's"]
    return (
        f"Least times, in microseconds for a streaming step, else in milliseconds. Products: those "
        f"alone, in {OURS}'s loop, which a streaming step has not. Where they take longer than all "
        f"that the peer does, {OURS} cannot be as fast with XLA's products, whatever else it saves."
        f"\n\n"
        f"{markdown_table(header, rows, words=4)}"
    )


def _measured(result: Mapping[str, Any], name: str, operation: str) -> bool:
    return any(
        summary.seconds(case, name, operation) for case in summary.cases_of(result, operation)
    )


def _aggregates(result: Mapping[str, Any]) -> str:
    rows: dict[tuple[str, str | None], dict[str, summary.Aggregate]] = {}
    for each in summary.aggregates(result):
        rows.setdefault((each.operation, each.cell), {})[each.ratio] = each
    lines = [
        [
            operation,
            CELL_NAMES[cell] if cell else "all",
            *(
                f"{_number(found[ratio].mean)}; {_number(found[ratio].least)} at "
                f"{found[ratio].least_case}"
                if ratio in found
                else _NOTHING
                for ratio in summary.RATIOS
            ),
        ]
        for (operation, cell), found in rows.items()
    ]
    table = markdown_table(["operation", "cell", *summary.RATIOS], lines, words=2)
    return (
        f"Peers' times as multiples of {OURS}'s: the geometric mean over the shapes; the least, "
        f"and where.\n\n{table}"
    )


def _variants(result: Mapping[str, Any], operations: Iterable[str]) -> str:
    """Times of variants as multiples of the plain cell's; empty if none was measured."""
    sequences = [name for name in operations if name != "step"]
    rows = []
    for name, equations in CELLS.items():
        for case in summary.cases_of(result, sequences[0], name) if sequences else ():
            ratios = [
                [summary.beside_plain(result, case, operation, kind) for kind in summary.STATISTICS]
                for operation in sequences
            ]
            if equations.plain and any(least for least, _ in ratios):
                titles = [CELL_NAMES[name], CELL_NAMES[equations.plain], summary.label(case)]
                shown = [f"{_number(least)} ({_number(median)})" for least, median in ratios]
                rows.append([*titles, *shown])
    if not rows:
        return ""
    table = markdown_table(["cell", "plain cell", "T,B,I,H", *sequences], rows, words=3)
    return f"{OURS}'s times as multiples of the plain cell's: least times (medians).\n\n{table}"


def _costs(result: Mapping[str, Any], operations: Iterable[str]) -> str:
    """Temporaries and compile times of every program that JAX compiled."""
    sequences = [name for name in operations if name != "step"]
    compiled = [OURS, *summary.JAX_PEERS]
    rows = []
    for operation in sequences:
        for case in summary.cases_of(result, operation):
            names = [operation, CELL_NAMES[case["cell"]], summary.label(case)]
            rows.append(names + [_cost(case, name, operation) for name in compiled])
    kept = [n for n in range(3 + len(compiled)) if n < 3 or any(row[n] != _NOTHING for row in rows)]
    header = ["operation", "cell", "T,B,I,H", *compiled]
    table = markdown_table(
        [header[n] for n in kept], [[row[n] for n in kept] for row in rows], words=3
    )
    return (
        f"Temporaries of the compiled program in units of T B H floats; compilation in seconds.\n\n"
        f"{table}"
    )


def _cost(case: Mapping[str, Any], name: str, operation: str) -> str:
    memory = summary.temporary_units(case, name, operation)
    seconds = summary.compile_seconds(case, name, operation)
    return _NOTHING if seconds is None else f"{_number(memory)}; {seconds:.2f} s"


def _contenders(result: Mapping[str, Any]) -> str:
    """How each was run, why one was not, and how far each was from the reference."""
    lines = []
    for name in (OURS, *CHOICES, PRODUCTS):
        if name in result["unavailable"]:
            lines.append(f"- {name}: {result['unavailable'][name]}.")
        elif name in result["contenders"]:
            remarks = _remarks(result, name)
            lines.append(f"- {name}: {'. '.join([result['contenders'][name]['how'], *remarks])}.")
    return "\n".join(lines)


def _remarks(result: Mapping[str, Any], name: str) -> list[str]:
    """What the times of a contender do not tell."""
    remarks = []
    records = [(case, case["contenders"][name]) for case in result["cases"]]
    for dtype, tolerance in result["tolerances"].items():
        differences = [
            value
            for case, record in records
            if CELLS[case["cell"]].dtype == dtype
            for value in record["differences"].values()
        ]
        if differences:
            remarks.append(
                f"Largest difference from the reference {max(differences):.0e} of an array's "
                f"largest entry (tolerance {tolerance:.0e}) with products in {dtype}"
            )
    measured = {case[key] for case, _ in records for key in ("cell", "kind")}
    not_compared = result["contenders"][name]["not_compared"]
    for what, reason in not_compared.items():
        if what in measured:
            remarks.append(f"{(CELL_NAMES | _KINDS)[what]} not compared: {reason}")
    for case, record in records:
        without = f"{CELL_NAMES[case['cell']]} without {', '.join(record['without'])}"
        if record["without"] and without not in remarks:
            remarks.append(without)
        if record["reason"] and record["reason"] not in not_compared.values():
            where = f"{CELL_NAMES[case['cell']]} {summary.label(case)}"
            remarks.append(f"{where} {record['status']}: {record['reason']}")
    return remarks


_NOTHING = "–"


def _number(value: float | None, unit: float = 1) -> str:
    """Three figures, without an exponent."""
    if value is None:
        return _NOTHING
    scaled = value * unit
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:#.3g}"
