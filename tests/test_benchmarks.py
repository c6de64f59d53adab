"""The benchmarks report what was measured, and nothing of a contender that is wrong."""

import functools
import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrnn
from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import cases, gate, processes, report, summary
from experiments.benchmarks.cases import CELLS, PLAIN, Case
from experiments.benchmarks.contenders import (
    CORES,
    MODULES,
    OURS,
    PEERS,
    PRODUCTS,
    RATE,
    cudnn,
    products,
)
from experiments.benchmarks.contenders import jaxrnn as ours
from experiments.common.cells import cell_of

ROOT = Path(__file__).parent.parent

# contenders that take the places of peers
PLANTED = {
    "torch": """
import functools, jax, jaxrnn
from experiments.benchmarks.contenders.contender import Contender
from experiments.benchmarks.contenders.jaxrnn import network
from experiments.benchmarks.contenders.adapter import programs

def unroll(cell, params, xs):
    state, hs = jaxrnn.unroll(cell, params, xs)
    return state, hs + 0.01 * (hs - jax.lax.stop_gradient(hs))

how = "its gradient is one percent too large"
CONTENDER = Contender(how, functools.partial(programs, functools.partial(network, unroll)))
""",
    "flax.nnx": """
import os, signal
from experiments.benchmarks.contenders.contender import Contender

def programs(case, arrays):
    print("what it said last", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

CONTENDER = Contender("it dies", programs)
""",
    "flax.linen": "import a_package_that_is_not_installed",
    "haiku": """
import os
from experiments.benchmarks.contenders.contender import Contender

def programs(case, arrays):
    raise ValueError("not today")

flags = sorted(name for name in os.environ if name.startswith(("XLA_", "JAX_")))
CONTENDER = Contender(str(flags), programs, not_compared={"sequence": "one step at a time"})
""",
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The contenders' modules, with those of `PLANTED` in the places of peers."""
    folder = tmp_path_factory.mktemp("planted")
    places = {}
    for name, source in PLANTED.items():
        places[name] = "planted_" + name.replace(".", "_")
        (folder / f"{places[name]}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield MODULES | places


@pytest.fixture(scope="module")
def result(modules, tmp_path_factory):
    """A run with tiny shapes, all kinds of contenders, and flags that it must not pass on."""
    out = tmp_path_factory.mktemp("benchmarks") / "out"
    config = benchmarks.Config(
        cells=("elman",),
        shapes=("5,2,3,4", "34,1,3,4"),
        contenders=(CORES, "unroll_reference", *PLANTED),
        rounds=2,
        compilations=2,
        out=out,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        patch.setenv("JAX_ENABLE_X64", "1")
        return benchmarks.run(config, modules)


def records_of(result, name):
    return [case["contenders"][name] for case in result["cases"]]


# the gate


def test_right_contenders_are_timed(result):
    for name in (OURS, "unroll_reference"):
        for case, record in zip(result["cases"], records_of(result, name), strict=True):
            if name != OURS and case["kind"] == "stream":
                continue
            assert record["status"] == "ok"
            arrays = {"h"} if case["kind"] == "stream" else {"hs", "dw_ih", "dw_hh", "db", "dxs"}
            assert set(record["differences"]) == arrays
            assert max(record["differences"].values()) < 1e-6
            for operation in case["product_flops"]:
                assert summary.seconds(case, name, operation) > 0


def test_a_device_for_each_core_has_its_rows_or_the_reason_why_not(result):
    cores = result["machine"]["cores"]
    if not cores or cores == 1:
        assert result["unavailable"][CORES] == "needs several cores"
        return
    for case, record in zip(result["cases"], records_of(result, CORES), strict=True):
        if case["kind"] == "stream":
            assert (record["status"], record["reason"]) == ("not compared", "one row")
        elif case["B"] % cores:
            reason = f"{cores} devices cannot share {case['B']} rows evenly"
            assert (record["status"], record["reason"]) == ("not compared", reason)
            assert f"Elman {summary.label(case)} not compared: {reason}" in report.text(result)
        else:
            assert record["status"] == "ok"
            assert set(record["differences"]) == {"hs", "dw_ih", "dw_hh", "db", "dxs"}
            assert summary.seconds(case, CORES, "training") > 0


def test_wrong_gradient_is_refused_by_name_and_without_a_time(result):
    for case, record in zip(result["cases"], records_of(result, "torch"), strict=True):
        if case["kind"] == "sequence":
            assert record["status"] == "disagrees"
            assert "dw_ih by 1e-02" in record["reason"]
            assert record["differences"]["hs"] < 1e-6
            assert record["operations"] == {}
    assert any("torch, elman 5,2,3,4: disagrees: " in words for words in report.failures(result))


def test_what_cannot_run_is_listed_with_its_reason(result):
    missing = "missing: No module named 'a_package_that_is_not_installed'"
    assert result["unavailable"] == {"flax.linen": missing}
    for record in records_of(result, "flax.nnx"):
        assert (record["status"], record["operations"]) == ("failed", {})
        assert "exit code -9: what it said last" in record["reason"]
    found = [(record["status"], record["reason"]) for record in records_of(result, "haiku")]
    not_compared, failed = (
        ("not compared", "one step at a time"),
        ("failed", "ValueError: not today"),
    )
    assert found == [not_compared, not_compared, failed, failed]
    for line in (
        f"- flax.linen: {missing}.",
        "Sequences not compared: one step at a time",
        "Elman 64,128 failed: ValueError: not today",
    ):
        assert line in report.text(result)
    assert cudnn.CONTENDER.begin("cpu") == "needs a GPU"


def test_workers_inherit_no_flags_of_ours(result):
    kept = ["JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE"]
    assert result["contenders"]["haiku"]["how"] == str(kept)


def test_differences_are_of_all_arrays_relative_to_the_largest_entry():
    right = {"a": np.array([1.0, -200.0]), "b": np.ones(2), "c": np.ones(3), "d": np.ones(1)}
    wrong = {
        "a": np.array([1.0, -198.0]),
        "b": np.full(2, np.nan),
        "c": np.ones(2),
        "e": right["d"],
    }
    found = gate.differences(wrong, right)
    assert found["a"] == pytest.approx(0.01)
    assert math.isnan(found["b"])
    assert {found[name] for name in "cde"} == {math.inf}
    assert gate.disagreement(found) == "a by 1e-02, b by nan, c by inf, d by inf, e by inf"
    assert gate.disagreement({"a": gate.TOLERANCES["float32"]}) is None


# what is measured


def test_every_round_times_every_operation(result):
    for case in result["cases"]:
        for operation in case["product_flops"]:
            measured = case["contenders"][OURS]["operations"][operation]
            assert len(measured["seconds"]) == 2
            assert len({len(burst) for burst in measured["seconds"]}) == 1
            assert measured["temporary_bytes"] >= 0
    # several compilations for each cell's first case
    compiled = [
        [len(each["compile_seconds"]) for each in record["operations"].values()]
        for record in records_of(result, OURS)
    ]
    assert compiled == [[2, 2], [1, 1], [2], [1]]


def test_products_flops():
    case = Case("sequence", "lstm", T=2, B=3, I=5, H=7)
    assert cases.product_flops(case, "forward") == 2 * (2 * 3) * (5 * 28 + 7 * 28)
    assert cases.product_flops(case, "training") == 3 * cases.product_flops(case, "forward")


@pytest.mark.parametrize("operation", ["forward", "training"])
@pytest.mark.parametrize("cell", PLAIN)
def test_products_in_the_loop_are_the_necessary_ones_and_all_of_them(cell, operation):
    # four chunks of 16 steps
    case = Case("sequence", cell, T=64, B=2, I=3, H=5)
    compiled = products.CONTENDER.programs(case, cases.arrays(case))[operation].compile()
    flops = 0
    shapes = dict(re.findall(r"%([\w.\-]+) = f32\[([\d,]+)\]", compiled.as_text()))
    dots = r"= f32\[([\d,]+)\]\S* dot\(%([\w.\-]+), .*lhs_contracting_dims=\{([\d,]+)\}"
    for result, operand, contracted in re.findall(dots, compiled.as_text()):
        sizes = [int(size) for size in shapes[operand].split(",")]
        summed = math.prod(sizes[int(axis)] for axis in contracted.split(","))
        entries = math.prod(map(int, result.split(",")))
        # those of a step have no time in them
        times = 64 if entries * summed == 2 * 5 * CELLS[cell].gates * 5 else 4
        flops += times * 2 * entries * summed
    assert flops == cases.product_flops(case, operation)


@pytest.mark.slow
def test_adjoint_of_the_products_is_right():
    jaxrnn.testing.check_cell(products.cell(4))


@pytest.mark.parametrize("name", CELLS)
def test_same_case_same_arrays_and_no_bias_is_zero(name):
    one, other = (cases.arrays(Case("sequence", name, 3, 2, 4, 8)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert all(array.dtype == np.float32 and array.all() for array in one.weights.values())


@pytest.mark.parametrize("name", CELLS)
def test_arrays_are_those_of_the_cell(name):
    cell, network = cell_of(name, 8), ours.network(jaxrnn.unroll, name, 4, 8)
    sequence, stream = (
        cases.arrays(Case(kind, name, T, 1, 4, 8)) for kind, T in (("sequence", 3), ("stream", 1))
    )
    params = network.params(sequence.weights)
    assert len(jax.tree.leaves(params)) == len(sequence.weights)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), 4, 8))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, like)
    _, hs = jax.eval_shape(functools.partial(jaxrnn.unroll, cell), params, sequence.inputs["xs"])
    assert hs.shape == sequence.inputs["dhs"].shape
    x = stream.inputs.pop("x")
    assert x.shape == (1, 4)
    state = network.state(**stream.inputs)
    assert len(jax.tree.leaves(state)) == len(stream.inputs)
    fresh = jax.eval_shape(lambda: cell.initial_state(params, (1,)))
    assert jax.tree.map(np.shape, state) == jax.tree.map(lambda leaf: leaf.shape, fresh)


# from times to figures


def made_up(times):
    """A result with given milliseconds: ``{(T, cell): {name: bursts}}``."""
    made = []
    for (T, cell), contenders in times.items():
        case = Case("sequence", cell, T, 2, 3, 4)
        entries = {
            name: {
                "status": "ok",
                "operations": {
                    "forward": {
                        "seconds": np.divide(bursts, 1e3).tolist(),
                        "compile_seconds": None if name == "torch" else [2.0, 1.0],
                        "temporary_bytes": None if name == "torch" else 4 * T * 2 * 4,
                    }
                },
            }
            for name, bursts in contenders.items()
        }
        products = {"8": {"flops": 1000, "seconds": [[0.5, 0.25], [1.0, 0.5]]}}
        flops = {"forward": cases.product_flops(case, "forward")}
        made.append(
            {**case._asdict(), "product_flops": flops, "contenders": entries, "products": products}
        )
    return {"cases": made}


def test_ratios_are_to_the_fastest_peer_of_each_shape():
    result = made_up(
        {
            (8, "lstm"): {OURS: [[2, 3], [3, 3]], "torch": [[4, 9], [9, 9]], "keras": [[5, 6]]},
            (16, "lstm"): {OURS: [[8]], "torch": [[4]], "keras": [[16]], PRODUCTS: [[2]]},
            (16, "gru"): {OURS: [[1]], PRODUCTS: [[0.5]]},
        }
    )
    first, second, lonely = result["cases"]
    assert summary.fastest(first, "forward") == ("torch", pytest.approx(4e-3))
    assert summary.fastest(first, "forward", "median") == ("keras", pytest.approx(5.5e-3))
    assert summary.advantage(first, "forward") == pytest.approx(2)
    assert summary.advantage(first, "forward", "median") == pytest.approx(5.5 / 3)
    assert summary.advantage(second, "forward", among=summary.JAX_PEERS) == pytest.approx(2)
    assert summary.advantage(lonely, "forward") is None
    assert summary.seconds(first, "haiku", "forward") is None
    assert summary.multiple(second, "forward", 2e-3) == pytest.approx(4)
    assert summary.matrix_rate(result) == 4000
    assert summary.spread(first, OURS, "forward") == pytest.approx(0.25 / 2.75)
    assert summary.temporary_units(first, OURS, "forward") == 1

    rows = {(row.cell, row.ratio): row for row in summary.aggregates(result)}
    fastest = rows["lstm", "fastest peer, minimum"]
    assert fastest.mean == pytest.approx(1)
    assert (fastest.least, fastest.least_case) == (pytest.approx(0.5), "lstm 16,2,3,4")
    assert rows[None, "fastest JAX peer, minimum"].mean == pytest.approx(math.sqrt(2.5 * 2))
    assert rows["lstm", "compilation"].mean == pytest.approx(1)
    assert ("gru", "fastest peer, minimum") not in rows


def test_result_and_report_and_picture_are_those_of_the_run(result):
    out = Path(result["config"]["out"])
    read = json.loads((out / "result.json").read_text())
    assert read["cases"] == result["cases"]
    assert report.text(read) + "\n" == (out / "report.md").read_text()
    assert (out / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    assert read["aggregates"]
    assert {"jax", "jaxlib", "numpy"} <= set(read["versions"])
    assert read["machine"]["cores"] >= 1
    assert read["tolerances"] == gate.TOLERANCES


def test_tables_have_a_row_for_each_case_and_a_column_for_each_timed_contender(result):
    lines = report.text(result).splitlines()
    (head,) = [n for n, line in enumerate(lines) if line == "## Training step, milliseconds"]
    header, rule, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 : head + 6]
    ]
    columns = [OURS, CORES] if summary.seconds(result["cases"][0], CORES, "training") else [OURS]
    assert header[: 3 + len(columns)] == ["cell", "T,B,I,H", *columns, "unroll_reference"]
    assert header[3 + len(columns) :] == ["peer", "spread", "x loop", "x rate"]
    assert [row[:2] for row in rows] == [["Elman", "5,2,3,4"], ["Elman", "34,1,3,4"]]
    for case, row in zip(result["cases"], rows, strict=False):
        least = 1e3 * summary.seconds(case, "unroll_reference", "training")
        assert float(row[2 + len(columns)]) == pytest.approx(least, rel=5e-3)
        assert len(row) == len(rule) == len(header)


