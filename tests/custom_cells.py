"""A cell as a user of the library would write it, reading arrays through ``consts``."""

import jax.numpy as jnp

import jaxrnn
from jaxrnn import ELMAN, ElmanState
from jaxrnn.products import accumulation_dtype


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
