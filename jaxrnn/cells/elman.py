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

from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import affine_gradients, draw_weights, one_step, zero_start
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import add_bias, input_gradient

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
    weights = draw_weights(
        *(key, input_size, hidden_size, 1),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
    )
    return ElmanParams(*weights)


class ElmanState(NamedTuple):
    """State of `ELMAN`: the hidden state ``h [..., H]``."""

    h: jax.Array


def expects(params: ElmanParams) -> Expects:
    sizes, like = sizes_of(params, ElmanParams, ("I H", "H H", "H"), owner="ELMAN")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=ElmanState(h=h))


def project(params: ElmanParams, xs: jax.Array, consts: None) -> jax.Array:
    """The input's part of the pre-activations, ``[K, ..., H]``.

    Textbook: the input's part of rnn-1, net-1.
    """
    del consts
    return xs @ params.w_ih


def advance(
    params: ElmanParams, state: ElmanState, inputs: jax.Array, consts: None
) -> tuple[ElmanState, tuple[()]]:
    """``h_t``, and no gates: the slope of tanh follows from its value.

    Textbook: rnn-1, net-1.
    """
    del consts
    # in a step the bias costs nothing, in bulk it would take another turn over all inputs
    a = add_bias(inputs + state.h @ params.w_hh, params.b)
    return ElmanState(h=jnp.tanh(a)), ()


def linearize(
    params: ElmanParams,
    inputs: jax.Array,
    before: ElmanState,
    after: ElmanState,
    gates: tuple[()],
    consts: None,
) -> jax.Array:
    """The slope of tanh, ``1 - h_t^2``.

    Textbook: rnn-3.
    """
    del params, inputs, before, gates, consts
    return 1 - after.h * after.h


def pull(
    params: ElmanParams, dstate: ElmanState, slope: jax.Array, consts: None
) -> tuple[ElmanState, jax.Array]:
    """``dh_{t-1}`` and ``da_t`` from ``dh_t``.

    Textbook: rnn-4, rnn-9, and one step of the paths of net-6, net-7.
    """
    del consts
    da = dstate.h * slope
    return ElmanState(h=input_gradient(da, params.w_hh)), da


def gradients(
    params: ElmanParams,
    xs: jax.Array,
    before: ElmanState,
    after: ElmanState,
    gates: tuple[()],
    da: jax.Array,
    consts: None,
) -> tuple[ElmanParams, jax.Array, None]:
    """``dW_ih``, ``dW_hh``, ``db``, and ``dx_t`` of every step.

    Textbook: rnn-5, rnn-6, rnn-7, rnn-8, net-8, net-9, net-10.
    """
    del after, gates, consts
    dparams = ElmanParams(*affine_gradients(params, xs, before.h, da))
    return dparams, input_gradient(da, params.w_ih), None


def slopes(after: ElmanState, gates: tuple[()]) -> ElmanState:
    del gates
    return ElmanState(h=1 - after.h * after.h)


def recurrent(params: ElmanParams) -> dict[str, jax.Array]:
    return {"h": params.w_hh}


ELMAN = Cell(
    name="ELMAN",
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
    doc=documentation(__doc__, ElmanParams, ElmanState),
)
"""The Elman network with tanh: `ElmanParams`, `ElmanState`."""
