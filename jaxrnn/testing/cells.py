"""A cell against autodiff of its own step, from its pieces to its second derivatives."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.cells.contract import Cell, Consts, State
from jaxrnn.sequence import unroll, unroll_reference, valid_steps
from jaxrnn.testing.gradients import (
    Arrays,
    Function,
    Setup,
    begins,
    cast,
    compare,
    compare_derivatives,
    compiled,
    differences,
    flat_function,
    floating,
    named,
    normal,
    pull_back,
    require_like,
    require_same,
    tolerance_of,
    values_and_gradients,
)
from jaxrnn.validation import describe, size

__all__ = ["check_cell"]


def check_cell(
    cell: Cell,
    *,
    make_consts: Callable[..., Consts] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Check the handwritten adjoint of a cell against autodiff of its own `step`.

    Raises at the first failure of these, in this order:

    - float32 and bfloat16 go in, come out, and are what the gradients have, and no piece returns
      something else than `jaxrnn.Cell` says;
    - each piece does what the engine relies on: many steps at once give what they give one by one,
      `step` is `project` and `advance`, the output is ``state.h``, the initial state is zero, and
      `pull` is linear in the adjoint of the state;
    - `jaxrnn.unroll` has the values and gradients of `jaxrnn.unroll_reference`, for every leaf of
      params, inputs, initial state and consts and every output, in cases that cover no, one, few
      and many steps, no batch axis, two, and no rows, sizes of 1, lengths, resets, both directions
      and all of what is kept for the backward pass;
    - the second derivatives agree as well.

    Takes about ten seconds on two cores, nearly all of it to compile. The values are drawn in
    float64 whatever JAX's flags say: params around half of what ``cell.init`` gives, so that no
    bias is zero and no state explodes, everything else from the standard normal distribution.

    Args:
        cell: the `jaxrnn.Cell` to check.
        make_consts: for a cell that takes consts, ``(key, batch_shape, input_size, hidden_size,
            dtype) -> consts``, with floating leaves in that dtype. They must be the same for the
            same key.
        tolerance: the largest difference allowed, relative to the gradient's largest entry; None
            for ``2**12 * eps``.
        seed: for everything that is drawn.

    Raises:
        AssertionError: the cell fails. The message says which gradients are wrong (such as
            ``params.w_hh``, ``xs``, ``initial_state.c``, ``consts['mask']``) in which case, for
            which cotangents, and by how much, and at which time step each begins to be: for a
            parameter by the share that every step has in its gradient, for the initial state by
            the adjoint of the state before every step.
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.testing import check_cell
        >>> def pull(params, dstate, slope, consts):  # without the slope of tanh
        ...     return jaxrnn.ELMAN.pull(params, dstate, 0 * slope + 1, consts)
        >>> try:
        ...     check_cell(jaxrnn.ELMAN._replace(name="MINE", pull=pull))
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        MINE: wrong gradient of params.w_ih, params.w_hh, params.b, xs, initial_state.h
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"`cell` must be a jaxrnn.Cell; got {describe(cell)}")
    if cell.takes_consts and not callable(make_consts):
        raise TypeError(
            "`make_consts` must be a function (key, batch_shape, input_size, hidden_size, dtype) "
            f"-> consts, for {cell.name} takes consts; got {describe(make_consts)}"
        )
    if make_consts is not None and not cell.takes_consts:
        raise ValueError(f"`make_consts` must be None: {cell.name} takes no consts")
    try:
        hash(cell)
    except TypeError as error:
        raise AssertionError(
            f"{cell.name}: every field must be hashable, a function or a constant; arrays come "
            f"through params, state or consts ({error})"
        ) from error
    setup = Setup(
        title=f"{cell.name}: ",
        sides=("rule", "autodiff"),
        tolerance=tolerance_of(tolerance, jnp.float64),
        seed=size("seed", seed, least=0),
    )
    # what compiles fast and tells much comes first
    plan = [(_check_dtypes, _CASES[0]), (_check_pieces, _CASES[0])]
    plan += [(_check_rule, case) for case in _CASES]
    plan += [(_check_second_order, _SMALL)]
    with jax.enable_x64(True):
        for check, case in plan:
            problem = _draw(cell, make_consts, case, setup.seed)
            this = setup._replace(setting=case.describe(), reverse=case.reverse)
            with _contract_errors_of(this):
                check(this, problem)


class _Case(NamedTuple):
    """Sizes and options of one call of `unroll`."""

    T: int
    batch: tuple[int, ...]
    I: int
    H: int
    residuals: str
    lengths: bool = False
    resets: bool = False
    reverse: bool = False

    def describe(self) -> str:
        flags = [name for name in ("lengths", "resets", "reverse") if getattr(self, name)]
        sizes = f"T={self.T}, batch={self.batch}, I={self.I}, H={self.H}"
        return ", ".join([sizes, *flags, f"residuals={self.residuals!r}"])


# no two axes of a size, so that none passes for another; 7 steps of "carries" are chunks of 2, 2, 2
# and 1. Few sizes of params, for every one has an `init` to compile
_CASES = (
    _Case(5, (2,), 3, 7, "states"),
    _Case(11, (3,), 2, 5, "gates", lengths=True, resets=True),
    _Case(7, (3, 4), 2, 5, "carries", lengths=True, resets=True, reverse=True),
    _Case(6, (), 3, 7, "states", resets=True, reverse=True),
    _Case(1, (1,), 1, 1, "carries", resets=True),
    _Case(3, (0,), 2, 5, "gates", resets=True),
    _Case(0, (2,), 3, 7, "states", lengths=True),
)
_SMALL = _Case(4, (3,), 2, 5, "states", lengths=True, resets=True)

_ARGUMENTS = ("params", "xs", "initial_state", "consts")
_OUTPUTS = ("final_state", "hs", "states")


class _Problem(NamedTuple):
    """What `unroll` is given: the four arguments that have gradients, and its options."""

    cell: Cell
    case: _Case
    args: tuple[Any, ...]
    options: dict[str, Any]


def _draw(
    cell: Cell, make_consts: Callable[..., Consts] | None, case: _Case, seed: int
) -> _Problem:
    T, batch, I, H, residuals, *_ = case
    key, dtype, rng = jax.random.key(seed), jnp.dtype(jnp.float64), np.random.default_rng(seed)
    init = compiled(cell.init, static_argnums=(1, 2), static_argnames="dtype")
    params = init(key, I, H, dtype=dtype)
    # a recurrence that amplifies would amplify the rounding as well
    noise = normal(params, seed)
    params = jax.tree.map(lambda p, noise: np.asarray(p) / 2 + noise / 4, params, noise)
    state = normal(jax.eval_shape(lambda: cell.initial_state(params, batch)), seed + 1)
    xs = normal(jax.ShapeDtypeStruct((T, *batch, I), dtype), seed + 2)
    consts = None if make_consts is None else make_consts(key, batch, I, H, dtype)
    options: dict[str, Any] = {"reverse": case.reverse, "residuals": residuals}
    if case.lengths:
        lengths = rng.integers(0, T + 1, size=math.prod(batch))
        # an empty row and a full one among them
        lengths[:2] = 0, T
        options["lengths"] = lengths.reshape(batch)
    if case.resets:
        options["resets"] = rng.random(size=(T, *batch)) < 0.3
    return _Problem(cell, case, (params, xs, state, consts), options)


def _check_pieces(setup: Setup, problem: _Problem) -> None:
    """What the engine takes for granted of each piece, on random states and adjoints."""
    cell, case, (params, xs, state, consts), _ = problem
    setup = setup._replace(sides=("got", "expected"))
    sizes = cell.sizes(params)
    if sizes != (case.I, case.H):
        raise AssertionError(f"{setup.title}`sizes` must be {(case.I, case.H)}; got {sizes}")
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, xs.dtype), state)
    require_like(setup, named(["initial_state"], [state]), named(["initial_state"], [like]))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((case.T, *a.shape), a.dtype), like)
    before, dstate, other = (normal(like, setup.seed + i) for i in range(3))
    pieces = compiled(functools.partial(_pieces, cell))
    pairs = pieces(params, xs, consts, before, dstate, other)
    for piece, rule in _RULES.items():
        this = setup._replace(setting=rule)
        trees = jax.tree.map(np.asarray, pairs[piece])
        found, expected = (named([piece], [tree]) for tree in trees)
        require_like(this, found, expected)
        # all but the initial state and the sums have one entry per step
        per_step = piece not in ("initial_state", "contract")
        times = dict.fromkeys(found if per_step else ["contract.xs"], 0)
        require_same(this, "wrong value", found, expected, times)


_IN_BULK = "many steps at once, on a leading axis, must give what they give one by one"
_RULES = {
    "initial_state": "it must be zeros, which resets put in its place: give `unroll` any other "
    "start as `initial_state=`",
    "project": _IN_BULK,
    "advance": _IN_BULK,
    "linearize": _IN_BULK,
    "step": "it must return the state that `advance` makes of what `project` gives",
    "output": "`step` must return the field h of its new state, which `unroll` returns: keep the "
    "output in the state",
    "pull": "it must be linear in `dstate`: pull(a + 2 b) = pull(a) + 2 pull(b)",
    "contract": f"{_IN_BULK}, with the gradients of params and consts summed",
}


class _Contraction(NamedTuple):
    params: Any
    xs: Any
    consts: Any


def _pieces(
    cell: Cell, params: Any, xs: Any, consts: Consts, before: State, dstate: State, other: State
) -> dict[str, tuple[Any, Any]]:
    """What each piece gives, and what it must give by the rule of that name."""

    def lift(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[None], tree)

    def one(x: Any, before: State) -> dict[str, Any]:
        inputs = cell.project(params, x, consts)
        after, gates = cell.advance(params, before, inputs, consts)
        factors = cell.linearize(params, lift(before), lift(after), lift(gates), consts)
        factors = jax.tree.map(lambda a: a[0], factors)
        return {"project": inputs, "advance": (after, gates), "linearize": factors}

    def contract(xs: Any, before: State, gates: Any, deltas: Any) -> _Contraction:
        return _Contraction(*cell.contract(params, xs, before, gates, deltas, consts))

    def add_twice(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda a, b: a + 2 * b, a, b)

    def pull(factors: Any, a: State, b: State) -> tuple[Any, Any, Any]:
        of_a, of_b, of_sum = (
            cell.pull(params, dstate, factors, consts) for dstate in (a, b, add_twice(a, b))
        )
        return of_a[1], of_sum, add_twice(of_a, of_b)

    start = cell.initial_state(params, xs.shape[1:-1])
    # a step at a time: what is mapped sees no leading axis
    single = jax.vmap(one)(xs, before)
    after, gates = single["advance"]
    stepped, hs = jax.vmap(lambda x, before: cell.step(params, before, x, consts))(xs, before)
    inputs = cell.project(params, xs, consts)
    bulk = {
        "project": inputs,
        "advance": cell.advance(params, before, inputs, consts),
        "linearize": cell.linearize(params, before, after, gates, consts),
    }
    deltas, of_sum, sum_of = jax.vmap(pull)(single["linearize"], dstate, other)
    used = xs, before, gates, deltas
    terms = jax.vmap(lambda *at: contract(*lift(at)))(*used)
    summed = jax.tree.map(lambda a: jnp.sum(a, axis=0), terms)._replace(xs=terms.xs[:, 0])
    return {
        "initial_state": (start, jax.tree.map(jnp.zeros_like, start)),
        "step": (stepped, after),
        "output": (hs, after.h),
        "pull": (of_sum, sum_of),
        "contract": (contract(*used), summed),
        **{piece: (bulk[piece], single[piece]) for piece in bulk},
    }


def _check_rule(setup: Setup, problem: _Problem) -> None:
    """Values and gradients of `unroll` against those of `unroll_reference`."""
    times = dict.fromkeys(["xs", "hs", *named(["states"], [problem.args[2]])], 0)
    locate = functools.partial(_first_steps, setup, problem)
    compare(setup, *_both(problem), _inputs(problem), times, locate)


def _check_second_order(setup: Setup, problem: _Problem) -> None:
    compare_derivatives(setup, *_both(problem), _inputs(problem))


def _check_dtypes(setup: Setup, problem: _Problem) -> None:
    """That no dtype changes on the way; only traced, for how it is rounded is another matter."""
    for dtype in (jnp.float32, jnp.bfloat16):
        these = problem._replace(args=cast(problem.args, dtype))
        inputs = _inputs(these)
        for function in _both(these):
            outputs, _ = jax.eval_shape(function, inputs)
            gradients = jax.eval_shape(functools.partial(pull_back, function), inputs, outputs)
            expected = {p: jax.ShapeDtypeStruct(a.shape, dtype) for p, a in outputs.items()}
            require_like(setup, {**outputs, **gradients}, {**expected, **inputs})


def _both(
    problem: _Problem, form: Callable[..., Any] = lambda unroll: unroll
) -> tuple[Function, Function]:
    """`unroll` and `unroll_reference`, in that form, of the problem's arguments."""
    cell, _, args, options = problem

    def function(unroll: Callable[..., Any]) -> Function:
        def outputs(params: Any, xs: Any, initial_state: State, consts: Consts) -> Any:
            more = {"consts": consts, "return_states": True, **options}
            return form(unroll)(cell, params, xs, initial_state, **more)

        return flat_function(outputs, _ARGUMENTS, args, _OUTPUTS)

    return function(unroll), function(unroll_reference)


