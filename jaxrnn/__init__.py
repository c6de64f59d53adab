"""Recurrent networks as pure functions, with backpropagation through time written by hand.

A *cell* is a record of pure functions, ``init``, ``initial_state`` and ``step``: `ELMAN`, `LSTM`,
`GRU`, one of the others in `jaxrnn.cells`, such as `SLSTM`, a transformed one, such as
``projected(LSTM, 64)``, or any step by `cell_from_step`. `unroll` scans a cell over time and
carries the handwritten gradient; `unroll_reference` gives the same values with JAX's own. `layer`
and `stack` make networks of cells, in one direction or both. `affine`, `softmax_cross_entropy` and
`squared_error` make a loss of hidden states; `make_train_step` trains on it with any optax
optimizer, and `jaxrnn.parallel` does so on several devices; `jaxrnn.diagnostics` shows the gradient
at every time step, and `jaxrnn.testing` checks the adjoint of a user-defined cell.
`jaxrnn.textbook` has three documents on the subject, equation by equation in their own notation,
and `jaxrnn.convert` translates their parameters, and PyTorch's. Sequences are time-major:
``xs [T, ..., I]``, ``hs [T, ..., H]``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn import cells, convert, diagnostics, initializers, parallel, products, testing
from jaxrnn.batches import pad_sequences, windows
from jaxrnn.cells import (
    COUPLED_LSTM,
    ELMAN,
    GRU,
    LAYER_NORM_GRU,
    LAYER_NORM_LSTM,
    LSTM,
    MGU,
    PEEPHOLE_LSTM,
    RESET_BEFORE_GRU,
    SLSTM,
    Cell,
    CoupledLSTMParams,
    ElmanParams,
    ElmanState,
    GRUParams,
    GRUState,
    LayerNormGRUParams,
    LayerNormLSTMParams,
    LeakyParams,
    LSTMParams,
    LSTMState,
    MGUParams,
    MGUState,
    PeepholeLSTMParams,
    ProjectedParams,
    ResetBeforeGRUParams,
    SLSTMParams,
    SLSTMState,
    cell_from_step,
    clip_adjoint,
    clipped,
    elman,
    heads,
    leaky,
    projected,
    recurrent_dropout,
    with_dtypes,
    zoneout,
)
from jaxrnn.decoding import generate
from jaxrnn.embedding import EmbeddingParams, embed, init_embedding
from jaxrnn.network import (
    LayerParams,
    LayerState,
    Network,
    StackParams,
    StackState,
    layer,
    reference,
    stack,
)
from jaxrnn.platforms import compiler_options
from jaxrnn.readout import (
    AffineParams,
    affine,
    init_affine,
    last_valid,
    softmax_cross_entropy,
    squared_error,
)
from jaxrnn.sequence import unroll, unroll_reference, valid_steps
from jaxrnn.streaming import make_stream_step
from jaxrnn.training import (
    TrainState,
    accumulate,
    decay_mask,
    init_train_state,
    make_train_step,
)

if TYPE_CHECKING:
    from jaxrnn import textbook

__version__ = "0.1.0"

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
    "AffineParams",
    "Cell",
    "CoupledLSTMParams",
    "ElmanParams",
    "ElmanState",
    "EmbeddingParams",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "LayerNormGRUParams",
    "LayerNormLSTMParams",
    "LayerParams",
    "LayerState",
    "LeakyParams",
    "MGUParams",
    "MGUState",
    "Network",
    "PeepholeLSTMParams",
    "ProjectedParams",
    "ResetBeforeGRUParams",
    "SLSTMParams",
    "SLSTMState",
    "StackParams",
    "StackState",
    "TrainState",
    "accumulate",
    "affine",
    "cell_from_step",
    "cells",
    "clip_adjoint",
    "clipped",
    "compiler_options",
    "convert",
    "decay_mask",
    "diagnostics",
    "elman",
    "embed",
    "generate",
    "heads",
    "init_affine",
    "init_embedding",
    "init_train_state",
    "initializers",
    "last_valid",
    "layer",
    "leaky",
    "make_stream_step",
    "make_train_step",
    "pad_sequences",
    "parallel",
    "products",
    "projected",
    "recurrent_dropout",
    "reference",
    "softmax_cross_entropy",
    "squared_error",
    "stack",
    "testing",
    "textbook",
    "unroll",
    "unroll_reference",
    "valid_steps",
    "windows",
    "with_dtypes",
    "zoneout",
]


def __getattr__(name: str) -> Any:
    # imported when it is asked for, because networks do not need it
    if name == "textbook":
        return importlib.import_module("jaxrnn.textbook")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
