"""The simple recurrent network.

    a_t = x_t W_ih + h_{t-1} W_hh + b
    h_t = tanh(a_t)

and its adjoint, for dh_t the whole gradient of the loss with respect to h_t:

    da_t     = dh_t * (1 - h_t^2)
    dh_{t-1} = da_t W_hh^T            (plus what reads h_{t-1} directly)
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   db = sum_t da_t
    dx_t  = da_t W_ih^T

Reference: J. L. Elman, "Finding structure in time", 1990.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells.contract import Cell
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import (
    Product,
    affine,
    bias_gradient,
    input_gradient,
    step_product,
    weight_gradient,
)
from jaxrnn.validation import batch_shape_of, floating_dtype, size, step_arguments

__all__ = ["ELMAN", "ElmanParams", "ElmanState"]


class ElmanParams(NamedTuple):
    """Weights of `ELMAN`: ``w_ih [I, H]``, ``w_hh [H, H]``, ``b [H]``."""

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
) -> ElmanParams:
    """Initial weights, each initializer a function ``(key, shape, dtype)``."""
    I, H = size("input_size", input_size), size("hidden_size", hidden_size)
    dtype = floating_dtype("dtype", dtype)
    k_ih, k_hh, k_b = jax.random.split(key, 3)
    return ElmanParams(
        w_ih=input_init(k_ih, (I, H), dtype),
        w_hh=recurrent_init(k_hh, (H, H), dtype),
        b=bias_init(k_b, (H,), dtype),
    )


def sizes(params: ElmanParams) -> tuple[int, int]:
    return params.w_ih.shape[0], params.w_hh.shape[0]


class ElmanState(NamedTuple):
    """State of `ELMAN`: the hidden state ``h [..., H]``."""

    h: jax.Array


def initial_state(params: ElmanParams, batch_shape: tuple[int, ...] = ()) -> ElmanState:
    """The zero state of rows of that batch shape, a tuple of ints."""
    batch_shape = batch_shape_of(batch_shape)
    H = params.w_hh.shape[0]
    return ElmanState(h=jnp.zeros((*batch_shape, H), params.w_hh.dtype))


def project(params: ElmanParams, xs: jax.Array, consts: None) -> jax.Array:
    """Textbook: the input's part of rnn-1, net-1."""
    del consts
    # with the bias, so that a cell of one's own can take these inputs and add what it likes
    return affine(xs, params.w_ih, params.b)


def advance(
    params: ElmanParams,
    state: ElmanState,
    inputs: jax.Array,
    consts: None,
    product: Product = step_product,
) -> tuple[ElmanState, tuple[()]]:
    """Textbook: rnn-1, net-1."""
    del consts
    # the slope of tanh follows from its value: the adjoint needs no gates beside the state
    return ElmanState(h=jnp.tanh(inputs + product(state.h, params.w_hh))), ()


def step(
    params: ElmanParams, state: ElmanState, x: jax.Array, consts: None = None
) -> tuple[ElmanState, jax.Array]:
    """One step: ``x [..., I]``, state ``[..., H]`` -> (state, h)."""
    state, x = step_arguments(params, state, x, params_type=ElmanParams, state_type=ElmanState)
    # the layout that `step_product` wants of a large weight is the engine's to make
    state, _ = advance(params, state, project(params, x, consts), consts, jnp.matmul)
    return state, state.h


def linearize(
    params: ElmanParams, before: ElmanState, after: ElmanState, gates: tuple[()], consts: None
) -> jax.Array:
    """Textbook: rnn-3."""
    del params, before, gates, consts
    return 1 - after.h * after.h


def pull(
    params: ElmanParams, dstate: ElmanState, slope: jax.Array, consts: None
) -> tuple[ElmanState, jax.Array]:
    """Textbook: rnn-4, rnn-9, and one step of the paths of net-6, net-7."""
    del consts
    da = dstate.h * slope
    return ElmanState(h=input_gradient(da, params.w_hh)), da


def contract(
    params: ElmanParams,
    xs: jax.Array,
    before: ElmanState,
    gates: tuple[()],
    da: jax.Array,
    consts: None,
) -> tuple[ElmanParams, jax.Array, None]:
    """Textbook: rnn-5, rnn-6, rnn-7, rnn-8, net-8, net-9, net-10."""
    del gates, consts
    dparams = ElmanParams(
        w_ih=weight_gradient(xs, da),
        w_hh=weight_gradient(before.h, da),
        b=bias_gradient(da),
    )
    return dparams, input_gradient(da, params.w_ih), None


def slopes(after: ElmanState, gates: tuple[()]) -> ElmanState:
    del gates
    return ElmanState(h=1 - after.h * after.h)


ELMAN = Cell(
    name="ELMAN",
    init=init,
    initial_state=initial_state,
    step=step,
    sizes=sizes,
    project=project,
    advance=advance,
    linearize=linearize,
    pull=pull,
    contract=contract,
    slopes=slopes,
)
"""The Elman network with tanh: `ElmanParams`, `ElmanState`."""
