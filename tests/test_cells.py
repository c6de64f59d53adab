"""The cells as functions: `step` is the documented equations, and fits into `lax.scan` as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem, random_tree

import jaxrnn


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def block(w, gate, H):
    """The gate's own columns of a weight that holds all gates side by side."""
    return w[..., gate * H : (gate + 1) * H]


def elman_step(params, state, x):
    w_ih, w_hh, b = params
    (h,) = state
    return (np.tanh(x @ w_ih + h @ w_hh + b),)


def lstm_step(params, state, x):
    """Gate by gate, in PyTorch's order: input, forget, candidate, output."""
    w_ih, w_hh, b = params
    h, c = state
    H = h.shape[-1]

    def preactivation(gate):
        return x @ block(w_ih, gate, H) + h @ block(w_hh, gate, H) + block(b, gate, H)

    i, f = sigmoid(preactivation(0)), sigmoid(preactivation(1))
    g, o = np.tanh(preactivation(2)), sigmoid(preactivation(3))
    c = f * c + i * g
    return o * np.tanh(c), c


def gru_step(params, state, x):
    """Gate by gate, in PyTorch's order: reset, update, candidate; the reset after the product."""
    w_ih, w_hh, b, b_hn = params
    (h,) = state
    H = h.shape[-1]
    a_r, a_z, a_n = (x @ block(w_ih, gate, H) + block(b, gate, H) for gate in range(3))
    r = sigmoid(a_r + h @ block(w_hh, 0, H))
    z = sigmoid(a_z + h @ block(w_hh, 1, H))
    n = np.tanh(a_n + r * (h @ block(w_hh, 2, H) + b_hn))
    return ((1 - z) * n + z * h,)


NUMPY_STEPS = {"ELMAN": elman_step, "LSTM": lstm_step, "GRU": gru_step}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_step_is_the_documented_equations(cell, batch):
    problem = make_problem(cell, T=1, batch=batch, I=3, H=4)
    params, state, x = problem.params, problem.initial_state, problem.xs[0]
    expected = NUMPY_STEPS[cell.name](*jax.tree.map(np.asarray, (params, state, x)))
    after, h = jax.jit(cell.step)(params, state, x)
    assert type(after) is type(state)
    assert_same(after, type(state)(*map(jnp.asarray, expected)))
    np.testing.assert_array_equal(h, after.h)


def test_step_is_a_body_of_scan(cell):
    problem = make_problem(cell, T=5, batch=(3,))

    @jax.jit
    def scan(params, state, xs):
        return jax.lax.scan(lambda carry, x: cell.step(params, carry, x), state, xs)

    final_state, hs = scan(problem.params, problem.initial_state, problem.xs)
    assert_same((final_state, hs), problem.outputs())


@pytest.mark.parametrize("T", [0, 1, 2, 33])
def test_unroll_is_a_python_loop(cell, T):
    """33 steps are two chunks of the engine and a rest of one step."""
    problem = make_problem(cell, T=T, batch=(2,))
    step = NUMPY_STEPS[cell.name]
    params, state, xs = jax.tree.map(
        np.asarray, (problem.params, problem.initial_state, problem.xs)
    )
    states = []
    for x in xs:
        state = step(params, state, x)
        states.append(state)
    final_state, hs, unrolled_states = problem.outputs(return_states=True)
    assert_same(tuple(final_state), tuple(map(jnp.asarray, state)))
    assert hs.shape == (T, 2, 4)
    for t in range(T):
        assert_same(tuple(leaf[t] for leaf in unrolled_states), tuple(map(jnp.asarray, states[t])))
        np.testing.assert_array_equal(hs[t], unrolled_states.h[t])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_initial_state_is_zero(cell, batch):
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3, 4, dtype=jnp.float16))
    params = random_tree(like)
    state = cell.initial_state(params, batch)
    assert type(state).__name__ == {"ELMAN": "Elman"}.get(cell.name, cell.name) + "State"
    for leaf in state:
        assert leaf.dtype == jnp.float16
        np.testing.assert_array_equal(leaf, np.zeros((*batch, 4)))
    if not batch:
        assert_same(cell.initial_state(params), state, 0)


