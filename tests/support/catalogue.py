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
    - ``any_size``: `init` takes all sizes from 1 on.
    """

    cell: jaxrnn.Cell
    step: Callable[..., Any]
    make_consts: Callable[..., Any] | None = None
    output: Callable[[Any, Any], Any] = lambda params, state: state.h
    products: tuple[int, int] = (1, 1)
    without_effect: tuple[str, ...] = ()
    any_size: bool = True


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


def coupled_lstm(p, s, x):
    i, g, o = np.split(x @ p.w_ih + s.h @ p.w_hh + p.b, 3, axis=-1)
    c = (1 - sigmoid(i)) * s.c + sigmoid(i) * np.tanh(g)
    return s._replace(h=sigmoid(o) * np.tanh(c), c=c)


def peephole_lstm(p, s, x):
    i, f, g, o = np.split(x @ p.w_ih + s.h @ p.w_hh + p.b, 4, axis=-1)
    p_i, p_f, p_o = np.split(p.p, 3)
    c = sigmoid(f + p_f * s.c) * s.c + sigmoid(i + p_i * s.c) * np.tanh(g)
    return s._replace(h=sigmoid(o + p_o * c) * np.tanh(c), c=c)


def gru(p, s, x):
    x_r, x_z, x_n = np.split(x @ p.w_ih + p.b, 3, axis=-1)
    h_r, h_z, h_n = np.split(s.h @ p.w_hh, 3, axis=-1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + p.b_hn))
    return s._replace(h=(1 - z) * n + z * s.h)


def zoned(step, rates):
    """Without a key: the expectation."""

    def mixed(p, s, x):
        made = step(p, s, x)
        kept = {n: r * getattr(s, n) + (1 - r) * getattr(made, n) for n, r in rates.items()}
        return made._replace(**kept)

    return mixed


def lstm_of_clipped_state(p, s, x):
    made = lstm(p, s, x)
    return made._replace(c=np.clip(made.c, -0.2, 0.2))


def projected(step):
    def smaller(p, s, x):
        made = step(p.cell, s, x)
        return made._replace(h=made.h @ p.w_hr)

    return smaller


def in_heads(step):
    def dense(p, s, x):
        N, R, G, K = p.w_hh.shape
        w = np.zeros((N * R, G * N * K))
        for n in range(N):
            for g in range(G):
                w[n * R : (n + 1) * R, (g * N + n) * K : (g * N + n + 1) * K] = p.w_hh[n, :, g]
        return step(p._replace(w_hh=w), s, x)

    return dense


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


def slstm(p, s, x):
    """The paper's cell and normaliser states are exp(m) times those of the state."""
    i, f, z, o = np.split(x @ p.w_ih + s.h @ p.w_hh + p.b, 4, axis=-1)
    cell = sigmoid(f) * s.c * np.exp(s.m) + np.exp(i) * np.tanh(z)
    normalizer = sigmoid(f) * np.abs(s.n) * np.exp(s.m) + np.exp(i)
    # any m is right
    m = np.maximum(np.log(sigmoid(f)) + s.m + np.log(np.abs(s.n)), i)
    h = sigmoid(o) * cell / normalizer
    return s._replace(h=h, c=cell * np.exp(-m), n=normalizer * np.exp(-m), m=m)


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
    Entry(jaxrnn.COUPLED_LSTM, coupled_lstm),
    Entry(jaxrnn.ELMAN, elman),
    Entry(jaxrnn.elman("relu"), relu_elman),
    Entry(jaxrnn.leaky("relu", leak=0.2, noise=0.5), leaky(lambda a: np.maximum(a, 0), 0.2)),
    Entry(jaxrnn.leaky(), leaky(np.tanh)),
    Entry(jaxrnn.leaky(masked=True), leaky(np.tanh), mask),
    Entry(jaxrnn.LSTM, lstm),
    Entry(jaxrnn.GRU, gru),
    Entry(jaxrnn.recurrent_dropout(jaxrnn.GRU, 0.5), gru),
    Entry(jaxrnn.zoneout(jaxrnn.LSTM, h=0.2, c=0.4), zoned(lstm, {"h": 0.2, "c": 0.4})),
    Entry(jaxrnn.clipped(jaxrnn.LSTM, 0.2), lstm_of_clipped_state),
    Entry(jaxrnn.clip_adjoint(jaxrnn.LSTM, norm=0.5), lstm),
    Entry(jaxrnn.clip_adjoint(jaxrnn.GRU, value=0.3), gru),
    Entry(jaxrnn.projected(jaxrnn.LSTM, 3), projected(lstm), products=(2, 2), any_size=False),
    Entry(jaxrnn.heads(jaxrnn.GRU, 2), in_heads(gru), any_size=False),
    Entry(jaxrnn.with_dtypes(jaxrnn.LSTM, compute="float64", carry="float64"), lstm),
    Entry(jaxrnn.MGU, mgu, products=(2, 2)),
    Entry(jaxrnn.RESET_BEFORE_GRU, reset_before_gru, products=(2, 2)),
    Entry(jaxrnn.PEEPHOLE_LSTM, peephole_lstm),
    Entry(jaxrnn.SLSTM, slstm),
    Entry(jaxrnn.LAYER_NORM_LSTM, layer_norm_lstm),
    Entry(jaxrnn.LAYER_NORM_GRU, layer_norm_gru),
)

CATALOGUE = {entry.cell.name: entry for entry in ENTRIES}
