"""The rows of times: each yields lines for the result, beside those that it is held against.

A later cell is in the rows by being one of jaxrnn's names, later loops by being in a module of it.
"""

import functools
import importlib
import pkgutil
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxrnn
from experiments.benchmarks import processes
from experiments.benchmarks.cases import PLAIN, Arrays, Case
from experiments.benchmarks.processes import Worker, WorkerError
from experiments.gpu_check.programs import (
    CELLS,
    REPEATS,
    TOLERANCES,
    Program,
    Shape,
    Spec,
    agreement,
    gradients,
    inputs,
    products,
    seconds_of,
    times,
    training,
    with_plan,
)
from jaxrnn.gpu_loops import unrolled
from jaxrnn.loops import Loops

Line = dict[str, Any]


class Setting(NamedTuple):
    """``small`` is the miniature; ``peers`` are the workers of other libraries, by name.

    After ``deadline``, in the seconds of `time.monotonic`, nothing more is timed.
    """

    small: bool
    deadline: float
    pool: futures.Executor
    peers: Mapping[str, Worker]
    out: Path

    @property
    def shape(self) -> Shape:
        return Shape(24, 3, 4, 8) if self.small else Shape(1024, 16, 64, 128)


def device(setting: Setting) -> Iterator[Line]:
    """The device, its rate of copies and of products."""
    chip = jax.devices()[0]
    yield {
        "what": "device",
        # the first line names the interface to a plugin, the last one the platform's version
        "who": ", ".join(
            [chip.device_kind, chip.client.platform_version.splitlines()[-1], *_driver()]
        ),
        "status": "ok",
    }
    entries = 2**12 if setting.small else 2**28
    add = jax.jit(lambda x: x + 1)
    x = jnp.zeros(entries, jnp.float32)
    seconds = seconds_of(add, x)
    rate = 2 * 4 * entries / min(seconds) / 1e12
    yield {"what": "copy", "who": f"{rate:.3g} TB/s", "status": "ok", **times(seconds)}
    size = 64 if setting.small else 8192
    for precision, (dtype, name) in {
        "bfloat16": (jnp.bfloat16, "default"),
        "TF32": (jnp.float32, "tensorfloat32"),
        "float32": (jnp.float32, "highest"),
    }.items():
        x = jnp.ones((size, size), dtype)
        with jax.default_matmul_precision(name):
            square = jax.jit(jnp.matmul).lower(x, x).compile()
        seconds = seconds_of(square, x, x)
        rate = 2 * size**3 / min(seconds) / 1e12
        yield {
            "what": f"product of {size}, {precision}",
            "who": f"{rate:.3g} TFLOP/s",
            "status": "ok",
            **times(seconds),
        }


def empty_scan(setting: Setting) -> Iterator[Line]:
    """The cost of an iteration of a loop that does nothing."""
    T = 100 if setting.small else 10_000

    def count(x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (carry + 1, None), x, None, length=T)[0]

    for who, options in {"as it is": None, "one command buffer": _one_graph()}.items():
        compiled = jax.jit(count, compiler_options=options).lower(jnp.zeros(())).compile()
        seconds = seconds_of(compiled, jnp.zeros(()))
        yield {"what": f"empty scan, T={T}", "who": who, "status": "ok", **times(seconds, T)}


def cells(setting: Setting) -> Iterator[Line]:
    """A training step of each cell: the library, the differentiated scan, and the peers."""
    specs = {}
    for cell in CELLS:
        specs[cell, "jaxrnn"] = Spec(cell, setting.shape)
        specs[cell, "unroll_reference"] = Spec(cell, setting.shape, jaxrnn.unroll_reference)
    for (cell, who), line in _timed(setting, specs):
        yield {"what": f"training, {cell}", "who": who, **line}
    for cell in CELLS:
        for who, worker in setting.peers.items():
            yield {"what": f"training, {cell}", "who": who, **_peer(setting, cell, worker)}


