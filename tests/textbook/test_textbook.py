"""The textbook equals the engine equals autodiff, in every notation; what it takes and returns."""

import ast
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from notations import (
    SPECS,
    by_autodiff,
    by_formulas,
    compiled,
    engine_loss,
    forward,
    make,
    random_sizes,
    solved,
    unpack,
)
from support.problems import assert_same
from worked_examples import rnn_example

import jaxrnn
from jaxrnn import textbook
from jaxrnn.convert import textbook as convert

NOTATIONS = list(SPECS)
SOURCES = Path(textbook.__file__).parent


# other sizes in each case; one with a single step
CASES = pytest.mark.parametrize(("seed", "steps"), [(4, None), (1, 1)], ids=["T", "one_step"])
EACH = pytest.mark.parametrize("notation", NOTATIONS)


@CASES
@EACH
def test_the_formulas_equal_autodiff(notation, seed, steps):
    _, ours, auto = solved(notation, seed, steps)
    assert_same(ours, auto)


@CASES
@EACH
def test_the_formulas_equal_the_engine(notation, seed, steps):
    problem, ours, _ = solved(notation, seed, steps)
    assert_same(ours, compiled(by_autodiff(engine_loss(notation, problem)), problem.inputs))


# the cells run eagerly in worked_examples.py
@pytest.mark.parametrize("notation", ["rnn", "net"])
def test_jit_equals_eager(notation):
    problem, (out, gradients), _ = solved(notation, 4)
    assert_same((out, gradients), by_formulas(notation, problem)(problem.inputs))


def textbook_cell(notation, inputs, dh, dc):
    """A step's values and gradients by the textbook's formulas."""
    p, x, *states = unpack(notation, inputs)
    if notation == "rnn":
        a_next, yt_pred, cache = textbook.rnn_cell_forward(x, *states, p)
        return (a_next, yt_pred), textbook.rnn_cell_backward(dh, cache)
    if notation == "lstm":
        a_next, c_next, yt_pred, cache = textbook.lstm_cell_forward(x, *states, p)
        return (a_next, c_next, yt_pred), textbook.lstm_cell_backward(dh, dc, cache)
    h_t, c_t, cache = textbook.step_forward(x, *states, p)
    return (h_t, c_t), textbook.gradients_at_step(dh, cache, dc_next=dc)


def engine_cell(notation, inputs, dh, dc):
    """The same by the pieces of the cell that the engine calls, under the textbook's names."""
    p, x, *states = unpack(notation, inputs)
    from_textbook = getattr(convert, f"{notation}_from_textbook")
    converted, pull_names = jax.vjp(from_textbook, p)
    params, head = (converted, None) if notation == "step" else converted
    cell = jaxrnn.ELMAN if notation == "rnn" else jaxrnn.LSTM
    state = jaxrnn.ElmanState if notation == "rnn" else jaxrnn.LSTMState
    before = state(*(q.T for q in states))

    inputs = cell.project(params, x.T, None)
    after, gates = cell.advance(params, before, inputs, None)
    factors = cell.linearize(params, inputs, before, after, gates, None)
    dafter = state(*(q.T for q in (dh, dc)[: len(states)]))
    dbefore, deltas = cell.pull(params, dafter, factors, None)
    dparams, dx, _ = cell.gradients(params, x.T, before, after, gates, deltas, None)

    dhead = jax.tree.map(jnp.zeros_like, head)
    (named,) = pull_names(dparams if notation == "step" else (dparams, dhead))
    values = tuple(q.T for q in after)
    if head is not None:
        values += (jax.nn.softmax(jaxrnn.affine(head, after.h)).T,)
    keys = {
        "rnn": ("dxt", "da_prev"),
        "lstm": ("dxt", "da_prev", "dc_prev"),
        "step": ("dx", "dh_prev", "dc_prev"),
    }[notation]
    states = dict(zip(keys, (dx.T, *(q.T for q in dbefore)), strict=True))
    return values, {**{f"d{key}": value for key, value in named.items()}, **states}


@pytest.mark.parametrize("notation", ["rnn", "lstm", "step"])
def test_one_cell_equals_the_engines(notation):
    problem = make(notation, random_sizes(2))
    inputs = {**problem.inputs, "x": problem.inputs["x"][..., 0]}
    args = inputs, problem.da[..., 0], problem.dc[..., 0]
    values, actual = compiled(functools.partial(textbook_cell, notation), *args)
    expected_values, expected = compiled(functools.partial(engine_cell, notation), *args)
    assert_same(values, expected_values)
    shared = actual.keys() & expected.keys()
    assert_same({key: actual[key] for key in shared}, {key: expected[key] for key in shared})
    # what only one side has: the gates' own gradients, and the head, which has no part in a cell
    assert actual.keys() - shared == (
        {"do", "dc", "di", "dg", "df"} if notation == "step" else set()
    )
    assert {"rnn": {"dWya", "dby"}, "lstm": {"dWy", "dby"}, "step": set()}[notation] == (
        expected.keys() - shared
    )


def test_targets_of_zero_leave_a_step_out():
    rnn = rnn_example()
    y = rnn.y.copy()
    y[..., 1] = 0
    gradients = textbook.rnn_head_backward(y, rnn.out["y_pred"], rnn.out["a"], rnn.p)
    assert not np.any(gradients["da"][..., 1])
    assert np.all(gradients["da"][..., 2])


