"""The experiments keep their promises: on the command line, on disk, and through a kill."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import commands

import jaxrnn
from experiments import spoken_vowels
from experiments.__main__ import EXPERIMENTS, main
from experiments.common import baselines, checkpoints, cross_check, devices, plots, records
from experiments.common.cells import NAMES
from experiments.common.errors import CrossCheckError, InputError, NumericalError
from experiments.common.scores import Score
from experiments.data import japanese_vowels
from experiments.data.japanese_vowels import Utterances
from experiments.data.training import prepare_training
from experiments.spoken_vowels import Config, draw_batch, train_network

ROOT = Path(__file__).parent.parent
# the cell that compiles fastest, for the tests that do not ask for another
SMOKE = ("--smoke", "--cell", "elman")
PICTURES = ("learning_curves.png", "confusion_matrix.png", "gradient_flow.png")
CELL_PARAMS = {
    "elman": ("w_ih", "w_hh", "b"),
    "lstm": ("w_ih", "w_hh", "b"),
    "gru": ("w_ih", "w_hh", "b", "b_hn"),
}

# runs the command line after replacing one function: PATCH sees the modules and `arguments`
PATCHED = """
import os, signal, sys
from experiments import __main__, spoken_vowels
from experiments.common import checkpoints, classifier, plots
from experiments.data import japanese_vowels
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run_experiment(tmp_path_factory):
    """Run `python -m experiments ARGUMENTS` in a process of its own."""
    env = commands.environment(tmp_path_factory.mktemp("compiled"), COLUMNS="100")

    def run(*arguments, patch=None):
        program = ["-m", "experiments"] if patch is None else ["-c", PATCHED.format(patch=patch)]
        return commands.run(program, *arguments, env=env, cwd=tmp_path_factory.getbasetemp())

    return run


WATCH_TEST_SET = """
load = japanese_vowels.load
def watched(split):
    if split == "test":
        rows = open(sys.argv[sys.argv.index("--out") + 1] + "/metrics.jsonl").readlines()
        print("test set read after step", len(rows))
    return load(split)
japanese_vowels.load = watched
"""


@pytest.fixture(scope="module")
def smoke(run_experiment, tmp_path_factory):
    """Folder and output of an uninterrupted smoke run; tests must not change the folder."""
    out = tmp_path_factory.mktemp("smoke") / "out"
    done = run_experiment("spoken_vowels", *SMOKE, "--out", out, patch=WATCH_TEST_SET)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def result_of(out):
    return json.loads((out / "result.json").read_text())


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_bad_input(code, errors, *parts):
    assert code == 2, errors
    assert "Traceback" not in errors
    # a frame around the message may break its lines
    shown = " ".join(errors.replace("│", " ").split())
    for part in parts:
        assert part in shown


