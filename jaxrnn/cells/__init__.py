"""The cells, one file each: equations, parameters, state, step, and the adjoint of the step."""

from jax.export import register_namedtuple_serialization

from jaxrnn.cells.contract import Cell
from jaxrnn.cells.elman import ELMAN, ElmanParams, ElmanState
from jaxrnn.cells.gru import GRU, GRUParams, GRUState
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState

__all__ = [
    "ELMAN",
    "GRU",
    "LSTM",
    "Cell",
    "ElmanParams",
    "ElmanState",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
]

# an exported function names its containers in its serialized form, so these names are permanent
for _record in (ElmanParams, ElmanState, LSTMParams, LSTMState, GRUParams, GRUState):
    register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")
