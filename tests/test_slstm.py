"""The sLSTM beside the forms of its paper: any stabiliser, extreme gates, and what m is worth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same

import jaxrnn
from jaxrnn import SLSTM, SLSTMParams, SLSTMState, unroll, unroll_reference
from jaxrnn.initializers import chrono, linspace

T, B, I, H = 12, 3, 2, 4
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]


def arguments(scale=1.0, steps=T):
    """Params, inputs, and a state whose n is positive, as after some steps."""
    keys = jax.random.split(jax.random.key(0), 6)
    params = SLSTM.init(keys[0], I, H, dtype=jnp.float64, forget_bias=1.0)
    xs = scale * jax.random.normal(keys[1], (steps, B, I))
    h, c, m = (jax.random.normal(key, (B, H)) for key in keys[2:5])
    return params, xs, SLSTMState(h=h, c=c, n=jnp.exp(jax.random.normal(keys[5], (B, H))), m=m)


def paper(params, xs, state):
    """All states by the paper's equations, with its stabiliser; JAX differentiates."""

    def step(state, x):
        a = x @ params.w_ih + state.h @ params.w_hh + jnp.broadcast_to(params.b, (B, 4 * H))
        a_i, a_f, a_z, a_o = jnp.split(a, 4, axis=-1)
        log_f = jax.nn.log_sigmoid(a_f)
        m = jnp.maximum(log_f + state.m, a_i)
        i, f = jnp.exp(a_i - m), jnp.exp(log_f + state.m - m)
        c, n = f * state.c + i * jnp.tanh(a_z), f * state.n + i
        state = SLSTMState(h=jax.nn.sigmoid(a_o) * c / n, c=c, n=n, m=m)
        return state, state

    return jax.lax.scan(step, state, xs)[1]


def ours(params, xs, state):
    return unroll(SLSTM, params, xs, state, return_states=True)[2]


def of_h(states):
    return jnp.sum(jnp.sin(3 * states.h))


def of_memory(states):
    return jnp.sum(jnp.cos(states.c / states.n) * (jnp.log(states.n) + states.m))


def gates_as_inputs(rows, dtype):
    """Params of one unit whose pre-activations are the inputs, and random corners of them."""
    eye = jnp.eye(4, dtype=dtype)
    params = SLSTMParams(w_ih=eye, w_hh=jnp.zeros((1, 4), dtype), b=jnp.zeros((4,), dtype))
    corners = np.array([-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4])
    xs = np.random.default_rng(0).choice(corners, size=(T, rows, 4))
    return params, jnp.asarray(xs, dtype)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_h_and_the_memory_and_its_weight_are_those_of_the_paper(scale):
    given = arguments(scale, steps=200)
    found, expected = ours(*given), paper(*given)
    assert_same(found.h, expected.h)
    assert_same(found.c / found.n, expected.c / expected.n)
    assert_same(jnp.log(found.n) + found.m, jnp.log(expected.n) + expected.m)
    # not its m, by which its n grows
    assert found.n.max() <= 2 + 1e-12
    assert expected.n.max() > 3


@pytest.mark.parametrize("loss", [of_h, of_memory])
def test_a_constant_m_loses_no_gradient(loss):
    """Beside autodiff through max and exp; the m of the initial state has one, too."""
    given = arguments()
    found, expected = (
        jax.jit(jax.grad(lambda *args, form=form: loss(form(*args)), argnums=(0, 1, 2)))(*given)
        for form in (ours, paper)
    )
    assert_same(found, expected, 1e-11)
    assert jnp.abs(found[2].m).max() > 1e-3


def test_a_constant_m_loses_no_second_derivative():
    def of_gradient(form):
        def value(params, xs, state):
            gradient = jax.grad(lambda *args: of_h(form(*args)), argnums=(0, 1, 2))
            return sum(jnp.sum(jnp.sin(d)) for d in jax.tree.leaves(gradient(params, xs, state)))

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

    given = arguments(steps=5)
    assert_same(of_gradient(ours)(*given), of_gradient(paper)(*given), 1e-10)


def test_c_and_n_are_relative_to_m():
    """The same state in other numbers; its adjoint has no slope between them."""
    params, xs, state = arguments()
    scale = jnp.broadcast_to(jnp.exp(jnp.linspace(-20, 20, H)), (B, H))
    other = state._replace(c=state.c / scale, n=state.n / scale, m=state.m + jnp.log(scale))
    assert_same(ours(params, xs, other).h, ours(params, xs, state).h, 1e-11)
    d = jax.grad(lambda state: of_h(ours(params, xs, state)))(state)
    assert_same(d.m, d.c * state.c + d.n * state.n, 1e-11)


def test_a_negative_n_counts_as_its_magnitude():
    params, xs, state = arguments()
    n = state.n.at[:, ::2].multiply(-1)
    assert_same(ours(params, xs, state._replace(n=n)), ours(params, xs, state))
    d, expected = (
        jax.grad(lambda s: of_h(ours(params, xs, s)))(state._replace(n=n)) for n in (n, state.n)
    )
    assert_same(d.n, expected.n * jnp.sign(n))