@pytest.fixture
def command_line(capsys):
    """Run the command line in this process, for what ends before any work: (code, out, err)."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


# the command line


def test_no_arguments_list_every_experiment_with_one_line(command_line):
    code, output, _ = command_line()
    assert code == 0
    for name in EXPERIMENTS:
        (line,) = [line for line in output.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.removeprefix(f"  {name}").strip()) > 20


def test_listing_does_not_import_jax():
    lines = ["import sys", "from experiments.__main__ import main", "main([])"]
    program = "; ".join([*lines, "sys.exit('jax' in sys.modules)"])
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_unknown_experiment_is_refused_with_the_known_ones(run_experiment):
    done = run_experiment("spoken_vowel")
    assert_bad_input(done.returncode, done.stderr, "'spoken_vowel'", *EXPERIMENTS)


def test_help_explains_every_option(command_line):
    code, output, _ = command_line("spoken_vowels", "--help")
    assert code == 0
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in output
    assert "peephole_lstm" in output


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cell", "transformer"),
        ("hidden_size", 0),
        ("steps", -1),
        ("batch_size", 0),
        ("batch_size", 271),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("noise", -0.5),
        ("noise", math.inf),
        ("holdout", 30),
        ("seed", -1),
        ("eval_every", 0),
        ("save_every", 0),
        ("devices", 0),
        ("num_processes", 0),
        ("process_id", 1),
        ("coordinator", "127.0.0.1:1234"),
        ("out", Path("")),
    ],
)
def test_bad_option_is_refused_by_name_with_what_was_expected(field, value):
    option = "--" + field.replace("_", "-")
    with pytest.raises(InputError, match=f"^{option} must be .*; got {value}$"):
        Config(**{field: value})


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--hidden-size", "0"], ["--hidden-size must be at least 1; got 0"]),
        (["--cell", "transformer"], ["transformer", "--cell", "elman", "lstm", "gru"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--out", ""], ["--out must be the name of a folder", "current one"]),
    ],
)
def test_bad_option_exits_with_2_and_no_traceback(command_line, arguments, parts):
    code, _, errors = command_line("spoken_vowels", *arguments)
    assert_bad_input(code, errors, *parts)


def test_batch_that_devices_cannot_share_equally_is_refused():
    expected = "--batch-size must be a multiple of 6, the devices of all processes; got 64"
    with pytest.raises(InputError, match=expected):
        Config(devices=3, num_processes=2, coordinator="127.0.0.1:1234")


@pytest.mark.parametrize("coordinator", [None, "127.0.0.1", ":1234"])
def test_several_processes_need_an_address_to_meet_at(coordinator):
    with pytest.raises(InputError, match=f"--coordinator must be .*HOST:PORT.*; got {coordinator}"):
        Config(num_processes=2, coordinator=coordinator)


def test_more_devices_than_there_are_is_refused():
    there = jax.local_device_count()
    with pytest.raises(InputError, match=f"--devices must be at most {there}.*; got {there + 1}"):
        devices.start(devices.Placement(there + 1, None, 1, 0))


@pytest.mark.parametrize(
    ("cores", "rows", "expected"), [(2, 64, 2), (1, 64, 1), (64, 64, 2), (4, 99, 3), (4, 31, 1)]
)
def test_rows_are_spread_equally_over_cores_32_at_least_to_each(cores, rows, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert devices.one_per_core(rows) == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.one_per_core(rows) == 1


def test_unwritable_out_is_refused(command_line, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    code, _, errors = command_line("spoken_vowels", "--smoke", "--out", out)
    assert_bad_input(code, errors, "--out", str(out), "Not a directory")


def test_out_may_start_at_the_home_folder_and_keeps_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe").write_text("precious")
    assert records.prepare_folder(Path("~/out")) == tmp_path / "out"
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["precious"]
    with pytest.raises(InputError, match=r"--out must .*; got ~no-such-user/out: "):
        records.prepare_folder(Path("~no-such-user/out"))


def test_damaged_data_file_is_refused(command_line, tmp_path, monkeypatch):
    damaged = tmp_path / "japanese_vowels.npz"
    damaged.write_bytes(japanese_vowels.PATH.read_bytes()[:-1])
    whole = japanese_vowels.load
    monkeypatch.setattr(japanese_vowels, "load", lambda split: whole(split, damaged))
    code, _, errors = command_line("spoken_vowels", "--smoke", "--out", tmp_path)
    assert_bad_input(code, errors, str(damaged), "expected SHA-256", "found", "git checkout")


# a run


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=() if cell == "elman" else pytest.mark.slow) for cell in CELL_PARAMS],
)
def test_smoke_run_writes_every_promised_file(cell, run_experiment, smoke, tmp_path):
    if cell == "elman":
        out, output = smoke
    else:
        out = tmp_path / "out"
        # one of the cells in one direction, and with nothing held out
        options = ["--no-bidirectional", "--holdout", "0"] if cell == "lstm" else []
        done = run_experiment("spoken_vowels", "--smoke", "--cell", cell, "--out", out, *options)
        assert done.returncode == 0, done.stderr
        output = done.stdout
    directions = ("forward",) if cell == "lstm" else ("forward", "backward")
    result = result_of(out)
    assert 0 <= result["test_accuracy"] <= 1
    assert (result["config"]["cell"], result["config"]["devices"]) == (cell, 1)
    assert len(result["params_sha256"]) == 64
    assert set(result["versions"]) == {"python", "jax", "jaxlib", "jaxrnn", "optax", "numpy"}
    assert result["versions"]["jaxrnn"] == jaxrnn.__version__
    (score,) = result["scores"]
    assert all(0.9 < accuracy < 1 for accuracy in score["baselines"].values())
    layer = "network.layers.0"
    names = [f"{layer}.{name}.{leaf}" for name in directions for leaf in CELL_PARAMS[cell]]
    names += ["readout.w", "readout.b"]
    assert set(result["cross_check"]["differences"]) == set(names)
    assert max(result["cross_check"]["differences"].values()) <= result["cross_check"]["tolerance"]
    rows = rows_of(out)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all({"loss", "gradient_norm"} <= set(row) for row in rows)
    assert "train_accuracy" in rows[-1]
    assert ("holdout_accuracy" in rows[-1]) == (cell != "lstm")
    for picture in PICTURES:
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert any((out / "checkpoints").iterdir())
    assert not list(out.glob("*.partial"))
    # the cross-check comes first, the comparison last; who loses is told so
    assert output.index(names[0]) < output.index("step     2") < output.index("test accuracy")
    assert "The network LOSES to: ridge" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CELL_PARAMS)))
def test_every_cell_of_the_library_is_trained_as_what_it_is(name, run_experiment, tmp_path):
    options = ["--smoke", "--cell", name, "--out", tmp_path / "out"]
    done = run_experiment("spoken_vowels", *options)
    assert done.returncode == 0, done.stderr
    # one that drew nothing would have the losses of the plain one; limits are not reached so soon
    plain = run_experiment("spoken_vowels", "--smoke", "--cell", "lstm", "--out", tmp_path / "lstm")
    assert plain.returncode == 0
    found, others = (rows_of(tmp_path / folder) for folder in ("out", "lstm"))
    assert found != others or name in ("clipped", "clip_adjoint")


def test_test_set_is_read_once_and_after_the_last_step(smoke):
    _, output = smoke
    assert output.count("test set read") == 1
    assert "test set read after step 6\n" in output


def test_wrong_gradient_stops_the_run_before_training(run_experiment, tmp_path):
    # the reference of another network: what a wrong rule looks like
    patch = """
