"""The minimal gated unit: a gated recurrent unit whose one gate both resets and updates.

    [a_f, a_n] = x_t W_ih + b                                gate blocks in this order
    f = sigmoid(a_f + h_{t-1} U_f)
    k = f * h_{t-1}                                          W_hh = [U_f, U_n]
    n = tanh(a_n + k U_n)
    h_t = (1 - f) * h_{t-1} + f * n

and its adjoint, for dh_t the whole gradient of the loss with respect to h_t. The gate acts through
the product with U_n, too, so a step back has two products as well, one after the other:

    da_n     = dh_t * f * (1 - n^2)
    dk       = da_n U_n^T
    da_f     = (dh_t * (n - h_{t-1}) + dk * h_{t-1}) * f * (1 - f)
    dh_{t-1} = da_f U_f^T + dk * f + dh_t * (1 - f)
    dW_ih = sum_t x_t^T [da_f, da_n],   db = sum_t [da_f, da_n]
    dW_hh = [sum_t h_{t-1}^T da_f,   sum_t k^T da_n]
    dx_t  = [da_f, da_n] W_ih^T

The paper calls f the forget gate: at 1 the state is replaced, at 0 it is kept. An LSTM's forget
gate is the other way round.

Reference: G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou, "Minimal gated unit for recurrent neural
networks", 2016.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import sigmoid_and_complement
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import draw_weights, gate_bias, one_step, zero_start
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

__all__ = ["MGU", "MGUParams", "MGUState"]


class MGUParams(NamedTuple):
    """Weights of `MGU`: ``w_ih [I, 2H]``, ``w_hh [H, 2H]``, ``b [2H]``; gates f, n."""

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
    keep_bias: float | Initializer = 0.0,
) -> MGUParams:
    """Initial weights, each gate's block drawn on its own.

    ``keep_bias``, a number or an initializer such as `jaxrnn.initializers.chrono`, is subtracted
    from the gate's part of ``b``, because 1 - f keeps the state.
    """
    w_ih, w_hh, b = draw_weights(
        *(key, input_size, hidden_size, 2),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
    )
    b_keep = gate_bias(keep_bias, jax.random.fold_in(key, 3), hidden_size, b.dtype)
    return MGUParams(w_ih, w_hh, b.at[:hidden_size].add(-b_keep))


class MGUState(NamedTuple):
    """State of `MGU`: the hidden state ``h [..., H]``."""

    h: jax.Array


def expects(params: MGUParams) -> Expects:
    sizes, like = sizes_of(params, MGUParams, ("I 2H", "H 2H", "2H"), owner="MGU")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=MGUState(h=h))


class MGUGates(NamedTuple):
    """The gate's pre-activation ``a_f`` and the candidate ``n``, each ``[..., H]``.

    f and 1 - f both follow from ``a_f`` and neither from the other.
    """

    a_f: jax.Array
    n: jax.Array


class MGUInputs(NamedTuple):
    """The products of the input with the weights of the gate and the candidate, ``[..., H]``."""

    f: jax.Array
    n: jax.Array


def project(params: MGUParams, xs: jax.Array, consts: None) -> MGUInputs:
    """The input's part of the pre-activations, each ``[K, ..., H]``."""
    del consts
    # two products, because the parts of one would be copied apart
    return MGUInputs(*(xs @ w for w in jnp.split(params.w_ih, 2, axis=-1)))


def advance(
    params: MGUParams, state: MGUState, inputs: MGUInputs, consts: None
) -> tuple[MGUState, MGUGates]:
    """``h_t``, the gate's pre-activation and the candidate."""
    del consts
    h = state.h
    # in a step the biases cost nothing, in bulk they would take another turn over all inputs
    b_f, b_n = jnp.split(params.b, 2)
    u_f, u_n = columns_apart(params.w_hh, h.shape[-1])
    a_f = add_bias(inputs.f, b_f) + h @ u_f
    f, not_f = sigmoid_and_complement(a_f)
    n = jnp.tanh(add_bias(inputs.n, b_n) + (f * h) @ u_n)
    return MGUState(h=not_f * h + f * n), MGUGates(a_f=a_f, n=n)


