"""Random problems, and how two results are compared: shared by the tests."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn.testing import relative_differences
from jaxrnn.testing.arrays import normal


class Problem(NamedTuple):
    """The arguments of `jaxrnn.unroll`, all drawn at random."""

    cell: jaxrnn.Cell
    params: Any
    xs: jax.Array
    initial_state: Any
    consts: Any
    options: dict[str, Any]
    reset_state: Any = None

    def outputs(self, unroll=jaxrnn.unroll, **more):
        options = {"consts": self.consts, **self.options, **more}
        if self.reset_state is not None:
            options["reset_state"] = self.reset_state
        return unroll(self.cell, self.params, self.xs, self.initial_state, **options)


def random_tree(tree, seed=0):
    """A pytree of these shapes and dtypes with standard normal leaves (and no compilation)."""
    return jax.tree.map(jnp.asarray, normal(tree, seed))


def make_problem(
    cell,
    T=6,
    batch=(3,),
    I=3,
    H=4,
    *,
    lengths=False,
    mask=False,
    resets=False,
    reset_state=None,
    detach=False,
    reverse=False,
    consts=None,
    key=None,
    dtype=jnp.float64,
    seed=0,
):
    """Weights of scale 1/2, so that no gate saturates and every gradient is well above zero.

    ``reset_state`` is ``"rows"`` for one per row, ``"one"`` for one for all. A mask has a
    hole in every row, at the second step. Resets and detached steps are there, too, without effect,
    and after it, on one step.
    """
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H, dtype=dtype))
    params = jax.tree.map(lambda a: 0.5 * a, random_tree(like, seed + 1))
    state = jax.eval_shape(lambda: cell.initial_state(params, batch))
    options: dict[str, Any] = {"reverse": reverse}
    if lengths:
        options["lengths"] = jnp.asarray(rng.integers(0, T + 1, size=batch), jnp.int32)
    if resets:
        options["resets"] = jnp.asarray(rng.random(size=(T, *batch)) < 0.3)
    if mask:
        valid = rng.random(size=(T, *batch)) < 0.7
        valid[:1], valid[1:2], valid[2:3] = True, False, True
        options["mask"] = jnp.asarray(valid)
        if resets:
            options["resets"] = options["resets"].at[1:3].set(True)
    if detach:
        options["detach"] = jnp.asarray(rng.random(size=(T, *batch)) < 0.3).at[1:3].set(True)
    if key is not None:
        options["key"] = key
    one_row = jax.eval_shape(lambda: cell.initial_state(params, ()))
    given = {None: None, "rows": state, "one": one_row}[reset_state]
    return Problem(
        cell=cell,
        params=params,
        xs=jnp.asarray(rng.normal(size=(T, *batch, I)), dtype),
        initial_state=random_tree(state, seed + 2),
        consts=consts,
        options=options,
        reset_state=None if given is None else random_tree(given, seed + 4),
    )


def inputs_of(problem):
    """The arguments with gradients; the reset state is the last, where there is one."""
    inputs = problem.params, problem.xs, problem.initial_state, problem.consts
    return inputs if problem.reset_state is None else (*inputs, problem.reset_state)


def vjp_function(problem, unroll, **more):
    """``run(inputs, cotangents) -> (outputs, gradients of inputs)``."""

    def run(inputs, cotangents):
        def f(params, xs, initial_state, consts, reset_state=None):
            with_these = problem._replace(
                params=params,
                xs=xs,
                initial_state=initial_state,
                consts=consts,
                reset_state=reset_state,
            )
            return with_these.outputs(unroll, **more)

        outputs, pull = jax.vjp(f, *inputs)
        return outputs, pull(cotangents)

    return run


def vjp_program(problem, unroll, **more):
    """`vjp_function`, compiled."""
    return jax.jit(vjp_function(problem, unroll, **more))


def vjp(problem, unroll, cotangents=None, seed=3, **more):
    """(outputs, gradients of `inputs_of` the problem); random cotangents if None."""
    if cotangents is None:
        cotangents = random_tree(jax.eval_shape(lambda: problem.outputs(unroll, **more)), seed)
    return vjp_program(problem, unroll, **more)(inputs_of(problem), cotangents)


def assert_rule_equals_autodiff(problem, tolerance=1e-12, **more):
    """Values, and gradients of every input for random cotangents of every output, at once."""
    actual = vjp(problem, jaxrnn.unroll, return_states=True, **more)
    expected = vjp(problem, jaxrnn.unroll_reference, return_states=True, **more)
    assert_same(actual, expected, tolerance)


def assert_same(actual, expected, tolerance=1e-12):
    """Same structure, shapes and dtypes, and every leaf's largest difference within tolerance."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for name, difference in relative_differences(actual, expected).items():
        # written so that a NaN fails
        assert difference <= tolerance, f"{name}: relative difference {difference:.2e}"
