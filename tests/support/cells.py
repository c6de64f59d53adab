"""Cells as a user of the library writes them.

- `MASKED_ELMAN` reads arrays through ``consts`` and reuses the pieces of `jaxrnn.ELMAN`.
- `MGU` is new from the equations on.
- `RATE` has all that a cell may have: several inputs, integers, an output that is a function of the
  state, a start that is learned, consts and drawn arrays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import ELMAN, Cell, ElmanState
from jaxrnn.cells import Drawn, Expects, Same, drawn_of, sizes_of, vector, zero_state
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.products import affine, bias_gradient, input_gradient, weight_gradient

# Elman with dropout on the recurrent connection, the same mask m at every step (Y. Gal and
# Z. Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
# 2016):
#
#     k = m * h
#     h' = tanh(x W_ih + k W_hh + b)
#
# and its adjoint, for dh' the whole gradient of the loss with respect to h':
#
#     da = dh' * (1 - h'^2)
#     dk = da W_hh^T
#     dh = m * dk,   dm = sum_t h * dk,   and all else as for Elman, with k in the place of h


def kept(state, consts):
    """k. The mask may lack the axis of steps that the state has in bulk."""
    return ElmanState(h=jnp.broadcast_to(consts["mask"], state.h.shape) * state.h)


def project(params, xs, consts):
    return ELMAN.project(params, xs, None)


def advance(params, state, inputs, consts):
    return ELMAN.advance(params, kept(state, consts), inputs, None)


def step(params, state, x, consts):
    return ELMAN.step(params, kept(state, consts), x)


def pull(params, dstate, slope, consts):
    dkept, da = ELMAN.pull(params, dstate, slope, None)
    return kept(dkept, consts), (da, dkept.h)


def gradients(params, xs, before, after, gates, deltas, consts):
    da, dk = deltas
    dparams, dxs, _ = ELMAN.gradients(params, xs, kept(before, consts), after, gates, da, None)
    # time is the only axis that the mask does not have
    dmask = jnp.sum(before.h * dk, axis=0, dtype=accumulation_dtype(dk.dtype))
    return dparams, dxs, {"mask": dmask, "name": None}


MASKED_ELMAN = Cell(
    name="MASKED_ELMAN",
    init=ELMAN.init,
    initial_state=ELMAN.initial_state,
    step=step,
    expects=ELMAN.expects,
    project=project,
    advance=advance,
    linearize=ELMAN.linearize,
    pull=pull,
    gradients=gradients,
    consts_rows=lambda consts: {"mask": True, "name": False},
    recurrent=ELMAN.recurrent,
)
"""Elman with recurrent dropout: ``consts = {"mask": [..., H], "name": int}``."""


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
#     dk   = da_n U_n^T                                         of the kept state, k = f * h
#     da_f = (dh' * (n - h) + dk * h) * f * (1 - f)
#     dh   = dh' * (1 - f) + dk * f + da_f U_f^T
#     dU_n = sum_t k^T da_n,   and all else as for two affine maps of x and h


class MGUParams(NamedTuple):
    """``w_f, w_n [I, H]``, ``u_f, u_n [H, H]``, ``b_f, b_n [H]``."""

    w_f: jax.Array
    u_f: jax.Array
    b_f: jax.Array
    w_n: jax.Array
    u_n: jax.Array
    b_n: jax.Array


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


class MGUState(NamedTuple):
    """``h [..., H]``."""

    h: jax.Array


def mgu_expects(params):
    axes = ("I H", "H H", "H", "I H", "H H", "H")
    sizes, like = sizes_of(params, MGUParams, axes, owner="MGU")
    x, h = (vector(sizes[axis], like.b_f.dtype) for axis in "IH")
    return Expects(params=like, x=x, state=MGUState(h=h))


def mgu_initial_state(params, batch_shape=()):
    return zero_state(mgu_expects(params), batch_shape)


class MGUGates(NamedTuple):
    """The gate and the candidate ``[..., H]``; also the adjoints of their pre-activations."""

    f: jax.Array
    n: jax.Array


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


class MGUFactors(NamedTuple):
    """Local derivatives ``[..., H]``.

    n = ∂h'/∂a_n = f (1 - n²)          f = ∂h'/∂a_f at fixed k = (n - h) f (1 - f)
    k = ∂k/∂a_f = h f (1 - f)          keep = ∂k/∂h = f
    """

    n: jax.Array
    f: jax.Array
    k: jax.Array
    keep: jax.Array


def mgu_linearize(params, inputs, before, after, gates, consts):
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


def mgu_gradients(params, xs, before, after, gates, deltas, consts):
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


def mgu_slopes(after, gates):
    f, n = gates
    return MGUGates(f=4 * f * (1 - f), n=1 - n * n)


MGU = Cell(
    name="MGU",
    init=mgu_init,
    initial_state=mgu_initial_state,
    step=mgu_step,
    expects=mgu_expects,
    project=mgu_project,
    advance=mgu_advance,
    linearize=mgu_linearize,
    pull=mgu_pull,
    gradients=mgu_gradients,
    slopes=mgu_slopes,
    recurrent=lambda params: {"f": params.u_f, "n": params.u_n},
)
"""The minimal gated unit: `MGUParams`, `MGUState`."""


# A rate network that uses all of the contract: two inputs, one of them an integer; a state with a
# counter, and an output of another size that is a function of it; a start that is learned; a gain
# of the inputs as consts, and, with a key, a recurrent dropout mask m and noise at every step:
#
#     a  = on * (gain * x) W_ih + (m * r) W_hh + noise
#     r' = tanh(a),   n' = n + 1,   h = r' W_out
#
# and its adjoint, for dr' and dh the gradients that reach r' and h from their readers:
#
#     da = (dr' + dh W_out^T) * (1 - r'^2)
#     dk = da W_hh^T,   du = da W_ih^T * on                    of m * r, and of gain * x
#     dr = m * dk,   dx = gain * du,   dgain = sum_t x * du
#     dW_ih = sum_t (on * gain * x)^T da,   dW_hh = sum_t (m * r)^T da,   dW_out = sum_t r'^T dh


class RateParams(NamedTuple):
    """``w_ih [I, H]``, ``w_hh [H, H]``, ``w_out [H, O]``, ``start [H]``."""

    w_ih: jax.Array
    w_hh: jax.Array
    w_out: jax.Array
    start: jax.Array


class RateInput(NamedTuple):
    """``x [..., I]``, and ``on [..., 1]``, an integer 0 or 1."""

    x: jax.Array
    on: jax.Array


class RateState(NamedTuple):
    """The rates ``r [..., H]`` and the number of steps ``n [..., 1]``, an integer."""

    r: jax.Array
    n: jax.Array


def rate_expects(params):
    axes = ("I H", "H H", "H O", "H")
    sizes, like = sizes_of(params, RateParams, axes, owner="RATE")
    count = jax.ShapeDtypeStruct((1,), jnp.int32)
    x, r = (vector(sizes[axis], like.start.dtype) for axis in "IH")
    return Expects(params=like, x=RateInput(x=x, on=count), state=RateState(r=r, n=count))


def rate_initial_state(params, batch_shape=()):
    zeros = zero_state(rate_expects(params), batch_shape)
    return zeros._replace(r=zeros.r + jnp.broadcast_to(params.start, zeros.r.shape))


def rate_draw(key, params, T, batch_shape):
    key_mask, key_noise = jax.random.split(key)
    shape, dtype = (*batch_shape, *params.start.shape), params.start.dtype
    mask = 2 * jax.random.bernoulli(key_mask, shape=shape).astype(dtype)
    return mask, jax.random.normal(key_noise, (T, *shape), dtype) / 8


def rate_given(inputs, consts):
    """The inputs as they enter W_ih."""
    (x, on), gain = drawn_of(inputs).given, drawn_of(consts).given
    return on.astype(x.dtype) * jnp.broadcast_to(gain, x.shape) * x


def rate_kept(r, consts):
    mask = drawn_of(consts).drawn
    return r if mask is None else jnp.broadcast_to(mask, r.shape) * r


def rate_project(params, xs, consts):
    inputs, noise = rate_given(xs, consts) @ params.w_ih, drawn_of(xs).drawn
    return inputs if noise is None else inputs + noise


def rate_advance(params, state, inputs, consts):
    r = jnp.tanh(inputs + rate_kept(state.r, consts) @ params.w_hh)
    return RateState(r=r, n=state.n + 1), ()


def rate_output(params, after, gates, consts):
    return after.r @ params.w_out


def rate_step(params, state, x, consts):
    state, gates = rate_advance(params, state, rate_project(params, x, consts), consts)
    return state, rate_output(params, state, gates, consts)


def rate_linearize(params, inputs, before, after, gates, consts):
    # the loop reads W_out^T, which it may keep in one place
    return 1 - after.r * after.r, Same(params.w_out)


def rate_pull(params, adjoint, factors, consts):
    (dstate, dh), (slope, w_out) = adjoint, factors
    da = (dstate.r + input_gradient(dh, w_out)) * slope
    dr = rate_kept(input_gradient(da, params.w_hh), consts)
    return RateState(r=dr, n=None), (da, dh)


def rate_gradients(params, xs, before, after, gates, deltas, consts):
    (da, dh), (x, on), gain = deltas, drawn_of(xs).given, drawn_of(consts).given
    du = on.astype(x.dtype) * input_gradient(da, params.w_ih)
    dparams = RateParams(
        w_ih=weight_gradient(rate_given(xs, consts), da),
        w_hh=weight_gradient(rate_kept(before.r, consts), da),
        w_out=weight_gradient(after.r, dh),
        # its gradient comes by the state before the first step
        start=jnp.zeros_like(params.start, accumulation_dtype(params.start.dtype)),
    )
    dx = jnp.broadcast_to(gain, du.shape) * du
    return dparams, RateInput(x=dx, on=None), bias_gradient(x * du)


RATE = Cell(
    name="RATE",
    init=None,
    initial_state=rate_initial_state,
    step=rate_step,
    expects=rate_expects,
    project=rate_project,
    advance=rate_advance,
    output=rate_output,
    linearize=rate_linearize,
    pull=rate_pull,
    gradients=rate_gradients,
    consts_rows=lambda consts: Drawn(given=False, drawn=True),
    draw=rate_draw,
    recurrent=lambda params: {"r": params.w_hh},
)
"""A rate network with everything that a cell may have: consts are its gain ``[I]``."""


def rate_example(I=3, H=4, O=2):
    """Params and one input of `RATE`."""
    like = RateParams(w_ih=(I, H), w_hh=(H, H), w_out=(H, O), start=(H,))
    rng = np.random.default_rng(0)
    params = RateParams(*(rng.normal(size=shape) / 2 for shape in like))
    return params, RateInput(x=np.zeros(I), on=np.zeros(1, np.int32))


def rate_gain(key, batch_shape, input_size, hidden_size, dtype):
    """Consts of `RATE`, as `check_cell` makes them: the input's size counts ``on``, too."""
    return jax.random.uniform(key, (input_size - 1,), dtype)


