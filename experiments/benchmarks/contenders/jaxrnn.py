"""The library itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender


def _projected(w_hr: jax.Array, **weights: jax.Array) -> jaxrnn.ProjectedParams:
    return jaxrnn.ProjectedParams(jaxrnn.LSTMParams(**weights), w_hr)


# a cell for so many units, and its records
_LSTM = jaxrnn.LSTMParams, jaxrnn.LSTMState
CELLS: dict[str, tuple[Callable[[int], jaxrnn.Cell], Callable[..., Any], Callable[..., Any]]] = {
    "elman": (lambda H: jaxrnn.ELMAN, jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "lstm": (lambda H: jaxrnn.LSTM, *_LSTM),
    "gru": (lambda H: jaxrnn.GRU, jaxrnn.GRUParams, jaxrnn.GRUState),
    "elman_relu": (lambda H: jaxrnn.elman("relu"), jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "leaky": (lambda H: jaxrnn.leaky(leak=0.2), jaxrnn.ElmanParams, jaxrnn.ElmanState),
    "peephole_lstm": (lambda H: jaxrnn.PEEPHOLE_LSTM, jaxrnn.PeepholeLSTMParams, _LSTM[1]),
    "coupled_lstm": (lambda H: jaxrnn.COUPLED_LSTM, jaxrnn.CoupledLSTMParams, _LSTM[1]),
    "slstm": (lambda H: jaxrnn.SLSTM, jaxrnn.SLSTMParams, jaxrnn.SLSTMState),
    "layer_norm_lstm": (lambda H: jaxrnn.LAYER_NORM_LSTM, jaxrnn.LayerNormLSTMParams, _LSTM[1]),
    "reset_before_gru": (
        *(lambda H: jaxrnn.RESET_BEFORE_GRU, jaxrnn.ResetBeforeGRUParams, jaxrnn.GRUState),
    ),
    "layer_norm_gru": (
        *(lambda H: jaxrnn.LAYER_NORM_GRU, jaxrnn.LayerNormGRUParams, jaxrnn.GRUState),
    ),
    "mgu": (lambda H: jaxrnn.MGU, jaxrnn.MGUParams, jaxrnn.MGUState),
    "projected": (lambda H: jaxrnn.projected(jaxrnn.LSTM, H // 2), _projected, _LSTM[1]),
    "heads": (lambda H: jaxrnn.heads(jaxrnn.LSTM, 4), *_LSTM),
    "recurrent_dropout": (lambda H: jaxrnn.recurrent_dropout(jaxrnn.LSTM, 0.2), *_LSTM),
    "zoneout": (lambda H: jaxrnn.zoneout(jaxrnn.LSTM, h=0.1, c=0.1), *_LSTM),
    "clipped": (lambda H: jaxrnn.clipped(jaxrnn.LSTM, 1.0), *_LSTM),
    "clip_adjoint": (lambda H: jaxrnn.clip_adjoint(jaxrnn.LSTM, norm=1.0), *_LSTM),
    "with_dtypes": (
        # the reference computes in float64
        lambda H: jaxrnn.with_dtypes(
            jaxrnn.LSTM, compute=jnp.bfloat16, carry=jnp.result_type(float)
        ),
        *_LSTM,
    ),
}


def network(unroll: Callable[..., Any], name: str, I: int, H: int) -> Network:
    """A cell of jaxrnn under one of its two ways of going through time."""
    del I
    cell_of, params_type, state_type = CELLS[name]
    cell = cell_of(H)
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
    cells=tuple(CELLS),
)
