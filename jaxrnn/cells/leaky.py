"""The leaky rate network of neuroscience and of echo state networks.

    a_t = x_t W_ih + h_{t-1} W_hh + b + noise_t
    n_t = f(a_t)
    h_t = (1 - α) * h_{t-1} + α * n_t

This is one Euler step of τ dh/dt = -h + f(a), with α = Δt / τ. With α = 1 it is the Elman network.
α is one number, or α = sigmoid(leak) of each unit, which is learned. ``noise_t`` are independent
normal numbers of one standard deviation.

The leak stands outside of f, as in Jaeger et al.: the state h is a rate. In Song et al. it stands
inside, and the state is a current v whose rate f(v) the network reads:
v_t = (1 - α) v_{t-1} + α (x_t W_ih + f(v_{t-1}) W_hh + b) + noise.

The adjoint, for dh_t the whole gradient of the loss with respect to h_t:

    da_t     = dh_t * α * f'(a_t)                     f'(a_t) is a function of n_t
    dh_{t-1} = da_t W_hh^T + dh_t * (1 - α)
    dW_ih = sum_t x_t^T da_t,   dW_hh = sum_t h_{t-1}^T da_t,   db = sum_t da_t
    dx_t  = da_t W_ih^T
    dleak = sum_t dh_t * (n_t - h_{t-1}) * α * (1 - α)

With a mask M, M * W_hh takes the place of W_hh in all of these, and with G for its gradient

    dW_hh = M * G,   dM = W_hh * G

References: H. Jaeger, M. Lukosevicius, D. Popovici and U. Siewert, "Optimization and applications
of echo state networks with leaky-integrator neurons", 2007. H. F. Song, G. R. Yang and X.-J. Wang,
"Training excitatory-inhibitory recurrent neural networks for cognitive tasks", 2016.
"""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.activations import Activation, Elementwise, activation_of
from jaxrnn.blocks import sigmoid_and_complement
from jaxrnn.cells.cell import Cell, Expects, Same, documentation, drawn_of
from jaxrnn.cells.elman import ElmanParams, ElmanState, recurrent
from jaxrnn.cells.elman import expects as elman_expects
from jaxrnn.cells.elman import init as elman_init
from jaxrnn.cells.gated import affine_gradients, gate_bias, one_step, zero_start
from jaxrnn.checks import describe, sizes_of, static_bool, vector
from jaxrnn.initializers import Initializer, glorot_uniform, orthogonal, zeros
from jaxrnn.products import Weight, add_bias, bias_gradient, input_gradient, stored

__all__ = ["LeakyParams", "leaky"]


class LeakyParams(NamedTuple):
    """Weights of `leaky` with a learned leak, ``leak [H]`` of α = sigmoid(leak).

    The others are ``w_ih [I, H]``, ``w_hh [H, H]``, ``b [H]``; with a fixed leak, `ElmanParams`.
    """

    w_ih: jax.Array
    w_hh: jax.Array
    b: jax.Array
    leak: jax.Array


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
) -> LeakyParams:
    """Initial weights, and the leaks of the units.

    ``leak`` is the negative of ``keep_bias``, because 1 - α keeps the state: a number, such as
    ``log(1 / α - 1)`` for one α, or an initializer such as `jaxrnn.initializers.chrono`, whose
    units have time constants of many lengths.
    """
    weights = elman_init(
        *(key, input_size, hidden_size),
        dtype=dtype,
        input_init=input_init,
        recurrent_init=recurrent_init,
        bias_init=bias_init,
    )
    b_keep = gate_bias(keep_bias, jax.random.fold_in(key, 3), hidden_size, weights.b.dtype)
    return LeakyParams(*weights, leak=-b_keep)


def expects(params: LeakyParams) -> Expects:
    axes = ("I H", "H H", "H", "H")
    sizes, like = sizes_of(params, LeakyParams, axes, owner="leaky(...)")
    x, h = vector(sizes["I"], like.b.dtype), vector(sizes["H"], like.b.dtype)
    return Expects(params=like, x=x, state=ElmanState(h=h))


class LeakyGates(NamedTuple):
    """The activation ``n_t [..., H]``: (h_t - (1 - α) h_{t-1}) / α would lose digits of it."""

    n: jax.Array


def project(params: Any, xs: Any, consts: Any) -> jax.Array:
    """The input's part of the pre-activations with the noise, ``[K, ..., H]``."""
    del consts
    given, noise = drawn_of(xs)
    inputs = given @ params.w_ih
    return inputs if noise is None else inputs + noise


def recurrent_weight(params: Any, consts: Any) -> Any:
    """``w_hh``, times the mask if there is one."""
    mask = drawn_of(consts).given
    # XLA moves the product out of the loop over steps
    if mask is None:
        return params.w_hh
    if isinstance(params.w_hh, Weight):
        return params.w_hh.map(lambda w: mask.astype(w.dtype) * w)
    return mask.astype(params.w_hh.dtype) * params.w_hh