def test_the_zero_state_holds_nothing():
    """Whatever the gates are, the first step shows its own input, and the start has gradients."""
    params, xs = gates_as_inputs(100, jnp.float64)
    _, hs = unroll(SLSTM, params, xs[:1])
    assert_same(hs[0], jax.nn.sigmoid(xs[0, :, 3:]) * jnp.tanh(xs[0, :, 2:3]))

    params, xs, _ = arguments()
    zero = SLSTM.initial_state(params, (B,))
    found, expected = (
        # one n above 0, because its slope at 0 is that towards the right
        jax.grad(lambda s, form=form: of_h(form(params, xs, s)))(zero._replace(n=zero.n + n))
        for form, n in ((ours, 0.0), (paper, 1e-13))
    )
    assert not found.m.any()
    assert_same(found._replace(m=expected.m), expected, 1e-9)


def test_without_forgetting_the_memory_is_a_mean_weighted_by_softmax():
    params, xs, _ = arguments(scale=3.0)
    params = params._replace(w_hh=0 * params.w_hh, b=params.b.at[H : 2 * H].set(1e3))
    a_i, _, a_z, a_o = jnp.split(xs @ params.w_ih, 4, axis=-1)
    weights = jax.nn.softmax(a_i, axis=0)
    last = jax.nn.sigmoid(a_o[-1]) * jnp.sum(weights * jnp.tanh(a_z), axis=0)
    assert_same(unroll(SLSTM, params, xs)[1][-1], last)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_extreme_gates_leave_values_and_gradients_finite(dtype):
    """Pre-activations up to 1e4, from the zero state, with resets and steps that do not happen."""
    params, xs = gates_as_inputs(200, dtype)
    rng = np.random.default_rng(1)
    masks = {"mask": rng.random((T, 200)) < 0.8, "resets": rng.random((T, 200)) < 0.1}

    def loss(form, *args):
        outputs = form(SLSTM, *args, return_states=True, **masks)
        return sum(jnp.sum(leaf.astype(dtype)) for leaf in jax.tree.leaves(outputs)), outputs

    args = params, xs, SLSTM.initial_state(params, (200,))
    for form in (unroll, unroll_reference):
        run = jax.value_and_grad(functools.partial(loss, form), argnums=(0, 1, 2), has_aux=True)
        (_, outputs), gradients = jax.jit(run)(*args)
        for leaf in jax.tree.leaves((outputs, gradients)):
            assert jnp.isfinite(leaf).all()
        assert jnp.abs(outputs[1]).max() <= 1 + 4 * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_normaliser_stays_between_1_and_2(dtype):
    """Up to the rounding of m, here below 8."""
    params, xs, _ = arguments(scale=2.0, steps=300)
    params, xs = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, xs))
    states = ours(params, xs, SLSTM.initial_state(params, (B,)))
    assert jnp.abs(states.m).max() < 8
    n = states.n.astype(jnp.float64)
    slack = np.exp(4 * float(jnp.finfo(dtype).eps)) * (1 + 4 * float(jnp.finfo(dtype).eps))
    assert n.min() >= 1 / slack
    assert n.max() <= 2 * slack


def test_slow_forgetting_survives_16_bits():
    """One large event, then weak ones of the other sign, which outweigh it after 330 steps.

    Where m is about 10, bfloat16 has steps of 0.06, and log s is -0.02.
    """

    def first_step_of_the_others(dtype):
        params = SLSTMParams(jnp.eye(4, dtype=dtype), jnp.zeros((1, 4), dtype), jnp.zeros(4, dtype))
        weak = jnp.broadcast_to(jnp.array([0.0, 4.0, -9.0, 9.0], dtype), (500, 4))
        xs = weak.at[0].set(jnp.array([10.0, 4.0, 9.0, 9.0], dtype))
        return int(jnp.argmax(unroll(SLSTM, params, xs)[1] < 0))

    assert first_step_of_the_others(jnp.float64) == 330
    # never, if the gates were relative to an m that is not yet rounded
    assert 0.9 * 330 < first_step_of_the_others(jnp.bfloat16) < 1.1 * 330


def test_the_forget_gate_begins_with_short_and_long_memories():
    b = SLSTM.init(jax.random.key(0), I, H).b
    np.testing.assert_allclose(b[H : 2 * H], [3, 4, 5, 6], rtol=1e-6)
    assert not b[:H].any()
    assert not b[2 * H :].any()
    for forget_bias in (linspace(-1.0, 1.0), chrono(50), 2.5):
        b = SLSTM.init(jax.random.key(0), I, H, forget_bias=forget_bias).b
        assert not b[:H].any()
        assert not b[2 * H :].any()
        assert b[H : 2 * H].any()
    np.testing.assert_allclose(b[H : 2 * H], 2.5)


def test_params_of_an_lstm_are_refused():
    params = jaxrnn.LSTM.init(jax.random.key(0), I, H)
    with pytest.raises(TypeError, match=r"must be SLSTMParams from SLSTM\.init"):
        unroll(SLSTM, params, jnp.zeros((T, B, I), jnp.float32))
