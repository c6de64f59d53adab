"""Recurrent policies learn from the states that they acted in: docs/reinforcement-learning.md.

Acting steps the network and replaces the state at every episode's first step. Learning applies the
network to a stored segment, from the state before it and with resets.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn import GRU, LSTM

STEPS, ROWS, FEATURES, ACTIONS, BURN_IN = 6, 4, 3, 4, 3
# two segments: the second begins in the middle of an episode, but for row 1; there, row 2 has an
# episode of one step, and row 3 has no reset
FIRST = np.zeros((2 * STEPS, ROWS), bool)
FIRST[0] = FIRST[[3, 8], 0] = FIRST[[6, 9], 1] = FIRST[[9, 10], 2] = FIRST[4, 3] = True


class Segment(NamedTuple):
    """The steps of acting, and the state before them."""

    stored: jaxrnn.StackState
    obs: jax.Array
    first: jax.Array
    logits: jax.Array
    value: jax.Array


class Played(NamedTuple):
    network: jaxrnn.Network
    params: Any
    segments: tuple[Segment, Segment]


def heads(params, h):
    return jaxrnn.affine(params["actions"], h), jaxrnn.affine(params["value"], h)[..., 0]


@functools.cache
def played(learned=True):
    """A rollout of two segments; each observation depends on the action before it."""
    network = jaxrnn.stack(
        jaxrnn.layer(GRU, 3, learned_initial_state=learned),
        jaxrnn.layer(LSTM, 4, learned_initial_state=learned),
    )

    def init(key):
        return {
            "network": network.init(key, FEATURES, dtype=jnp.float64),
            "actions": jaxrnn.init_affine(key, 4, ACTIONS, dtype=jnp.float64),
            "value": jaxrnn.init_affine(key, 4, 1, dtype=jnp.float64),
        }

    like = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda a: 0.5 * a, random_tree(like, seed=1))
    noise = random_tree(jax.ShapeDtypeStruct((2 * STEPS, ROWS, FEATURES), jnp.float64), seed=2)
    # no episode reads it
    unread = random_tree(jax.eval_shape(lambda: network.initial_state(params["network"], (ROWS,))))

    @jax.jit
    def rollout(params, state, noise, first):
        def step(carry, now):
            (state, action), (noise, first) = carry, now
            obs = noise + jax.nn.one_hot(action, FEATURES, dtype=noise.dtype)
            fresh = network.initial_state(params["network"], (ROWS,))
            begun = jax.tree.map(lambda a, b: jnp.where(first[:, None], a, b), fresh, state)
            after, h = network.step(params["network"], begun, obs)
            logits, value = heads(params, h)
            return (after, logits.argmax(-1)), Segment(state, obs, first, logits, value)

        return jax.lax.scan(step, (state, jnp.zeros(ROWS, int)), (noise, first))[1]

    steps = jax.tree.map(np.asarray, rollout(params, unread, noise, FIRST))
    halves = (
        jax.tree.map(lambda a, part=part: a[part], steps)
        for part in (slice(0, STEPS), slice(STEPS, None))
    )
    segments = tuple(
        half._replace(stored=jax.tree.map(lambda a: a[0], half.stored)) for half in halves
    )
    return Played(network, params, segments)


def learn(network, params, stored, obs, first, **options):
    _, hs = network.apply(params["network"], obs, stored, resets=first, **options)
    return heads(params, hs)


def loop(network, params, stored, obs, first):
    """Step by step, without masks: the state of a row is replaced where its episode begins."""
    state, outputs = stored, []
    for t in range(STEPS):
        fresh = network.initial_state(params["network"])
        state = jax.tree.map(
            lambda a, b, t=t: jnp.stack([a if first[t, row] else b[row] for row in range(ROWS)]),
            fresh,
            state,
        )
        state, h = network.step(params["network"], state, obs[t])
        outputs.append(heads(params, h))
    return jax.tree.map(lambda *steps: jnp.stack(steps), *outputs)


def with_gradients(f, *inputs):
    """The outputs, and the gradients of all inputs for random cotangents, compiled once."""

    def run(*inputs):
        outputs, pull = jax.vjp(f, *inputs)
        return outputs, pull(random_tree(outputs, seed=3))

    return jax.jit(run)(*inputs)


@pytest.mark.parametrize("n", [0, 1], ids=["from_the_start", "from_the_middle"])
@pytest.mark.parametrize("learned", [False, True], ids=["zeros", "learned"])
def test_learning_has_the_outputs_of_acting_and_the_gradients_of_the_loop(learned, n):
    """Gradients of the params, learned initial states included, the stored state and the inputs."""
    network, params, segments = played(learned)
    segment = segments[n]
    results = [
        with_gradients(
            lambda *inputs, f=f: f(network, *inputs, segment.first),
            params,
            segment.stored,
            segment.obs,
        )
        for f in (learn, loop)
    ]
    assert_same(*results)
    outputs, (dparams, *_) = results[0]
    assert_same(outputs, (segment.logits, segment.value))
    if learned:
        starts = [layer.initial_state for layer in dparams["network"].layers]
        assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(starts))


def test_the_gradients_of_minibatches_of_rows_average_to_the_gradient_of_all_rows():
    network, params, (_, segment) = played()
    rng = np.random.default_rng(4)
    action = rng.integers(0, ACTIONS, (STEPS, ROWS))
    advantage, target = rng.normal(size=(2, STEPS, ROWS))
    steps = segment._replace(stored=None), action, advantage, target
    # as if trained since they acted: no ratio is 1
    moved = jax.tree.map(lambda a: 1.2 * a, params)

    @jax.jit
    @jax.grad
    def gradient(params, stored, steps, action, advantage, target):
        logits, value = learn(network, params, stored, steps.obs, steps.first)
        new, old = (
            jaxrnn.softmax_cross_entropy(each, action, reduction="none")
            for each in (logits, steps.logits)
        )
        ratio = jnp.exp(old - new)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        return jnp.mean(0.5 * (value - target) ** 2 - gain)

    def of_rows(*rows):
        stored = jax.tree.map(lambda a: a[list(rows)], segment.stored)
        return gradient(moved, stored, *jax.tree.map(lambda a: a[:, list(rows)], steps))

    one, other, whole = of_rows(2, 0), of_rows(3, 1), of_rows(0, 1, 2, 3)
    assert_same(jax.tree.map(lambda a, b: (a + b) / 2, one, other), whole)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.any(abs(a - b) > 1e-3)


def test_no_gradient_passes_from_after_the_burn_in_to_before_it():
    """By `detach`, as by two calls with `jax.lax.stop_gradient` of the state between them."""
    network, params, (_, segment) = played()
    first = segment.first
    cut = np.zeros_like(first)
    cut[BURN_IN] = True

    def whole(params, stored, obs, **options):
        outputs = learn(network, params, stored, obs, first, **options)
        return tuple(each[BURN_IN:] for each in outputs)

    def in_two_calls(params, stored, obs):
        state, _ = network.apply(params["network"], obs[:BURN_IN], stored, resets=first[:BURN_IN])
        state = jax.lax.stop_gradient(state)
        return learn(network, params, state, obs[BURN_IN:], first[BURN_IN:])

    inputs = params, segment.stored, segment.obs
    found = with_gradients(functools.partial(whole, detach=cut), *inputs)
    assert_same(found, with_gradients(in_two_calls, *inputs))
    outputs, (_, dstored, dobs) = found
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((dstored, dobs[:BURN_IN])))
    assert np.all(dobs[BURN_IN:] != 0)
    # without the cut, the gradient reaches the stored state of each episode that goes on
    same, (_, dstored, _) = with_gradients(whole, *inputs)
    assert_same(same, outputs)
    goes_on = ~first[: BURN_IN + 1].any(axis=0)
    assert list(goes_on) == [False, False, False, True]
    for leaf in jax.tree.leaves(dstored):
        np.testing.assert_array_equal(np.all(leaf != 0, axis=-1), goes_on)
