"""What the diagnostics show is what autodiff and plain loops find, at every step."""

import base64
import functools
import io
import math
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from support.cells import MASKED_ELMAN, MATRIX
from support.problems import assert_same, inputs_of, make_problem, random_tree, vjp, vjp_program
from support.programs import equations, product_flops

import jaxrnn
from jaxrnn import diagnostics
from jaxrnn.cells.cell import Drawn
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
    assert diagnostics.horizon(cell, params, xs, 0 * dhs) == (0, 0, 0)
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
    assert np.all(estimate(probe_key=jax.random.key(1)).jacobians.h[exact > 0] != found[exact > 0])


def test_large_states_are_probed_without_being_asked():
    for hidden, exact in ((64, True), (65, False)):
        problem = make_problem(jaxrnn.ELMAN, T=2, batch=(1,), H=hidden)
        dhs = jnp.zeros((2, 1, hidden))
        flow = diagnostics.gradient_flow(problem.cell, problem.params, problem.xs, dhs)
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
        0 * dhs,
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
    """One unroll per window, the state handed on without its gradient; the last window is whole."""
    cell, options = problem.cell, dict(problem.options)
    reverse = options["reverse"]
    valid = np.arange(T)[:, None] < np.asarray(options.pop("lengths", np.full(B, T)))
    resets = options.pop("resets", jnp.zeros((T, B), bool))
    ends = range(T % k or k, T + 1, k)

    def run(params):
        state, pieces = problem.initial_state, []
        for end in ends:
            start = max(end - k, 0)
            window = slice(T - end, T - start) if reverse else slice(start, end)
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
    """The last window ends at the last step; it used to be the first that began at the first."""
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
    cell, params, xs, dhs, *_ = arguments
    nothing = diagnostics.truncation_bias(cell, params, xs, 0 * dhs, k=1)
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
    problem = make_problem(jaxrnn.LSTM, T=steps, batch=(rows,), **ALL_REVERSED)
    options = {**problem.options, **{"truncation_bias": {"k": 1}}.get(name, {})}
    call = getattr(diagnostics, name)
    dhs = jnp.zeros((steps, rows, 4))
    found = call(problem.cell, problem.params, problem.xs, dhs, **options)
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
    ("gradient_flow", {"probe_key": 5}, TypeError, "`probe_key` must be one jax.* got int 5"),
    ("gradient_flow", {"probe_key": jnp.ones(2)}, TypeError, "`probe_key` must be one jax"),
    ("explain", {"title": 3}, TypeError, "`title` must be a string or None; got int 3"),
    ("explain", {"figure": 3}, TypeError, "`figure` must be a matplotlib Figure.*got int 3"),
    ("explain", {"foo": 3}, TypeError, "unknown argument `foo`"),
    ("explain", {"lengths": np.zeros(B, int)}, ValueError, "`lengths` must leave a step"),
    ("explain", {"windows": 3}, TypeError, "`windows` must be a tuple of ints; got int 3"),
    (
        "horizon",
        {"lenghts": LENGTHS},
        TypeError,
        "unknown argument `lenghts`: .* lengths, mask, resets",
    ),
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
        diagnostics.explain(cell, params, xs[:0], dhs[:0])


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


# every option at once, against a plain loop

# valid steps, resets and detached steps of three rows: with holes, without a step, shorter; resets
# stand on masked steps, too, and on the first valid step of row 0, after which a reversed row ends
MASK = np.array([[1, 1, 0, 1, 1, 0, 1], [0] * 7, [0, 1, 1, 0, 1, 1, 0]], bool).T
RESETS = np.array([[1, 0, 1, 0, 1, 0, 0], [1] + [0] * 6, [0, 0, 1, 1, 0, 0, 0]], bool).T
DETACH = np.array([[0, 0, 0, 1, 1, 0, 0], [0, 1] + [0] * 5, [0, 0, 0, 0, 1, 1, 0]], bool).T
every_option = pytest.mark.parametrize(
    ("cell", "reverse"),
    [
        ("MATRIX", False),
        ("MATRIX", True),
        ("LSTM", True),
        pytest.param("LSTM", False, marks=pytest.mark.slow),
    ],
)