def test_the_readme_shows_the_saved_run():
    saved = ROOT / "experiments" / "benchmarks" / "results" / "cpu-2-cores"
    text = (saved / "report.md").read_text()
    assert report.text(json.loads((saved / "result.json").read_text())) + "\n" == text
    table = text.split("## Training step, milliseconds\n\n")[1].split("\n\n")[0]
    assert table in (ROOT / "README.md").read_text()


def test_the_page_of_cells_shows_the_times_of_the_saved_run():
    saved = ROOT / "experiments" / "benchmarks" / "results" / "cpu-2-cores-all-cells"
    result = json.loads((saved / "result.json").read_text())
    assert report.text(result) + "\n" == (saved / "report.md").read_text()
    page = (ROOT / "docs" / "cells.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    shown = set()
    for first, *_, forward, training in rows:
        made = first.strip(" `")
        name = {'elman("relu")': "elman_relu"}.get(made, made.partition("(")[0].lower())
        shown.add(name)
        for operation, text in (("forward", forward), ("training", training)):
            found = [
                summary.beside_plain(result, case, operation)
                for case in summary.cases_of(result, operation, name)
            ]
            if CELLS[name].plain is None:
                assert text.strip() == "1"
            else:
                mean = math.exp(sum(map(math.log, found)) / len(found))
                assert text.strip() == f"{mean:.2f} ({max(found):.2f})"
    assert shown == set(CELLS)


def test_the_readme_says_of_the_saved_run_what_it_found():
    saved = ROOT / "experiments" / "benchmarks" / "results" / "cpu-2-cores"
    result = json.loads((saved / "result.json").read_text())
    found = {(a.operation, a.cell, a.ratio): a for a in summary.aggregates(result)}

    def over_all(operation, ratio):
        return found[operation, None, ratio]

    def mean_over_products(seconds_of):
        ratios = [
            seconds_of(case) / summary.seconds(case, PRODUCTS, "training") for case in training
        ]
        return f"{np.exp(np.mean(np.log(ratios))):.2f}"

    def range_of(values):
        return f"{min(values):.2f} to {max(values):.2f}"

    training = list(summary.cases_of(result, "training"))
    forward = [summary.advantage(case, "forward", among=["torch"]) for case in training]
    cores = [
        summary.seconds(case, CORES, "training") / summary.seconds(case, OURS, "training")
        for case in training
        if summary.seconds(case, CORES, "training")
    ]
    lstm = list(summary.cases_of(result, "training", "lstm"))
    ahead = [case for case in lstm if summary.advantage(case, "training", among=["torch"]) < 1]
    products = [
        summary.seconds(case, PRODUCTS, "training") / summary.seconds(case, "torch", "training")
        for case in ahead
    ]
    steps = [summary.advantage(case, "step") for case in summary.cases_of(result, "step")]

    def fastest_on_jax(case):
        return summary.fastest(case, "training", among=summary.JAX_PEERS)[1]

    on_jax, on_jax_forward = (
        over_all(operation, "fastest JAX peer, minimum") for operation in ("training", "forward")
    )
    text = " ".join((ROOT / "README.md").read_text().split())
    for words in (
        f"at commit {result['source']['commit'][:10]}, on two cores",
        f"{summary.matrix_rate(result) / 1e9:.0f} GFLOP/s in float32 products",
        f"takes {over_all('training', 'fastest peer, minimum').mean:.2f} times as long for a "
        f"training step, the fastest one on JAX {on_jax.mean:.2f} times, and at least "
        f"{on_jax.least:.2f} times everywhere",
        f"the fastest of all takes "
        f"{over_all('training', f'fastest peer, minimum, of {CORES}').mean:.2f} times as long.",
        f"torch takes {np.exp(np.mean(np.log(forward))):.2f} times as long in the mean, the "
        f"fastest on JAX {on_jax_forward.mean:.2f} times, and at least {on_jax_forward.least:.2f} "
        f"times everywhere",
        f"jaxrnn takes "
        f"{mean_over_products(lambda case: summary.seconds(case, OURS, 'training'))} times as long "
        f"as they in the mean, the fastest on JAX "
        f"{mean_over_products(fastest_on_jax)} times",
        f"compiles in {1 / over_all('training', 'compilation').mean:.2f} times the time",
        f"At {len(ahead)} of the {len(lstm)} shapes, torch trains an LSTM in "
        f"{range_of([summary.advantage(case, 'training', among=['torch']) for case in ahead])} of",
        f"alone take {range_of(products)} of all of torch's time",
        f"the fastest peer takes {range_of(steps)} of the time",
        f"training step then takes {range_of(cores)} of the time",
    ):
        assert words in text, words


# processes


@pytest.fixture
def command_line(capsys):
    def run(*arguments):
        try:
            code = benchmarks.main(arguments)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cells", "lstm", "lstm"], "--cells must be different ones of: elman, lstm, gru"),
        (["--contenders", "tensorflow"], "--contenders must be different ones of: jaxrnn-cores, "),
        (["--operations", "backward"], "--operations must be different ones of: forward"),
        (["--shapes", "1,2,3"], "--shapes must be T,B,I,H, each at least 1, or a number in 0..6"),
        (["--shapes", "7"], "--shapes must be"),
        (["--shapes", "1,2,3,0"], "--shapes must be"),
        (["--rounds", "0"], "--rounds must be at least 1; got 0"),
    ],
)
def test_bad_options_are_refused_by_name(command_line, options, words):
    code, errors = command_line(*options)
    assert code == 2
    assert words in " ".join(errors.split())