def _inputs(problem: _Problem) -> Arrays:
    return floating(named(_ARGUMENTS, problem.args))


def _first_steps(setup: Setup, problem: _Problem, cotangents: Arrays) -> dict[str, str]:
    """Where the gradient of each input begins to be wrong, by its share of every time step.

    The sequence is run as T sequences of one step, each with params and consts of its own, and
    with a nudge on the state that it starts from: so every gradient has one row per step. It is
    the same sequence, for what `_check_pieces` checks holds.
    """
    T, (params, xs, state, consts) = problem.case.T, problem.args

    def stepwise(unroll: Callable[..., Any]) -> Callable[..., Any]:
        def unroll_steps(
            cell: Cell, params: Any, xs: Any, nudges: State, *,
            consts: Consts, lengths: Any = None, resets: Any = None, **options: Any,
        ) -> Any:  # fmt: skip
            def step(carry: State, at: Any) -> tuple[State, Any]:
                params, x, nudge, more = at
                start = jax.tree.map(jnp.add, carry, nudge)
                final_state, *outputs = unroll(cell, params, x[None], start, **more, **options)
                return final_state, jax.tree.map(lambda a: a[0], outputs)

            valid = None if lengths is None else valid_steps(lengths, T).astype(jnp.int32)
            resets = None if resets is None else jnp.asarray(resets)[:, None]
            more = {"consts": consts, "lengths": valid, "resets": resets}
            steps = (params, xs, nudges, more)
            final_state, outputs = lax.scan(step, state, steps, reverse=setup.reverse)
            return final_state, *outputs

        return unroll_steps

    def repeat(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (T, *a.shape)), tree)

    nudges = jax.tree.map(jnp.zeros_like, repeat(state))
    steps = problem._replace(args=(repeat(params), xs, nudges, repeat(consts)))
    inputs, row = _inputs(steps), {path: leaf[None] for path, leaf in cotangents.items()}
    shares = [values_and_gradients(f, inputs, row)[1] for f in _both(steps, stepwise)]
    rule, autodiff = ({path: leaf[0] for path, leaf in each.items()} for each in shares)
    wrong = differences(rule, autodiff, setup.tolerance)
    first = {p: begins(mask, 0, last=not setup.reverse) for p, (*_, mask) in wrong.items()}
    return {path: first.get(path, "right at every single step") for path in inputs}


@contextlib.contextmanager
def _contract_errors_of(setup: Setup) -> Iterator[None]:
    """What the engine or JAX refuse of arguments that were made here is the cell's failure."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{setup.title}{error}\n  {setup.setting}") from error