def floats(tree):
    """None for leaves without a gradient."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None, tree)


class Plain:
    """A problem with every option, its arguments, and its gradients by autodiff of a plain loop."""

    def __init__(self, cell, reverse):
        self.cell = {"MATRIX": MATRIX}.get(cell) or getattr(jaxrnn, cell)
        self.reverse = reverse
        self.params = self.cell.init(jax.random.key(0), I, H, dtype=jnp.float64)
        self.x = random_tree(jax.ShapeDtypeStruct((T, B, I), jnp.float64), 1)
        state = jax.eval_shape(lambda: self.cell.initial_state(self.params, (B,)))
        self.options = {
            "mask": jnp.asarray(MASK),
            "resets": jnp.asarray(RESETS),
            "detach": jnp.asarray(DETACH),
            "reverse": reverse,
        }
        self.consts, self.noise = None, None
        if self.cell is MATRIX:
            self.x = {"x": self.x, "y": jnp.cos(self.x[..., :2])}
            self.consts = {"mask": jnp.linspace(0.5, 1.5, B * 6).reshape(B, 6)}
            key = jax.random.key(7)
            self.options.update(consts=self.consts, key=key)
            _, self.noise = self.cell.draw(key, self.params, T, (B,))
            # made of the params
            self.given = None
            self.initial, self.reset = (self.cell.initial_state(self.params, (B,)),) * 2
        else:
            self.given = self.initial = random_tree(state, 2)
            self.reset = self.options["reset_state"] = random_tree(state, 3)
        outputs = jax.eval_shape(self.unroll, self.params)
        self.cotangents = random_tree(outputs, 5)
        dfinal, dhs = self.cotangents
        self.arguments = (self.cell, self.params, self.x, dhs, dfinal, self.given)
        self.grads = jax.jit(self.gradients)
        self.whole = self.grads(jnp.zeros((T, B), bool), self.cotangents)

    def unroll(self, params, unroll=jaxrnn.unroll_reference):
        return floats(unroll(self.cell, params, self.x, self.given, **self.options))

    def run(self, each, initial, reset, nudges, windows):
        """Params of its own for every step, and ``nudges`` that are added to what it makes."""
        each_step = (each, self.x, self.noise, nudges, MASK, RESETS, DETACH | windows)

        def where(mask, a, b):
            def choose(x, y):
                return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

            return jax.tree.map(choose, a, b)

        def add(nudge, value):
            def one(n, v):
                return v if n is None else v + n

            return jax.tree.map(one, nudge, value, is_leaf=lambda n: n is None)

        def step(carry, at):
            state, due = carry
            params, x, noise, nudge, valid, reset_here, detach = at
            before = where(detach, jax.lax.stop_gradient(state), state)
            before = where(due if self.reverse else reset_here, reset, before)
            if self.cell.draw is not None:
                x = Drawn(x, noise)
            after, h = self.cell.step(params, before, x, self.consts)
            after = add(nudge, after)
            if self.cell.output is None:
                h = after.h
            due = jnp.where(valid, reset_here, due)
            return (where(valid, after, state), due), jnp.where(valid[:, None], h, 0)

        none = jnp.zeros(B, bool)
        (final, due), hs = jax.lax.scan(step, (initial, none), each_step, reverse=self.reverse)
        return floats((where(due, reset, final) if self.reverse else final, hs))

    def gradients(self, windows, cotangents):
        """Of the params at every step, of the initial and the reset state, of every state."""
        each = jax.tree.map(lambda leaf: jnp.stack([leaf] * T), self.params)
        nudges = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape)), floats(self.initial))
        run = functools.partial(self.run, windows=windows)
        pull = jax.vjp(run, each, self.initial, self.reset, nudges)[1]
        each, initial, reset, states = map(floats, pull(cotangents))
        return each, initial, reset, states

    def total(self, each, initial, reset, _):
        """The params' gradient: of all steps, and through states that are made of them."""
        steps = fold(each)
        if self.given is not None:
            return steps

        def made(params):
            return floats(self.cell.initial_state(params, (B,)))

        both = jax.tree.map(jnp.add, initial, reset)
        return jax.tree.map(jnp.add, steps, floats(jax.vjp(made, self.params)[1](both)[0]))

    def of_row(self, b):
        """The gradients of a loss of one row alone."""
        dfinal, dhs = jax.tree.map(jnp.zeros_like, self.cotangents)
        dfinal = jax.tree.map(lambda d, of_all: d.at[b].set(of_all[b]), dfinal, self.cotangents[0])
        dhs = dhs.at[:, b].set(self.cotangents[1][:, b])
        return self.grads(jnp.zeros((T, B), bool), (dfinal, dhs))

    def order(self, b):
        """The valid steps of a row as they are processed."""
        steps = np.flatnonzero(MASK[:, b])
        return steps[::-1] if self.reverse else steps

    def in_line(self):
        """The terms of all rows, each row's valid steps counted from its last one back: ``[T]``."""
        total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), self.whole[0])
        for b in range(B):
            each = self.of_row(b)[0]
            for n, t in enumerate(self.order(b)[::-1]):
                for into, of_row in zip(jax.tree.leaves(total), jax.tree.leaves(each), strict=True):
                    into[n] += of_row[t]
        return total


