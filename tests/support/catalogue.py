"""Every cell of the library, with its equations in NumPy and the products of its step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrnn


class Entry(NamedTuple):
    """A cell, and facts about it that come from its paper alone.

    - ``step(params, state, x) -> state``: one step of rows, in NumPy, without a helper of ours;
      ``params`` and ``state`` have the cell's fields. Of a cell with consts, they come last.
    - ``make_consts``: of a cell with consts, as `jaxrnn.testing.check_cell` takes it.
    - ``output(params, state) -> h``.
    - ``products``: matrix products in the loop over steps, forwards and back.
    - ``without_effect``: terms that must not count, as `faults_of` names them, such as the adjoint
      of a stabiliser.
    """

    cell: jaxrnn.Cell
    step: Callable[..., Any]
    make_consts: Callable[..., Any] | None = None
    output: Callable[[Any, Any], Any] = lambda params, state: state.h
    products: tuple[int, int] = (1, 1)
    without_effect: tuple[str, ...] = ()


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def elman(p, s, x):
    return s._replace(h=np.tanh(x @ p.w_ih + s.h @ p.w_hh + p.b))


def relu_elman(p, s, x):
    return s._replace(h=np.maximum(x @ p.w_ih + s.h @ p.w_hh + p.b, 0))


def lstm(p, s, x):
    i, f, g, o = np.split(x @ p.w_ih + s.h @ p.w_hh + p.b, 4, axis=-1)
    c = sigmoid(f) * s.c + sigmoid(i) * np.tanh(g)
    return s._replace(h=sigmoid(o) * np.tanh(c), c=c)


def gru(p, s, x):
    x_r, x_z, x_n = np.split(x @ p.w_ih + p.b, 3, axis=-1)
    h_r, h_z, h_n = np.split(s.h @ p.w_hh, 3, axis=-1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + p.b_hn))
    return s._replace(h=(1 - z) * n + z * s.h)


def reset_before_gru(p, s, x):
    x_r, x_z, x_n = np.split(x @ p.w_ih + p.b, 3, axis=-1)
    u_r, u_z, u_n = np.split(p.w_hh, 3, axis=-1)
    z = sigmoid(x_z + s.h @ u_z)
    n = np.tanh(x_n + (sigmoid(x_r + s.h @ u_r) * s.h) @ u_n)
    return s._replace(h=(1 - z) * n + z * s.h)


def mgu(p, s, x):
    x_f, x_n = np.split(x @ p.w_ih + p.b, 2, axis=-1)
    u_f, u_n = np.split(p.w_hh, 2, axis=-1)
    f = sigmoid(x_f + s.h @ u_f)
    return s._replace(h=(1 - f) * s.h + f * np.tanh(x_n + (f * s.h) @ u_n))


def leaky(f, alpha=None):
    """With a fixed leak, or the learned ones; with the mask, if it is given."""

    def step(p, s, x, mask=1):
        a = sigmoid(p.leak) if alpha is None else alpha
        return s._replace(h=(1 - a) * s.h + a * f(x @ p.w_ih + s.h @ (mask * p.w_hh) + p.b))

    return step


def mask(key, batch_shape, input_size, hidden_size, dtype):
    """Connections that are there or not, and of either sign."""
    shape = (hidden_size, hidden_size)
    return jax.random.randint(key, shape, -1, 2).astype(dtype)


ENTRIES = (
    Entry(jaxrnn.ELMAN, elman),
    Entry(jaxrnn.elman("relu"), relu_elman),
    Entry(jaxrnn.leaky("relu", leak=0.2, noise=0.5), leaky(lambda a: np.maximum(a, 0), 0.2)),
    Entry(jaxrnn.leaky(), leaky(np.tanh)),
    Entry(jaxrnn.leaky(masked=True), leaky(np.tanh), mask),
    Entry(jaxrnn.LSTM, lstm),
    Entry(jaxrnn.GRU, gru),
    Entry(jaxrnn.MGU, mgu, products=(2, 2)),
    Entry(jaxrnn.RESET_BEFORE_GRU, reset_before_gru, products=(2, 2)),
)

CATALOGUE = {entry.cell.name: entry for entry in ENTRIES}
