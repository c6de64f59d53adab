"""A cell from a step alone: the same engine, with the adjoint of each step derived by JAX."""

import functools

import jax
import jax.numpy as jnp
import pytest
from support.problems import assert_same, make_problem, random_tree, vjp
from support.programs import carries, equations, jaxprs_of
from support.user_cells import (
    NOISY_RATE,
    PROJECTED_LSTM,
    ProjectedParams,
    recurrent_dropout,
    zoneout,
)

import jaxrnn
from jaxrnn.testing import check_cell

T, B, I, H = 23, 3, 2, 5


def step_of(cell):
    """The cell's step as a user has it: without the library's checks."""
    return lambda params, state, x: cell.step(params, state, x)


@functools.cache
def from_step(cell):
    return jaxrnn.cell_from_step(
        step_of(cell), initial_state=cell.initial_state, init=cell.init, name=f"{cell.name}, a step"
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_step_of_a_cell_makes_the_cell(cell, reverse):
    problem = make_problem(
        cell, T=T, batch=(B,), I=I, H=H, lengths=True, resets=True, reverse=reverse
    )
    again = problem._replace(cell=from_step(cell))
    for residuals in ("states", "carries"):
        assert_same(
            vjp(again, jaxrnn.unroll, return_states=True, residuals=residuals),
            vjp(problem, jaxrnn.unroll, return_states=True, residuals=residuals),
        )


def test_the_same_step_makes_the_same_cell():
    step, start = step_of(jaxrnn.GRU), jaxrnn.GRU.initial_state
    one, other = (
        jaxrnn.cell_from_step(step, initial_state=start, x_ndim={"a": 1, "b": 0}) for _ in range(2)
    )
    assert one is other
    assert jaxrnn.cell_from_step(step, initial_state=start, x_ndim=0) is not one


def counting_step(params, state, x):
    """A counter, a vector and a matrix in the state; three inputs; a record as the output."""
    v, trace, count = state["v"], state["trace"], state["count"]
    mixed = jnp.tanh(v @ params["w"] + x["features"] @ params["u"] + x["scalar"][..., None])
    trace = 0.9 * trace + mixed[..., :, None] * x["image"]
    v = mixed + jnp.sum(trace, axis=-1) * params["gain"]
    state = {"v": v, "trace": trace, "count": count + 1}
    return state, {"rate": jnp.sin(v) + x["features"][..., :1], "count": count}


def counting_initial_state(params, batch_shape=()):
    return {
        "v": jnp.broadcast_to(params["v0"], (*batch_shape, H)),
        "trace": jnp.zeros((*batch_shape, H, 2), params["w"].dtype),
        "count": jnp.zeros(batch_shape, jnp.int32),
    }


COUNTING = jaxrnn.cell_from_step(
    counting_step,
    initial_state=counting_initial_state,
    x_ndim={"features": 1, "scalar": 0, "image": 2},
    name="COUNTING",
)


@functools.cache
def counting_problem():
    params = random_tree(
        {"w": jnp.zeros((H, H)), "u": jnp.zeros((I, H)), "v0": jnp.zeros(H), "gain": jnp.zeros(())}
    )
    params = jax.tree.map(lambda a: a / 3, params)
    like = {
        "features": jnp.zeros((T, B, I)),
        "scalar": jnp.zeros((T, B)),
        "image": jnp.zeros((T, B, H, 2)),
    }
    return params, random_tree(like, seed=1)


@pytest.mark.parametrize("residuals", ["gates", "states", "carries"])
def test_states_inputs_and_outputs_may_be_any_arrays(residuals):
    """Integers among them, which have no gradient; the output depends on params and input, too."""
    params, xs = counting_problem()
    rng = jax.random.key(3)
    resets, mask = (
        jax.random.bernoulli(k, p, (T, B))
        for k, p in zip(jax.random.split(rng), (0.2, 0.7), strict=True)
    )

    def run(unroll):
        def f(params, xs):
            final_state, outputs, states = unroll(
                COUNTING, params, xs, mask=mask, resets=resets, residuals=residuals,
                return_states=True,
            )  # fmt: skip
            counts = final_state.pop("count"), outputs.pop("count"), states.pop("count")
            return (final_state, outputs, states), counts

        def both(params, xs):
            outputs, pull, counts = jax.vjp(f, params, xs, has_aux=True)
            return outputs, pull(random_tree(outputs, seed=5)), counts

        return jax.jit(both)(params, xs)

    assert_same(run(jaxrnn.unroll), run(jaxrnn.unroll_reference))


def shapes_in(jaxpr):
    return {v.aval.shape for e in equations(jaxpr) for v in e.outvars}


def test_weights_are_not_stacked_over_time_and_loops_carry_the_state_alone():
    """`vmap` of a vjp would make a copy of each weight for every step: the control shows it."""
    cell, problem = from_step(jaxrnn.LSTM), make_problem(jaxrnn.LSTM, T=T, batch=(B,), I=I, H=H)

    def loss(params, xs):
        return jnp.sum(jaxrnn.unroll(cell, params, xs, residuals="states")[1])

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(problem.params, problem.xs).jaxpr
    stacked_weights = {(K, *w.shape) for w in problem.params for K in range(2, T + 1)}
    stacked_weights |= {(K, *w.shape[::-1]) for w in problem.params for K in range(2, T + 1)}
    assert not shapes_in(jaxpr) & stacked_weights - {(K, 4 * H) for K in range(T + 1)}
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    inner = [
        e for e in loops
        if not any(i.primitive.name == "scan" for j in jaxprs_of(e) for i in equations(j))
    ]  # fmt: skip
    for loop in inner:
        assert carries(loop) == [(B, H)] * 2
    products = [
        sum(e.primitive.name == "dot_general" for j in jaxprs_of(loop) for e in equations(j))
        for loop in inner
        if loop.params["reverse"]
    ]
    assert set(products) == {1}

    def naive(before, x):
        return jax.vjp(lambda s: cell.step(problem.params, s, x), before)[1]

    befores = jax.tree.map(lambda a: jnp.stack([a] * T), problem.initial_state)
    control = jax.make_jaxpr(lambda *a: jax.tree.leaves(jax.vmap(naive)(*a)))(befores, problem.xs)
    assert {v.aval.shape for v in control.jaxpr.outvars} & stacked_weights


@pytest.mark.parametrize("cell", [jaxrnn.LSTM, jaxrnn.GRU], ids=lambda cell: cell.name)
def test_a_derived_adjoint_of_gates_takes_at_most_six_tenths_of_the_temporaries_of_the_scan(cell):
    """At a shape of the benchmarks, of a whole training step, in the place of JAX's own adjoint.

    The scan of an Elman step keeps so little itself that the share is 0.5 to 0.6 there.
    """
    T, B, I, H = 512, 32, 64, 64
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H, dtype=jnp.float32))
    xs = jax.ShapeDtypeStruct((T, B, I), jnp.float32)

    def temporaries(unroll):
        def loss(params, xs):
            return jnp.mean(jnp.square(unroll(from_step(cell), params, xs)[1]))

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return step.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(jaxrnn.unroll) <= 0.6 * temporaries(jaxrnn.unroll_reference)


