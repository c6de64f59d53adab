"""`RESET_BEFORE_GRU` where it is another cell, its limits and its init."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem

import jaxrnn
from jaxrnn import RESET_BEFORE_GRU, ElmanParams, ElmanState, GRUParams
from jaxrnn.initializers import chrono

T, B, I, H = 6, 3, 3, 4
PROBLEM = make_problem(RESET_BEFORE_GRU, T, (B,), I, H)
CANDIDATE = slice(2 * H, None)


def with_bias(gate, value):
    """The params with that bias of a gate r or z, and none of its weights."""
    k = "rz".index(gate)
    columns = slice(k * H, (k + 1) * H)
    w_ih, w_hh, b = PROBLEM.params
    return type(PROBLEM.params)(
        w_ih.at[:, columns].set(0), w_hh.at[:, columns].set(0), b.at[columns].set(value)
    )


def values_and_gradients(cell, params, state=PROBLEM.initial_state):
    """Outputs, and gradients of params, inputs and initial state."""

    def loss(*arguments):
        hs = jaxrnn.unroll(cell, *arguments)[1]
        return jnp.sum(jnp.sin(hs)), hs

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, hs), (dparams, dxs, dstate) = gradient(params, PROBLEM.xs, state)
    return hs, dparams, dxs, dstate.h


def as_gru(params):
    return GRUParams(*params, b_hn=jnp.zeros(H))


def test_with_reset_open_it_is_the_gru_with_reset_open():
    params = with_bias("r", 50.0)
    found = values_and_gradients(RESET_BEFORE_GRU, params)
    expected = values_and_gradients(jaxrnn.GRU, as_gru(params))
    assert_same(found[:1] + found[2:], expected[:1] + expected[2:])
    assert_same(found[1].w_hh, expected[1].w_hh)


def test_with_a_diagonal_weight_of_the_candidate_it_is_the_gru():
    """``(r * h) U = r * (h U)``: then it makes no difference where the reset stands."""
    w_hh = PROBLEM.params.w_hh
    diagonal = w_hh.at[:, CANDIDATE].multiply(jnp.eye(H))
    params = PROBLEM.params._replace(w_hh=diagonal)
    hs, dparams, *rest = values_and_gradients(RESET_BEFORE_GRU, params)
    their_hs, their_dparams, *their_rest = values_and_gradients(jaxrnn.GRU, as_gru(params))
    assert_same((hs, *rest), (their_hs, *their_rest))
    assert_same(dparams.w_ih, their_dparams.w_ih)
    assert_same(jnp.diag(dparams.w_hh[:, CANDIDATE]), jnp.diag(their_dparams.w_hh[:, CANDIDATE]))
    # and without, it does
    hs, *_ = values_and_gradients(RESET_BEFORE_GRU, PROBLEM.params)
    their_hs, *_ = values_and_gradients(jaxrnn.GRU, as_gru(PROBLEM.params))
    assert jnp.max(jnp.abs(hs - their_hs)) > 1e-3


def test_with_reset_open_and_update_shut_it_is_the_elman_network():
    shut = with_bias("z", -1e3)
    params = shut._replace(
        w_ih=shut.w_ih.at[:, :H].set(0),
        w_hh=shut.w_hh.at[:, :H].set(0),
        b=shut.b.at[:H].set(1e3),
    )
    elman = ElmanParams(*(leaf[..., CANDIDATE] for leaf in params))
    found = values_and_gradients(RESET_BEFORE_GRU, params)
    expected = values_and_gradients(jaxrnn.ELMAN, elman, ElmanState(*PROBLEM.initial_state))
    of_candidate = ElmanParams(*(leaf[..., CANDIDATE] for leaf in found[1]))
    assert_same((found[0], of_candidate, *found[2:]), expected)


def test_with_reset_shut_the_candidate_reads_no_state():
    _, dparams, *_ = values_and_gradients(RESET_BEFORE_GRU, with_bias("r", -1e4))
    assert not jnp.any(dparams.w_hh[:, CANDIDATE])
    assert jnp.all(dparams.w_hh[:, H : 2 * H] != 0)


def test_with_update_open_the_state_is_kept():
    problem = PROBLEM._replace(params=with_bias("z", 1e4))
    final, pull = jax.vjp(
        lambda state: problem._replace(initial_state=state).outputs()[0], problem.initial_state
    )
    assert_same(final, problem.initial_state, 0)
    assert_same(pull(final)[0], final, 0)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_large_pre_activations_stay_finite(dtype):
    problem = make_problem(RESET_BEFORE_GRU, T, (B,), I, H, dtype=dtype)
    arguments = problem.params, 1e4 * problem.xs, problem.initial_state

    def loss(*arguments):
        return jnp.sum(jaxrnn.unroll(RESET_BEFORE_GRU, *arguments)[1])

    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_each_gate_is_drawn_on_its_own_and_the_update_bias_is_that_of_z():
    params = RESET_BEFORE_GRU.init(
        jax.random.key(0), I, 64, dtype=jnp.float64, update_bias=chrono(100)
    )
    blocks = np.split(np.asarray(params.w_hh), 3, axis=-1)
    for w in blocks:
        np.testing.assert_allclose(w @ w.T, np.eye(64), atol=1e-5)
    assert not np.array_equal(blocks[0], blocks[1])
    b_r, b_z, b_n = np.split(np.asarray(params.b), 3)
    assert not b_r.any()
    assert not b_n.any()
    assert 0 <= b_z.min() < b_z.max() <= np.log(99)
    assert np.std(b_z) > 0.5
