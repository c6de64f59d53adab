"""`unroll` is a function like any other: under jit, vmap, scan, remat, export, and differentiated
twice. Forward mode is the one exception, and belongs to `unroll_reference`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from support import problems
from support.problems import assert_same, make_problem, random_tree, vjp

import jaxrnn


def unroll_of(problem, unroll=jaxrnn.unroll, **more):
    """The problem's outputs as a function of its differentiable inputs."""

    def f(params, xs, initial_state):
        these = problem._replace(params=params, xs=xs, initial_state=initial_state)
        return these.outputs(unroll, **more)

    return f


def arrays_of(problem):
    """The problem's inputs without the consts, which no cell here takes."""
    return problems.inputs_of(problem)[:3]


def masked(cell, **sizes):
    """A small problem with everything on, of which second derivatives are affordable."""
    return make_problem(cell, lengths=True, resets=True, **{"T": 3, "I": 2, "H": 2, **sizes})


def weighted_sum(problem, unroll=jaxrnn.unroll):
    """A loss that reads every output, curved so that the second derivative sees all of it."""
    f = unroll_of(problem, unroll, return_states=True)
    weights = random_tree(jax.eval_shape(f, *arrays_of(problem)), seed=5)

    def loss(*inputs):
        terms = jax.tree.map(lambda w, y: jnp.sum(w * jnp.sin(y)), weights, f(*inputs))
        return sum(jax.tree.leaves(terms))

    return loss


def test_eager_equals_jit():
    problem = masked(jaxrnn.LSTM)
    outputs, pull = jax.vjp(unroll_of(problem), *arrays_of(problem))
    cotangents = random_tree(outputs, seed=3)
    jitted_outputs, gradients = vjp(problem, jaxrnn.unroll, cotangents)
    assert_same(outputs, jitted_outputs)
    assert_same((*pull(cotangents), None), gradients)


N = 3
ARGUMENTS = ("params", "xs", "initial_state", "lengths", "resets")


@functools.cache
def rows():
    """N problems in one, each argument with an axis in front, and their vjp one by one."""
    problem = make_problem(jaxrnn.LSTM, T=5, batch=(2,), I=2, H=3)
    rng = np.random.default_rng(7)
    like = {name: getattr(problem, name) for name in ARGUMENTS[:3]}
    stacked = {
        name: jax.tree.map(lambda a: jnp.asarray(rng.normal(size=(N, *a.shape))), leaf)
        for name, leaf in like.items()
    }
    stacked["lengths"] = jnp.asarray(rng.integers(0, 6, (N, 2)))
    stacked["resets"] = jnp.asarray(rng.random((N, 5, 2)) < 0.3)

    def f(arguments):
        """The outputs of one problem."""
        arguments = dict(arguments)
        inputs = [arguments.pop(name) for name in ARGUMENTS[:3]]
        return jaxrnn.unroll(jaxrnn.LSTM, *inputs, return_states=True, **arguments)

    def pulled(arguments, cotangents):
        """Outputs and gradients of one problem."""
        outputs, pull = jax.vjp(lambda inputs: f({**arguments, **inputs}), select(arguments))
        return outputs, pull(cotangents)[0]

    first = jax.tree.map(lambda a: a[0], stacked)
    outputs = jax.eval_shape(f, first)
    cotangents = random_tree(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((N, *a.shape), a.dtype), outputs), seed=8
    )
    return f, jax.jit(pulled), stacked, cotangents


def select(arguments):
    return {name: arguments[name] for name in ARGUMENTS[:3]}


@pytest.mark.parametrize("mapped", [*((name,) for name in ARGUMENTS), ARGUMENTS], ids="-".join)
def test_vmap_is_a_python_loop(mapped):
    """Of the values, and of the gradients: an argument that is shared gets the sum of them."""
    f, pulled, stacked, cotangents = rows()
    arguments = {
        name: leaf if name in mapped else jax.tree.map(lambda a: a[0], leaf)
        for name, leaf in stacked.items()
    }
    in_axes = ({name: 0 if name in mapped else None for name in ARGUMENTS},)

    @jax.jit
    def run(arguments, cotangents):
        outputs, pull = jax.vjp(
            lambda inputs: jax.vmap(f, in_axes)({**arguments, **inputs}), select(arguments)
        )
        return outputs, pull(cotangents)[0]

    def row(k):
        one = {
            name: jax.tree.map(lambda a: a[k], leaf) if name in mapped else leaf
            for name, leaf in arguments.items()
        }
        return pulled(one, jax.tree.map(lambda a: a[k], cotangents))

    outputs, gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(row, range(N)))
    expected = {
        name: leaf if name in mapped else jax.tree.map(lambda a: a.sum(axis=0), leaf)
        for name, leaf in gradients.items()
    }
    assert_same(run(arguments, cotangents), (outputs, expected))


