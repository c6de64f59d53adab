"""Lengths, resets and direction: what the padding is, where gradients stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, inputs_of, make_problem, random_tree, vjp, vjp_program

import jaxrnn

directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
LENGTHS = np.array([0, 3, 6, 1])


def padded(cell, reverse=False, **options):
    problem = make_problem(cell, T=6, batch=(4,), reverse=reverse, **options)
    return problem._replace(options={**problem.options, "lengths": jnp.asarray(LENGTHS)})


def padding(problem):
    """True [T, B] past each row's length."""
    return np.arange(problem.xs.shape[0])[:, None] >= LENGTHS


@directions
def test_padding_is_never_read(cell, reverse):
    """A NaN, in the inputs or in the outputs' cotangents, changes no bit of anything."""
    problem = padded(cell, reverse, resets=True)
    past = padding(problem)[..., None]
    with_nan = problem._replace(xs=jnp.where(past, jnp.nan, problem.xs))
    dfinal, dhs, dstates = random_tree(
        jax.eval_shape(lambda: problem.outputs(return_states=True)), seed=3
    )
    nan_cotangents = (dfinal, jnp.where(past, jnp.nan, dhs), dstates)
    for residuals in ("gates", "states", "carries"):
        run = vjp_program(problem, jaxrnn.unroll, return_states=True, residuals=residuals)
        clean = run(inputs_of(problem), (dfinal, dhs, dstates))
        dirty = run(inputs_of(with_nan), nan_cotangents)
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@directions
def test_padding_is_exactly_zero_in_hs_and_dxs_and_holds_the_state(cell, reverse):
    problem = padded(cell, reverse)
    (final, hs, states), (_, dxs, *_) = vjp(problem, jaxrnn.unroll, return_states=True)
    past = padding(problem)
    assert np.all(hs[past] == 0)
    assert np.all(dxs[past] == 0)
    assert np.all(dxs[~past] != 0)
    np.testing.assert_array_equal(states.h[~past], hs[~past])
    held = problem.initial_state if reverse else final
    for kept, state in zip(held, states, strict=True):
        np.testing.assert_array_equal(state[past], np.broadcast_to(kept, state.shape)[past])
    last = states if not reverse else jax.tree.map(lambda s: s[::-1], states)
    jax.tree.map(lambda s, f: np.testing.assert_array_equal(s[-1], f), last, final)


@directions
def test_a_row_of_length_zero_returns_its_initial_state(cell, reverse):
    problem = padded(cell, reverse, resets=True)
    # a reset in the padding must not reach the state either
    everywhere = jnp.ones_like(problem.options["resets"])
    for resets in (None, everywhere):
        final, _ = problem.outputs(resets=resets)
        for state, initial in zip(final, problem.initial_state, strict=True):
            np.testing.assert_array_equal(state[0], initial[0])


@directions
def test_a_padded_row_equals_the_row_without_its_padding(cell, reverse):
    problem = padded(cell, reverse)
    final, hs = problem.outputs()
    for row, length in enumerate(LENGTHS):
        alone = problem._replace(
            xs=problem.xs[:length, row],
            initial_state=jax.tree.map(lambda s, i=row: s[i], problem.initial_state),
            options={"reverse": reverse},
        )
        final_alone, hs_alone = alone.outputs()
        assert_same(hs[:length, row], hs_alone)
        assert_same(jax.tree.map(lambda s, i=row: s[i], final), final_alone)


def test_reverse_is_forward_on_flipped_time(cell):
    problem = make_problem(cell, T=37, batch=(3,))
    final, hs = problem.outputs(reverse=True)
    flipped_final, flipped_hs = problem._replace(xs=problem.xs[::-1]).outputs()
    assert_same((final, hs), (flipped_final, flipped_hs[::-1]))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
def test_lengths_may_have_any_integer_dtype(dtype):
    problem = padded(jaxrnn.GRU)
    expected = problem.outputs()
    assert_same(problem.outputs(lengths=jnp.asarray(LENGTHS, dtype)), expected)
    assert_same(problem.outputs(lengths=LENGTHS.astype(dtype)), expected)


def test_an_8_bit_length_reaches_past_127_steps_and_stays_within():
    problem = make_problem(jaxrnn.ELMAN, T=200, batch=(2,), I=1, H=1)
    for dtype in ("int8", "uint8"):
        lengths = np.array([100, 127], dtype)
        expected = problem.outputs(lengths=lengths.astype("int32"))
        assert_same(problem.outputs(lengths=lengths), expected)
        assert_same(jax.jit(lambda n: problem.outputs(lengths=n))(lengths), expected)