import jaxrnn
def wrong(cell, params, xs, state, **options):
    return jaxrnn.unroll_reference(cell, params, 1.001 * xs, state, **options)
classifier.AUTODIFF = classifier.AUTODIFF._replace(
    differentiated=lambda network: network._replace(unroll=wrong)
)
"""
    done = run_experiment("spoken_vowels", *SMOKE, "--out", tmp_path, patch=patch)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "network.layers.0.forward.w_ih" in done.stderr
    assert not (tmp_path / "metrics.jsonl").exists()


# kill and resume

KILL_AT_STEP = """
draw = spoken_vowels.draw_batch
count = iter(range(1000))
# the first batch drawn is the cross-check's
def killing(*arguments, **options):
    return kill() if next(count) == {calls} else draw(*arguments, **options)
spoken_vowels.draw_batch = killing
"""
KILL_MOMENTS = [
    # before the first checkpoint (of step 3)
    KILL_AT_STEP.format(calls=2),
    # at the first checkpoint: its rows are written, it is not
    "checkpoints.save = kill",
    # past the first checkpoint, with rows that it does not cover
    KILL_AT_STEP.format(calls=6),
    # the results are written, the pictures are not: the next run has nothing left to train
    "plots.gradient_flow = kill",
]


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "2"])
def test_run_killed_at_many_moments_ends_like_one_never_killed(
    count, run_experiment, smoke, tmp_path_factory
):
    on_devices = (*SMOKE, "--devices", count)
    tmp_path, expected = tmp_path_factory.mktemp("killed"), smoke[0]
    if count != "1":
        expected = tmp_path_factory.mktemp("whole")
        done = run_experiment("spoken_vowels", *on_devices, "--out", expected)
        assert done.returncode == 0, done.stderr
        assert_same_losses(expected, smoke[0])
    for patch in KILL_MOMENTS:
        done = run_experiment("spoken_vowels", *on_devices, "--out", tmp_path, patch=patch)
        assert done.returncode == -9, done.stderr
        assert (tmp_path / "result.json").exists() == patch.startswith("plots")
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
    done = run_experiment("spoken_vowels", *on_devices, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after step 6" in done.stdout
    assert result_of(tmp_path)["config"]["devices"] == int(count)
    assert result_of(tmp_path)["params_sha256"] == result_of(expected)["params_sha256"]
    assert rows_of(tmp_path) == rows_of(expected)


def run_two_processes(run_experiment, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--devices", "2", "--num-processes", "2", "--coordinator", address)

    def run(process):
        # in a folder of its own, where the second one must leave nothing
        where = out if process == 0 else out.parent / "second"
        return run_experiment(
            "spoken_vowels", *SMOKE, *together, "--process-id", process, "--out", where
        )

    with futures.ThreadPoolExecutor() as pool:
        for done in pool.map(run, range(2)):
            assert done.returncode == 0, done.stderr
    assert not (out.parent / "second").exists()


def assert_same_losses(out, expected):
    losses = [[row["loss"] for row in rows_of(folder)] for folder in (out, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_two_processes_have_the_loss_curve_of_one(run_experiment, smoke, tmp_path):
    run_two_processes(run_experiment, tmp_path / "out")
    assert_same_losses(tmp_path / "out", smoke[0])


@pytest.mark.slow
def test_two_processes_continue_what_one_began(run_experiment, smoke, tmp_path):
    """From the first one's checkpoint, which the second one cannot read."""
    out = shutil.copytree(smoke[0], tmp_path / "out")
    shutil.rmtree(out / "checkpoints" / "6")
    run_two_processes(run_experiment, out)
    assert_same_losses(out, smoke[0])


