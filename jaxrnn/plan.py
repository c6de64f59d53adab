"""The plan of a run: residuals kept for the backward pass, the chunk's length, and the loops.

All that was tuned by measurement stands in `TUNING`, a column for each platform.
"""

import functools
import math
from typing import NamedTuple

from jaxrnn.gpu_loops import GPU_LOOPS, UNROLL
from jaxrnn.loops import XLA_LOOPS, Loops, by_platform
from jaxrnn.memory import StepBytes, footprint
from jaxrnn.platforms import target_platform

__all__ = [
    "RESIDUALS",
    "TUNING",
    "Plan",
    "Sizes",
    "Tuning",
    "choose",
    "chunk_length",
    "target_tuning",
]

RESIDUALS = ("gates", "states", "carries")


class Plan(NamedTuple):
    """The static choices of a call, made before tracing.

    ``batch_axes`` is how many there are. ``chunk`` is K, None for one chunk of all steps, and
    ``forward_chunk`` that of a forward pass that keeps all states, or none.
    """

    reverse: bool
    batch_axes: int
    chunk: int | None
    forward_chunk: int | None
    residuals: str | None
    return_states: bool
    loops: Loops = XLA_LOOPS


class Tuning(NamedTuple):
    """The constants of a plan, in bytes, steps or entries, and the pair of loops.

    | constant | effect |
    |---|---|
    | ``shortest`` | a chunk has at least so many steps, if there are |
    | ``shortest_by_carries`` | the same with ``"carries"`` |
    | ``multiple`` | and a multiple of so many |
    | ``rows_that_gain`` | at I + H = 128, products in bulk gain by rows up to so many |
    | ``cached`` | a chunk of the backward pass works on at most this, unfused |
    | ``wide`` | from this I + H on, the gates are kept |
    | ``gates_limit`` | up to this, states and gates of all steps are kept |
    | ``whole_limit`` | up to this ``hs``, all steps are one chunk, gates kept |
    | ``whole_entries`` | with fewer entries in ``h``, chunks are kept even so |
    | ``whole_forward_limit`` | up to these inputs, the forward pass is one chunk |
    | ``loops`` | the loops over single steps |
    """

    shortest: int
    shortest_by_carries: int
    multiple: int
    rows_that_gain: int
    cached: int
    wide: int
    gates_limit: int
    whole_limit: int
    whole_entries: int
    whole_forward_limit: int
    loops: Loops


TUNING = {
    # two cores each of an Intel Xeon with AVX-512 and of an AMD EPYC with AVX2, float32:
    # cached               16 MiB unfused are about 2 MB of gates, which stay in a core's cache
    # wide                 LSTM training with and without the gates: 1.00 at I + H = 384, 1.06 at
    #                      640; fresh memory costs as much as computing them again
    # whole_limit          a loop over chunks costs time, when compiled and when run
    # whole_entries        T, B, H = 997, 3, 7 in one chunk: LSTM no gain, Elman network a quarter
    # whole_forward_limit  0.62 to 1.0 of the time below; above 32 MB apiece, memory returns to the
    #                      system, and taking it at every call costs more than the loop
    "cpu": Tuning(
        shortest=1,
        shortest_by_carries=1,
        multiple=1,
        rows_that_gain=2**11,
        cached=2**24,
        wide=2**9,
        gates_limit=64 * 2**20,
        whole_limit=2**20,
        whole_entries=2**8,
        whole_forward_limit=24 * 2**20,
        loops=XLA_LOOPS,
    ),
    # counted in programs compiled for an H200, float32, and never timed: a chunk costs about 25
    # kernels beside those of its steps, 0.4 of 5 per step at 64 and 0.1 at 256
    # multiple             the loops' own; a chunk of one iteration would lose its loop, and the
    #                      merged body has one kernel per step more
    # wide, gates_limit    gates are written in the loop, and save two kernels of a chunk
    # cached               no cache: memory for the work on a chunk
    "gpu": Tuning(
        shortest=64,
        shortest_by_carries=2 * UNROLL,
        multiple=UNROLL,
        rows_that_gain=2**30,
        cached=2**29,
        wide=2**30,
        gates_limit=0,
        whole_limit=0,
        whole_entries=0,
        whole_forward_limit=2**28,
        # a program that is traced for a GPU may still be compiled for a CPU
        loops=by_platform(default=XLA_LOOPS, cuda=GPU_LOOPS),
    ),
}


def target_tuning() -> Tuning:
    """The column of the platform that a call is traced for."""
    return TUNING.get(target_platform(), TUNING["cpu"])


