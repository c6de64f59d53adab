"""The library itself."""

import functools
from collections.abc import Callable
from typing import Any

import jaxrnn
from experiments.benchmarks.cases import CELLS
from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender

_CELLS = {
    "elman": (jaxrnn.ELMAN, jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "lstm": (jaxrnn.LSTM, jaxrnn.LSTMParams, jaxrnn.LSTMState),
    "gru": (jaxrnn.GRU, jaxrnn.GRUParams, jaxrnn.GRUState),
    "elman_relu": (jaxrnn.elman("relu"), jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "reset_before_gru": (jaxrnn.RESET_BEFORE_GRU, jaxrnn.ResetBeforeGRUParams, jaxrnn.GRUState),
    "mgu": (jaxrnn.MGU, jaxrnn.MGUParams, jaxrnn.MGUState),
}


def network(unroll: Callable[..., Any], cell: str, I: int, H: int) -> Network:
    """A cell of jaxrnn under one of its two ways of going through time."""
    del I, H
    functions, params_type, state_type = _CELLS[cell]
    return Network(
        params=lambda weights: params_type(**weights),
        unroll=lambda params, xs: unroll(functions, params, xs)[1],
        step=functions.step,
        stream_step=jaxrnn.make_stream_step(functions),
        state=lambda **fields: state_type(**fields),
        fields=lambda returned: returned[0]._asdict(),
    )


CONTENDER = Contender(
    how="jaxrnn.unroll with its defaults; streaming: make_stream_step(cell)",
    programs=functools.partial(programs, functools.partial(network, jaxrnn.unroll)),
    cells=tuple(CELLS),
)
