"""The calls of `jaxrnn.unroll` on which a cell is checked: sizes, options, and random arguments."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells.cell import Cell, Consts, Expects, Params
from jaxrnn.checks import describe, same_structure
from jaxrnn.sequence import unroll, unroll_reference
from jaxrnn.testing.arrays import (
    Arrays,
    Function,
    compiled,
    flat_function,
    floating,
    floats,
    named,
    normal,
)

__all__ = [
    "ARGUMENTS",
    "CASES",
    "OUTPUTS",
    "SMALL",
    "Case",
    "Problem",
    "Template",
    "both",
    "draw",
    "flat",
    "in_dtype",
    "inputs_of",
    "template_of",
]

ARGUMENTS = ("params", "xs", "initial_state", "reset_state", "consts")
OUTPUTS = ("final_state", "hs", "states")


class Case(NamedTuple):
    """Sizes and options of one call.

    ``reset_state`` is None for the cell's own, ``"rows"`` for one per row, ``"one"`` for one for
    all. ``key``: a cell with `Cell.draw` gets a key. ``tails``: the case is run on large inputs and
    in float32 and bfloat16, too.
    """

    T: int
    batch: tuple[int, ...]
    I: int
    H: int
    residuals: str
    lengths: bool = False
    mask: bool = False
    resets: bool = False
    reset_state: str | None = None
    detach: bool = False
    reverse: bool = False
    key: bool = True
    tails: bool = False

    def describe(self, template: "Template") -> str:
        flags = [
            name
            for name in ("lengths", "mask", "resets", "detach", "reverse")
            if getattr(self, name)
        ]
        if self.reset_state:
            flags.append(f"reset_state={self.reset_state!r}")
        if self.key and template.cell.draw is not None:
            flags.append("key")
        sizes = [f"T={self.T}, batch={self.batch}"]
        if template.example is None:
            sizes.append(f"I={self.I}, H={self.H}")
        return ", ".join([*sizes, *flags, f"residuals={self.residuals!r}"])


# no two axes of a size, so that none passes for another; some sizes above 8, because a cell may
# take another path for large ones. 37 steps are chunks of 16, 16 and 5, and 7 of "carries" of 2, 2,
# 2 and 1
CASES = (
    Case(5, (6,), 9, 11, "states", key=False, tails=True),
    Case(37, (3,), 2, 5, "gates", lengths=True, resets=True, detach=True),
    Case(
        7, (2, 3, 4), 6, 5, "carries",
        mask=True, resets=True, reset_state="rows", detach=True, reverse=True,
    ),
    Case(37, (), 3, 7, "states", resets=True, reset_state="one", reverse=True),
    Case(1, (1,), 1, 1, "carries", resets=True),
    Case(3, (0,), 2, 5, "gates", resets=True),
    Case(0, (2,), 3, 7, "states", lengths=True),
)  # fmt: skip
"""The cases, in the order in which they are run: they tell much, then they compile fast."""

SMALL = Case(
    5, (1,), 2, 5, "states", mask=True, resets=True, reset_state="one", detach=True
)  # fmt: skip
"""The case for second derivatives: one row."""


class Template(NamedTuple):
    """Where the arguments of a case come from.

    ``most`` are params for the largest sizes, of which each case takes a share; ``example`` are
    ``(params, x)`` in the place of both.
    """

    cell: Cell
    make_consts: Callable[..., Consts] | None
    example: tuple[Params, Any] | None
    most: Params
    seed: int


class Problem(NamedTuple):
    """The arguments of `unroll` that have gradients, as in `ARGUMENTS`, and its options."""

    cell: Cell
    case: Case
    args: tuple[Any, ...]
    options: dict[str, Any]


def template_of(
    cell: Cell, make_consts: Callable[..., Consts] | None, example: Any, seed: int
) -> Template:
    """The template; params for all cases come from the only `init` that is compiled."""
    if example is not None:
        return Template(cell, make_consts, _example_in_float64(cell, example), None, seed)
    key = jax.random.key(seed)
    sizes = max(case.I for case in CASES), max(case.H for case in CASES)
    init = cell.init
    assert init is not None
    try:
        jax.eval_shape(lambda: init(key, *sizes, dtype=jnp.dtype(jnp.float64)))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"{cell.name}: `init` must be (key, input_size, hidden_size, *, dtype=jnp.float32) -> "
            f"params, called with `dtype` by name; it raised {type(error).__name__}: {error} (for "
            "a cell with sizes of its own, give `example=(params, x)`)"
        ) from error
    program = compiled(init, static_argnums=(1, 2), static_argnames="dtype")
    most = jax.tree.map(np.asarray, program(key, *sizes, dtype=jnp.dtype(jnp.float64)))
    return Template(cell, make_consts, None, most, seed)


def _example_in_float64(cell: Cell, example: tuple[Params, Any]) -> tuple[Params, Any]:
    params, x = jax.tree.map(np.asarray, example)
    params = jax.tree.map(lambda a: a.astype(np.float64) if floats(a) else a, params)
    like = cell.expects(params).x
    if isinstance(like, int):
        like = jax.tree.map(lambda _: like, x)
    if not same_structure(x, like):
        raise ValueError(
            f"`example` must be (params, x) with x like {describe(like)}; got x {describe(x)}"
        )

    def in_dtype_of(a: np.ndarray, like: Any) -> np.ndarray:
        return a.astype(np.float64 if isinstance(like, int) else like.dtype) if floats(a) else a

    return params, jax.tree.map(in_dtype_of, x, like)


def draw(template: Template, case: Case) -> Problem:
    """Random arguments of a case, in float64 or in what the cell expects beside its params."""
    cell, seed, batch, T = template.cell, template.seed, case.batch, case.T
    if template.example is None:
        init = cell.init
        assert init is not None
        dtype = jnp.dtype(jnp.float64)
        like = jax.eval_shape(lambda: init(jax.random.key(seed), case.I, case.H, dtype=dtype))
        params = jax.tree.map(_share, like, template.most, normal(like, seed))
        x = jax.ShapeDtypeStruct((case.I,), dtype)
    else:
        params, x = template.example
    expects = cell.expects(params)
    if not isinstance(expects, Expects):
        raise AssertionError(
            f"{cell.name}: `expects(params)` must return jaxrnn.cells.cell.Expects; got "
            f"{describe(expects)}"
        )
    x = _x_of(cell, expects, x, template.example is not None)
    state = normal(_with_axes(expects.state, batch), seed + 1)
    options: dict[str, Any] = {"reverse": case.reverse, "residuals": case.residuals}
    options |= _masks(case, np.random.default_rng(seed))
    if cell.draw is not None and case.key:
        options["key"] = jax.random.key(seed)
    reset_state = None
    if case.reset_state:
        axes = batch if case.reset_state == "rows" else ()
        reset_state = normal(_with_axes(expects.state, axes), seed + 3)
    xs = normal(_with_axes(x, (T, *batch)), seed + 2)
    consts = None
    if template.make_consts is not None:
        I = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(x))
        H = max((math.prod(leaf.shape) for leaf in jax.tree.leaves(expects.state)), default=1)
        dtype = jnp.dtype(jnp.float64)
        consts = template.make_consts(jax.random.key(seed), batch, I, H, dtype)
        # Python scalars among them are arrays from here on
        consts = jax.tree.map(lambda a: a if hasattr(a, "shape") else np.asarray(a), consts)
    return Problem(cell, case, (params, xs, state, reset_state, consts), options)


def _share(like: Any, most: Any, noise: Any) -> Any:
    if not floats(like):
        return most[tuple(map(slice, like.shape))]
    # a recurrence that amplifies would amplify the rounding as well
    return most[tuple(map(slice, like.shape))] / 2 + noise / 4


def _x_of(cell: Cell, expects: Expects, given: Any, by_example: bool) -> Any:
    """The shapes and dtypes of one input."""
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
    if by_example:
        return given
    if isinstance(expects.x, int) and expects.x == 1:
        return given
    if any(isinstance(leaf, int) for leaf in jax.tree.leaves(expects.x)):
        raise TypeError(
            f"`example` must be (params, x), because `expects` of {cell.name} leaves the sizes of "
            f"x free: {describe(expects.x)}"
        )
    return expects.x


def _with_axes(like: Any, axes: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), like)


def _masks(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    T, batch = case.T, case.batch
    found: dict[str, np.ndarray] = {}
    if case.lengths:
        lengths = rng.integers(0, T + 1, size=math.prod(batch))
        # an empty row and a full one among them
        lengths[:2] = 0, T
        found["lengths"] = lengths.reshape(batch)
    resets, detach, mask = (rng.random(size=(T, *batch)) < share for share in (0.3, 0.3, 0.7))
    # a hole between steps that happen. A reset and a detached step in it must have no effect, and a
    # reset that is on the far side in reverse must outlast it; both on one step share the state
    mask[:5], resets[1:3], detach[1:3] = True, True, True
    mask[1:2] = False
    # then a step that is detached alone, and one that is neither
    resets[3:5], detach[3:4], detach[4:5] = False, True, False
    for name, drawn in (("mask", mask), ("resets", resets), ("detach", detach)):
        if getattr(case, name):
            found[name] = drawn
    return found


def in_dtype(problem: Problem, dtype: jax.typing.DTypeLike) -> Problem:
    """The problem in that dtype: params and consts, and the rest as the cell expects beside them.

    Arrays become numpy arrays, and shapes and dtypes stay such.
    """

    def cast(leaf: Any, dtype: jax.typing.DTypeLike) -> Any:
        if not floats(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return np.asarray(leaf).astype(dtype)

    def like(tree: Any, expected: Any) -> Any:
        if isinstance(expected, int):
            expected = jax.tree.map(lambda _: expected, tree)
        return jax.tree.map(
            lambda a, e: cast(a, dtype if isinstance(e, int) else e.dtype), tree, expected
        )

    params, xs, state, reset_state, consts = problem.args
    params, consts = (jax.tree.map(lambda a: cast(a, dtype), tree) for tree in (params, consts))
    expects = problem.cell.expects(params)
    xs, state = like(xs, expects.x), like(state, expects.state)
    if reset_state is not None:
        reset_state = like(reset_state, expects.state)
    return problem._replace(args=(params, xs, state, reset_state, consts))


def flat(unroll: Callable[..., Any], problem: Problem) -> Function:
    """The call as a function of its floating leaves."""

    def outputs(params: Any, xs: Any, initial_state: Any, reset_state: Any, consts: Any) -> Any:
        more = {"consts": consts, "return_states": True, **problem.options}
        if reset_state is not None:
            more["reset_state"] = reset_state
        return unroll(problem.cell, params, xs, initial_state, **more)

    return flat_function(outputs, ARGUMENTS, problem.args, OUTPUTS)


def both(problem: Problem) -> tuple[Function, Function]:
    """`unroll` and `unroll_reference` of the problem's arguments."""
    return flat(unroll, problem), flat(unroll_reference, problem)


def inputs_of(problem: Problem) -> Arrays:
    return floating(named(ARGUMENTS, problem.args))