# A state of a matrix m and a count n, two inputs, an output of its own size, a mask by rows, noise
# at every step if there is a key, and a learned initial state:
#
#     m_t = tanh(mask * m_{t-1} W + x_t U + y_t V + noise_t),   n_t = n_{t-1} + 1,   h_t = m_t O
#
# (products read the matrix as a vector).

MATRIX_SHAPE = (2, 3)


def matrix_init(key, input_size, hidden_size, *, dtype=jnp.float32):
    D = MATRIX_SHAPE[0] * MATRIX_SHAPE[1]
    keys = jax.random.split(key, 5)
    shapes = {"w": (D, D), "u": (input_size, D), "v": (2, D), "o": (D, hidden_size)}
    params = {
        name: 0.5 * jax.random.normal(k, shape, dtype)
        for k, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    start = 0.5 * jax.random.normal(keys[4], MATRIX_SHAPE, dtype)
    return {**params, "start": start, "version": jnp.int32(1)}


def matrix_expects(params):
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    dtype = params["w"].dtype
    return Expects(
        params=like,
        x={
            "x": jax.ShapeDtypeStruct(params["u"].shape[:1], dtype),
            "y": jax.ShapeDtypeStruct(params["v"].shape[:1], dtype),
        },
        state={
            "m": jax.ShapeDtypeStruct(MATRIX_SHAPE, dtype),
            "n": jax.ShapeDtypeStruct((), jnp.int32),
        },
    )


def matrix_initial_state(params, batch_shape=()):
    return {
        "m": jnp.broadcast_to(params["start"], (*batch_shape, *MATRIX_SHAPE)),
        "n": jnp.zeros(batch_shape, jnp.int32),
    }


def as_vector(m):
    return m.reshape(*m.shape[:-2], m.shape[-2] * m.shape[-1])


def as_matrix(v):
    return v.reshape(*v.shape[:-1], *MATRIX_SHAPE)


def matrix_draw(key, params, T, batch_shape):
    D = params["w"].shape[0]
    return None, 0.3 * jax.random.normal(key, (T, *batch_shape, D), params["w"].dtype)


def matrix_project(params, xs, consts):
    inputs = xs.given["x"] @ params["u"] + xs.given["y"] @ params["v"]
    return inputs if xs.drawn is None else inputs + xs.drawn


def matrix_mask(consts, like):
    """The mask of the rows, spread over the steps of ``like``."""
    return jnp.broadcast_to(consts.given["mask"], like.shape)


def matrix_advance(params, before, inputs, consts):
    v = as_vector(before["m"])
    m = as_matrix(jnp.tanh((matrix_mask(consts, v) * v) @ params["w"] + inputs))
    return {"m": m, "n": before["n"] + 1}, ()


def matrix_output(params, after, gates, consts):
    return as_vector(after["m"]) @ params["o"]


def matrix_step(params, state, x, consts):
    x = x if isinstance(x, Drawn) else Drawn(x, None)
    consts = consts if isinstance(consts, Drawn) else Drawn(consts, None)
    state, gates = matrix_advance(params, state, matrix_project(params, x, consts), consts)
    return state, matrix_output(params, state, gates, consts)


def matrix_linearize(params, inputs, before, after, gates, consts):
    return 1 - as_vector(after["m"]) ** 2


def matrix_pull(params, adjoint, slope, consts):
    dafter, dh = adjoint
    da = (as_vector(dafter["m"]) + input_gradient(dh, params["o"])) * slope
    du = input_gradient(da, params["w"])
    return {"m": as_matrix(matrix_mask(consts, du) * du), "n": None}, (da, du, dh)


def matrix_gradients(params, xs, before, after, gates, deltas, consts):
    da, du, dh = deltas
    v = as_vector(before["m"])
    dparams = {
        "w": weight_gradient(matrix_mask(consts, v) * v, da),
        "u": weight_gradient(xs.given["x"], da),
        "v": weight_gradient(xs.given["y"], da),
        "o": weight_gradient(as_vector(after["m"]), dh),
        "start": jnp.zeros(MATRIX_SHAPE, accumulation_dtype(da.dtype)),
        "version": None,
    }
    dxs = {"x": input_gradient(da, params["u"]), "y": input_gradient(da, params["v"])}
    dmask = jnp.sum(du * v, axis=0, dtype=accumulation_dtype(du.dtype))
    return dparams, dxs, {"mask": dmask}


MATRIX = Cell(
    name="MATRIX",
    init=matrix_init,
    initial_state=matrix_initial_state,
    step=matrix_step,
    expects=matrix_expects,
    project=matrix_project,
    advance=matrix_advance,
    output=matrix_output,
    linearize=matrix_linearize,
    pull=matrix_pull,
    gradients=matrix_gradients,
    consts_rows=lambda consts: True,
    draw=matrix_draw,
    recurrent=lambda params: {"zeta": params["w"], "half": params["w"] / 2},
)
"""``xs = {"x": [T, ..., I], "y": [T, ..., 2]}``, ``consts = {"mask": [..., 6]}``."""