def test_run_into_the_folder_of_another_is_refused(run_experiment, smoke, tmp_path):
    out = shutil.copytree(smoke[0], tmp_path / "out")
    done = run_experiment("spoken_vowels", *SMOKE, "--noise", "0.25", "--out", out)
    assert_bad_input(done.returncode, done.stderr, "noise is 1.0 there and 0.25 here")
    assert rows_of(out) == rows_of(smoke[0])


@pytest.fixture
def state():
    params = {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.float32(1)}
    return jaxrnn.init_train_state(params, optax.adam(1e-3), jax.random.key(7))


def restore(manager, fresh, origin):
    return checkpoints.restore_latest(manager, fresh, origin, run_folder=Path("the run"))


def at_step(state, step):
    return state._replace(step=jnp.asarray(step, state.step.dtype))


def assert_same(one, other):
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), one, other)
    assert all(jax.tree.leaves(same))


def test_checkpoint_restores_every_bit(state, tmp_path):
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, at_step(state, 4), {"a": 1})
        assert_same(restore(manager, state, {"a": 1}), at_step(state, 4))


def test_no_checkpoint_gives_the_fresh_state(state, tmp_path):
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert restore(manager, state, {}) is state


def test_foreign_checkpoint_is_refused_with_the_differing_options(state, tmp_path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, at_step(state, 4), {"noise": 0.5, "seed": 1})
        with pytest.raises(InputError) as refused:
            restore(manager, state, {"noise": 0.25, "seed": 1})
    message = str(refused.value)
    folder = tmp_path / "checkpoints" / "4"
    for part in (
        f"{folder} is of another run",
        "noise is 0.5 there and 0.25 here",
        "remove the run",
        "--out",
    ):
        assert part in message
    assert "seed" not in message