def test_shapes_are_named_by_number_or_in_full():
    assert benchmarks.shape_of("1") == cases.SHAPES[1]
    assert benchmarks.shape_of("7,5,3,2") == (7, 5, 3, 2)


def test_worker_that_hangs_is_ended_and_said_so(tmp_path, monkeypatch):
    (tmp_path / "planted_sleep.py").write_text("import time; time.sleep(1000)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with processes.worker("planted_sleep") as worker:
        with pytest.raises(processes.WorkerError, match="no answer within 0 s"):
            processes.ask(worker, "begin", "cpu", seconds=0.2)
        with pytest.raises(processes.WorkerError, match="ended with exit code -9"):
            processes.ask(worker, "begin", "cpu")


def workers_of(pid):
    """The processes that another one started and that are still there."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":\t", 1) for line in status.read_text().splitlines() if "\t" in line
            )
        except (OSError, ValueError):
            continue
        if fields["PPid"].strip() == str(pid):
            found.append(int(status.parent.name))
    return found


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize(
    "how",
    [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
    ids=["interrupt", "kill"],
)
def test_no_worker_outlives_its_parent(how, tmp_path):
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from experiments.benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ["--cells", "elman", "--shapes", "2,1,1,1", "--contenders", "--rounds", "100000"]
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *options, "--out", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # jaxrnn, the products, the matrix rate, the reference
        deadline = time.monotonic() + 60
        while len(workers := workers_of(parent.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers) == 4
        parent.send_signal(how)
        _, errors = parent.communicate(timeout=120)
    finally:
        parent.kill()
    if how == signal.SIGINT:
        assert parent.returncode == 130
        assert errors.startswith("stopped; ")
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_every_peer_has_a_module_that_says_what_it_is():
    for module in MODULES.values():
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.read_text().startswith('"""')
    assert set(PEERS) < set(MODULES)
    assert {OURS, PRODUCTS, RATE} < set(MODULES)
