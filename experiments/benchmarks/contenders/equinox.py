"""Equinox: its cells in a `lax.scan`, mapped over the rows, as its documentation writes it."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender

_CELLS = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}


def network(cell: str, I: int, H: int) -> Network:
    module = _CELLS[cell](I, H, key=jax.random.key(0))

    def params(weights: dict[str, jax.Array]) -> Any:
        def leaves(module: Any) -> list[Any]:
            own = [module.weight_ih, module.weight_hh, module.bias]
            return [*own, module.bias_n] if cell == "gru" else own

        biases = [weights[name] for name in ("b", "b_hn") if name in weights]
        return eqx.tree_at(leaves, module, [weights["w_ih"].T, weights["w_hh"].T, *biases])

    def own_state(h: jax.Array, c: jax.Array | None = None) -> Any:
        return h if c is None else (h, c)

    def unroll_row(module: Any, xs: jax.Array) -> jax.Array:
        def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            state = module(x, state)
            return state, state[0] if cell == "lstm" else state

        h = jnp.zeros(H, xs.dtype)
        return lax.scan(step, own_state(h, h) if cell == "lstm" else h, xs)[1]

    return Network(
        params=params,
        unroll=jax.vmap(unroll_row, in_axes=(None, 1), out_axes=1),
        step=lambda module, state, x: module(x, state),
        state=own_state,
        fields=lambda state: dict(
            zip(("h", "c"), state if cell == "lstm" else (state,), strict=False)
        ),
        single_row=True,
    )


CONTENDER = Contender(
    how="LSTMCell, GRUCell in lax.scan under jax.vmap over the rows and jax.jit, time-major; "
    "streaming: the cell, on a row without a batch axis",
    programs=functools.partial(programs, network),
    not_compared={"elman": "it has no Elman cell"},
)
