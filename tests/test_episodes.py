"""Masks with holes, resets to a state of one's own choice, detached steps: in every combination."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem, random_tree, vjp
from support.programs import carries, equations, jaxprs_of

import jaxrnn

directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
T, ROWS = 11, 4
RNG = np.random.default_rng(4)
# rows with holes, without a valid step, with all, and with a hole at either end
MASK = jnp.asarray(RNG.random((T, ROWS)) < 0.6).at[:, 1].set(False).at[:, 2].set(True)
MASK = MASK.at[jnp.array([0, T - 1]), 3].set(False)
RESETS = jnp.asarray(RNG.random((T, ROWS)) < 0.4)
DETACH = jnp.asarray(RNG.random((T, ROWS)) < 0.3)
EPISODES = {"mask": MASK, "resets": RESETS, "detach": DETACH}


def problem_with(cell, *names, reverse=False, **more):
    problem = make_problem(cell, T=T, batch=(ROWS,), reverse=reverse)
    options = {**problem.options, **{name: EPISODES[name] for name in names}, **more}
    return problem._replace(options=options)


def reset_state_of(problem, batch=(ROWS,)):
    like = jax.eval_shape(lambda: problem.cell.initial_state(problem.params, batch))
    return random_tree(like, seed=9)


def processed(problem):
    """The steps of each row that happen, in their order."""
    valid = problem.options.get("mask", jnp.ones((T, ROWS), bool))
    order = range(T)[:: -1 if problem.options["reverse"] else 1]
    return [[t for t in order if valid[t, row]] for row in range(ROWS)]


def python_loop(problem, inputs, reset_state):
    """Row by row and step by step: what the documentation says, with nothing of the library's."""
    params, xs, initial_state = inputs
    options = problem.options
    reverse = options["reverse"]
    resets, detach = (options.get(n, jnp.zeros((T, ROWS), bool)) for n in ("resets", "detach"))
    finals, hs = [], []
    for row, steps in enumerate(processed(problem)):
        state = jax.tree.map(lambda a, row=row: a[row], initial_state)
        fresh = jax.tree.map(lambda a, row=row: a[row], reset_state)
        outputs, due = [jnp.zeros_like(state.h)] * T, False
        for t in steps:
            if detach[t, row]:
                state = jax.lax.stop_gradient(state)
            if due if reverse else resets[t, row]:
                state = fresh
            state, outputs[t] = problem.cell.step(params, state, xs[t, row])
            due = resets[t, row]
        finals.append(fresh if reverse and due else state)
        hs.append(jnp.stack(outputs))
    return jax.tree.map(lambda *rows: jnp.stack(rows), *finals), jnp.stack(hs, axis=1)


@pytest.mark.slow
@directions
def test_an_episode_is_a_python_loop_over_the_steps_that_happen(reverse):
    """Values and every gradient, the reset state's included, against a loop over rows and steps."""
    problem = problem_with(jaxrnn.LSTM, *EPISODES, reverse=reverse)
    reset_state = reset_state_of(problem)
    inputs = problem.params, problem.xs, problem.initial_state

    def engine(inputs, reset_state):
        params, xs, initial_state = inputs
        these = problem._replace(params=params, xs=xs, initial_state=initial_state)
        return these.outputs(reset_state=reset_state)

    results = []
    for f in (engine, lambda *args: python_loop(problem, *args)):
        outputs, pull = jax.vjp(f, inputs, reset_state)
        results.append((outputs, pull(random_tree(outputs, seed=5))))
    assert_same(*results)


COMBINATIONS = [
    names for n in range(4) for names in itertools.combinations(EPISODES, n) if names != ("resets",)
]


@directions
@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "-".join(names) or "plain")
def test_rule_equals_autodiff_in_every_combination(names, reverse):
    problem = problem_with(jaxrnn.LSTM, *names, reverse=reverse)
    inputs = problem.params, problem.xs, problem.initial_state
    reset_state = reset_state_of(problem) if "resets" in names else None

    def run(unroll, residuals):
        def f(params, xs, initial_state, reset_state):
            these = problem._replace(params=params, xs=xs, initial_state=initial_state)
            more = {} if reset_state is None else {"reset_state": reset_state}
            return these.outputs(unroll, return_states=True, residuals=residuals, **more)

        def both(*args):
            outputs, pull = jax.vjp(f, *args)
            return outputs, pull(random_tree(outputs, seed=3))

        return jax.jit(both)(*inputs, reset_state)

    expected = run(jaxrnn.unroll_reference, None)
    for residuals in ("gates", "states", "carries") if names == tuple(EPISODES) else (None,):
        assert_same(run(jaxrnn.unroll, residuals), expected)


