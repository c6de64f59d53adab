"""Haiku: `hk.dynamic_unroll` of `hk.LSTM`."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender


def network(cell: str, I: int, H: int) -> Network:
    del I
    assert cell == "lstm"

    def unroll(xs: jax.Array) -> jax.Array:
        core = hk.LSTM(H)
        hs, _ = hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return hs

    def step(state: hk.LSTMState, x: jax.Array) -> Any:
        return hk.LSTM(H)(x, state)

    def params(weights: dict[str, jax.Array]) -> Any:
        # gates i, g, f, o; it adds 1 to the pre-activation of f
        def reorder(w: jax.Array) -> jax.Array:
            i, f, g, o = jnp.split(w, 4, axis=-1)
            return jnp.concatenate([i, g, f, o], axis=-1)

        one = jnp.zeros_like(weights["b"]).at[2 * H : 3 * H].set(1)
        w = jnp.concatenate([weights["w_ih"], weights["w_hh"]])
        return {"lstm/linear": {"w": reorder(w), "b": reorder(weights["b"]) - one}}

    apply_unroll = hk.without_apply_rng(hk.transform(unroll)).apply
    apply_step = hk.without_apply_rng(hk.transform(step)).apply
    return Network(
        params=params,
        unroll=apply_unroll,
        step=apply_step,
        state=lambda h, c: hk.LSTMState(hidden=h, cell=c),
        fields=lambda returned: {"h": returned[1].hidden, "c": returned[1].cell},
    )


CONTENDER = Contender(
    how="hk.dynamic_unroll of hk.LSTM, time-major; streaming: hk.LSTM",
    programs=functools.partial(programs, network),
    not_compared={
        "elman": "hk.VanillaRNN has ReLU in the place of tanh",
        "gru": "hk.GRU resets the state before the product",
    },
)
