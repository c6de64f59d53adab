"""Helpers that cells share: weights drawn gate by gate, their sums, a step made of its pieces."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Consts, Drawn, Expects, Params, State, drawn_of, zero_state
from jaxrnn.checks import floating_dtype, size, step_arguments
from jaxrnn.initializers import Initializer, per_gate
from jaxrnn.products import bias_gradient, weight_gradient

__all__ = ["affine_gradients", "draw_weights", "gate_bias", "one_step", "zero_start"]


def draw_weights(
    key: jax.Array,
    input_size: int,
    hidden_size: int,
    gates: int,
    *,
    dtype: jax.typing.DTypeLike,
    input_init: Initializer,
    recurrent_init: Initializer,
    bias_init: Initializer,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``w_ih [I, G*H]``, ``w_hh [H, G*H]``, ``b [G*H]``, each gate's block drawn on its own.

    Raises:
        TypeError, ValueError: sizes that are no ints of at least 1, a dtype that is not floating.
    """
    I, H = size("input_size", input_size), size("hidden_size", hidden_size)
    dtype = floating_dtype("dtype", dtype)
    k_ih, k_hh, k_b = jax.random.split(key, 3)
    return (
        per_gate(input_init, gates)(k_ih, (I, gates * H), dtype),
        per_gate(recurrent_init, gates)(k_hh, (H, gates * H), dtype),
        per_gate(bias_init, gates)(k_b, (gates * H,), dtype),
    )


def gate_bias(
    bias: float | Initializer, key: jax.Array, hidden_size: int, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """The bias of one gate, ``[H]``: drawn by an initializer, or one number for all units."""
    if callable(bias):
        return bias(key, (hidden_size,), dtype)
    return jnp.full((hidden_size,), bias, dtype)


def affine_gradients(
    params: Any, xs: jax.Array, h: jax.Array, da: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``dw_ih``, ``dw_hh``, ``db`` of ``a = x w_ih + h w_hh + b``, in the accumulation dtype."""
    return (
        weight_gradient(xs, da),
        weight_gradient(h, da, params.w_hh),
        bias_gradient(da),
    )


def zero_start(expects: Callable[[Params], Expects]) -> Callable[..., State]:
    """`Cell.initial_state` of a cell that begins with zeros."""

    def initial_state(params: Params, batch_shape: tuple[int, ...] = ()) -> State:
        """The zero state of rows of that batch shape, a tuple of ints."""
        return zero_state(expects(params), batch_shape)

    return initial_state


def one_step(
    expects: Callable[[Params], Expects],
    project: Callable[..., Any],
    advance: Callable[..., Any],
) -> Callable[..., tuple[State, Any]]:
    """`Cell.step` made of the other pieces, for a cell whose output is ``h`` of its state."""

    def step(params: Params, state: State, x: Any, consts: Consts = None) -> tuple[State, Any]:
        """One step: ``x [..., I]``, state ``[..., H]`` -> (state, h)."""
        given, drawn = drawn_of(x)
        state, given = step_arguments(expects(params), state, given)
        x = Drawn(given, drawn) if isinstance(x, Drawn) else given
        state, _ = advance(params, state, project(params, x, consts), consts)
        return state, state.h

    return step
