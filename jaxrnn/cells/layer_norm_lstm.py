"""Long short-term memory with layer normalisation.

Each row of a product, all gates together, and each row of c has mean 0 and variance 1 before its
gain. With N(a) = s (a - mean(a)), s = 1 / sqrt(var(a) + 1e-5):

    [a_i, a_f, a_g, a_o] = gain_ih * N(x_t W_ih) + gain_hh * N(h_{t-1} W_hh) + b
    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);   g = tanh(a_g)
    c_t = f * c_{t-1} + i * g
    m_t = gain_c * y_t + bias_c,   y_t = N(c_t)
    h_t = o * tanh(m_t)

and its adjoint, for dh_t and dc_t the gradients that reach h_t and c_t from their readers:

    dm_t     = dh_t * o * (1 - tanh(m_t)^2)
    dc_t    += s_c (dy - mean(dy) - y_t mean(dy y_t))   with   dy = gain_c * dm_t
    da_i     = dc_t * g       * i * (1 - i)
    da_f     = dc_t * c_{t-1} * f * (1 - f)
    da_g     = dc_t * i       * (1 - g^2)
    da_o     = dh_t * tanh(m_t) * o * (1 - o)
    dc_{t-1} = dc_t * f
    dh_{t-1} = adjoint of gain_hh * N(h_{t-1} W_hh) for da_t
    dx_t     = adjoint of gain_ih * N(x_t W_ih) for da_t
    db = sum_t da_t,   dgain_c = sum_t dm_t * y_t,   dbias_c = sum_t dm_t

The adjoint of a normalised product, with dW and dgain, is derived in `jaxrnn.normalisation`.

Reference: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016, equations 20 to 22.
There, each normalised product has a bias of its own beside b; here, b is the sum of the three.

With gains of 1, long sequences in 16 bits are chaotic: rounding grows from step to step, and
autodiff is off as much.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxrnn.blocks import in_one_piece, sigmoid_or_tanh
from jaxrnn.cells import lstm
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import one_step, zero_start
from jaxrnn.cells.lstm import LSTMArranged, LSTMFactors, LSTMGates, LSTMParams, LSTMState
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.normalisation import (
    ProductFactors,
    centre,
    multiply_gain,
    normalise,
    normalise_gradient,
    normalised_product,
    product_factors,
    product_input_gradient,
    product_weight_gradients,
)
from jaxrnn.products import add_bias, bias_gradient

__all__ = ["LAYER_NORM_LSTM", "LayerNormLSTMParams"]


class LayerNormLSTMParams(NamedTuple):
    """Weights of `LAYER_NORM_LSTM`: those of `LSTM`, and gains and a bias of what is normalised.

    ``w_ih [I, 4H]``, ``w_hh [H, 4H]``, ``b [4H]``; ``gain_ih [4H]`` and ``gain_hh [4H]`` of the
    products with them; ``gain_c [H]`` and ``bias_c [H]`` of c; gates i, f, g, o.
    """

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array
    gain_ih: jax.Array
    gain_hh: jax.Array
    gain_c: jax.Array
    bias_c: jax.Array


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
    gain_init: Initializer = initializers.ones,
) -> LayerNormLSTMParams:
    """Initial weights: those of `LSTM.init` for the same key, gains of 1 and a ``bias_c`` of 0.

    The paper starts so, from orthogonal recurrent weights. The scale of ``w_ih`` and ``w_hh`` has
    no effect on the outputs; with a larger one, training moves their directions more slowly.
    """
    plain = lstm.init(
        *(key, input_size, hidden_size),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
        forget_bias=forget_bias,
    )
    H, dtype = hidden_size, plain.b.dtype
    k_ih, k_hh, k_c, k_b = jax.random.split(jax.random.fold_in(key, 5), 4)
    return LayerNormLSTMParams(
        *plain,
        gain_ih=gain_init(k_ih, (4 * H,), dtype),
        gain_hh=gain_init(k_hh, (4 * H,), dtype),
        gain_c=gain_init(k_c, (H,), dtype),
        bias_c=bias_init(k_b, (H,), dtype),
    )


def expects(params: LayerNormLSTMParams) -> Expects:
    axes = ("I 4H", "H 4H", "4H", "4H", "4H", "H", "H")
    sizes, like = sizes_of(params, LayerNormLSTMParams, axes, owner="LAYER_NORM_LSTM")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=LSTMState(h=h, c=h))


class LayerNormLSTMInputs(NamedTuple):
    """The input's part of the pre-activations with the bias, ``[..., 4H]``; its s ``[..., 1]``."""

    a: jax.Array
    s: jax.Array


def project(params: LayerNormLSTMParams, xs: jax.Array, consts: None) -> LayerNormLSTMInputs:
    """The input's part of the pre-activations, normalised, ``[K, ..., 4H]``."""
    del consts
    # gain and bias cost nothing here: the normalisation passes over the product in bulk
    y, s = normalised_product(xs, params.w_ih)
    return LayerNormLSTMInputs(a=add_bias(multiply_gain(y, params.gain_ih), params.b), s=s)


class LayerNormLSTMGates(NamedTuple):
    """The activated gates, and the s of both products, each ``[..., 1]``."""

    plain: LSTMGates
    s_ih: jax.Array
    s_hh: jax.Array


