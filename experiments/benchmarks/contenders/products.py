"""The products alone, in jaxrnn's own loops: what is left when a cell costs nothing else.

    a_t = x_t W_ih + h_{t-1} W_hh                  [.., G H], as wide as the measured cell's
    h_t = a_t's G blocks of H columns, added       so that every column is needed
    da_t = dh_t, G times over;   dh_{t-1} = da_t W_hh^T
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   dx_t = da_t W_ih^T

A linear cell without biases, gates and activations. It runs through `jaxrnn.unroll` in chunks as
every cell does, so its time is that of the products where they are taken, in small pieces between
a loop's turns, and not at the best rate that the machine could reach.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from experiments.benchmarks.cases import CELLS
from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender
from jaxrnn.cells import Expects
from jaxrnn.checks import sizes_of, vector
from jaxrnn.products import input_gradient, weight_gradient


class Params(NamedTuple):
    """Weights ``w_ih [I, G H]`` and ``w_hh [H, G H]``."""

    w_ih: jax.Array
    w_hh: jax.Array


class State(NamedTuple):
    """State ``h [..., H]``."""

    h: jax.Array


def expects(blocks: int, params: Params) -> Expects:
    sizes, like = sizes_of(
        params, Params, (f"I {blocks}H", f"H {blocks}H"), owner=f"PRODUCTS{blocks}"
    )
    x, h = (vector(sizes[axis], like.w_hh.dtype) for axis in "IH")
    return Expects(params=like, x=x, state=State(h))


def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> State:
    return State(jnp.zeros((*batch_shape, params.w_hh.shape[0]), params.w_hh.dtype))


def project(params: Params, xs: jax.Array, consts: None) -> jax.Array:
    del consts
    return xs @ params.w_ih


def advance(
    params: Params, state: State, inputs: jax.Array, consts: None
) -> tuple[State, tuple[()]]:
    del consts
    blocks = jnp.split(inputs + state.h @ params.w_hh, gates(params), axis=-1)
    return State(functools.reduce(jnp.add, blocks)), ()


def gates(params: Params) -> int:
    H, columns = params.w_hh.shape
    return columns // H


def step(params: Params, state: State, x: jax.Array, consts: None = None) -> tuple[State, Any]:
    state, _ = advance(params, state, project(params, x, consts), consts)
    return state, state.h


def linearize(*_: Any) -> tuple[()]:
    return ()


def pull(params: Params, dstate: State, factors: Any, consts: None) -> tuple[State, jax.Array]:
    del factors, consts
    da = jnp.concatenate([dstate.h] * gates(params), axis=-1)
    return State(input_gradient(da, params.w_hh)), da


def gradients(
    params: Params, xs: jax.Array, before: State, after: State, gates: Any, da: Any, consts: None
) -> tuple[Params, jax.Array, None]:
    del after, gates, consts
    dparams = Params(weight_gradient(xs, da), weight_gradient(before.h, da))
    return dparams, input_gradient(da, params.w_ih), None


@functools.cache
def cell(blocks: int) -> jaxrnn.Cell:
    """The cell with G gate blocks."""

    def init(key: Any, I: int, H: int, *, dtype: Any = jnp.float32) -> Params:
        k_ih, k_hh = jax.random.split(key)
        # small enough for the state to stay bounded without an activation
        scale = 1 / (blocks * H**0.5)
        return Params(
            scale * jax.random.normal(k_ih, (I, blocks * H), dtype),
            scale * jax.random.normal(k_hh, (H, blocks * H), dtype),
        )

    return jaxrnn.Cell(
        name=f"PRODUCTS{blocks}",
        init=init,
        initial_state=initial_state,
        step=step,
        expects=functools.partial(expects, blocks),
        project=project,
        advance=advance,
        linearize=linearize,
        pull=pull,
        gradients=gradients,
    )


def network(name: str, I: int, H: int) -> Network:
    """The products of the cell of that name."""
    del I, H
    blocks = CELLS[name].gates
    return Network(
        # as in `init`: the measured cells' weights would let the state grow beyond float32
        params=lambda weights: Params(weights["w_ih"] / blocks, weights["w_hh"] / blocks),
        unroll=lambda params, xs: jaxrnn.unroll(cell(blocks), params, xs)[1],
        step=None,
        state=State,
        fields=lambda returned: {"h": returned[1]},
    )


CONTENDER = Contender(
    how="jaxrnn.unroll of a cell that holds the products and nothing else",
    programs=functools.partial(programs, network),
    not_compared={"stream": "no loop"},
    # a projection and heads have products of other shapes
    cells=tuple(name for name in CELLS if name not in ("projected", "heads")),
)