def options(setting: Setting) -> Iterator[Line]:
    """The training step of an LSTM under XLA's options, and both ways through time under ours."""
    engine = Spec("LSTM", setting.shape)
    specs = {
        "as it is": engine,
        "one command buffer": engine._replace(options=_one_graph()),
        "no command buffers": engine._replace(options={"xla_gpu_enable_command_buffer": ""}),
        "no Triton products": engine._replace(options={"xla_gpu_enable_triton_gemm": False}),
        "no split-K": engine._replace(options={"xla_gpu_experimental_force_split_k": 1}),
        "unroll_reference, one command buffer": engine._replace(
            unroll=jaxrnn.unroll_reference, options=_one_graph()
        ),
    }
    if setting.small:
        specs = dict(list(specs.items())[:2])
    for who, line in _timed(setting, specs):
        yield {"what": "options, LSTM", "who": who, **line}


def loops(setting: Setting) -> Iterator[Line]:
    """The step loops of the engine, and lengths of chunks, in a training step of an LSTM."""
    engine = Spec("LSTM", setting.shape)
    pairs = [*_pairs(), *(unrolled(steps) for steps in (4, 16))]
    if setting.small:
        pairs = pairs[:2]
    specs = {"as planned": engine}
    specs |= {pair.name: engine._replace(unroll=with_plan(loops=pair)) for pair in pairs}
    lengths = (8,) if setting.small else (64, 128, 512, setting.shape.T)
    for K in lengths:
        specs[f"chunks of {K}"] = engine._replace(unroll=with_plan(chunk=K))
    for who, line in _timed(setting, specs):
        yield {"what": "loops, LSTM", "who": who, **line}


def sizes(setting: Setting) -> Iterator[Line]:
    """Larger networks, in each precision, beside the differentiated scan."""
    wanted = [(256, 64), (512, 64), (1024, 64), (512, 256)]
    shapes = [Shape(16, 2, 4, 8)] if setting.small else [Shape(256, B, H, H) for H, B in wanted]
    precisions = ["float32"] if setting.small else list(TOLERANCES)
    specs = {}
    for shape in shapes:
        for precision in precisions:
            ours = Spec("LSTM", shape, precision=precision)
            specs[shape, precision, "jaxrnn"] = ours
            reference = ours._replace(unroll=jaxrnn.unroll_reference)
            specs[shape, precision, "unroll_reference"] = reference
    for (shape, precision, who), line in _timed(setting, specs):
        what = f"LSTM, T, B, H = {shape.T}, {shape.B}, {shape.H}, {precision}"
        yield {"what": what, "who": who, **line}


def experiment(setting: Setting) -> Iterator[Line]:
    """The experiment of the README: its accuracy, and the seconds that it takes."""
    from experiments import spoken_vowels

    out = setting.out / "spoken_vowels"
    # not a run that goes on from an older one
    shutil.rmtree(out, ignore_errors=True)
    config = spoken_vowels.Config(out=out, smoke=setting.small)
    result = spoken_vowels.run(config)
    yield {
        "what": "spoken_vowels",
        "who": f"test accuracy {result['test_accuracy']:.1%} in {result['seconds']} s",
        "status": "ok",
    }


ROWS: tuple[Callable[[Setting], Iterable[Line]], ...] = (
    device,
    empty_scan,
    cells,
    options,
    loops,
    sizes,
    experiment,
)


def _timed(setting: Setting, specs: Mapping[Any, Spec]) -> Iterator[tuple[Any, Line]]:
    """Compile all at once, and only then compare and time one after the other."""
    compiling = {key: setting.pool.submit(training, spec) for key, spec in specs.items()}
    # the right gradients are compiled beside them
    rights = {(spec.cell, spec.shape, spec.precision == "bfloat16") for spec in specs.values()}
    futures.wait([*compiling.values(), *(setting.pool.submit(_right, *of) for of in rights)])
    for key, spec in specs.items():
        if time.monotonic() > setting.deadline:
            yield key, {"status": "left out: the time is over"}
            continue
        try:
            yield key, _compared(spec, compiling.pop(key).result())
        except jax.errors.JaxRuntimeError as error:
            yield key, {"status": f"FAILED: {str(error).splitlines()[0][:200]}"}