@pytest.mark.parametrize("split", [1, 3, 5])
@directions
def test_a_reset_splits_the_sequence_in_two(cell, reverse, split):
    """Both ways: the part that is processed first keeps the initial state, the other gets zeros."""
    problem = make_problem(cell, T=6, batch=(2,), reverse=reverse)
    resets = jnp.zeros((6, 2), bool).at[split].set(True)
    final, hs = problem.outputs(resets=resets)
    early, late = (problem._replace(xs=xs) for xs in (problem.xs[:split], problem.xs[split:]))
    second = early if reverse else late
    zeros = jax.tree.map(jnp.zeros_like, problem.initial_state)
    (final_second, hs_second) = second._replace(initial_state=zeros).outputs()
    (_, hs_first) = (late if reverse else early).outputs()
    parts = [hs_second, hs_first] if reverse else [hs_first, hs_second]
    assert_same((final, hs), (final_second, jnp.concatenate(parts)))


def test_a_reset_at_the_first_step_discards_the_initial_state(cell):
    problem = make_problem(cell, T=4, batch=(2,))
    resets = jnp.zeros((4, 2), bool).at[0].set(True)
    zeros = jax.tree.map(jnp.zeros_like, problem.initial_state)
    assert_same(problem.outputs(resets=resets), problem._replace(initial_state=zeros).outputs())


def test_in_reverse_a_reset_at_the_first_step_zeroes_the_final_state_and_no_output(cell):
    problem = make_problem(cell, T=4, batch=(2,), reverse=True)
    resets = jnp.zeros((4, 2), bool).at[0, 1].set(True)
    final, hs, states = problem.outputs(resets=resets, return_states=True)
    final_without, hs_without, states_without = problem.outputs(return_states=True)
    assert_same((hs, states), (hs_without, states_without))
    for state, without in zip(final, final_without, strict=True):
        np.testing.assert_array_equal(state[0], without[0])
        np.testing.assert_array_equal(state[1], 0)


@directions
def test_no_gradient_crosses_a_reset(cell, reverse):
    """Exactly zero, on the far side of the boundary, for what lies on the near side."""
    problem = make_problem(cell, T=6, batch=(2,), reverse=reverse)
    resets = jnp.zeros((6, 2), bool).at[3].set(True)
    late = np.arange(6) >= 3
    far = late if reverse else ~late

    def near_side(xs, initial_state):
        final, hs = problem._replace(xs=xs, initial_state=initial_state).outputs(resets=resets)
        return jnp.sum(hs[~far]) + sum(jnp.sum(leaf) for leaf in final)

    dxs, dinitial = jax.grad(near_side, argnums=(0, 1))(problem.xs, problem.initial_state)
    assert np.all(dxs[far] == 0)
    assert np.all(dxs[~far] != 0)
    assert all(np.all(leaf == 0) for leaf in dinitial)


def test_a_state_that_blew_up_before_a_reset_does_not_reach_past_it(cell):
    problem = make_problem(cell, T=6, batch=(2,))
    resets = jnp.zeros((6, 2), bool).at[3].set(True)
    blown_up = problem._replace(xs=problem.xs.at[2].set(jnp.nan))

    def late(params, xs):
        final, hs = problem._replace(params=params, xs=xs).outputs(resets=resets)
        return jnp.sum(hs[3:]) + sum(jnp.sum(leaf) for leaf in final)

    value, (_, dxs) = jax.value_and_grad(late, argnums=(0, 1))(problem.params, blown_up.xs)
    expected, (_, expected_dxs) = jax.value_and_grad(late, argnums=(0, 1))(
        problem.params, problem.xs
    )
    assert value == expected
    np.testing.assert_array_equal(dxs[3:], expected_dxs[3:])


def test_zero_steps_is_the_identity(cell):
    problem = make_problem(cell, T=0, batch=(2,))
    (final, hs), (dparams, dxs, dinitial, _) = vjp(
        problem, jaxrnn.unroll, cotangents := random_tree(jax.eval_shape(problem.outputs))
    )
    assert_same(final, problem.initial_state)
    assert hs.shape == (0, 2, 4)
    assert dxs.shape == (0, 2, 3)
    assert_same(dinitial, cotangents[0])
    assert all(np.all(leaf == 0) for leaf in dparams)
