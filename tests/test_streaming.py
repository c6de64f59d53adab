"""One step at a time is the sequence, and hands out the state's own output."""

import jax
import jax.numpy as jnp
import pytest
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM

XS = random_tree(jax.ShapeDtypeStruct((6, 3, 4), jnp.float64))


def streamed(step, params, state):
    hs = []
    for x in XS:
        state, h = step(params, state, x)
        hs.append(h)
    return state, jnp.stack(hs)


def test_a_stream_of_steps_is_the_sequence_and_copies_no_output():
    network = jaxrnn.stack(jaxrnn.layer(GRU, 4, learned_initial_state=True), jaxrnn.layer(LSTM, 4))
    params = network.init(jax.random.key(0), 4, dtype=jnp.float64)
    step, start = jaxrnn.make_stream_step(network), network.initial_state(params, (3,))
    assert_same(streamed(step, params, start), network.apply(params, XS))
    state, h = step(params, start, XS[0])
    assert h is state.layers[-1].forward.h


def test_a_stream_of_a_cell_is_the_sequence_and_copies_no_output(cell):
    params = cell.init(jax.random.key(0), 4, 5, dtype=jnp.float64)
    step, start = jaxrnn.make_stream_step(cell), cell.initial_state(params, (3,))
    assert_same(streamed(step, params, start), jaxrnn.unroll(cell, params, XS))
    state, h = step(params, start, XS[0])
    assert h is state.h


def test_an_output_that_is_no_field_of_the_state_is_returned_beside_it():
    network = jaxrnn.layer(ELMAN, 4, residual=True)
    params = network.init(jax.random.key(0), 4, dtype=jnp.float64)
    step, start = jaxrnn.make_stream_step(network), network.initial_state(params, (3,))
    assert_same(streamed(step, params, start), network.apply(params, XS))


def test_a_step_with_a_key_has_the_masks_of_the_sequence():
    """A mask for each sequence is the same at every step; one for each step, with its own key."""
    network = jaxrnn.stack(
        jaxrnn.layer(GRU, 4), jaxrnn.layer(LSTM, 4), dropout=0.5, dropout_mask="sequence"
    )
    params = network.init(jax.random.key(0), 4, dtype=jnp.float64)
    start, key = network.initial_state(params, (3,)), jax.random.key(1)

    @jax.jit
    def step(params, state, x):
        return network.step(params, state, x, key=key)

    dropped = network.apply(params, XS, key=key)
    assert_same(streamed(step, params, start), dropped)
    assert not jnp.allclose(dropped[1], network.apply(params, XS)[1])


def test_what_cannot_stream_is_refused_by_name():
    with pytest.raises(TypeError, match=r"`network` must be a jaxrnn.Network or a jaxrnn.Cell"):
        jaxrnn.make_stream_step(GRU.step)
    network = jaxrnn.layer(GRU, 4, bidirectional=True)
    params = network.init(jax.random.key(0), 4)
    step = jaxrnn.make_stream_step(network)
    with pytest.raises(ValueError, match="reads its sequence in both directions"):
        step(params, network.initial_state(params), XS[0, 0])
