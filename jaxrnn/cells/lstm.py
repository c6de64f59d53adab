"""Long short-term memory, with forget gate and without peepholes.

    [a_i, a_f, a_g, a_o] = x_t W_ih + h_{t-1} W_hh + b       gate blocks in this order
    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);   g = tanh(a_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

and its adjoint, for dh_t and dc_t the gradients that reach h_t and c_t from their readers:

    dc_t    += dh_t * o * (1 - tanh(c_t)^2)
    da_i     = dc_t * g       * i * (1 - i)
    da_f     = dc_t * c_{t-1} * f * (1 - f)
    da_g     = dc_t * i       * (1 - g^2)
    da_o     = dh_t * tanh(c_t) * o * (1 - o)
    dc_{t-1} = dc_t * f
    dh_{t-1} = [da_i, da_f, da_g, da_o] W_hh^T
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   db = sum_t da_t
    dx_t  = da_t W_ih^T

Reference: S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997; forget gate and bias:
F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import block, in_one_piece, sigmoid_or_tanh
from jaxrnn.cells.cell import Cell, Expects, Forms, documentation
from jaxrnn.cells.gated import affine_gradients, draw_weights, gate_bias, one_step, zero_start
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import Weight, add_bias, input_gradient

__all__ = ["LSTM", "LSTMParams", "LSTMState"]


class LSTMParams(NamedTuple):
    """Weights of `LSTM`: ``w_ih [I, 4H]``, ``w_hh [H, 4H]``, ``b [4H]``; gates i, f, g, o."""

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array


def init(
    key: jax.Array,
    input_size: int,
    hidden_size: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    input_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    bias_init: Initializer = zeros,
    forget_bias: float | Initializer = 1.0,
) -> LSTMParams:
    """Initial weights, each gate's block drawn on its own.

    ``forget_bias`` is added to the forget gate's part of ``b``: at 1 the cell state is kept by
    default at the start of training (Gers et al. 2000; Jozefowicz et al., "An empirical
    exploration of recurrent network architectures", 2015). It is a value of the parameter, not a
    constant in the equations. Of an initializer, such as `jaxrnn.initializers.chrono`, the negative
    is added to the input gate's part too: then i = 1 - f where both read zeros.
    """
    w_ih, w_hh, b = draw_weights(
        *(key, input_size, hidden_size, 4),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
    )
    H = hidden_size
    b_f = gate_bias(forget_bias, jax.random.fold_in(key, 3), H, b.dtype)
    b = b.at[H : 2 * H].add(b_f)
    return LSTMParams(w_ih, w_hh, b.at[:H].add(-b_f) if callable(forget_bias) else b)


class LSTMState(NamedTuple):
    """State of `LSTM`: the hidden state ``h [..., H]`` and the cell state ``c [..., H]``."""

    h: jax.Array
    c: jax.Array


def expects(params: LSTMParams) -> Expects:
    sizes, like = sizes_of(params, LSTMParams, ("I 4H", "H 4H", "4H"), owner="LSTM")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=LSTMState(h=h, c=h))


class LSTMGates(NamedTuple):
    """The activated gates side by side, ``[..., 4H]``; each of them ``[..., H]``."""

    activated: jax.Array

    @property
    def i(self) -> jax.Array:
        return block(self.activated, 0, 4)

    @property
    def f(self) -> jax.Array:
        return block(self.activated, 1, 4)

    @property
    def g(self) -> jax.Array:
        return block(self.activated, 2, 4)

    @property
    def o(self) -> jax.Array:
        return block(self.activated, 3, 4)


def project(params: LSTMParams, xs: jax.Array, consts: None) -> jax.Array:
    """The input's part of the pre-activations, ``[K, ..., 4H]``.

    Textbook: the input's part of lstm-1, lstm-2, lstm-3, lstm-5.
    """
    del consts
    return xs @ params.w_ih


def advance(
    params: LSTMParams, state: LSTMState, inputs: jax.Array, consts: None
) -> tuple[LSTMState, LSTMGates]:
    """``h_t``, ``c_t`` and the activated gates.

    Textbook: lstm-1, lstm-2, lstm-3, lstm-4, lstm-5, lstm-6.
    In other names step-1, step-2, step-3, step-4, step-5, step-6, step-7.
    """
    del consts
    # in a step the bias costs nothing, in bulk it would take another turn over all inputs
    a = add_bias(inputs + state.h @ params.w_hh, params.b)
    gates = LSTMGates(sigmoid_or_tanh(a, "sigmoid sigmoid tanh sigmoid"))
    c = gates.f * state.c + gates.i * gates.g
    return LSTMState(h=gates.o * jnp.tanh(c), c=c), gates


class LSTMFactors(NamedTuple):
    """Local derivatives of one step, each ``[..., H]``.

    c_h = ∂h_t/∂c_t = o (1 - tanh² c_t)      c_c = ∂c_t/∂c_{t-1} = f
    i = ∂c_t/∂a_i = g i (1 - i)               f = ∂c_t/∂a_f = c_{t-1} f (1 - f)
    g = ∂c_t/∂a_g = i (1 - g²)                o = ∂h_t/∂a_o = tanh(c_t) o (1 - o)
    """

    c_h: jax.Array
    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array
    c_c: jax.Array

    @property
    def a(self) -> jax.Array:
        """``[i, f, g, o]`` side by side, ``[..., 4H]``."""
        return jnp.concatenate([self.i, self.f, self.g, self.o], axis=-1)


class LSTMArranged(NamedTuple):
    """The same as `pull` reads them: one array for all gates is one dense loop over it."""

    c_h: jax.Array
    a: jax.Array
    c_c: jax.Array


def arrange(factors: LSTMFactors) -> LSTMArranged:
    return LSTMArranged(c_h=factors.c_h, a=factors.a, c_c=factors.c_c)


def linearize(
    params: LSTMParams,
    inputs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: LSTMGates,
    consts: None,
) -> LSTMFactors:
    """The local derivatives of each step.

    Textbook: the factors beside dc and dh in lstm-8, lstm-9, lstm-10, lstm-11, lstm-12.
    Also step-9, step-11, step-12, step-13, each times the slope of its gate.
    """
    del params, inputs, consts
    i, f, g, o = gates.i, gates.f, gates.g, gates.o
    tanh_c = jnp.tanh(after.c)
    return LSTMFactors(
        c_h=o * (1 - tanh_c * tanh_c),
        i=g * i * (1 - i),
        f=before.c * f * (1 - f),
        g=i * (1 - g * g),
        o=tanh_c * o * (1 - o),
        c_c=f,
    )


def pull(
    params: LSTMParams, dstate: LSTMState, factors: LSTMFactors | LSTMArranged, consts: None
) -> tuple[LSTMState, jax.Array]:
    """``dh_{t-1}``, ``dc_{t-1}`` and ``da_t`` from ``dh_t`` and ``dc_t``.

    Textbook: lstm-8, lstm-9, lstm-10, lstm-11, lstm-12, lstm-21, lstm-22.
    In other names step-10, step-14, step-28.
    """
    del consts
    dh = dstate.h
    dc = dstate.c + dh * factors.c_h
    da = in_one_piece(jnp.concatenate([dc, dc, dc, dh], axis=-1) * factors.a)
    return LSTMState(h=input_gradient(da, params.w_hh), c=dc * factors.c_c), da


def pull_on_gpu(
    params: LSTMParams, dstate: LSTMState, factors: LSTMFactors | LSTMArranged, consts: None
) -> tuple[LSTMState, jax.Array]:
    """`pull` with ``dc_{t-1}`` as a fifth block beside the deltas, ``[..., 5H]``.

    XLA computes arrays of one shape in one kernel, and others in another. The fifth block meets
    zeros in the product: to take the other four out would be one more kernel.
    """
    if isinstance(params.w_hh, Weight):
        return pull(params, dstate, factors, consts)
    dh = dstate.h
    dc = dstate.c + dh * factors.c_h
    local = jnp.concatenate([factors.a, factors.c_c], axis=-1)
    blocks = in_one_piece(jnp.concatenate([dc, dc, dc, dh, dc], axis=-1) * local)
    w = jnp.concatenate([params.w_hh, jnp.zeros_like(params.w_hh[:, : dh.shape[-1]])], axis=-1)
    da, dc_before = jnp.split(blocks, [factors.a.shape[-1]], axis=-1)
    return LSTMState(h=input_gradient(blocks, w), c=dc_before), da


def gradients(
    params: LSTMParams,
    xs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: LSTMGates,
    da: jax.Array,
    consts: None,
) -> tuple[LSTMParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, and ``dx_t`` of every step.

    Textbook: lstm-13, lstm-14, lstm-15, lstm-16, lstm-17, lstm-18, lstm-19, lstm-20, lstm-23.
    In other names step-15, step-16, step-17, step-18, step-19, step-20, step-21, step-22, step-23,
    step-24, step-25, step-26, step-27.
    """
    del after, gates, consts
    dparams = LSTMParams(*affine_gradients(params, xs, before.h, da))
    return dparams, input_gradient(da, params.w_ih), None


class LSTMSlopes(NamedTuple):
    """Derivatives of the gates' activations, each ``[..., H]``, as a share of the steepest."""

    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array


def slopes(after: LSTMState, gates: LSTMGates) -> LSTMSlopes:
    del after
    i, f, g, o = gates.i, gates.f, gates.g, gates.o
    return LSTMSlopes(i=4 * i * (1 - i), f=4 * f * (1 - f), g=1 - g * g, o=4 * o * (1 - o))


def recurrent(params: LSTMParams) -> dict[str, jax.Array]:
    return dict(zip("ifgo", jnp.split(params.w_hh, 4, axis=-1), strict=True))


LSTM = Cell(
    name="LSTM",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    arrange=arrange,
    pull=Forms(pull, gpu=pull_on_gpu),
    gradients=gradients,
    slopes=slopes,
    recurrent=recurrent,
    doc=documentation(__doc__, LSTMParams, LSTMState),
)
"""Long short-term memory: `LSTMParams`, `LSTMState`."""