def leak_and_keep(leak: float | None, params: Any) -> tuple[Any, Any]:
    """α and 1 - α: two numbers of a fixed leak, two arrays ``[H]`` of a learned one."""
    return (leak, 1 - leak) if leak is not None else sigmoid_and_complement(params.leak)


def over_rows(per_unit: Any, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(per_unit, like.dtype), like.shape)


def advance_by(activation: Activation, leak: float | None) -> Callable[..., Any]:
    def advance(
        params: Any, state: ElmanState, inputs: jax.Array, consts: Any
    ) -> tuple[ElmanState, LeakyGates]:
        """``h_t`` and the activation."""
        # in a step the bias costs nothing, in bulk it would take another turn over all inputs
        a = add_bias(inputs + state.h @ recurrent_weight(params, consts), params.b)
        n = activation.function(a)
        alpha, keep = (over_rows(rate, n) for rate in leak_and_keep(leak, params))
        return ElmanState(h=keep * state.h + alpha * n), LeakyGates(n=n)

    return advance


class LeakyFactors(NamedTuple):
    """Local derivatives of ``h_t``, each ``[..., H]``.

    a = ∂h_t/∂a_t = α f'(a_t)     leak = ∂h_t/∂leak = (n_t - h_{t-1}) α (1 - α), None if α is fixed
    h = 1 - α, the derivative by h_{t-1} on the direct path: the same at every step, a number or [H]
    """

    a: jax.Array
    h: Same
    leak: jax.Array | None


def linearize_by(activation: Activation, leak: float | None) -> Callable[..., LeakyFactors]:
    def linearize(
        params: Any,
        inputs: jax.Array,
        before: ElmanState,
        after: ElmanState,
        gates: LeakyGates,
        consts: Any,
    ) -> LeakyFactors:
        """The local derivatives of each step."""
        del inputs, after, consts
        n = gates.n
        alpha, keep = leak_and_keep(leak, params)
        by_leak = None if leak is not None else (n - before.h) * over_rows(alpha * keep, n)
        return LeakyFactors(
            a=over_rows(alpha, n) * activation.slope(n),
            h=Same(jnp.asarray(keep, n.dtype)),
            leak=by_leak,
        )

    return linearize


class LeakyDeltas(NamedTuple):
    """The adjoint ``da_t``, and the step's share in ``dleak``, each ``[..., H]``; None if fixed."""

    a: jax.Array
    leak: jax.Array | None


def pull(
    params: Any, dstate: ElmanState, factors: Any, consts: Any
) -> tuple[ElmanState, LeakyDeltas]:
    """``dh_{t-1}`` and ``da_t`` from ``dh_t``; the factor ``h`` comes without `Same`."""
    dh = dstate.h
    da = dh * factors.a
    dh_before = input_gradient(da, recurrent_weight(params, consts)) + dh * over_rows(factors.h, dh)
    dleak = None if factors.leak is None else dh * factors.leak
    return ElmanState(h=dh_before), LeakyDeltas(a=da, leak=dleak)


def gradients(
    params: Any,
    xs: Any,
    before: ElmanState,
    after: ElmanState,
    gates: LeakyGates,
    deltas: LeakyDeltas,
    consts: Any,
) -> tuple[Any, jax.Array, jax.Array | None]:
    """``dW_ih``, ``dW_hh``, ``db``, ``dleak``, ``dx_t`` of every step, and ``dM``."""
    del after, gates
    mask = drawn_of(consts).given
    dw_ih, dw_hh, db = affine_gradients(params, drawn_of(xs).given, before.h, deltas.a)
    dmask = None
    if mask is not None:
        wide = dw_hh.dtype
        if jnp.issubdtype(mask.dtype, jnp.floating):
            dmask = stored(params.w_hh).astype(wide) * dw_hh
        dw_hh = mask.astype(wide) * dw_hh
    dparams: Any = ElmanParams(dw_ih, dw_hh, db)
    if deltas.leak is not None:
        dparams = LeakyParams(dw_ih, dw_hh, db, leak=bias_gradient(deltas.leak))
    return dparams, input_gradient(deltas.a, params.w_ih), dmask


def draw_by(noise: float) -> Callable[..., tuple[None, jax.Array]]:
    def draw(
        key: jax.Array, params: Any, T: int, batch_shape: tuple[int, ...]
    ) -> tuple[None, jax.Array]:
        """The noise of every step, ``[T, ..., H]``."""
        b = params.b
        return None, noise * jax.random.normal(key, (T, *batch_shape, *b.shape), b.dtype)

    return draw


def slopes_by(activation: Activation) -> Callable[..., LeakyGates] | None:
    if not activation.known:
        # its steepest slope is unknown
        return None

    def slopes(after: ElmanState, gates: LeakyGates) -> LeakyGates:
        del after
        return LeakyGates(n=activation.slope(gates.n))

    return slopes