plain = functools.cache(Plain)


@every_option
def test_backpropagate_with_every_option_is_autodiff_of_a_plain_loop(cell, reverse):
    p = plain(cell, reverse)
    found = diagnostics.backpropagate(*p.arguments, **p.options)
    _, initial, reset, states = p.whole
    expected = (p.total(*p.whole), initial, reset, states)
    assert_same((found.params, found.initial_state, found.reset_state, found.states), expected)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
    # and that is what differentiating the whole call gives
    pull = jax.jit(lambda: jax.vjp(p.unroll, p.params)[1](p.cotangents)[0])
    assert_same(found.params, floats(pull()))
    assert np.any(np.asarray(found.states["m" if cell == "MATRIX" else 0])[MASK])
    assert not np.any(np.asarray(found.states["m" if cell == "MATRIX" else 0])[~MASK])


@every_option
def test_steps_with_every_option_add_what_a_plain_loop_adds(cell, reverse):
    p = plain(cell, reverse)
    call = functools.partial(diagnostics.step_contributions, *p.arguments, window=(0, T))
    found = call(**p.options)
    assert_same((found.gradients, found.norms), (p.whole[0], norms_of(p.whole[0])))
    # entry T-1 is every row's last step, or with reverse entry 0
    last_first = p.in_line()
    expected = last_first if reverse else jax.tree.map(lambda leaf: leaf[::-1], last_first)
    found = call(from_end=True, **p.options)
    assert_same((found.gradients, found.norms), (expected, norms_of(expected)))


@every_option
def test_horizon_with_every_option_counts_the_valid_steps_of_every_row(cell, reverse):
    p = plain(cell, reverse)
    for fraction in (0.6, 0.95):
        found = diagnostics.horizon(*p.arguments, fraction=fraction, **p.options)
        expected = steps_needed(p.in_line(), fraction)
        assert jax.tree.map(int, found) == expected