def test_second_derivatives_are_those_of_the_reference():
    params, xs = counting_problem()

    def curvature(unroll):
        def loss(gain):
            outputs = unroll(COUNTING, {**params, "gain": gain}, xs)[1]
            return jnp.sum(jnp.sin(outputs["rate"]))

        return jax.jit(jax.grad(jax.grad(loss)))(params["gain"])

    assert_same(curvature(jaxrnn.unroll), curvature(jaxrnn.unroll_reference))


def test_an_adjoint_written_later_takes_the_place_of_the_derived_one():
    """And a wrong one is noticed by the same check that accepts the right one."""

    def step(params, h, x):
        h = jnp.tanh(x @ params["u"] + h @ params["w"])
        return h, h

    derived = jaxrnn.cell_from_step(
        step, initial_state=lambda params, batch=(): jnp.zeros((*batch, H), params["w"].dtype)
    )

    def linearize(params, xs, before, after, gates, consts):
        return 1 - after * after

    def pull(params, adjoint, slope, consts):
        dh, doutput = adjoint
        da = (dh + doutput) * slope
        return jaxrnn.products.input_gradient(da, params["w"]), da

    def gradients(params, xs, before, after, gates, da, consts):
        weight = jaxrnn.products.weight_gradient
        dparams = {"u": weight(xs, da), "w": weight(before, da)}
        return dparams, jaxrnn.products.input_gradient(da, params["u"]), None

    example = random_tree({"u": jnp.zeros((I, H)), "w": jnp.zeros((H, H))}), jnp.zeros(I)
    written = derived._replace(linearize=linearize, pull=pull, gradients=gradients)
    check_cell(written, example=example)
    with pytest.raises(AssertionError, match=r"wrong gradient of .*w"):
        check_cell(
            written._replace(linearize=lambda *args: 0 * linearize(*args) + 1), example=example
        )


USERS = {
    "projected LSTM": (
        PROJECTED_LSTM,
        (
            ProjectedParams(
                lstm=jaxrnn.LSTMParams(*(jnp.zeros(s) for s in ((3, 28), (4, 28), (28,)))),
                w_hr=jnp.zeros((7, 4)),
            ),
            jnp.zeros(3),
        ),
    ),
    "leaky rate network with noise at every step": (
        NOISY_RATE,
        ({"w": jnp.zeros((5, 5)), "u": jnp.zeros((3, 5)), "b": jnp.zeros(5)}, jnp.zeros(3)),
    ),
    "zoneout of LSTM": (zoneout(jaxrnn.LSTM, 0.3), None),
    "recurrent dropout of LSTM": (recurrent_dropout(jaxrnn.LSTM, 0.4), None),
}


