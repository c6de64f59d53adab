"""JAX's own defaults, and a table of what was counted."""

import jax
import pytest

# the tests on a CPU are in float64 and strict; what is counted here is what users run
jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_numpy_rank_promotion", "allow")


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    rows = sorted(
        value
        for report in reports
        for name, value in report.user_properties
        if name == "row" and report.when == "call"
    )
    if rows:
        terminalreporter.section(f"per time step, compiled for an H200 by jax {jax.__version__}")
        terminalreporter.write_line(
            f"{'program':24}{'cell':20}{'T, B, I, H':18}"
            f"{'kernels':>9}{'copies':>8}{'counters':>10}{'in all':>8}{'MB':>7}"
        )
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture
def row(record_property):
    """Adds a program to the table."""

    def add(title, program, T):
        counts = program.launches
        each = [count / T for count in (counts.kernels, counts.copies, counts.counters)]
        cells = f"{each[0]:9.2f}{each[1]:8.2f}{each[2]:10.2f}{counts.total / T:8.2f}"
        record_property("row", f"{title:62}{cells}{program.temporaries / 1e6:7.0f}")

    return add