def _compared(spec: Spec, program: Program) -> Line:
    """The line of a program: no time without the right gradients."""
    right = _named(_right(spec.cell, spec.shape, spec.precision == "bfloat16"))
    line = _agreement(_named(program.run()), right, spec.precision) | {
        "compile_seconds": program.compile_seconds,
        "temporary_MB": program.temporary_bytes and round(program.temporary_bytes / 1e6, 1),
    }
    if line["status"] != "ok":
        return line
    return line | times(seconds_of(program.run), spec.shape.T)


def _agreement(found: Any, right: Any, precision: str) -> Line:
    # gradients of long sequences sum more roundings than those of the first part
    worst, difference, agrees = agreement(found, right, 2 * TOLERANCES[precision])
    status = "ok" if agrees else f"DISAGREES: {worst} by {difference:.1g}"
    return {"difference": float(f"{difference:.2g}"), "status": status}


@functools.cache
def _right(cell: str, shape: Shape, rounded: bool) -> Any:
    """The gradients of the differentiated scan, in float32 proper.

    Of the numbers that a program in float32 is given, or of those ``rounded`` to bfloat16.
    """
    given = inputs(cell, shape, jnp.bfloat16 if rounded else jnp.float32)
    params, xs, dhs = jax.tree.map(lambda a: a.astype(jnp.float32), given)

    step = functools.partial(gradients, jaxrnn.unroll_reference, cell)
    with products("float32"):
        return jax.jit(step)(params, xs, dhs)


def _named(found: Any) -> dict[str, np.ndarray]:
    """By the names that the benchmarks use."""
    dparams, dxs = jax.device_get(found)
    leaves = jax.tree_util.tree_leaves_with_path(dparams)
    named = {f"d{jax.tree_util.keystr(path, simple=True)}": leaf for path, leaf in leaves}
    return {name: np.asarray(leaf, np.float32) for name, leaf in {**named, "dxs": dxs}.items()}


def _peer(setting: Setting, cell: str, worker: Worker) -> Line:
    """Another library's training step with the same weights, inputs and cotangents."""
    if cell.lower() not in PLAIN:
        return {"status": "not compared: it has no such cell, or nobody has matched the two"}
    shape = setting.shape
    params, xs, dhs = jax.device_get(inputs(cell, shape, jnp.float32))
    case = Case("sequence", cell.lower(), *shape)
    arrays = Arrays(params._asdict(), {"xs": xs, "dhs": dhs})
    try:
        began = processes.ask(worker, "begin", jax.default_backend())
        reason = began["unavailable"] or began["not_compared"].get(case.cell)
        if reason:
            return {"status": reason}
        answers = processes.ask(worker, "prepare", case, arrays, 0)
        right = _named(_right(cell, shape, False))
        found = {name: answers["outputs"].get(name) for name in right}
        # cuDNN rounds to TF32 unless it is told otherwise; a wrong gradient is off by far more
        line = _agreement(found, right, "TF32")
        if line["status"] != "ok":
            return line
        seconds = processes.ask(worker, "time", "training", REPEATS)
    except WorkerError as error:
        return {"status": f"FAILED: {str(error)[:200]}"}
    return line | times(seconds, shape.T)


def _driver() -> list[str]:
    """The driver's version, where a command tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [f"driver {done.stdout.splitlines()[0]}"] if done.stdout else []


def _one_graph() -> dict[str, Any] | None:
    return jaxrnn.compiler_options("gpu") or None


def _pairs() -> list[Loops]:
    """Every pair of step loops in a module of jaxrnn."""
    found: dict[int, Loops] = {}
    for module in pkgutil.iter_modules(jaxrnn.__path__):
        members = vars(importlib.import_module(f"jaxrnn.{module.name}"))
        found |= {id(value): value for value in members.values() if isinstance(value, Loops)}
    return list(found.values())
