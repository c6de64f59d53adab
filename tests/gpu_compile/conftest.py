"""JAX's own defaults, and all that was counted: a table, and runs/gpu_compile/jax-VERSION.json."""

import json
from pathlib import Path

import jax
import pytest

# the tests on a CPU are in float64 and strict; what is counted here is what users run
jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_numpy_rank_promotion", "allow")

OUT = Path("runs/gpu_compile")
COLUMNS = ("program", "cell", "shape", "kernels", "copies", "counters", "in all", "MB")


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    rows = sorted(
        tuple(value)
        for report in reports
        for name, value in report.user_properties
        if name == "row" and report.when == "call"
    )
    if not rows:
        return
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"jax-{jax.__version__}.json"
    lines = ",\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")
    terminalreporter.section(f"per time step, compiled for an H200 by jax {jax.__version__}")
    form = "{:24}{:20}{:18}{:>8}{:>8}{:>10}{:>8}{:>7}"
    for row in (COLUMNS, *rows):
        terminalreporter.write_line(form.format(*row))


@pytest.fixture
def row(record_property):
    """Adds a program to the table."""

    def add(kind, cell, shape, program):
        counts, T = program.launches, shape[0]
        found = counts.kernels, counts.copies, counts.counters, counts.total
        each = [round(count / T, 2) for count in found]
        sizes = ", ".join(map(str, shape))
        record_property("row", (kind, cell, sizes, *each, round(program.temporaries / 1e6, 1)))

    return add
