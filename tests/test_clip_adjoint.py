"""A limited adjoint: its loop written in NumPy, second derivatives, adjoints that explode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, inputs_of, make_problem, random_tree, vjp

import jaxrnn
from jaxrnn import ELMAN, LSTM
from jaxrnn.testing import relative_differences

I, H = 3, 4
ROWS = 3


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm_adjoint_loop(params, xs, state, dhs, dfinal, limited):
    """``(dparams, dxs, dinitial)`` of an LSTM, with ``limited(dh, dc)`` between two steps."""
    w_ih, w_hh, b = params
    (h, c), kept = state, []
    for x in xs:
        i, f, g, o = np.split(x @ w_ih + h @ w_hh + b, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        h_before, c_before = h, c
        c = f * c + i * g
        h = o * np.tanh(c)
        kept.append((x, h_before, c_before, i, f, g, o, c))
    dh, dc = dfinal
    dw_ih, dw_hh, db, dxs = np.zeros_like(w_ih), np.zeros_like(w_hh), np.zeros_like(b), []
    for dh_t, (x, h_before, c_before, i, f, g, o, c) in reversed(list(zip(dhs, kept, strict=True))):
        dh = dh + dh_t
        dc = dc + dh * o * (1 - np.tanh(c) ** 2)
        das = dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g**2)
        da = np.concatenate([*das, dh * np.tanh(c) * o * (1 - o)], axis=-1)
        dw_ih, dw_hh, db = dw_ih + x.T @ da, dw_hh + h_before.T @ da, db + da.sum(0)
        dxs.insert(0, da @ w_ih.T)
        dh, dc = limited(da @ w_hh.T, dc * f)
    return (dw_ih, dw_hh, db), np.stack(dxs), (dh, dc)


def by_value(dh, dc, *, limit):
    return np.clip(dh, -limit, limit), np.clip(dc, -limit, limit)


def by_norm(dh, dc, *, limit, axes=-1):
    square = (dh**2).sum(axes, keepdims=True) + (dc**2).sum(axes, keepdims=True)
    scale = np.minimum(1, limit / np.sqrt(square))
    return scale * dh, scale * dc


@pytest.mark.parametrize(
    ("cell", "limited"),
    [
        (jaxrnn.clip_adjoint(LSTM, value=0.2), functools.partial(by_value, limit=0.2)),
        (jaxrnn.clip_adjoint(LSTM, norm=0.5), functools.partial(by_norm, limit=0.5)),
    ],
    ids=["value", "norm"],
)
def test_the_rule_is_the_loop_of_the_formula(cell, limited):
    """Each row by itself, h and c together, before the readers of h add theirs."""
    problem = make_problem(cell, 5, (ROWS,), I, H)
    arrays = problem.params, problem.xs, problem.initial_state
    dfinal, dhs = random_tree(jax.eval_shape(problem.outputs), seed=3)
    _, found = vjp(problem, jaxrnn.unroll, (dfinal, dhs))

    def loop(limited):
        dparams, dxs, (dh, dc) = lstm_adjoint_loop(
            *jax.tree.map(np.asarray, (*arrays, dhs, dfinal)), limited
        )
        made = type(problem.params)(*dparams), dxs, type(problem.initial_state)(dh, dc), None
        return jax.tree.map(jnp.asarray, made)

    assert_same(found, loop(limited))
    # the loop tells other limits apart
    for other in (
        lambda dh, dc: (dh, dc),
        functools.partial(by_norm, limit=0.5, axes=None),
        lambda dh, dc: by_norm(dh, 0 * dc, limit=0.5)[:1] + by_norm(0 * dh, dc, limit=0.5)[1:],
    ):
        assert max(relative_differences(found, loop(other)).values()) > 1e-2


KEY = jax.random.key(2)
AROUND = {
    "alone": (lambda cell: cell, None),
    "zoneout": (lambda cell: jaxrnn.zoneout(cell, h=0.3, c=0.2), KEY),
    "dropout": (lambda cell: jaxrnn.recurrent_dropout(cell, 0.4), KEY),
    "clipped": (lambda cell: jaxrnn.clipped(cell, 0.4), None),
}
SECOND = [
    ("alone", {"value": 0.1}),
    ("alone", {"norm": 0.3}),
    ("zoneout", {"norm": 0.3}),
    ("dropout", {"value": 0.1}),
    ("clipped", {"norm": 0.3}),
    pytest.param("alone", {"value": 1e6}, marks=pytest.mark.slow),
    pytest.param("alone", {"norm": 1e6}, marks=pytest.mark.slow),
    pytest.param("zoneout", {"value": 0.1}, marks=pytest.mark.slow),
    pytest.param("dropout", {"norm": 0.3}, marks=pytest.mark.slow),
    pytest.param("clipped", {"value": 0.1}, marks=pytest.mark.slow),
]


def squares(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("around", "limit"), SECOND)
def test_second_derivatives_are_those_of_the_limited_gradient(around, limit):
    """By autodiff of the recurrence, and by differences of the gradient itself."""
    make, key = AROUND[around]
    problem = make_problem(make(jaxrnn.clip_adjoint(LSTM, **limit)), 3, (2,), 2, 3, key=key)
    inputs = inputs_of(problem)[:3]

    def gradient(unroll, inputs, cell=problem.cell):
        def loss(params, xs, initial_state):
            these = problem._replace(params=params, xs=xs, initial_state=initial_state, cell=cell)
            return squares(jax.tree.map(jnp.sin, these.outputs(unroll)))

        return jax.grad(loss, argnums=(0, 1, 2))(*inputs)

    def penalty(unroll):
        return jax.jit(jax.value_and_grad(lambda inputs: squares(gradient(unroll, inputs))))

    run = penalty(jaxrnn.unroll)
    value, found = run(inputs)
    assert_same((value, found), penalty(jaxrnn.unroll_reference)(inputs))

    direction, step = random_tree(inputs, seed=6), 1e-6
    ahead, behind = (
        run(jax.tree.map(lambda a, d, s=s: a + s * step * d, inputs, direction))[0] for s in (1, -1)
    )
    slope = sum(map(jnp.vdot, *map(jax.tree.leaves, (found, direction))))
    assert abs((ahead - behind) / (2 * step) - slope) < 1e-6 * abs(slope)

    free = squares(gradient(jaxrnn.unroll, inputs, make(LSTM)))
    assert (abs(free - value) > 1e-3 * free) == (1e6 not in limit.values())


def test_the_limited_gradient_has_derivatives_forwards():
    """Forward mode over the rule, against reverse mode over it."""
    problem = make_problem(jaxrnn.clip_adjoint(ELMAN, norm=0.3), 3, (2,), 2, 3)

    def gradient(xs):
        return jax.grad(lambda xs: squares(problem._replace(xs=xs).outputs()))(xs)

    direction, weights = random_tree((problem.xs, problem.xs), seed=6)
    _, forwards = jax.jit(lambda d: jax.jvp(gradient, (problem.xs,), (d,)))(direction)
    (back,) = jax.jit(lambda w: jax.vjp(gradient, problem.xs)[1](w))(weights)
    assert_same(jnp.vdot(forwards, weights), jnp.vdot(direction, back))


def passed_back(adjoint, cell):
    """Rows of an adjoint after one step of an Elman network that passes them on as they are."""
    params = ELMAN.init(jax.random.key(0), 1, H, dtype=adjoint.dtype)
    params = params._replace(w_hh=jnp.eye(H, dtype=adjoint.dtype))
    xs = jnp.zeros((1, len(adjoint), 1), adjoint.dtype)

    def final(h):
        return jaxrnn.unroll(cell, params, xs, jaxrnn.ElmanState(h=h))[0].h

    return jax.vjp(final, jnp.zeros_like(adjoint))[1](adjoint)[0]


@pytest.mark.parametrize("limit", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_an_adjoint_is_limited_however_large_it_is(dtype, limit):
    """Up to the largest number of the dtype, whose squares and sums of squares are infinite."""
    largest = float(jnp.finfo(dtype).max)
    rows = np.array([[3.3, -4.1, 1.7, 0.9], [0.5, 0.5, -0.5, 0.5], [0, 0, 0, 0], [1, 0, 0, -1]])
    sizes = np.array([largest / 8, largest / 2, 1, 1e-3 * limit])[:, None]
    adjoint = jnp.asarray(rows * sizes, dtype)
    found = passed_back(adjoint, jaxrnn.clip_adjoint(ELMAN, norm=limit))
    assert found.dtype == dtype
    # in units of the largest entry, whose squares are finite
    exact = np.asarray(adjoint, np.float64) / sizes
    norms = np.sqrt((exact**2).sum(-1, keepdims=True))
    expected = exact * np.where(norms > limit / sizes, limit / np.maximum(norms, 1e-9), sizes)
    error = np.abs(np.asarray(found, np.float64) - expected)
    # numbers of 16 bits are rounded once, at the end
    roundings = 0.51 if dtype in ("float16", "bfloat16") else 4
    assert (error <= roundings * float(jnp.finfo(dtype).eps) * np.abs(expected)).all()
    # shorter rows are as they were
    assert (found[2:] == adjoint[2:]).all()


def test_the_slope_of_the_limit_is_finite_where_the_adjoint_is_zero_or_along_one_unit():
    adjoint = jnp.asarray([[0, 0, 0, 0], [0, 1e-30, 0, 0], [0, 7, 0, 0]], jnp.float32)
    direction = jnp.ones_like(adjoint)
    cell = jaxrnn.clip_adjoint(ELMAN, norm=5.0)
    _, slope = jax.vjp(lambda adjoint: passed_back(adjoint, cell), adjoint)
    # below the limit the identity; beyond, 5 / 7 of what is orthogonal to the row
    expected = np.ones((3, H), np.float32)
    expected[2] = [5 / 7, 0, 5 / 7, 5 / 7]
    np.testing.assert_allclose(slope(direction)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_large_limit_changes_nothing():
    problem = make_problem(LSTM, 6, (2,), I, H, lengths=True)

    def gradient(cell):
        def loss(xs):
            return jnp.sum(problem._replace(cell=cell, xs=xs).outputs()[1] ** 2)

        return jax.grad(loss)(problem.xs)

    for limit in ({"value": 1e6}, {"norm": 1e6}):
        assert_same(gradient(jaxrnn.clip_adjoint(LSTM, **limit)), gradient(LSTM))


def test_a_clipped_adjoint_does_not_explode():
    """Of a recurrence that grows tenfold at every step, the gradient stays below the limit."""
    cell = jaxrnn.clip_adjoint(ELMAN, norm=1.0)
    params = ELMAN.init(jax.random.key(0), 1, H, dtype=jnp.float64)
    params = params._replace(w_hh=10 * jnp.eye(H))
    state = jaxrnn.ElmanState(h=jnp.zeros(H))

    def loss(state, cell):
        return jnp.sum(jaxrnn.unroll(cell, params, 1e-9 * jnp.ones((5, 1)), state)[0].h)

    free, limited = (jax.grad(loss)(state, each) for each in (ELMAN, cell))
    assert jnp.linalg.norm(free.h) > 1e4
    assert jnp.linalg.norm(limited.h) <= 1 + 1e-12
    direction = free.h / jnp.linalg.norm(free.h)
    assert_same(limited.h, direction, 1e-6)
