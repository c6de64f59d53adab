"""The cells with layer normalisation: the adjoint by formula, invariances, degenerate rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import (
    assert_rule_equals_autodiff,
    assert_same,
    make_problem,
    random_tree,
    vjp,
)

import jaxrnn
from jaxrnn.normalisation import (
    EPSILON,
    multiply_gain,
    normalise,
    normalise_gradient,
    normalised_product,
    product_factors,
    product_input_gradient,
    product_weight_gradients,
)

T, B, I, H = 5, 3, 3, 4
PLAIN = {"LAYER_NORM_LSTM": (jaxrnn.LSTM, 4), "LAYER_NORM_GRU": (jaxrnn.GRU, 3)}

every_cell = pytest.mark.parametrize(
    "cell", [getattr(jaxrnn, name) for name in PLAIN], ids=lambda cell: cell.name
)


def draw(*shape, seed=0):
    return random_tree(jax.ShapeDtypeStruct(shape, jnp.float64), seed)


def by_formula(a):
    """Without a helper of the library."""
    mean, variance = (f(a, axis=-1, keepdims=True) for f in (jnp.mean, jnp.var))
    return (a - mean) / jnp.sqrt(variance + 1e-5)


def test_a_row_has_mean_0_and_variance_1_and_the_adjoint_of_the_formula():
    a, dy = 3 * draw(T, B, H, seed=1) + 2, draw(T, B, H, seed=2)
    (y, s), (expected, pull) = normalise(a), jax.vjp(by_formula, a)
    assert_same((y, normalise_gradient(dy, y, s)), (expected, *pull(dy)))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-3)


@pytest.mark.parametrize("rows", [3, 8, 20], ids="{} inputs".format)
def test_the_adjoint_of_a_normalised_product_is_that_of_the_formula(rows):
    """With fewer, as many and more inputs than columns: another order of products is less work."""
    x, w, gain = draw(T, B, rows, seed=1), draw(rows, 8, seed=2), draw(8, seed=3)
    dz = draw(T, B, 8, seed=4)

    def rule(x, w, gain, dz):
        y, s = normalised_product(x, w)
        factors = product_factors(x, s, w)
        dx, k = product_input_gradient(dz, factors, w, gain)
        return multiply_gain(y, gain), (dx, *product_weight_gradients(factors.u, dz, k, w, gain))

    def autodiff(x, w, gain, dz):
        z, pull = jax.vjp(lambda x, w, gain: multiply_gain(by_formula(x @ w), gain), x, w, gain)
        return z, pull(dz)

    assert_same(*(jax.jit(f)(x, w, gain, dz) for f in (rule, autodiff)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_sums_over_rows_do_not_overflow_or_lose_digits(dtype):
    """A square of 1000 is infinite in float16, and 4096 ones add up to 256 in bfloat16."""
    a = (1000 * draw(B, 4096)).astype(dtype)
    exact = np.asarray(a, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    y, s = normalise(a)
    assert y.dtype == s.dtype == dtype
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=tolerance, atol=tolerance)


@every_cell
def test_more_inputs_than_columns_have_the_gradient_of_autodiff(cell):
    problem = make_problem(cell, T, (B,), 11, 2, lengths=True, resets=True)
    cotangents = random_tree(jax.eval_shape(problem.outputs), 3)
    ways = (jaxrnn.unroll, jaxrnn.unroll_reference)
    assert_same(*(vjp(problem, unroll, cotangents) for unroll in ways))


@every_cell
def test_one_head_is_the_plain_cell(cell):
    """A weight that is no array is not centred itself: the sums are over its product."""
    problem = make_problem(cell, T, (B,), I, H, lengths=True, resets=True)
    cotangents = random_tree(jax.eval_shape(problem.outputs), 3)
    outputs, (dparams, *others) = vjp(problem, jaxrnn.unroll, cotangents)

    def in_a_head(params):
        return params._replace(w_hh=params.w_hh.reshape(1, H, -1, H))

    headed = problem._replace(cell=jaxrnn.heads(cell, 1), params=in_a_head(problem.params))
    found = vjp(headed, jaxrnn.unroll, cotangents)
    assert_same(found, (outputs, (in_a_head(dparams), *others)))


@pytest.mark.parametrize(
    "made",
    [
        jaxrnn.recurrent_dropout(jaxrnn.LAYER_NORM_GRU, 0.5),
        jaxrnn.recurrent_dropout(jaxrnn.projected(jaxrnn.LAYER_NORM_LSTM, 6), 0.5),
        jaxrnn.with_dtypes(jaxrnn.LAYER_NORM_LSTM, compute="float64", carry="float64"),
        jaxrnn.zoneout(jaxrnn.clipped(jaxrnn.LAYER_NORM_LSTM, 0.3), h=0.2, c=0.4),
    ],
    ids=lambda cell: cell.name,
)
def test_a_transformed_cell_has_the_gradient_of_autodiff(made):
    key = None if made.draw is None else jax.random.key(2)
    # so many units that a mask keeps several: of one alone, the norm leaves the sign
    assert_rule_equals_autodiff(make_problem(made, T, (B,), I, 8, lengths=True, key=key))


@every_cell
def test_the_product_with_the_inputs_has_mean_0_and_variance_1_over_all_gates(cell):
    """With gains of 1 and biases of 0, the cell's inputs are that product."""
    gates = PLAIN[cell.name][1]
    params = make_problem(cell, T, (B,), I, H).params
    params = params._replace(
        w_ih=100 * params.w_ih, b=0 * params.b, gain_ih=jnp.ones_like(params.gain_ih)
    )
    inputs = cell.project(params, draw(T, B, I), None)
    rows = jnp.concatenate(jax.tree.leaves(inputs.a), axis=-1)
    assert rows.shape == (T, B, gates * H)
    np.testing.assert_allclose(rows.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(rows.var(-1), 1, rtol=1e-3)


@functools.cache
def program(cell):
    """``hs`` and the gradients of params and inputs."""

    def loss(params, xs, initial_state):
        _, hs = jaxrnn.unroll(cell, params, xs, initial_state)
        return jnp.sum(hs * hs), hs

    def run(params, xs, initial_state):
        both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, hs), gradients = both(params, xs, initial_state)
        return hs, gradients

    return jax.jit(run)