def no_rows(consts: Any) -> bool:
    """The mask is one for all rows."""
    del consts
    return False


def leaky(
    activation: str | tuple[Elementwise, Elementwise] = "tanh",
    *,
    leak: float | None = None,
    noise: float = 0.0,
    masked: bool = False,
) -> Cell:
    """The leaky rate network, ``h_t = (1 - α) h_{t-1} + α f(a_t)``.

    The state is `ElmanState`. The noise of every step is drawn if the caller gives a ``key``.
    ``noise`` is its standard deviation in a_t, within f. G. R. Yang et al., "Task representations
    in neural networks trained to perform many cognitive tasks", 2019, have ``σ sqrt(2 / α)`` there.

    A masked cell multiplies ``w_hh``, entry by entry, by the array ``[H, H]`` that the caller gives
    as ``consts``. In `jaxrnn.heads` it has the shape of their ``w_hh``. Row i of ``w_hh`` holds the
    weights from unit i to all units. So a zero of the mask takes a connection away. For Dale's law,
    the mask has the sign of unit i along row i, and no weight is negative. The mask cannot do the
    second: call `jaxrnn.unroll` with the relu of ``w_hh``, as in the example and in Song et al.,
    2016.

    Args:
        activation: ``"tanh"``, ``"relu"``, ``"identity"``, or a pair ``(function, slope)`` as in
            `jaxrnn.elman`.
        leak: α, above 0 and at most 1, with `ElmanParams`; None for one per unit that is learned,
            with `LeakyParams`.
        noise: the standard deviation; 0 for a cell that draws nothing and takes no key.
        masked: whether the cell takes a mask: floating, or booleans or integers without a gradient.

    Returns:
        A `jaxrnn.Cell`; the same arguments give the same one.

    Raises:
        TypeError, ValueError: an argument of another type or range.

    Example:
        Four excitatory units and an inhibitory one, none of which reaches itself:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.leaky("relu", leak=0.2, noise=0.05, masked=True)
        >>> cell
        <jaxrnn.Cell LEAKY relu, leak 0.2, noise 0.05, masked>
        >>> params = cell.init(jax.random.key(0), 3, 5)
        >>> sign = jnp.array([1.0, 1.0, 1.0, 1.0, -1.0])
        >>> mask = sign[:, None] * (1 - jnp.eye(5))
        >>> def rates(params, xs, key):
        ...     params = params._replace(w_hh=jax.nn.relu(params.w_hh))
        ...     return jaxrnn.unroll(cell, params, xs, consts=mask, key=key)[1]
        >>> rates(params, jnp.ones((7, 2, 3)), jax.random.key(1)).shape
        (7, 2, 5)
    """
    if leak is not None:
        leak = _number("leak", leak, "a number above 0 and at most 1, or None to learn it")
        if not 0 < leak <= 1:
            raise ValueError(f"`leak` must be above 0 and at most 1; got {leak}")
    noise = _number("noise", noise, "a number of at least 0")
    if not 0 <= noise < math.inf:
        raise ValueError(f"`noise` must be at least 0; got {noise}")
    return _leaky(activation_of(activation), leak, noise, static_bool("masked", masked))


def _number(name: str, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be {expected}; got {describe(value)}")
    return float(value)


@functools.cache
def _leaky(activation: Activation, leak: float | None, noise: float, masked: bool) -> Cell:
    name = ", ".join(
        [f"LEAKY {activation.name}", f"leak {leak:g}" if leak is not None else "learned leak"]
        + [f"noise {noise:g}"] * (noise > 0)
        + ["masked"] * masked
    )

    def project_masked(params: Any, xs: Any, consts: Any) -> jax.Array:
        mask, like = drawn_of(consts).given, stored(params.w_hh)
        if getattr(mask, "shape", None) != like.shape:
            axes = "[H, H]" if like.ndim == 2 else "like `w_hh`"
            raise ValueError(
                f"`consts` must be the mask of {name}, an array {axes}, {like.shape}; got "
                f"{describe(mask)}"
            )
        return project(params, xs, consts)

    first = project_masked if masked else project
    expected, record = (expects, LeakyParams) if leak is None else (elman_expects, ElmanParams)
    advance = advance_by(activation, leak)
    return Cell(
        name=name,
        init=init if leak is None else elman_init,
        initial_state=zero_start(expected),
        step=one_step(expected, first, advance),
        expects=expected,
        project=first,
        advance=advance,
        linearize=linearize_by(activation, leak),
        pull=pull,
        gradients=gradients,
        consts_rows=no_rows if masked else None,
        draw=draw_by(noise) if noise else None,
        slopes=slopes_by(activation),
        # the mask, which is a part of it, comes with a call
        recurrent=None if masked else recurrent,
        needs_consts=masked,
        doc=documentation(__doc__, record, ElmanState),
    )
