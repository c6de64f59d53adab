"""Tokens that a network makes: against a Python loop, and by their frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same

import jaxrnn

V = 5


def language_model():
    network = jaxrnn.layer(jaxrnn.GRU, 8)
    keys = jax.random.split(jax.random.key(0), 3)
    embedding = jaxrnn.init_embedding(keys[0], V, 3, dtype=jnp.float64)
    params = network.init(keys[1], 3, dtype=jnp.float64)
    head = jaxrnn.init_affine(keys[2], 8, V, dtype=jnp.float64)

    def step(state, tokens):
        state, h = network.step(params, state, jaxrnn.embed(embedding, tokens))
        return state, jaxrnn.affine(head, h)

    return step, network.initial_state(params, (4,))


def test_the_most_probable_tokens_are_those_of_a_python_loop():
    step, state = language_model()
    first = jnp.array([0, 1, 2, 3])
    found, lengths = jax.jit(lambda state: jaxrnn.generate(step, state, first, 6, temperature=0))(
        state
    )
    tokens, expected = first, []
    for _ in range(6):
        state, logits = step(state, tokens)
        tokens = jnp.argmax(logits, -1)
        expected.append(tokens)
    assert_same(found, jnp.stack(expected), 0)
    assert lengths.tolist() == [6] * 4


def counting(state, tokens):
    """The next token is one more, with a probability of about 0.95."""
    return state, 100 + 5 * jax.nn.one_hot(tokens + 1, 8, dtype=jnp.float32)


def draw_by(traced, **options):
    """Tokens of `counting` in a program to which ``traced`` are arguments."""

    @jax.jit
    def run(traced):
        return jaxrnn.generate(
            counting, (), jnp.array([2, 0]), 5, key=jax.random.key(3), **options, **traced
        )[0]

    return run(traced)


MOST_PROBABLE = [[3, 4, 5, 6, 7], [1, 2, 3, 4, 5]]
ZEROS = [0, 0.0, 1e-40, np.float32(0), np.zeros((), np.float16), jnp.float32(0), jnp.bfloat16(0)]


@pytest.mark.parametrize("zero", ZEROS, ids=repr)
def test_a_temperature_of_zero_takes_the_most_probable_token_whatever_its_type(zero):
    known = jaxrnn.generate(counting, (), jnp.array([2, 0]), 5, temperature=zero)[0]
    traced = draw_by({"temperature": zero})
    assert known.T.tolist() == traced.T.tolist() == MOST_PROBABLE


@pytest.mark.parametrize("temperature", [1e-37, 1e-30, 1e-3])
def test_a_small_temperature_is_nearly_zero(temperature):
    """Even if a logit divided by it overflows."""
    large = {"temperature": jnp.float32(temperature)}
    assert draw_by({}, **large).T.tolist() == draw_by(large).T.tolist() == MOST_PROBABLE


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_a_traced_number_out_of_range_takes_the_most_probable_token(name):
    for value in (-1.0, jnp.nan):
        found = draw_by({name: value}, **({"temperature": 50.0} if name == "top_p" else {}))
        assert found.T.tolist() == MOST_PROBABLE


def test_traced_numbers_draw_as_known_ones_do():
    options = dict(temperature=3.0, top_p=0.3)
    assert jnp.array_equal(draw_by(options), draw_by({}, **options))
    assert not jnp.array_equal(draw_by(options), draw_by({}, temperature=3.0))
    many = jax.vmap(lambda t: draw_by({"temperature": t}))(jnp.array([0.0, 3.0]))
    assert many[0].T.tolist() == MOST_PROBABLE
    assert jnp.array_equal(many[1], draw_by({}, temperature=3.0))


def test_a_row_that_has_stopped_stays_stopped_and_its_state_too():
    def step(state, tokens):
        return state + 1, jax.nn.one_hot(state, V)

    tokens, lengths = jaxrnn.generate(
        step, jnp.array([0, 2]), jnp.array([0, 0]), 5, temperature=0, stop=3
    )
    assert tokens.T.tolist() == [[0, 1, 2, 3, 3], [2, 3, 3, 3, 3]]
    assert lengths.tolist() == [4, 2]


PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def share(**options):
    """How often each token is drawn where its probability is given."""
    logits = jnp.log(jnp.asarray(PROBABILITIES))

    def step(state, tokens):
        return (state, jnp.broadcast_to(logits, (*tokens.shape, V)))

    tokens, _ = jaxrnn.generate(
        step, (), jnp.zeros(2000, int), 10, key=jax.random.key(0), **options
    )
    return np.bincount(np.asarray(tokens).ravel(), minlength=V) / tokens.size


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, PROBABILITIES),
        (dict(temperature=2.0), PROBABILITIES**0.5),
        (dict(top_k=2), PROBABILITIES * [1, 1, 0, 0, 0]),
        (dict(top_k=9), PROBABILITIES),
        (dict(top_p=0.7), PROBABILITIES * [1, 1, 0, 0, 0]),
        (dict(top_p=0.71), PROBABILITIES * [1, 1, 1, 0, 0]),
        (dict(top_p=0.01), PROBABILITIES * [1, 0, 0, 0, 0]),
        (dict(top_k=3, top_p=0.6), PROBABILITIES * [1, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probabilities(options, weights):
    # of 20,000 draws; five standard deviations
    np.testing.assert_allclose(
        share(**options), weights / weights.sum(), atol=5 * 0.5 / 20_000**0.5
    )


def test_the_same_key_draws_the_same():
    step, state = language_model()
    runs = [
        jaxrnn.generate(step, state, jnp.zeros(4, int), 8, key=jax.random.key(k))[0]
        for k in (1, 1, 2)
    ]
    assert jnp.array_equal(runs[0], runs[1])
    assert not jnp.array_equal(runs[0], runs[2])


def uniform(state, tokens):
    return state, jnp.zeros((*tokens.shape, V))


START = jnp.zeros(2, int)
BAD = {
    "no key": (lambda: jaxrnn.generate(uniform, (), START, 3), TypeError, "`key` must be"),
    "floats": (
        lambda: jaxrnn.generate(uniform, (), jnp.zeros(2), 3, temperature=0),
        TypeError,
        "`first` must be integers",
    ),
    "cold": (
        lambda: jaxrnn.generate(uniform, (), START, 3, temperature=-1),
        ValueError,
        "`temperature` must be at least 0",
    ),
    "no number": (
        lambda: jaxrnn.generate(uniform, (), START, 3, temperature=jnp.nan),
        ValueError,
        "`temperature` must be at least 0 and finite; got nan",
    ),
    "cold array": (
        lambda: jaxrnn.generate(uniform, (), START, 3, temperature=jnp.float32(-1)),
        ValueError,
        "`temperature` must be at least 0",
    ),
    "a word": (
        lambda: jaxrnn.generate(uniform, (), START, 3, temperature="1"),
        TypeError,
        "`temperature` must be one number; got str '1'",
    ),
    "a temperature for each row": (
        lambda: jaxrnn.generate(uniform, (), START, 3, temperature=jnp.ones(2)),
        TypeError,
        "`temperature` must be one number",
    ),
    "top_p as a word": (
        lambda: jaxrnn.generate(uniform, (), START, 3, top_p="1"),
        TypeError,
        "`top_p` must be one number; got str '1'",
    ),
    "a zero that is traced, without a key": (
        lambda: jax.jit(lambda t: jaxrnn.generate(uniform, (), START, 3, temperature=t))(0.0),
        TypeError,
        "`key` must be .* known before tracing",
    ),
    "a dtype of too few tokens": (
        lambda: jaxrnn.generate(
            lambda s, t: (s, jnp.zeros((*t.shape, 300))),
            (),
            START.astype(jnp.uint8),
            3,
            temperature=0,
        ),
        ValueError,
        r"`first` must have a dtype that holds every token, 0\.\.299, such as int32; got uint8",
    ),
    "top_p": (
        lambda: jaxrnn.generate(uniform, (), START, 3, top_p=0.0),
        ValueError,
        "`top_p` must be above 0",
    ),
    "logits alone": (
        lambda: jaxrnn.generate(lambda s, t: t, (), START, 3, temperature=0),
        TypeError,
        r"`step_fn` must return \(state, logits\)",
    ),
    "one row of logits": (
        lambda: jaxrnn.generate(lambda s, t: (s, jnp.zeros(V)), (), START, 3, temperature=0),
        TypeError,
        r"`step_fn` must return logits \[..., V\] for tokens \(2,\)",
    ),
    "a state without rows": (
        lambda: jaxrnn.generate(uniform, {"h": jnp.zeros(3)}, START, 3, temperature=0, stop=1),
        ValueError,
        r"`state` must have the rows of `first`, \(2,\), .* got shape \(3,\) at \['h'\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_tokens_of_few_bits_are_as_many_as_they_can_be():
    first = jnp.zeros(2, jnp.uint8)

    def step(state, tokens):
        return state, jax.nn.one_hot(jnp.full(tokens.shape, 255), 256)

    tokens, _ = jaxrnn.generate(step, (), first, 3, temperature=0)
    assert tokens.dtype == jnp.uint8
    assert set(tokens.ravel().tolist()) == {255}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_tokens_are_drawn_with_their_probabilities_in_every_dtype(dtype):
    """Noise of 16 bits would draw the most probable of many tokens nearly always."""
    V, rows = 500, 4000
    logits = jnp.zeros(V).at[0].set(jnp.log(0.3 / 0.7 * (V - 1))).astype(dtype)

    def step(state, tokens):
        return state, jnp.broadcast_to(logits, (*tokens.shape, V))

    first = jnp.zeros(rows, jnp.int32)
    tokens, _ = jaxrnn.generate(step, (), first, 1, key=jax.random.key(0))
    assert abs(float(jnp.mean(tokens == 0)) - 0.3) < 0.03
