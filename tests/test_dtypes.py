"""One dtype in, out and in the gradients; what 16 bits cost, and what they must not cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import (
    assert_rule_equals_autodiff,
    assert_same,
    inputs_of,
    make_problem,
    random_tree,
    vjp,
    vjp_function,
)

import jaxrnn
from jaxrnn.dtypes import accumulation_dtype

SIXTEEN_BITS = [jnp.bfloat16, jnp.float16]


def cast(tree, dtype):
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )


def in_float64(problem):
    """The same problem with the same numbers: every 16-bit number is a float64 number."""
    return problem._replace(
        params=cast(problem.params, jnp.float64),
        xs=cast(problem.xs, jnp.float64),
        initial_state=cast(problem.initial_state, jnp.float64),
    )


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, *SIXTEEN_BITS])
@pytest.mark.parametrize("unroll", [jaxrnn.unroll, jaxrnn.unroll_reference])
def test_dtype_in_is_dtype_out(cell, dtype, unroll):
    problem = make_problem(cell, lengths=True, resets=True, dtype=dtype)
    outputs = jax.eval_shape(lambda: problem.outputs(unroll, return_states=True))
    run = vjp_function(problem, unroll, return_states=True)
    results = jax.eval_shape(run, inputs_of(problem), outputs)
    default_state = jax.eval_shape(
        lambda: problem._replace(initial_state=None).outputs(unroll, return_states=True)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((results, default_state))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, *SIXTEEN_BITS])
def test_what_is_recorded_has_the_dtype_too(cell, dtype):
    problem = make_problem(cell, resets=True, dtype=dtype)
    _, hs = jax.eval_shape(problem.outputs)
    gradients = jax.eval_shape(
        lambda: jaxrnn.diagnostics.backpropagate(
            cell, problem.params, problem.xs, jnp.ones_like(hs), **problem.options
        )
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(dtype)}


def test_float32_rule_equals_autodiff(cell):
    problem = make_problem(cell, T=32, lengths=True, resets=True, dtype=jnp.float32)
    assert_rule_equals_autodiff(problem, 1e-5)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_sixteen_bits_cost_only_their_rounding(cell, dtype):
    """Against float64 from the same numbers, so that the rounding of the inputs cancels.

    Rounding errs by at most eps/2, relative. A step rounds some 10 values forwards and as many
    backwards, and what a step got wrong is carried on by Jacobians of norm about 1. Over T steps
    20 T roundings of standard deviation eps / sqrt(12) meet in an entry and add up like a random
    walk, to sqrt(20 T / 12) eps: 3 eps for T = 6. Twice that is the tolerance, less than 1 % for
    float16 and 5 % for bfloat16; a wrong rule errs by more.
    """
    problem = make_problem(cell, T=6, lengths=True, resets=True, dtype=dtype)
    cotangents = random_tree(jax.eval_shape(problem.outputs), seed=3)
    actual = vjp(problem, jaxrnn.unroll, cotangents)
    exact = vjp(in_float64(problem), jaxrnn.unroll, cast(cotangents, jnp.float64))
    assert_same(cast(actual, jnp.float64), exact, 6 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("shift", [-6, -8])
def test_shut_input_gates_cost_only_their_rounding(shift):
    """From a zero initial state, so that everything in the cell state came through the gate."""
    problem = make_problem(jaxrnn.LSTM, dtype=jnp.bfloat16)._replace(initial_state=None)
    b = problem.params.b.at[:4].add(shift)
    problem = problem._replace(params=problem.params._replace(b=b))
    cotangents = random_tree(jax.eval_shape(problem.outputs), seed=3)
    exact = vjp(in_float64(problem), jaxrnn.unroll, cast(cotangents, jnp.float64))
    for unroll in (jaxrnn.unroll, jaxrnn.unroll_reference):
        actual = vjp(problem, unroll, cotangents)
        assert_same(cast(actual, jnp.float64), exact, 3 * float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_sums_over_time_run_in_float32(cell, dtype):
    """1 added to 2/eps is lost in 16 bits, within a chunk of steps and from chunk to chunk.

    In a network that forgets at every step, all steps are alike: one cotangent of 2 and many that
    add up to 2, past that large number in either direction, have the same gradient. A sum that is
    rounded to 16 bits on its way gets 0 or 1 times it.
    """
    T, eps = 64, float(jnp.finfo(dtype).eps)
    one, many = np.zeros((2, T, 1))
    one[T // 2] = 2
    # not the first step: it alone reads the initial state
    many[[1, 2, T // 2, T - 2, T - 1], 0] = 2 / eps, 1, -4 / eps, 1, 2 / eps

    problem = make_problem(cell, T=T, batch=(), I=1, H=1, dtype=dtype)
    params = problem.params._replace(w_hh=jnp.zeros_like(problem.params.w_hh))
    if cell is not jaxrnn.ELMAN:
        # the second block: the LSTM's forget gate, the GRU's update gate
        params = params._replace(b=params.b.at[1].set(-40))
    xs = jnp.ones_like(problem.xs)

    @jax.jit
    def gradient(dhs):
        _, pull = jax.vjp(lambda params: jaxrnn.unroll(cell, params, xs)[1], params)
        return pull(dhs)

    assert_same(gradient(jnp.asarray(many, dtype)), gradient(jnp.asarray(one, dtype)), eps)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_sums_over_the_batch_run_in_float32(dtype):
    """The readout's: dW_y and db_y are sums over every leading axis."""
    large = 2 / float(jnp.finfo(dtype).eps)
    dys = np.zeros((4, 16, 1))
    dys[0, 0], dys[1:3, 3:6], dys[3, 3] = large, 1, -large
    params = jaxrnn.AffineParams(w=jnp.ones((1, 1), dtype), b=jnp.zeros(1, dtype))
    hs = jnp.ones((4, 16, 1), dtype)
    _, pull = jax.vjp(jaxrnn.affine, params, hs)
    dparams, dhs = pull(jnp.asarray(dys, dtype))
    assert dparams.w.item() == dparams.b.item() == 6
    assert {leaf.dtype for leaf in (*dparams, dhs)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_losses_of_sixteen_bits_are_float32_means(dtype):
    """4096 equal losses add up to more than 16 bits can count one by one."""
    logits = jnp.zeros((4096, 2), dtype)
    labels = jnp.zeros(4096, jnp.int32)
    for loss_fn, expected in (
        (lambda y: jaxrnn.softmax_cross_entropy(y, labels), np.log(2)),
        (lambda y: jaxrnn.squared_error(y, jnp.ones_like(y)), 1.0),
    ):
        loss, dlogits = jax.value_and_grad(loss_fn)(logits)
        assert loss.dtype == jnp.float32
        assert dlogits.dtype == dtype
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def sum_of_squares(hs):
    return jnp.sum(jnp.square(hs.astype(accumulation_dtype(hs.dtype))))


@functools.cache
def gradients_under_every_transformation(cell, dtype):
    """Of one small problem, in float64 whatever they were computed in."""
    problem = make_problem(cell, T=4, batch=(2,), I=2, H=3)

    def loss(params, xs):
        return sum_of_squares(jaxrnn.unroll(cell, params, xs)[1])

    def segments(params, xs):
        def body(state, segment):
            return jaxrnn.unroll(cell, params, segment, state)

        state = cell.initial_state(params, xs.shape[1:-1])
        _, hs = jax.lax.scan(body, state, xs.reshape(2, 2, *xs.shape[1:]))
        return sum_of_squares(hs)

    @jax.jit
    def gradients(params, xs):
        grad = jax.grad(loss, argnums=(0, 1))
        of_rows, _ = jax.vmap(grad, in_axes=(None, 1))(params, xs)
        population = jax.tree.map(lambda w: jnp.stack([w, w]), params)
        return {
            "rows": grad(params, xs),
            "no batch axis": grad(params, xs[:, 0]),
            "vmap over rows": jax.tree.map(lambda g: g.astype(jnp.float32).sum(0), of_rows),
            "vmap over params": jax.vmap(grad, in_axes=(0, None))(population, xs[:, 0]),
            "remat": jax.grad(jax.checkpoint(loss))(params, xs),
            "scan": jax.grad(segments)(params, xs),
        }

    arguments = jax.tree.map(lambda a: a.astype(dtype), (problem.params, problem.xs))
    return jax.tree.map(lambda g: g.astype(jnp.float64), gradients(*arguments))


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16, jnp.float16],
    ids=lambda dtype: dtype.__name__,
)
def test_every_dtype_has_its_gradient_under_every_transformation(cell, dtype):
    """Of rows without a batch axis, too, whose products XLA:CPU once refused under `jax.vmap`."""
    narrow, wide = (gradients_under_every_transformation(cell, d) for d in (dtype, jnp.float64))
    assert_same(narrow, wide, 2**6 * float(jnp.finfo(dtype).eps))
