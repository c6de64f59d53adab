"""A cell against autodiff of its own step, from its pieces to its second derivatives."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.sequence import unroll, unroll_reference
from jaxrnn.testing.gradients import (
    Arrays,
    Function,
    Setup,
    begins,
    compare,
    compare_derivatives,
    compiled,
    differences,
    flat_function,
    floating,
    floats,
    named,
    normal,
    require_like,
    require_same,
    tolerance_of,
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
      `pull` is linear in the adjoint of the state, and `slopes`, where there are any, are a
      NamedTuple of arrays of the state's shape, with values in 0..1;
    - `jaxrnn.unroll` has the values and gradients of `jaxrnn.unroll_reference`, for every leaf of
      params, inputs, initial state and consts and every output, in cases that cover no, one, few
      and many steps, no batch axis, two, and no rows, sizes of 1, lengths, resets, both directions
      and all of what is kept for the backward pass;
    - the second derivatives agree as well.

    Takes about ten seconds on two cores, nearly all of it to compile, and one for most wrong
    cells. The values are drawn in float64 whatever JAX's flags say: params around half of what
    ``cell.init`` gives, so that no bias is zero and no state explodes, everything else from the
    standard normal distribution.

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
    plan = [(check, _CASES[0]) for check in (_check_dtypes, _check_pieces, _check_slopes)]
    plan += [(_check_rule, case) for case in _CASES]
    plan += [(_check_second_order, _SMALL)]
    with jax.enable_x64(True):
        most = _drawn_params(setup, cell)
        for check, case in plan:
            problem = _draw(cell, most, make_consts, case, setup.seed)
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


# no two axes of a size, so that none passes for another. 37 steps are chunks of 16, 16 and 5, and
# 7 of "carries" of 2, 2, 2 and 1. To compile is what costs
_CASES = (
    _Case(5, (2,), 3, 7, "states"),
    _Case(37, (3,), 2, 5, "gates", lengths=True, resets=True),
    _Case(7, (3, 4), 2, 5, "carries", lengths=True, resets=True, reverse=True),
    _Case(37, (), 3, 7, "states", resets=True, reverse=True),
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


def _drawn_params(setup: Setup, cell: Cell) -> Params:
    """Params for the largest sizes of the cases, from the only `init` that is compiled."""
    key = jax.random.key(setup.seed)
    sizes = max(case.I for case in _CASES), max(case.H for case in _CASES)
    try:
        jax.eval_shape(lambda: cell.init(key, *sizes, dtype=jnp.dtype(jnp.float64)))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"{cell.name}: `init` must be (key, input_size, hidden_size, *, dtype=jnp.float32) -> "
            f"params, called with `dtype` by name; it raised {type(error).__name__}: {error}"
        ) from error
    init = compiled(cell.init, static_argnums=(1, 2), static_argnames="dtype")
    return jax.tree.map(np.asarray, init(key, *sizes, dtype=jnp.dtype(jnp.float64)))


def _draw(
    cell: Cell,
    most: Params,
    make_consts: Callable[..., Consts] | None,
    case: _Case,
    seed: int,
) -> _Problem:
    T, batch, I, H, *_ = case
    key, dtype, rng = jax.random.key(seed), jnp.dtype(jnp.float64), np.random.default_rng(seed)
    like = jax.eval_shape(lambda: cell.init(key, I, H, dtype=dtype))

    def share(like: Any, most: Any, noise: Any) -> Any:
        # a recurrence that amplifies would amplify the rounding as well
        return most[tuple(map(slice, like.shape))] / 2 + noise / 4

    params = jax.tree.map(share, like, most, normal(like, seed))
    state = normal(jax.eval_shape(lambda: cell.initial_state(params, batch)), seed + 1)
    xs = normal(jax.ShapeDtypeStruct((T, *batch, I), dtype), seed + 2)
    consts = None if make_consts is None else make_consts(key, batch, I, H, dtype)
    # Python scalars among them are arrays for all that follows
    consts = jax.tree.map(lambda a: a if hasattr(a, "shape") else np.asarray(a), consts)
    options: dict[str, Any] = {"reverse": case.reverse, "residuals": case.residuals}
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


def _check_slopes(setup: Setup, problem: _Problem) -> None:
    """What diagnostics takes for granted of the slopes, on random states."""
    if problem.cell.slopes is None:
        return
    rule = (
        f"{setup.title}`slopes(after, gates)` must return a NamedTuple with, for every activation, "
        "its derivative as a share of its steepest: an array of the shape and dtype of the state, "
        "with values in 0..1;"
    )
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        these = problem._replace(args=_abstract(problem.args, dtype))
        after, slopes = jax.eval_shape(functools.partial(_slopes, rule, these), _inputs(these))
        if not isinstance(slopes, tuple) or not hasattr(slopes, "_fields"):
            raise AssertionError(f"{rule} got {describe(slopes)}")
        for name, leaf in zip(slopes._fields, slopes, strict=True):
            if describe(leaf) != describe(after.h):
                raise AssertionError(
                    f"{rule} got {name} {describe(leaf)}, for a state {describe(after.h)}"
                )
    _, slopes = compiled(functools.partial(_slopes, rule, problem))(_inputs(problem))
    for name, leaf in zip(slopes._fields, map(np.asarray, slopes), strict=True):
        if not (np.abs(leaf - 0.5) <= 0.5 + setup.tolerance).all():
            raise AssertionError(f"{rule} got {name} from {np.min(leaf):.6g} to {np.max(leaf):.6g}")


def _slopes(rule: str, problem: _Problem, inputs: Arrays) -> tuple[State, Any]:
    """The states after one step from random ones, for all steps in bulk, and their slopes."""
    cell, T, leaves = problem.cell, problem.case.T, named(_ARGUMENTS, problem.args)
    given = [inputs.get(path, leaf) for path, leaf in leaves.items()]
    params, xs, state, consts = jax.tree.unflatten(jax.tree.structure(problem.args), given)
    before = normal(jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape), a.dtype), state), 0)
    after, gates = cell.advance(params, before, cell.project(params, xs, consts), consts)
    assert cell.slopes is not None
    try:
        return after, cell.slopes(after, gates)
    except Exception as error:
        raise AssertionError(f"{rule} it raised {type(error).__name__}: {error}") from error


def _check_rule(setup: Setup, problem: _Problem) -> None:
    """Values and gradients of `unroll` against those of `unroll_reference`."""
    times = dict.fromkeys(["xs", "hs", *named(["states"], [problem.args[2]])], 0)
    locate = functools.partial(_first_steps, setup, problem)
    compare(setup, *_both(problem), _inputs(problem), times, locate)


def _check_second_order(setup: Setup, problem: _Problem) -> None:
    compare_derivatives(setup, *_both(problem), _inputs(problem))


def _check_dtypes(setup: Setup, problem: _Problem) -> None:
    """That no dtype changes on the way; only traced, for how it is rounded is another matter."""

    def all_of(function: Function, inputs: Arrays) -> tuple[Arrays, Arrays]:
        outputs, pull, _ = jax.vjp(function, inputs, has_aux=True)
        return outputs, pull(outputs)[0]

    for dtype in (jnp.float32, jnp.bfloat16):
        these = problem._replace(args=_abstract(problem.args, dtype))
        inputs = _inputs(these)
        for function in _both(these):
            outputs, gradients = jax.eval_shape(functools.partial(all_of, function), inputs)
            expected = {p: jax.ShapeDtypeStruct(a.shape, dtype) for p, a in outputs.items()}
            require_like(setup, {**outputs, **gradients}, {**expected, **inputs})


def _abstract(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    """Floating leaves by their shape alone, in that dtype."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype) if floats(a) else a, tree)


