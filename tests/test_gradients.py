"""The handwritten rule is the derivative: of every output, for every input, over the whole grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cells import MASKED_ELMAN
from support.problems import (
    assert_rule_equals_autodiff,
    assert_same,
    make_problem,
    random_tree,
    vjp,
)

import jaxrnn
from jaxrnn.plan import TUNING

FLAGS = [
    dict(zip(("lengths", "resets", "reverse"), values, strict=True))
    for values in itertools.product((False, True), repeat=3)
]
PLAIN, ALL, ALL_REVERSED = FLAGS[0], FLAGS[6], FLAGS[7]

# 37 steps make two chunks of 16 and a rest of 5
SHAPES = {
    "no_steps": dict(T=0, batch=(2,)),
    "one_step": dict(T=1, batch=(2,)),
    "no_rows": dict(T=4, batch=(0,)),
    "one_row": dict(T=5, batch=(1,)),
    "no_batch_axis": dict(T=5, batch=()),
    "two_batch_axes": dict(T=5, batch=(2, 3)),
    "smallest": dict(T=3, batch=(1,), I=1, H=1),
    "many_chunks": dict(T=37, batch=(3,), I=2, H=3),
}
TOLERANCE = {jnp.float64: 1e-12, jnp.float32: 1e-5}
float64_and_slowly_float32 = pytest.mark.parametrize(
    "dtype",
    [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)],
    ids=["float64", "float32"],
)


def describe(flags):
    return "_".join(name for name, on in flags.items() if on) or "plain"


@float64_and_slowly_float32
@pytest.mark.parametrize("flags", FLAGS, ids=describe)
def test_rule_equals_autodiff(cell, flags, dtype):
    problem = make_problem(cell, T=7, batch=(3,), I=3, H=5, dtype=dtype, **flags)
    assert_rule_equals_autodiff(problem, TOLERANCE[dtype])


@float64_and_slowly_float32
@pytest.mark.parametrize(
    "flags", [pytest.param(PLAIN, marks=pytest.mark.slow), ALL, ALL_REVERSED], ids=describe
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rule_equals_autodiff_at_every_shape(cell, shape, flags, dtype):
    problem = make_problem(cell, **shape, dtype=dtype, **flags)
    assert_rule_equals_autodiff(problem, TOLERANCE[dtype])


@pytest.mark.parametrize("flags", [PLAIN, ALL, ALL_REVERSED], ids=describe)
def test_what_is_kept_changes_no_value_and_no_gradient(cell, flags):
    problem = make_problem(cell, **SHAPES["many_chunks"], **flags)
    gates, states, carries = (
        vjp(problem, jaxrnn.unroll, return_states=True, residuals=residuals)
        for residuals in ("gates", "states", "carries")
    )
    assert_same(gates, states)
    assert_same(carries, states)


@pytest.mark.parametrize("flags", [PLAIN, ALL, ALL_REVERSED], ids=describe)
@pytest.mark.parametrize("kept", ["states", pytest.param("gates", marks=pytest.mark.slow)])
def test_a_forward_pass_in_one_chunk_changes_no_value_and_no_gradient(
    cell, kept, flags, monkeypatch
):
    """As by default where its inputs are small, and the backward pass has several chunks."""
    limits = dict(whole_entries=0, whole_limit=0, wide=0 if kept == "gates" else 100)
    monkeypatch.setitem(TUNING, "cpu", TUNING["cpu"]._replace(**limits))
    problem = make_problem(cell, **SHAPES["many_chunks"], **flags)
    assert_rule_equals_autodiff(problem)


@pytest.mark.parametrize("T", [31, 33, 64, 80])
def test_chunks_need_not_divide_the_time(T):
    assert_rule_equals_autodiff(make_problem(jaxrnn.LSTM, T=T, batch=(2,), **ALL))


@pytest.mark.parametrize("flags", [PLAIN, ALL_REVERSED], ids=describe)
def test_each_output_alone_has_the_right_gradient(cell, flags):
    """A cotangent of everything at once can hide one that is dropped behind one that is not."""
    problem = make_problem(cell, T=6, **flags)

    def gradients(unroll):
        def f(*inputs):
            params, xs, initial_state = inputs
            return problem._replace(params=params, xs=xs, initial_state=initial_state).outputs(
                unroll, return_states=True
            )

        outputs, pull = jax.vjp(f, problem.params, problem.xs, problem.initial_state)
        leaves, structure = jax.tree.flatten(random_tree(outputs))
        alone = [
            jnp.stack([leaf if i == j else 0 * leaf for j in range(len(leaves))])
            for i, leaf in enumerate(leaves)
        ]
        return jax.vmap(pull)(jax.tree.unflatten(structure, alone))

    actual = jax.jit(lambda: gradients(jaxrnn.unroll))()
    expected = jax.jit(lambda: gradients(jaxrnn.unroll_reference))()
    for output in range(len(jax.tree.leaves(actual)[0])):
        assert_same(*(jax.tree.map(lambda g, i=output: g[i], tree) for tree in (actual, expected)))


@pytest.mark.parametrize("flags", [PLAIN, ALL, ALL_REVERSED], ids=describe)
@pytest.mark.parametrize("residuals", ["gates", "states", "carries"])
def test_consts_have_gradients(residuals, flags):
    rng = np.random.default_rng(0)
    consts = {"mask": jnp.asarray(rng.random((2, 4))), "name": jnp.int32(7)}
    problem = make_problem(MASKED_ELMAN, T=37, batch=(2,), consts=consts, **flags)
    assert_rule_equals_autodiff(problem, residuals=residuals)
    _, (*_, dconsts) = vjp(problem, jaxrnn.unroll)
    assert np.all(dconsts["mask"] != 0)
    assert dconsts["name"].dtype == jax.dtypes.float0


def test_finite_differences_agree(cell):
    """Against the definition of the derivative, which shares nothing with either gradient."""
    problem = make_problem(cell, T=5, batch=(2,), I=2, H=3, lengths=True, resets=True)
    inputs = (problem.params, problem.xs, problem.initial_state)
    direction = random_tree(inputs, seed=11)
    weights = random_tree(jax.eval_shape(problem.outputs), seed=12)

    @jax.jit
    def loss(inputs):
        params, xs, initial_state = inputs
        outputs = problem._replace(params=params, xs=xs, initial_state=initial_state).outputs()
        return sum(
            jnp.sum(a * w)
            for a, w in zip(jax.tree.leaves(outputs), jax.tree.leaves(weights), strict=True)
        )

    def along(step):
        return loss(jax.tree.map(lambda x, d: x + step * d, inputs, direction))

    step = 1e-3
    # fourth order: the error is about step^4, far below what a wrong term would make
    difference = (8 * (along(step) - along(-step)) - along(2 * step) + along(-2 * step)) / 12 / step
    gradient = jax.grad(loss)(inputs)
    derivative = sum(
        jnp.sum(g * d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(derivative, difference, rtol=1e-8)


@pytest.mark.parametrize("flags", [PLAIN, ALL, ALL_REVERSED], ids=describe)
def test_backpropagate_is_the_rule_with_its_steps_shown(cell, flags):
    problem = make_problem(cell, T=37, batch=(3,), **flags)
    outputs = jax.eval_shape(problem.outputs)
    dfinal, dhs = cotangents = random_tree(outputs, seed=5)
    shown = jaxrnn.diagnostics.backpropagate(
        cell, problem.params, problem.xs, dhs, dfinal, problem.initial_state, **problem.options
    )
    _, (dparams, dxs, dinitial, _) = vjp(problem, jaxrnn.unroll_reference, cotangents)
    assert_same((shown.params, shown.xs, shown.initial_state), (dparams, dxs, dinitial))

    # a state's adjoint is the gradient of what is added to that state right after its step
    def perturbed(nudges):
        def step(params, state, x, consts=None):
            x, nudge = x[..., :-4], x[..., -4:]
            state, _ = cell.step(params, state, x)
            state = state._replace(h=state.h + nudge)
            return state, state.h

        def expects(params):
            return cell.expects(params)._replace(x=jax.ShapeDtypeStruct((3 + 4,), jnp.float64))

        nudged = cell._replace(step=step, expects=expects)
        xs = jnp.concatenate([problem.xs, nudges], axis=-1)
        return problem._replace(cell=nudged, xs=xs).outputs(jaxrnn.unroll_reference)

    nudges = jnp.zeros_like(dhs)
    (expected,) = jax.jit(lambda: jax.vjp(perturbed, nudges)[1](cotangents))()
    assert_same(shown.states.h, expected)
