"""Truncated BPTT by windows is what its definition says; accumulated gradients are those of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn import GRU, LSTM

T, B, I, H = 11, 3, 2, 4
NETWORK = jaxrnn.stack(
    jaxrnn.layer(GRU, H, learned_initial_state=True),
    jaxrnn.layer(LSTM, H),
    dropout=0.5,
    dropout_mask="sequence",
)
SMALL = jaxrnn.stack(jaxrnn.layer(GRU, H), input_dropout=0.5)
KEY = jax.random.key(7)


def stream():
    """Params, a stream with ragged ends and episodes, and its targets."""
    params = NETWORK.init(jax.random.key(0), I, dtype=jnp.float64)
    # no bias and no learned state at zero
    params = jax.tree.map(lambda a, b: a + 0.1 * b, params, random_tree(params))
    xs, targets = random_tree(
        [jax.ShapeDtypeStruct((T, B, size), jnp.float64) for size in (I, H)], seed=1
    )
    mask = jaxrnn.valid_steps(jnp.array([11, 6, 9]), T)
    # the first step begins an episode: so the learned state gets its gradient
    resets = jnp.asarray(np.random.default_rng(2).random((T, B)) < 0.2).at[0].set(True)
    return params, (xs, targets, mask, resets)


def loss_of_window(params, window, state, *, stride, carried):
    """The summed loss of the last steps, and the state that the next window starts from."""
    xs, targets, mask, resets = window
    final_state, hs, states = NETWORK.apply(
        params, xs, state, mask=mask, resets=resets, key=KEY, return_states=True
    )
    new = slice(len(xs) - stride, None)
    loss = jaxrnn.squared_error(hs[new], targets[new], mask=mask[new], reduction="sum")
    return loss, carried(states, final_state)


def after_the_stride(stride):
    return lambda states, final_state: jax.tree.map(lambda leaf: leaf[stride - 1], states)


def gradient_by_windows(params, sequences, length, stride, carried):
    """Summed over all windows, the params held: one scan."""

    def of_window(state, window):
        of_loss = functools.partial(loss_of_window, stride=stride, carried=carried)
        gradient, state = jax.grad(of_loss, has_aux=True)(params, window, state)
        return state, gradient

    cut = jaxrnn.windows(sequences, length, stride=stride)
    _, gradients = jax.lax.scan(of_window, NETWORK.initial_state(params, (B,)), cut)
    return jax.tree.map(lambda leaf: leaf.sum(0), gradients)


@jax.jit
def gradient_by_definition(params, sequences, length, stride):
    """Every block of new losses, with the path cut where its window begins: one program for all."""
    xs, targets, mask, resets = sequences
    t = jnp.arange(T)

    def of_block(n):
        stop = (n + 1) * stride
        new = mask & ((t >= stop - stride) & (t < stop))[:, None]
        detach = jnp.broadcast_to((t == stop - length)[:, None], mask.shape)

        def loss(params):
            network = jaxrnn.reference(NETWORK)
            _, hs = network.apply(params, xs, mask=mask, resets=resets, detach=detach, key=KEY)
            return jaxrnn.squared_error(hs, targets, mask=new, reduction="sum")

        return jax.grad(loss)(params)

    # behind the last block, there is nothing new
    gradients = jax.vmap(of_block)(jnp.arange(T))
    return jax.tree.map(lambda leaf: leaf.sum(0), gradients)


@pytest.mark.parametrize(("length", "stride"), [(3, 3), (5, 2), (4, 1), (T, T), (16, 16)])
def test_windows_make_the_gradient_of_truncated_bptt(length, stride):
    params, sequences = stream()
    found = jax.jit(gradient_by_windows, static_argnums=(2, 3, 4))(
        params, sequences, length, stride, after_the_stride(stride)
    )
    assert_same(found, gradient_by_definition(params, sequences, length, stride))


def test_a_window_that_starts_from_another_state_is_rejected():
    params, sequences = stream()
    expected = gradient_by_definition(params, sequences, 5, 2)
    for wrong in (after_the_stride(1), lambda states, final_state: final_state):
        found = gradient_by_windows(params, sequences, 5, 2, wrong)
        with pytest.raises(AssertionError):
            assert_same(found, expected)


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (3, 3), (5, 2), (4, 3), (20, 20)])
def test_windows_hold_every_step_once_as_their_own_and_those_before_it(length, stride):
    xs, mask = np.arange(1, T + 1)[:, None] * np.ones((T, 2), int), np.ones(T, bool)
    cut, of_mask = jaxrnn.windows((xs, mask), length, stride=stride)
    new = [x for window in cut[:, length - stride :, 1] for x in window if x]
    assert new == list(range(1, T + 1))
    for n in range(len(cut)):
        for j in range(length):
            t = n * stride - (length - stride) + j
            inside = 0 <= t < T
            assert of_mask[n, j] == inside
            assert cut[n, j].tolist() == ([t + 1] * 2 if inside else [0, 0])


def loss_fn(params, batch, key):
    """For `make_train_step`; the mask of a sequence needs the same key in every window."""
    del key
    window, state = batch
    loss, state = loss_of_window(params, window, state, stride=2, carried=after_the_stride(2))
    return loss, {"state": state}


def test_a_scan_over_windows_trains_as_a_loop_over_them():
    params, sequences = stream()
    optimizer = optax.sgd(0.01)
    train_step = jaxrnn.make_train_step(loss_fn, optimizer, has_aux=True, donate=False)
    state = jaxrnn.init_train_state(params, optimizer, KEY)
    start = NETWORK.initial_state(params, (B,))
    cut = jaxrnn.windows(sequences, 5, stride=2)

    @jax.jit
    def scanned(state, start):
        def update(carry, window):
            state, carried = carry
            state, metrics = train_step(state, (window, carried))
            return (state, metrics["state"]), metrics["loss"]

        return jax.lax.scan(update, (state, start), cut)

    (found, carried), losses = scanned(state, start)
    looped, by_hand, of_loop = state, start, []
    for n in range(len(losses)):
        window = jax.tree.map(lambda leaf, n=n: leaf[n], cut)
        looped, metrics = train_step(looped, (window, by_hand))
        by_hand = metrics["state"]
        of_loop.append(metrics["loss"])
    assert int(found.step) == 6
    assert_same((found.params, carried, losses), (looped.params, by_hand, jnp.stack(of_loop)))


def summed(params, microbatch, key):
    """Of three rows with dropout: the losses of the valid steps, and their number."""
    xs, targets, mask = microbatch
    _, hs = SMALL.apply(params, xs, mask=mask, key=key)
    return jaxrnn.squared_error(hs, targets, mask=mask, reduction="sum"), mask.sum()


def microbatches():
    """Four, with different numbers of valid steps, the last without any."""
    rng = np.random.default_rng(4)
    xs, targets = (jnp.asarray(rng.normal(size=(4, T, B, size))) for size in (I, H))
    mask = rng.random((4, T, B)) < np.array([0.9, 0.5, 0.2, 0]).reshape(4, 1, 1)
    return xs, targets, jnp.asarray(mask)


def test_accumulated_gradients_are_those_of_one_batch():
    params = SMALL.init(KEY, I, dtype=jnp.float64)
    batch = microbatches()

    def of_all(params, batch, key):
        """Written out: no scan, one division."""
        each = [
            summed(params, jax.tree.map(lambda leaf, n=n: leaf[n], batch), key)
            for n, key in enumerate(jax.random.split(key, 4))
        ]
        losses, counts = zip(*each, strict=True)
        return sum(losses) / sum(counts).astype(jnp.float64)

    found, expected = (
        jax.jit(jax.value_and_grad(f))(params, batch, KEY)
        for f in (jaxrnn.accumulate(summed), of_all)
    )
    assert_same(found, expected)
    empty = jax.tree.map(jnp.zeros_like, batch)
    loss, gradient = jax.value_and_grad(jaxrnn.accumulate(summed))(params, empty, KEY)
    assert loss == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_the_number_of_steps_may_be_a_number_of_python():
    def sum_fn(params, microbatch, key):
        return jnp.sum(params * microbatch), microbatch.size

    loss = jaxrnn.accumulate(sum_fn)(jnp.float64(2.0), jnp.ones((3, 4)), KEY)
    assert loss == 2.0


def test_accumulated_gradients_hold_one_microbatch_in_memory():
    params = SMALL.init(KEY, I, dtype=jnp.float64)

    def temporaries(count):
        like = [jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype) for a in microbatches()]
        program = jax.jit(jax.grad(jaxrnn.accumulate(summed))).lower(params, like, KEY).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(64) < 1.05 * temporaries(8)


def test_an_ensemble_is_one_vmap_over_whole_runs():
    """Initial params, dropout and optimizer state included; each as it would be alone."""
    batch = microbatches()
    optimizer = optax.sgd(0.01, momentum=0.9)
    train_step = jaxrnn.make_train_step(jaxrnn.accumulate(summed), optimizer, donate=False)

    def run(key):
        init_key, key = jax.random.split(key)
        params = SMALL.init(init_key, I, dtype=jnp.float64)
        state = jaxrnn.init_train_state(params, optimizer, key)
        state, metrics = jax.lax.scan(lambda state, _: train_step(state, batch), state, length=3)
        return state.params, metrics

    keys = jax.random.split(jax.random.key(3), 2)
    together, alone = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for n, key in enumerate(keys):
        assert_same(jax.tree.map(lambda leaf, n=n: leaf[n], together), alone(key))


ONES = jnp.ones((4, 3))
BAD = {
    "no arrays": (lambda: jaxrnn.windows((), 2), TypeError, r"`sequences` must be arrays \[T"),
    "a number": (lambda: jaxrnn.windows(1.0, 2), TypeError, r"`sequences` must be arrays \[T"),
    "two lengths": (
        lambda: jaxrnn.windows((ONES, ONES[1:]), 2),
        ValueError,
        r"`sequences` must be arrays of one T; got \[3, 4\]",
    ),
    "length": (lambda: jaxrnn.windows(ONES, 0), ValueError, "`length` must be an int"),
    "stride": (
        lambda: jaxrnn.windows(ONES, 2, stride=3),
        ValueError,
        "`stride` must be at most length=2.*; got 3",
    ),
    "no function": (lambda: jaxrnn.accumulate(3), TypeError, "`sum_fn` must be a function"),
    "two arguments": (
        lambda: jaxrnn.accumulate(lambda params, batch: 0),
        TypeError,
        r"`sum_fn` must take \(params, microbatch, key\)",
    ),
    "a mean alone": (
        lambda: jaxrnn.accumulate(lambda params, batch, key: params)(1.0, ONES, KEY),
        TypeError,
        r"`sum_fn` must return \(sum of losses, sum of weights\)",
    ),
    "no microbatches": (
        lambda: jaxrnn.accumulate(summed)(1.0, ONES[:0], KEY),
        ValueError,
        "`microbatches` must be arrays",
    ),
    "different numbers": (
        lambda: jaxrnn.accumulate(summed)(1.0, (ONES, ONES[1:]), KEY),
        ValueError,
        "`microbatches` must be arrays",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
