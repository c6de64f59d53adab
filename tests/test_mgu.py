"""`MGU` where it is another cell, its limits, the exactness of its gate, and its init."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cells
from support.problems import assert_same, make_problem

import jaxrnn
from jaxrnn import MGU, RESET_BEFORE_GRU, ElmanParams, ElmanState, GRUState, ResetBeforeGRUParams
from jaxrnn.initializers import chrono

T, B, I, H = 6, 3, 3, 4
PROBLEM = make_problem(MGU, T, (B,), I, H)


def blocks(params):
    """The gate's part of each of the params, and the candidate's."""
    return zip(*(jnp.split(leaf, 2, axis=-1) for leaf in params), strict=True)


def with_gate(value):
    """Params whose gate has that pre-activation whatever it reads."""
    w_ih, w_hh, b = PROBLEM.params
    return type(PROBLEM.params)(w_ih.at[:, :H].set(0), w_hh.at[:, :H].set(0), b.at[:H].set(value))


def values_and_gradients(cell, params, state):
    """Outputs, and gradients of params, inputs and initial state."""

    def loss(*arguments):
        hs = jaxrnn.unroll(cell, *arguments)[1]
        return jnp.sum(jnp.sin(hs)), hs

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, hs), (dparams, dxs, dstate) = gradient(params, PROBLEM.xs, state)
    return hs, dparams, dxs, dstate.h


def test_it_is_the_gru_whose_gates_are_one():
    """With r = f and z = 1 - f = sigmoid(-a_f): the weights of z are those of r, negated."""

    def tied(params):
        gate, candidate = blocks(params)
        parts = zip(gate, (-leaf for leaf in gate), candidate, strict=True)
        return ResetBeforeGRUParams(*(jnp.concatenate(part, axis=-1) for part in parts))

    state = PROBLEM.initial_state
    found = values_and_gradients(MGU, PROBLEM.params, state)
    params, pull = jax.vjp(tied, PROBLEM.params)
    hs, dparams, *rest = values_and_gradients(RESET_BEFORE_GRU, params, GRUState(*state))
    assert_same(found, (hs, *pull(dparams), *rest))


def test_it_is_the_unit_that_the_tests_write_as_a_user_would():
    (w_f, u_f, b_f), (w_n, u_n, b_n) = blocks(PROBLEM.params)
    theirs = cells.MGUParams(w_f=w_f, u_f=u_f, b_f=b_f, w_n=w_n, u_n=u_n, b_n=b_n)
    state = PROBLEM.initial_state
    hs, dparams, *rest = values_and_gradients(MGU, PROBLEM.params, state)
    their_hs, d, *their_rest = values_and_gradients(cells.MGU, theirs, cells.MGUState(*state))
    assert_same((hs, *rest), (their_hs, *their_rest))
    (w_f, u_f, b_f), (w_n, u_n, b_n) = blocks(dparams)
    assert_same(d, cells.MGUParams(w_f=w_f, u_f=u_f, b_f=b_f, w_n=w_n, u_n=u_n, b_n=b_n))


def test_with_the_gate_open_it_is_the_elman_network():
    params = with_gate(1e4)
    _, elman = blocks(params)
    found = values_and_gradients(MGU, params, PROBLEM.initial_state)
    state = ElmanState(*PROBLEM.initial_state)
    expected = values_and_gradients(jaxrnn.ELMAN, ElmanParams(*elman), state)
    _, of_candidate = blocks(found[1])
    assert_same((found[0], ElmanParams(*of_candidate), *found[2:]), expected)


def test_with_the_gate_shut_the_state_is_kept():
    def final(state):
        return PROBLEM._replace(params=with_gate(-1e4), initial_state=state).outputs()[0]

    found, pull = jax.vjp(final, PROBLEM.initial_state)
    assert_same(found, PROBLEM.initial_state, 0)
    assert_same(pull(found)[0], found, 0)


def test_the_share_of_the_state_that_a_nearly_open_gate_keeps_is_exact():
    """1 - f of 1e-13 in float32, where a subtraction would leave 0."""
    params = with_gate(30.0)
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    params = params._replace(w_hh=0 * params.w_hh)
    h = jnp.ones((H,), jnp.float32)

    def final(h):
        xs = jnp.ones((1, I), jnp.float32)
        return jaxrnn.unroll(MGU, params, xs, jaxrnn.MGUState(h=h))[0].h

    (dh,) = jax.vjp(final, h)[1](h)
    np.testing.assert_allclose(dh, 1 / (1 + np.exp(30.0)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_large_pre_activations_stay_finite(dtype):
    problem = make_problem(MGU, T, (B,), I, H, dtype=dtype)
    arguments = problem.params, 1e4 * problem.xs, problem.initial_state

    def loss(*arguments):
        return jnp.sum(jaxrnn.unroll(MGU, *arguments)[1])

    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_each_gate_is_drawn_on_its_own_and_the_keep_bias_keeps_the_state():
    params = MGU.init(jax.random.key(0), I, 64, dtype=jnp.float64, keep_bias=chrono(100))
    (_, u_f, b_f), (_, u_n, b_n) = blocks(params)
    for w in (u_f, u_n):
        np.testing.assert_allclose(w @ w.T, np.eye(64), atol=1e-5)
    assert not np.array_equal(u_f, u_n)
    assert not b_n.any()
    assert 0 <= -b_f.max() < -b_f.min() <= np.log(99)
    # units keep their state for 1 to 99 steps: 1 / f = 1 + u
    steps = 1 + np.exp(-b_f)
    assert 1.9 < steps.min() < 15
    assert 80 < steps.max() < 101
