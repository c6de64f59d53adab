"""The simple recurrent network.

    a_t = x_t W_ih + h_{t-1} W_hh + b
    h_t = f(a_t)

and its adjoint, for dh_t the whole gradient of the loss with respect to h_t:

    da_t     = dh_t * f'(a_t)
    dh_{t-1} = da_t W_hh^T            (plus what reads h_{t-1} directly)
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   db = sum_t da_t
    dx_t  = da_t W_ih^T

The slope f'(a_t) is a function of the output:

    f           tanh        relu               identity
    f'(a_t)     1 - h_t^2   1 where h_t > 0    1

Reference: J. L. Elman, "Finding structure in time", 1990.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.activations import ACTIVATIONS, Activation, Elementwise, activation_of
from jaxrnn.cells.cell import Cell, Expects, documentation
from jaxrnn.cells.gated import affine_gradients, draw_weights, one_step, zero_start
from jaxrnn.checks import sizes_of, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import add_bias, input_gradient

__all__ = ["ELMAN", "ElmanParams", "ElmanState", "elman"]


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


def advance_by(activation: Activation) -> Callable[..., tuple[ElmanState, tuple[()]]]:
    def advance(
        params: ElmanParams, state: ElmanState, inputs: jax.Array, consts: None
    ) -> tuple[ElmanState, tuple[()]]:
        """``h_t``, and no gates: the slope follows from the value.

        Textbook: rnn-1, net-1.
        """
        del consts
        # in a step the bias costs nothing, in bulk it would take another turn over all inputs
        a = add_bias(inputs + state.h @ params.w_hh, params.b)
        return ElmanState(h=activation.function(a)), ()

    return advance


def linearize_by(activation: Activation) -> Callable[..., jax.Array]:
    def linearize(
        params: ElmanParams,
        inputs: jax.Array,
        before: ElmanState,
        after: ElmanState,
        gates: tuple[()],
        consts: None,
    ) -> jax.Array:
        """The slope of the activation, ``1 - h_t^2`` of tanh.

        Textbook: rnn-3.
        """
        del params, inputs, before, gates, consts
        return activation.slope(after.h)

    return linearize


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


def slopes_by(activation: Activation) -> Callable[..., ElmanState] | None:
    if not activation.known:
        # its steepest slope is unknown
        return None

    def slopes(after: ElmanState, gates: tuple[()]) -> ElmanState:
        del gates
        return ElmanState(h=activation.slope(after.h))

    return slopes


def recurrent(params: ElmanParams) -> dict[str, jax.Array]:
    return {"h": params.w_hh}


def elman(activation: str | tuple[Elementwise, Elementwise]) -> Cell:
    """The Elman network with another activation; ``elman("tanh")`` is `ELMAN`.

    Params and state are those of `ELMAN`. The relu network whose recurrent weight starts as the
    identity, ``init(..., recurrent_init=initializers.identity)``, is the IRNN of Q. V. Le,
    N. Jaitly and G. E. Hinton, "A simple way to initialize recurrent networks of rectified linear
    units", 2015.

    Args:
        activation: ``"tanh"``, ``"relu"``, ``"identity"``, or a pair ``(function, slope)``:
            ``function`` is elementwise, and ``slope`` gives its derivative as a function of its
            output.

    Returns:
        A `jaxrnn.Cell`; the same activation gives the same one.

    Raises:
        TypeError, ValueError: another activation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> jaxrnn.elman("relu")
        <jaxrnn.Cell ELMAN relu>
        >>> def slope(h):  # h = softplus(a) = log(1 + e^a) has the slope sigmoid(a) = 1 - e^-h
        ...     return -jnp.expm1(-h)
        >>> cell = jaxrnn.elman((jax.nn.softplus, slope))
        >>> params = cell.init(jax.random.key(0), 3, 5)
        >>> jaxrnn.unroll(cell, params, jnp.ones((7, 2, 3)))[1].shape
        (7, 2, 5)
    """
    return _elman(activation_of(activation))


@functools.cache
def _elman(activation: Activation) -> Cell:
    advance = advance_by(activation)
    return Cell(
        name="ELMAN" if activation == ACTIVATIONS["tanh"] else f"ELMAN {activation.name}",
        init=init,
        initial_state=zero_start(expects),
        step=one_step(expects, project, advance),
        expects=expects,
        project=project,
        advance=advance,
        linearize=linearize_by(activation),
        pull=pull,
        gradients=gradients,
        slopes=slopes_by(activation),
        recurrent=recurrent,
        doc=documentation(__doc__, ElmanParams, ElmanState),
    )


ELMAN = elman("tanh")
"""The Elman network with tanh: `ElmanParams`, `ElmanState`."""