# the library's own transforms are checked in make test
@pytest.mark.parametrize(
    ("cell", "example"),
    [
        pytest.param(*given, id=name, marks=[] if name.startswith("leaky") else pytest.mark.slow)
        for name, given in USERS.items()
    ],
)
def test_cells_that_users_write_from_the_documentation_pass_check_cell(cell, example):
    if example is not None:
        params, x = example
        example = jax.tree.map(lambda a: a / 2, random_tree(params)), x
    check_cell(cell, example=example)


@pytest.mark.parametrize("cell", [NOISY_RATE, zoneout(jaxrnn.GRU, 0.5)], ids=lambda cell: cell.name)
def test_the_same_key_draws_the_same_and_without_one_nothing_is_drawn(cell):
    if cell.init is None:
        params = random_tree(USERS["leaky rate network with noise at every step"][1][0])
    else:
        params = cell.init(jax.random.key(1), 3, 5, dtype=jnp.float64)
    xs = random_tree(jnp.zeros((T, B, 3)))

    def hs(key, **options):
        return jaxrnn.unroll(cell, params, xs, key=key, **options)[1]

    key, other = jax.random.split(jax.random.key(2))
    for residuals in ("gates", "states", "carries"):
        assert_same(hs(key, residuals=residuals), hs(key))
    assert_same(jax.jit(hs)(key), hs(key))
    assert float(jnp.max(jnp.abs(hs(key) - hs(other)))) > 1e-3
    assert float(jnp.max(jnp.abs(hs(key) - hs(None)))) > 1e-3
    # what is not drawn is the expectation
    mean = jnp.mean(jax.vmap(lambda key: hs(key)[0])(jax.random.split(key, 4000)), axis=0)
    assert float(jnp.max(jnp.abs(mean - hs(None)[0]))) < 0.05


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (dict(step=3), TypeError, "`step` must be a function"),
        (dict(initial_state=jnp.zeros(3)), TypeError, "`initial_state` must be a function"),
        (dict(init=3), TypeError, "`init` must be a function"),
        (dict(x_ndim=1.0), TypeError, "`x_ndim` must be an int"),
        (dict(x_ndim={"a": -1}), TypeError, "`x_ndim` must be an int"),
    ],
)
def test_arguments_that_are_no_functions_are_named(arguments, error, said):
    given = {"step": counting_step, "initial_state": counting_initial_state, **arguments}
    with pytest.raises(error, match=said):
        jaxrnn.cell_from_step(given.pop("step"), **given)


def test_a_step_that_returns_something_else_is_named():
    params, xs = counting_problem()

    def run(step, **inputs):
        cell = jaxrnn.cell_from_step(
            step, initial_state=counting_initial_state, name="MINE",
            x_ndim={"features": 1, "scalar": 0, "image": 2},
        )  # fmt: skip
        jaxrnn.unroll(cell, params, {**xs, **inputs})

    with pytest.raises(TypeError, match=r"the step of MINE must return \(state, output\)"):
        run(lambda params, state, x: state)
    with pytest.raises(TypeError, match=r"MINE\.advance must return `state` as dict"):
        run(lambda params, state, x: ({**state, "v": state["v"][..., :1]}, x["scalar"]))
    with pytest.raises(
        ValueError, match=r"`xs\['scalar'\]` must start with the time and batch axes"
    ):
        run(counting_step, scalar=xs["scalar"][:-1])
    with pytest.raises(TypeError, match="`xs` must be a pytree of arrays like dict"):
        jaxrnn.unroll(COUNTING, params, xs["features"])


def test_what_a_step_cannot_have_is_told_by_name():
    """Consts that it does not read, and a typed key in its state."""
    params, xs = random_tree({"w": jnp.zeros((H, H))}), jnp.zeros((T, B, H))

    def step(params, state, x):
        h, key = state
        h = jnp.tanh(h @ params["w"] + x)
        return (h, key), h

    def initial_state(params, batch_shape=()):
        return jnp.zeros((*batch_shape, H)), jax.random.key(0)

    with pytest.raises(TypeError, match="must not hold a typed key"):
        jaxrnn.unroll(
            jaxrnn.cell_from_step(step, initial_state=initial_state, name="KEYED"), params, xs[:, 0]
        )
    drawing = jaxrnn.cell_from_step(
        lambda params, h, x: (h, h), initial_state=lambda p, b=(): jnp.zeros((*b, H)), name="DRAWS"
    )._replace(draw=lambda key, p, T, b: (jnp.ones((*b, H)), None), consts_rows=lambda c: True)
    with pytest.raises(TypeError, match="the step of DRAWS reads no consts"):
        jaxrnn.unroll(drawing, params, xs, key=jax.random.key(0))


def test_an_output_may_be_a_number():
    cell = jaxrnn.cell_from_step(
        lambda params, h, x: (h + x, (h, 1.0)), initial_state=lambda p, b=(): jnp.zeros((*b, H))
    )
    _, (_, ones) = jaxrnn.unroll(cell, {}, jnp.zeros((T, B, H)))
    assert ones.shape[0] == T
