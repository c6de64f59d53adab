"""What is measured: cells, shapes, operations, and the arrays that go in.

A sequence of T steps in B rows, from I inputs to H units, has two operations: `forward` (every h
from a zero state) and `training` (the gradients of the parameters and of the inputs, for a
cotangent on every h). A stream has one: `step`, a single call from Python on one row, as when each
input has to be answered before the next one comes.
"""

from typing import NamedTuple

import numpy as np


class Equations(NamedTuple):
    """What a case has to know of a cell: gate blocks, the axes of its weights, its state.

    Axes are as in ``"H 4H"``.
    """

    gates: int
    weights: dict[str, str]
    state: tuple[str, ...] = ("h",)


def _gated(gates: int, *state: str, **more: str) -> Equations:
    columns = f"{gates}H" if gates > 1 else "H"
    weights = {"w_ih": f"I {columns}", "w_hh": f"H {columns}", "b": columns, **more}
    return Equations(gates, weights, ("h", *state))


# the cells that peers have, too
PLAIN = {"elman": _gated(1), "lstm": _gated(4, "c"), "gru": _gated(3, b_hn="H")}

VARIANTS = {
    "elman_relu": _gated(1),
    "reset_before_gru": _gated(3),
    "mgu": _gated(2),
}

CELLS = PLAIN | VARIANTS

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
    """What goes into a case, in jaxrnn's names and layout.

    A sequence has the inputs ``xs [T, B, I]`` and the cotangents ``dhs [T, B, H]``, a stream has
    ``x [1, I]`` and the state before it, ``h [1, H]`` and, for the LSTM, ``c [1, H]``.
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

    def axis(text: str) -> int:
        return int(text[:-1] or 1) * {"I": I, "H": H}[text[-1]]

    weights = {name: weight(*map(axis, axes.split())) for name, axes in equations.weights.items()}
    if case.kind == "sequence":
        return Arrays(weights, {"xs": normal(T, B, I), "dhs": normal(T, B, H)})
    inputs = {"x": normal(B, I), "h": np.tanh(normal(B, H))}
    return Arrays(weights, inputs | {name: normal(B, H) for name in equations.state[1:]})


def product_flops(case: Case, operation: str) -> int:
    """Operations of the products that no implementation can do without.

    Forward, every step multiplies x with ``w_ih`` and h with ``w_hh``. A training step multiplies
    twice more for each: the adjoint by the weight, and the operand by the adjoint.
    """
    forward = 2 * case.T * case.B * (case.I + case.H) * CELLS[case.cell].gates * case.H
    return 3 * forward if operation == "training" else forward
