"""The arguments of a scan over time: checked, completed, and put in the engine's terms."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import bptt
from jaxrnn.cells.contract import Cell, Consts, Params, State
from jaxrnn.masks import zero_where
from jaxrnn.memory import choose
from jaxrnn.validation import (
    array,
    describe,
    floating,
    lengths_of,
    matching_arrays,
    same_structure,
    size,
    static_bool,
)

__all__ = [
    "Sequence",
    "check_policy",
    "cut_final",
    "engine_steps",
    "plan_engine",
    "steps_before",
    "validate",
]


class Sequence(NamedTuple):
    """The validated arguments of `unroll`; ``valid [T, ...]`` stands for the lengths."""

    cell: Cell
    params: Params
    xs: jax.Array
    initial_state: State
    valid: jax.Array | None
    resets: jax.Array | None
    reverse: bool
    consts: Consts


def validate(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    initial_state: State | None,
    *,
    lengths: jax.Array | None,
    resets: jax.Array | None,
    reverse: bool,
    consts: Consts,
) -> Sequence:
    """Check the arguments of `unroll` and fill in the defaults."""
    if not isinstance(cell, Cell):
        raise TypeError(f"`cell` must be a jaxrnn.Cell such as jaxrnn.LSTM; got {describe(cell)}")
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(
            f"`cell` must be hashable: every field of {cell.name} a function or a constant, "
            "arrays through params, state or consts"
        ) from error
    params, (I, _), dtype = _validate_params(cell, params)
    xs = array("xs", xs)
    if xs.ndim < 2 or xs.shape[-1] != I:
        raise ValueError(f"`xs` must be [T, ..., {I=}], time first; got shape {xs.shape}")
    if xs.dtype != dtype:
        raise TypeError(
            f"`xs` must have the dtype of `params`, {dtype}; got {xs.dtype} "
            f"(convert one of them: xs.astype({dtype}))"
        )
    T, batch_shape = xs.shape[0], xs.shape[1:-1]
    zero_state = cell.initial_state(params, batch_shape)
    if not hasattr(zero_state, "h"):
        raise TypeError(
            f"{cell.name}.initial_state must return a NamedTuple with a field h, the output; "
            f"got {describe(zero_state)}"
        )
    if initial_state is None:
        initial_state = zero_state
    else:
        expected = jax.eval_shape(lambda: zero_state)
        why = f" (the state of {cell.name} for this batch shape)"
        initial_state = matching_arrays("initial_state", initial_state, expected, why)
    if consts is not None:
        consts = _validate_consts(cell, consts, dtype)
    return Sequence(
        cell=cell,
        params=params,
        xs=xs,
        initial_state=initial_state,
        valid=None if lengths is None else steps_before(lengths, T, batch_shape),
        resets=None if resets is None else _validate_resets(resets, (T, *batch_shape)),
        reverse=static_bool("reverse", reverse),
        consts=consts,
    )


def check_policy(residuals: str | None, memory_budget: int | None) -> None:
    """Refuse what says neither what to keep nor how much."""
    if residuals is not None and not (isinstance(residuals, str) and residuals in bptt.RESIDUALS):
        raise ValueError(f"`residuals` must be None or one of {bptt.RESIDUALS}; got {residuals!r}")
    if memory_budget is not None:
        memory_budget = size("memory_budget", memory_budget)
        if residuals is not None:
            raise ValueError(
                "`memory_budget` chooses `residuals`: give one of the two; "
                f"got {memory_budget} and {residuals!r}"
            )


def plan_engine(
    s: Sequence,
    *,
    residuals: str | None,
    return_states: bool,
    memory_budget: int | None = None,
) -> bptt.Plan:
    """The static half of a call: what the engine keeps, in chunks of how many steps."""
    check_policy(residuals, memory_budget)
    residuals, chunk, forward_chunk = choose(
        s.cell,
        s.params,
        s.xs,
        s.initial_state,
        s.consts,
        masked=s.valid is not None,
        residuals=residuals,
        memory_budget=memory_budget,
    )
    return bptt.Plan(
        reverse=s.reverse,
        chunk=chunk,
        forward_chunk=forward_chunk,
        residuals=residuals,
        return_states=static_bool("return_states", return_states),
    )


def steps_before(lengths: Any, T: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """The mask ``[T, ...]`` of the steps before each row's length."""
    lengths = lengths_of(lengths, T, batch_shape, like="xs")
    t = lax.broadcasted_iota(jnp.int32, (T, *batch_shape), 0)
    return t < jnp.broadcast_to(lengths, t.shape)


