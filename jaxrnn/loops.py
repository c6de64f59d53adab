"""The two loops over single steps, as values that can be swapped: `Loops`.

One runs the recursion over the K steps of a chunk, the other its adjoint against the order of
processing. Masks stay inside of them, because a step that does not happen is part of the
recursion; chunks, residuals and all sums stay outside (`jaxrnn.bptt`). `XLA_LOOPS` are two
`jax.lax.scan`; another pair must return the same values for the same arguments. `by_platform`
makes one pair of several, of which each platform runs its own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import pieces
from jaxrnn.cells.cell import Params, Same, State
from jaxrnn.masks import select, zero_unless, zero_where
from jaxrnn.pieces import Bound

__all__ = [
    "XLA_LOOPS",
    "Advanced",
    "Ahead",
    "Back",
    "Loops",
    "Pulled",
    "adjoint_recursion",
    "by_platform",
    "recursion",
]


class Ahead(NamedTuple):
    """The recursion's inputs and masks, leaves ``[K, ...]``; None for a mask that is not there."""

    inputs: Any
    valid: jax.Array | None
    cut: jax.Array | None
    stop: jax.Array | None


class Advanced(NamedTuple):
    """The state that leaves the chunk, and what every step made ``[K, ...]``, held if not valid."""

    leaving: State
    after: State
    gates: Any


class Back(NamedTuple):
    """The adjoint recursion's factors, masks and cotangents, leaves ``[K, ...]``; None for zeros.

    ``dhs`` and ``dstates`` are the cotangents of the outputs and of the states after the steps.
    """

    factors: Any
    valid: jax.Array | None
    cut: jax.Array | None
    stop: jax.Array | None
    dhs: Any
    dstates: State | None


class Pulled(NamedTuple):
    """The results of the adjoint recursion over a chunk.

    ``dentering`` is the adjoint of the state that enters it and ``dreset`` that of the reset state,
    None unless asked for. ``deltas`` and ``dafter [K, ...]`` are zero where not valid; ``dafter``,
    the adjoints of the states after the steps, is None unless they are recorded.
    """

    dentering: State
    dreset: State | None
    deltas: Any
    dafter: State | None


class Loops(NamedTuple):
    """A pair of loops.

    - ``advance(bound, entering, reset_state, ahead, K, *, reverse) -> Advanced``
    - ``pull(bound, dleaving, dreset, back, K, *, reverse, record) -> Pulled``: ``reverse`` is the
      direction of the recursion, and the adjoint runs against it. ``dreset`` is the gradient of
      the reset state so far, or None if nobody asks for it.

    ``K`` is the number of steps, which no array need tell: a linear cell has no factors. It may be
    known by name alone, as in `jax.export`.
    """

    name: str
    advance: Callable[..., Advanced]
    pull: Callable[..., Pulled]


def by_platform(*, default: Loops, **others: Loops) -> Loops:
    """The loops named by a platform, such as ``cuda=``, where a program runs on it.

    The choice is made when the program is compiled, for the platform that it is compiled for: of
    all pairs that are traced, the program holds one.
    """
    pairs = {"default": default, **others}
    return Loops(
        " or ".join(pair.name for pair in pairs.values()),
        functools.partial(_on_its_platform, pairs, "advance"),
        functools.partial(_on_its_platform, pairs, "pull"),
    )


def _on_its_platform(
    pairs: dict[str, Loops], loop: str, bound: Bound, *arguments: Any, **options: Any
) -> Any:
    *arrays, K = arguments

    def branch(pair: Loops) -> Callable[..., Any]:
        def run(params: Params, consts: Any, *arrays: Any) -> Any:
            here = bound._replace(params=params, consts=consts)
            return getattr(pair, loop)(here, *arrays, K, **options)

        return run

    branches = {platform: branch(pair) for platform, pair in pairs.items()}
    return lax.platform_dependent(bound.params, bound.consts, *arrays, **branches)