@pytest.mark.parametrize("cell", [jaxrnn.ELMAN, jaxrnn.GRU], ids=lambda cell: cell.name)
@directions
def test_the_other_cells_agree_in_the_fullest_combination(cell, reverse):
    problem = problem_with(cell, *EPISODES, reverse=reverse)
    problem.options["reset_state"] = reset_state_of(problem)
    assert_same(
        *(vjp(problem, f, return_states=True) for f in (jaxrnn.unroll, jaxrnn.unroll_reference))
    )


@directions
def test_lengths_are_a_mask(cell, reverse):
    problem = make_problem(cell, T=T, batch=(ROWS,), lengths=True, resets=True, reverse=reverse)
    mask = jaxrnn.valid_steps(problem.options["lengths"], T)
    masked = problem._replace(options={**problem.options, "lengths": None, "mask": mask})
    assert_same(vjp(masked, jaxrnn.unroll), vjp(problem, jaxrnn.unroll), 0)


@directions
def test_a_masked_step_is_never_read(cell, reverse):
    """A NaN there, in inputs or cotangents, changes no bit; nor do resets and detach there."""
    problem = problem_with(cell, *EPISODES, reverse=reverse)
    outputs = jax.eval_shape(problem.outputs)
    dfinal, dhs = random_tree(outputs, seed=3)
    holes = ~MASK
    everything = {
        "resets": problem.options["resets"] | holes,
        "detach": problem.options["detach"] | holes,
    }
    with_nan = problem._replace(xs=jnp.where(holes[..., None], jnp.nan, problem.xs))
    with_nan = with_nan._replace(options={**problem.options, **everything})
    clean = vjp(problem, jaxrnn.unroll, (dfinal, dhs))
    dirty = vjp(with_nan, jaxrnn.unroll, (dfinal, jnp.where(holes[..., None], jnp.nan, dhs)))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize(
    ("unroll", "residuals"),
    [
        (jaxrnn.unroll_reference, None),
        *((jaxrnn.unroll, r) for r in ("gates", "states", "carries")),
    ],
)
def test_a_nan_in_the_state_of_a_row_that_never_runs_reaches_no_other(cell, unroll, residuals):
    problem = make_problem(cell, T=5, batch=(3,))
    lengths = jnp.array([0, 5, 3])
    spoiled = jax.tree.map(lambda a: a.at[0].set(jnp.nan), problem.initial_state)

    def gradient(initial_state):
        def loss(params, xs):
            these = problem._replace(params=params, xs=xs, initial_state=initial_state)
            return jnp.sum(these.outputs(unroll, lengths=lengths, residuals=residuals)[1])

        return jax.grad(loss, argnums=(0, 1))(problem.params, problem.xs)

    jax.tree.map(np.testing.assert_array_equal, gradient(spoiled), gradient(problem.initial_state))


@directions
def test_a_reset_state_may_be_one_for_all_rows(cell, reverse):
    problem = problem_with(cell, "resets", reverse=reverse)
    one = reset_state_of(problem, batch=())
    every = jax.tree.map(lambda a: jnp.broadcast_to(a, (ROWS, *a.shape)), one)

    def loss(reset_state):
        final_state, hs = problem.outputs(reset_state=reset_state)
        return jnp.sum(jnp.sin(hs)) + jnp.sum(jnp.cos(final_state.h))

    value, gradient = jax.value_and_grad(loss)(one)
    expected, of_rows = jax.value_and_grad(loss)(every)
    assert_same((value, gradient), (expected, jax.tree.map(lambda a: a.sum(0), of_rows)))
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_resets_return_to_the_initial_state_of_the_cell_with_its_gradient():
    """Where it depends on the params, they learn from every episode's start."""

    def step(params, state, x):
        state = jnp.tanh(state @ params["w"] + x)
        return state, state

    def initial_state(params, batch_shape=()):
        return jnp.broadcast_to(params["start"], (*batch_shape, 3))

    cell = jaxrnn.cell_from_step(step, initial_state=initial_state)
    params = {"w": jnp.eye(3) / 2, "start": jnp.array([0.3, -0.2, 0.1])}
    xs = jnp.asarray(RNG.normal(size=(T, ROWS, 3)))

    def loss(params, **options):
        return jnp.sum(jnp.sin(jaxrnn.unroll(cell, params, xs, resets=RESETS, **options)[1]))

    def explicit(params):
        return loss(params, reset_state=params["start"])

    assert_same(jax.grad(loss)(params), jax.grad(explicit)(params))
    with_gradient = jax.grad(loss)(params)["start"]
    without = jax.grad(
        lambda params: loss(params, reset_state=jax.lax.stop_gradient(params["start"]))
    )(params)["start"]
    assert np.all(np.abs(with_gradient - without) > 1e-3)