def engine_steps(s: Sequence) -> bptt.Steps:
    """What the engine reads at each step: the state is cut *before* a step, in either direction."""
    cut = s.resets
    if cut is not None and s.reverse:
        # the carry that leaves step t+1 is the one that step t reads; padding leaves it as it was
        after = cut if s.valid is None else cut & s.valid
        cut = jnp.concatenate([after[1:], jnp.zeros_like(after[:1])])
    return bptt.Steps(xs=s.xs, valid=s.valid, cut=cut)


def cut_final(s: Sequence, final_state: State) -> State:
    """The final state, zero where reversed processing ended on a reset, with no step to cut it."""
    if not s.reverse or s.resets is None or s.xs.shape[0] == 0:
        return final_state
    ended = s.resets[0] if s.valid is None else s.resets[0] & s.valid[0]
    return zero_where(ended, final_state)


def _validate_params(cell: Cell, params: Params) -> tuple[Params, tuple[int, int], jnp.dtype]:
    # the ranks do not depend on the sizes, so the smallest network tells what to expect
    smallest = _params_like(cell, 1, 1, jnp.dtype(jnp.float32))
    if not same_structure(params, smallest) or not jax.tree.leaves(params):
        raise TypeError(
            f"`params` must be {type(smallest).__name__} from {cell.name}.init; "
            f"got {describe(params)}"
        )

    def check(path: Any, leaf: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        label = "params" + jax.tree_util.keystr(path)
        leaf = floating(label, leaf)
        if leaf.ndim != len(like.shape) or 0 in leaf.shape:
            raise ValueError(
                f"`{label}` must have {len(like.shape)} axes, none of them empty; "
                f"got shape {leaf.shape}"
            )
        return leaf

    params = jax.tree_util.tree_map_with_path(check, params, smallest)
    (I, H), dtype = cell.sizes(params), jax.tree.leaves(params)[0].dtype
    expected = _params_like(cell, I, H, dtype)
    why = f" ({cell.name} of {I=}, {H=})"
    return matching_arrays("params", params, expected, why), (I, H), dtype


@functools.lru_cache(maxsize=256)
def _params_like(cell: Cell, input_size: int, hidden_size: int, dtype: jnp.dtype) -> Params:
    """Shapes and dtypes of the cell's params at these sizes."""
    return jax.eval_shape(
        lambda: cell.init(jax.random.key(0), input_size, hidden_size, dtype=dtype)
    )


def _validate_consts(cell: Cell, consts: Consts, dtype: jnp.dtype) -> Consts:
    if not cell.takes_consts:
        raise ValueError(f"`consts` must be None: {cell.name} takes none; got {describe(consts)}")

    def check(path: Any, leaf: Any) -> jax.Array:
        label = "consts" + jax.tree_util.keystr(path)
        leaf = array(label, leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype != dtype:
            raise TypeError(f"`{label}` must have the dtype of `params`, {dtype}; got {leaf.dtype}")
        return leaf

    return jax.tree_util.tree_map_with_path(check, consts)


def _validate_resets(resets: Any, shape: tuple[int, ...]) -> jax.Array:
    resets = array("resets", resets)
    if resets.dtype != jnp.bool_:
        raise TypeError(f"`resets` must be booleans; got dtype {resets.dtype}")
    if resets.shape != shape:
        raise ValueError(
            f"`resets` must be [T, ...] as `xs` without its last axis, {shape}; "
            f"got shape {resets.shape}"
        )
    return resets
