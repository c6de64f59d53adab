"""All cells of the library, one after the other, by the same tests: see `support.catalogue`."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.catalogue import CATALOGUE
from support.faults import Dialled, with_dials
from support.problems import assert_same, inputs_of, make_problem, random_tree, vjp
from support.programs import carries, collectives, products, step_loops, weights_made_at_every_step

import jaxrnn
from jaxrnn import memory
from jaxrnn.call import plan_of, sizes_of_call, validate
from jaxrnn.parallel import make_mesh, replicate, shard_rows
from jaxrnn.testing import check_cell, relative_differences

T, B, I, H = 6, 3, 3, 4
DIALS = 48

every_cell = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


def make(entry, T, batch=(B,), I=I, H=H, **options):
    """A problem of the entry's cell, with its consts."""
    consts = None
    if entry.make_consts is not None:
        consts = entry.make_consts(jax.random.key(4), batch, I, H, jnp.float64)
    return make_problem(entry.cell, T, batch, I, H, consts=consts, **options)


@functools.cache
def problem_of(entry):
    key = None if entry.cell.draw is None else jax.random.key(5)
    return make(entry, T, lengths=True, resets=True, key=key)


@functools.cache
def reference_of(entry):
    """Cotangents, and outputs and gradients by autodiff of the step."""
    problem = problem_of(entry)
    like = jax.eval_shape(lambda: problem.outputs(return_states=True))
    cotangents = random_tree(like, seed=3)
    return cotangents, vjp(problem, jaxrnn.unroll_reference, cotangents, return_states=True)


@every_cell
def test_the_adjoint_is_that_of_autodiff_and_every_term_of_it_counts(entry):
    """In one program: the rule as it is, and with each of its terms a quarter too large."""
    problem = problem_of(entry)
    cotangents, (outputs, gradients) = reference_of(entry)
    cell, names = with_dials(entry.cell, DIALS)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def run(dials):
        def f(params, xs, initial_state, consts):
            dialled = problem._replace(
                cell=cell,
                params=Dialled(params, dials),
                xs=xs,
                initial_state=initial_state,
                consts=consts,
            )
            return dialled.outputs(return_states=True)

        found, pull = jax.vjp(f, *inputs_of(problem))
        return found, pull(cotangents)

    found = run(jnp.concatenate([jnp.zeros((1, DIALS)), 0.25 * jnp.eye(DIALS)]))
    right = jax.tree.map(lambda leaf: leaf[0], found)
    assert_same(right, (outputs, gradients))
    for place in ("factors", "dbefore", "dparams", "dxs"):
        assert any(name.startswith(place) for name in names)
    for name, dial in names.items():
        wrong = jax.tree.map(lambda leaf, row=dial + 1: leaf[row], found[1])
        off = max(relative_differences(wrong, gradients).values())
        if name in entry.without_effect:
            assert off <= 1e-12, f"{name} must not count"
        else:
            assert off > 1e-6, f"without {name}, no gradient is wrong"
    assert set(entry.without_effect) <= set(names)


@every_cell
def test_the_step_is_the_equations_of_the_paper(entry):
    """Written again in NumPy, without a helper of the library; without a key."""
    problem = make(entry, 4)
    _, hs, states = problem.outputs(return_states=True)
    params, state, xs = jax.tree.map(
        np.asarray, (problem.params, problem.initial_state, problem.xs)
    )
    consts = () if problem.consts is None else (np.asarray(problem.consts),)
    for t, x in enumerate(xs):
        state = entry.step(params, state, x, *consts)
        found = jax.tree.map(lambda leaf, t=t: leaf[t], states)
        assert_same(found, jax.tree.map(jnp.asarray, state))
        np.testing.assert_allclose(hs[t], entry.output(params, state), rtol=0, atol=1e-12)


@every_cell
def test_the_loops_over_steps_carry_the_state_alone_and_hold_the_products_of_the_step(entry):
    problem = make(entry, 64)

    def loss(params, xs, initial_state):
        inputs = problem._replace(params=params, xs=xs, initial_state=initial_state)
        return sum(map(jnp.sum, jax.tree.leaves(inputs.outputs(residuals="carries"))))

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    loops = step_loops(gradient, problem.params, problem.xs, problem.initial_state)
    state = [leaf.shape for leaf in jax.tree.leaves(problem.initial_state)]
    assert [carries(loop) for loop in loops] == [state] * 3
    forwards, back = entry.products
    # forwards, and again for the chunk whose adjoint is next
    assert sorted(map(products, loops)) == sorted([forwards, forwards, back])


@every_cell
def test_no_step_makes_a_weight_or_a_part_of_one_again(entry):
    steps, hidden = 64, 10
    problem = make(entry, steps, I=5, H=hidden)

    def loss(params, xs):
        return jnp.sum(problem._replace(params=params, xs=xs).outputs(residuals="carries")[1])

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = gradient.lower(problem.params, problem.xs).compile()
    assert weights_made_at_every_step(compiled, steps, hidden) == []


