"""Random problems, and how two results are compared: shared by the tests."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn


class Problem(NamedTuple):
    """The arguments of `jaxrnn.unroll`, all drawn at random."""

    cell: jaxrnn.Cell
    params: Any
    xs: jax.Array
    initial_state: Any
    consts: Any
    options: dict[str, Any]

    def outputs(self, unroll=jaxrnn.unroll, **more):
        options = {"consts": self.consts, **self.options, **more}
        return unroll(self.cell, self.params, self.xs, self.initial_state, **options)


def random_tree(tree, seed=0):
    """A pytree of these shapes and dtypes with standard normal leaves (and no compilation)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def make_problem(
    cell,
    T=6,
    batch=(3,),
    I=3,
    H=4,
    *,
    lengths=False,
    resets=False,
    reverse=False,
    consts=None,
    dtype=jnp.float64,
    seed=0,
):
    """Weights of scale 1/2, so that no gate saturates and every gradient is well above zero."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H, dtype=dtype))
    params = jax.tree.map(lambda a: 0.5 * a, random_tree(like, seed + 1))
    state = jax.eval_shape(lambda: cell.initial_state(params, batch))
    options: dict[str, Any] = {"reverse": reverse}
    if lengths:
        options["lengths"] = jnp.asarray(rng.integers(0, T + 1, size=batch), jnp.int32)
    if resets:
        options["resets"] = jnp.asarray(rng.random(size=(T, *batch)) < 0.3)
    return Problem(
        cell=cell,
        params=params,
        xs=jnp.asarray(rng.normal(size=(T, *batch, I)), dtype),
        initial_state=random_tree(state, seed + 2),
        consts=consts,
        options=options,
    )


def inputs_of(problem):
    """What a problem is differentiated with respect to."""
    return problem.params, problem.xs, problem.initial_state, problem.consts


def vjp_function(problem, unroll, **more):
    """``run(inputs, cotangents) -> (outputs, gradients of inputs)``."""

    def run(inputs, cotangents):
        def f(params, xs, initial_state, consts):
            with_these = problem._replace(
                params=params, xs=xs, initial_state=initial_state, consts=consts
            )
            return with_these.outputs(unroll, **more)

        outputs, pull = jax.vjp(f, *inputs)
        return outputs, pull(cotangents)

    return run


def vjp_program(problem, unroll, **more):
    """`vjp_function`, compiled."""
    return jax.jit(vjp_function(problem, unroll, **more))


def vjp(problem, unroll, cotangents=None, seed=3, **more):
    """(outputs, gradients of params, xs, initial state and consts); random cotangents if None."""
    if cotangents is None:
        cotangents = random_tree(jax.eval_shape(lambda: problem.outputs(unroll, **more)), seed)
    return vjp_program(problem, unroll, **more)(inputs_of(problem), cotangents)


def assert_rule_equals_autodiff(problem, tolerance=1e-12, **more):
    """Values, and gradients of every input for random cotangents of every output, at once."""
    actual = vjp(problem, jaxrnn.unroll, return_states=True, **more)
    expected = vjp(problem, jaxrnn.unroll_reference, return_states=True, **more)
    assert_same(actual, expected, tolerance)


def largest_difference(actual, expected):
    """Per leaf, by name: the largest difference, relative to the leaf's largest entry."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    differences = {}
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        if a.dtype == jax.dtypes.float0:
            continue
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        scale = np.max(np.abs(e), initial=0.0)
        difference = np.max(np.abs(a - e), initial=0.0)
        differences[jax.tree_util.keystr(path)] = difference / scale if scale else difference
    return differences


def assert_same(actual, expected, tolerance=1e-12):
    """Same structure, shapes and dtypes, and every leaf's largest difference within tolerance."""
    for name, difference in largest_difference(actual, expected).items():
        # written so that a NaN fails
        assert difference <= tolerance, f"{name}: relative difference {difference:.2e}"
