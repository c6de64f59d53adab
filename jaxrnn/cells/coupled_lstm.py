"""Long short-term memory with coupled input and forget gates: f = 1 - i.

    a = [a_i, a_g, a_o] = x_t W_ih + h_{t-1} W_hh + b        gate blocks in this order
    i, o = sigmoid(a_i), sigmoid(a_o);   g = tanh(a_g);   f = 1 - i
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

and its adjoint, for dh_t and dc_t the gradients that reach h_t and c_t from their readers:

    dc_t    += dh_t * o * (1 - tanh(c_t)^2)
    da_i     = dc_t * (g - c_{t-1}) * i * f
    da_g     = dc_t * i * (1 - g^2)
    da_o     = dh_t * tanh(c_t) * o * (1 - o)
    dc_{t-1} = dc_t * f
    dh_{t-1} = [da_i, da_g, da_o] W_hh^T
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   db = sum_t da_t
    dx_t  = da_t W_ih^T

It is an LSTM whose forget gate has the pre-activation -a_i. This cell has no peepholes.

Reference: K. Greff, R. K. Srivastava, J. Koutník, B. R. Steunebrink and J. Schmidhuber, "LSTM: a
search space odyssey", 2017, where it is named CIFG and has peepholes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import block, in_one_piece, sigmoid_and_complement, sigmoid_or_tanh
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import affine_gradients, draw_weights, gate_bias, one_step, zero_start
from jaxrnn.cells.lstm import LSTM, LSTMArranged, LSTMState
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import add_bias, input_gradient

__all__ = ["COUPLED_LSTM", "CoupledLSTMParams"]


class CoupledLSTMParams(NamedTuple):
    """Weights of `COUPLED_LSTM`: ``w_ih [I, 3H]``, ``w_hh [H, 3H]``, ``b [3H]``; gates i, g, o."""

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
) -> CoupledLSTMParams:
    """Initial weights, each gate's block drawn on its own.

    The negative of ``forget_bias`` is added to the input gate's part of ``b``, because
    f = sigmoid(-a_i): at 1 the cell state is kept by default at the start of training, as by the
    same argument of ``LSTM.init``. It may be an initializer such as `jaxrnn.initializers.chrono`.
    """
    w_ih, w_hh, b = draw_weights(
        *(key, input_size, hidden_size, 3),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
    )
    b_f = gate_bias(forget_bias, jax.random.fold_in(key, 3), hidden_size, b.dtype)
    return CoupledLSTMParams(w_ih, w_hh, b.at[:hidden_size].add(-b_f))


def expects(params: CoupledLSTMParams) -> Expects:
    axes = ("I 3H", "H 3H", "3H")
    sizes, like = sizes_of(params, CoupledLSTMParams, axes, owner="COUPLED_LSTM")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=LSTMState(h=h, c=h))


class CoupledLSTMGates(NamedTuple):
    """The activated gates g and o side by side, ``[..., 2H]``; each of them ``[..., H]``.

    Of the input gate the pre-activation ``a_i [..., H]``, because i and 1 - i both follow from it
    and neither from the other: 1 - i would be lost where i is next to 1.
    """

    a_i: jax.Array
    activated: jax.Array

    @property
    def g(self) -> jax.Array:
        return block(self.activated, 0, 2)

    @property
    def o(self) -> jax.Array:
        return block(self.activated, 1, 2)


def project(params: CoupledLSTMParams, xs: jax.Array, consts: None) -> jax.Array:
    """The input's part of the pre-activations, ``[K, ..., 3H]``."""
    del consts
    return xs @ params.w_ih