@directions
def test_a_reset_waits_for_the_next_step_that_happens(reverse):
    """Across a hole the state is held as it was, and reset before the step behind it."""
    problem = make_problem(jaxrnn.LSTM, T=6, batch=(1,), reverse=reverse)
    mask = jnp.array([1, 1, 0, 0, 1, 1], bool)[:, None]
    near, far = (4, 1) if reverse else (1, 4)
    # forwards the reset belongs to the step that starts anew, in reverse to the one before it
    resets = jnp.zeros((6, 1), bool).at[near if reverse else far].set(True)
    fresh = reset_state_of(problem, (1,))
    _, hs, states = problem.outputs(mask=mask, resets=resets, reset_state=fresh, return_states=True)
    after, h = jaxrnn.LSTM.step(problem.params, fresh, problem.xs[far])
    assert_same(hs[far], h)
    for hole in (2, 3):
        assert_same(
            jax.tree.map(lambda a, t=hole: a[t], states), jax.tree.map(lambda a: a[near], states)
        )
    assert_same(jax.tree.map(lambda a: a[far], states), after)


def test_in_reverse_a_reset_that_no_step_follows_is_in_the_final_state():
    problem = make_problem(jaxrnn.GRU, T=5, batch=(2,), reverse=True)
    mask = jnp.array([[0, 0], [0, 1], [1, 1], [1, 1], [0, 1]], bool)
    resets = jnp.zeros((5, 2), bool).at[2].set(True)
    fresh = reset_state_of(problem, (2,))
    final_state, _ = problem.outputs(mask=mask, resets=resets, reset_state=fresh)
    # of the second row, step 1 follows the reset
    after, _ = jaxrnn.GRU.step(problem.params, fresh, problem.xs[1])
    assert_same(final_state.h[0], fresh.h[0])
    assert_same(final_state.h[1], after.h[1])


@directions
def test_detached_windows_are_segments_with_a_stopped_state(cell, reverse):
    problem = make_problem(cell, T=9, batch=(2,), reverse=reverse)
    # the first step of each window, in the order of processing
    starts = [5, 2] if reverse else [3, 6]
    detach = jnp.zeros((9, 2), bool).at[jnp.array(starts)].set(True)
    windows = (
        [slice(6, 9), slice(3, 6), slice(0, 3)]
        if reverse
        else [slice(0, 3), slice(3, 6), slice(6, 9)]
    )

    def whole(params, initial_state):
        these = problem._replace(params=params, initial_state=initial_state)
        return jnp.sum(jnp.sin(these.outputs(detach=detach)[1]))

    def segments(params, initial_state):
        total, state = 0.0, initial_state
        for window in windows:
            these = problem._replace(params=params, xs=problem.xs[window], initial_state=state)
            final_state, hs = these.outputs(jaxrnn.unroll_reference)
            total, state = total + jnp.sum(jnp.sin(hs)), jax.lax.stop_gradient(final_state)
        return total

    arguments = problem.params, problem.initial_state
    assert_same(*(jax.value_and_grad(f, argnums=(0, 1))(*arguments) for f in (whole, segments)))


@pytest.mark.parametrize("residuals", ["gates", "states", "carries"])
def test_second_derivatives_stop_where_a_step_is_detached_alone(residuals):
    """Where it is also reset, the carry goes unread anyway."""
    problem = make_problem(jaxrnn.GRU, T=5, batch=(2,))
    detach = jnp.zeros((5, 2), bool).at[2, 0].set(True).at[jnp.array([1, 3]), 1].set(True)

    def through(unroll, **options):
        def of_gradients(params, initial_state):
            these = problem._replace(params=params, initial_state=initial_state)
            return jnp.sum(jnp.sin(these.outputs(unroll, detach=detach, **options)[1]))

        def second(*inputs):
            gradients = jax.grad(of_gradients, argnums=(0, 1))(*inputs)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(gradients))

        return jax.grad(second, argnums=(0, 1))(problem.params, problem.initial_state)

    assert_same(through(jaxrnn.unroll, residuals=residuals), through(jaxrnn.unroll_reference))


