"""Every cell of the library, with its equations in NumPy and the products of its step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxrnn


class Entry(NamedTuple):
    """A cell, and facts about it that come from its paper alone.

    - ``step(params, state, x) -> state``: one step of rows, in NumPy, without a helper of ours;
      ``params`` and ``state`` have the cell's fields.
    - ``output(params, state) -> h``.
    - ``products``: matrix products in the loop over steps, forwards and back.
    - ``without_effect``: terms that must not count, as `faults_of` names them, such as the adjoint
      of a stabiliser.
    """

    cell: jaxrnn.Cell
    step: Callable[[Any, Any, Any], Any]
    output: Callable[[Any, Any], Any] = lambda params, state: state.h
    products: tuple[int, int] = (1, 1)
    without_effect: tuple[str, ...] = ()


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def elman(p, s, x):
    return s._replace(h=np.tanh(x @ p.w_ih + s.h @ p.w_hh + p.b))


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


def normalised(a, gain):
    deviation = np.sqrt(a.var(axis=-1, keepdims=True) + 1e-5)
    return gain * (a - a.mean(axis=-1, keepdims=True)) / deviation


def layer_norm_lstm(p, s, x):
    a = normalised(x @ p.w_ih, p.gain_ih) + normalised(s.h @ p.w_hh, p.gain_hh) + p.b
    i, f, g, o = np.split(a, 4, axis=-1)
    c = sigmoid(f) * s.c + sigmoid(i) * np.tanh(g)
    return s._replace(h=sigmoid(o) * np.tanh(normalised(c, p.gain_c) + p.bias_c), c=c)


def layer_norm_gru(p, s, x):
    x_r, x_z, x_n = np.split(normalised(x @ p.w_ih, p.gain_ih) + p.b, 3, axis=-1)
    h_r, h_z, h_n = np.split(normalised(s.h @ p.w_hh, p.gain_hh), 3, axis=-1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + p.b_hn))
    return s._replace(h=(1 - z) * n + z * s.h)


ENTRIES = (
    Entry(jaxrnn.ELMAN, elman),
    Entry(jaxrnn.LSTM, lstm),
    Entry(jaxrnn.GRU, gru),
    Entry(jaxrnn.LAYER_NORM_LSTM, layer_norm_lstm),
    Entry(jaxrnn.LAYER_NORM_GRU, layer_norm_gru),
)

CATALOGUE = {entry.cell.name: entry for entry in ENTRIES}