def test_no_exponential_overflows():
    """Predictions, error and gradients at logits far outside of what exp can hold."""
    p = {"Wax": [[1.0]], "Waa": [[0.0]], "Wya": [[1e4], [-1e4]], "ba": [[9.0]], "by": [[0.0]] * 2}
    p = {key: jnp.asarray(value) for key, value in p.items()}

    def run(p, x, y):
        a, y_pred, _ = textbook.rnn_forward(x, jnp.zeros((1, 1)), p)
        head = textbook.rnn_head_backward(y[::-1], y_pred, a, p)
        return y_pred, textbook.cross_entropy(y, y_pred), head["dby"]

    likely = jnp.asarray([[[1.0]], [[0.0]]])
    y_pred, E, dby = compiled(run, p, jnp.ones((1, 1, 1)), likely)
    assert_same((y_pred, E, dby), (likely, jnp.zeros(()), jnp.asarray([[1.0], [-1.0]])))

    huge = jnp.full((1, 1), -1e4)
    p = {key: jnp.ones_like(value) for key, value in random_lstm(1).items()}
    cache = compiled(textbook.lstm_cell_forward, huge, huge, huge, p)[-1]
    assert cache.ft == cache.it == cache.ot == 0


def random_lstm(size):
    return make("lstm", dict.fromkeys(("n_x", "hidden", "n_y", "m", "T"), size)).inputs[
        "parameters"
    ]


@EACH
@pytest.mark.parametrize("empty", ["T", "m"])
def test_no_steps_and_no_examples_give_zeros(notation, empty):
    problem = make(notation, {**random_sizes(0), "T": 2, empty: 0})
    problem = problem._replace(da=0 * problem.da, dc=0 * problem.dc)
    out, gradients = compiled(by_formulas(notation, problem), problem.inputs)
    expected = {**problem.inputs["parameters"], **problem.inputs}
    del expected["parameters"]
    assert_same(gradients, {f"d{key}": jnp.zeros_like(value) for key, value in expected.items()})
    assert all(value.shape[1:] == problem.inputs["x"].shape[1:] for value in out.values())


@EACH
def test_dtype_in_is_dtype_out(notation):
    problem = make(notation, random_sizes(0), dtype=jnp.float32)
    returned = jax.eval_shape(by_formulas(notation, problem), problem.inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(returned)} == {jnp.dtype(jnp.float32)}


@EACH
def test_the_caches_are_one_pytree_with_the_parameters_once(notation):
    problem = make(notation, random_sizes(0))
    caches = jax.eval_shape(lambda inputs: forward(notation, inputs)[1], problem.inputs)
    parameters = caches.parameters
    assert jax.tree.structure(parameters) == jax.tree.structure(problem.inputs["parameters"])
    assert all(
        leaf.shape == problem.inputs["parameters"][k].shape for k, leaf in parameters.items()
    )
    stacked = caches._replace(parameters={})
    assert len(jax.tree.leaves(caches)) == len(stacked) - 1 + len(parameters)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {problem.sizes["T"]}


def test_a_sequence_is_a_python_loop_over_cells():
    problem = make("lstm", {**random_sizes(0), "T": 2})

    def loop(inputs):
        p, x, a, c = unpack("lstm", inputs)
        out, caches = forward("lstm", inputs)
        pairs = []
        for t in range(x.shape[-1]):
            a, c, y_pred, cache = textbook.lstm_cell_forward(x[..., t], a, c, p)
            at_t = {key: value[..., t] for key, value in out.items()}
            pairs.append((({"a": a, "c": c, "y_pred": y_pred}, cache),
                          (at_t, textbook.cache_at(caches, t))))  # fmt: skip
        return pairs

    for by_hand, of_the_sequence in compiled(loop, problem.inputs):
        assert_same(by_hand, of_the_sequence)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_step_may_be_an_integer_of_numpy(kind):
    caches = rnn_example_caches()
    assert_same(textbook.cache_at(caches, kind(1)), textbook.cache_at(caches, 1))


def rnn_example_caches():
    rnn = rnn_example()
    return textbook.rnn_forward(rnn.x, rnn.a_prev, rnn.p)[2]


def test_the_networks_gradients_do_not_need_the_paths_one_by_one():
    """What grows with the square of T is in the terms, and not in their sums."""
    problem = make("net", random_sizes(0))
    square = "[{T},{T},".format(**problem.sizes)

    def program(function):
        return str(jax.make_jaxpr(lambda i: function(problem.y, forward("net", i)[1]))(
            problem.inputs))  # fmt: skip

    assert square in program(textbook.net_terms)
    assert square not in program(textbook.net_backward)


def test_optional_states_are_zero():
    lstm, step = (make(notation, random_sizes(0)).inputs for notation in ("lstm", "step"))

    def both(zero):
        p, x, *_ = unpack("lstm", lstm)
        q, *_ = unpack("step", step)
        return (
            (textbook.lstm_forward(x, zero, p), textbook.sequence_forward(x, q)),
            (
                textbook.lstm_forward(x, zero, p, c0=zero),
                textbook.sequence_forward(x, q, zero, zero),
            ),
        )

    assert_same(*compiled(both, 0 * lstm["c0"]))


def test_the_textbook_imports_nothing_of_ours():
    for path in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                ours = name == "jaxrnn.textbook" or name.startswith("jaxrnn.textbook.")
                assert ours or top in ("jax", "numpy", "typing", "collections"), f"{path}: {name}"


def test_the_textbook_differentiates_by_hand():
    for path in SOURCES.glob("*.py"):
        found = re.findall(r"\bjax\.(grad|vjp|jvp|linearize|jac\w+)|custom_vjp", path.read_text())
        assert not found, path