@every_option
def test_rows_with_every_option_have_the_gradients_of_a_plain_loop(cell, reverse):
    p = plain(cell, reverse)
    found = diagnostics.example_gradient_norms(*p.arguments, **p.options)
    rows = [p.total(*p.of_row(b)) for b in range(B)]
    expected = norms_of(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
    assert_same(found.params, expected)
    assert_same(found.total, np.sqrt(sum(leaf**2 for leaf in jax.tree.leaves(expected))))


@every_option
def test_flow_with_every_option_is_that_of_a_plain_loop(cell, reverse):
    p = plain(cell, reverse)

    def squares(leaf):
        return np.sum(np.asarray(leaf) ** 2, axis=tuple(range(2, leaf.ndim)))

    found = diagnostics.gradient_flow(*p.arguments, **p.options)
    assert_same(found.states, jax.tree.map(lambda d: np.sqrt(squares(d)), p.whole[3]))
    dfinal, dhs = jax.tree.map(jnp.zeros_like, p.cotangents)
    last = np.zeros((T, B), bool)
    for b in range(B):
        last[p.order(b)[-1:], b] = True
    jacobians = jax.tree.map(lambda d: np.zeros((T, B)), p.whole[3])
    for j in range(H):
        seeded = dhs.at[..., j].set(last.astype(float))
        _, _, _, states = p.grads(jnp.zeros((T, B), bool), (dfinal, seeded))
        jacobians = jax.tree.map(lambda n, d: n + squares(d), jacobians, states)
    assert_same(found.jacobians, jax.tree.map(np.sqrt, jacobians))
    assert set(np.unique(found.nonfinite.step)) == {-1}


@every_option
def test_truncation_with_every_option_cuts_windows_of_valid_steps(cell, reverse):
    p, k = plain(cell, reverse), 2
    starts = np.zeros((T, B), bool)
    for b in range(B):
        order = p.order(b)
        starts[order[len(order) % k or k :: k], b] = True
    exact = p.total(*p.whole)
    truncated = p.total(*p.grads(starts, p.cotangents))
    found = diagnostics.truncation_bias(*p.arguments, k=k, **p.options)

    def norm(leaf):
        return np.linalg.norm(np.ravel(leaf))

    error = jax.tree.map(lambda a, b: norm(a - b) / norm(b), truncated, exact)
    cosine = jax.tree.map(
        lambda a, b: np.vdot(a, b) / (norm(a) * norm(b)) if norm(a) else 0.0, truncated, exact
    )
    assert_same(found.relative_error, error)
    assert_same(found.cosine, jax.tree.map(np.float64, cosine))
    assert max(jax.tree.leaves(error)) > 0.01


def test_what_truncation_leaves_of_a_gradient_from_the_end_are_the_last_k_steps(cell):
    """The error used to depend on how T falls into windows, which began at the first step."""
    cell, params, xs, _, dfinal, state = watched(cell)[1]
    arguments = (cell, params, xs, None, dfinal, state)
    terms = diagnostics.step_contributions(*arguments, window=(0, T)).gradients
    for k in (2, 3, 5, 6):
        found = diagnostics.truncation_bias(*arguments, k=k).relative_error
        lost = jax.tree.map(
            lambda t, k=k: np.linalg.norm(t[: T - k].sum(0)) / np.linalg.norm(t.sum(0)), terms
        )
        assert_same(found, lost)


def test_a_loss_is_its_gradients_at_the_outputs():
    p = plain("MATRIX", True)

    def loss(final_state, hs):
        return jnp.sum(jnp.sin(hs)) + jnp.sum(final_state["m"] ** 3)

    options = {**p.options, "loss": loss}
    found = diagnostics.backpropagate(p.cell, p.params, p.x, **options).params
    expected = jax.jit(
        jax.grad(lambda params: loss(*p.unroll(params)), allow_int=True)
    )(p.params)  # fmt: skip
    assert_same(found, floats(expected))
    explained = diagnostics.explain(p.cell, p.params, p.x, windows=(3,), **options)
    assert_same(explained.gradients.params, jax.device_get(found))


@pytest.mark.parametrize("reverse", [False, True])
def test_explain_names_everything_of_any_cell_and_draws_valid_steps_side_by_side(reverse):
    p = plain("MATRIX", reverse)
    explained = diagnostics.explain(*p.arguments, windows=(3,), **p.options)
    lines = explained.table.split("\n")
    assert lines[0] == "MATRIX: 7 steps, 3 rows, 5 inputs, 4 units"
    names = [line.split()[0] for line in lines if " of 5" in line]
    assert names == ["o", "start", "u", "v", "w"]
    (radii,) = (line for line in lines if line.startswith("spectral radius"))
    # in the cell's order, not in that of the alphabet
    radius = np.abs(np.linalg.eigvals(np.asarray(p.params["w"]))).max()
    assert radii.endswith(f"zeta {radius:.3f}, half {radius / 2:.3f}")
    assert "the last window ends at each row's last step" in explained.table
    states = explained.figure.axes[1]
    assert [line.get_label() for line in states.get_lines()] == [r"$\partial L\,/\,\partial m_t$"]
    # five valid steps in the longest row, four in another
    assert explained.figure.axes[2].get_xlim() == ((-0.5, 4.5) if reverse else (-4.5, 0.5))
    norms = np.linalg.norm(np.asarray(p.whole[3]["m"]).reshape(T, B, -1), axis=-1)
    last, first = (norms[p.order(0)[n], 0] for n in (-1, 0))
    expected = [np.median([last, norms[p.order(2)[-1], 2]]), first]
    # no line is drawn through zeros
    drawn = np.nan_to_num(states.get_lines()[0].get_ydata())
    np.testing.assert_allclose(drawn[[0, 4] if reverse else [-1, -5]], expected)


def test_an_explanation_shows_its_table_and_in_a_notebook_its_figure():
    _, arguments, _ = watched(jaxrnn.ELMAN)
    explained = diagnostics.explain(*arguments, title="a < b", windows=())
    assert repr(explained) == explained.table
    assert "truncated" not in explained.table
    shown = explained._repr_html_()
    assert "a &lt; b" in shown
    assert base64.b64decode(shown.partition("base64,")[2].partition('"')[0])[1:4] == b"PNG"


@pytest.mark.parametrize("name", [*DIAGNOSTICS, "explain"])
def test_a_gradient_of_nothing_is_refused(name):
    _, (cell, params, xs, dhs, *_), _ = watched(jaxrnn.ELMAN)
    call = functools.partial(
        getattr(diagnostics, name), cell, params, xs, **DIAGNOSTICS.get(name, {})
    )
    with pytest.raises(ValueError, match=r"`dhs` and `dfinal` are both None.*`loss`"):
        call()
    with pytest.raises(ValueError, match="`loss` takes the place of `dhs` and `dfinal`"):
        call(dhs, loss=lambda state, hs: jnp.sum(hs))
    with pytest.raises(TypeError, match=r"`loss` must return a floating scalar; got float64\[4\]"):
        call(loss=lambda state, hs: jnp.sum(hs, axis=(0, 1)))
    with pytest.raises(TypeError, match=r"`loss` must be a function .*got float64\[7, 3, 4\]"):
        call(loss=dhs)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_first_nonfinite_step_and_row_with_every_option(reverse):
    p = plain("MATRIX", reverse)
    cell, params, xs, dhs, dfinal, _ = p.arguments
    find = functools.partial(diagnostics.gradient_flow, cell, params, xs)

    def said(found):
        steps, origins = found.nonfinite
        return [(int(t), ORIGINS[n]) for t, n in zip(steps, origins, strict=True)]

    none = (-1, "none")
    state = cell.initial_state(params, (B,))
    bad = {**state, "m": state["m"].at[:, 0, 0].set(np.nan)}
    # row 0 starts with a reset and so does not read it forwards
    first = [(6, "initial_state"), none, (5, "initial_state")]
    expected = first if reverse else [none, none, (1, "initial_state")]
    assert said(find(dhs, dfinal, bad, **p.options)) == expected
    # read by the step itself forwards, by the next valid one in reverse
    expected = [(3, "reset_state"), none, (1, "reset_state")]
    expected = expected if reverse else [(0, "reset_state"), none, (2, "reset_state")]
    assert said(find(dhs, dfinal, reset_state=bad, **p.options)) == expected
    options = {**p.options, "consts": {"mask": p.consts["mask"].at[2].set(np.nan)}}
    expected = [none, none, (5 if reverse else 1, "consts")]
    assert said(find(dhs, dfinal, **options)) == expected
    # the final state's cotangent arrives at the last step, or, in reverse and row 0, at no step
    # but the reset state that stands in its place
    dfinal = {**dfinal, "m": dfinal["m"].at[:, 0, 0].set(np.inf)}
    expected = [(0 if reverse else 6, "dfinal"), none, (1 if reverse else 5, "dfinal")]
    assert said(find(0 * dhs, dfinal, **p.options)) == expected


def test_a_row_with_constants_of_its_own_costs_a_row():
    """In products: sixteen rows cost as much as without the constants, not sixteen times."""

    def cost(cell, **more):
        problem = make_problem(cell, T=5, batch=(16,), I=3, H=4)
        call = functools.partial(diagnostics.example_gradient_norms, cell, **more)
        compiled = jax.jit(call).lower(problem.params, problem.xs, jnp.ones((5, 16, 4))).compile()
        return product_flops(compiled)

    consts = {"mask": jnp.ones((16, 4)), "name": jnp.int32(1)}
    assert cost(MASKED_ELMAN, consts=consts) == cost(jaxrnn.ELMAN)


def test_an_output_of_several_arrays_has_no_jacobian():
    """A cell whose output is a pytree: all else is found."""

    def output(params, after, gates, consts):
        return {"mean": jnp.mean(after.h, axis=-1, keepdims=True), "h": after.h}

    def step(params, state, x, consts=None):
        state, _ = jaxrnn.ELMAN.step(params, state, x)
        return state, output(params, state, (), None)

    def pull(params, adjoint, slope, consts):
        dafter, dh = adjoint
        dmean = jnp.broadcast_to(dh["mean"] / dafter.h.shape[-1], dafter.h.shape)
        whole = dafter._replace(h=dafter.h + dmean + dh["h"])
        return jaxrnn.ELMAN.pull(params, whole, slope, consts)

    two = jaxrnn.ELMAN._replace(name="TWO", output=output, step=step, pull=pull)
    _, (_, params, xs, dhs, dfinal, state), _ = watched(jaxrnn.ELMAN)
    cotangents = {"mean": dhs[..., :1], "h": dhs}
    flow = diagnostics.gradient_flow(two, params, xs, cotangents, dfinal, state)
    assert flow.jacobians is None
    explained = diagnostics.explain(two, params, xs, cotangents, dfinal, state, windows=())
    assert "dh_T" not in explained.table
    same = dhs + jnp.broadcast_to(dhs[..., :1] / H, dhs.shape)
    expected = diagnostics.backpropagate(jaxrnn.ELMAN, params, xs, same, dfinal, state)
    assert_same(explained.gradients.params, jax.device_get(expected.params))


def numbers_apart(text):
    """The words of a text without its numbers, and each number with its last place's worth."""
    number = r"([-+]?\d+)(\.\d+)?(e[-+]\d+)?"
    found = re.findall(number, text)
    places = [float(f"1e{int(e[1:] or 0) - len(decimals[1:])}") for _, decimals, e in found]
    return re.sub(number, "#", text).split(), [float("".join(n)) for n in found], places


def test_the_readme_shows_the_table_that_its_code_prints(tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code, table = re.search(
        r"```python\n([^`]*diagnostics\.explain[^`]*)```.*?```text\n(.*?)```", readme, re.DOTALL
    ).groups()
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    # as a reader would run it
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        redirect_stdout(printed),
    ):
        exec(compile(code, "README.md", "exec"), {})
    words, numbers, _ = numbers_apart(printed.getvalue())
    expected_words, expected, places = numbers_apart(table)
    assert words == expected_words
    # another machine may round a number of float32 to the next one
    assert np.all(np.abs(np.subtract(numbers, expected)) <= 1.01 * np.array(places))