@directions
def test_detach_never_cuts_the_path_to_a_reset_state(cell, reverse):
    problem = problem_with(cell, "resets", reverse=reverse)

    def gradient(**more):
        def loss(reset_state):
            return jnp.sum(jnp.sin(problem.outputs(reset_state=reset_state, **more)[1]))

        return jax.grad(loss)(reset_state_of(problem))

    # every step is detached: the reset state is read by the steps that start from it alone
    everywhere = gradient(detach=jnp.ones((T, ROWS), bool))
    assert all(np.all(leaf[2] != 0) for leaf in jax.tree.leaves(everywhere))
    # where each step starts from it, detaching changes nothing
    problem.options["resets"] = jnp.ones((T, ROWS), bool)
    assert_same(gradient(detach=jnp.ones((T, ROWS), bool)), gradient())


@pytest.mark.parametrize("later", [(False,), (True,), (False, True), (True, False)])
def test_the_gradient_of_a_reset_state_is_not_lost_beside_calls_that_have_none(later):
    """As in layers of one cell, of which the first alone learns its initial state."""
    problem = make_problem(jaxrnn.GRU, T=5, batch=(2,), I=4, H=4, resets=True)
    resets = problem.options["resets"].at[2].set(True)

    def through(unroll):
        def loss(reset_state):
            _, hs = unroll(
                *(problem.cell, problem.params, problem.xs), resets=resets, reset_state=reset_state
            )
            above = [
                unroll(problem.cell, problem.params, hs, resets=resets, reverse=reverse)[1]
                for reverse in later
            ]
            return sum(jnp.sum(jnp.sin(each)) for each in above)

        return jax.grad(loss)(random_tree(problem.initial_state, 7))

    assert_same(through(jaxrnn.unroll), through(jaxrnn.unroll_reference))


@pytest.mark.parametrize("asked", [False, True], ids=["without", "with"])
def test_the_adjoint_loop_carries_a_reset_states_gradient_only_if_asked_for(asked):
    problem = problem_with(jaxrnn.LSTM, "resets")
    reset_state = reset_state_of(problem)

    def loss(params, fresh):
        these = problem._replace(params=params)
        fresh = fresh if asked else jax.lax.stop_gradient(reset_state)
        return jnp.sum(these.outputs(reset_state=fresh, residuals="gates")[1])

    jaxpr = (
        jax.make_jaxpr(jax.grad(loss))(problem.params, reset_state)
        if not asked
        else (jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(problem.params, reset_state))
    )
    scans = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan"]
    inner = [
        s
        for s in scans
        if not any(e.primitive.name == "scan" for j in jaxprs_of(s) for e in equations(j))
    ]
    # of each platform
    for backward in (s for s in inner if s.params["reverse"]):
        assert len(carries(backward)) == (4 if asked else 2)


ARGUMENTS = {
    "both": (dict(lengths=jnp.ones(ROWS, int), mask=MASK), ValueError, "`mask` takes the place of"),
    "mask of integers": (dict(mask=MASK.astype(int)), TypeError, "`mask` must be booleans"),
    "mask without time": (dict(mask=MASK[0]), ValueError, r"`mask` must be \[T, ...\]"),
    "detach of one row": (dict(detach=DETACH[:, 0]), ValueError, "`detach` must be"),
    "reset state alone": (
        dict(reset_state=jaxrnn.ELMAN.initial_state(jaxrnn.ELMAN.init(jax.random.key(0), 3, 4))),
        ValueError,
        "`reset_state` must be None without `resets`",
    ),
    "reset state of another": (
        dict(resets=RESETS, reset_state=jnp.zeros(4)),
        TypeError,
        "`reset_state` must be ElmanState",
    ),
    "key": (dict(key=jax.random.key(0)), ValueError, "`key` must be None: ELMAN draws nothing"),
}


@pytest.mark.parametrize(("options", "error", "said"), ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("unroll", [jaxrnn.unroll, jaxrnn.unroll_reference])
def test_arguments_that_do_not_fit_are_named(unroll, options, error, said):
    params = jaxrnn.ELMAN.init(jax.random.key(0), 3, 4)
    with pytest.raises(error, match=said):
        unroll(jaxrnn.ELMAN, params, jnp.ones((T, ROWS, 3), jnp.float32), **options)
