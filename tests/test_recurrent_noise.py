"""Recurrent dropout and zoneout: what a key draws, put into the paper's step in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.catalogue import CATALOGUE, sigmoid
from support.problems import assert_same, make_problem

import jaxrnn
from jaxrnn import GRU, LSTM

T, B, I, H = 6, 2, 3, 4
KEY = jax.random.key(1)


def lstm_of_dropped(p, s, x, mask):
    """Every product of an LSTM with h reads the mask times h."""
    return CATALOGUE["LSTM"].step(p, s._replace(h=mask * s.h), x)


def gru_of_dropped(p, s, x, mask):
    """The products of a GRU read the mask times h, and its update gate all of h."""
    x_r, x_z, x_n = np.split(x @ p.w_ih + p.b, 3, axis=-1)
    h_r, h_z, h_n = np.split((mask * s.h) @ p.w_hh, 3, axis=-1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + p.b_hn))
    return s._replace(h=(1 - z) * n + z * s.h)


def dropped(step, drawn):
    (mask, _), _ = drawn
    assert mask.shape == (B, H)
    assert set(np.unique(mask)) == {0.0, 1 / (1 - 0.4)}
    return lambda p, s, x, t: step(p, s, x, mask)


def kept(rates, drawn, step):
    _, (kept, _) = drawn
    assert set(kept) == set(rates)
    assert all(leaf.shape == (T, B, H) and leaf.dtype == bool for leaf in kept.values())

    def zoned(p, s, x, t):
        made = step(p, s, x)
        old = {
            name: np.where(kept[name][t], getattr(s, name), getattr(made, name)) for name in kept
        }
        return made._replace(**old)

    return zoned


def both(drawn):
    """Zoneout around dropout: each transform's arrays are the first of a pair."""
    (_, consts), (steps, _) = drawn
    dropped_step = dropped(lstm_of_dropped, (consts, None))
    zoned = kept(
        {"h": 0.3, "c": 0.5}, (None, (steps, None)), lambda p, s, x: dropped_step(p, s, x, 0)
    )
    return zoned


CASES = {
    "dropout of LSTM": (
        jaxrnn.recurrent_dropout(LSTM, 0.4),
        lambda drawn: dropped(lstm_of_dropped, drawn),
    ),
    "dropout of GRU": (
        jaxrnn.recurrent_dropout(GRU, 0.4),
        lambda drawn: dropped(gru_of_dropped, drawn),
    ),
    "zoneout of LSTM": (
        jaxrnn.zoneout(LSTM, h=0.3, c=0.5),
        lambda drawn: kept({"h": 0.3, "c": 0.5}, drawn, CATALOGUE["LSTM"].step),
    ),
    "zoneout of GRU": (
        jaxrnn.zoneout(GRU, h=0.4),
        lambda drawn: kept({"h": 0.4}, drawn, CATALOGUE["GRU"].step),
    ),
    "zoneout of dropout": (jaxrnn.zoneout(jaxrnn.recurrent_dropout(LSTM, 0.4), h=0.3, c=0.5), both),
}


@pytest.mark.parametrize("name", CASES)
def test_the_arrays_that_are_drawn_are_in_every_step(name):
    cell, step_of = CASES[name]
    problem = make_problem(cell, T, (B,), I, H, key=KEY)
    _, hs, states = problem.outputs(return_states=True)
    drawn = jax.tree.map(np.asarray, cell.draw(KEY, problem.params, T, (B,)))
    arrays = problem.params, problem.initial_state, problem.xs
    params, state, xs = jax.tree.map(np.asarray, arrays)
    step = step_of(drawn)
    for t, x in enumerate(xs):
        state = step(params, state, x, t)
        found = jax.tree.map(lambda leaf, t=t: leaf[t], states)
        assert_same(found, jax.tree.map(jnp.asarray, state))
        assert_same(hs[t], jnp.asarray(state.h))
    # and other arrays are drawn of another key
    other = cell.draw(jax.random.key(2), problem.params, T, (B,))
    assert not all(
        jnp.array_equal(*pair)
        for pair in zip(jax.tree.leaves(drawn), jax.tree.leaves(other), strict=True)
    )


def test_dropout_leaves_what_is_read_beside_the_products():
    """The GRU's update gate at 1 keeps the state, whatever is dropped from the products."""
    cell = jaxrnn.recurrent_dropout(GRU, 0.9)
    params = cell.init(jax.random.key(0), I, H, dtype=jnp.float64, update_bias=100.0)
    state = jaxrnn.GRUState(h=jnp.arange(1.0, 1 + H))
    final, _ = jaxrnn.unroll(cell, params, jnp.ones((50, I)), state, key=jax.random.key(0))
    assert_same(final, state)
