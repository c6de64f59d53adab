"""cuDNN's LSTM, through `jax.experimental.rnn`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import rnn

from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender


def network(cell: str, I: int, H: int) -> Network:
    assert cell == "lstm"

    def params(weights: dict[str, jax.Array]) -> jax.Array:
        # one array, with a second bias that one would do without
        b = weights["b"]
        parts = (weights["w_ih"].T, weights["w_hh"].T, b, jnp.zeros_like(b))
        return jnp.concatenate([part.reshape(-1) for part in parts])

    def unroll(params: jax.Array, xs: jax.Array) -> jax.Array:
        B, T, _ = xs.shape
        zeros = jnp.zeros((1, B, H), xs.dtype)
        lengths = jnp.full((B,), T, jnp.int32)
        options = dict(input_size=I, hidden_size=H, num_layers=1, dropout=0.0, bidirectional=False)
        # in float32 proper, as all others; by default, cuDNN rounds to TF32
        precision = lax.Precision.HIGHEST
        hs, _, _ = rnn.lstm(xs, zeros, zeros, params, lengths, **options, precision=precision)
        return hs

    return Network(
        params=params,
        unroll=unroll,
        step=None,
        state=lambda **fields: fields,
        fields=lambda returned: returned,
        batch_major=True,
    )


CONTENDER = Contender(
    how="jax.experimental.rnn.lstm, batch-major, which is the only way",
    programs=functools.partial(programs, network),
    not_compared={
        "elman": "it has the LSTM alone",
        "gru": "it has the LSTM alone",
        "stream": "it has no single step",
    },
    begin=lambda platform: None if platform == "gpu" else "needs a GPU",
)
