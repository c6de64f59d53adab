"""The sLSTM of xLSTM: a long short-term memory with exponential input gates and a normaliser.

    [a_i, a_f, a_z, a_o] = x_t W_ih + h_{t-1} W_hh + b       gate blocks in this order
    z = tanh(a_z);   o = sigmoid(a_o);   s = sigmoid(a_f)
    m_t = max(log s + m_{t-1} + log n_{t-1}, a_i)
    i = exp(a_i - m_t);   f = s * exp(m_{t-1} - m_t)
    c_t = f * c_{t-1} + i * z
    n_t = f * n_{t-1} + i
    h_t = o * c_t / n_t

and its adjoint, for dh_t, dc_t and dn_t the gradients that reach h_t, c_t and n_t from their
readers:

    dc_t    += dh_t * o / n_t
    dn_t    -= dh_t * h_t / n_t
    da_i     = (dc_t * z + dn_t) * i
    da_f     = (dc_t * c_{t-1} + dn_t * n_{t-1}) * f * (1 - s)
    da_z     = dc_t * i * (1 - z^2)
    da_o     = dh_t * h_t * (1 - o)
    dc_{t-1} = dc_t * f
    dn_{t-1} = dn_t * f
    dm_{t-1} = dc_{t-1} * c_{t-1} + dn_{t-1} * n_{t-1}
    dh_{t-1} = [da_i, da_f, da_z, da_o] W_hh^T
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   db = sum_t da_t
    dx_t  = da_t W_ih^T

The stabiliser m. The input gate of the paper is exp(a_i), which overflows. So c and n are the
paper's times exp(-m). Any m_t gives the same h, because all that follows reads c_t exp(m_t) and
n_t exp(m_t) only. The paper takes m_t = max(log s + m_{t-1}, a_i). With log n_{t-1} beside it, the
larger of the two terms of n_t is 1. Then 1 <= n_t <= 2 up to the rounding of m_t: n_t does not grow
with t, and it cannot vanish, not even after the zero state, where log n = -inf.

The adjoint takes m_t as a constant, and so does `advance`, by `jax.lax.stop_gradient`. The gradient
of every loss of h is exact all the same. Proof: add e to m_t, and multiply c_t and n_t by exp(-e).
Such a loss stays as it is, so its derivative by e is zero: dm_t - c_t dc_t - n_t dn_t = 0. This is
the factor with which the choice of m_t would enter every gradient. The same holds for losses of
c / n and of log n + m. Numbers c and n alone are relative to m: their gradient is the one at fixed
m_t, and m_t itself has none. An initial or reset state has an m that no step chose, and its
gradient is dm_{t-1}.

The paper also allows s = exp(a_f). The sigmoid, which the authors' code has, lets no memory grow by
itself, so that m stays within the range of a_i, give or take log t. An n below 0, which a learned
initial state may have, counts as its magnitude.

Reference: M. Beck et al., "xLSTM: Extended long short-term memory", 2024. Here, W_hh is dense.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.blocks import block, in_one_piece, sigmoid_and_complement, sigmoid_or_tanh
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import affine_gradients, draw_weights, gate_bias, one_step, zero_start
from jaxrnn.checks import sizes_of, vector
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.initializers import Initializer, glorot_uniform, linspace, orthogonal, zeros
from jaxrnn.products import add_bias, input_gradient

__all__ = ["SLSTM", "SLSTMParams", "SLSTMState"]


class SLSTMParams(NamedTuple):
    """Weights of `SLSTM`: ``w_ih [I, 4H]``, ``w_hh [H, 4H]``, ``b [4H]``; gates i, f, z, o."""

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array


_three_to_six = linspace(3.0, 6.0)


def init(
    key: jax.Array,
    input_size: int,
    hidden_size: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    input_init: Initializer = glorot_uniform,
    recurrent_init: Initializer = orthogonal,
    bias_init: Initializer = zeros,
    forget_bias: float | Initializer = _three_to_six,
) -> SLSTMParams:
    """Initial weights, each gate's block drawn on its own.

    ``forget_bias`` is added to the forget gate's part of ``b``. By default, it is
    `jaxrnn.initializers.linspace` from 3 to 6: where a unit reads zeros, its memory is halved in 14
    to 280 steps. The authors' code has this as an option. Its default there depends on the depth of
    a block in a stack, and its recurrent weights begin as `jaxrnn.initializers.zeros`. The input
    gate needs no bias against it: n makes the shares of old and new add up to 1.
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
    return SLSTMParams(w_ih, w_hh, b.at[H : 2 * H].add(b_f))


class SLSTMState(NamedTuple):
    """State of `SLSTM`: ``h``, the cell ``c``, the normaliser ``n``, the stabiliser ``m``.

    Each is ``[..., H]``. ``c`` and ``n`` are relative to ``exp(m)``: the memory is ``c / n``, and
    ``log n + m`` is the logarithm of its weight.
    """

    h: jax.Array
    c: jax.Array
    n: jax.Array
    m: jax.Array


