"""The leaky rate network: where it is another cell, its leak, its noise, its mask, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_rule_equals_autodiff, assert_same, make_problem, vjp

import jaxrnn
from jaxrnn import ElmanParams, LeakyParams
from jaxrnn.cells import Drawn
from jaxrnn.initializers import chrono
from jaxrnn.testing import check_cell

T, B, I, H = 6, 3, 3, 4
MASK = jnp.asarray(np.random.default_rng(9).integers(-1, 2, (H, H)), jnp.float64)
SOFTPLUS = (jax.nn.softplus, lambda h: -jnp.expm1(-h))


PROBLEM = make_problem(jaxrnn.ELMAN, T, (B,), I, H)
COTANGENTS = jax.tree.map(jnp.cos, PROBLEM.outputs())


def values_and_gradients(cell, problem, params, **options):
    """Outputs, and gradients of params, inputs, initial state and consts."""
    problem = problem._replace(cell=cell, params=params)
    return vjp(problem, jaxrnn.unroll, cotangents=COTANGENTS, **options)


def test_the_same_arguments_give_the_same_cell():
    assert jaxrnn.leaky() is jaxrnn.leaky("tanh", leak=None, noise=0, masked=False)
    assert jaxrnn.leaky(leak=1) is jaxrnn.leaky(leak=1.0)
    assert jaxrnn.leaky(SOFTPLUS) is jaxrnn.leaky(activation=SOFTPLUS)
    cells = [
        jaxrnn.leaky(),
        jaxrnn.leaky("relu", leak=0.2),
        jaxrnn.leaky(noise=0.1),
        jaxrnn.leaky("identity", leak=1, masked=True),
    ]
    assert [cell.name for cell in cells] == [
        "LEAKY tanh, learned leak",
        "LEAKY relu, leak 0.2",
        "LEAKY tanh, learned leak, noise 0.1",
        "LEAKY identity, leak 1, masked",
    ]


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
def test_a_leak_of_one_is_the_elman_network(activation):
    expected = values_and_gradients(jaxrnn.elman(activation), PROBLEM, PROBLEM.params)
    found = values_and_gradients(jaxrnn.leaky(activation, leak=1), PROBLEM, PROBLEM.params)
    assert_same(found, expected)
    learned = LeakyParams(*PROBLEM.params, leak=jnp.full(H, 1e4))
    outputs, (dparams, *rest) = values_and_gradients(jaxrnn.leaky(activation), PROBLEM, learned)
    assert_same((outputs, (ElmanParams(*dparams[:3]), *rest)), expected)
    assert not jnp.any(dparams.leak)


def test_a_learned_leak_of_one_value_is_the_fixed_one():
    fixed = values_and_gradients(jaxrnn.leaky(leak=0.2), PROBLEM, PROBLEM.params)
    params = LeakyParams(*PROBLEM.params, leak=jnp.full(H, -jnp.log(4.0)))
    outputs, (dparams, *rest) = values_and_gradients(jaxrnn.leaky(), PROBLEM, params)
    assert_same((outputs, (ElmanParams(*dparams[:3]), *rest)), fixed)


@pytest.mark.parametrize("leak", [-1e4, -40.0])
def test_a_leak_that_is_shut_keeps_the_state(leak):
    params = LeakyParams(*PROBLEM.params, leak=jnp.full(H, leak))
    problem = PROBLEM._replace(cell=jaxrnn.leaky(), params=params)
    assert_same(problem.outputs()[0].h, problem.initial_state.h, 1e-15)


def test_without_recurrence_a_step_of_the_input_is_answered_exponentially():
    """``h_t = f(x) (1 - (1 - α)^t)``, the filter of one pole."""
    params = PROBLEM.params._replace(w_hh=jnp.zeros((H, H)))
    x = jnp.ones((20, I))
    _, hs = jaxrnn.unroll(jaxrnn.leaky("relu", leak=0.1), params, x)
    level = jnp.maximum(x[0] @ params.w_ih + params.b, 0)
    rise = 1 - 0.9 ** np.arange(1, 21)
    assert_same(hs, jnp.outer(rise, level))


def test_the_leak_that_a_learned_unit_has_left_is_exact():
    """1 - α of 1e-13 in float32, where a subtraction would leave 0."""
    params = LeakyParams(*PROBLEM.params, leak=jnp.full(H, 30.0))
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    params = params._replace(w_hh=0 * params.w_hh)

    def final(h):
        state = jaxrnn.ElmanState(h=h)
        return jaxrnn.unroll(jaxrnn.leaky(), params, jnp.ones((1, I), jnp.float32), state)[0].h

    h = jnp.ones(H, jnp.float32)
    np.testing.assert_allclose(jax.vjp(final, h)[1](h)[0], 1 / (1 + np.exp(30.0)), rtol=1e-6)


def test_a_pair_of_functions_has_the_gradients_of_autodiff():
    cell = jaxrnn.leaky(SOFTPLUS, noise=0.3, masked=True)
    problem = make_problem(cell, T, (B,), I, H, lengths=True, consts=MASK, key=jax.random.key(3))
    assert_rule_equals_autodiff(problem)
    assert cell.slopes is None


@pytest.mark.slow
def test_check_cell_accepts_all_of_it_at_once():
    def mask(key, batch_shape, input_size, hidden_size, dtype):
        return jax.random.normal(key, (hidden_size, hidden_size), dtype)

    check_cell(jaxrnn.leaky("relu", noise=0.2, masked=True), make_consts=mask)


def test_a_mask_is_a_factor_of_the_weight():
    """Values and gradients, by the chain rule of ``mask * w_hh`` outside of the cell."""
    cell, masked = jaxrnn.leaky(leak=0.3), jaxrnn.leaky(leak=0.3, masked=True)
    problem = PROBLEM._replace(consts=MASK)
    outputs, (dparams, _, _, dmask) = values_and_gradients(masked, problem, PROBLEM.params)

    def outside(params, mask):
        params = params._replace(w_hh=mask * params.w_hh)
        return PROBLEM._replace(cell=cell, params=params).outputs()

    expected, pull = jax.vjp(outside, PROBLEM.params, MASK)
    assert_same((outputs, (dparams, dmask)), (expected, pull(COTANGENTS)))
    # a connection that is masked counts for nothing, whatever its weight
    assert not jnp.any(dparams.w_hh[MASK == 0])
    assert jnp.all(dparams.w_hh[MASK != 0] != 0)
    other = PROBLEM.params._replace(w_hh=jnp.where(MASK == 0, 10.0, PROBLEM.params.w_hh))
    assert_same(values_and_gradients(masked, problem, other)[0], outputs)


AROUND = {
    "dropout": lambda cell: jaxrnn.recurrent_dropout(cell, 0.5),
    "heads": lambda cell: jaxrnn.heads(cell, 2),
    "dropout of heads": lambda cell: jaxrnn.recurrent_dropout(jaxrnn.heads(cell, 2), 0.5),
    "heads of dropout": lambda cell: jaxrnn.heads(jaxrnn.recurrent_dropout(cell, 0.5), 2),
    "zoneout": lambda cell: jaxrnn.zoneout(cell, h=0.4),
    "dtypes": lambda cell: jaxrnn.with_dtypes(cell, compute="float64", carry="float64"),
}


@pytest.mark.parametrize("around", AROUND)
def test_under_a_transform_a_mask_is_a_factor_of_the_weight_too(around):
    """A mask has the shape of the weight: of heads, four axes."""
    cell, masked = (AROUND[around](jaxrnn.leaky(noise=0.1, masked=m)) for m in (False, True))
    problem = make_problem(cell, T, (B,), I, H, key=jax.random.key(3))
    weight = problem.params.w_hh
    mask = jnp.asarray(np.random.default_rng(9).integers(-1, 2, weight.shape), jnp.float64)
    found = values_and_gradients(masked, problem._replace(consts=mask), problem.params)

    def outside(params, xs, initial_state, mask):
        params = params._replace(w_hh=mask * params.w_hh)
        return problem._replace(params=params, xs=xs, initial_state=initial_state).outputs()

    arrays = problem.params, problem.xs, problem.initial_state, mask
    expected, pull = jax.vjp(outside, *arrays)
    assert_same(found, (expected, pull(COTANGENTS)))


def test_products_of_few_bits_have_the_gradient_of_a_mask_in_its_own_dtype():
    cell = jaxrnn.leaky(leak=0.3, masked=True)

    def gradient(cell):
        def loss(mask):
            _, hs = jaxrnn.unroll(cell, PROBLEM.params, PROBLEM.xs, consts=mask)
            return jnp.sum(hs**2).astype(jnp.float64)

        return jax.grad(loss)(MASK)

    assert_same(gradient(jaxrnn.with_dtypes(cell, compute="bfloat16")), gradient(cell), 0.05)


def test_a_masked_cell_is_refused_as_a_layer_which_has_no_mask_for_it():
    for cell in (jaxrnn.leaky(masked=True), jaxrnn.leaky(noise=0.1, masked=True)):
        for made in (cell, jaxrnn.zoneout(cell, h=0.1), jaxrnn.heads(cell, 2)):
            with pytest.raises(
                ValueError, match="a layer, because a network has none for it; LEAKY"
            ):
                jaxrnn.layer(made, H)
    with pytest.raises(TypeError, match="`make_consts` must be a function"):
        check_cell(jaxrnn.leaky(noise=0.1, masked=True))


@pytest.mark.parametrize("dtype", [bool, jnp.int32])
def test_a_mask_of_booleans_or_integers_has_no_gradient(dtype):
    cell = jaxrnn.leaky(leak=0.3, masked=True)
    floating = PROBLEM._replace(consts=MASK)
    if dtype is bool:
        floating = floating._replace(consts=jnp.abs(MASK))
    expected = values_and_gradients(cell, floating, PROBLEM.params)

    def outputs(*arguments):
        return jaxrnn.unroll(cell, *arguments, consts=floating.consts.astype(dtype))

    found, pull = jax.vjp(outputs, PROBLEM.params, PROBLEM.xs, PROBLEM.initial_state)
    assert_same((found, pull(COTANGENTS)), (expected[0], expected[1][:3]))


def test_a_mask_of_signs_with_weights_that_are_not_negative_obeys_dales_law():
    """A unit that is more active excites all others, or inhibits all others."""
    cell = jaxrnn.leaky("relu", leak=0.5, masked=True)
    sign = jnp.array([1.0, 1.0, 1.0, -1.0])
    mask = sign[:, None] * (1 - jnp.eye(H))
    params = PROBLEM.params._replace(w_hh=jnp.abs(PROBLEM.params.w_hh), b=jnp.full(H, 5.0))

    def after(h):
        state = jaxrnn.ElmanState(h=h)
        return jaxrnn.unroll(cell, params, jnp.zeros((1, I)), state, consts=mask)[0].h

    # [to, from], beside the leak's own path
    jacobian = jax.jacrev(after)(jnp.ones(H)) - 0.5 * jnp.eye(H)
    assert jnp.all(jacobian * sign[None] >= 0)
    assert jnp.all(jnp.diag(jacobian) == 0)
    assert jnp.any(jacobian > 0)
    assert jnp.any(jacobian < 0)


def test_noise_has_its_deviation_at_every_step_and_unit_and_none_without_a_key():
    cell = jaxrnn.leaky("identity", leak=1, noise=0.3)
    params = jax.tree.map(jnp.zeros_like, PROBLEM.params)
    xs = jnp.zeros((400, 50, I))
    _, hs = jaxrnn.unroll(cell, params, xs, key=jax.random.key(0))
    assert abs(jnp.std(hs) - 0.3) < 0.005
    assert abs(jnp.mean(hs)) < 0.005
    for axis in range(3):
        before, after = (jnp.moveaxis(hs, axis, 0)[part] for part in (slice(-1), slice(1, None)))
        assert abs(jnp.mean(before * after)) < 0.002
    _, again = jaxrnn.unroll(cell, params, xs, key=jax.random.key(0))
    assert_same(hs, again, 0)
    assert not jnp.any(jaxrnn.unroll(cell, params, xs)[1])


def test_the_noise_of_a_leak_is_within_the_activation():
    """One step from zero: ``α f(noise)``."""
    cell = jaxrnn.leaky("relu", leak=0.25, noise=2.0)
    params = jax.tree.map(jnp.zeros_like, PROBLEM.params)
    key, xs = jax.random.key(1), jnp.zeros((1, B, I))
    _, drawn = cell.draw(key, params, 1, (B,))
    _, hs = jaxrnn.unroll(cell, params, xs, key=key)
    assert_same(hs, 0.25 * jnp.maximum(drawn, 0))
    # and the step takes it beside x
    _, h = cell.step(params, cell.initial_state(params, (B,)), Drawn(xs[0], drawn[0]))
    assert_same(h, hs[0])


def test_units_are_drawn_with_many_time_constants():
    cell = jaxrnn.leaky()
    params = cell.init(jax.random.key(0), I, 64, dtype=jnp.float64, keep_bias=chrono(100))
    steps = 1 + jnp.exp(-params.leak)
    assert 1.9 < steps.min() < 15
    assert 80 < steps.max() < 101
    one = cell.init(jax.random.key(0), I, H, dtype=jnp.float64, keep_bias=np.log(9))
    np.testing.assert_allclose(jax.nn.sigmoid(one.leak), 0.1)
    assert not jnp.any(cell.init(jax.random.key(0), I, H).leak)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_large_pre_activations_stay_finite(activation, dtype):
    cell = jaxrnn.leaky(activation)
    problem = make_problem(cell, T, (B,), I, H, dtype=dtype)
    arguments = problem.params, 1e4 * problem.xs, problem.initial_state

    def loss(*arguments):
        return jnp.sum(jaxrnn.unroll(cell, *arguments)[1])

    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found))


WRONG = {
    "activation": (dict(activation="gelu"), ValueError, "`activation` must be 'tanh', 'relu'"),
    "leak of zero": (dict(leak=0.0), ValueError, "`leak` must be above 0 and at most 1; got 0.0"),
    "leak above one": (dict(leak=1.5), ValueError, "at most 1; got 1.5"),
    "leak that is NaN": (dict(leak=float("nan")), ValueError, "at most 1; got nan"),
    "leak that is an array": (dict(leak=jnp.ones(H)), TypeError, "or None to learn it; got float"),
    "leak that is a flag": (dict(leak=True), TypeError, "or None to learn it; got bool True"),
    "negative noise": (dict(noise=-1.0), ValueError, "`noise` must be at least 0; got -1.0"),
    "noise without end": (dict(noise=float("inf")), ValueError, "must be at least 0; got inf"),
    "masked by an array": (dict(masked=MASK), TypeError, "`masked` must be True or False"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_leaky_network_is_refused(name):
    arguments, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        jaxrnn.leaky(**arguments)


def test_a_mask_that_is_missing_or_of_another_shape_is_refused():
    cell = jaxrnn.leaky(leak=0.1, masked=True)
    problem = PROBLEM._replace(cell=cell)
    for mask, got in ((None, "None"), (MASK[0], r"float64\[4\]")):
        message = rf"`consts` must be the mask of LEAKY tanh.*\[H, H\], \(4, 4\); got .*{got}"
        with pytest.raises(ValueError, match=message):
            problem._replace(consts=mask).outputs()
    with pytest.raises(ValueError, match="takes none"):
        problem._replace(cell=jaxrnn.leaky(leak=0.1), consts=MASK).outputs()
