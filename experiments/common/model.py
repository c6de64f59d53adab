"""A network with an affine readout of its last states."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn


class Params(NamedTuple):
    """Parameters of the network, and of its readout."""

    network: jaxrnn.StackParams
    readout: jaxrnn.AffineParams


def init(network: jaxrnn.Network, key: jax.Array, input_size: int, output_size: int) -> Params:
    """Initial parameters; the readout is as wide as the network's output."""
    network_key, readout_key = jax.random.split(key)
    params = network.init(network_key, input_size)
    x = jax.ShapeDtypeStruct((1, input_size), jnp.float32)
    _, hs = jax.eval_shape(network.apply, params, x)
    return Params(params, jaxrnn.init_affine(readout_key, hs.shape[-1], output_size))


def last_outputs(network: jaxrnn.Network, params: Params, xs: Any, **options: Any) -> jax.Array:
    """The readout of the last layer's final states ``[N, O]``, of both directions side by side."""
    final_state, _ = network.apply(params.network, xs, **options)
    final = final_state.layers[-1]
    h = jnp.concatenate([state.h for state in final if state is not None], axis=-1)
    return jaxrnn.affine(params.readout, h)
