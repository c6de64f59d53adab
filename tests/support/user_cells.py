"""Cells and wrappers as a user writes them from the documentation alone, each in forty lines.

A long short-term memory with a projected output, a leaky rate network with noise at every step,
zoneout and recurrent dropout around any cell.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import LSTM, LSTMParams, LSTMState
from jaxrnn.cells import Expects, drawn_of, zero_state
from jaxrnn.products import input_gradient, weight_gradient


class ProjectedParams(NamedTuple):
    """``lstm`` with ``w_hh [P, 4H]``, and ``w_hr [H, P]``."""

    lstm: LSTMParams
    w_hr: jax.Array


def projected_expects(params):
    (H, P), I, dtype = params.w_hr.shape, params.lstm.w_ih.shape[0], params.w_hr.dtype

    def of(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    lstm = LSTMParams(w_ih=of(I, 4 * H), w_hh=of(P, 4 * H), b=of(4 * H))
    state = LSTMState(h=of(P), c=of(H))
    return Expects(params=ProjectedParams(lstm=lstm, w_hr=of(H, P)), x=of(I), state=state)


def projected_advance(params, state, inputs, consts):
    """h_t = (o * tanh(c_t)) W_hr."""
    (m, c), gates = LSTM.advance(params.lstm, state, inputs, consts)
    return LSTMState(h=m @ params.w_hr, c=c), gates


def projected_pull(params, dstate, factors, consts):
    dm = input_gradient(dstate.h, params.w_hr)
    dbefore, da = LSTM.pull(params.lstm, LSTMState(h=dm, c=dstate.c), factors, consts)
    return dbefore, (da, dstate.h)


def projected_gradients(params, xs, before, after, gates, deltas, consts):
    da, dh = deltas
    dlstm, dxs, _ = LSTM.gradients(params.lstm, xs, before, after, gates, da, consts)
    m = gates.o * jnp.tanh(after.c)
    return ProjectedParams(lstm=dlstm, w_hr=weight_gradient(m, dh)), dxs, None


PROJECTED_LSTM = LSTM._replace(
    name="PROJECTED_LSTM",
    init=None,
    initial_state=lambda params, batch=(): zero_state(projected_expects(params), batch),
    step=lambda params, state, x, consts=None: (
        (after := projected_advance(params, state, x @ params.lstm.w_ih, None)[0]),
        after.h,
    ),
    expects=projected_expects,
    project=lambda params, xs, consts: LSTM.project(params.lstm, xs, consts),
    advance=projected_advance,
    pull=projected_pull,
    gradients=projected_gradients,
    recurrent=None,
)


LEAK, NOISE = 0.2, 0.1


def rate_step(params, v, x):
    """v' = (1 - a) v + a (tanh(v) W + x U + b) + noise, with output tanh(v')."""
    x, noise = drawn_of(x)
    drive = jnp.tanh(v) @ params["w"] + x @ params["u"] + jnp.broadcast_to(params["b"], v.shape)
    v = (1 - LEAK) * v + LEAK * drive
    if noise is not None:
        v = v + NOISE * noise
    return v, jnp.tanh(v)


def rate_initial_state(params, batch_shape=()):
    return jnp.broadcast_to(params["b"], (*batch_shape, *params["b"].shape))


def rate_draw(key, params, T, batch_shape):
    b = params["b"]
    return None, jax.random.normal(key, (T, *batch_shape, *b.shape), b.dtype)


NOISY_RATE = jaxrnn.cell_from_step(
    rate_step, initial_state=rate_initial_state, name="NOISY_RATE"
)._replace(draw=rate_draw)


@functools.cache
def zoneout(cell, rate):
    """Each unit keeps its state with probability ``rate``, at every step anew; else on average."""

    def draw(key, params, T, batch_shape):
        like = cell.expects(params).state
        shape = (T, *batch_shape, *like.h.shape)
        return None, jax.random.bernoulli(key, rate, shape).astype(like.h.dtype)

    def mixed(kept, before, after):
        share = rate if kept is None else kept
        return jax.tree.map(lambda b, a: share * b + (1 - share) * a, before, after)

    def project(params, xs, consts):
        given, kept = drawn_of(xs)
        return cell.project(params, given, None), kept

    def advance(params, before, inputs, consts):
        after, gates = cell.advance(params, before, inputs[0], None)
        return mixed(inputs[1], before, after), (after, gates)

    def step(params, state, x, consts=None):
        after, _ = advance(params, state, project(params, x, None), None)
        return after, after.h

    def linearize(params, inputs, before, after, gates, consts):
        return cell.linearize(params, inputs[0], before, *gates, None), inputs[1]

    def pull(params, dafter, factors, consts):
        zeros = jax.tree.map(jnp.zeros_like, dafter)
        to_inner, to_before = mixed(factors[1], zeros, dafter), mixed(factors[1], dafter, zeros)
        dbefore, deltas = cell.pull(params, to_inner, factors[0], None)
        return jax.tree.map(jnp.add, dbefore, to_before), deltas

    def gradients(params, xs, before, after, gates, deltas, consts):
        return cell.gradients(params, drawn_of(xs).given, before, *gates, deltas, None)

    return cell._replace(
        name=f"{cell.name} with zoneout", draw=draw, project=project, advance=advance, step=step,
        linearize=linearize, arrange=None, pull=pull, gradients=gradients, slopes=None,
    )  # fmt: skip


@functools.cache
def recurrent_dropout(cell, rate):
    """What the products read of ``h`` is masked, with one mask for the whole sequence."""

    def draw(key, params, T, batch_shape):
        like = cell.expects(params).state.h
        kept = jax.random.bernoulli(key, 1 - rate, (*batch_shape, *like.shape))
        return kept.astype(like.dtype) / (1 - rate), None

    def masked(consts, state):
        mask = drawn_of(consts).drawn
        if mask is None:
            return state
        return state._replace(h=jnp.broadcast_to(mask, state.h.shape) * state.h)

    def project(params, xs, consts):
        return cell.project(params, drawn_of(xs).given, None)

    def advance(params, before, inputs, consts):
        return cell.advance(params, masked(consts, before), inputs, None)

    def step(params, state, x, consts=None):
        after, _ = advance(params, state, project(params, x, consts), consts)
        return after, after.h

    def linearize(params, inputs, before, after, gates, consts):
        return cell.linearize(params, inputs, masked(consts, before), after, gates, None)

    def pull(params, dafter, factors, consts):
        dbefore, deltas = cell.pull(params, dafter, factors, None)
        return masked(consts, dbefore), deltas

    def gradients(params, xs, before, after, gates, deltas, consts):
        given = drawn_of(xs).given
        return cell.gradients(params, given, masked(consts, before), after, gates, deltas, None)

    return cell._replace(
        name=f"{cell.name} with recurrent dropout", draw=draw, consts_rows=lambda consts: True,
        project=project, advance=advance, step=step, linearize=linearize, pull=pull,
        gradients=gradients,
    )  # fmt: skip