def test_cells_are_hashable_constants(cell):
    others = {jaxrnn.ELMAN, jaxrnn.LSTM, jaxrnn.GRU} - {cell}
    assert len(others) == 2
    assert cell == getattr(jaxrnn, cell.name)
    assert hash(cell) == hash(cell._replace(name=cell.name))
    assert all(cell != other for other in others)
    assert not cell.takes_consts


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (jaxrnn.ElmanParams, ("w_ih", "w_hh", "b")),
        (jaxrnn.LSTMParams, ("w_ih", "w_hh", "b")),
        (jaxrnn.GRUParams, ("w_ih", "w_hh", "b", "b_hn")),
        (jaxrnn.ElmanState, ("h",)),
        (jaxrnn.LSTMState, ("h", "c")),
        (jaxrnn.GRUState, ("h",)),
    ],
)
def test_fields_keep_their_names_and_order(record, fields):
    assert record._fields == fields


@pytest.mark.parametrize("batch_shape", [2, None, "2"])
def test_batch_shape_must_be_a_tuple(cell, batch_shape):
    params = cell.init(jax.random.key(0), 3, 4)
    with pytest.raises(TypeError, match=f"`batch_shape` must be a tuple .*; got {batch_shape!r}"):
        cell.initial_state(params, batch_shape)


OTHER = {"ELMAN": jaxrnn.GRU, "LSTM": jaxrnn.ELMAN, "GRU": jaxrnn.LSTM}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda c, o, a: {**a, "params": o.init(jax.random.key(0), 3, 4)}, TypeError, "`params`"),
        (lambda c, o, a: {**a, "state": o.initial_state(a["params"], (2,))}, TypeError, "`state`"),
        (lambda c, o, a: {**a, "state": c.initial_state(a["params"])}, ValueError, "`state.h`"),
        (
            lambda c, o, a: {**a, "x": jnp.ones((2, 5), jnp.float32)},
            ValueError,
            "`x` must be .*I=3",
        ),
        (lambda c, o, a: {**a, "x": jnp.ones((2, 3), jnp.int32)}, TypeError, "`x` .*; got int32"),
    ],
    ids=["params of another", "state of another", "state without batch", "width of x", "integer x"],
)
def test_step_refuses_what_does_not_fit(cell, change, error, said):
    params = cell.init(jax.random.key(0), 3, 4)
    arguments = {
        "params": params,
        "state": cell.initial_state(params, (2,)),
        "x": jnp.ones((2, 3), jnp.float32),
    }
    cell.step(**arguments)
    with pytest.raises(error, match=said):
        cell.step(**change(cell, OTHER[cell.name], arguments))


def wrong(piece, change):
    """LSTM with a piece whose returned value is changed."""
    right = getattr(jaxrnn.LSTM, piece)
    return jaxrnn.LSTM._replace(name="MINE", **{piece: lambda *args: change(right(*args))})


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (wrong("advance", lambda out: out[0]), "MINE.advance must return `state`"),
        (wrong("advance", lambda out: out[0].h), "MINE.advance must return 2 values"),
        (wrong("advance", lambda out: (out[0].h, out[1])), "MINE.advance must return `state`"),
        (wrong("pull", lambda out: out[1]), "MINE.pull must return 2 values"),
        (
            wrong("pull", lambda out: (out[0]._replace(h=out[0].h[:1]), out[1])),
            "MINE.pull must return `dstate_before`",
        ),
        (wrong("contract", lambda out: out[:2]), "MINE.contract must return 3 values"),
        (
            wrong("contract", lambda out: (out[0]._replace(b=out[0].b.sum()), *out[1:])),
            r"MINE.contract must return `dparams` as .*b=float64\[16\].*; got .*b=float64\[\]",
        ),
        (
            wrong("contract", lambda out: (out[0], out[1].sum(1, keepdims=True), out[2])),
            "MINE.contract must return `dxs`",
        ),
        (jaxrnn.LSTM._replace(initial_state=lambda p, b: jnp.zeros(b)), "a field h"),
        (jaxrnn.LSTM._replace(step=[]), "`cell` must be hashable"),
    ],
)
def test_a_cell_of_ones_own_that_breaks_the_contract_is_told_where(mine, said):
    """By name, before a sum or a mask could broadcast the wrong shape into a wrong gradient."""
    problem = make_problem(jaxrnn.LSTM, lengths=True)._replace(cell=mine, initial_state=None)
    with pytest.raises(TypeError, match=said):
        jax.grad(lambda xs: problem._replace(xs=xs).outputs()[1].sum())(problem.xs)
