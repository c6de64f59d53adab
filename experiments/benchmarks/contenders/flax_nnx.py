"""flax.nnx: its cells under `nnx.RNN`, through the functional interface."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender

_CELLS = {"elman": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}


def network(cell: str, I: int, H: int) -> Network:
    definition, state = nnx.split(_CELLS[cell](I, H, rngs=nnx.Rngs(0)))
    # the bias belongs to the product with the state in the LSTM, to that with x in the others
    biased, other = ("dense_h", "dense_i") if cell == "lstm" else ("dense_i", "dense_h")
    kernels = {"dense_i": "w_ih", "dense_h": "w_hh"}

    def params(weights: dict[str, jax.Array]) -> Any:
        return nnx.State(
            {
                biased: {
                    "bias": state[biased]["bias"].replace(weights["b"]),
                    "kernel": state[biased]["kernel"].replace(weights[kernels[biased]]),
                },
                other: {"kernel": state[other]["kernel"].replace(weights[kernels[other]])},
            }
        )

    def own_state(h: jax.Array, c: jax.Array | None = None) -> Any:
        return h if c is None else (c, h)

    def unroll(params: Any, xs: jax.Array) -> jax.Array:
        # without a generator, which would only draw zeros
        rnn = nnx.RNN(nnx.merge(definition, params), time_major=True, rngs=False)
        h = jnp.zeros((*xs.shape[1:-1], H), xs.dtype)
        return rnn(xs, initial_carry=own_state(h, h) if cell == "lstm" else h)

    def fields(returned: Any) -> dict[str, jax.Array]:
        carry, h = returned
        return {"h": h, "c": carry[0]} if cell == "lstm" else {"h": h}

    return Network(
        params=params,
        unroll=unroll,
        step=lambda params, state, x: nnx.merge(definition, params)(state, x),
        state=own_state,
        fields=fields,
    )


CONTENDER = Contender(
    how="nnx.RNN(time_major=True) of SimpleCell, OptimizedLSTMCell, GRUCell, split and merged, "
    "under jax.jit; streaming: the cell, likewise",
    programs=functools.partial(programs, network),
    without={"gru": ("b_hn",)},
)
