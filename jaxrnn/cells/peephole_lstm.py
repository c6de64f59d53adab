"""Long short-term memory with peepholes: the gates read the cell state.

    a = [a_i, a_f, a_g, a_o] = x_t W_ih + h_{t-1} W_hh + b   gate blocks in this order
    i = sigmoid(a_i + p_i * c_{t-1});   f = sigmoid(a_f + p_f * c_{t-1});   g = tanh(a_g)
    c_t = f * c_{t-1} + i * g
    o = sigmoid(a_o + p_o * c_t)
    h_t = o * tanh(c_t)

and its adjoint, for dh_t and dc_t the gradients that reach h_t and c_t from their readers:

    da_o     = dh_t * tanh(c_t) * o * (1 - o)
    dc_t    += dh_t * o * (1 - tanh(c_t)^2) + da_o * p_o
    da_i     = dc_t * g       * i * (1 - i)
    da_f     = dc_t * c_{t-1} * f * (1 - f)
    da_g     = dc_t * i       * (1 - g^2)
    dc_{t-1} = dc_t * f + da_i * p_i + da_f * p_f
    dh_{t-1} = [da_i, da_f, da_g, da_o] W_hh^T
    dp_i = sum_t da_i * c_{t-1},   dp_f = sum_t da_f * c_{t-1},   dp_o = sum_t da_o * c_t

and the other sums as of `LSTM`. The peepholes are a vector per gate, so they change the local
derivatives of c alone: with these, the recursion of the adjoint is that of `LSTM`.

ONNX stores the peepholes as P in the order i, o, f, and the other weights in the order i, o, f, g.

References: F. A. Gers and J. Schmidhuber, "Recurrent nets that time and count", 2000; F. A. Gers,
N. N. Schraudolph and J. Schmidhuber, "Learning precise timing with LSTM recurrent networks", 2002.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import block, sigmoid_or_tanh
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import affine_gradients, one_step, zero_start
from jaxrnn.cells.lstm import LSTM, LSTMFactors, LSTMState
from jaxrnn.checks import sizes_of, vector
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, per_gate, zeros
from jaxrnn.products import add_bias, bias_gradient, input_gradient

__all__ = ["PEEPHOLE_LSTM", "PeepholeLSTMParams"]


class PeepholeLSTMParams(NamedTuple):
    """Weights of `PEEPHOLE_LSTM`: ``w_ih [I, 4H]``, ``w_hh [H, 4H]``, ``b [4H]``, ``p [3H]``.

    Gates i, f, g, o; peepholes i, f, o.
    """

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array
    p: jax.Array


def init(
    key: jax.Array,
    input_size: int,
    hidden_size: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    input_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    bias_init: Initializer = zeros,
    peephole_init: Initializer = zeros,
    forget_bias: float | Initializer = 1.0,
) -> PeepholeLSTMParams:
    """Initial weights, each gate's block drawn on its own: those of `LSTM` for the same key.

    The peepholes ``p`` are zeros, so that training starts from that LSTM; their gradients are not
    zero. ``forget_bias`` is that of ``LSTM.init``.
    """
    w_ih, w_hh, b = LSTM.init(
        *(key, input_size, hidden_size),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
        forget_bias=forget_bias,
    )
    p = per_gate(peephole_init, 3)(jax.random.fold_in(key, 4), (3 * hidden_size,), b.dtype)
    return PeepholeLSTMParams(w_ih, w_hh, b, p)


def expects(params: PeepholeLSTMParams) -> Expects:
    axes = ("I 4H", "H 4H", "4H", "3H")
    sizes, like = sizes_of(params, PeepholeLSTMParams, axes, owner="PEEPHOLE_LSTM")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=LSTMState(h=h, c=h))


class PeepholeLSTMGates(NamedTuple):
    """The activated gates: i, f, g side by side, ``[..., 3H]``, and ``o [..., H]``."""

    ifg: jax.Array
    o: jax.Array

    @property
    def i(self) -> jax.Array:
        return block(self.ifg, 0, 3)

    @property
    def f(self) -> jax.Array:
        return block(self.ifg, 1, 3)

    @property
    def g(self) -> jax.Array:
        return block(self.ifg, 2, 3)


def project(params: PeepholeLSTMParams, xs: jax.Array, consts: None) -> jax.Array:
    """The input's part of the pre-activations, ``[K, ..., 4H]``."""
    del consts
    return xs @ params.w_ih