def recursion(
    scan: Callable[..., Any],
    bound: Bound,
    entering: State,
    reset_state: State | None,
    ahead: Ahead,
    K: Any,
    *,
    reverse: bool,
) -> Advanced:
    """The recursion, over `jax.lax.scan` or another ``scan`` of its signature."""

    def step(carry: State, at: Ahead) -> tuple[State, Any]:
        before = carry
        # for second derivatives, which run through this loop: the first ones never do
        if at.stop is not None:
            before = select(at.stop, lax.stop_gradient(carry), carry)
        if at.cut is not None:
            before = select(at.cut, reset_state, before)
        after, gates = pieces.advance(bound, before, at.inputs)
        after = select(at.valid, after, carry)
        return after, (after, gates)

    leaving, (after, gates) = scan(step, entering, ahead, reverse=reverse, length=_static(K))
    return Advanced(leaving, after, gates)


def adjoint_recursion(
    scan: Callable[..., Any],
    bound: Bound,
    dleaving: State,
    dreset: State | None,
    back: Back,
    K: Any,
    *,
    reverse: bool,
    record: bool,
) -> Pulled:
    """The adjoint recursion, over `jax.lax.scan` or another ``scan`` of its signature.

    Invariant: the carry is the gradient of the loss with respect to the state between two steps,
    along every path that runs through the later one; the cotangents of that state's own readers
    are added when the step that made it is reached.
    Textbook: rnn-10, lstm-24, step-29, step-30.
    """
    factors, structure = jax.tree.flatten(back.factors, is_leaf=lambda f: isinstance(f, Same))
    stacked = [None if isinstance(f, Same) else f for f in factors]
    # the adjoint multiplies by transposed weights
    weights = _read_from_right(bound.params)

    def step(carry: Any, at: Back) -> tuple[Any, Any]:
        dcarry, dreset = carry
        dafter = dcarry if at.dstates is None else jax.tree.map(jnp.add, dcarry, at.dstates)
        dh = at.dhs
        if bound.cell.output is None and dh is not None:
            dafter, dh = dafter._replace(h=dafter.h + dh), None
        local = [
            of_all.value if isinstance(of_all, Same) else f
            for f, of_all in zip(at.factors, factors, strict=True)
        ]
        dbefore, deltas = pieces.pull(
            bound._replace(params=weights()), dafter, dh, jax.tree.unflatten(structure, local)
        )
        if dreset is not None:
            started = zero_unless(at.cut, zero_unless(at.valid, dbefore))
            dreset = jax.tree.map(jnp.add, dreset, started)
        # a held state passes its adjoint on as it is
        dbefore = select(at.valid, zero_where(at.stop, zero_where(at.cut, dbefore)), dafter)
        recorded = zero_unless(at.valid, dafter) if record else None
        return (dbefore, dreset), (zero_unless(at.valid, deltas), recorded)

    (dentering, dreset), (deltas, dafter) = scan(
        step,
        (dleaving, dreset),
        back._replace(factors=stacked),
        reverse=not reverse,
        length=_static(K),
    )
    return Pulled(dentering, dreset, deltas, dafter)


XLA_LOOPS = Loops(
    "xla",
    functools.partial(recursion, lax.scan),
    functools.partial(adjoint_recursion, lax.scan),
)
"""Two `jax.lax.scan`."""


def _static(K: Any) -> int | None:
    """The length for `jax.lax.scan`, which takes one known by name from its arrays alone."""
    return K if isinstance(K, int) else None


def _read_from_right(weights: Params) -> Callable[[], Params]:
    """The weights for a loop's body that multiplies by their transposes.

    Each is written once, before the loop, with its last two axes exchanged in memory, and not at
    every step that reads it so.
    """

    def swap(w: jax.Array) -> jax.Array:
        return w if w.ndim < 2 else jnp.swapaxes(w, -1, -2)

    stored = jax.tree.map(lambda w: lax.optimization_barrier(swap(w)), weights)
    return lambda: jax.tree.map(swap, stored)
