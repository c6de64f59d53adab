"""Keras on JAX: its layers, called without their state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras

from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender

_LAYERS = {
    "elman": (keras.layers.SimpleRNN, keras.layers.SimpleRNNCell),
    "lstm": (keras.layers.LSTM, keras.layers.LSTMCell),
    "gru": (keras.layers.GRU, keras.layers.GRUCell),
}


def network(cell: str, I: int, H: int) -> Network:
    layer_type, cell_type = _LAYERS[cell]
    layer, module = layer_type(H, return_sequences=True), cell_type(H)
    layer.build((None, None, I))
    module.build((None, I))

    def params(weights: dict[str, jax.Array]) -> Any:
        if cell != "gru":
            return [weights[name] for name in ("w_ih", "w_hh", "b")]

        # gates z, r, n
        def reorder(w: jax.Array) -> jax.Array:
            r, z, n = jnp.split(w, 3, axis=-1)
            return jnp.concatenate([z, r, n], axis=-1)

        b_hh = jnp.concatenate([jnp.zeros_like(weights["b"][: 2 * H]), weights["b_hn"]])
        kernels = [reorder(weights["w_ih"]), reorder(weights["w_hh"])]
        return [*kernels, jnp.stack([reorder(weights["b"]), b_hh])]

    def call(layer: Any, params: Any, *arguments: Any) -> Any:
        constants = [variable.value for variable in layer.non_trainable_variables]
        outputs, _ = layer.stateless_call(params, constants, *arguments)
        return outputs

    return Network(
        params=params,
        unroll=lambda params, xs: call(layer, params, xs),
        step=lambda params, state, x: call(module, params, x, state),
        state=lambda h, c=None: [h] if c is None else [h, c],
        fields=lambda returned: dict(zip(("h", "c"), returned[1], strict=False)),
        batch_major=True,
    )


CONTENDER = Contender(
    how="stateless_call of SimpleRNN, LSTM, GRU (return_sequences=True, batch-major, which is the "
    "only way), under jax.jit; streaming: stateless_call of the cell",
    programs=functools.partial(programs, network),
)
