"""One step at a time from Python: a jitted step that copies nothing.

The output of most cells is a field of their state. A compiled program that returns both has two
buffers for it, of which one is a copy; this one returns the state, and Python hands out its field.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from jaxrnn.cells.cell import Cell
from jaxrnn.checks import describe, require_hashable
from jaxrnn.network import Network

__all__ = ["make_stream_step"]

StreamStep: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Any]]


def make_stream_step(network: Network | Cell) -> StreamStep:
    """A jitted ``step(params, state, x) -> (state, h)`` for a loop in Python, such as a server's.

    Where ``h`` is a field of the state, it is the same array: donate the state to nothing while
    ``h`` is in use.

    Args:
        network: a network whose layers all run forwards, or a cell.

    Raises:
        TypeError: neither of the two.
        ValueError: at the first step, a layer in both directions.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> network = jaxrnn.layer(jaxrnn.GRU, 5)
        >>> params = network.init(jax.random.key(0), 3)
        >>> step, state = jaxrnn.make_stream_step(network), network.initial_state(params)
        >>> for x in jnp.ones((4, 3)):
        ...     state, h = step(params, state, x)
        >>> h.shape
        (5,)
    """
    if isinstance(network, Network):
        last = network.layers[-1]
        shared = last.cell.output is None and not last.residual
        of_state = _output_of_network
    elif isinstance(network, Cell):
        require_hashable(network)
        shared, of_state = network.output is None, _output_of_cell
    else:
        raise TypeError(
            f"`network` must be a jaxrnn.Network or a jaxrnn.Cell; got {describe(network)}"
        )
    step = network.step
    if not shared:
        return jax.jit(step)
    after = jax.jit(lambda params, state, x: step(params, state, x)[0])

    def stream_step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        state = after(params, state, x)
        return state, of_state(state)

    return stream_step


def _output_of_network(state: Any) -> Any:
    return state.layers[-1].forward.h


def _output_of_cell(state: Any) -> Any:
    return state.h
