"""The step loops for GPUs: the same recursion in fewer kernels.

A step of a recurrent network is small, and on a GPU its time is that of starting its kernels. XLA
makes two of a step in each direction, the product and all that is elementwise, if nothing forces
an intermediate array into memory twice. Once per iteration, a loop also counts, and writes each
array that it stacks. So an iteration is of `UNROLL` steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells.cell import Forms, State
from jaxrnn.loops import Ahead, Loops, Pulled, adjoint_recursion, recursion
from jaxrnn.pieces import Bound

__all__ = ["GPU_LOOPS", "UNROLL", "unrolled"]

UNROLL = 8
"""Steps in an iteration. With 16, a step has 0.3 kernels less, and compiling takes half as long
again."""


def unrolled(steps: int) -> Loops:
    """The pair with so many steps in an iteration."""
    scan = functools.partial(_scan, steps)
    return Loops(
        f"unrolled by {steps}",
        functools.partial(recursion, functools.partial(_scan_states, scan)),
        functools.partial(_pull, scan),
    )


def _scan(
    steps: int, step: Callable[..., Any], carry: Any, xs: Any, *, reverse: bool, length: int | None
) -> Any:
    # a number of steps that is known by name alone cannot be divided into iterations
    unroll = 1 if length is None else steps
    return lax.scan(step, carry, xs, reverse=reverse, length=length, unroll=unroll)


def _scan_states(
    scan: Callable[..., Any],
    step: Callable[[State, Ahead], tuple[State, Any]],
    entering: State,
    ahead: Ahead,
    **options: Any,
) -> tuple[State, tuple[State, Any]]:
    """`_scan` of the recursion, with each state computed and written once."""

    def joined(carry: State, at: Ahead) -> tuple[State, Any]:
        after, (_, gates) = step(carry, at)
        # without a barrier, XLA computes c of an LSTM once for each of its readers
        after = lax.optimization_barrier(after)
        return after, (_joined(after), gates)

    leaving, (after, gates) = scan(joined, entering, ahead, **options)
    return leaving, (_parted(after, entering), gates)


def _pull(scan: Callable[..., Any], bound: Bound, *arguments: Any, **options: Any) -> Pulled:
    cell = bound.cell
    if isinstance(cell.pull, Forms):
        bound = bound._replace(cell=cell._replace(pull=cell.pull.gpu))
    return adjoint_recursion(scan, bound, *arguments, **options)


GPU_LOOPS = unrolled(UNROLL)
"""Two `jax.lax.scan` of a few steps at a time."""


def _joined(state: State) -> Any:
    """The leaves as one array ``[L, ...]`` if they are alike: it is written at once."""
    leaves = jax.tree.leaves(state)
    return jnp.stack(leaves) if _alike(state) else state


def _parted(joined: Any, like: State) -> State:
    """The states ``[K, ...]`` of `_joined` ones."""
    if not _alike(like):
        return joined
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [joined[:, i] for i in range(len(leaves))])


def _alike(state: State) -> bool:
    types = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    return len(types) > 1 and len(set(types)) == 1
