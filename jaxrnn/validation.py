"""Checks at the public boundary: what was wrong is said before any tracing goes deep.

Each error names the argument, what was expected, what came, and the likely fix where there is one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "array",
    "batch_shape_of",
    "concrete",
    "describe",
    "floating",
    "floating_dtype",
    "lengths_of",
    "matching_arrays",
    "same_structure",
    "size",
    "static_bool",
    "step_arguments",
]


def concrete(value: Any) -> np.ndarray | None:
    """The values of an array, or None where they are unknown while Python runs.

    Under `jax.jit` and the like an argument is traced, a constant is not, and what JAX makes of
    the constant there is: so ask the value as it came. Nor are those known that other processes
    hold a part of.
    """
    # the value may be a list, and one traced entry of it is enough
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "is_fully_addressable", True):
            return None
    return np.asarray(value)


def array(name: str, value: Any) -> jax.Array:
    """``value`` as a JAX array; a TypeError that names the argument if it is not one."""
    # a state or params given for one of its fields would be stacked, where the shapes allow it
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        raise TypeError(f"`{name}` must be an array, not a record; got {describe(value)}")
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"`{name}` must be an array; got {describe(value)}") from error


def floating(name: str, value: Any) -> jax.Array:
    """``value`` as a JAX array of a real floating dtype."""
    value = array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"`{name}` must have a floating dtype; got {value.dtype}")
    return value


def floating_dtype(name: str, value: Any) -> jnp.dtype:
    """``value`` as a real floating dtype."""
    try:
        dtype = jnp.dtype(value)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a floating dtype; got {value!r}") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a floating dtype; got {dtype}")
    return dtype


def size(name: str, value: Any, *, least: int = 1) -> int:
    """``value`` as a Python int of at least ``least``."""
    expected = f"`{name}` must be an int of at least {least}, known before tracing"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{expected}; got {value!r}")
    if value < least:
        raise ValueError(f"{expected}; got {value}")
    return int(value)


def static_bool(name: str, value: Any) -> bool:
    """``value`` as a Python bool: what it selects is decided while tracing."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, known before tracing; got {value!r}")
    return bool(value)


def describe(value: Any) -> str:
    """How an error names a value that came: arrays by shape and dtype, the rest by type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = (f"{n}={describe(v)}" for n, v in zip(value._fields, value, strict=True))
        return f"{type(value).__name__}({', '.join(fields)})"
    entries = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list, tuple)) and any(hasattr(v, "shape") for v in entries):
        return f"{type(value).__name__}({', '.join(describe(v) for v in entries)})"[:200]
    return f"{type(value).__name__} {value!r}"[:200]


def batch_shape_of(value: Any) -> tuple[int, ...]:
    """``batch_shape`` as a tuple of ints."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`batch_shape` must be a tuple of ints, such as (2,); got {value!r}")
    return tuple(value)


def step_arguments(
    params: Any, state: Any, x: Any, *, params_type: Any, state_type: Any
) -> tuple[Any, jax.Array]:
    """``state`` and ``x`` of one step, as arrays that fit each other and ``params``."""
    if not isinstance(params, params_type):
        raise TypeError(f"`params` must be {params_type.__name__}; got {describe(params)}")
    (I, H), dtype = (params.w_ih.shape[0], params.w_hh.shape[0]), params.w_hh.dtype
    x = array("x", x)
    if x.ndim < 1 or x.shape[-1] != I:
        raise ValueError(f"`x` must be [..., {I=}]; got shape {x.shape}")
    if x.dtype != dtype:
        raise TypeError(f"`x` must have the dtype of `params`, {dtype}; got {x.dtype}")
    leaf = jax.ShapeDtypeStruct((*x.shape[:-1], H), dtype)
    expected = state_type(*(leaf for _ in state_type._fields))
    return matching_arrays("state", state, expected, " (for this x)"), x


def same_structure(a: Any, b: Any) -> bool:
    """Whether two pytrees have the same containers, with leaves in the same places."""
    # jaxlib's type stub declares no comparison of structures
    return bool(jax.tree.structure(a) == jax.tree.structure(b))  # type: ignore[operator]


def matching_arrays(name: str, value: Any, expected: Any, why: str = "") -> Any:
    """``value`` with array leaves, checked against a pytree of `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: another container (the params or the state of another cell, say) or dtype.
        ValueError: a leaf of another shape.
    """
    if not same_structure(value, expected):
        raise TypeError(f"`{name}` must be {describe(expected)}{why}; got {describe(value)}")

    def check(path: Any, leaf: Any, want: jax.ShapeDtypeStruct) -> jax.Array:
        label = name + jax.tree_util.keystr(path)
        leaf = array(label, leaf)
        if leaf.shape != want.shape:
            raise ValueError(f"`{label}` must have shape {want.shape}{why}; got shape {leaf.shape}")
        if leaf.dtype != want.dtype:
            raise TypeError(f"`{label}` must have dtype {want.dtype}{why}; got {leaf.dtype}")
        return leaf

    return jax.tree_util.tree_map_with_path(check, value, expected)


def lengths_of(value: Any, T: int, batch_shape: tuple[int, ...], *, like: str) -> jax.Array:
    """``lengths`` as int32 ``[...]`` within 0..T, for sequences named ``like``.

    Concrete values out of range raise; traced ones are clipped.
    """
    lengths = array("lengths", value)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`lengths` must be integers; got dtype {lengths.dtype}")
    if lengths.shape != batch_shape:
        raise ValueError(
            f"`lengths` must have the batch shape of `{like}`, {batch_shape}; "
            f"got shape {lengths.shape}"
        )
    values = concrete(value)
    if values is not None and values.size and (values.min() < 0 or values.max() > T):
        raise ValueError(
            f"`lengths` must lie in 0..{T=}; got values from {values.min()} to {values.max()}"
        )
    # clipped before a cast to 32 bits can wrap, by a bound that the lengths' own dtype can hold
    top = min(T, int(jnp.iinfo(lengths.dtype).max))
    return jnp.clip(lengths, min=0, max=top).astype(jnp.int32)
