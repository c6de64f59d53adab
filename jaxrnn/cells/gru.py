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

from jaxrnn.activations import in_one_piece
from jaxrnn.cells.contract import Cell
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, per_gate, zeros
from jaxrnn.products import (
    Product,
    add_bias,
    bias_gradient,
    input_gradient,
    step_product,
    weight_gradient,
)
from jaxrnn.validation import batch_shape_of, floating_dtype, size, step_arguments

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
) -> GRUParams:
    """Initial weights, each gate's block drawn on its own."""
    I, H = size("input_size", input_size), size("hidden_size", hidden_size)
    dtype = floating_dtype("dtype", dtype)
    k_ih, k_hh, k_b, k_hn = jax.random.split(key, 4)
    return GRUParams(
        w_ih=per_gate(input_init, 3)(k_ih, (I, 3 * H), dtype),
        w_hh=per_gate(recurrent_init, 3)(k_hh, (H, 3 * H), dtype),
        b=per_gate(bias_init, 3)(k_b, (3 * H,), dtype),
        b_hn=bias_init(k_hn, (H,), dtype),
    )


def sizes(params: GRUParams) -> tuple[int, int]:
    return params.w_ih.shape[0], params.w_hh.shape[0]


class GRUState(NamedTuple):
    """State of `GRU`: the hidden state ``h [..., H]``."""

    h: jax.Array


def initial_state(params: GRUParams, batch_shape: tuple[int, ...] = ()) -> GRUState:
    """The zero state of rows of that batch shape, a tuple of ints."""
    batch_shape = batch_shape_of(batch_shape)
    H = params.w_hh.shape[0]
    return GRUState(h=jnp.zeros((*batch_shape, H), params.w_hh.dtype))


class GRUGates(NamedTuple):
    """The activated gates and the candidate's recurrent product ``q``, each ``[..., H]``."""

    r: jax.Array
    z: jax.Array
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
    del consts
    # three products, for the parts of one would be copied apart; the biases cost nothing in a step
    return GRUInputs(*(xs @ w for w in jnp.split(params.w_ih, 3, axis=-1)))


def advance(
    params: GRUParams,
    state: GRUState,
    inputs: GRUInputs,
    consts: None,
    product: Product = step_product,
) -> tuple[GRUState, GRUGates]:
    del consts
    b_r, b_z, b_n = jnp.split(params.b, 3)
    u_r, u_z, u_n = jnp.split(product(state.h, params.w_hh), 3, axis=-1)
    r = jax.nn.sigmoid(add_bias(inputs.r, b_r) + u_r)
    z = jax.nn.sigmoid(add_bias(inputs.z, b_z) + u_z)
    q = add_bias(u_n, params.b_hn)
    n = jnp.tanh(add_bias(inputs.n, b_n) + r * q)
    return GRUState(h=(1 - z) * n + z * state.h), GRUGates(r=r, z=z, n=n, q=q)


def step(
    params: GRUParams, state: GRUState, x: jax.Array, consts: None = None
) -> tuple[GRUState, jax.Array]:
    """One step: ``x [..., I]``, state ``[..., H]`` -> (state, h)."""
    state, x = step_arguments(params, state, x, params_type=GRUParams, state_type=GRUState)
    # one product, for a call by itself pays for each; and the layout that `step_product` wants of a
    # large weight is the engine's to make
    inputs = GRUInputs(*jnp.split(x @ params.w_ih, 3, axis=-1))
    state, _ = advance(params, state, inputs, consts, jnp.matmul)
    return state, state.h


class GRUFactors(NamedTuple):
    """Local derivatives of one step, each ``[..., H]``.

    ``r z n`` are the derivatives of h_t by the pre-activations a_r, a_z, a_n, ``q`` that by q, and
    ``h`` the derivative of h_t by h_{t-1} on the direct path: the update gate.
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
    params: GRUParams, before: GRUState, after: GRUState, gates: GRUGates, consts: None
) -> GRUFactors:
    del params, after, consts
    r, z, n, q = gates
    h_n = (1 - z) * (1 - n * n)
    return GRUFactors(
        r=h_n * q * r * (1 - r), z=(before.h - n) * z * (1 - z), n=h_n, q=h_n * r, h=z
    )


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
    del consts
    dh = dstate.h
    du = in_one_piece(jnp.concatenate([dh, dh, dh], axis=-1) * factors.u)
    dh_before = input_gradient(du, params.w_hh) + dh * factors.h
    return GRUState(h=dh_before), GRUDeltas(du=du, da_n=dh * factors.n)


def contract(
    params: GRUParams,
    xs: jax.Array,
    before: GRUState,
    gates: GRUGates,
    deltas: GRUDeltas,
    consts: None,
) -> tuple[GRUParams, jax.Array, None]:
    del gates, consts
    H = before.h.shape[-1]
    da, du = deltas.da, deltas.du
    db_rz, db_hn = jnp.split(bias_gradient(du), [2 * H])
    dparams = GRUParams(
        w_ih=weight_gradient(xs, da),
        w_hh=weight_gradient(before.h, du),
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
    r, z, n, _ = gates
    return GRUSlopes(r=4 * r * (1 - r), z=4 * z * (1 - z), n=1 - n * n)


GRU = Cell(
    name="GRU",
    init=init,
    initial_state=initial_state,
    step=step,
    sizes=sizes,
    project=project,
    advance=advance,
    linearize=linearize,
    arrange=arrange,
    pull=pull,
    contract=contract,
    slopes=slopes,
)
"""The gated recurrent unit: `GRUParams`, `GRUState`."""
