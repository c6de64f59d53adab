"""What is installed: the wheel, its names, and the one direction of its imports."""

import ast
import inspect
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import jax
import pytest

import jaxrnn
from jaxrnn import (
    cells,
    convert,
    diagnostics,
    initializers,
    parallel,
    products,
    testing,
    textbook,
)

ROOT = Path(__file__).parent.parent

# each module may import those above it
LADDER = [
    "jaxrnn.textbook.checks",
    "jaxrnn.textbook.caches",
    "jaxrnn.textbook.head",
    "jaxrnn.textbook.rnn",
    "jaxrnn.textbook.lstm",
    "jaxrnn.textbook.derivation",
    "jaxrnn.textbook.unfolded",
    "jaxrnn.textbook",
    "jaxrnn.checks",
    "jaxrnn.dtypes",
    "jaxrnn.platforms",
    "jaxrnn.sharding",
    "jaxrnn.chunks",
    "jaxrnn.products",
    "jaxrnn.normalisation",
    "jaxrnn.masks",
    "jaxrnn.initializers",
    "jaxrnn.blocks",
    "jaxrnn.activations",
    "jaxrnn.cells.cell",
    "jaxrnn.cells.gated",
    "jaxrnn.cells.elman",
    "jaxrnn.cells.leaky",
    "jaxrnn.cells.lstm",
    "jaxrnn.cells.coupled_lstm",
    "jaxrnn.cells.peephole_lstm",
    "jaxrnn.cells.gru",
    "jaxrnn.cells.mgu",
    "jaxrnn.cells.reset_before_gru",
    "jaxrnn.cells.layer_norm_gru",
    "jaxrnn.cells.layer_norm_lstm",
    "jaxrnn.cells.slstm",
    "jaxrnn.cells.from_step",
    "jaxrnn.cells.transforms.common",
    "jaxrnn.cells.transforms.dropout",
    "jaxrnn.cells.transforms.clipping",
    "jaxrnn.cells.transforms.projection",
    "jaxrnn.cells.transforms.heads",
    "jaxrnn.cells.transforms.precision",
    "jaxrnn.cells.transforms",
    "jaxrnn.cells",
    "jaxrnn.pieces",
    "jaxrnn.loops",
    "jaxrnn.gpu_loops",
    "jaxrnn.memory",
    "jaxrnn.plan",
    "jaxrnn.bptt",
    "jaxrnn.call",
    "jaxrnn.sequence",
    "jaxrnn.layers",
    "jaxrnn.budget",
    "jaxrnn.network",
    "jaxrnn.streaming",
    "jaxrnn.batches",
    "jaxrnn.embedding",
    "jaxrnn.decoding",
    "jaxrnn.readout",
    "jaxrnn.convert.textbook",
    "jaxrnn.convert.torch",
    "jaxrnn.convert",
    "jaxrnn.training",
    "jaxrnn.parallel",
    "jaxrnn.diagnostics.recording",
    "jaxrnn.diagnostics.measures",
    "jaxrnn.diagnostics.networks",
    "jaxrnn.diagnostics.backpropagation",
    "jaxrnn.diagnostics.contributions",
    "jaxrnn.diagnostics.flow",
    "jaxrnn.diagnostics.truncation",
    "jaxrnn.diagnostics.drawing",
    "jaxrnn.diagnostics.explain",
    "jaxrnn.diagnostics",
    "jaxrnn.testing.arrays",
    "jaxrnn.testing.compare",
    "jaxrnn.testing.gradients",
    "jaxrnn.testing.cases",
    "jaxrnn.testing.first_steps",
    "jaxrnn.testing.pieces",
    "jaxrnn.testing.cells",
    "jaxrnn.testing",
    "jaxrnn",
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """The modules that a file imports, also those of `from package import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if name in LADDER]
            yield from found or [node.module]


def test_imports_run_one_way():
    files = {module_name(path): path for path in (ROOT / "jaxrnn").rglob("*.py")}
    assert sorted(files) == sorted(LADDER)
    for name, path in files.items():
        for imported in imported_modules(path):
            if imported in LADDER:
                assert LADDER.index(imported) < LADDER.index(name), f"{name} imports {imported}"
            assert not imported.startswith("experiments"), f"{name} imports {imported}"


def test_no_file_of_the_library_is_long():
    for path in (ROOT / "jaxrnn").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 450, path.name


def test_the_library_needs_only_what_it_declares():
    ours = {"jaxrnn", "jax", "jaxlib", "optax", "chex", "numpy"}
    # where a figure is drawn, it is imported when asked for one
    optional = {"drawing.py": {"matplotlib"}, "explain.py": {"matplotlib"}}
    for path in (ROOT / "jaxrnn").rglob("*.py"):
        allowed = ours | sys.stdlib_module_names | optional.get(path.name, set())
        for imported in imported_modules(path):
            assert imported.partition(".")[0] in allowed, f"{path.name} imports {imported}"


def test_nothing_optional_is_imported_before_it_is_asked_for():
    code = "import sys, jaxrnn; assert not {'matplotlib', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_textbook_is_imported_when_it_is_asked_for():
    """By every way to name it; and nothing else of the library needs it."""
    code = """
import sys, jaxrnn
loaded = [name for name in sys.modules if "textbook" in name]
assert not loaded, loaded
assert "textbook" in dir(jaxrnn) and "textbook" in dir(jaxrnn.convert)
jaxrnn.textbook.cache_at, jaxrnn.convert.textbook.rnn_to_textbook
from jaxrnn import textbook
assert textbook is jaxrnn.textbook is sys.modules["jaxrnn.textbook"]
for module in jaxrnn, jaxrnn.convert:
    try:
        module.txetbook
    except AttributeError as error:
        assert "has no attribute 'txetbook'" in str(error), error
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_public_names_are_these():
    assert sorted(jaxrnn.__all__) == [
        "AffineParams",
        "COUPLED_LSTM",
        "Cell",
        "CoupledLSTMParams",
        "ELMAN",
        "ElmanParams",
        "ElmanState",
        "EmbeddingParams",
        "GRU",
        "GRUParams",
        "GRUState",
        "LAYER_NORM_GRU",
        "LAYER_NORM_LSTM",
        "LSTM",
        "LSTMParams",
        "LSTMState",
        "LayerNormGRUParams",
        "LayerNormLSTMParams",
        "LayerParams",
        "LayerState",
        "LeakyParams",
        "MGU",
        "MGUParams",
        "MGUState",
        "Network",
        "PEEPHOLE_LSTM",
        "PeepholeLSTMParams",
        "ProjectedParams",
        "RESET_BEFORE_GRU",
        "ResetBeforeGRUParams",
        "SLSTM",
        "SLSTMParams",
        "SLSTMState",
        "StackParams",
        "StackState",
        "TrainState",
        "accumulate",
        "affine",
        "cell_from_step",
        "cells",
        "clip_adjoint",
        "clipped",
        "compiler_options",
        "convert",
        "decay_mask",
        "diagnostics",
        "elman",
        "embed",
        "generate",
        "heads",
        "init_affine",
        "init_embedding",
        "init_train_state",
        "initializers",
        "last_valid",
        "layer",
        "leaky",
        "make_stream_step",
        "make_train_step",
        "pad_sequences",
        "parallel",
        "products",
        "projected",
        "recurrent_dropout",
        "reference",
        "softmax_cross_entropy",
        "squared_error",
        "stack",
        "testing",
        "textbook",
        "unroll",
        "unroll_reference",
        "valid_steps",
        "windows",
        "with_dtypes",
        "zoneout",
    ]
    assert all(hasattr(jaxrnn, name) for name in jaxrnn.__all__)


@pytest.mark.parametrize(
    "module",
    [
        jaxrnn,
        cells,
        products,
        initializers,
        diagnostics,
        parallel,
        testing,
        textbook,
        convert.textbook,
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_symbol_is_documented(module):
    assert inspect.getdoc(module)
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, jaxrnn.Cell):
            # a constant has no docstring of its own: its functions and its module do
            thing = sys.modules[thing.step.__module__]
        documentation = thing.__doc__
        assert documentation, name
        assert not documentation.startswith(f"{name}("), f"{name} has a generated docstring"


@pytest.mark.parametrize("name", ["init", "initial_state", "step"])
def test_what_users_call_of_a_cell_is_documented(cell, name):
    assert getattr(cell, name).__doc__


@pytest.mark.slow
def test_the_wheel_holds_jaxrnn_alone_and_imports_in_an_empty_environment(tmp_path):
    def run(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    run(
        sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation",
        "--wheel-dir", str(tmp_path), str(ROOT),
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"jaxrnn", f"jaxrnn-{jaxrnn.__version__}.dist-info"}
    assert "jaxrnn/py.typed" in names

    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    # the same jax as here: the newest one of this interpreter is not this test's subject
    run(python, *pip, "install", str(wheel), f"jax=={jax.__version__}")
    code = (
        "import jax, jaxrnn\n"
        "params = jaxrnn.LSTM.init(jax.random.key(0), 3, 5)\n"
        "_, hs = jaxrnn.unroll(jaxrnn.LSTM, params, jax.numpy.ones((7, 2, 3)))\n"
        "print(jaxrnn.__version__, hs.shape)"
    )
    # away from the checkout, which must not be what is imported
    printed = run(python, "-I", "-c", code, cwd=tmp_path)
    assert printed.split("\n")[0] == f"{jaxrnn.__version__} (7, 2, 5)"
