"""The library itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax

import jaxrnn
from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender
from experiments.common.cells import cell_of


def _projected(w_hr: jax.Array, **weights: jax.Array) -> jaxrnn.ProjectedParams:
    return jaxrnn.ProjectedParams(jaxrnn.LSTMParams(**weights), w_hr)


# the records of params and state
_LSTM = jaxrnn.LSTMParams, jaxrnn.LSTMState
RECORDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "elman": (jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "lstm": _LSTM,
    "gru": (jaxrnn.GRUParams, jaxrnn.GRUState),
    "elman_relu": (jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "leaky": (jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "peephole_lstm": (jaxrnn.PeepholeLSTMParams, jaxrnn.LSTMState),
    "coupled_lstm": (jaxrnn.CoupledLSTMParams, jaxrnn.LSTMState),
    "slstm": (jaxrnn.SLSTMParams, jaxrnn.SLSTMState),
    "layer_norm_lstm": (jaxrnn.LayerNormLSTMParams, jaxrnn.LSTMState),
    "reset_before_gru": (jaxrnn.ResetBeforeGRUParams, jaxrnn.GRUState),
    "layer_norm_gru": (jaxrnn.LayerNormGRUParams, jaxrnn.GRUState),
    "mgu": (jaxrnn.MGUParams, jaxrnn.MGUState),
    "projected": (_projected, jaxrnn.LSTMState),
    "heads": _LSTM,
    "recurrent_dropout": _LSTM,
    "zoneout": _LSTM,
    "clipped": _LSTM,
    "clip_adjoint": _LSTM,
    "with_dtypes": _LSTM,
}


def network(unroll: Callable[..., Any], name: str, I: int, H: int) -> Network:
    """A cell of jaxrnn under one of its two ways of going through time."""
    del I
    cell, (params_type, state_type) = cell_of(name, H), RECORDS[name]
    options = {} if cell.draw is None else {"key": jax.random.key(0)}
    return Network(
        params=lambda weights: params_type(**weights),
        unroll=lambda params, xs: unroll(cell, params, xs, **options)[1],
        step=cell.step,
        stream_step=jaxrnn.make_stream_step(cell),
        state=lambda **fields: state_type(**fields),
        fields=lambda returned: returned[0]._asdict(),
    )


CONTENDER = Contender(
    how="jaxrnn.unroll with its defaults; streaming: make_stream_step(cell)",
    programs=functools.partial(programs, functools.partial(network, jaxrnn.unroll)),
    cells=tuple(RECORDS),
)