def test_damaged_checkpoint_is_named_and_removing_it_helps(state, tmp_path):
    with checkpoints.open_checkpoints(tmp_path) as manager:
        for step in (3, 6):
            checkpoints.save(manager, at_step(state, step), {})
    for path in (tmp_path / "6").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    remedy = f"{tmp_path}/6 is damaged .* Remove that folder"
    with checkpoints.open_checkpoints(tmp_path) as manager, pytest.raises(InputError, match=remedy):
        restore(manager, state, {})
    shutil.rmtree(tmp_path / "6")
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert_same(restore(manager, state, {}), at_step(state, 3))


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_no_damage_to_a_checkpoint_changes_the_state_unnoticed(state, tmp_path, damage):
    with checkpoints.open_checkpoints(tmp_path / "whole") as manager:
        checkpoints.save(manager, state, {})
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    refused = 0
    for number, file in enumerate(path for path in files if path.stat().st_size):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", copy)
        target = copy / file.relative_to(tmp_path / "whole")
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 255
        target.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
        if damage == "removed":
            target.unlink()
        with checkpoints.open_checkpoints(copy) as manager:
            try:
                restored = restore(manager, state, {})
            except InputError:
                refused += 1
            else:
                assert_same(restored, state)
    assert refused


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append_rows(path, [{"step": step, "loss": 0.5} for step in range(1, 6)])
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in records.read_rows(path, 3)] == [1, 2, 3]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("lines", ["", '{"step": 1}\n', '{"step": 1}\n{"step": 1}\n', "1\n2\n"])
def test_metrics_that_lack_a_step_are_refused(lines, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines)
    with pytest.raises(InputError, match=r"must hold the steps 1\.\.2"):
        records.read_rows(path, 2)


def test_metrics_of_a_run_without_a_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for cut in ("", "{", '{"step": 2, "lo'):
        path.write_text('{"step": 1, "loss": NaN}\n' + cut)
        assert records.read_rows(path, 0) == []
        assert path.read_text() == ""


@pytest.mark.parametrize(
    "foreign", ["my notes", "my notes\n", '{"loss": 1}\n', '{"step": "a"}\n', '{"step": 1}\n7\n']
)
def test_metrics_file_that_is_no_run_s_is_refused_and_kept(foreign, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(foreign)
    with pytest.raises(InputError, match=f'{path} would be overwritten.*"step"; got .*--out'):
        records.read_rows(path, 0)
    assert path.read_text() == foreign


def test_unreadable_metrics_and_checkpoints_are_named(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    (tmp_path / "folder").mkdir()
    for name, reason in (("bytes", "utf-8"), ("folder", "Is a directory")):
        with pytest.raises(InputError, match=f"cannot read .*{name}: .*{reason}.*--out"):
            records.read_rows(tmp_path / name, 0)
    with pytest.raises(InputError, match=f"{tmp_path}/bytes must be a folder .*--out"):
        checkpoints.open_checkpoints(tmp_path / "bytes")


def test_diverged_training_stops_with_its_metrics_and_no_checkpoint(state, tmp_path, monkeypatch):
    losses = iter([2.0, 3.0, math.nan, math.nan])
    monkeypatch.setattr(
        jaxrnn, "make_train_step", lambda *_: lambda state, _: (state, {"loss": next(losses)})
    )
    monkeypatch.setattr(spoken_vowels, "evaluate_splits", lambda *_: {"train_loss": 1.0})
    monkeypatch.setattr(spoken_vowels, "progress_line", lambda _: "")
    config = Config(steps=8, eval_every=2, save_every=4, out=tmp_path)
    message = r"diverged: at step 3 .*\(loss nan\).*--learning-rate below 0.003"
    with pytest.raises(NumericalError, match=message):
        train_network(config, state, None, prepare_training(holdout=3))
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_numerical_failure_exits_with_1_and_no_traceback(command_line, monkeypatch):
    def fail(_):
        raise NumericalError("the training diverged")

    monkeypatch.setattr(spoken_vowels, "run", fail)
    code, _, errors = command_line("spoken_vowels")
    assert (code, errors) == (1, "error: the training diverged\n")


# the pieces


def test_cross_check_refuses_differences_above_the_tolerance_and_nan():
    cross_check.require_agreement({"w": cross_check.TOLERANCES["float32"]})
    for value in (2 * cross_check.TOLERANCES["float32"], math.nan):
        with pytest.raises(CrossCheckError, match="gradient of w differs"):
            cross_check.require_agreement({"w": value, "b": 0.0})


def test_cross_check_measures_relative_to_the_largest_entry():
    differences = cross_check.gradient_differences(
        lambda params: (params["w"] * jnp.array([1.0, 4.04])).sum(),
        lambda params: (params["w"] * jnp.array([1.0, 4.0])).sum(),
        {"w": jnp.ones(2)},
    )
    assert differences == {"w": pytest.approx(0.01)}


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan])
def test_cross_check_says_where_both_gradients_are_useless(scale):
    def loss(params):
        return params["b"] + scale * params["w"].sum()

    with pytest.raises(NumericalError, match=r"gradient of w is not finite, or zero .*--noise"):
        cross_check.gradient_differences(loss, loss, {"w": jnp.ones(2), "b": jnp.ones(())})
    # a fault of one of them is for the comparison to find
    differences = cross_check.gradient_differences(
        loss, lambda params: params["b"] + params["w"].sum(), {"w": jnp.ones(2), "b": jnp.ones(())}
    )
    with pytest.raises(CrossCheckError, match="gradient of w differs"):
        cross_check.require_agreement(differences)


