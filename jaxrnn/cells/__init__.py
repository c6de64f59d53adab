"""The cells, one file each: equations, parameters, state, step, and the adjoint of the step.

A user-defined cell is a `Cell` with pieces of its own, or `cell_from_step`. `Expects`, `Drawn`,
`drawn_of` and `Same` are what its pieces return and take beside arrays; `Forms` is a piece with a
second form for GPUs; `sizes_of`, `vector`, `step_arguments`, `zero_state` and `documentation` write
the pieces that all cells have in common.
"""

from jax.export import register_namedtuple_serialization

from jaxrnn.cells.cell import (
    Cell,
    Drawn,
    Expects,
    Forms,
    Same,
    documentation,
    drawn_of,
    zero_state,
)
from jaxrnn.cells.elman import ELMAN, ElmanParams, ElmanState
from jaxrnn.cells.from_step import cell_from_step
from jaxrnn.cells.gru import GRU, GRUParams, GRUState
from jaxrnn.cells.layer_norm_gru import LAYER_NORM_GRU, LayerNormGRUParams
from jaxrnn.cells.layer_norm_lstm import LAYER_NORM_LSTM, LayerNormLSTMParams
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.checks import sizes_of, step_arguments, vector

__all__ = [
    "ELMAN",
    "GRU",
    "LAYER_NORM_GRU",
    "LAYER_NORM_LSTM",
    "LSTM",
    "Cell",
    "Drawn",
    "ElmanParams",
    "ElmanState",
    "Expects",
    "Forms",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "LayerNormGRUParams",
    "LayerNormLSTMParams",
    "Same",
    "cell_from_step",
    "documentation",
    "drawn_of",
    "sizes_of",
    "step_arguments",
    "vector",
    "zero_state",
]

# an exported function names its containers in its serialized form, so these names are permanent
for _record in (
    *(ElmanParams, ElmanState),
    *(LSTMParams, LSTMState),
    *(GRUParams, GRUState),
    *(LayerNormLSTMParams, LayerNormGRUParams),
):
    register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")