class MGUFactors(NamedTuple):
    """Local derivatives of one step, each ``[..., H]``.

    n = ∂h_t/∂a_n = f (1 - n²)
    f = ∂h_t/∂a_f at fixed k = (n - h_{t-1}) f (1 - f)
    k_f = ∂k/∂a_f = h_{t-1} f (1 - f)         k_h = ∂k/∂h_{t-1} = f
    h = 1 - f, the derivative of h_t by h_{t-1} on the direct path
    """

    n: jax.Array
    f: jax.Array
    k_f: jax.Array
    k_h: jax.Array
    h: jax.Array


def linearize(
    params: MGUParams,
    inputs: MGUInputs,
    before: MGUState,
    after: MGUState,
    gates: MGUGates,
    consts: None,
) -> MGUFactors:
    """The local derivatives of each step."""
    del params, inputs, after, consts
    a_f, n = gates
    f, not_f = sigmoid_and_complement(a_f)
    slope = f * not_f
    return MGUFactors(
        n=f * (1 - n * n), f=(n - before.h) * slope, k_f=before.h * slope, k_h=f, h=not_f
    )


class MGUDeltas(NamedTuple):
    """Adjoints of the pre-activations: ``da_f`` and ``da_n``, each ``[..., H]``."""

    da_f: jax.Array
    da_n: jax.Array


def pull(
    params: MGUParams, dstate: MGUState, factors: MGUFactors, consts: None
) -> tuple[MGUState, MGUDeltas]:
    """``dh_{t-1}``, ``da_f`` and ``da_n`` from ``dh_t``."""
    del consts
    dh = dstate.h
    u_f, u_n = columns_apart(params.w_hh, dh.shape[-1])
    da_n = dh * factors.n
    dk = input_gradient(da_n, u_n)
    da_f = dh * factors.f + dk * factors.k_f
    dh_before = input_gradient(da_f, u_f) + dk * factors.k_h + dh * factors.h
    return MGUState(h=dh_before), MGUDeltas(da_f=da_f, da_n=da_n)


def gradients(
    params: MGUParams,
    xs: jax.Array,
    before: MGUState,
    after: MGUState,
    gates: MGUGates,
    deltas: MGUDeltas,
    consts: None,
) -> tuple[MGUParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, and ``dx_t`` of every step."""
    del after, consts
    f, _ = sigmoid_and_complement(gates.a_f)
    da = jnp.concatenate(deltas, axis=-1)
    u_f, u_n = columns_apart(params.w_hh, f.shape[-1])
    du_f = weight_gradient(before.h, deltas.da_f, u_f)
    du_n = weight_gradient(f * before.h, deltas.da_n, u_n)
    dparams = MGUParams(
        w_ih=weight_gradient(xs, da),
        w_hh=columns_gradient(params.w_hh, du_f, du_n),
        b=bias_gradient(da),
    )
    return dparams, input_gradient(da, params.w_ih), None


class MGUSlopes(NamedTuple):
    """Derivatives of the activations, each ``[..., H]``, as a share of the steepest."""

    f: jax.Array
    n: jax.Array


def slopes(after: MGUState, gates: MGUGates) -> MGUSlopes:
    del after
    f, not_f = sigmoid_and_complement(gates.a_f)
    return MGUSlopes(f=4 * f * not_f, n=1 - gates.n * gates.n)


def recurrent(params: MGUParams) -> dict[str, jax.Array]:
    return dict(zip("fn", jnp.split(params.w_hh, 2, axis=-1), strict=True))


MGU = Cell(
    name="MGU",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    pull=pull,
    gradients=gradients,
    slopes=slopes,
    recurrent=recurrent,
    doc=documentation(__doc__, MGUParams, MGUState),
)
"""The minimal gated unit: `MGUParams`, `MGUState`."""