def test_cross_check_asks_for_full_float32_products():
    precisions = []

    def loss(params):
        precisions.append(jax.config.jax_default_matmul_precision)
        return params.sum()

    cross_check.gradient_differences(loss, loss, jnp.ones(2))
    assert set(precisions) == {"highest"}


def test_training_statistics_are_of_valid_training_frames_only():
    data = prepare_training(holdout=3)
    assert (len(data.train.labels), len(data.held_out.labels)) == (243, 27)
    assert np.bincount(data.train.labels).tolist() == [27] * 9
    valid = np.arange(len(data.train.xs))[:, None] < data.train.lengths
    np.testing.assert_allclose(data.train.xs[valid].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.xs[valid].std(axis=0), 1, atol=1e-5)


def test_batch_depends_on_seed_and_step_alone():
    train = prepare_training(holdout=3).train
    batches = [
        draw_batch(train, Config(seed=seed), step)
        for seed, step in [(0, 5), (0, 5), (0, 6), (1, 5)]
    ]
    same = [np.array_equal(batches[0].xs, batch.xs) for batch in batches]
    assert same == [True, True, False, False]


def test_baselines_do_not_read_the_padding():
    generator = np.random.default_rng(0)
    xs = generator.normal(size=(5, 3, 2)).astype(np.float32)
    lengths = np.array([5, 1, 3])
    padding = np.arange(5)[:, None] >= lengths
    xs[padding] = np.nan
    assert np.isfinite(baselines.channel_statistics(Utterances(xs, lengths, lengths))).all()


@pytest.mark.parametrize("count", [1, 12])
def test_gradient_picture_is_drawn_where_some_or_all_gradients_are_zero(count):
    lengths = np.arange(count) % 3 + 1
    before = np.where(np.arange(3)[:, None] < lengths, np.float32(0.5), 0)
    before[:, ::2] = 0
    picture = plots.gradient_flow(
        {"forward": before}, {"forward": 0 * before}, lengths, frame_shift=6.4, title="zeros"
    )
    assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [(0.99, "beats all"), (0.9, "only equals: a"), (0.85, "LOSES to: a")],
)
def test_comparison_says_in_words_who_wins(accuracy, words):
    score = Score("LSTM", "accuracy", accuracy, {"a": 0.9, "b": 0.8}, higher_is_better=True)
    assert words in score.verdict()