def test_vmap_of_the_gradient_is_a_python_loop():
    """Gradients per example: the rule itself mapped, over everything."""
    _, pulled, stacked, cotangents = rows()
    expected = [pulled(*jax.tree.map(lambda a, k=k: a[k], (stacked, cotangents))) for k in range(N)]
    actual = jax.jit(jax.vmap(pulled))(stacked, cotangents)
    assert_same(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


def test_scan_over_segments_is_one_unroll():
    """The carried state joins them; the segments' losses flow back through it."""
    problem = make_problem(jaxrnn.LSTM, T=6, resets=True)

    def in_segments(cell, params, xs, initial_state, *, resets, **options):
        def segment(state, at):
            return jaxrnn.unroll(cell, params, at[0], state, resets=at[1], **options)

        at = jax.tree.map(lambda a: a.reshape(3, 2, *a.shape[1:]), (xs, resets))
        final_state, hs = jax.lax.scan(segment, initial_state, at)
        return final_state, hs.reshape(6, *hs.shape[2:])

    assert_same(vjp(problem, in_segments), vjp(problem, jaxrnn.unroll))


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_remat_changes_nothing(policy):
    problem = masked(jaxrnn.LSTM)

    def rematerialised(*arguments, **options):
        unroll = functools.partial(jaxrnn.unroll, arguments[0], **options)
        return jax.checkpoint(unroll, policy=policy)(*arguments[1:])

    assert_same(vjp(problem, rematerialised), vjp(problem, jaxrnn.unroll))


def test_hessian_equals_autodiff(cell):
    """Forward over the rule."""
    problem = masked(cell, batch=(2,), I=1)
    vector, restore = ravel_pytree(arrays_of(problem))

    def hessian(unroll):
        loss = weighted_sum(problem, unroll)
        return jax.jit(jax.hessian(lambda v: loss(*restore(v))))(vector)

    assert_same(hessian(jaxrnn.unroll), hessian(jaxrnn.unroll_reference))


def test_gradient_of_the_gradient_equals_autodiff():
    """The rule differentiated by itself, which every cell's numerical derivatives check too."""
    problem = masked(jaxrnn.LSTM)
    inputs = arrays_of(problem)
    directions = random_tree(inputs, seed=6)

    def product(unroll):
        gradient = jax.grad(weighted_sum(problem, unroll), argnums=(0, 1, 2))

        def slope(*inputs):
            terms = jax.tree.map(jnp.vdot, gradient(*inputs), directions)
            return sum(jax.tree.leaves(terms))

        return jax.jit(jax.grad(slope, argnums=(0, 1, 2)))(*inputs)

    assert_same(product(jaxrnn.unroll), product(jaxrnn.unroll_reference))


def test_derivatives_of_two_orders_are_numerical_derivatives(cell):
    problem = masked(cell, batch=(2,), I=1)
    check_grads(
        jax.jit(weighted_sum(problem)), arrays_of(problem), order=2, modes=["rev"], rtol=1e-6
    )


def test_gradient_is_the_finite_difference_of_every_entry(cell):
    """Central differences, of error step^2 / 6 times a third derivative, plus eps / step."""
    problem = masked(cell, T=4)
    vector, restore = ravel_pytree(arrays_of(problem))
    step = 1e-5

    def loss(v):
        return weighted_sum(problem)(*restore(v))

    @jax.jit
    def run(v):
        moves = step * jnp.eye(v.size)
        differences = jax.vmap(lambda move: loss(v + move) - loss(v - move))(moves)
        return jax.grad(loss)(v), differences / (2 * step)

    gradient, differences = run(vector)
    assert_same(gradient, differences, 1e-8)


def test_forward_mode_is_refused():
    problem = make_problem(jaxrnn.LSTM)
    inputs = arrays_of(problem)
    with pytest.raises(TypeError, match="custom_vjp") as refused:
        jax.jvp(unroll_of(problem), inputs, inputs)
    assert "unroll_reference" in refused.value.__notes__[0]
    # the function that it returns is what runs forwards
    _, linear = jax.linearize(unroll_of(problem), *inputs)
    with pytest.raises(TypeError, match=r"custom_vjp|forward"):
        linear(*inputs)


def test_forward_mode_of_the_reference_is_the_transpose_of_the_rule():
    """<J u, v> = <u, J^T v>, with J u from JAX and J^T v from the handwritten rule."""
    problem = masked(jaxrnn.GRU)
    inputs = arrays_of(problem)
    f = unroll_of(problem, jaxrnn.unroll_reference)
    us = random_tree(inputs, seed=6)
    outputs, jus = jax.jit(lambda inputs, us: jax.jvp(f, inputs, us))(inputs, us)
    vs = random_tree(outputs, seed=3)
    _, (*jtvs, _) = vjp(problem, jaxrnn.unroll, vs)

    def dot(a, b):
        return float(jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b)))

    assert dot(jus, vs) == pytest.approx(dot(us, tuple(jtvs)), rel=1e-12)

    linear_outputs, linear = jax.linearize(f, *inputs)
    assert_same(linear_outputs, outputs)
    assert_same(jax.jit(linear)(*us), jus)