def expects(params: SLSTMParams) -> Expects:
    sizes, like = sizes_of(params, SLSTMParams, ("I 4H", "H 4H", "4H"), owner="SLSTM")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=SLSTMState(h=h, c=h, n=h, m=h))


class SLSTMGates(NamedTuple):
    """The stabilised gates ``i`` and ``f``, and ``not_s = 1 - s``, each ``[..., H]``.

    ``zo`` are z and o side by side, ``[..., 2H]``.
    """

    i: jax.Array
    f: jax.Array
    not_s: jax.Array
    zo: jax.Array

    @property
    def z(self) -> jax.Array:
        return block(self.zo, 0, 2)

    @property
    def o(self) -> jax.Array:
        return block(self.zo, 1, 2)


def project(params: SLSTMParams, xs: jax.Array, consts: None) -> jax.Array:
    """The input's part of the pre-activations, ``[K, ..., 4H]``."""
    del consts
    return xs @ params.w_ih


def advance(
    params: SLSTMParams, state: SLSTMState, inputs: jax.Array, consts: None
) -> tuple[SLSTMState, SLSTMGates]:
    """``h_t``, ``c_t``, ``n_t``, ``m_t`` and the activated gates."""
    del consts
    # in a step the bias costs nothing, in bulk it would take another turn over all inputs
    a = add_bias(inputs + state.h @ params.w_hh, params.b)
    a_i, a_f, n_before = block(a, 0, 4), block(a, 1, 4), _magnitude(state.n)
    i, f, m = _stabilised(a_i, a_f, n_before, state.m)
    _, not_s = sigmoid_and_complement(a_f)
    zo = sigmoid_or_tanh(a[..., 2 * i.shape[-1] :], "tanh sigmoid")
    gates = SLSTMGates(i=i, f=f, not_s=not_s, zo=zo)
    c, n = f * state.c + i * gates.z, f * n_before + i
    return SLSTMState(h=gates.o * (c / n), c=c, n=n, m=m), gates


