"""The gated recurrent unit, reset applied after the recurrent product (PyTorch's, cuDNN's form).

    [a_r, a_z, a_n] = x_t W_ih + b                           gate blocks in this order
    [u_r, u_z, u_n] = h_{t-1} W_hh
    r = sigmoid(a_r + u_r);   z = sigmoid(a_z + u_z)
    q = u_n + b_hn
    n = tanh(a_n + r * q)
    h_t = (1 - z) * n + z * h_{t-1}

and its adjoint, for dh_t the whole gradient of the loss with respect to h_t. The candidate's
pre-activation reads the input directly and the recurrent product through r, so the deltas on the
input's side (da) and on the recurrent side (du) differ in their last block:

    da_n     = dh_t * (1 - z) * (1 - n^2)
    da_z     = dh_t * (h_{t-1} - n) * z * (1 - z)
    da_r     = da_n * q * r * (1 - r)
    du       = [da_r, da_z, dq]   with   dq = da_n * r
    dh_{t-1} = du W_hh^T + dh_t * z
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T du_t
    db    = sum_t da_t,         db_hn = sum_t dq_t
    dx_t  = da_t W_ih^T

Reference: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
statistical machine translation", 2014, in the variant whose reset follows the product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import in_one_piece, sigmoid_and_complement
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import draw_weights, gate_bias, one_step, zero_start
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import add_bias, bias_gradient, input_gradient, weight_gradient

__all__ = ["GRU", "GRUParams", "GRUState"]


class GRUParams(NamedTuple):
    """Weights of `GRU`: ``w_ih [I, 3H]``, ``w_hh [H, 3H]``, ``b [3H]``, ``b_hn [H]``.

    Gates r, z, n. Two biases on r and z would be one parameter twice, so only the candidate has a
    second one, ``b_hn``, inside the reset.
    """

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array
    b_hn: jax.Array


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
) -> GRUParams:
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
    return GRUParams(
        w_ih=w_ih,
        w_hh=w_hh,
        b=b.at[H : 2 * H].add(b_z),
        b_hn=bias_init(jax.random.split(key, 4)[3], (H,), b.dtype),
    )


class GRUState(NamedTuple):
    """State of `GRU`: the hidden state ``h [..., H]``."""

    h: jax.Array


def expects(params: GRUParams) -> Expects:
    sizes, like = sizes_of(params, GRUParams, ("I 3H", "H 3H", "3H", "H"), owner="GRU")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=GRUState(h=h))


class GRUGates(NamedTuple):
    """The activated gates ``r`` and ``n``, and the candidate's recurrent product ``q``.

    Of the update gate the pre-activation ``a_z``, because z and 1 - z both follow from it and
    neither from the other: 1 - z would be lost where z is next to 1. Each is ``[..., H]``.
    """

    r: jax.Array
    a_z: jax.Array
    n: jax.Array
    q: jax.Array


class GRUInputs(NamedTuple):
    """The products of the input with the weights of each gate, each ``[..., H]``.

    Three arrays: XLA:CPU does not vectorise a step that reads one array of them at three places.
    """

    r: jax.Array
    z: jax.Array
    n: jax.Array


def project(params: GRUParams, xs: jax.Array, consts: None) -> GRUInputs:
    """The input's part of the pre-activations, each ``[K, ..., H]``."""
    del consts
    # three products, because the parts of one would be copied apart
    return GRUInputs(*(xs @ w for w in jnp.split(params.w_ih, 3, axis=-1)))


def advance(
    params: GRUParams, state: GRUState, inputs: GRUInputs, consts: None
) -> tuple[GRUState, GRUGates]:
    """``h_t`` and the activated gates."""
    del consts
    # in a step the biases cost nothing, in bulk they would take another turn over all inputs
    b_r, b_z, b_n = jnp.split(params.b, 3)
    u_r, u_z, u_n = jnp.split(state.h @ params.w_hh, 3, axis=-1)
    r = jax.nn.sigmoid(add_bias(inputs.r, b_r) + u_r)
    a_z = add_bias(inputs.z, b_z) + u_z
    z, not_z = sigmoid_and_complement(a_z)
    q = add_bias(u_n, params.b_hn)
    n = jnp.tanh(add_bias(inputs.n, b_n) + r * q)
    return GRUState(h=not_z * n + z * state.h), GRUGates(r=r, a_z=a_z, n=n, q=q)


def project_at_once(params: GRUParams, x: jax.Array, consts: None) -> GRUInputs:
    """`project` by one product, because a step by itself pays for each."""
    del consts
    return GRUInputs(*jnp.split(x @ params.w_ih, 3, axis=-1))