def advance(
    params: CoupledLSTMParams, state: LSTMState, inputs: jax.Array, consts: None
) -> tuple[LSTMState, CoupledLSTMGates]:
    """``h_t``, ``c_t`` and the gates."""
    del consts
    # in a step the bias costs nothing, in bulk it would take another turn over all inputs
    a = add_bias(inputs + state.h @ params.w_hh, params.b)
    a_i, a_go = jnp.split(a, [state.c.shape[-1]], axis=-1)
    i, f = sigmoid_and_complement(a_i)
    gates = CoupledLSTMGates(a_i=a_i, activated=sigmoid_or_tanh(a_go, "tanh sigmoid"))
    c = f * state.c + i * gates.g
    return LSTMState(h=gates.o * jnp.tanh(c), c=c), gates


class CoupledLSTMFactors(NamedTuple):
    """Local derivatives of one step, each ``[..., H]``.

    c_h = ∂h_t/∂c_t = o (1 - tanh² c_t)          c_c = ∂c_t/∂c_{t-1} = f
    i = ∂c_t/∂a_i = (g - c_{t-1}) i f             g = ∂c_t/∂a_g = i (1 - g²)
    o = ∂h_t/∂a_o = tanh(c_t) o (1 - o)
    """

    c_h: jax.Array
    i: jax.Array
    g: jax.Array
    o: jax.Array
    c_c: jax.Array

    @property
    def a(self) -> jax.Array:
        """``[i, g, o]`` side by side, ``[..., 3H]``."""
        return jnp.concatenate([self.i, self.g, self.o], axis=-1)


def linearize(
    params: CoupledLSTMParams,
    inputs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: CoupledLSTMGates,
    consts: None,
) -> CoupledLSTMFactors:
    """The local derivatives of each step."""
    del params, inputs, consts
    g, o = gates.g, gates.o
    i, f = sigmoid_and_complement(gates.a_i)
    tanh_c = jnp.tanh(after.c)
    return CoupledLSTMFactors(
        c_h=o * (1 - tanh_c * tanh_c),
        i=(g - before.c) * i * f,
        g=i * (1 - g * g),
        o=tanh_c * o * (1 - o),
        c_c=f,
    )


def pull(
    params: CoupledLSTMParams,
    dstate: LSTMState,
    factors: CoupledLSTMFactors | LSTMArranged,
    consts: None,
) -> tuple[LSTMState, jax.Array]:
    """``dh_{t-1}``, ``dc_{t-1}`` and ``da_t`` from ``dh_t`` and ``dc_t``."""
    del consts
    dh = dstate.h
    dc = dstate.c + dh * factors.c_h
    da = in_one_piece(jnp.concatenate([dc, dc, dh], axis=-1) * factors.a)
    return LSTMState(h=input_gradient(da, params.w_hh), c=dc * factors.c_c), da


def gradients(
    params: CoupledLSTMParams,
    xs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: CoupledLSTMGates,
    da: jax.Array,
    consts: None,
) -> tuple[CoupledLSTMParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, and ``dx_t`` of every step."""
    del after, gates, consts
    dparams = CoupledLSTMParams(*affine_gradients(params, xs, before.h, da))
    return dparams, input_gradient(da, params.w_ih), None


class CoupledLSTMSlopes(NamedTuple):
    """Derivatives of the gates' activations, each ``[..., H]``, as a share of the steepest."""

    i: jax.Array
    g: jax.Array
    o: jax.Array


def slopes(after: LSTMState, gates: CoupledLSTMGates) -> CoupledLSTMSlopes:
    del after
    g, o = gates.g, gates.o
    i, f = sigmoid_and_complement(gates.a_i)
    return CoupledLSTMSlopes(i=4 * i * f, g=1 - g * g, o=4 * o * (1 - o))


def recurrent(params: CoupledLSTMParams) -> dict[str, jax.Array]:
    return dict(zip("igo", jnp.split(params.w_hh, 3, axis=-1), strict=True))


COUPLED_LSTM = Cell(
    name="COUPLED_LSTM",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    arrange=LSTM.arrange,
    pull=pull,
    gradients=gradients,
    slopes=slopes,
    recurrent=recurrent,
    doc=documentation(__doc__, CoupledLSTMParams, LSTMState),
)
"""Long short-term memory with coupled gates: `CoupledLSTMParams`, `LSTMState`."""