def test_export_keeps_the_rule(cell):
    """Params and states survive as inputs and outputs, and so does the derivative."""
    problem = masked(cell)
    inputs = arrays_of(problem)
    f = unroll_of(problem, return_states=True)
    exported = jax.export.export(jax.jit(f))(*inputs)
    restored = jax.export.deserialize(exported.serialize(vjp_order=1))

    outputs, pull = jax.vjp(restored.call, *inputs)
    gradients = (*pull(random_tree(outputs, seed=3)), None)
    assert_same((outputs, gradients), vjp(problem, jaxrnn.unroll, return_states=True))


def test_export_of_a_training_state():
    state = jaxrnn.TrainState(
        step=jnp.zeros((), jnp.int32),
        params={
            "cell": make_problem(jaxrnn.GRU, T=1).params,
            "head": jaxrnn.AffineParams(w=jnp.ones((4, 2)), b=jnp.zeros(2)),
        },
        opt_state=(),
        key=jax.random.key_data(jax.random.key(0)),
    )

    def descend(state, xs):
        def loss_fn(params):
            _, hs = jaxrnn.unroll(jaxrnn.GRU, params["cell"], xs)
            ys = jaxrnn.affine(params["head"], hs)
            return jaxrnn.squared_error(ys, jnp.zeros_like(ys))

        gradients = jax.grad(loss_fn)(state.params)
        params = jax.tree.map(lambda p, d: p - d, state.params, gradients)
        return state._replace(step=state.step + 1, params=params)

    xs = make_problem(jaxrnn.GRU).xs
    exported = jax.export.export(jax.jit(descend))(state, xs)
    restored = jax.export.deserialize(exported.serialize())
    after = restored.call(state, xs)
    assert type(after) is jaxrnn.TrainState
    assert_same(after, jax.jit(descend)(state, xs))


def test_eval_shape_allocates_nothing(cell):
    problem = make_problem(cell, T=7, batch=(2, 3))
    shape = jax.ShapeDtypeStruct((10**6, 10**6, 3), jnp.float64)
    final_state, hs = jax.eval_shape(
        lambda params, xs: jaxrnn.unroll(cell, params, xs), problem.params, shape
    )
    assert hs.shape == (10**6, 10**6, 4)
    assert final_state.h.shape == (10**6, 4)


def test_no_tracer_leaks():
    problem = masked(jaxrnn.LSTM)
    with jax.checking_leaks():
        vjp(problem, jaxrnn.unroll, return_states=True)
        problem.outputs()


def counting(cell):
    """The cell, and a list that grows by one whenever its step is traced."""
    traces = []

    def advance(*arguments):
        traces.append(1)
        return cell.advance(*arguments)

    return cell._replace(advance=advance), traces


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_one_trace_for_all_values(jit):
    """Of every argument: also of lengths and resets, and of a new array for the same params."""
    cell, traces = counting(jaxrnn.LSTM)
    problem = make_problem(cell, T=5, lengths=True, resets=True)

    def gradient(params, lengths, resets):
        def loss(params):
            _, hs = jaxrnn.unroll(cell, params, problem.xs, lengths=lengths, resets=resets)
            return jnp.sum(hs)

        return jax.grad(loss)(params)

    run = jax.jit(gradient) if jit else gradient
    run(problem.params, problem.options["lengths"], problem.options["resets"])
    traced = len(traces)
    assert traced > 0
    for length in range(3):
        run(
            random_tree(problem.params, seed=length),
            jnp.full((3,), length, jnp.int32),
            jnp.zeros_like(problem.options["resets"]),
        )
    assert len(traces) == traced


def test_states_can_be_donated(cell):
    """No two leaves share a buffer, neither in the zero state nor in the final one."""
    problem = make_problem(cell, batch=(3,))
    step = jax.jit(
        lambda state, xs: jaxrnn.unroll(cell, problem.params, xs, state)[0], donate_argnums=0
    )
    state = cell.initial_state(problem.params, (3,))
    for _ in range(2):
        before, state = state, step(state, problem.xs)
        assert all(leaf.is_deleted() for leaf in before)
    _, expected = problem._replace(
        initial_state=None, xs=jnp.concatenate([problem.xs, problem.xs])
    ).outputs()
    assert_same(state.h, expected[-1])
