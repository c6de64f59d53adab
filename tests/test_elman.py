"""The Elman network with another activation: closed forms, the slope at 0, names and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_rule_equals_autodiff, assert_same, make_problem

import jaxrnn
from jaxrnn import ElmanParams, ElmanState, initializers
from jaxrnn.products import affine

T, B, I, H = 5, 2, 3, 4


def slope_of_softplus(h):
    return -jnp.expm1(-h)


SOFTPLUS = (jax.nn.softplus, slope_of_softplus)


def test_the_same_activation_gives_the_same_cell():
    assert jaxrnn.elman("tanh") is jaxrnn.ELMAN
    assert jaxrnn.elman(activation="relu") is jaxrnn.elman("relu")
    assert jaxrnn.elman(SOFTPLUS) is jaxrnn.elman(SOFTPLUS)
    cells = [jaxrnn.elman(each) for each in ("tanh", "relu", "identity", SOFTPLUS)]
    assert len(set(cells)) == 4
    names = [cell.name for cell in cells]
    assert names == ["ELMAN", "ELMAN relu", "ELMAN identity", "ELMAN softplus"]


def test_an_activation_that_gets_another_slope_is_another_cell():
    pair = jnp.tanh, slope_of_softplus
    assert jaxrnn.elman(pair) is not jaxrnn.ELMAN
    assert jaxrnn.elman(pair).name == "ELMAN tanh"


def test_the_network_of_the_identity_is_a_linear_recurrence():
    """``h_T = sum_t (x_t W_ih + b) W_hh^(T-t) + h_0 W_hh^T``, and its gradients."""
    problem = make_problem(jaxrnn.elman("identity"), T, (B,), I, H)
    params, xs, h_0 = problem.params, problem.xs, problem.initial_state.h

    def final(params, xs, h):
        return jaxrnn.unroll(problem.cell, params, xs, ElmanState(h=h))[0].h

    power = [np.linalg.matrix_power(params.w_hh, n) for n in range(T + 1)]
    found, pull = jax.vjp(final, params, xs, h_0)
    read = affine(xs, params.w_ih, params.b)
    expected = sum(read[t] @ power[T - 1 - t] for t in range(T))
    assert_same(found, expected + h_0 @ power[T])
    dh = jnp.cos(found)
    dparams, dxs, dh_0 = pull(dh)
    back = jnp.stack([dh @ power[T - 1 - t].T for t in range(T)])
    assert_same(dxs, back @ params.w_ih.T)
    assert_same(dh_0, dh @ power[T].T)
    assert_same(dparams.w_ih, jnp.einsum("tbi,tbh->ih", xs, back))
    assert_same(dparams.b, back.sum((0, 1)))


def test_a_relu_network_whose_pre_activations_are_positive_is_that_of_the_identity():
    problem = make_problem(jaxrnn.ELMAN, T, (B,), I, H)
    positive = jax.tree.map(jnp.abs, (problem.params, problem.xs, problem.initial_state))

    def value_and_gradients(activation):
        def loss(*arguments):
            return jnp.sum(jaxrnn.unroll(jaxrnn.elman(activation), *arguments)[1] ** 2)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(*positive)

    assert_same(value_and_gradients("relu"), value_and_gradients("identity"))


@pytest.mark.parametrize("bias", [0.0, -1.0])
def test_a_relu_unit_at_or_below_zero_has_no_gradient(bias):
    """At 0 as `jax.nn.relu` has it."""
    cell = jaxrnn.elman("relu")
    params = ElmanParams(jnp.ones((I, H)), jnp.ones((H, H)), jnp.full(H, bias))

    def loss(params, xs):
        return jnp.sum(jaxrnn.unroll(cell, params, xs)[1])

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(params, jnp.zeros((T, B, I)))
    assert value == 0
    assert not any(map(jnp.any, jax.tree.leaves(gradients)))


def test_a_relu_network_that_starts_as_the_identity_keeps_its_state_and_its_gradient():
    """The IRNN of Le, Jaitly and Hinton."""
    cell = jaxrnn.elman("relu")
    params = cell.init(jax.random.key(0), I, H, recurrent_init=initializers.identity)
    start = ElmanState(h=jnp.linspace(0.1, 1, H, dtype=jnp.float32))

    def final(state):
        return jaxrnn.unroll(cell, params, jnp.zeros((1000, I), jnp.float32), state)[0]

    found, pull = jax.vjp(final, start)
    assert_same(found, start, 0)
    assert_same(pull(start)[0], start, 0)


def test_a_pair_of_functions_has_the_gradients_of_autodiff():
    cell = jaxrnn.elman(SOFTPLUS)
    assert_rule_equals_autodiff(make_problem(cell, T, (B,), I, H, lengths=True))
    # the steepest slope of a function that is not known is unknown
    assert cell.slopes is None


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_large_inputs_stay_finite(activation):
    problem = make_problem(jaxrnn.elman(activation), T, (B,), I, H)

    def loss(params, xs):
        return jnp.sum(problem._replace(params=params, xs=1e4 * xs).outputs()[1] ** 2)

    found = jax.value_and_grad(loss, argnums=(0, 1))(problem.params, problem.xs)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found))


CHOICES = r"must be 'tanh', 'relu', 'identity' or a pair \(function, slope\)"
WRONG = {
    "another name": ("gelu", ValueError, f"{CHOICES}.*; got 'gelu'"),
    "one function": (jnp.tanh, TypeError, CHOICES),
    "a list": ([jnp.tanh, jnp.cos], TypeError, CHOICES),
    "names": (("relu", "relu"), TypeError, CHOICES),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_activation_is_refused(name):
    activation, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        jaxrnn.elman(activation)