def advance(
    params: PeepholeLSTMParams, state: LSTMState, inputs: jax.Array, consts: None
) -> tuple[LSTMState, PeepholeLSTMGates]:
    """``h_t``, ``c_t`` and the activated gates."""
    del consts
    H = state.c.shape[-1]
    # in a step the bias costs nothing, in bulk it would take another turn over all inputs
    a = add_bias(inputs + state.h @ params.w_hh, params.b)
    # g and o do not read the old c, and o is not needed yet. But XLA:CPU would cut the three other
    # blocks out of the product first: training at T, B, H = 1000, 8, 32 would take 1.5 times as
    # long as an LSTM's, and takes 1.1 times as long (two cores, float32)
    p_if = jnp.broadcast_to(jnp.pad(params.p[: 2 * H], (0, 2 * H)), a.shape)
    peeped = a + p_if * jnp.concatenate([state.c] * 4, axis=-1)
    ifg = sigmoid_or_tanh(peeped, "sigmoid sigmoid tanh sigmoid")[..., : 3 * H]
    c = block(ifg, 1, 3) * state.c + block(ifg, 0, 3) * block(ifg, 2, 3)
    p_o = jnp.broadcast_to(params.p[2 * H :], c.shape)
    o = sigmoid_or_tanh(block(a, 3, 4) + p_o * c, "sigmoid")
    return LSTMState(h=o * jnp.tanh(c), c=c), PeepholeLSTMGates(ifg=ifg, o=o)


def linearize(
    params: PeepholeLSTMParams,
    inputs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: PeepholeLSTMGates,
    consts: None,
) -> LSTMFactors:
    """The local derivatives of each step.

    Those by c go through the peepholes too: c_h = ∂h_t/∂c_t = o (1 - tanh² c_t) + p_o ∂h_t/∂a_o,
    c_c = ∂c_t/∂c_{t-1} = f + p_i ∂c_t/∂a_i + p_f ∂c_t/∂a_f.
    """
    del inputs, consts
    i, f, g, o = gates.i, gates.f, gates.g, gates.o
    p_i, p_f, p_o = (jnp.broadcast_to(p, o.shape) for p in jnp.split(params.p, 3))
    tanh_c = jnp.tanh(after.c)
    c_i, c_f, h_o = g * i * (1 - i), before.c * f * (1 - f), tanh_c * o * (1 - o)
    return LSTMFactors(
        c_h=o * (1 - tanh_c * tanh_c) + p_o * h_o,
        i=c_i,
        f=c_f,
        g=i * (1 - g * g),
        o=h_o,
        c_c=f + p_i * c_i + p_f * c_f,
    )


def gradients(
    params: PeepholeLSTMParams,
    xs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: PeepholeLSTMGates,
    da: jax.Array,
    consts: None,
) -> tuple[PeepholeLSTMParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, ``dp``, and ``dx_t`` of every step."""
    del gates, consts
    wide = accumulation_dtype(da.dtype)
    read = (before.c, before.c, after.c)
    da_ifo = (block(da, k, 4) for k in (0, 1, 3))
    # products of 16-bit numbers are exact in 32 bits
    dp = [bias_gradient(d.astype(wide) * c.astype(wide)) for d, c in zip(da_ifo, read, strict=True)]
    dparams = PeepholeLSTMParams(*affine_gradients(params, xs, before.h, da), p=jnp.concatenate(dp))
    return dparams, input_gradient(da, params.w_ih), None


PEEPHOLE_LSTM = Cell(
    name="PEEPHOLE_LSTM",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    # the factors hold the peepholes, so the recursion of the adjoint is LSTM's
    arrange=LSTM.arrange,
    pull=LSTM.pull,
    gradients=gradients,
    slopes=LSTM.slopes,
    recurrent=LSTM.recurrent,
    doc=documentation(__doc__, PeepholeLSTMParams, LSTMState),
)
"""Long short-term memory with peepholes: `PeepholeLSTMParams`, `LSTMState`."""
