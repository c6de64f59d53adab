"""Tokens to vectors: the lookup's gradient, its padding, tied weights, and padded sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn.parallel import make_mesh, replicate, shard_rows

V, E = 6, 3
TOKENS = jnp.array([[3, 1, 3], [0, 5, 3]])


def table(dtype=jnp.float64):
    return jaxrnn.EmbeddingParams(random_tree(jax.ShapeDtypeStruct((V, E), dtype)))


def plain(params, tokens):
    """A product with one-hot rows, which JAX differentiates."""
    return jax.nn.one_hot(tokens, V, dtype=params.table.dtype) @ params.table


def test_the_lookup_and_its_gradient_are_those_of_one_hot_rows():
    dxs = random_tree(jax.ShapeDtypeStruct((2, 3, E), jnp.float64), 1)

    def both(f):
        xs, pull = jax.vjp(lambda params: f(params, TOKENS), table())
        return xs, pull(dxs)

    assert_same(both(jaxrnn.embed), both(plain))


def test_the_gradient_is_differentiated_again():
    def curvature(f):
        def loss(params):
            return jnp.sum(jnp.sin(f(params, TOKENS)) ** 2)

        return jax.grad(lambda params: jnp.sum(jax.grad(loss)(params).table ** 3))(table())

    assert_same(curvature(jaxrnn.embed), curvature(plain))


def test_a_paddings_vector_gets_no_gradient():
    def loss(params):
        return jnp.sum(jaxrnn.embed(params, TOKENS, padding=3) ** 2)

    gradient = jax.grad(loss)(table()).table
    assert jnp.all(gradient[3] == 0)
    unpadded = jax.grad(lambda params: jnp.sum(jaxrnn.embed(params, TOKENS) ** 2))(table()).table
    assert_same(gradient.at[3].set(0), unpadded.at[3].set(0))


def test_sums_of_many_tokens_run_in_float32():
    params = jaxrnn.EmbeddingParams(jnp.ones((2, 1), jnp.bfloat16))

    def loss(params):
        return jnp.sum(jaxrnn.embed(params, jnp.zeros(1000, int)).astype(jnp.float32))

    assert jax.grad(loss)(params).table[0, 0] == 1000


def test_tied_weights_have_both_gradients():
    hs = random_tree(jax.ShapeDtypeStruct((4, E), jnp.float64), 2)

    def loss(embed, params):
        head = jaxrnn.AffineParams(params.table.T, jnp.zeros(V))
        return jnp.sum(jnp.sin(jaxrnn.affine(head, hs + jnp.sum(embed(params, TOKENS)))))

    gradients = [jax.grad(lambda p, f=f: loss(f, p))(table()) for f in (jaxrnn.embed, plain)]
    assert_same(*gradients)


def test_a_traced_token_out_of_range_shows_and_a_concrete_one_raises():
    found = jax.jit(lambda tokens: jaxrnn.embed(table(), tokens))(jnp.array([-1, 0, V]))
    assert jnp.isnan(found).all(axis=-1).tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"`tokens` must be in 0..5; got -1..2"):
        jaxrnn.embed(table(), np.array([-1, 2]))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32, jnp.int64])
def test_tokens_of_any_integer_dtype(dtype):
    """Also where the table has more rows than the dtype can count."""
    many = jaxrnn.EmbeddingParams(random_tree(jax.ShapeDtypeStruct((300, E), jnp.float64)))
    tokens = jnp.array([0, 1, 99, 127, -1], jnp.int64).astype(dtype)

    @jax.jit
    def found(params, tokens):
        xs, pull = jax.vjp(lambda params: jaxrnn.embed(params, tokens), params)
        return xs, pull(jnp.ones_like(xs))[0].table

    wide = tokens.astype(jnp.int64)
    xs, gradient = found(many, tokens)
    known = (wide >= 0) & (wide < 300)
    assert_same(xs[known], many.table[wide[known]], 0)
    assert jnp.isnan(xs[~known]).all()
    assert_same(gradient, jnp.zeros_like(many.table).at[wide[known]].add(1.0), 0)
    assert_same(jaxrnn.embed(many, tokens[:4]), xs[:4], 0)


def test_rows_on_several_devices_have_the_gradient_of_one():
    mesh = make_mesh(jax.devices()[:4])
    tokens = jnp.arange(8).reshape(2, 4) % V
    gradient = jax.jit(jax.grad(lambda p, tokens: jnp.sum(jaxrnn.embed(p, tokens) ** 2)))
    there = gradient(replicate(table(), mesh), shard_rows(tokens, mesh, 1))
    assert_same(there, gradient(table(), tokens))


BAD = {
    "params": (lambda: jaxrnn.embed(jnp.ones((V, E)), TOKENS), TypeError, "`params` must be"),
    "floats": (lambda: jaxrnn.embed(table(), jnp.ones(3)), TypeError, "`tokens` must be integers"),
    "padding": (lambda: jaxrnn.embed(table(), TOKENS, padding=V), ValueError, "`padding` must be"),
    "nothing": (lambda: jaxrnn.pad_sequences([]), ValueError, "`sequences` must be at least one"),
    "a number": (lambda: jaxrnn.pad_sequences([1]), ValueError, r"`sequences` must be arrays \[T"),
    "shapes": (
        lambda: jaxrnn.pad_sequences([np.ones((2, 3)), np.ones((2, 4))]),
        ValueError,
        r"got \(2, 3\) and, at 1, \(2, 4\)",
    ),
    "words": (
        lambda: jaxrnn.pad_sequences(["ab"]),
        TypeError,
        "`sequences` must be arrays of numbers",
    ),
    "a padding of another dtype": (
        lambda: jaxrnn.pad_sequences([[1, 2]], padding=0.5),
        ValueError,
        "`padding` must be a value of int64; got 0.5",
    ),
    "dtypes": (
        lambda: jaxrnn.pad_sequences([np.ones(2), np.ones(2, np.float32)]),
        TypeError,
        "`sequences` must have one dtype",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_an_empty_list_among_others_has_their_dtype():
    xs, lengths = jaxrnn.pad_sequences([[5, 17], []])
    assert xs.tolist() == [[5, 0], [17, 0]]
    assert (xs.dtype, lengths.tolist()) == (np.int64, [2, 0])


def test_padded_sequences_are_read_as_they_were():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(T, E)) for T in (4, 0, 2)]
    xs, lengths = jaxrnn.pad_sequences(sequences, padding=np.nan)
    assert xs.shape == (4, 3, E)
    params = jaxrnn.GRU.init(jax.random.key(0), E, 5, dtype=jnp.float64)
    final, _ = jaxrnn.unroll(jaxrnn.GRU, params, xs, lengths=lengths)
    for b, each in enumerate(sequences):
        alone, _ = jaxrnn.unroll(jaxrnn.GRU, params, jnp.asarray(each))
        assert_same(final.h[b], alone.h)
