"""Activations of the cells that let the caller choose one, each with its slope."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrnn.checks import describe

__all__ = ["ACTIVATIONS", "Activation", "Elementwise", "activation_of"]

Elementwise: TypeAlias = Callable[[jax.Array], jax.Array]


class Activation(NamedTuple):
    """A monotone function, and its derivative as a function of its value.

    ``known``: it is one of `ACTIVATIONS`, whose steepest slope is 1.
    """

    name: str
    function: Elementwise
    slope: Elementwise
    known: bool = False


def slope_of_tanh(h: jax.Array) -> jax.Array:
    return 1 - h * h


def slope_of_relu(h: jax.Array) -> jax.Array:
    # 0 at 0, as in jax.nn.relu
    return (h > 0).astype(h.dtype)


ACTIVATIONS = {
    "tanh": Activation("tanh", jnp.tanh, slope_of_tanh, known=True),
    "relu": Activation("relu", jax.nn.relu, slope_of_relu, known=True),
    "identity": Activation("identity", lambda a: a, jnp.ones_like, known=True),
}


def activation_of(value: Any) -> Activation:
    """The activation of that name, or of a pair ``(function, slope)``.

    Raises:
        TypeError: neither a name nor a pair of functions that can be hashed.
        ValueError: another name.
    """
    expected = (
        f"`activation` must be {', '.join(map(repr, ACTIVATIONS))} or a pair (function, slope), "
        "its slope a function of its output"
    )
    if isinstance(value, str):
        if value not in ACTIVATIONS:
            raise ValueError(f"{expected}; got {value!r}")
        return ACTIVATIONS[value]
    if not (isinstance(value, tuple) and len(value) == 2 and all(map(callable, value))):
        raise TypeError(f"{expected}; got {describe(value)}")
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(f"{expected}, both hashable; got {describe(value)}") from error
    function, slope = value
    return Activation(getattr(function, "__name__", "function"), function, slope)
