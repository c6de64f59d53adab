"""A call of `jaxrnn.unroll`: its arguments checked, completed, and put in the engine's terms."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import bptt, pieces
from jaxrnn.cells.cell import Cell, Consts, Expects, Params, State
from jaxrnn.checks import (
    array,
    booleans,
    describe,
    lengths_of,
    matching_arrays,
    prng_key,
    require_hashable,
    sequence_of,
    size,
    static_bool,
)
from jaxrnn.dtypes import sum_bytes
from jaxrnn.masks import select
from jaxrnn.memory import StepBytes, step_bytes
from jaxrnn.plan import (
    RESIDUALS,
    Plan,
    Sizes,
    candidates,
    choose,
    target_tuning,
    total_bytes,
)

__all__ = [
    "Call",
    "Options",
    "arrays_of",
    "bytes_of_call",
    "check_policy",
    "plan_of",
    "sizes_of_call",
    "steps_before",
    "validate",
    "with_final_reset",
]

# what a size counts as that is known by name alone, as in `jax.export`
_LARGE = 2**16


class Options(TypedDict, total=False):
    """The keyword arguments of `jaxrnn.unroll` that change what is computed."""

    lengths: jax.Array | None
    mask: jax.Array | None
    resets: jax.Array | None
    reset_state: State | None
    detach: jax.Array | None
    reverse: bool
    consts: Consts
    key: jax.Array | None


class Call(NamedTuple):
    """The checked arguments of `jaxrnn.unroll`.

    ``valid [T, ...]`` stands for the lengths or the mask, ``cut [T, ...]`` for the resets as the
    engine reads them, before a step in either direction, and ``ended [...]`` for those that no step
    follows, in reverse. ``reset_state`` is None without resets. ``drawn`` and ``drawn_steps`` are
    the consts and the arrays per step that the cell draws with the key.
    """

    cell: Cell
    expects: Expects
    params: Params
    xs: Any
    T: int
    batch_shape: tuple[int, ...]
    initial_state: State
    reset_state: State | None
    valid: jax.Array | None
    resets: jax.Array | None
    cut: jax.Array | None
    ended: jax.Array | None
    detach: jax.Array | None
    reverse: bool
    consts: Consts
    drawn: Any
    drawn_steps: Any


def validate(
    cell: Cell, params: Params, xs: Any, initial_state: State | None, options: Mapping[str, Any]
) -> Call:
    """Check the arguments of `jaxrnn.unroll` and fill in the defaults.

    Raises:
        TypeError: an unknown option; an argument of another type, container or dtype.
        ValueError: an argument of another shape or range.
    """
    for name in options:
        if name not in Options.__annotations__:
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"unknown argument `{name}`: the options are {known}")
    given: dict[str, Any] = {**dict.fromkeys(Options.__annotations__), "reverse": False, **options}
    if not isinstance(cell, Cell):
        raise TypeError(f"`cell` must be a jaxrnn.Cell such as jaxrnn.LSTM; got {describe(cell)}")
    require_hashable(cell)
    expects = cell.expects(params)
    if expects.params is None:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: array("params" + jax.tree_util.keystr(path), leaf), params
        )
    else:
        params = matching_arrays("params", params, expects.params)
    lengths, mask = given["lengths"], given["mask"]
    if lengths is not None and mask is not None:
        raise ValueError("`mask` takes the place of `lengths`: give one of the two")
    xs, T, batch_shape = sequence_of(xs, expects.x)
    steps_shape = (T, *batch_shape)
    valid = None if mask is None else booleans("mask", mask, steps_shape)
    if lengths is not None:
        valid = steps_before(lengths, T, batch_shape)
    resets, detach = (
        None if given[name] is None else booleans(name, given[name], steps_shape)
        for name in ("resets", "detach")
    )
    reverse = static_bool("reverse", given["reverse"])
    cut, ended = resets, None
    if reverse and resets is not None:
        cut, ended = _cuts_in_reverse(resets, valid)
    initial_state, reset_state = _states(
        cell, expects, params, batch_shape, initial_state, given["reset_state"], resets
    )
    drawn, drawn_steps = _draw(cell, given["key"], params, T, batch_shape)
    return Call(
        cell=cell,
        expects=expects,
        params=params,
        xs=xs,
        T=T,
        batch_shape=batch_shape,
        initial_state=initial_state,
        reset_state=reset_state,
        valid=valid,
        resets=resets,
        cut=cut,
        ended=ended,
        detach=detach,
        reverse=reverse,
        consts=_validate_consts(cell, given["consts"], expects, batch_shape),
        drawn=drawn,
        drawn_steps=drawn_steps,
    )


def check_policy(residuals: str | None, memory_budget: int | None) -> None:
    """Refuse a policy that is none, and one beside a budget."""
    if residuals is not None and not (isinstance(residuals, str) and residuals in RESIDUALS):
        raise ValueError(f"`residuals` must be None or one of {RESIDUALS}; got {residuals!r}")
    if memory_budget is not None:
        memory_budget = size("memory_budget", memory_budget)
        if residuals is not None:
            raise ValueError(
                "`memory_budget` chooses `residuals`: give one of the two; "
                f"got {memory_budget} and {residuals!r}"
            )


def plan_of(
    call: Call,
    *,
    residuals: str | None = None,
    memory_budget: int | None = None,
    return_states: bool = False,
) -> Plan:
    """The static half of a call: what the engine keeps, in chunks of how many steps.

    A batch that is known by name alone, as in `jax.export`, counts as large. With such a number of
    steps, all are one chunk.
    """
    check_policy(residuals, memory_budget)
    plan = Plan(
        reverse=call.reverse,
        batch_axes=len(call.batch_shape),
        chunk=None,
        forward_chunk=None,
        residuals=residuals or "states",
        return_states=static_bool("return_states", return_states),
        loops=target_tuning().loops,
    )
    sizes_known = all(isinstance(axis, int) for axis in (call.T, *call.batch_shape))
    if memory_budget is not None and not sizes_known:
        raise ValueError(
            "`memory_budget` must be None for symbolic sizes, whose bytes are unknown: choose "
            f"`residuals`; got {memory_budget} for T={call.T}, batch {call.batch_shape}"
        )
    if not isinstance(call.T, int):
        return plan
    step, sizes = sizes_of_call(call)
    chosen = choose(step, sizes, residuals=residuals, memory_budget=memory_budget)
    return plan._replace(residuals=chosen[0], chunk=chosen[1], forward_chunk=chosen[2])


def sizes_of_call(call: Call) -> tuple[StepBytes, Sizes]:
    """The numbers that a plan is chosen by, from shapes and dtypes alone."""
    first = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype))
    x, state, consts, drawn, drawn_step = jax.tree.map(
        _sized,
        (first(call.xs), call.initial_state, call.consts, call.drawn, first(call.drawn_steps)),
    )
    step = step_bytes(
        call.cell,
        jax.tree.map(_sized, call.params),
        pieces.with_drawn(call.cell, x, drawn_step),
        state,
        pieces.with_drawn(call.cell, consts, drawn),
    )
    batch_axes = len(call.batch_shape)

    def features(tree: Any) -> list[int]:
        return [math.prod(leaf.shape[batch_axes:]) for leaf in jax.tree.leaves(tree)]

    return step, Sizes(
        T=call.T,
        rows=math.prod(axis if isinstance(axis, int) else _LARGE for axis in call.batch_shape),
        I=sum(features(x)),
        H=max(features(state), default=1),
        weights=sum_bytes(call.params),
        masked=call.valid is not None,
        derived=call.cell.output is not None,
    )


def bytes_of_call(call: Call) -> tuple[int, int]:
    """The bytes that a call holds for its gradient by its leanest and by its fastest plan."""
    step, sizes = sizes_of_call(call)
    totals = [total_bytes(step, sizes, plan) for plan in candidates(step, sizes)]
    return min(totals), totals[0]


def arrays_of(call: Call) -> bptt.Arrays:
    """The other half of a call: its arrays, with masks as the engine reads them."""
    return bptt.Arrays(
        params=call.params,
        initial_state=call.initial_state,
        reset_state=call.reset_state,
        consts=call.consts,
        drawn=call.drawn,
        steps=bptt.Steps(call.xs, call.drawn_steps, call.valid, call.cut, call.detach),
    )


def with_final_reset(call: Call, final_state: State) -> State:
    """The final state, reset where reversed processing ended on a reset that no step follows."""
    return final_state if call.ended is None else select(call.ended, call.reset_state, final_state)


def steps_before(lengths: Any, T: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """The mask ``[T, ...]`` of the steps before each row's length."""
    lengths = lengths_of(lengths, T, batch_shape, like="xs")
    t = lax.broadcasted_iota(jnp.int32, (T, *batch_shape), 0)
    return t < jnp.broadcast_to(lengths, t.shape)