class Sizes(NamedTuple):
    """Numbers of a call: steps, rows of the batch, input and hidden features, bytes of the params.

    ``masked``: not every step is valid. ``derived``: the output is no field of the state, as in
    every cell from a step.
    """

    T: int
    rows: int
    I: int
    H: int
    weights: int
    masked: bool
    derived: bool

    @property
    def hs_in_states(self) -> bool:
        return not (self.masked or self.derived)


def choose(
    step: StepBytes, sizes: Sizes, *, residuals: str | None, memory_budget: int | None
) -> tuple[str, int, int]:
    """``(residuals, chunk, forward_chunk)`` of a `Plan`.

    The given policy, or else the fastest, or the fastest that the budget allows.

    Raises:
        ValueError: a budget in which nothing fits; the message says the least.
    """
    T, rows, _, H = sizes[:4]
    if residuals is not None:
        chunk = _default_chunk(sizes, residuals, step.backward)
        return residuals, chunk, chunk
    plans = candidates(step, sizes)
    if memory_budget is None:
        return plans[0]
    for plan in plans:
        if total_bytes(step, sizes, plan) <= memory_budget:
            return plan
    least = min(plans, key=functools.partial(total_bytes, step, sizes))
    raise ValueError(
        f"`memory_budget` must be at least {total_bytes(step, sizes, least)} bytes for {T=}, "
        f"{rows} rows and {H=} (residuals={least[0]!r} in chunks of {least[1]} steps); got "
        f"{memory_budget}"
    )


def candidates(step: StepBytes, sizes: Sizes) -> list[tuple[str, int, int]]:
    """``(residuals, chunk, forward_chunk)`` of the plans for a call, the fastest first."""
    column = target_tuning()
    T, rows, I, H = sizes[:4]
    made = step.state + step.gates
    entries = rows * H >= column.whole_entries
    # a derived linearisation reads no gates, and holds twice as much of a chunk
    whole = entries and T * step.output <= column.whole_limit and not sizes.derived
    whole_forward = whole or (entries and T * step.inputs <= column.whole_forward_limit)
    keep_gates = (whole or column.wide <= I + H) and T * made <= column.gates_limit
    residuals = "gates" if keep_gates else "states"
    chunk = max(T, 1) if whole else _default_chunk(sizes, residuals, step.backward)
    forward_chunk = (
        max(T, 1) if whole_forward else _default_chunk(sizes, residuals, step.inputs + made)
    )
    fastest = residuals, chunk, forward_chunk
    return [fastest] + [
        (leaner, chunk, chunk)
        for leaner in RESIDUALS[RESIDUALS.index(residuals) :]
        for chunk in _halves(_default_chunk(sizes, leaner, step.backward), column)
    ]


def total_bytes(step: StepBytes, sizes: Sizes, plan: tuple[str, int, int]) -> int:
    """The bytes that a plan holds for the gradient of a call, outputs included."""
    hs_in_states = sizes.hs_in_states
    return footprint(step, sizes.weights, sizes.T, *plan, hs_in_states=hs_in_states).total


def _default_chunk(sizes: Sizes, residuals: str, workspace: int) -> int:
    column = target_tuning()
    T, rows, I, H = sizes[:4]
    # smaller products take less of the time
    useful = (I + H) ** 2 * column.rows_that_gain // 128**2 // max(rows, 1)
    return chunk_length(T, residuals, useful=useful, workspace=max(workspace, 1), tuning=column)


def chunk_length(
    steps: int,
    residuals: str,
    *,
    useful: int = 1,
    workspace: int = 1,
    tuning: Tuning = TUNING["cpu"],
) -> int:
    """Steps in a chunk: a divisor of the sequence's length where one is near the target.

    Longer chunks make the products in bulk faster, up to so many ``useful`` steps; shorter ones
    keep the ``workspace`` of a chunk, in bytes per step, in the ``cached`` bytes. With one carry
    kept per chunk, memory is the sum of the carries and of one chunk's states, least when both are
    as many.
    """
    if residuals == "carries":
        shortest, target = tuning.shortest_by_carries, math.isqrt(steps)
    else:
        shortest = tuning.shortest
        target = min(max(useful, 16), max(tuning.cached // workspace, 8), max(steps // 4, 16))
    target = max(target - target % tuning.multiple, shortest)
    if steps <= 2 * target:
        return max(steps, 1)
    near = range(max(target // 2 + 1, shortest), 2 * target)
    fitting = [k for k in near if steps % k == 0 and k % tuning.multiple == 0]
    return min(fitting, key=lambda k: abs(k - target), default=target)


def _halves(chunk: int, tuning: Tuning) -> list[int]:
    """A chunk length and its halves, in descending order, as short as the platform's chunks are."""
    halves = (chunk >> k for k in range(1, chunk.bit_length()))
    fitting = [half - half % tuning.multiple for half in halves]
    return [chunk, *(half for half in fitting if half >= tuning.shortest_by_carries)]
