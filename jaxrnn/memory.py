"""What a scan holds in memory for its gradient, in closed form, and the policy that a budget buys.

Per cell: S the bytes of one step's state, G of its gates, both for the whole batch. With T steps in
N = ceil(T / K) chunks of K, `unroll` keeps from the forward to the backward pass, by ``residuals``,

    "gates"      (S + G) T + S N
    "states"      S T + S N
    "carries"     S N

beside its arguments. In float32, and in units of T*B*H floats, that is, without the S N:

    residuals    Elman   LSTM   GRU
    "gates"        1       6     5
    "states"       1       2     1
    "carries"      0       0     0

The outputs ``hs [T, ..., H]`` are one unit more, except where nothing is masked and the states are
kept: there they are a field of the states. What a chunk needs while it is worked on is reused by
the next: `Footprint.workspace`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrnn.bptt import RESIDUALS, chunk_length, parts, require_like
from jaxrnn.cells.contract import Cell, Consts, Params, State

__all__ = ["Footprint", "choose", "footprint"]

# the gates are kept only where that is faster: where all steps are one chunk anyway, and where the
# weights of a step have at least this many rows, I + H; and up to this many bytes. With AVX-512, an
# LSTM's training step took as long either way at 384 rows, and 1.06 times as long without them at
# 640: fresh memory costs time, too
_WIDE = 2**9
_GATES_LIMIT = 64 * 2**20
# up to this many bytes of hs, all steps are one chunk: what a chunk reuses is in cache anyway, and
# a loop over chunks costs time, when compiled and when run. Sequences with fewer entries a step
# keep their chunks: at T = 997, B = 3, H = 7, an LSTM gained nothing, an Elman network a quarter
_WHOLE_LIMIT = 2**20
_WHOLE_ENTRIES = 2**8
# up to this many bytes of inputs, the forward pass is one chunk: above 32 megabytes a piece, memory
# is given back to the system, and to take it again at every call costs more than a loop over chunks
_WHOLE_FORWARD_LIMIT = 24 * 2**20


class Footprint(NamedTuple):
    """Bytes for the gradient of one call, whole batch: what is kept, worked on, and returned."""

    kept: int
    workspace: int
    outputs: int

    @property
    def total(self) -> int:
        return sum(self)


def footprint(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    initial_state: State,
    consts: Consts,
    residuals: str,
    chunk: int,
    forward_chunk: int,
    *,
    masked: bool,
) -> Footprint:
    """The bytes of a policy and of the lengths of chunks, from shapes and dtypes alone.

    ``kept`` is exact. ``workspace`` is what a chunk of either pass holds, whichever is more, when
    nothing of it is fused and each array of it has a buffer: XLA needs less.
    """
    T = xs.shape[0]
    args = (cell, params, xs, initial_state, consts)
    (state, gates), (inputs,) = _step_bytes(_made, *args), _step_bytes(_projected, *args)
    entering = state * math.ceil(T / max(chunk, 1))
    kept = {
        "gates": (state + gates) * T + entering,
        "states": state * T + entering,
        "carries": entering,
    }[residuals]
    weights = 2 * sum(leaf.size * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(params))
    forwards = (inputs + state + gates) * min(forward_chunk, T)
    backwards = sum(_step_bytes(_worked_on, *args)) * min(chunk, T) + weights
    return Footprint(
        kept=kept,
        workspace=max(forwards, backwards),
        outputs=0 if residuals != "carries" and not masked else _bytes(initial_state.h) * T,
    )


def choose(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    initial_state: State,
    consts: Consts,
    *,
    masked: bool,
    residuals: str | None,
    memory_budget: int | None,
) -> tuple[str, int, int]:
    """``(residuals, chunk, forward_chunk)`` of a `jaxrnn.bptt.Plan`.

    The given policy, or else the fastest, or the fastest that the budget allows.
    """
    args = (cell, params, xs, initial_state, consts)
    I, H = cell.sizes(params)
    T, batch, h = xs.shape[0], math.prod(xs.shape[1:-1]), initial_state.h
    # in this order: what a cell of one's own makes is checked before it is worked on
    made, inputs, workspace = (
        sum(_step_bytes(piece, *args)) for piece in (_made, _projected, _worked_on)
    )

    def default_chunk(residuals: str, workspace: int = workspace) -> int:
        # at I + H = 128, the products gain by rows up to 2,000; the smaller they are, the less time
        # is theirs
        useful = (I + H) ** 2 // 8 // max(batch, 1)
        return chunk_length(T, residuals, useful=useful, workspace=max(workspace, 1))

    if residuals is not None:
        chunk = default_chunk(residuals)
        return residuals, chunk, chunk
    entries = h.size >= _WHOLE_ENTRIES
    whole = entries and T * _bytes(h) <= _WHOLE_LIMIT
    whole_forward = whole or (entries and T * inputs <= _WHOLE_FORWARD_LIMIT)
    keep_gates = (whole or I + H >= _WIDE) and T * made <= _GATES_LIMIT
    residuals = "gates" if keep_gates else "states"
    chunk = max(T, 1) if whole else default_chunk(residuals)
    forward_chunk = max(T, 1) if whole_forward else default_chunk(residuals, inputs + made)
    fastest = residuals, chunk, forward_chunk
    if memory_budget is None:
        return fastest
    plans = [fastest] + [
        (leaner, chunk, chunk)
        for leaner in RESIDUALS[RESIDUALS.index(residuals) :]
        for chunk in _halves(default_chunk(leaner))
    ]
    total = {plan: footprint(*args, *plan, masked=masked).total for plan in plans}
    for plan in plans:
        if total[plan] <= memory_budget:
            return plan
    least = min(plans, key=lambda plan: total[plan])
    raise ValueError(
        f"`memory_budget` must be at least {total[least]} bytes for xs of shape "
        f"{xs.shape} and {H=} (residuals={least[0]!r} in chunks of {least[1]} steps); "
        f"got {memory_budget}"
    )


def _halves(chunk: int) -> list[int]:
    """A chunk length and its halves, in descending order."""
    return [chunk >> k for k in range(chunk.bit_length()) if chunk >> k] or [chunk]


def _step_bytes(
    piece: Callable[..., Any], cell: Cell, params: Params, xs: jax.Array, state: State, consts: Any
) -> tuple[int, ...]:
    """The bytes of each value that a piece below returns for one step of these arrays."""
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    leaves, structure = jax.tree.flatten((params, x, state, consts))
    like = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _step_bytes_like(piece, cell, structure, like)


# the same shapes come at every call: nothing is traced again
@functools.lru_cache(maxsize=256)
def _step_bytes_like(
    piece: Callable[..., Any], cell: Cell, structure: Any, like: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[int, ...]:
    args = jax.tree.unflatten(structure, like)
    return tuple(map(_bytes, jax.eval_shape(functools.partial(piece, cell), *args)))


def _made(cell: Cell, params: Params, x: jax.Array, before: State, consts: Consts) -> Any:
    """What one step makes: state and gates."""
    inputs = cell.project(params, x, consts)
    after, gates = parts(cell, "advance", 2, cell.advance(params, before, inputs, consts))
    require_like(cell, "advance", "state", after, before)
    return after, gates


def _projected(cell: Cell, params: Params, x: jax.Array, before: State, consts: Consts) -> Any:
    """What one step reads beside the state, as the forward pass has it in bulk."""
    del before
    return (cell.project(params, x, consts),)


def _worked_on(cell: Cell, params: Params, x: jax.Array, before: State, consts: Consts) -> Any:
    """What the backward pass has of one step while it is at work on its chunk."""
    inputs = cell.project(params, x, consts)
    after, gates = cell.advance(params, before, inputs, consts)
    lifted = jax.tree.map(lambda a: a[None], (before, after, gates))
    factors = cell.linearize(params, lifted[0], lifted[1], lifted[2], consts)
    factors = jax.tree.map(lambda a: a[0], factors)
    arranged = factors if cell.arrange is None else cell.arrange(factors)
    _, deltas = parts(cell, "pull", 2, cell.pull(params, after, arranged, consts))
    # inputs of products in both layouts, deltas before and after they are stacked
    return x, x, inputs, before, before, after, gates, factors, arranged, deltas, deltas


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
