"""A network with an affine readout of its last layer's final states."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn


class Params(NamedTuple):
    """Parameters of the network, and of its readout."""

    network: jaxrnn.StackParams
    readout: jaxrnn.AffineParams


def init(network: jaxrnn.Network, key: jax.Array, input_size: int, output_size: int) -> Params:
    """Initial parameters."""
    network_key, readout_key = jax.random.split(key)
    params = network.init(network_key, input_size)
    return with_readout(network, params, readout_key, input_size, output_size)


def with_readout(
    network: jaxrnn.Network,
    params: jaxrnn.StackParams,
    key: jax.Array,
    input_size: int,
    output_size: int,
) -> Params:
    """The network's parameters beside an initial readout, which is as wide as its output."""
    x = jax.ShapeDtypeStruct((1, input_size), jnp.float32)
    _, hs = jax.eval_shape(network.apply, params, x)
    return Params(params, jaxrnn.init_affine(key, hs.shape[-1], output_size))


def side_by_side(final: jaxrnn.LayerState) -> jax.Array:
    """Final hidden states of all directions, [N, H] or [N, 2 H]."""
    return jnp.concatenate([state.h for state in final if state is not None], axis=-1)


def last_states(network: jaxrnn.Network, params: Params, xs: Any, **options: Any) -> jax.Array:
    """The final hidden states of the last layer; options as of `jaxrnn.Network.apply`."""
    final_state, _ = network.apply(params.network, xs, **options)
    return side_by_side(final_state.layers[-1])