def advance(
    params: LayerNormLSTMParams, state: LSTMState, inputs: LayerNormLSTMInputs, consts: None
) -> tuple[LSTMState, LayerNormLSTMGates]:
    """``h_t``, ``c_t``, the activated gates and the scales."""
    del consts
    y, s = normalised_product(state.h, params.w_hh)
    a = inputs.a + multiply_gain(y, params.gain_hh)
    gates = LSTMGates(sigmoid_or_tanh(a, "sigmoid sigmoid tanh sigmoid"))
    c = gates.f * state.c + gates.i * gates.g
    h = gates.o * jnp.tanh(_normalised_cell(params, c)[0])
    return LSTMState(h=h, c=c), LayerNormLSTMGates(gates, s_ih=inputs.s, s_hh=s)


def _normalised_cell(
    params: LayerNormLSTMParams, c: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``m_t``, ``y_t`` and their ``s_c``."""
    y, s = normalise(c)
    return add_bias(multiply_gain(y, params.gain_c), params.bias_c), y, s


class LayerNormLSTMFactors(NamedTuple):
    """Local derivatives of one step.

    plain: those of `LSTM` with m_t in the place of c_t where h_t reads it: c_h = ∂h_t/∂m_t
    y_c = y_t ``[..., H]`` and s_c ``[..., 1]``, those of N(c_t)
    product: those of N(h_{t-1} W_hh)
    """

    plain: LSTMFactors
    y_c: jax.Array
    s_c: jax.Array
    product: ProductFactors


class LayerNormLSTMArranged(NamedTuple):
    """The same as `pull` reads them: one array for all gates is one dense loop over it."""

    plain: LSTMArranged
    y_c: jax.Array
    s_c: jax.Array
    product: ProductFactors


def arrange(factors: LayerNormLSTMFactors) -> LayerNormLSTMArranged:
    return LayerNormLSTMArranged(lstm.arrange(factors.plain), *factors[1:])


def linearize(
    params: LayerNormLSTMParams,
    inputs: LayerNormLSTMInputs,
    before: LSTMState,
    after: LSTMState,
    gates: LayerNormLSTMGates,
    consts: None,
) -> LayerNormLSTMFactors:
    """The local derivatives of each step."""
    m, y, s = _normalised_cell(params, after.c)
    plain, read = LSTMParams(*params[:3]), after._replace(c=m)
    return LayerNormLSTMFactors(
        plain=lstm.linearize(plain, inputs.a, before, read, gates.plain, consts),
        y_c=y,
        s_c=s,
        product=product_factors(before.h, gates.s_hh, params.w_hh),
    )


class LayerNormLSTMDeltas(NamedTuple):
    """``da_t [..., 4H]``, ``dm_t [..., H]``, and ``k [..., 1]`` of the recurrent product."""

    da: jax.Array
    dm: jax.Array
    k: jax.Array


def pull(
    params: LayerNormLSTMParams,
    dstate: LSTMState,
    factors: LayerNormLSTMFactors | LayerNormLSTMArranged,
    consts: None,
) -> tuple[LSTMState, LayerNormLSTMDeltas]:
    """``dh_{t-1}``, ``dc_{t-1}``, ``da_t`` and ``dm_t`` from ``dh_t`` and ``dc_t``."""
    del consts
    dh, local = dstate.h, factors.plain
    dm = dh * local.c_h
    dy = multiply_gain(dm, params.gain_c)
    dc = dstate.c + normalise_gradient(dy, factors.y_c, factors.s_c)
    da = in_one_piece(jnp.concatenate([dc, dc, dc, dh], axis=-1) * local.a)
    dh_before, k = product_input_gradient(da, factors.product, params.w_hh, params.gain_hh)
    return LSTMState(h=dh_before, c=dc * local.c_c), LayerNormLSTMDeltas(da, dm, k)


def gradients(
    params: LayerNormLSTMParams,
    xs: jax.Array,
    before: LSTMState,
    after: LSTMState,
    gates: LayerNormLSTMGates,
    deltas: LayerNormLSTMDeltas,
    consts: None,
) -> tuple[LayerNormLSTMParams, jax.Array, None]:
    """The gradients of all params, and ``dx_t`` of every step."""
    del consts
    da, dm, k_hh = deltas
    w_ih, w_hh, _, gain_ih, gain_hh, *_ = params
    factors = product_factors(xs, gates.s_ih, w_ih)
    dxs, k_ih = product_input_gradient(da, factors, w_ih, gain_ih)
    dw_ih, dgain_ih = product_weight_gradients(factors.u, da, k_ih, w_ih, gain_ih)
    dw_hh, dgain_hh = product_weight_gradients(gates.s_hh * before.h, da, k_hh, w_hh, gain_hh)
    _, y, _ = _normalised_cell(params, after.c)
    dparams = LayerNormLSTMParams(
        w_ih=dw_ih,
        w_hh=dw_hh,
        b=bias_gradient(da),
        gain_ih=dgain_ih,
        gain_hh=dgain_hh,
        gain_c=bias_gradient(dm * y),
        bias_c=bias_gradient(dm),
    )
    return dparams, dxs, None


def slopes(after: LSTMState, gates: LayerNormLSTMGates) -> lstm.LSTMSlopes:
    return lstm.slopes(after, gates.plain)


def recurrent(params: LayerNormLSTMParams) -> dict[str, jax.Array]:
    """Centred and with its gain: the matrix of a step, up to the s of the row."""
    w = multiply_gain(centre(params.w_hh), params.gain_hh)
    return dict(zip("ifgo", jnp.split(w, 4, axis=-1), strict=True))


LAYER_NORM_LSTM = Cell(
    name="LAYER_NORM_LSTM",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    arrange=arrange,
    pull=pull,
    gradients=gradients,
    slopes=slopes,
    recurrent=recurrent,
    doc=documentation(__doc__, LayerNormLSTMParams, LSTMState),
)
"""Long short-term memory with layer normalisation: `LayerNormLSTMParams`, `LSTMState`."""
