"""The bytes that a scan holds for its gradient, in closed form.

Per cell: S the bytes of one step's state, G of its gates, both for the whole batch. With T steps in
N = ceil(T / K) chunks of K, `jaxrnn.unroll` keeps from the forward to the backward pass, beside its
arguments and S N for the states that enter the chunks,

    residuals    bytes       in units of T*B*H floats: Elman   LSTM   GRU
    "gates"      (S + G) T                               1       6     5
    "states"      S T                                    1       2     1
    "carries"     0                                      0       0     0

The outputs ``hs [T, ..., H]`` are one unit more, except where nothing is masked, the states are
kept and the output is a field of them. Buffers that live only while a chunk is worked on are reused
by the next chunk: `Footprint.workspace`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax

from jaxrnn import pieces
from jaxrnn.cells.cell import Cell, Consts, Params, Same, State
from jaxrnn.dtypes import differentiable
from jaxrnn.loops import XLA_LOOPS, Back
from jaxrnn.pieces import Bound

__all__ = ["Footprint", "StepBytes", "bytes_of", "footprint", "step_bytes"]


class StepBytes(NamedTuple):
    """Bytes of one step, for the whole batch.

    ``inputs`` are read in the forward pass, ``state``, ``gates`` and ``output`` are made there;
    ``backward`` is all that the backward pass has of a step while it works on its chunk.
    """

    inputs: int
    state: int
    gates: int
    output: int
    backward: int


class Footprint(NamedTuple):
    """Bytes for the gradient of one call, whole batch: kept, worked on, and returned as ``hs``."""

    kept: int
    workspace: int
    outputs: int

    @property
    def total(self) -> int:
        return sum(self)


def footprint(
    step: StepBytes,
    weights: int,
    T: int,
    residuals: str,
    chunk: int,
    forward_chunk: int,
    *,
    hs_in_states: bool,
) -> Footprint:
    """The bytes of a policy and of the lengths of chunks.

    ``kept`` is exact. ``workspace`` is that of a chunk of either pass, whichever is more, if
    nothing of it is fused and each of its arrays has a buffer: XLA needs less.

    Args:
        step: of the cell, from `step_bytes`.
        weights: of all params, in the accumulation dtype.
        T, residuals, chunk, forward_chunk: as in `jaxrnn.plan.Plan`.
        hs_in_states: nothing is masked and the output is a field of the state.
    """
    entering = step.state * math.ceil(T / max(chunk, 1))
    kept = {
        "gates": (step.state + step.gates) * T + entering,
        "states": step.state * T + entering,
        "carries": entering,
    }[residuals]
    forwards = (step.inputs + step.state + step.gates) * min(forward_chunk, T)
    backwards = step.backward * min(chunk, T) + 2 * weights
    return Footprint(
        kept=kept,
        workspace=max(forwards, backwards),
        outputs=0 if residuals != "carries" and hs_in_states else step.output * T,
    )


def step_bytes(cell: Cell, params: Params, x: Any, state: State, consts: Consts) -> StepBytes:
    """The bytes of one step, from shapes and dtypes alone.

    Args:
        params, state: arrays or `jax.ShapeDtypeStruct`.
        x, consts: of one step, as the pieces of the cell take them.
    """
    return StepBytes(*map(bytes_of, _one_step.eval_shape(cell, params, x, state, consts)))


# under jax.jit, because JAX remembers the trace of the same shapes, and forgets it when told to
@functools.partial(jax.jit, static_argnums=0)
def _one_step(cell: Cell, params: Params, x: Any, before: State, consts: Consts) -> tuple[Any, ...]:
    """The arrays whose bytes `StepBytes` has, in its order."""
    bound = Bound(cell, params, consts)

    def of_chunk(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[None], tree)

    xs, befores = of_chunk((x, before))
    inputs = pieces.project(bound, xs)
    after, gates = pieces.advance(bound, before, jax.tree.map(lambda a: a[0], inputs))
    afters, all_gates = of_chunk((after, gates))
    h = pieces.output(bound, afters, all_gates)
    factors = cell.linearize(params, inputs, befores, afters, all_gates, consts)
    arranged = factors if cell.arrange is None else cell.arrange(factors)
    dhs = None if cell.output is None else differentiable(h)
    back = Back(arranged, None, None, None, dhs, None)
    dafter = differentiable(after)
    pulled = XLA_LOOPS.pull(bound, dafter, None, back, 1, reverse=False, record=False)
    # what is the same at every step is there once, however long the chunk
    factors, arranged = (
        jax.tree.map(lambda f: None if _is_same(f) else f, tree, is_leaf=_is_same)
        for tree in (factors, arranged)
    )
    # inputs of products in both layouts, deltas before and after they are stacked
    backward = xs, xs, inputs, before, before, after, gates, factors, arranged
    return inputs, after, gates, h, (backward, pulled.deltas, pulled.deltas)


def _is_same(factor: Any) -> bool:
    return isinstance(factor, Same)


def bytes_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
