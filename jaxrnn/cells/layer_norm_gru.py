"""The gated recurrent unit with layer normalisation, reset applied after the recurrent product.

Each row of a product, all gates together, has mean 0 and variance 1 before its gain. With
N(a) = s (a - mean(a)), s = 1 / sqrt(var(a) + 1e-5):

    [a_r, a_z, a_n] = gain_ih * N(x_t W_ih) + b              gate blocks in this order
    [u_r, u_z, u_n] = gain_hh * N(h_{t-1} W_hh)
    r = sigmoid(a_r + u_r);   z = sigmoid(a_z + u_z)
    q = u_n + b_hn
    n = tanh(a_n + r * q)
    h_t = (1 - z) * n + z * h_{t-1}

and its adjoint, for dh_t the whole gradient of the loss with respect to h_t:

    da_n     = dh_t * (1 - z) * (1 - n^2)
    da_z     = dh_t * (h_{t-1} - n) * z * (1 - z)
    da_r     = da_n * q * r * (1 - r)
    du       = [da_r, da_z, dq]   with   dq = da_n * r
    dh_{t-1} = dh_t * z + adjoint of gain_hh * N(h_{t-1} W_hh) for du_t
    dx_t     = adjoint of gain_ih * N(x_t W_ih) for da_t
    db    = sum_t da_t,           db_hn = sum_t dq_t

The adjoint of a normalised product, with dW and dgain, is derived in `jaxrnn.normalisation`.

Reference: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016, the GRU of the
supplementary material. It resets after the product, too. It normalises the candidate's block of
each product apart from the blocks of r and z; here, all blocks of a product share one mean and one
variance, as those of the paper's LSTM do. Its z is our 1 - z, and its biases, one for each
normalisation, are here the sums that its step reads: b and b_hn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxrnn.blocks import in_one_piece, sigmoid_and_complement
from jaxrnn.cells import gru
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import one_step, zero_start
from jaxrnn.cells.gru import (
    GRUArranged,
    GRUDeltas,
    GRUFactors,
    GRUGates,
    GRUInputs,
    GRUParams,
    GRUState,
)
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.normalisation import (
    ProductFactors,
    centre,
    multiply_gain,
    normalised_product,
    product_factors,
    product_input_gradient,
    product_weight_gradients,
)
from jaxrnn.products import add_bias, bias_gradient

__all__ = ["LAYER_NORM_GRU", "LayerNormGRUParams"]


class LayerNormGRUParams(NamedTuple):
    """Weights of `LAYER_NORM_GRU`: those of `GRU`, and gains of the normalised products.

    ``w_ih [I, 3H]``, ``w_hh [H, 3H]``, ``b [3H]``, ``b_hn [H]``; ``gain_ih [3H]`` and
    ``gain_hh [3H]``; gates r, z, n.
    """

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array
    b_hn: jax.Array
    gain_ih: jax.Array
    gain_hh: jax.Array


def init(
    key: jax.Array,
    input_size: int,
    hidden_size: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    input_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    bias_init: Initializer = zeros,
    update_bias: float | Initializer = 0.0,
    gain_init: Initializer = initializers.ones,
) -> LayerNormGRUParams:
    """Initial weights: those of `GRU.init` for the same key, and gains of 1.

    The paper starts so, from orthogonal recurrent weights. The scale of ``w_ih`` and ``w_hh`` has
    no effect on the outputs; with a larger one, training moves their directions more slowly.
    """
    plain = gru.init(
        *(key, input_size, hidden_size),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
        update_bias=update_bias,
    )
    k_ih, k_hh = jax.random.split(jax.random.fold_in(key, 5))
    return LayerNormGRUParams(
        *plain,
        gain_ih=gain_init(k_ih, (3 * hidden_size,), plain.b.dtype),
        gain_hh=gain_init(k_hh, (3 * hidden_size,), plain.b.dtype),
    )


def expects(params: LayerNormGRUParams) -> Expects:
    axes = ("I 3H", "H 3H", "3H", "H", "3H", "3H")
    sizes, like = sizes_of(params, LayerNormGRUParams, axes, owner="LAYER_NORM_GRU")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=GRUState(h=h))


class LayerNormGRUInputs(NamedTuple):
    """The input's part of the pre-activations with the bias, by gate, and its s ``[..., 1]``."""

    a: GRUInputs
    s: jax.Array


def project(params: LayerNormGRUParams, xs: jax.Array, consts: None) -> LayerNormGRUInputs:
    """The input's part of the pre-activations, normalised, each ``[K, ..., H]``."""
    del consts
    # gain and bias cost nothing here: the normalisation passes over the product in bulk
    y, s = normalised_product(xs, params.w_ih)
    a = add_bias(multiply_gain(y, params.gain_ih), params.b)
    return LayerNormGRUInputs(GRUInputs(*jnp.split(a, 3, axis=-1)), s)


class LayerNormGRUGates(NamedTuple):
    """The gates of `GRU`, and the s of both products, each ``[..., 1]``."""

    plain: GRUGates
    s_ih: jax.Array
    s_hh: jax.Array


