"""Products of 16 bits beside a state of 32: a cell state that goes on growing, and what is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import LSTM, LSTMParams

MIXED = jaxrnn.with_dtypes(LSTM, compute=jnp.bfloat16, carry=jnp.float32)


def test_a_cell_state_grows_on_where_16_bits_would_stall():
    """What is added, 0.018, is less than half of the last place of 8 in bfloat16."""
    biases = jnp.array([-4, 20, 5, 0], jnp.bfloat16)
    params = LSTMParams(*[jnp.zeros((1, 4), jnp.bfloat16)] * 2, biases)
    xs = jnp.zeros((2000, 1), jnp.bfloat16)
    stalled, right = (jaxrnn.unroll(cell, params, xs)[0].c[0] for cell in (LSTM, MIXED))
    assert float(stalled) == 8.0
    i, g = 1 / (1 + np.exp(4.0)), np.tanh(5.0)
    assert float(right) == pytest.approx(2000 * i * g, rel=1e-4)
    assert right.dtype == jnp.float32


def error(found, exact):
    difference = jnp.linalg.norm(found.astype(jnp.float64) - exact)
    return float(difference / jnp.linalg.norm(exact))


def test_values_and_gradients_are_off_by_the_rounding_of_the_products_alone():
    I, H, T, B = 8, 32, 300, 4
    exact_params = LSTM.init(jax.random.key(0), I, H, dtype=jnp.float64)
    exact_xs = jax.random.normal(jax.random.key(1), (T, B, I), jnp.float64)

    def run(cell, dtype):
        params, xs = jax.tree.map(lambda leaf: leaf.astype(dtype), (exact_params, exact_xs))

        @jax.jit
        def both(params, xs):
            (state, hs), pull = jax.vjp(lambda *args: jaxrnn.unroll(cell, *args), params, xs)
            ones = jax.tree.map(lambda leaf: jnp.ones_like(leaf) / (T * B), (state, hs))
            return state.c, hs, *pull(ones)

        return both(params, xs)

    exact = run(LSTM, jnp.float64)
    mixed, few = run(MIXED, jnp.float32), run(LSTM, jnp.bfloat16)
    # outputs and gradients in float32, although products were rounded
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {jnp.dtype(jnp.float32)}
    for of_mixed, of_few, right in zip(*map(jax.tree.leaves, (mixed, few, exact)), strict=True):
        assert 1e-5 < error(of_mixed, right) < 0.01
        assert error(of_mixed, right) < 0.9 * error(of_few, right)


def test_layers_of_two_dtypes_are_stacked():
    network = jaxrnn.stack(jaxrnn.layer(MIXED, 4), jaxrnn.layer(MIXED, 3, bidirectional=True))
    params = network.init(jax.random.key(0), 2)
    gradient = jax.grad(lambda p: jnp.sum(network.apply(p, jnp.ones((5, 2, 2), "float32"))[1]))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient(params))} == {jnp.dtype(jnp.float32)}


def test_the_state_that_is_given_has_the_dtype_of_the_state():
    params = MIXED.init(jax.random.key(0), 2, 3, dtype=jnp.bfloat16)
    state = LSTM.initial_state(params)
    with pytest.raises(TypeError, match=r"initial_state.h.* must have dtype float32"):
        jaxrnn.unroll(MIXED, params, jnp.ones((4, 2), jnp.bfloat16), state)
