"""Properties of `COUPLED_LSTM` alone; `test_every_cell` has its equations and its adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem, random_tree, vjp

import jaxrnn
from jaxrnn import COUPLED_LSTM, LSTM, CoupledLSTMParams, LSTMParams, LSTMState

DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_it_is_an_lstm_whose_forget_gate_has_minus_the_pre_activation_of_the_input_gate():
    problem = make_problem(COUPLED_LSTM, lengths=True, resets=True)

    def uncoupled(w):
        i, g, o = jnp.split(w, 3, axis=-1)
        return jnp.concatenate([i, -i, g, o], axis=-1)

    def coupled(dw):
        i, f, g, o = jnp.split(dw, 4, axis=-1)
        return jnp.concatenate([i - f, g, o], axis=-1)

    plain = problem._replace(cell=LSTM, params=LSTMParams(*map(uncoupled, problem.params)))
    outputs, (dparams, *rest) = vjp(problem, jaxrnn.unroll, return_states=True)
    found, (dplain, *expected) = vjp(plain, jaxrnn.unroll, return_states=True)
    assert_same(outputs, found)
    assert_same(dparams, CoupledLSTMParams(*map(coupled, dplain)))
    assert_same(rest, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residuals", ["gates", "states", "carries"])
def test_both_gates_are_right_relative_to_their_size_where_one_is_next_to_1(dtype, residuals):
    """c after one step, and its slope by a_i: f from c = 1 and g = 0, i from c = 0 and g = 1.

    1 - i of a rounded i would be lost where i is next to 1, and i of a rounded f where f is.
    """
    eps, a = float(jnp.finfo(dtype).eps), np.arange(-20, 20.5, 0.5)
    H = len(a)
    zero = jnp.zeros((1, H), dtype)
    w_ih, w_hh = jnp.zeros((1, 3 * H), dtype), jnp.zeros((H, 3 * H), dtype)

    def run(unroll, c, b_g):
        b = jnp.concatenate([jnp.asarray(a, dtype), jnp.full(H, b_g, dtype), zero[0]])

        def cell_state(b):
            params, state = CoupledLSTMParams(w_ih, w_hh, b), LSTMState(h=zero, c=zero + c)
            return unroll(COUPLED_LSTM, params, zero[None, :, :1], state, residuals=residuals)[0].c

        after, pull = jax.vjp(cell_state, b)
        (db,) = pull(jnp.ones_like(after))
        return np.asarray(after[0], np.float64), np.asarray(db[:H], np.float64)

    slope = sigmoid(a) * sigmoid(-a)
    one = jnp.ones((), dtype)
    # tanh(100) is 1
    for c, b_g, right, sign in ((one, 0, sigmoid(-a), -1), (0 * one, 100, sigmoid(a), 1)):
        normal = slope > float(jnp.finfo(dtype).tiny)
        for unroll in (jaxrnn.unroll, jaxrnn.unroll_reference):
            found, dfound = run(unroll, c, b_g)
            np.testing.assert_allclose(found[normal], right[normal], rtol=2 * eps)
            np.testing.assert_allclose(dfound[normal], sign * slope[normal], rtol=4 * eps)


def test_a_shut_input_gate_keeps_the_cell_state_and_its_gradient_for_ever():
    H, T = 3, 500
    b = jnp.zeros(3 * H).at[:H].set(-1e4)
    params = CoupledLSTMParams(jnp.ones((2, 3 * H)), jnp.zeros((H, 3 * H)), b)
    state = LSTMState(h=jnp.zeros(H), c=jnp.asarray([0.3, -2.0, 7.0]))
    xs = random_tree(jax.ShapeDtypeStruct((T, 2), jnp.float64))

    def final_cell_state(c):
        return jaxrnn.unroll(COUPLED_LSTM, params, xs, state._replace(c=c))[0].c

    final, pull = jax.vjp(final_cell_state, state.c)
    np.testing.assert_array_equal(final, state.c)
    np.testing.assert_array_equal(pull(jnp.ones(H))[0], np.ones(H))


def test_the_cell_state_is_an_average_and_stays_within_1():
    """c is between the old c and g, for any weights; that of an LSTM grows with time."""
    problem = make_problem(COUPLED_LSTM, T=100)
    params = jax.tree.map(lambda w: 20 * w, problem.params)
    _, _, states = jaxrnn.unroll(COUPLED_LSTM, params, problem.xs, return_states=True)
    assert 0.9 < np.abs(states.c).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates_have_finite_gradients(dtype):
    """Pre-activations of 1e4, of either sign."""
    like = jax.eval_shape(lambda: COUPLED_LSTM.init(jax.random.key(0), 3, 8, dtype=dtype))
    params = random_tree(like)
    params = params._replace(b=1e4 * jnp.sign(params.b))
    xs = random_tree(jax.ShapeDtypeStruct((5, 2, 3), dtype))

    def loss(params, xs):
        final, hs = jaxrnn.unroll(COUPLED_LSTM, params, xs)
        return jnp.sum(hs) + jnp.sum(final.c)

    found = jax.value_and_grad(loss, argnums=(0, 1))(params, xs)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_the_initial_bias_keeps_the_cell_state_as_that_of_lstm_does():
    """The forget gate of both is sigmoid(1) at an input and a state of zeros."""
    H = 4
    state, x = LSTMState(h=jnp.zeros(H), c=jnp.ones(H)), jnp.zeros(3)
    after = [
        cell.step(cell.init(jax.random.key(0), 3, H, dtype=jnp.float64), state, x)[0].c
        for cell in (COUPLED_LSTM, LSTM)
    ]
    np.testing.assert_allclose(after[0], sigmoid(np.ones(H)), rtol=1e-15)
    np.testing.assert_array_equal(*after)


def test_the_negative_forget_bias_is_that_of_the_input_gate_alone():
    longest, H = 50, 300

    def bias(**options):
        options |= dict(dtype=jnp.float64, recurrent_init=jaxrnn.initializers.zeros)
        params = COUPLED_LSTM.init(jax.random.key(1), 3, H, **options)
        return np.split(np.asarray(params.b), 3)

    for value, b in ((1, bias()), (-2, bias(forget_bias=-2))):
        np.testing.assert_array_equal(b, [np.full(H, -value), np.zeros(H), np.zeros(H)])
    b_i, b_g, b_o = bias(forget_bias=jaxrnn.initializers.chrono(longest))
    assert not b_g.any()
    assert not b_o.any()
    # u ~ U[1, longest - 1]
    u = np.exp(-b_i)
    assert u.min() >= 1
    assert u.max() <= longest - 1
    assert abs(u.mean() - longest / 2) < 3
    drawn = bias(bias_init=lambda key, shape, dtype: jnp.full(shape, 0.5, dtype))
    np.testing.assert_array_equal(drawn, [np.full(H, -0.5), np.full(H, 0.5), np.full(H, 0.5)])


def test_each_gate_has_a_matrix_of_its_own():
    params = COUPLED_LSTM.init(jax.random.key(2), 3, 6, dtype=jnp.float64)
    blocks = COUPLED_LSTM.recurrent(params)
    assert list(blocks) == ["i", "g", "o"]
    for w in blocks.values():
        np.testing.assert_allclose(w @ w.T, np.eye(6), atol=1e-12)
    np.testing.assert_array_equal(jnp.concatenate([*blocks.values()], axis=-1), params.w_hh)
    assert np.abs(params.w_ih).max() <= (6 / (3 + 6)) ** 0.5


@pytest.mark.parametrize(
    ("params", "error", "said"),
    [
        (LSTM.init(jax.random.key(0), 3, 4), TypeError, "CoupledLSTMParams from COUPLED_LSTM"),
        (
            CoupledLSTMParams(*LSTM.init(jax.random.key(0), 3, 4)),
            ValueError,
            r"`params.w_ih` must be \[I, 3H\], \(3, 12\) in COUPLED_LSTM",
        ),
    ],
)
def test_params_that_are_not_its_own_are_refused(params, error, said):
    with pytest.raises(error, match=said):
        COUPLED_LSTM.initial_state(params)