def advance(
    params: LayerNormGRUParams, state: GRUState, inputs: LayerNormGRUInputs, consts: None
) -> tuple[GRUState, LayerNormGRUGates]:
    """``h_t``, the activated gates and the scales."""
    del consts
    y, s = normalised_product(state.h, params.w_hh)
    u_r, u_z, u_n = jnp.split(multiply_gain(y, params.gain_hh), 3, axis=-1)
    r = jax.nn.sigmoid(inputs.a.r + u_r)
    a_z = inputs.a.z + u_z
    z, not_z = sigmoid_and_complement(a_z)
    q = add_bias(u_n, params.b_hn)
    n = jnp.tanh(inputs.a.n + r * q)
    gates = LayerNormGRUGates(GRUGates(r=r, a_z=a_z, n=n, q=q), s_ih=inputs.s, s_hh=s)
    return GRUState(h=not_z * n + z * state.h), gates


class LayerNormGRUFactors(NamedTuple):
    """Local derivatives of one step: those of `GRU`, and of N(h_{t-1} W_hh)."""

    plain: GRUFactors
    product: ProductFactors


class LayerNormGRUArranged(NamedTuple):
    """The same as `pull` reads them: one array for all products is one dense loop over it."""

    plain: GRUArranged
    product: ProductFactors


def arrange(factors: LayerNormGRUFactors) -> LayerNormGRUArranged:
    return LayerNormGRUArranged(gru.arrange(factors.plain), factors.product)


def linearize(
    params: LayerNormGRUParams,
    inputs: LayerNormGRUInputs,
    before: GRUState,
    after: GRUState,
    gates: LayerNormGRUGates,
    consts: None,
) -> LayerNormGRUFactors:
    """The local derivatives of each step."""
    return LayerNormGRUFactors(
        plain=gru.linearize(GRUParams(*params[:4]), inputs.a, before, after, gates.plain, consts),
        product=product_factors(before.h, gates.s_hh, params.w_hh),
    )


class LayerNormGRUDeltas(NamedTuple):
    """The deltas of `GRU`, and ``k [..., 1]`` of the recurrent product."""

    plain: GRUDeltas
    k: jax.Array


def pull(
    params: LayerNormGRUParams,
    dstate: GRUState,
    factors: LayerNormGRUFactors | LayerNormGRUArranged,
    consts: None,
) -> tuple[GRUState, LayerNormGRUDeltas]:
    """``dh_{t-1}``, ``du_t`` and ``da_n`` from ``dh_t``."""
    del consts
    dh, local = dstate.h, factors.plain
    du = in_one_piece(jnp.concatenate([dh, dh, dh], axis=-1) * local.u)
    dh_before, k = product_input_gradient(du, factors.product, params.w_hh, params.gain_hh)
    deltas = LayerNormGRUDeltas(GRUDeltas(du=du, da_n=dh * local.n), k)
    return GRUState(h=dh_before + dh * local.h), deltas


def gradients(
    params: LayerNormGRUParams,
    xs: jax.Array,
    before: GRUState,
    after: GRUState,
    gates: LayerNormGRUGates,
    deltas: LayerNormGRUDeltas,
    consts: None,
) -> tuple[LayerNormGRUParams, jax.Array, None]:
    """The gradients of all params, and ``dx_t`` of every step."""
    del after, consts
    (du, da_n), da, k_hh = deltas.plain, deltas.plain.da, deltas.k
    w_ih, w_hh, _, _, gain_ih, gain_hh = params
    factors = product_factors(xs, gates.s_ih, w_ih)
    dxs, k_ih = product_input_gradient(da, factors, w_ih, gain_ih)
    dw_ih, dgain_ih = product_weight_gradients(factors.u, da, k_ih, w_ih, gain_ih)
    dw_hh, dgain_hh = product_weight_gradients(gates.s_hh * before.h, du, k_hh, w_hh, gain_hh)
    db_rz, db_hn = jnp.split(bias_gradient(du), [2 * before.h.shape[-1]])
    dparams = LayerNormGRUParams(
        w_ih=dw_ih,
        w_hh=dw_hh,
        b=jnp.concatenate([db_rz, bias_gradient(da_n)]),
        b_hn=db_hn,
        gain_ih=dgain_ih,
        gain_hh=dgain_hh,
    )
    return dparams, dxs, None


def slopes(after: GRUState, gates: LayerNormGRUGates) -> gru.GRUSlopes:
    return gru.slopes(after, gates.plain)


def recurrent(params: LayerNormGRUParams) -> dict[str, jax.Array]:
    """Centred and with its gain: the matrix of a step, up to the s of the row."""
    w = multiply_gain(centre(params.w_hh), params.gain_hh)
    return dict(zip("rzn", jnp.split(w, 3, axis=-1), strict=True))


LAYER_NORM_GRU = Cell(
    name="LAYER_NORM_GRU",
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
    doc=documentation(__doc__, LayerNormGRUParams, GRUState),
)
"""The gated recurrent unit with layer normalisation: `LayerNormGRUParams`, `GRUState`."""
