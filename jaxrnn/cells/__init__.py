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
from jaxrnn.cells.elman import ELMAN, ElmanParams, ElmanState, elman
from jaxrnn.cells.from_step import cell_from_step
from jaxrnn.cells.gru import GRU, GRUParams, GRUState
from jaxrnn.cells.layer_norm_gru import LAYER_NORM_GRU, LayerNormGRUParams
from jaxrnn.cells.layer_norm_lstm import LAYER_NORM_LSTM, LayerNormLSTMParams
from jaxrnn.cells.leaky import LeakyParams, leaky
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.cells.mgu import MGU, MGUParams, MGUState
from jaxrnn.cells.peephole_lstm import PEEPHOLE_LSTM, PeepholeLSTMParams
from jaxrnn.cells.reset_before_gru import RESET_BEFORE_GRU, ResetBeforeGRUParams
from jaxrnn.cells.slstm import SLSTM, SLSTMParams, SLSTMState
from jaxrnn.cells.transforms import (
    ProjectedParams,
    clip_adjoint,
    clipped,
    heads,
    projected,
    recurrent_dropout,
    with_dtypes,
    zoneout,
)
from jaxrnn.checks import sizes_of, step_arguments, vector

__all__ = [
    "COUPLED_LSTM",
    "ELMAN",
    "GRU",
    "LAYER_NORM_GRU",
    "LAYER_NORM_LSTM",
    "LSTM",
    "MGU",
    "PEEPHOLE_LSTM",
    "RESET_BEFORE_GRU",
    "SLSTM",
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
    "LayerNormGRUParams",
    "LayerNormLSTMParams",
    "LeakyParams",
    "MGUParams",
    "MGUState",
    "PeepholeLSTMParams",
    "ProjectedParams",
    "ResetBeforeGRUParams",
    "SLSTMParams",
    "SLSTMState",
    "Same",
    "cell_from_step",
    "clip_adjoint",
    "clipped",
    "documentation",
    "drawn_of",
    "elman",
    "heads",
    "leaky",
    "projected",
    "recurrent_dropout",
    "sizes_of",
    "step_arguments",
    "vector",
    "with_dtypes",
    "zero_state",
    "zoneout",
]

# an exported function names its containers in its serialized form, so these names are permanent
for _record in (
    CoupledLSTMParams,
    ElmanParams,
    ElmanState,
    GRUParams,
    GRUState,
    LSTMParams,
    LSTMState,
    LayerNormGRUParams,
    LayerNormLSTMParams,
    LeakyParams,
    MGUParams,
    MGUState,
    PeepholeLSTMParams,
    ProjectedParams,
    ResetBeforeGRUParams,
    SLSTMParams,
    SLSTMState,
):
    register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")