@every_cell
@pytest.mark.parametrize("name", ["w_ih", "w_hh"])
def test_scale_and_mean_of_a_weight_have_no_effect(cell, name):
    """Up to `EPSILON`, beside which the variances here are large."""
    problem = make_problem(cell, T, (B,), I, H)
    w = 1e5 * getattr(problem.params, name)
    same = jnp.broadcast_to(1e4 * draw(w.shape[0], 1, seed=7), w.shape)

    def run(w):
        params = problem.params._replace(**{name: w})
        hs, (dparams, _) = program(cell)(params, problem.xs, problem.initial_state)
        return hs, getattr(dparams, name)

    hs, dw = run(w)
    for changed, share in ((8 * w, 8), (w + same, 1)):
        other, gradient = run(changed)
        np.testing.assert_allclose(other, hs, rtol=0, atol=1e-8)
        np.testing.assert_allclose(share * gradient, dw, rtol=0, atol=1e-6 * jnp.abs(dw).max())
    # so the gradient is orthogonal to both directions
    assert jnp.abs(dw).max() > 1e-9
    lengths = jnp.linalg.norm(dw) * jnp.linalg.norm(w)
    assert abs(jnp.vdot(dw, w)) <= 1e-6 * lengths
    assert abs(jnp.vdot(dw, same)) <= 1e-9 * lengths


@every_cell
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_products_without_variance_are_zeros_with_finite_gradients(cell, dtype):
    """Equal columns make rows of equal values: the gates read the biases alone."""
    problem = make_problem(cell, T, (B,), I, H, dtype=dtype)

    def run(scale):
        weights = {
            name: jnp.broadcast_to(scale * w[:, :1], w.shape)
            for name, w in problem.params._asdict().items()
            if name.startswith("w_")
        }
        return program(cell)(problem.params._replace(**weights), problem.xs, problem.initial_state)

    (hs, gradients), (biased, _) = run(1), run(0)
    # a rounding of equal values is magnified by at most 1 / sqrt(EPSILON)
    atol = 4 * EPSILON**-0.5 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(*(np.asarray(a, np.float64) for a in (hs, biased)), atol=atol)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@every_cell
@pytest.mark.parametrize("name", ["xs", "w_ih", "w_hh", "gain_ih", "gain_hh", "b", "h"])
def test_values_of_ten_thousand_are_finite_with_finite_gradients(cell, name):
    problem = make_problem(cell, T, (B,), I, H, dtype=jnp.float32)
    params, xs, state = problem.params, problem.xs, problem.initial_state
    if name in params._fields:
        params = params._replace(**{name: 1e4 * getattr(params, name)})
    elif name == "xs":
        xs = 1e4 * xs
    else:
        state = jax.tree.map(lambda leaf: 1e4 * leaf, state)
    for leaf in jax.tree.leaves(program(cell)(params, xs, state)):
        assert np.isfinite(leaf).all()


def test_a_cell_state_of_equal_values_emits_its_bias():
    """c without variance: h = o tanh(bias_c), and no gradient reaches c."""
    cell = jaxrnn.LAYER_NORM_LSTM
    problem = make_problem(cell, 1, (B,), I, H)
    params = problem.params._replace(
        # shut input gates: c is f times equal values, with f = 1
        b=jnp.repeat(jnp.array([-1e3, 1e3, 0.0, 1e3]), H)
    )
    state = problem.initial_state._replace(c=jnp.full((B, H), 7.0))
    (_, h), pull = jax.vjp(lambda state: cell.step(params, state, problem.xs[0]), state)
    np.testing.assert_allclose(h, jnp.broadcast_to(jnp.tanh(params.bias_c), h.shape), atol=1e-12)
    (dstate,) = pull((jax.tree.map(jnp.zeros_like, state), jnp.ones_like(h)))
    assert all(np.isfinite(leaf).all() for leaf in dstate)
    np.testing.assert_allclose(dstate.c.sum(-1), 0, atol=1e-9)


@every_cell
def test_initial_weights_are_those_of_the_plain_cell_with_gains_of_1(cell):
    key, plain = jax.random.key(3), PLAIN[cell.name][0]
    params, expected = cell.init(key, I, H), plain.init(key, I, H)
    for name, leaf in params._asdict().items():
        if name in expected._fields:
            np.testing.assert_array_equal(leaf, getattr(expected, name), err_msg=name)
        else:
            np.testing.assert_array_equal(leaf, float(name.startswith("gain")), err_msg=name)
    chosen = cell.init(key, I, H, gain_init=jax.nn.initializers.constant(0.1))
    assert {
        name
        for name, leaf in chosen._asdict().items()
        if leaf.shape == getattr(params, name).shape and (leaf == np.float32(0.1)).all()
    } == {name for name in params._fields if name.startswith("gain")}


@every_cell
def test_params_of_the_plain_cell_are_refused(cell):
    params = PLAIN[cell.name][0].init(jax.random.key(0), I, H)
    with pytest.raises(TypeError, match=f"from {cell.name}.init"):
        jaxrnn.unroll(cell, params, jnp.ones((T, B, I), jnp.float32))