def _stabilised(
    a_i: jax.Array, a_f: jax.Array, n: jax.Array, m: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """i, f, and the new m. 16-bit types are computed in float32."""
    dtype = a_i.dtype
    a_i, a_f, n, m = (leaf.astype(accumulation_dtype(dtype)) for leaf in (a_i, a_f, n, m))
    log_s = jnp.minimum(a_f, 0) - jnp.log1p(jnp.exp(-jnp.abs(a_f)))
    log_n = jnp.log(lax.stop_gradient(n))
    stored = lax.stop_gradient(jnp.maximum(log_s + (m + log_n), a_i)).astype(dtype)
    # relative to m as it is stored, or its rounding would swallow log s in 16 bits
    m_after = stored.astype(a_i.dtype)
    # where n is 0, f multiplies zeros, and would overflow
    limit = math.log(float(jnp.finfo(dtype).max)) / 3
    i, f = jnp.exp(a_i - m_after), jnp.exp(jnp.minimum(log_s + (m - m_after), limit))
    return i.astype(dtype), f.astype(dtype), stored


def _magnitude(n: jax.Array) -> jax.Array:
    """``|n|``, with slope 1 at 0."""
    return jnp.where(n < 0, -n, n)


class SLSTMFactors(NamedTuple):
    """Local derivatives of one step, each ``[..., H]``; m_t is a constant.

    c_h = ∂h_t/∂c_t = o / n_t                 n_h = ∂h_t/∂n_t = -h_t / n_t
    c_i = ∂c_t/∂a_i = i z                     n_i = ∂n_t/∂a_i = i
    c_f = ∂c_t/∂a_f = f c_{t-1} (1 - s)       n_f = ∂n_t/∂a_f = f |n_{t-1}| (1 - s)
    z = ∂c_t/∂a_z = i (1 - z²)                o = ∂h_t/∂a_o = h_t (1 - o)
    c_c = ∂c_t/∂c_{t-1} = f                   n_n = ∂n_t/∂n_{t-1} = f sign(n_{t-1})
    c_m = ∂c_t/∂m_{t-1} = f c_{t-1}           n_m = ∂n_t/∂m_{t-1} = f |n_{t-1}|
    """

    c_h: jax.Array
    n_h: jax.Array
    c_i: jax.Array
    n_i: jax.Array
    c_f: jax.Array
    n_f: jax.Array
    z: jax.Array
    o: jax.Array
    c_c: jax.Array
    n_n: jax.Array
    c_m: jax.Array
    n_m: jax.Array


class SLSTMArranged(NamedTuple):
    """The same as `pull` reads them.

    ``c_a`` are ``c_i`` and ``c_f`` side by side, ``n_a`` ``n_i`` and ``n_f``, ``zo`` ``z`` and
    ``o``, each ``[..., 2H]``: one array for two gates is one dense loop over it.
    """

    c_h: jax.Array
    n_h: jax.Array
    c_a: jax.Array
    n_a: jax.Array
    zo: jax.Array
    c_c: jax.Array
    n_n: jax.Array
    c_m: jax.Array
    n_m: jax.Array


def arrange(factors: SLSTMFactors) -> SLSTMArranged:
    c_h, n_h, c_i, n_i, c_f, n_f, z, o, c_c, n_n, c_m, n_m = factors
    return SLSTMArranged(
        c_h=c_h,
        n_h=n_h,
        c_a=_side_by_side(c_i, c_f),
        n_a=_side_by_side(n_i, n_f),
        zo=_side_by_side(z, o),
        c_c=c_c,
        n_n=n_n,
        c_m=c_m,
        n_m=n_m,
    )


def _side_by_side(*blocks: jax.Array) -> jax.Array:
    return jnp.concatenate(blocks, axis=-1)


def linearize(
    params: SLSTMParams,
    inputs: jax.Array,
    before: SLSTMState,
    after: SLSTMState,
    gates: SLSTMGates,
    consts: None,
) -> SLSTMFactors:
    """The local derivatives of each step."""
    del params, inputs, consts
    i, f, z, o = gates.i, gates.f, gates.z, gates.o
    n = _divisor(after.n)
    c_m, n_m = f * before.c, f * _magnitude(before.n)
    return SLSTMFactors(
        c_h=o / n,
        n_h=-after.h / n,
        c_i=i * z,
        n_i=i,
        c_f=c_m * gates.not_s,
        n_f=n_m * gates.not_s,
        z=i * (1 - z * z),
        o=after.h * (1 - o),
        c_c=f,
        n_n=jnp.where(before.n < 0, -f, f),
        c_m=c_m,
        n_m=n_m,
    )


def _divisor(n: jax.Array) -> jax.Array:
    """``n_t``, or 1 after a step that did not happen, where a state of zeros stands."""
    return jnp.where(n > 0, n, 1)


def pull(
    params: SLSTMParams,
    dstate: SLSTMState,
    factors: SLSTMFactors | SLSTMArranged,
    consts: None,
) -> tuple[SLSTMState, jax.Array]:
    """``dh_{t-1}``, ``dc_{t-1}``, ``dn_{t-1}``, ``dm_{t-1}`` and ``da_t``; ``dm_t`` is not read."""
    del consts
    local = factors if isinstance(factors, SLSTMArranged) else arrange(factors)
    dh = dstate.h
    dc, dn = dstate.c + dh * local.c_h, dstate.n + dh * local.n_h
    da_if = _side_by_side(dc, dc) * local.c_a + _side_by_side(dn, dn) * local.n_a
    da = in_one_piece(_side_by_side(da_if, _side_by_side(dc, dh) * local.zo))
    before = SLSTMState(
        h=input_gradient(da, params.w_hh),
        c=dc * local.c_c,
        n=dn * local.n_n,
        m=dc * local.c_m + dn * local.n_m,
    )
    return before, da


def gradients(
    params: SLSTMParams,
    xs: jax.Array,
    before: SLSTMState,
    after: SLSTMState,
    gates: SLSTMGates,
    da: jax.Array,
    consts: None,
) -> tuple[SLSTMParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, and ``dx_t`` of every step."""
    del after, gates, consts
    dparams = SLSTMParams(*affine_gradients(params, xs, before.h, da))
    return dparams, input_gradient(da, params.w_ih), None


class SLSTMSlopes(NamedTuple):
    """Derivatives of the activations, each ``[..., H]``, as a share of the steepest.

    The exponential has no steepest slope: ``i`` is that of ``i / n_t``, the share of the new in the
    memory, which is a sigmoid of ``a_i``. ``f`` is that of ``s``.
    """

    i: jax.Array
    f: jax.Array
    z: jax.Array
    o: jax.Array


def slopes(after: SLSTMState, gates: SLSTMGates) -> SLSTMSlopes:
    new, not_s, z, o = gates.i / _divisor(after.n), gates.not_s, gates.z, gates.o
    return SLSTMSlopes(
        i=4 * new * (1 - new), f=4 * not_s * (1 - not_s), z=1 - z * z, o=4 * o * (1 - o)
    )


def recurrent(params: SLSTMParams) -> dict[str, jax.Array]:
    return dict(zip("ifzo", jnp.split(params.w_hh, 4, axis=-1), strict=True))


SLSTM = Cell(
    name="SLSTM",
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
    doc=documentation(__doc__, SLSTMParams, SLSTMState),
)
"""The sLSTM: `SLSTMParams`, `SLSTMState`."""
