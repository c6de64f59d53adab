"""The cells as functions: `step` is the documented equations, and fits into `lax.scan` as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_same, make_problem, random_tree

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
