"""A cell's pieces, one by one: the properties that the engine relies on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import pieces
from jaxrnn.cells.cell import Cell, Consts, Drawn, Forms, Same, State
from jaxrnn.checks import describe, matching_arrays
from jaxrnn.dtypes import differentiable
from jaxrnn.pieces import Bound, with_drawn
from jaxrnn.testing.arrays import Arrays, Function, compiled, named, normal
from jaxrnn.testing.cases import Problem, both, in_dtype, inputs_of
from jaxrnn.testing.compare import Setup, require_like, require_same

__all__ = ["check_dtypes", "check_expects", "check_pieces"]


def check_expects(setup: Setup, problem: Problem) -> None:
    """`Cell.expects` and `Cell.recurrent`, by shapes and dtypes alone."""
    cell, (params, *_) = problem.cell, problem.args
    setup = setup._replace(sides=("got", "expected"))
    expects = cell.expects(params)
    start = jax.eval_shape(lambda: cell.initial_state(params, ()))
    this = setup._replace(
        setting="`initial_state(params)` must have the structure, shapes and dtypes of "
        "`expects(params).state`"
    )
    require_like(this, named(["state"], [start]), named(["state"], [expects.state]))
    if expects.params is not None:
        for path, wrong in _wrong_params(params).items():
            if _accepts(cell, wrong):
                raise AssertionError(
                    f"{setup.title}`expects` must refuse params that cannot be the cell's, by an "
                    f"error or by other shapes in its `params`\n  it accepted {path} of shape "
                    f"{wrong[1]} beside the other params, where {wrong[2]} is right"
                )
    if cell.recurrent is not None:
        _check_recurrent(setup, problem)


def _wrong_params(params: Any) -> dict[str, tuple[Any, Any, Any]]:
    """For each leaf by name, params in which it alone has one entry more along its axes."""
    leaves, structure = jax.tree.flatten(params)
    found = {}
    for i, path in enumerate(named(["params"], [params])):
        # an axis more, because a size more may be right for a cell without any other array
        wrong = np.asarray(leaves[i])[None]
        changed = jax.tree.unflatten(structure, [*leaves[:i], wrong, *leaves[i + 1 :]])
        found[path] = changed, wrong.shape, wrong.shape[1:]
    return found


def _accepts(cell: Cell, wrong: tuple[Any, Any, Any]) -> bool:
    try:
        matching_arrays("params", wrong[0], cell.expects(wrong[0]).params)
    except (TypeError, ValueError):
        return False
    return True


def _check_recurrent(setup: Setup, problem: Problem) -> None:
    cell, (params, *_) = problem.cell, problem.args
    assert cell.recurrent is not None
    found = jax.eval_shape(cell.recurrent, params)
    right = isinstance(found, dict) and all(
        isinstance(name, str)
        and getattr(matrix, "ndim", 0) == 2
        and matrix.shape[0] == matrix.shape[1]
        for name, matrix in found.items()
    )
    if not right:
        raise AssertionError(
            f"{setup.title}`recurrent(params)` must return a dict of square matrices [H, H] by the "
            f"name of their gate; got {describe(found)}"
        )


def check_dtypes(setup: Setup, problem: Problem) -> None:
    """That no dtype changes on the way, in float32 and bfloat16; only traced."""
    cell = problem.cell

    def all_of(function: Function, inputs: Arrays) -> tuple[Arrays, Arrays]:
        outputs, pull, _ = jax.vjp(function, inputs, has_aux=True)
        return outputs, pull(outputs)[0]

    for dtype in (jnp.float32, jnp.bfloat16):
        these = in_dtype(problem, dtype)
        expects = cell.expects(these.args[0])
        leaves = jax.tree.leaves((expects.params, expects.state))
        dtypes = {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}
        states = named(["final_state", "states"], [expects.state] * 2)
        inputs = inputs_of(these)
        for function in both(these):
            outputs, gradients = jax.eval_shape(functools.partial(all_of, function), inputs)
            expected = {}
            for path, found in outputs.items():
                # a cell of several dtypes may choose that of its output
                want = states[path].dtype if path in states else found.dtype
                if path not in states and len(dtypes) == 1:
                    (want,) = dtypes
                expected[path] = jax.ShapeDtypeStruct(found.shape, want)
            require_like(setup, {**outputs, **gradients}, {**expected, **inputs})


def check_pieces(setup: Setup, problem: Problem) -> None:
    """The properties of `_RULES`, and of the slopes, on random states and adjoints."""
    cell, case, (params, xs, state, _, consts), _ = problem
    T, batch = case.T, case.batch
    setup = setup._replace(sides=("got", "expected"))
    by_step = jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape), a.dtype), state)
    before, *dstates = (
        normal(like, setup.seed + i)
        for i, like in enumerate((by_step, *[differentiable(by_step)] * 2))
    )
    rule = f"{setup.title}{_SLOPES}"
    if cell.slopes is not None:
        _check_types_of_slopes(rule, problem, before)
    key = None if cell.draw is None else jax.random.key(setup.seed)
    run = compiled(functools.partial(_pairs, cell, T, batch, key))
    pairs, slopes = run(params, xs, consts, before, dstates)
    # in the order of the rules: a dict that jax.jit returns is sorted
    for piece in (piece for piece in _RULES if piece in pairs):
        this = setup._replace(setting=_RULES[piece])
        trees = jax.tree.map(np.asarray, pairs[piece])
        found, expected = (named([piece], [tree]) for tree in trees)
        require_like(this, found, expected)
        times = [p for p in found if piece in _BY_STEP or p.startswith("gradients.xs")]
        require_same(this, "wrong value", found, expected, dict.fromkeys(times, 0))
    for name, leaf in {} if slopes is None else slopes._asdict().items():
        if not (np.abs(np.asarray(leaf) - 0.5) <= 0.5 + setup.tolerance).all():
            raise AssertionError(f"{rule} got {name} from {np.min(leaf):.6g} to {np.max(leaf):.6g}")


_IN_BULK = "many steps at once, on a leading axis, must give what they give one by one"
_RULES = {
    "initial_state": "it must give every row of a batch the state that it gives one row",
    "draw": "it must give the same arrays for the same key: only the key is random",
    "bare": "`step` must take x and consts as they are, too, and not only in a `Drawn`: see "
    "`jaxrnn.cells.cell.drawn_of`",
    "project": _IN_BULK,
    "step": "it must return the state that `advance` makes of what `project` gives",
    "output": "`step` must return the field h of its new state, which `unroll` returns, or what "
    "`output` makes of what `advance` gives",
    "output_in_bulk": _IN_BULK,
    "rows": "rows must not read each other: a step of rows in another order must give the same in "
    "that order. The leaves of consts that `consts_rows` names are rows",
    "linearize": _IN_BULK,
    "pull": "it must be linear in its adjoint: pull(a + 2 b) = pull(a) + 2 pull(b)",
    "arrange": "`pull` must give the same for the factors from `linearize` and from `arrange`",
    "pull.gpu": "the form for GPUs must give what the default form gives",
    "gradients": f"{_IN_BULK}, with the gradients of params and consts summed",
}
_BY_STEP = set(_RULES) - {"initial_state", "draw", "gradients"}
_SLOPES = (
    "`slopes(after, gates)` must return a NamedTuple with, for every activation, its derivative as "
    "a share of its steepest: an array of the shape and dtype of the state, with values in 0..1;"
)


class _Gradients(NamedTuple):
    params: Any
    xs: Any
    consts: Any


def _pairs(
    cell: Cell,
    T: int,
    batch: tuple[int, ...],
    key: Any,
    params: Any,
    xs: Any,
    consts: Consts,
    before: State,
    dstates: list[State],
) -> tuple[dict[str, tuple[Any, Any]], Any]:
    """The results of each piece beside the right ones, by rule; and the slopes."""
    pairs: dict[str, tuple[Any, Any]] = {}

    def step(xs: Any, consts: Any, before: State) -> Any:
        # a map for the loop over time, because each state before a step is known
        return jax.vmap(lambda x, before: cell.step(params, before, x, consts))(xs, before)

    start, of_one_row = (cell.initial_state(params, axes) for axes in (batch, ()))
    rows_of_it = jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, *a.shape)), of_one_row)
    pairs["initial_state"] = start, rows_of_it
    drawn, drawn_steps = None, None
    if cell.draw is not None:
        drawn, drawn_steps = cell.draw(key, params, T, batch)
        pairs["draw"] = (drawn, drawn_steps), cell.draw(key, params, T, batch)
        nothing_drawn = step(Drawn(xs, None), Drawn(consts, None), before)
        try:
            pairs["bare"] = step(xs, consts, before), nothing_drawn
        except Exception as error:
            raise AssertionError(
                f"{cell.name}: {_RULES['bare']}; it raised {type(error).__name__}: {error}"
            ) from error
    rows = pieces.consts_rows(cell, consts, drawn)
    given = with_drawn(cell, xs, drawn_steps), with_drawn(cell, consts, drawn)
    stepped, hs = step(*given, before)
    flipped = _flipped(cell, (xs, drawn_steps), (consts, drawn), rows, before) if batch else None
    xs, consts = given
    bound = Bound(cell, params, consts)

    inputs = pieces.project(bound, xs)
    pairs["project"] = inputs, _one_by_one(lambda xs: pieces.project(bound, xs), xs)
    after, gates = pieces.advance_in_bulk(bound, before, inputs)
    pairs["step"] = stepped, after
    output = functools.partial(pieces.output, bound)
    h_by_one = _one_by_one(output, after, gates)
    pairs["output"] = hs, h_by_one
    if cell.output is not None:
        pairs["output_in_bulk"] = output(after, gates), h_by_one
    if flipped is not None:
        pairs["rows"] = _in_other_order(step(*flipped), 1), (stepped, hs)

    def linearize(inputs: Any, before: State, after: State, gates: Any) -> Any:
        return cell.linearize(params, inputs, before, after, gates, consts)

    factors = linearize(inputs, before, after, gates)
    by_one = _one_by_one(linearize, inputs, before, after, gates)
    pairs["linearize"] = _stacked(T, factors), by_one

    def pull(factors: Any, adjoint: Any, form: Callable[..., Any] = cell.pull) -> Any:
        def one(factors: Any, adjoint: Any) -> Any:
            return form(params, adjoint, factors, consts)

        return jax.vmap(one)(_stacked(T, factors), adjoint)

    def add_twice(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda a, b: a + 2 * b, a, b)

    adjoints: list[Any] = dstates
    if cell.output is not None:
        dhs = [jax.tree.map(f, differentiable(hs)) for f in (jnp.sin, jnp.cos)]
        adjoints = list(zip(dstates, dhs, strict=True))
    of_a, of_b, of_sum = (pull(factors, d) for d in (*adjoints, add_twice(*adjoints)))
    if cell.linear:
        pairs["pull"] = of_sum, add_twice(of_a, of_b)
    arranged = factors if cell.arrange is None else cell.arrange(factors)
    if cell.arrange is not None:
        pairs["arrange"] = pull(arranged, adjoints[0]), of_a
    if isinstance(cell.pull, Forms):
        pairs["pull.gpu"] = pull(arranged, adjoints[0], cell.pull.gpu), of_a

    def gradients(*used: Any) -> _Gradients:
        return _Gradients(*pieces.gradients(bound, *used))

    used = xs, before, after, gates, of_a[1]
    terms = jax.vmap(lambda *at: gradients(*_lifted(at)))(*used)
    summed = jax.tree.map(lambda a: jnp.sum(a, axis=0), terms)
    dxs = jax.tree.map(lambda a: a[:, 0], terms.xs)
    pairs["gradients"] = gradients(*used), summed._replace(xs=dxs)
    return pairs, None if cell.slopes is None else cell.slopes(after, gates)


def _lifted(tree: Any) -> Any:
    """One step as a chunk of one."""
    return jax.tree.map(lambda a: a[None], tree)


def _one_by_one(piece: Callable[..., Any], *args: Any) -> Any:
    """The piece of ``[T, ...]`` arguments, called with one step at a time."""

    def of_one(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, Same) else leaf[0]

    return jax.vmap(
        lambda *at: jax.tree.map(
            of_one, piece(*_lifted(at)), is_leaf=lambda leaf: isinstance(leaf, Same)
        )
    )(*args)


def _stacked(T: int, factors: Any) -> Any:
    """The factors of every step, those that are the same at each repeated."""

    def stack(leaf: Any) -> Any:
        if not isinstance(leaf, Same):
            return leaf
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (T, *a.shape)), leaf.value)

    return jax.tree.map(stack, factors, is_leaf=lambda leaf: isinstance(leaf, Same))


def _in_other_order(tree: Any, axis: int) -> Any:
    return jax.tree.map(lambda a: jnp.flip(a, axis), tree)


def _flipped(
    cell: Cell, steps: tuple[Any, Any], consts: tuple[Any, Any], rows: Any, before: State
) -> tuple[Any, Any, State]:
    """The arguments of a step with the rows in the other order: of xs, of consts, and the state."""

    def flip(leaf: Any, of_rows: bool) -> Any:
        return jnp.flip(leaf, 0) if of_rows else leaf

    given, drawn = (jax.tree.map(flip, *pair) for pair in zip(consts, rows, strict=True))
    return (
        with_drawn(cell, *_in_other_order(steps, 1)),
        with_drawn(cell, given, drawn),
        _in_other_order(before, 1),
    )


def _check_types_of_slopes(rule: str, problem: Problem, before: State) -> None:
    cell = problem.cell
    assert cell.slopes is not None

    def states_and_slopes(params: Any, xs: Any, consts: Any, before: State) -> Any:
        bound = Bound(cell, params, with_drawn(cell, consts, None))
        inputs = pieces.project(bound, with_drawn(cell, xs, None))
        after, gates = pieces.advance_in_bulk(bound, before, inputs)
        try:
            return after, cell.slopes(after, gates)  # type: ignore[misc]
        except Exception as error:
            raise AssertionError(f"{rule} it raised {type(error).__name__}: {error}") from error

    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        params, xs, state, _, consts = in_dtype(problem, dtype).args
        like = jax.tree.map(
            lambda a, like: jax.ShapeDtypeStruct(a.shape, like.dtype), before, state
        )
        after, slopes = jax.eval_shape(states_and_slopes, params, xs, consts, like)
        if not isinstance(slopes, tuple) or not hasattr(slopes, "_fields"):
            raise AssertionError(f"{rule} got {describe(slopes)}")
        # one for each leaf, as of a state that is wider than its output
        states = list(dict.fromkeys(map(describe, jax.tree.leaves(after))))
        for name, leaf in zip(slopes._fields, slopes, strict=True):
            if describe(leaf) not in states:
                raise AssertionError(
                    f"{rule} got {name} {describe(leaf)}, for a state {' and '.join(states)}"
                )