def _both(problem: _Problem) -> tuple[Function, Function]:
    """`unroll` and `unroll_reference` of the problem's arguments."""
    return _flat(unroll, problem), _flat(unroll_reference, problem)


def _flat(unroll: Callable[..., Any], problem: _Problem) -> Function:
    def outputs(params: Any, xs: Any, initial_state: State, consts: Consts) -> Any:
        more = {"consts": consts, "return_states": True, **problem.options}
        return unroll(problem.cell, params, xs, initial_state, **more)

    return flat_function(outputs, _ARGUMENTS, problem.args, _OUTPUTS)


def _inputs(problem: _Problem) -> Arrays:
    return floating(named(_ARGUMENTS, problem.args))


def _first_steps(setup: Setup, problem: _Problem, cotangents: Arrays) -> dict[str, str]:
    """Where the gradient of each input begins to be wrong, by its share of every time step.

    The sequence is run as T sequences of one step, forwards and then back, so that the gradients
    are those of each step. It is the same sequence, for what `_check_pieces` checks holds.
    """
    T, (params, xs, state, consts), options = problem.case.T, problem.args, problem.options
    one = problem._replace(args=(params, xs[:1], state, consts))
    same = _inputs(one)

    def compiled_step(unroll: Callable[..., Any]) -> Callable[..., tuple[Arrays, Arrays]]:
        @compiled
        def run(inputs: Arrays, masks: dict[str, Any], cotangents: Arrays) -> Any:
            function = _flat(unroll, one._replace(options={**options, **masks}))
            values, pull, _ = jax.vjp(function, inputs, has_aux=True)
            return values, pull(cotangents)[0]

        return lambda *given: jax.tree.map(np.asarray, run(*given))

    def masks(t: int) -> dict[str, Any]:
        at = {
            "lengths": lambda lengths: (t < lengths).astype(np.int32),
            "resets": lambda resets: resets[t : t + 1],
        }
        return {name: at[name](options[name]) for name in at if name in options}

    def renamed(arrays: Arrays, name: str, to: str) -> Arrays:
        return {to + p.removeprefix(name): a for p, a in arrays.items() if p.startswith(name)}

    order = range(T)[:: -1 if setup.reverse else 1]
    rule, autodiff = compiled_step(unroll), compiled_step(unroll_reference)
    steps, start = {}, renamed(same, "initial_state", "initial_state")
    for t in order:
        inputs = {**same, "xs": xs[t : t + 1], **start}
        direct = {path: leaf[t : t + 1] for path, leaf in cotangents.items()}
        direct |= renamed(cotangents, "final_state", "final_state")
        steps[t] = inputs, masks(t), direct
        values, _ = autodiff(*steps[t])
        start = renamed(values, "final_state", "initial_state")

    def shares(run: Callable[..., tuple[Arrays, Arrays]]) -> Arrays:
        found, carry = {}, renamed(cotangents, "final_state", "final_state")
        for t in reversed(order):
            inputs, masks, direct = steps[t]
            _, found[t] = run(inputs, masks, {**direct, **carry})
            carry = renamed(found[t], "initial_state", "final_state")
        return {path: np.stack([found[t][path] for t in sorted(found)]) for path in same if T}

    wrong = differences(shares(rule), shares(autodiff), setup.tolerance)
    first = {p: begins(mask, 0, last=not setup.reverse) for p, (_, mask) in wrong.items()}
    return {path: first.get(path, "right at every single step") for path in same}


@contextlib.contextmanager
def _contract_errors_of(setup: Setup) -> Iterator[None]:
    """What the engine or JAX refuse of arguments that were made here is the cell's failure."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{setup.title}{error}\n  {setup.setting}") from error
