"""The library's cells by the names that options take; the transforms are of the LSTM."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

import jaxrnn

# which the peers have, too
PLAIN = ("elman", "lstm", "gru")

_CELLS: dict[str, jaxrnn.Cell | Callable[[int], jaxrnn.Cell]] = {
    "elman": jaxrnn.ELMAN,
    "lstm": jaxrnn.LSTM,
    "gru": jaxrnn.GRU,
    "elman_relu": jaxrnn.elman("relu"),
    "leaky": jaxrnn.leaky(leak=0.2),
    "peephole_lstm": jaxrnn.PEEPHOLE_LSTM,
    "coupled_lstm": jaxrnn.COUPLED_LSTM,
    "slstm": jaxrnn.SLSTM,
    "layer_norm_lstm": jaxrnn.LAYER_NORM_LSTM,
    "reset_before_gru": jaxrnn.RESET_BEFORE_GRU,
    "layer_norm_gru": jaxrnn.LAYER_NORM_GRU,
    "mgu": jaxrnn.MGU,
    "projected": lambda H: jaxrnn.projected(jaxrnn.LSTM, max(H // 2, 1)),
    "heads": jaxrnn.heads(jaxrnn.LSTM, 4),
    "recurrent_dropout": jaxrnn.recurrent_dropout(jaxrnn.LSTM, 0.2),
    "zoneout": jaxrnn.zoneout(jaxrnn.LSTM, h=0.1, c=0.1),
    "clipped": jaxrnn.clipped(jaxrnn.LSTM, 1.0),
    "clip_adjoint": jaxrnn.clip_adjoint(jaxrnn.LSTM, norm=1.0),
    # in float64, where that is on, as a reference
    "with_dtypes": jaxrnn.with_dtypes(
        jaxrnn.LSTM, compute=jnp.bfloat16, carry=jnp.result_type(float)
    ),
}
NAMES = tuple(_CELLS)


def cell_of(name: str, hidden_size: int) -> jaxrnn.Cell:
    """The cell of that name; of some transforms a size follows from the number of units."""
    found = _CELLS[name]
    return found if isinstance(found, jaxrnn.Cell) else found(hidden_size)


def chrono_cell(name: str, hidden_size: int, longest: int) -> jaxrnn.Cell:
    """The cell; the gates of LSTM and GRU start open for up to ``longest`` steps.

    Reference: C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", 2018.
    """
    cell = cell_of(name, hidden_size)
    gate = {"lstm": "forget_bias", "gru": "update_bias"}.get(name)
    if gate is None or cell.init is None:
        return cell
    initializer = jaxrnn.initializers.chrono(longest)
    return cell._replace(init=functools.partial(cell.init, **{gate: initializer}))


def dtype_of_products(name: str) -> str:
    """Their dtype: two right gradients differ by its rounding."""
    return "bfloat16" if name == "with_dtypes" else "float32"
