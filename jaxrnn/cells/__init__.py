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
from jaxrnn.cells.coupled_lstm import COUPLED_LSTM, CoupledLSTMParams
from jaxrnn.cells.elman import ELMAN, ElmanParams, ElmanState
from jaxrnn.cells.from_step import cell_from_step
from jaxrnn.cells.gru import GRU, GRUParams, GRUState
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.cells.peephole_lstm import PEEPHOLE_LSTM, PeepholeLSTMParams
from jaxrnn.checks import sizes_of, step_arguments, vector

__all__ = [
    "COUPLED_LSTM",
    "ELMAN",
    "GRU",
    "LSTM",
    "PEEPHOLE_LSTM",
    "Cell",
    "CoupledLSTMParams",
    "Drawn",
    "ElmanParams",
    "ElmanState",
    "Expects",
    "Forms",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "PeepholeLSTMParams",
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
    *(ElmanParams, ElmanState, LSTMParams, LSTMState, GRUParams, GRUState),
    *(CoupledLSTMParams, PeepholeLSTMParams),
):
    register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")
