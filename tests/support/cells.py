"""Cells as a user of the library would write them.

`MASKED_ELMAN` reads arrays through ``consts``; `MGU` is new from the equations on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import ELMAN, ElmanState
from jaxrnn.products import (
    accumulation_dtype,
    affine,
    bias_gradient,
    input_gradient,
    weight_gradient,
)


def project(params, xs, consts):
    return ELMAN.project(params, xs, None)


def advance(params, state, inputs, consts):
    """h_t = tanh(a_t + (mask * h_{t-1}) W_hh), one mask for the whole sequence."""
    kept = jnp.broadcast_to(consts["mask"], state.h.shape) * state.h
    return ElmanState(h=jnp.tanh(inputs + kept @ params.w_hh)), ()


def step(params, state, x, consts):
    state, _ = advance(params, state, project(params, x, consts), consts)
    return state, state.h


def pull(params, dstate, slope, consts):
    da = dstate.h * slope
    du = da @ params.w_hh.T
    return ElmanState(h=consts["mask"] * du), (da, du)


def contract(params, xs, before, gates, deltas, consts):
    da, du = deltas
    mask = jnp.broadcast_to(consts["mask"], before.h.shape)
    dparams, dxs, _ = ELMAN.contract(params, xs, ElmanState(h=mask * before.h), gates, da, None)
    dmask = jnp.sum(du * before.h, axis=0, dtype=accumulation_dtype(du.dtype))
    return dparams, dxs, {"mask": dmask, "name": None}


MASKED_ELMAN = jaxrnn.Cell(
    name="MASKED_ELMAN",
    init=ELMAN.init,
    initial_state=ELMAN.initial_state,
    step=step,
    sizes=ELMAN.sizes,
    project=project,
    advance=advance,
    linearize=ELMAN.linearize,
    pull=pull,
    contract=contract,
    takes_consts=True,
)
"""Elman with dropout on the recurrent connection: ``consts = {"mask": [..., H], "name": int}``."""


# The minimal gated unit (G.-B. Zhou et al., "Minimal gated unit for recurrent neural networks",
# 2016), whose one gate f both forgets and updates:
#
#     f   = sigmoid(x W_f + h U_f + b_f)
#     n   = tanh(x W_n + (f * h) U_n + b_n)
#     h'  = (1 - f) * h + f * n
#
# and its adjoint, for dh' the whole gradient of the loss with respect to h':
#
#     da_n = dh' * f * (1 - n^2)
#     dk   = da_n U_n^T                                            of what is kept, k = f * h
#     da_f = (dh' * (n - h) + dk * h) * f * (1 - f)
#     dh   = dh' * (1 - f) + dk * f + da_f U_f^T
#     dU_n = sum_t k^T da_n,   and all else as for two affine maps of x and h


class MGUParams(NamedTuple):
    w_f: jax.Array
    u_f: jax.Array
    b_f: jax.Array
    w_n: jax.Array
    u_n: jax.Array
    b_n: jax.Array


class MGUState(NamedTuple):
    h: jax.Array


class MGUGates(NamedTuple):
    f: jax.Array
    n: jax.Array


class MGUFactors(NamedTuple):
    """Local derivatives: ``n``, ``f`` of h' by a_n, a_f; ``k`` of k by a_f, ``keep`` of k by h."""

    n: jax.Array
    f: jax.Array
    k: jax.Array
    keep: jax.Array


def mgu_init(key, input_size, hidden_size, *, dtype=jnp.float32):
    def weight(key, rows):
        return jax.random.normal(key, (rows, hidden_size), dtype) / rows**0.5

    keys = jax.random.split(key, 4)
    b = jnp.zeros((hidden_size,), dtype)
    return MGUParams(
        w_f=weight(keys[0], input_size),
        u_f=weight(keys[1], hidden_size),
        b_f=b,
        w_n=weight(keys[2], input_size),
        u_n=weight(keys[3], hidden_size),
        b_n=b,
    )


def mgu_initial_state(params, batch_shape=()):
    return MGUState(h=jnp.zeros((*batch_shape, params.u_f.shape[0]), params.u_f.dtype))


def mgu_project(params, xs, consts):
    return affine(xs, params.w_f, params.b_f), affine(xs, params.w_n, params.b_n)


def mgu_advance(params, state, inputs, consts):
    x_f, x_n = inputs
    f = jax.nn.sigmoid(x_f + state.h @ params.u_f)
    n = jnp.tanh(x_n + (f * state.h) @ params.u_n)
    return MGUState(h=(1 - f) * state.h + f * n), MGUGates(f=f, n=n)


def mgu_step(params, state, x, consts=None):
    state, _ = mgu_advance(params, state, mgu_project(params, x, consts), consts)
    return state, state.h


def mgu_linearize(params, before, after, gates, consts):
    f, n = gates
    slope = f * (1 - f)
    return MGUFactors(n=f * (1 - n * n), f=(n - before.h) * slope, k=before.h * slope, keep=f)


def mgu_pull(params, dstate, factors, consts):
    da_n = dstate.h * factors.n
    dk = input_gradient(da_n, params.u_n)
    da_f = dstate.h * factors.f + dk * factors.k
    direct = dstate.h * (1 - factors.keep)
    dh = direct + dk * factors.keep + input_gradient(da_f, params.u_f)
    return MGUState(h=dh), MGUGates(f=da_f, n=da_n)


def mgu_contract(params, xs, before, gates, deltas, consts):
    dparams = MGUParams(
        w_f=weight_gradient(xs, deltas.f),
        u_f=weight_gradient(before.h, deltas.f),
        b_f=bias_gradient(deltas.f),
        w_n=weight_gradient(xs, deltas.n),
        u_n=weight_gradient(gates.f * before.h, deltas.n),
        b_n=bias_gradient(deltas.n),
    )
    dxs = input_gradient(deltas.f, params.w_f) + input_gradient(deltas.n, params.w_n)
    return dparams, dxs, None


MGU = jaxrnn.Cell(
    name="MGU",
    init=mgu_init,
    initial_state=mgu_initial_state,
    step=mgu_step,
    sizes=lambda params: params.w_f.shape,
    project=mgu_project,
    advance=mgu_advance,
    linearize=mgu_linearize,
    pull=mgu_pull,
    contract=mgu_contract,
)
