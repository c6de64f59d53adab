"""Cases: cells, shapes, operations, and the arrays that go in.

A sequence of T steps in B rows, from I inputs to H units, has two operations: `forward` (every h
from a zero state) and `training` (the gradients of the parameters and of the inputs, for a
cotangent on every h). A stream has one: `step`, a single call from Python on one row, as when each
input has to be answered before the next one comes.
"""

import math
from typing import NamedTuple

import numpy as np


class Equations(NamedTuple):
    """Facts of a cell: gate blocks, the axes of its arrays, its plain cell.

    Axes are as in ``"H 4H"``: I inputs, H units, P of a projection, and K of each of four heads.
    ``plain`` is the cell that a variant changes, beside which it is shown.
    """

    gates: int
    weights: dict[str, str]
    state: dict[str, str]
    output: str = "H"
    plain: str | None = None
    dtype: str = "float32"


def _gated(gates: int, *state: str, plain: str | None = None, **more: str) -> Equations:
    columns = f"{gates}H" if gates > 1 else "H"
    weights = {"w_ih": f"I {columns}", "w_hh": f"H {columns}", "b": columns, **more}
    return Equations(gates, weights, dict.fromkeys(("h", *state), "H"), plain=plain)


# the cells that peers have, too
PLAIN = {"elman": _gated(1), "lstm": _gated(4, "c"), "gru": _gated(3, b_hn="H")}

_LSTM = PLAIN["lstm"]._replace(plain="lstm")

VARIANTS = {
    "elman_relu": _gated(1, plain="elman"),
    "leaky": _gated(1, plain="elman"),
    "peephole_lstm": _gated(4, "c", plain="lstm", p="3H"),
    "coupled_lstm": _gated(3, "c", plain="lstm"),
    "slstm": _gated(4, "c", "n", "m", plain="lstm"),
    "layer_norm_lstm": _gated(
        4, "c", plain="lstm", gain_ih="4H", gain_hh="4H", gain_c="H", bias_c="H"
    ),
    "reset_before_gru": _gated(3, plain="gru"),
    "layer_norm_gru": _gated(3, plain="gru", b_hn="H", gain_ih="3H", gain_hh="3H"),
    "mgu": _gated(2, plain="gru"),
}

# transforms, of the LSTM
TRANSFORMED = {
    "projected": _LSTM._replace(
        weights={**_LSTM.weights, "w_hh": "P 4H", "w_hr": "H P"},
        state={"h": "P", "c": "H"},
        output="P",
    ),
    "heads": _LSTM._replace(weights={**_LSTM.weights, "w_hh": "4 K 4 K"}),
    "recurrent_dropout": _LSTM,
    "zoneout": _LSTM,
    "clipped": _LSTM,
    "clip_adjoint": _LSTM,
    "with_dtypes": _LSTM._replace(dtype="bfloat16"),
}

CELLS = PLAIN | VARIANTS | TRANSFORMED

OPERATIONS = {"sequence": ("forward", "training"), "stream": ("step",)}


class Case(NamedTuple):
    """A cell at a shape; a stream has one step and one row."""

    kind: str
    cell: str
    T: int
    B: int
    I: int
    H: int


class Arrays(NamedTuple):
    """Inputs of a case, in jaxrnn's names and layout.

    A sequence has the inputs ``xs [T, B, I]`` and the cotangents ``dhs [T, B, H]``, a stream has
    ``x [1, I]`` and the fields of the state before it, such as ``h [1, H]``.
    """

    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]


# T, B, I, H: from one that fits into a cache to the longest; both small and large B and H
SHAPES = (
    (64, 32, 64, 128),
    (128, 64, 128, 256),
    (256, 16, 128, 512),
    (512, 32, 64, 64),
    (1000, 8, 32, 32),
    (1000, 1, 64, 256),
    (4096, 4, 64, 128),
)
# I, H
STREAMS = ((64, 128), (64, 256))


def arrays(case: Case) -> Arrays:
    """Draw the same float32 arrays for the same case.

    No bias is zero, so that one left out by a conversion shows; and no weight is so large that the
    recursion would magnify the rounding in which correct contenders differ.
    """
    _, cell, T, B, I, H = case
    generator = np.random.default_rng((T, B, I, H))
    equations = CELLS[cell]

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    def weight(*shape: int) -> np.ndarray:
        return generator.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(H))

    weights = {
        name: weight(*(_length(axis, case) for axis in axes.split()))
        for name, axes in equations.weights.items()
    }
    if case.kind == "sequence":
        output = _length(equations.output, case)
        return Arrays(weights, {"xs": normal(T, B, I), "dhs": normal(T, B, output)})
    state = {name: normal(B, _length(axis, case)) for name, axis in equations.state.items()}
    state["h"] = np.tanh(state["h"])
    if "n" in state:
        # a normaliser is a sum that the stabiliser keeps between 1 and 2
        state["n"] = 1 + np.abs(np.tanh(state["n"]))
    return Arrays(weights, {"x": normal(B, I), **state})


def _length(axis: str, case: Case) -> int:
    """The entries along an axis such as ``"4H"``."""
    letters = {"I": case.I, "H": case.H, "P": case.H // 2, "K": case.H // 4}
    number, letter = axis.rstrip("IHPK"), axis.lstrip("0123456789")
    return int(number or 1) * letters.get(letter, 1)


def product_flops(case: Case, operation: str) -> int:
    """Operations of the products that no implementation can do without.

    Forward, every step multiplies x with ``w_ih`` and h with ``w_hh``, and so on. A training step
    multiplies twice more for each: the adjoint by the weight, and the operand by the adjoint.
    """
    matrices = [axes.split() for axes in CELLS[case.cell].weights.values() if " " in axes]
    entries = sum(math.prod(_length(axis, case) for axis in axes) for axes in matrices)
    forward = 2 * case.T * case.B * entries
    return 3 * forward if operation == "training" else forward