class GRUFactors(NamedTuple):
    """Local derivatives of ``h_t``, each ``[..., H]``.

    n = ∂h_t/∂a_n = (1 - z) (1 - n²)          q = ∂h_t/∂q = n_factor r
    z = ∂h_t/∂a_z = (h_{t-1} - n) z (1 - z)   r = ∂h_t/∂a_r = n_factor q r (1 - r)
    h = z, that by h_{t-1} on the direct path; n_factor is the first of these
    """

    r: jax.Array
    z: jax.Array
    n: jax.Array
    q: jax.Array
    h: jax.Array

    @property
    def u(self) -> jax.Array:
        """``[r, z, q]`` side by side, ``[..., 3H]``: the derivatives by the recurrent products."""
        return jnp.concatenate([self.r, self.z, self.q], axis=-1)


class GRUArranged(NamedTuple):
    """The same as `pull` reads them: one array for all products is one dense loop over it."""

    u: jax.Array
    n: jax.Array
    h: jax.Array


def arrange(factors: GRUFactors) -> GRUArranged:
    return GRUArranged(u=factors.u, n=factors.n, h=factors.h)


def linearize(
    params: GRUParams,
    inputs: GRUInputs,
    before: GRUState,
    after: GRUState,
    gates: GRUGates,
    consts: None,
) -> GRUFactors:
    """The local derivatives of each step."""
    del params, inputs, after, consts
    r, a_z, n, q = gates
    z, not_z = sigmoid_and_complement(a_z)
    h_n = not_z * (1 - n * n)
    return GRUFactors(r=h_n * q * r * (1 - r), z=(before.h - n) * z * not_z, n=h_n, q=h_n * r, h=z)


class GRUDeltas(NamedTuple):
    """Adjoints of the pre-activations: ``du [..., 3H]`` and ``da_n [..., H]``.

    ``du`` is on the side of the recurrent product, gates r, z, q; ``da [..., 3H]``, on the input's
    side, has gates r, z, n.
    """

    du: jax.Array
    da_n: jax.Array

    @property
    def da(self) -> jax.Array:
        H = self.da_n.shape[-1]
        return jnp.concatenate([self.du[..., : 2 * H], self.da_n], axis=-1)


def pull(
    params: GRUParams, dstate: GRUState, factors: GRUFactors | GRUArranged, consts: None
) -> tuple[GRUState, GRUDeltas]:
    """``dh_{t-1}``, ``du_t`` and ``da_n`` from ``dh_t``."""
    del consts
    dh = dstate.h
    du = in_one_piece(jnp.concatenate([dh, dh, dh], axis=-1) * factors.u)
    dh_before = input_gradient(du, params.w_hh) + dh * factors.h
    return GRUState(h=dh_before), GRUDeltas(du=du, da_n=dh * factors.n)


def gradients(
    params: GRUParams,
    xs: jax.Array,
    before: GRUState,
    after: GRUState,
    gates: GRUGates,
    deltas: GRUDeltas,
    consts: None,
) -> tuple[GRUParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, ``db_hn``, and ``dx_t`` of every step."""
    del after, gates, consts
    H = before.h.shape[-1]
    da, du = deltas.da, deltas.du
    db_rz, db_hn = jnp.split(bias_gradient(du), [2 * H])
    dparams = GRUParams(
        w_ih=weight_gradient(xs, da),
        w_hh=weight_gradient(before.h, du, params.w_hh),
        b=jnp.concatenate([db_rz, bias_gradient(deltas.da_n)]),
        b_hn=db_hn,
    )
    return dparams, input_gradient(da, params.w_ih), None


class GRUSlopes(NamedTuple):
    """Derivatives of the gates' activations, each ``[..., H]``, as a share of the steepest."""

    r: jax.Array
    z: jax.Array
    n: jax.Array


def slopes(after: GRUState, gates: GRUGates) -> GRUSlopes:
    del after
    r, a_z, n, _ = gates
    z, not_z = sigmoid_and_complement(a_z)
    return GRUSlopes(r=4 * r * (1 - r), z=4 * z * not_z, n=1 - n * n)


def recurrent(params: GRUParams) -> dict[str, jax.Array]:
    return dict(zip("rzn", jnp.split(params.w_hh, 3, axis=-1), strict=True))


GRU = Cell(
    name="GRU",
    init=init,
    initial_state=zero_start(expects),
    step=one_step(expects, project_at_once, advance),
    expects=expects,
    project=project,
    advance=advance,
    linearize=linearize,
    arrange=arrange,
    pull=pull,
    gradients=gradients,
    slopes=slopes,
    recurrent=recurrent,
    doc=documentation(__doc__, GRUParams, GRUState),
)
"""The gated recurrent unit: `GRUParams`, `GRUState`."""
