"""Properties of `PEEPHOLE_LSTM` alone; `test_every_cell` has its equations and its adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem, random_tree, vjp

import jaxrnn
from jaxrnn import LSTM, PEEPHOLE_LSTM, LSTMParams, LSTMState, PeepholeLSTMParams

DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_without_peepholes_it_is_lstm_in_values_and_gradients():
    problem = make_problem(PEEPHOLE_LSTM, lengths=True, resets=True)
    problem = problem._replace(params=problem.params._replace(p=jnp.zeros(12)))
    plain = problem._replace(cell=LSTM, params=LSTMParams(*problem.params[:3]))
    outputs, (dparams, *rest) = vjp(problem, jaxrnn.unroll, return_states=True)
    found, (dplain, *expected) = vjp(plain, jaxrnn.unroll, return_states=True)
    assert_same(outputs, found)
    assert_same(LSTMParams(*dparams[:3]), dplain)
    assert_same(rest, expected)
    # and training moves the peepholes away from zero
    assert np.all(np.abs(dparams.p) > 1e-6)


def test_the_input_and_the_forget_gate_read_the_old_cell_state_and_the_output_gate_the_new_one():
    """All weights but the peepholes are zero: the gates are functions of c alone."""
    c, p = np.array([3.0, -2.0]), np.array([0.7, -0.4, -0.5, 1.1, 0.9, 0.3])
    zero = jnp.zeros((2, 8))
    params = PeepholeLSTMParams(zero, zero, zero[0].at[4:6].set(0.6), jnp.asarray(p))
    state = LSTMState(h=jnp.zeros(2), c=jnp.asarray(c))
    after, h = PEEPHOLE_LSTM.step(params, state, jnp.zeros(2))
    new = sigmoid(p[2:4] * c) * c + sigmoid(p[:2] * c) * np.tanh(0.6)
    np.testing.assert_allclose(after.c, new, rtol=1e-14)
    np.testing.assert_allclose(h, sigmoid(p[4:] * new) * np.tanh(new), rtol=1e-14)


def test_reordered_as_onnx_stores_them_the_weights_fit_its_equations():
    """W, R, B have blocks i, o, f, c, and P has i, o, f: see the documentation of its LSTM."""
    problem = make_problem(PEEPHOLE_LSTM, T=4)
    H, to_onnx, to_onnx_p = 4, [0, 3, 1, 2], [0, 2, 1]

    def ordered(w, blocks, order):
        return np.concatenate([np.split(np.asarray(w).T, blocks)[k] for k in order])

    W, R, B = (ordered(w, 4, to_onnx) for w in problem.params[:3])
    P = ordered(problem.params.p, 3, to_onnx_p)
    h, c = map(np.asarray, problem.initial_state)
    for x in np.asarray(problem.xs):
        i, o, f, g = np.split(x @ W.T + h @ R.T + B, 4, axis=-1)
        c_new = sigmoid(f + P[2 * H :] * c) * c + sigmoid(i + P[:H] * c) * np.tanh(g)
        h, c = sigmoid(o + P[H : 2 * H] * c_new) * np.tanh(c_new), c_new
    final_state, _ = problem.outputs()
    assert_same(final_state, LSTMState(h=jnp.asarray(h), c=jnp.asarray(c)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_that_a_peephole_shuts_are_right_relative_to_their_size(dtype):
    """A unit for each product of a peephole and c: the gates of one step, from shut to open."""
    a, eps = np.arange(-16, 16.25, 0.25), float(jnp.finfo(dtype).eps)
    H = len(a)
    zero, one = jnp.zeros((1, 4 * H), dtype), jnp.ones((H,), dtype)
    # with f = 1, i = 0 the new cell state is the old one: i and o are tested apart
    kept = zero[0].at[:H].set(-50).at[H : 2 * H].set(50)

    def gates(b, p):
        params = PeepholeLSTMParams(zero, jnp.zeros((H, 4 * H), dtype), b, jnp.asarray(p, dtype))
        _, gates = PEEPHOLE_LSTM.advance(params, LSTMState(h=0 * one, c=one), b, None)
        return gates

    read = gates(zero[0], np.concatenate([a, a, 0 * a]))
    emitted = gates(kept, np.concatenate([0 * a, 0 * a, a]))
    normal = sigmoid(a) >= float(jnp.finfo(dtype).tiny)
    for gate in (read.i, read.f, emitted.o):
        found = np.asarray(gate, np.float64)
        np.testing.assert_allclose(found[normal], sigmoid(a)[normal], rtol=2 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates_have_finite_gradients(dtype):
    """Biases of 1e4 and peepholes of 4e3, of either sign: float16 ends at 6.6e4."""
    like = jax.eval_shape(lambda: PEEPHOLE_LSTM.init(jax.random.key(0), 3, 8, dtype=dtype))
    params = random_tree(like)
    params = params._replace(b=1e4 * jnp.sign(params.b), p=4e3 * jnp.sign(params.p))
    xs = random_tree(jax.ShapeDtypeStruct((5, 2, 3), dtype))

    def loss(params, xs):
        final, hs = jaxrnn.unroll(PEEPHOLE_LSTM, params, xs)
        return jnp.sum(hs) + jnp.sum(final.c)

    found = jax.value_and_grad(loss, argnums=(0, 1))(params, xs)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_gradients_of_16_bits_are_sums_of_exact_products():
    """A sum in bfloat16 would stop at 256, and a product rounded to it be 1/512 off."""
    K, H, dtype = 1000, 2, jnp.bfloat16
    like = jax.eval_shape(lambda: PEEPHOLE_LSTM.init(jax.random.key(0), 1, H, dtype=dtype))
    params = random_tree(like)
    # odd multiples of 1/128 below 2
    state = LSTMState(h=jnp.ones((K, H), dtype), c=jnp.full((K, H), 129 / 128, dtype))
    after = state._replace(c=jnp.full((K, H), 131 / 128, dtype))
    da, xs = jnp.full((K, 4 * H), 133 / 128, dtype), jnp.ones((K, 1), dtype)
    dparams, _, _ = PEEPHOLE_LSTM.gradients(params, xs, state, after, None, da, None)
    assert dparams.p.dtype == jnp.float32
    old, new = 1000 * 133 * 129 / 128**2, 1000 * 133 * 131 / 128**2
    np.testing.assert_allclose(dparams.p, [old] * 4 + [new] * 2, rtol=1e-6)


def test_initial_weights_are_those_of_lstm_and_peepholes_of_zero():
    key = jax.random.key(3)
    options = dict(dtype=jnp.float64, forget_bias=jaxrnn.initializers.chrono(50))
    params = PEEPHOLE_LSTM.init(key, 3, 5, **options)
    assert_same(LSTMParams(*params[:3]), LSTM.init(key, 3, 5, **options), 0)
    np.testing.assert_array_equal(params.p, np.zeros(15))
    np.testing.assert_array_equal(PEEPHOLE_LSTM.init(key, 3, 5).b[5:10], np.ones(5))


def test_peepholes_are_drawn_gate_by_gate():
    shapes = []

    def drawn(key, shape, dtype):
        shapes.append(shape)
        return jax.random.uniform(key, shape, dtype, -0.1, 0.1)

    options = dict(recurrent_init=jaxrnn.initializers.zeros, peephole_init=drawn)
    params = PEEPHOLE_LSTM.init(jax.random.key(0), 2, 400, **options)
    assert shapes == [(400,)] * 3
    blocks = np.split(np.asarray(params.p), 3)
    for block in blocks:
        assert abs(block.mean()) < 0.015
        assert abs(block.std() - 0.1 / 3**0.5) < 0.005
    correlations = np.corrcoef(blocks)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlations) < 0.2)


@pytest.mark.parametrize(
    ("params", "error", "said"),
    [
        (LSTM.init(jax.random.key(0), 3, 4), TypeError, "PeepholeLSTMParams from PEEPHOLE_LSTM"),
        (
            PEEPHOLE_LSTM.init(jax.random.key(0), 3, 4)._replace(p=jnp.zeros(16, jnp.float32)),
            ValueError,
            r"`params.p` must be \[3H\], \(12,\)",
        ),
    ],
)
def test_params_that_are_not_its_own_are_refused(params, error, said):
    with pytest.raises(error, match=said):
        PEEPHOLE_LSTM.initial_state(params)