def _cuts_in_reverse(resets: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Before which steps the state is reset ``[T, ...]``, and where after the last one ``[...]``.

    The reset of a valid step takes effect before the next one to be processed, however many masked
    steps lie between: they hold the state as it was.
    """
    none = jnp.zeros_like(jnp.any(resets, axis=0, keepdims=True))
    # one entry more, for rows whose steps are all processed
    after = jnp.concatenate([resets, none])
    if valid is not None:
        t = lax.broadcasted_iota(jnp.int32, after.shape, 0)
        # the first valid step from each step on: seen from the step before, the one processed last
        happens = jnp.concatenate([valid, ~none])
        first = lax.cummin(jnp.where(happens, t, t[-1:]), 0, reverse=True)
        after = jnp.take_along_axis(after, first, axis=0)
    return after[1:], after[0]


def _states(
    cell: Cell,
    expects: Expects,
    params: Params,
    batch_shape: tuple[int, ...],
    initial_state: State | None,
    reset_state: State | None,
    resets: jax.Array | None,
) -> tuple[State, State | None]:
    """The state before the first step, and the one that resets return to, for every row."""
    like = _batched(expects.state, batch_shape)
    if reset_state is not None and resets is None:
        raise ValueError("`reset_state` must be None without `resets`, which return to it")
    start = None
    if initial_state is None or (resets is not None and reset_state is None):
        start = cell.initial_state(params, batch_shape)
        matching_arrays(f"{cell.name}.initial_state(params, batch_shape)", start, like)
    for leaf in jax.tree.leaves(like):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(
                f"the state of {cell.name} must not hold a typed key, which has no zeros: carry "
                "jax.random.key_data(key), or let the cell `draw`"
            )
    if initial_state is None:
        initial_state = start
    else:
        why = f" (the state of {cell.name} for this batch shape)"
        initial_state = matching_arrays("initial_state", initial_state, like, why)
    if cell.output is None and not hasattr(initial_state, "h"):
        raise TypeError(
            f"the state of {cell.name} must be a NamedTuple with a field h, the output, or the "
            f"cell must have `output`; got {describe(initial_state)}"
        )
    if reset_state is None:
        return initial_state, None if resets is None else start
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(reset_state)]
    one_for_all = shapes == [leaf.shape for leaf in jax.tree.leaves(expects.state)]
    why = f" (a state of {cell.name} for every row, or one for all)"
    given = matching_arrays("reset_state", reset_state, expects.state if one_for_all else like, why)
    every_row = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), given, like)
    return initial_state, every_row


def _batched(state: State, batch_shape: tuple[int, ...]) -> State:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*batch_shape, *leaf.shape), leaf.dtype), state
    )


def _sized(leaf: Any) -> jax.ShapeDtypeStruct:
    """The leaf's type, with a large size in the place of each that is known by name alone."""
    shape = (axis if isinstance(axis, int) else _LARGE for axis in leaf.shape)
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)


