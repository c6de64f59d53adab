"""The gated recurrent unit, reset applied before the recurrent product (the form of its paper).

    [a_r, a_z, a_n] = x_t W_ih + b                           gate blocks in this order
    r = sigmoid(a_r + h_{t-1} U_r);   z = sigmoid(a_z + h_{t-1} U_z)
    k = r * h_{t-1}                                          W_hh = [U_r, U_z, U_n]
    n = tanh(a_n + k U_n)
    h_t = (1 - z) * n + z * h_{t-1}

and its adjoint, for dh_t the whole gradient of the loss with respect to h_t. The reset gate acts
through the product with U_n, so a step back has two products as well, one after the other:

    da_n     = dh_t * (1 - z) * (1 - n^2)
    dk       = da_n U_n^T
    da_r     = dk * h_{t-1} * r * (1 - r)
    da_z     = dh_t * (h_{t-1} - n) * z * (1 - z)
    dh_{t-1} = [da_r, da_z] [U_r, U_z]^T + dk * r + dh_t * z
    dW_ih = sum_t x_t^T [da_r, da_z, da_n],   db = sum_t [da_r, da_z, da_n]
    dW_hh = [sum_t h_{t-1}^T [da_r, da_z],   sum_t k^T da_n]
    dx_t  = [da_r, da_z, da_n] W_ih^T

`GRU` resets after the product. It differs in n alone, and a step of it has one product. ONNX calls
the form of the paper linear_before_reset=0, its default.

Reference: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
statistical machine translation", 2014.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import sigmoid_and_complement
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import draw_weights, gate_bias, one_step, zero_start
from jaxrnn.cells.gru import GRUInputs, GRUSlopes, GRUState, project, project_at_once, recurrent
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import (
    add_bias,
    bias_gradient,
    columns_apart,
    columns_gradient,
    input_gradient,
    weight_gradient,
)

__all__ = ["RESET_BEFORE_GRU", "ResetBeforeGRUParams"]


class ResetBeforeGRUParams(NamedTuple):
    """Weights of `RESET_BEFORE_GRU`: ``w_ih [I, 3H]``, ``w_hh [H, 3H]``, ``b [3H]``.

    Gates r, z, n.
    """

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
    update_bias: float | Initializer = 0.0,
) -> ResetBeforeGRUParams:
    """Initial weights, each gate's block drawn on its own.

    ``update_bias``, a number or an initializer such as `jaxrnn.initializers.chrono`, is added to
    the part of ``b`` of the update gate z, which keeps the state.
    """
    w_ih, w_hh, b = draw_weights(
        *(key, input_size, hidden_size, 3),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
    )
    H = hidden_size
    b_z = gate_bias(update_bias, jax.random.fold_in(key, 4), H, b.dtype)
    return ResetBeforeGRUParams(w_ih, w_hh, b.at[H : 2 * H].add(b_z))


def expects(params: ResetBeforeGRUParams) -> Expects:
    axes = ("I 3H", "H 3H", "3H")
    sizes, like = sizes_of(params, ResetBeforeGRUParams, axes, owner="RESET_BEFORE_GRU")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=GRUState(h=h))


class ResetBeforeGRUGates(NamedTuple):
    """The activated gates ``r`` and ``n``, and of the update gate the pre-activation ``a_z``.

    z and 1 - z both follow from it and neither from the other. Each is ``[..., H]``.
    """

    r: jax.Array
    a_z: jax.Array
    n: jax.Array


def advance(
    params: ResetBeforeGRUParams, state: GRUState, inputs: GRUInputs, consts: None
) -> tuple[GRUState, ResetBeforeGRUGates]:
    """``h_t`` and the activated gates."""
    del consts
    h = state.h
    b_r, b_z, b_n = jnp.split(params.b, 3)
    u_rz, u_n = columns_apart(params.w_hh, 2 * h.shape[-1])
    h_r, h_z = jnp.split(h @ u_rz, 2, axis=-1)
    r = jax.nn.sigmoid(add_bias(inputs.r, b_r) + h_r)
    n = jnp.tanh(add_bias(inputs.n, b_n) + (r * h) @ u_n)
    a_z = add_bias(inputs.z, b_z) + h_z
    z, not_z = sigmoid_and_complement(a_z)
    return GRUState(h=not_z * n + z * h), ResetBeforeGRUGates(r=r, a_z=a_z, n=n)


class ResetBeforeGRUFactors(NamedTuple):
    """Local derivatives of one step, each ``[..., H]``.

    n = ∂h_t/∂a_n = (1 - z) (1 - n²)          r = ∂k/∂a_r = h_{t-1} r (1 - r)
    z = ∂h_t/∂a_z = (h_{t-1} - n) z (1 - z)   k = ∂k/∂h_{t-1} = r
    h = z, the derivative of h_t by h_{t-1} on the direct path
    """

    r: jax.Array
    z: jax.Array
    n: jax.Array
    k: jax.Array
    h: jax.Array


def linearize(
    params: ResetBeforeGRUParams,
    inputs: GRUInputs,
    before: GRUState,
    after: GRUState,
    gates: ResetBeforeGRUGates,
    consts: None,
) -> ResetBeforeGRUFactors:
    """The local derivatives of each step."""
    del params, inputs, after, consts
    r, a_z, n = gates
    z, not_z = sigmoid_and_complement(a_z)
    return ResetBeforeGRUFactors(
        r=before.h * r * (1 - r),
        z=(before.h - n) * z * not_z,
        n=not_z * (1 - n * n),
        k=r,
        h=z,
    )


class ResetBeforeGRUDeltas(NamedTuple):
    """Adjoints of the pre-activations: ``da_rz [..., 2H]`` and ``da_n [..., H]``."""

    da_rz: jax.Array
    da_n: jax.Array


def pull(
    params: ResetBeforeGRUParams, dstate: GRUState, factors: ResetBeforeGRUFactors, consts: None
) -> tuple[GRUState, ResetBeforeGRUDeltas]:
    """``dh_{t-1}``, ``da_r``, ``da_z`` and ``da_n`` from ``dh_t``."""
    del consts
    dh = dstate.h
    u_rz, u_n = columns_apart(params.w_hh, 2 * dh.shape[-1])
    da_n = dh * factors.n
    dk = input_gradient(da_n, u_n)
    da_rz = jnp.concatenate([dk * factors.r, dh * factors.z], axis=-1)
    dh_before = input_gradient(da_rz, u_rz) + dk * factors.k + dh * factors.h
    return GRUState(h=dh_before), ResetBeforeGRUDeltas(da_rz=da_rz, da_n=da_n)


def gradients(
    params: ResetBeforeGRUParams,
    xs: jax.Array,
    before: GRUState,
    after: GRUState,
    gates: ResetBeforeGRUGates,
    deltas: ResetBeforeGRUDeltas,
    consts: None,
) -> tuple[ResetBeforeGRUParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, and ``dx_t`` of every step."""
    del after, consts
    da = jnp.concatenate(deltas, axis=-1)
    u_rz, u_n = columns_apart(params.w_hh, 2 * before.h.shape[-1])
    du_rz = weight_gradient(before.h, deltas.da_rz, u_rz)
    du_n = weight_gradient(gates.r * before.h, deltas.da_n, u_n)
    dparams = ResetBeforeGRUParams(
        w_ih=weight_gradient(xs, da),
        w_hh=columns_gradient(params.w_hh, du_rz, du_n),
        b=bias_gradient(da),
    )
    return dparams, input_gradient(da, params.w_ih), None


def slopes(after: GRUState, gates: ResetBeforeGRUGates) -> GRUSlopes:
    del after
    r, a_z, n = gates
    z, not_z = sigmoid_and_complement(a_z)
    return GRUSlopes(r=4 * r * (1 - r), z=4 * z * not_z, n=1 - n * n)


RESET_BEFORE_GRU = Cell(
    name="RESET_BEFORE_GRU",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project_at_once, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    pull=pull,
    gradients=gradients,
    slopes=slopes,
    recurrent=recurrent,
    doc=documentation(__doc__, ResetBeforeGRUParams, GRUState),
)
"""The gated recurrent unit of the paper: `ResetBeforeGRUParams`, `GRUState`."""
