"""flax.linen: its cells under `nn.RNN`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender

_CELLS = {"elman": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}
# a kernel for each gate
_GATES = {"elman": ("",), "lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}


def network(cell: str, I: int, H: int) -> Network:
    del I
    gates = _GATES[cell]
    module = _CELLS[cell](features=H)
    rnn = nn.RNN(module, time_major=True)

    def params(weights: dict[str, jax.Array]) -> Any:
        blocks = {name: jnp.split(weights[name], len(gates), -1) for name in ("w_ih", "w_hh", "b")}
        tree: dict[str, dict[str, jax.Array]] = {}
        for gate, w_ih, w_hh, b in zip(gates, *blocks.values(), strict=True):
            tree["i" + gate] = {"kernel": w_ih}
            tree["h" + gate] = {"kernel": w_hh}
            # the bias belongs to the product with the state in the LSTM, to that with x elsewhere
            tree[("h" if cell == "lstm" else "i") + gate]["bias"] = b
        if cell == "gru":
            tree["hn"]["bias"] = weights["b_hn"]
        return tree

    def fields(returned: Any) -> dict[str, jax.Array]:
        carry, h = returned
        return {"h": h, "c": carry[0]} if cell == "lstm" else {"h": h}

    return Network(
        params=params,
        unroll=lambda params, xs: rnn.apply({"params": {"cell": params}}, xs),
        step=lambda params, state, x: module.apply({"params": params}, state, x),
        state=lambda h, c=None: h if c is None else (c, h),
        fields=fields,
    )


CONTENDER = Contender(
    how="nn.RNN(time_major=True) of SimpleCell, OptimizedLSTMCell, GRUCell; streaming: the cell",
    programs=functools.partial(programs, network),
)