def _draw(
    cell: Cell, key: Any, params: Params, T: int, batch_shape: tuple[int, ...]
) -> tuple[Any, Any]:
    if key is None:
        return None, None
    if cell.draw is None:
        raise ValueError(f"`key` must be None: {cell.name} draws nothing at random")
    prng_key("key", key)
    drawn = cell.draw(key, params, T, batch_shape)
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(f"{cell.name}.draw must return (consts, steps); got {describe(drawn)}")
    consts, steps = lax.stop_gradient(drawn)
    for path, leaf in jax.tree_util.tree_leaves_with_path(steps):
        if leaf.shape[: 1 + len(batch_shape)] != (T, *batch_shape):
            raise ValueError(
                f"{cell.name}.draw must return arrays [T, *batch, ...] for each step, here "
                f"{(T, *batch_shape)} and more; got steps{jax.tree_util.keystr(path)} {leaf.shape}"
            )
    return consts, steps


def _validate_consts(
    cell: Cell, consts: Consts, expects: Expects, batch_shape: tuple[int, ...]
) -> Consts:
    if consts is None:
        return None
    if cell.consts_rows is None:
        raise ValueError(f"`consts` must be None: {cell.name} takes none; got {describe(consts)}")
    consts = jax.tree_util.tree_map_with_path(
        lambda path, leaf: array("consts" + jax.tree_util.keystr(path), leaf), consts
    )
    rows, _ = pieces.consts_rows(cell, consts, None)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((expects.params, expects.state))}

    def check(path: Any, leaf: jax.Array, rows: bool) -> None:
        label = "consts" + jax.tree_util.keystr(path)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype not in dtypes:
            known = " or ".join(map(str, dtypes))
            raise TypeError(f"`{label}` must have the dtype of `params`, {known}; got {leaf.dtype}")
        if rows and leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"`{label}` must start with the batch axes of `xs`, {batch_shape}; got shape "
                f"{leaf.shape}"
            )

    jax.tree_util.tree_map_with_path(check, consts, rows)
    return consts
