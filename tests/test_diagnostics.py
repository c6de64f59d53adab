"""What the diagnostics show is what autodiff and plain loops find, at every step."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from support.cells import MASKED_ELMAN
from support.problems import assert_same, inputs_of, make_problem, random_tree, vjp, vjp_program
from support.programs import equations

import jaxrnn
from jaxrnn import diagnostics
from jaxrnn.diagnostics import ORIGINS

T, B, I, H = 7, 3, 3, 4
LENGTHS = np.array([7, 0, 4])
PLAIN = {}
ALL = {"lengths": True, "resets": True}
ALL_REVERSED = {**ALL, "reverse": True}
FLAGS = {"plain": PLAIN, "all": ALL, "all_reversed": ALL_REVERSED}
every_direction = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
# one cell in every way, every cell in one way; the rest takes a minute
every_cell_and_direction = pytest.mark.parametrize(
    ("cell", "flags"),
    [
        pytest.param(
            getattr(jaxrnn, cell),
            flags,
            id=f"{cell}-{name}",
            marks=() if cell == "LSTM" or name == "all_reversed" else pytest.mark.slow,
        )
        for cell in ("ELMAN", "LSTM", "GRU")
        for name, flags in FLAGS.items()
    ],
)


def watched(cell, **flags):
    """A problem, and the arguments of a diagnostic: all its arrays, and all its options."""
    problem = make_problem(cell, T=T, batch=(B,), I=I, H=H, **flags)
    if "lengths" in problem.options:
        problem.options["lengths"] = jnp.asarray(LENGTHS)
    dfinal, dhs = random_tree(jax.eval_shape(problem.outputs), seed=5)
    arguments = (cell, problem.params, problem.xs, dhs, dfinal, problem.initial_state)
    return problem, arguments, problem.options


def fold(tree):
    return jax.tree.map(lambda leaf: leaf.sum(0), tree)


def norms_of(terms):
    """The norm of each entry of the first axis, leaf by leaf."""
    return jax.tree.map(
        lambda leaf: np.linalg.norm(np.asarray(leaf).reshape(len(leaf), -1), axis=1), terms
    )


def terms_by_autodiff(problem, cotangents):
    """Every step reads params of its own, ``[T, ...]``: then each has a gradient of its own."""
    lengths, resets = (problem.options.get(name) for name in ("lengths", "resets"))
    reverse = problem.options["reverse"]
    valid = jnp.arange(T)[:, None] < (jnp.full(B, T) if lengths is None else lengths)[None]
    cut = jnp.zeros((T, B), bool) if resets is None else resets

    def where(mask, a, b):
        return jax.tree.map(lambda x, y: jnp.where(mask[:, None], x, y), a, b)

    def step(carry, at):
        params, x, valid, cut = at
        zeros = jax.tree.map(jnp.zeros_like, carry)
        after, h = problem.cell.step(params, carry if reverse else where(cut, zeros, carry), x)
        carry = where(valid, where(cut, zeros, after) if reverse else after, carry)
        return carry, jnp.where(valid[:, None], h, 0)

    def run(params):
        at = (params, problem.xs, valid, cut)
        return jax.lax.scan(step, problem.initial_state, at, reverse=reverse)

    each = jax.tree.map(lambda leaf: jnp.stack([leaf] * T), problem.params)
    return jax.jit(lambda: jax.vjp(run, each)[1](cotangents)[0])()


@every_cell_and_direction
def test_step_contributions_are_the_gradients_of_params_used_at_one_step_alone(cell, flags):
    problem, arguments, options = watched(cell, **flags)
    _, _, _, dhs, dfinal, _ = arguments
    found = diagnostics.step_contributions(*arguments, window=(0, T), **options)
    expected = terms_by_autodiff(problem, (dfinal, dhs))
    assert_same(found.gradients, expected)
    assert_same(found.norms, norms_of(expected))
    gradient = vjp(problem, jaxrnn.unroll_reference, (dfinal, dhs))[1][0]
    assert_same(fold(found.gradients), gradient)
    shares = jax.tree.map(
        lambda t, g: np.einsum("ti,i->t", t.reshape(T, -1), g.ravel()) / (g.ravel() @ g.ravel()),
        expected,
        gradient,
    )
    assert_same(found.shares, shares)
    assert_same(fold(found.shares), jax.tree.map(lambda leaf: np.ones(()), gradient))


def test_a_window_is_a_part_of_all_steps():
    _, arguments, options = watched(jaxrnn.LSTM, **ALL)
    all_of_them = diagnostics.step_contributions(*arguments, window=(0, T), **options)
    part = diagnostics.step_contributions(*arguments, window=(2, 5), **options)
    assert_same(part.gradients, jax.tree.map(lambda leaf: leaf[2:5], all_of_them.gradients))
    assert_same((part.norms, part.shares), (all_of_them.norms, all_of_them.shares))
    assert diagnostics.step_contributions(*arguments, **options).gradients is None


def rows_that_end_together(problem, arguments):
    """The terms of every row alone, without its padding, moved to the end of time and summed."""
    cell, params, xs, dhs, dfinal, initial_state = arguments
    total = jax.tree.map(lambda leaf: np.zeros((T, *leaf.shape)), params)
    for b, length in enumerate(LENGTHS):
        if length:
            row = [jax.tree.map(lambda leaf: leaf[b], tree) for tree in (dfinal, initial_state)]  # noqa: B023
            resets = problem.options["resets"][:length, b]
            terms = diagnostics.step_contributions(
                cell,
                params,
                xs[:length, b],
                dhs[:length, b],
                *row,
                window=(0, int(length)),
                resets=resets,
            )
            for leaf, term in zip(
                jax.tree.leaves(total), jax.tree.leaves(terms.gradients), strict=True
            ):
                leaf[T - length :] += term
    return total


def test_from_the_end_every_row_ends_at_the_last_step():
    problem, arguments, options = watched(jaxrnn.GRU, **ALL)
    found = diagnostics.step_contributions(*arguments, from_end=True, window=(0, T), **options)
    expected = rows_that_end_together(problem, arguments)
    assert_same(found.gradients, expected)
    assert_same(found.norms, norms_of(expected))


def steps_needed(terms, fraction):
    """The definition of `horizon`, with everything in memory; the last step comes first."""

    def needed(terms):
        terms = np.asarray(terms).reshape(len(terms), -1)
        gradient = terms.sum(0)
        held = np.cumsum(np.concatenate([0 * terms[:1], terms]), axis=0)
        missing = np.linalg.norm(gradient - held, axis=1)
        enough = missing <= (1 - fraction) * np.linalg.norm(gradient) + 1e-12
        return next(n for n in range(len(enough)) if enough[n:].all())

    return jax.tree.map(needed, terms)


@pytest.mark.parametrize("fraction", [0.5, 0.95])
@every_direction
def test_horizon_is_the_fewest_last_steps_that_add_up_to_the_gradient(flags, fraction):
    problem, arguments, options = watched(jaxrnn.LSTM, **flags)
    if "lengths" in options and not options["reverse"]:
        terms = rows_that_end_together(problem, arguments)
    else:
        terms = diagnostics.step_contributions(*arguments, window=(0, T), **options).gradients
    if not options["reverse"]:
        terms = jax.tree.map(lambda leaf: leaf[::-1], terms)
    found = diagnostics.horizon(*arguments, fraction=fraction, **options)
    assert jax.tree.map(int, found) == steps_needed(terms, fraction)
    assert {leaf.dtype for leaf in found} == {jnp.dtype(jnp.int32)}


def test_horizon_of_known_gradients():
    cell, params, xs, dhs, dfinal, _ = watched(jaxrnn.ELMAN)[1]
    only_last = diagnostics.horizon(cell, params._replace(w_hh=0 * params.w_hh), xs, None, dfinal)
    assert only_last == (1, 1, 1)
    only_first = diagnostics.horizon(
        cell, params, xs, None, dfinal, reverse=True, resets=jnp.zeros((T, B), bool).at[1].set(True)
    )
    assert only_first == (1, 0, 1)
    assert diagnostics.horizon(cell, params, xs, None) == (0, 0, 0)
    assert diagnostics.horizon(cell, params, xs.at[6].set(jnp.nan), dhs) == (T, T, T)


@every_cell_and_direction
def test_example_gradient_norms_are_those_of_every_row_alone(cell, flags):
    problem, arguments, options = watched(cell, **flags)
    _, _, _, dhs, dfinal, _ = arguments
    found = diagnostics.example_gradient_norms(*arguments, **options)
    run = vjp_program(problem, jaxrnn.unroll_reference)

    def of_row(b):
        row = jax.nn.one_hot(b, B, dtype=dhs.dtype)[:, None]
        cotangents = (jax.tree.map(lambda d: row * d, dfinal), row[None] * dhs)
        return run(inputs_of(problem), cotangents)[1][0]

    rows = jax.tree.map(lambda *leaves: np.stack(leaves), *(of_row(b) for b in range(B)))
    assert_same(found.params, norms_of(rows))
    total = np.sqrt(sum(leaf**2 for leaf in norms_of(rows)))
    assert_same(found.total, total)


def test_example_gradient_norms_with_constants_of_single_rows():
    mask = jnp.asarray(np.random.default_rng(0).random((B, H)))
    consts = {"mask": mask, "name": jnp.int32(1)}
    problem, arguments, options = watched(MASKED_ELMAN, consts=consts, **ALL)
    found = diagnostics.example_gradient_norms(*arguments, consts=consts, **options)
    run = vjp_program(problem, jaxrnn.unroll_reference)
    _, _, _, dhs, dfinal, _ = arguments
    for b in range(B):
        row = jax.nn.one_hot(b, B, dtype=dhs.dtype)[:, None]
        cotangents = (jax.tree.map(lambda d, row=row: row * d, dfinal), row[None] * dhs)
        expected = jax.tree.map(jnp.linalg.norm, run(inputs_of(problem), cotangents)[1][0])
        assert_same(jax.tree.map(lambda leaf, b=b: leaf[b], found.params), expected)


@pytest.mark.parametrize("batch", [(), (2, 3), (0,), (2, 0)])
def test_example_gradient_norms_have_the_batch_shape(batch):
    problem = make_problem(jaxrnn.ELMAN, T=2, batch=batch)
    dhs = jnp.ones_like(problem.outputs()[1])
    found = diagnostics.example_gradient_norms(problem.cell, problem.params, problem.xs, dhs)
    assert {leaf.shape for leaf in jax.tree.leaves(found)} == {batch}
    if batch == (2, 3):
        one = diagnostics.example_gradient_norms(
            problem.cell, problem.params, problem.xs[:, 1, 2], dhs[:, 1, 2]
        )
        assert_same(jax.tree.map(lambda leaf: leaf[1, 2], found), one)


@pytest.mark.parametrize("diagnostic", ["step_contributions", "example_gradient_norms"])
def test_no_stack_of_weights_is_ever_in_memory(cell, diagnostic):
    """One gradient of a weight at a time, however many steps and rows: read off the program."""
    problem = make_problem(cell, T=11, batch=(13,), I=3, H=4, lengths=True, resets=True)
    function = getattr(diagnostics, diagnostic)
    program = jax.make_jaxpr(
        lambda params, xs, dhs: function(cell, params, xs, dhs, **problem.options)
    )(problem.params, problem.xs, jnp.ones((11, 13, 4)))
    shapes = [v.aval.shape for e in equations(program.jaxpr) for v in e.outvars]
    weights = {leaf.shape for leaf in problem.params if leaf.ndim == 2}
    assert any(shape[-2:] in weights for shape in shapes)
    # a step and a row of length one may stand before it
    stacks = [s for s in shapes if s[-2:] in weights and math.prod(s) > math.prod(s[-2:])]
    assert not stacks


def test_states_of_the_flow_are_the_norms_of_the_adjoints(cell):
    _, arguments, options = watched(cell, **ALL)
    adjoints = diagnostics.backpropagate(*arguments, **options).states
    expected = jax.tree.map(lambda leaf: np.linalg.norm(leaf, axis=-1), adjoints)
    assert_same(diagnostics.gradient_flow(*arguments, **options).states, expected)


@every_direction
def test_jacobians_of_the_flow_are_those_of_autodiff(flags):
    problem, arguments, options = watched(jaxrnn.LSTM, **flags)
    found = diagnostics.gradient_flow(*arguments, **options).jacobians
    states = problem.outputs(return_states=True)[2]
    resets = options.get("resets", np.zeros((T, B), bool))
    lengths = options.get("lengths", jnp.full(B, T))
    expected = jax.tree.map(np.zeros_like, found)
    for b, length in enumerate(lengths):
        # from the state after step t, over the steps that are still to come
        order = range(length)[::-1] if options["reverse"] else range(length)
        for n, t in enumerate(order):

            def last_h(state, rest=order[n + 1 :], t=t, b=b):
                for s in rest:
                    # the boundary stands before a step, or, backwards, after the one before it
                    cut = resets[s + 1, b] if options["reverse"] else resets[s, b]
                    state = jax.tree.map(lambda leaf: jnp.where(cut, 0, leaf), state)  # noqa: B023
                    state, _ = jaxrnn.LSTM.step(problem.params, state, problem.xs[s, b])
                return state.h

            jacobian = jax.jacrev(last_h)(jax.tree.map(lambda leaf: leaf[t, b], states))  # noqa: B023
            for norms, block in zip(expected, jacobian, strict=True):
                norms[t, b] = np.linalg.norm(block)
    assert_same(found, expected)


def test_probes_estimate_the_jacobians():
    _, arguments, options = watched(jaxrnn.GRU, **ALL)
    exact = diagnostics.gradient_flow(*arguments, **options).jacobians.h
    estimate = functools.partial(diagnostics.gradient_flow, *arguments, probes=4000, **options)
    found = estimate().jacobians.h
    # the square's relative deviation is at most sqrt(2 / 4000) = 2.2 %, the norm's half of it
    np.testing.assert_allclose(found, exact, rtol=0.06)
    assert np.all(found[exact > 0] != exact[exact > 0])
    assert np.all(estimate(key=jax.random.key(1)).jacobians.h[exact > 0] != found[exact > 0])


def test_large_states_are_probed_without_being_asked():
    for hidden, exact in ((64, True), (65, False)):
        problem = make_problem(jaxrnn.ELMAN, T=2, batch=(1,), H=hidden)
        flow = diagnostics.gradient_flow(problem.cell, problem.params, problem.xs, None)
        assert math.isclose(flow.jacobians.h[-1, 0], math.sqrt(hidden), rel_tol=1e-12) == exact


def test_spectral_radius_is_that_of_every_gate_block(cell):
    _, arguments, _ = watched(cell)
    w_hh = np.asarray(arguments[1].w_hh)
    blocks = np.split(w_hh, w_hh.shape[1] // H, axis=1)
    expected = np.array([np.abs(np.linalg.eigvals(block)).max() for block in blocks])
    assert_same(diagnostics.gradient_flow(*arguments).spectral_radius, expected, 1e-10)


def test_saturated_gates_are_those_outside_of_their_steep_part():
    problem, (cell, params, xs, dhs, *rest), options = watched(jaxrnn.LSTM, lengths=True)
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    found = diagnostics.gradient_flow(cell, params, xs, dhs, *rest, **options).saturated
    _, _, states = jaxrnn.unroll(
        cell, params, xs, problem.initial_state, return_states=True, **options
    )
    before = jnp.concatenate([problem.initial_state.h[None], states.h[:-1]])
    i, f, g, o = jnp.split(
        xs @ params.w_ih + before @ params.w_hh + params.b[None, None], 4, axis=-1
    )
    valid = np.arange(T)[:, None] < LENGTHS
    for name, a in (("i", i), ("f", f), ("o", o)):
        gate = jax.nn.sigmoid(a)
        share = np.mean((gate < 0.1) | (gate > 0.9), axis=-1)
        np.testing.assert_array_equal(getattr(found, name), np.where(valid, share, 0))
    np.testing.assert_array_equal(
        found.g, np.where(valid, np.mean(np.abs(np.tanh(g)) > 0.8, axis=-1), 0)
    )
    assert 0 < np.mean(found.i) < 1


def test_saturation_is_left_out_for_a_cell_that_does_not_tell_its_slopes():
    consts = {"mask": jnp.ones((B, H)), "name": jnp.int32(1)}
    _, arguments, _ = watched(MASKED_ELMAN, consts=consts)
    assert diagnostics.gradient_flow(*arguments, consts=consts).saturated is None


def spoilt(name, arguments, value):
    cell, params, xs, dhs, dfinal, initial_state = arguments
    if name == "params":
        params = params._replace(w_hh=params.w_hh.at[0, 0].set(value))
    elif name == "initial_state":
        initial_state = initial_state._replace(h=initial_state.h.at[2, 0].set(value))
    elif name == "xs":
        xs = xs.at[3, 2, 1].set(value)
    elif name == "dhs":
        dhs = dhs.at[1, 2, 0].set(value)
    elif name == "dfinal":
        dfinal = dfinal._replace(h=dfinal.h.at[2, 0].set(value))
    elif name == "forward pass":
        params = params._replace(b=params.b.at[0].set(jnp.finfo(params.b.dtype).max))
        params = params._replace(w_ih=params.w_ih.at[0, 0].set(jnp.finfo(params.b.dtype).max))
        xs = xs.at[:, :, 0].set(0).at[2, 2, 0].set(1)
    elif name == "backward pass":
        big = jnp.finfo(dhs.dtype).max
        dhs = dhs.at[2, 2].set(big).at[3, 2].set(big)
    return cell, params, xs, dhs, dfinal, initial_state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "step", "step_reversed"),
    [
        ("params", 0, 3),
        ("initial_state", 0, 3),
        ("xs", 3, 3),
        ("dhs", 1, 1),
        ("dfinal", 3, 0),
    ],
)
def test_the_first_nonfinite_step_and_where_it_began(name, step, step_reversed, value, reverse):
    _, arguments, options = watched(jaxrnn.GRU, lengths=True, reverse=reverse)
    found = diagnostics.gradient_flow(*spoilt(name, arguments, value), **options).nonfinite
    # row 2 has four steps, row 1 none
    assert int(found.step[2]) == (step_reversed if reverse else step)
    assert ORIGINS[found.origin[2]] == name
    assert int(found.step[1]) == -1
    assert ORIGINS[found.origin[1]] == "none"
    others = "params" if name == "params" else "none"
    assert ORIGINS[found.origin[0]] == others


def test_an_overflow_is_told_from_an_argument_that_was_not_finite():
    _, (cell, params, xs, dhs, *rest), options = watched(jaxrnn.ELMAN)
    top = np.finfo(np.float64).max
    find = functools.partial(diagnostics.gradient_flow, cell, **options)

    # at step 0 of row 1, the input's part of the pre-activation is -inf, the state's +inf
    huge = params._replace(
        w_ih=jnp.full_like(params.w_ih, -top), w_hh=jnp.full_like(params.w_hh, top)
    )
    row = jnp.zeros((B, 1)).at[1].set(1)
    found = find(
        huge,
        2 * row[None] * jnp.ones_like(xs),
        None,
        None,
        rest[1]._replace(h=row * jnp.ones((B, H))),
    )
    np.testing.assert_array_equal(found.nonfinite.step, [-1, 0, -1])
    assert ORIGINS[found.nonfinite.origin[1]] == "forward pass"

    # two finite cotangents, of h_4 itself and through step 5, whose sum is not
    h = jnp.zeros_like(params.b)
    identity = params._replace(w_ih=0 * params.w_ih, w_hh=jnp.eye(H), b=h)
    at_rest = rest[1]._replace(h=jnp.zeros((B, H)))
    dhs = jnp.zeros_like(dhs).at[4:6, 2].set(top)
    found = find(identity, xs, dhs, None, at_rest).nonfinite
    np.testing.assert_array_equal(found.step, [-1, -1, 4])
    assert ORIGINS[found.origin[2]] == "backward pass"


def truncated_by_autodiff(problem, cotangents, k):
    """One unroll per window, the state handed on without its gradient."""
    cell, options = problem.cell, dict(problem.options)
    reverse = options["reverse"]
    valid = np.arange(T)[:, None] < np.asarray(options.pop("lengths", np.full(B, T)))
    resets = options.pop("resets", jnp.zeros((T, B), bool))
    starts = range(0, T, k)

    def run(params):
        state, pieces = problem.initial_state, []
        for start in starts:
            window = slice(max(T - start - k, 0), T - start) if reverse else slice(start, start + k)
            state = jax.tree.map(jax.lax.stop_gradient, state) if start else state
            state, hs = jaxrnn.unroll_reference(
                cell, params, problem.xs[window], state, resets=resets[window],
                lengths=valid[window].sum(0), reverse=reverse,
            )  # fmt: skip
            pieces.append(hs)
        return state, jnp.concatenate(pieces[::-1] if reverse else pieces)

    return jax.jit(lambda: jax.vjp(run, problem.params)[1](cotangents)[0])()


@pytest.mark.parametrize(
    ("k", "reverse"), [(3, False), (4, True), pytest.param(1, False, marks=pytest.mark.slow)]
)
def test_truncation_bias_is_that_of_windows_without_a_gradient_between_them(cell, k, reverse):
    # the final state of a row that ended in an earlier window is held, and so is its gradient:
    # windows that are unrolled one by one cannot hand it back, so all rows end in the last one
    problem, arguments, options = watched(cell, resets=True, reverse=reverse)
    _, _, _, dhs, dfinal, _ = arguments
    found = diagnostics.truncation_bias(*arguments, k=k, **options)
    exact = vjp(problem, jaxrnn.unroll_reference, (dfinal, dhs))[1][0]
    truncated = truncated_by_autodiff(problem, (dfinal, dhs), k)

    def norm(leaf):
        return np.linalg.norm(np.ravel(leaf))

    error = jax.tree.map(lambda a, b: norm(a - b) / norm(b), truncated, exact)
    cosine = jax.tree.map(lambda a, b: np.vdot(a, b) / (norm(a) * norm(b)), truncated, exact)
    assert_same(found, diagnostics.TruncationBias(error, cosine))
    assert all(leaf > 0.01 for leaf in found.relative_error)


def test_nothing_is_truncated_by_one_window_and_nothing_is_left_of_a_gradient_from_outside():
    _, arguments, options = watched(jaxrnn.LSTM, **ALL)
    whole = diagnostics.truncation_bias(*arguments, k=T, **options)
    right = jax.tree.map(jnp.zeros_like, whole.relative_error)
    right = diagnostics.TruncationBias(right, jax.tree.map(lambda leaf: leaf + 1, right))
    assert_same(whole, right)
    # no gradient at all: nothing lost
    cell, params, xs, *_ = arguments
    nothing = diagnostics.truncation_bias(cell, params, xs, None, k=1)
    jax.tree.map(np.testing.assert_array_equal, nothing, right)


DIAGNOSTICS = {
    "backpropagate": {},
    "step_contributions": {"window": (1, 3), "from_end": True},
    "horizon": {"fraction": 0.9},
    "example_gradient_norms": {},
    "gradient_flow": {"probes": 3},
    "truncation_bias": {"k": 2},
}
each_diagnostic = pytest.mark.parametrize("name", DIAGNOSTICS)


@each_diagnostic
def test_diagnostics_run_under_jit(name):
    _, (cell, *arguments), options = watched(jaxrnn.GRU, **ALL)
    call = functools.partial(getattr(diagnostics, name), cell, **DIAGNOSTICS[name])
    assert_same(
        jax.jit(call)(*arguments, **{"lengths": options["lengths"]}),
        call(*arguments, lengths=options["lengths"]),
    )


def test_no_cotangent_is_a_cotangent_of_zeros():
    _, (cell, params, xs, dhs, dfinal, _), _ = watched(jaxrnn.LSTM)
    call = functools.partial(diagnostics.backpropagate, cell, params, xs)
    zeros = jax.tree.map(jnp.zeros_like, (dhs, dfinal))
    assert_same(call(None, dfinal), call(zeros[0], dfinal))
    assert_same(call(dhs), call(dhs, zeros[1]))


@each_diagnostic
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_diagnostics_take_every_cell_and_dtype(cell, name, dtype):
    problem = make_problem(cell, T=T, batch=(2, B), dtype=dtype, **ALL_REVERSED)
    dhs = jnp.ones_like(jax.eval_shape(problem.outputs)[1])
    call = functools.partial(getattr(diagnostics, name), cell, **DIAGNOSTICS[name])
    found = jax.eval_shape(
        lambda: call(
            problem.params, problem.xs, dhs, None, problem.initial_state, **problem.options
        )
    )
    measured = {leaf.dtype for leaf in jax.tree.leaves(found)} - {jnp.dtype(jnp.int32)}
    # measures of 16-bit gradients are float32, as their sums are
    assert measured <= {jnp.dtype(dtype), jnp.dtype(jnp.float32)}


@each_diagnostic
@pytest.mark.parametrize(("steps", "rows"), [(0, 2), (3, 0)])
def test_diagnostics_of_nothing_are_zero(name, steps, rows):
    problem = make_problem(jaxrnn.LSTM, T=steps, batch=(rows,))
    options = {"backpropagate": {}, "truncation_bias": {"k": 1}}.get(name, {})
    call = getattr(diagnostics, name)
    found = call(problem.cell, problem.params, problem.xs, None, **options)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))


BAD_ARGUMENTS = [
    (
        "step_contributions",
        {"window": (2, 8)},
        ValueError,
        r"`window` must be .* T=7; got \(2, 8\)",
    ),
    ("step_contributions", {"window": (3, 3)}, ValueError, r"`window`.*got \(3, 3\)"),
    ("step_contributions", {"window": (-1, 3)}, ValueError, r"`window\[0\]`.*got -1"),
    ("step_contributions", {"window": (0, 2.0)}, TypeError, r"`window\[1\]`.*got 2.0"),
    ("step_contributions", {"window": 3}, TypeError, r"`window` must be a pair .*got int 3"),
    ("step_contributions", {"from_end": 1}, TypeError, "`from_end` must be True or False"),
    ("horizon", {"fraction": 0}, ValueError, "`fraction` must be above 0 .*got 0"),
    ("horizon", {"fraction": 1.0}, ValueError, "`fraction` must be .*below 1; got 1.0"),
    ("horizon", {"fraction": "0.9"}, TypeError, "`fraction` must be a number; got str"),
    ("gradient_flow", {"probes": 0}, ValueError, "`probes` must be an int of at least 1.*got 0"),
    ("gradient_flow", {"probes": 1.0}, TypeError, "`probes`"),
    ("truncation_bias", {"k": 8}, ValueError, r"`k` must be in 1..T=7, the steps of `xs`; got 8"),
    ("truncation_bias", {"k": 0}, ValueError, "`k` must be an int of at least 1.*got 0"),
    ("truncation_bias", {"k": 2.0}, TypeError, "`k`"),
    ("explain", {"windows": (2, 8)}, ValueError, r"`windows\[1\]` must be in 1..T=7.*got 8"),
    ("explain", {"windows": (0,)}, ValueError, r"`windows\[0\]`"),
    ("gradient_flow", {"key": 5}, TypeError, "`key` must be one jax.random.key; got int 5"),
    ("gradient_flow", {"key": jnp.ones(2)}, TypeError, "`key` must be one jax.random.key"),
    ("explain", {"title": 3}, TypeError, "`title` must be a string or None; got int 3"),
    ("explain", {"figure": 3}, TypeError, "`figure` must be a matplotlib Figure.*got int 3"),
    ("explain", {"foo": 3}, TypeError, "unknown argument `foo`"),
    ("explain", {"lengths": np.zeros(B, int)}, ValueError, "`lengths` must leave a step"),
    ("explain", {"windows": 3}, TypeError, "`windows` must be a tuple of ints; got int 3"),
    ("horizon", {"lenghts": LENGTHS}, TypeError, "unknown argument `lenghts`: .* lengths, resets"),
    ("explain", {"lengths": LENGTHS + 1}, ValueError, "`lengths` must lie in 0..T=7"),
    ("horizon", {"resets": np.zeros((T, B))}, TypeError, "`resets` must be booleans"),
]


@pytest.mark.parametrize(("name", "options", "error", "said"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(name, options, error, said):
    _, arguments, _ = watched(jaxrnn.ELMAN)
    with pytest.raises(error, match=said):
        getattr(diagnostics, name)(*arguments, **options)


@each_diagnostic
def test_cotangents_that_do_not_fit_are_named(name):
    _, (cell, params, xs, dhs, dfinal, _), _ = watched(jaxrnn.ELMAN)
    call = functools.partial(getattr(diagnostics, name), cell, params, xs, **DIAGNOSTICS[name])
    with pytest.raises(ValueError, match=r"`dhs` must have shape \(7, 3, 4\)"):
        call(dhs[:-1])
    with pytest.raises(TypeError, match="`dfinal` must be ElmanState"):
        call(dhs, dfinal.h)


@pytest.mark.parametrize("flags", [PLAIN, ALL, ALL_REVERSED], ids=["plain", "all", "reversed"])
def test_explain_tells_what_the_diagnostics_found(flags):
    _, arguments, options = watched(jaxrnn.LSTM, **flags)
    explained = diagnostics.explain(*arguments, windows=(2, 5), **options)
    gradients = diagnostics.backpropagate(*arguments, **options).params
    horizons = diagnostics.horizon(*arguments, **options)
    from_end = "lengths" in options and not options["reverse"]
    parts = diagnostics.step_contributions(*arguments, from_end=from_end, **options)
    assert_same(jax.device_get(explained.contributions), jax.device_get(parts))
    assert_same(explained.gradients.params, jax.device_get(gradients))
    assert explained.horizons == horizons
    rows = {line.split()[0]: line for line in explained.table.split("\n") if line}
    for name, gradient in gradients._asdict().items():
        assert f"{jnp.linalg.norm(gradient):.3g}" in rows[name]
        assert f"{getattr(horizons, name)} of 7" in rows[name]
        for bias in explained.biases.values():
            assert f"{getattr(bias.relative_error, name):.1%}" in rows[name]
            assert f"({getattr(bias.cosine, name):+.2f})" in rows[name]
    assert "every number is finite" in explained.table

    shares, states, jacobians, saturated = explained.figure.axes[:4]
    assert [label.get_text() for label in shares.get_yticklabels()] == ["w_ih", "w_hh", "b"]
    (image,) = shares.get_images()
    norms = np.stack(parts.norms)
    expected = np.clip(norms / norms.sum(1, keepdims=True), 1e-4, 1)
    np.testing.assert_allclose(image.get_array(), expected)
    for axes, count in ((states, 2), (jacobians, 2), (saturated, 4)):
        assert len(axes.get_lines()) == count
    # a line before the last steps that hold the gradient
    for row, edge in enumerate(shares.get_lines()):
        last = int(horizons[row]) if options["reverse"] else T - int(horizons[row])
        assert edge.get_xdata()[0] == last - 0.5 - (T - 1 if from_end else 0)


def test_explain_draws_where_it_is_told_and_says_what_is_not_finite():
    _, arguments, _ = watched(jaxrnn.ELMAN)
    left, right = Figure(layout="constrained").subfigures(1, 2)
    diagnostics.explain(*arguments, title="on the left", figure=left)
    found = diagnostics.explain(*spoilt("xs", arguments, np.nan), title="spoilt", figure=right)
    assert found.figure is right
    assert len(left.axes) == len(right.axes)
    assert left.get_suptitle() == "on the left"
    assert found.table.startswith("spoilt\n")
    assert "NOT FINITE from step 3, row 2: began in xs" in found.table


def test_explain_wants_numbers_and_something_to_explain():
    _, (cell, params, xs, dhs, *_), _ = watched(jaxrnn.ELMAN)
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda xs: diagnostics.explain(cell, params, xs, dhs))(xs)
    with pytest.raises(ValueError, match="`xs` must hold at least one step of one row"):
        diagnostics.explain(cell, params, xs[:0], None)


def test_explain_without_matplotlib_says_how_to_get_it(monkeypatch):
    _, arguments, _ = watched(jaxrnn.ELMAN)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib.*not installed.*\[experiments\]"):
        diagnostics.explain(*arguments)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_gradients_that_vanish_or_explode_are_measured_all_the_same(scale):
    """Squares of these leave the range of float32 long before the gradients do."""
    _, (cell, params, xs, dhs, dfinal, state), options = watched(
        jaxrnn.LSTM, dtype=jnp.float32, lengths=True
    )
    scaled = jax.tree.map(lambda leaf: leaf * jnp.float32(scale), (dhs, dfinal))

    def seen(dhs, dfinal):
        arguments = (cell, params, xs, dhs, dfinal, state)
        return [
            diagnostics.horizon(*arguments, **options),
            diagnostics.truncation_bias(*arguments, k=2, **options),
            diagnostics.step_contributions(*arguments, **options),
            diagnostics.example_gradient_norms(*arguments, **options),
            diagnostics.gradient_flow(*arguments, **options).states,
        ]

    horizons, bias, steps, examples, states = seen(dhs, dfinal)
    steps = steps._replace(norms=jax.tree.map(lambda leaf: leaf * scale, steps.norms))
    expected = [
        horizons,
        bias,
        steps,
        *(jax.tree.map(lambda a: a * scale, t) for t in (examples, states)),
    ]
    # a power of two: not a bit may differ
    jax.tree.map(np.testing.assert_array_equal, seen(*scaled), expected)
    assert all(leaf > 0 for leaf in horizons)


def test_a_gradient_that_overflows_in_the_sum_alone_is_found():
    _, (cell, params, xs, dhs, *_), _ = watched(jaxrnn.LSTM, dtype=jnp.float32)
    params = jax.tree.map(lambda leaf: leaf * 1e-30, params)
    xs, dhs = 0 * xs, 0 * dhs
    found = diagnostics.gradient_flow(
        cell, params, xs.at[2, 1].set(1e30), dhs.at[2, 1].set(1e25), lengths=jnp.array([2, 7, 7])
    ).nonfinite
    np.testing.assert_array_equal(found.step, [-1, 2, 2])
    assert ORIGINS[found.origin[1]] == "sum over time"
    finite = diagnostics.gradient_flow(cell, params, xs, dhs).nonfinite
    np.testing.assert_array_equal(finite.step, [-1, -1, -1])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_windows_of_a_padded_row_are_those_of_the_row_alone(reverse):
    _, (cell, params, xs, dhs, _, state), _ = watched(jaxrnn.GRU)
    row, length = 1, 5
    first = jax.tree.map(lambda leaf: leaf[row], state)
    call = functools.partial(diagnostics.truncation_bias, cell, params, k=2, reverse=reverse)
    alone = call(xs[:length, row], dhs[:length, row], None, first)
    padded = call(xs[:, row], dhs[:, row], None, first, lengths=jnp.int32(length))
    assert_same(padded, alone)


def test_example_gradient_norms_hold_one_parameter_at_a_time(cell):
    problem = make_problem(cell, T=1, batch=(2,), I=64, H=64, dtype=jnp.float32)
    call = functools.partial(diagnostics.example_gradient_norms, cell)
    program = jax.jit(call).lower(problem.params, problem.xs, jnp.ones((1, 2, 64), jnp.float32))
    in_memory = program.compile().memory_analysis().temp_size_in_bytes
    weight = problem.params.w_hh.nbytes
    assert weight < in_memory < 1.5 * weight


def test_explain_draws_what_there_is():
    consts = {"mask": jnp.ones((B, H)), "name": jnp.int32(1)}
    _, arguments, _ = watched(MASKED_ELMAN, consts=consts)
    lengths = jnp.array([3, 0, 2])
    found = diagnostics.explain(*arguments, consts=consts, lengths=lengths, windows=range(1, 3))
    _, states, jacobians, *_ = found.figure.axes
    assert "saturated" not in found.table
    assert jacobians.get_xlabel()
    assert states.get_xlim() == (-2.5, 0.5)
    assert sorted(found.biases) == [1, 2]

    cell, params, xs, dhs, *_ = watched(jaxrnn.GRU)[1]
    one = diagnostics.explain(cell, params, xs[:1, 0], dhs[:1, 0])
    assert one.figure.get_suptitle() == "GRU: 1 step, 1 row, 3 inputs, 4 units"
    assert one.figure.axes[1].get_lines()[0].get_marker() == "o"

    # a row that is not finite does not hide the others
    spoilt_row = diagnostics.explain(cell, params, xs.at[2, 1].set(jnp.nan), dhs)
    assert np.all(np.isfinite(spoilt_row.figure.axes[1].get_lines()[0].get_ydata()))
    assert "NOT FINITE from step 2, row 1: began in xs" in spoilt_row.table