@every_cell
@pytest.mark.parametrize("residuals", ["gates", "states", "carries"])
def test_what_is_kept_is_the_closed_form_in_bytes(entry, residuals):
    problem = make(entry, 64)

    def kept(xs):
        return jax.vjp(lambda xs: problem._replace(xs=xs).outputs(residuals=residuals), xs)[1]

    weights = {leaf.shape for leaf in jax.tree.leaves(problem.params)}
    sizes = [
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(jax.eval_shape(kept, problem.xs))
        if leaf.ndim >= 3 and leaf.shape not in weights
    ]
    options = {"consts": problem.consts}
    call = validate(problem.cell, problem.params, problem.xs, problem.initial_state, options)
    plan, (step, of_call) = plan_of(call, residuals=residuals), sizes_of_call(call)
    expected = memory.footprint(
        *(step, of_call.weights, of_call.T, plan.residuals, plan.chunk, plan.forward_chunk),
        hs_in_states=of_call.hs_in_states,
    )
    assert sum(sizes) - problem.xs.nbytes == expected.kept


@every_cell
@pytest.mark.slow
def test_check_cell_accepts_it(entry):
    example = None
    if not entry.any_size:
        params = entry.cell.init(jax.random.key(0), I, H, dtype=jnp.float64)
        example = jax.tree.map(np.asarray, params), np.zeros(I)
    check_cell(entry.cell, example=example, make_consts=entry.make_consts)


@every_cell
def test_an_export_has_its_values_and_gradients(entry):
    problem = problem_of(entry)

    def loss(params, xs):
        _, hs = problem._replace(params=params, xs=xs).outputs()
        return jnp.sum(hs**2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    exported = jax.export.deserialize(
        jax.export.export(gradient)(problem.params, problem.xs).serialize()
    )
    assert_same(exported.call(problem.params, problem.xs), gradient(problem.params, problem.xs))


@every_cell
def test_rows_on_eight_devices_exchange_nothing_within_a_loop(entry):
    problem = make(entry, 20, (8,), lengths=True, resets=True)
    mesh = make_mesh()

    def loss(params, xs):
        _, hs = problem._replace(params=params, xs=xs).outputs()
        return jnp.sum(hs**2)

    gradient = jax.jit(jax.grad(loss))
    params, xs = replicate(problem.params, mesh), shard_rows(problem.xs, mesh, 1)
    assert set(collectives(gradient.lower(params, xs).compile())) == {(0, "all-reduce")}
    assert_same(gradient(params, xs), gradient(problem.params, problem.xs))


@every_cell
def test_its_steps_make_its_gradient(entry):
    """In the diagnostics: the shares of all steps add up, and so do the rows' own gradients."""
    problem = problem_of(entry)
    arguments = (entry.cell, problem.params, problem.xs)
    options = {
        **problem.options,
        "consts": problem.consts,
        "loss": lambda final_state, hs: jnp.sum(hs**2),
    }
    parts = jaxrnn.diagnostics.step_contributions(*arguments, window=(0, T), **options)
    found = jaxrnn.diagnostics.backpropagate(*arguments, **options)
    assert_same(jax.tree.map(lambda leaf: leaf.sum(0), parts.gradients), found.params)
    norms = jaxrnn.diagnostics.example_gradient_norms(*arguments, **options)
    assert norms.total.shape == (B,)
    if not entry.cell.linear:
        with pytest.raises(ValueError, match="limits its adjoint"):
            jaxrnn.diagnostics.gradient_flow(*arguments, **options)
        return
    flow = jaxrnn.diagnostics.gradient_flow(*arguments, **options)
    assert all(leaf.shape == (T, B) for leaf in jax.tree.leaves(flow.states))


PAGE = Path(__file__).parent.parent / "docs" / "cells.md"
ROWS = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if "| `" in line[:4]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_the_page_of_cells_has_their_states_and_memory(row):
    name, fields, _, *units, _, _ = (entry.strip() for entry in row)
    cell = eval(name.strip("`"), vars(jaxrnn))
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 6, 8))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    assert ", ".join(cell.expects(params).state._fields) == fields
    steps, rows = 64, 4
    call = validate(cell, params, jnp.zeros((steps, rows, 6), jnp.float32), None, {})
    step, sizes = sizes_of_call(call)
    for residuals, shown in zip(["gates", "states", "carries"], units, strict=True):
        plan = (residuals, steps, steps)
        found = memory.footprint(step, sizes.weights, steps, *plan, hs_in_states=sizes.hs_in_states)
        unit = steps * rows * 8 * 4
        assert (found.kept - step.state) / unit == float(shown)


def test_every_cell_is_on_the_page():
    cells = {name for name, value in vars(jaxrnn).items() if isinstance(value, jaxrnn.Cell)}
    shown = {row[0].strip().strip("`").split("(")[0] for row in ROWS}
    transforms = {"projected", "heads", "recurrent_dropout", "zoneout", "clipped", "clip_adjoint"}
    transforms |= {"with_dtypes"}
    assert shown == cells | transforms | {"elman", "leaky"}
