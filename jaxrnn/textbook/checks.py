"""Checks of the textbook's functions before they compute: dictionaries, caches, shapes, dtypes.

The shape of an argument is given by the names of its axes, ``"n_a n_x"``, ``"n_a 1"``, or
``"n_a n_a+n_x"`` where two axes are concatenated. The first argument that has an axis fixes its
size and the first of all fixes the dtype; every later one must agree. An error names the argument,
what was expected, and what came.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Array",
    "Cache",
    "Fixed",
    "Parameters",
    "array",
    "cache_of",
    "describe",
    "field_of_a_step",
    "of_a_sequence",
    "parameters_of",
]

Array = jax.Array
Parameters = dict[str, jax.Array]
Cache = TypeVar("Cache", bound=NamedTuple)


class Fixed(NamedTuple):
    """Sizes by axis, and the dtype by who brought it, as the arguments read so far fix them."""

    sizes: dict[str, int]
    dtypes: dict[str, Any]


def array(name: str, value: Any, axes: str, fixed: Fixed) -> jax.Array:
    """``value`` as a floating array of these axes; what it fixes is written into ``fixed``.

    An array of float64 is refused while x64 is off, because JAX would round it to float32.
    """
    # the dtype that JAX gives to a Python float tells whether x64 is on
    if _holds_float64(value) and jnp.result_type(float) != np.float64:
        raise TypeError(
            f"`{name}` is float64, which JAX rounds to float32 while x64 is off: turn it on before "
            'anything else, by jax.config.update("jax_enable_x64", True), or pass float32'
        )
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array; got {describe(value)}") from error
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"`{name}` must have a floating dtype; got {value.dtype}")
    names = axes.split()
    fits = value.ndim == len(names) and all(
        _bind(axis, size, fixed.sizes) for axis, size in zip(names, value.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(_label(axis, fixed.sizes) for axis in names)
        raise ValueError(f"`{name}` must have shape ({expected}); got shape {value.shape}")
    for first, dtype in fixed.dtypes.items():
        if value.dtype != dtype:
            raise TypeError(
                f"`{name}` must have the dtype of `{first}`, {dtype}; got {value.dtype}"
            )
    if not fixed.dtypes:
        fixed.dtypes[name] = value.dtype
    return value


def _holds_float64(value: Any) -> bool:
    return any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(value))


def _bind(axis: str, size: int, sizes: dict[str, int]) -> bool:
    """Whether an axis may have that size; one that has none yet gets it."""
    if axis.isdigit():
        return size == int(axis)
    first, plus, second = axis.partition("+")
    if plus:
        # two axes one after the other: what the first does not fill is the second
        rest = size - sizes[first]
        return rest >= 0 and sizes.setdefault(second, rest) == rest
    return sizes.setdefault(axis, size) == size


def _label(axis: str, sizes: dict[str, int]) -> str:
    known = [sizes.get(part) for part in axis.split("+")]
    if axis.isdigit() or None in known:
        return axis
    return f"{axis}={sum(size for size in known if size is not None)}"


def parameters_of(
    value: Any, axes: Mapping[str, str], name: str = "parameters"
) -> tuple[Parameters, Fixed]:
    """A dictionary with exactly the keys of ``axes``, as arrays; and the sizes that it fixes."""
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be a dict of {', '.join(axes)}; got {describe(value)}")
    wrong = [
        f"{what} {', '.join(map(repr, keys))}"
        for what, keys in (
            ("missing", [key for key in axes if key not in value]),
            ("unknown", [key for key in value if key not in axes]),
        )
        if keys
    ]
    if wrong:
        raise ValueError(
            f"`{name}` must have the keys {', '.join(axes)}; got {' and '.join(wrong)}"
        )
    fixed = Fixed({}, {})
    return {key: array(f"{name}[{key!r}]", value[key], axes[key], fixed) for key in axes}, fixed


def cache_of(
    name: str,
    value: Any,
    kind: type[Cache],
    parameters: Mapping[str, str],
    axes: Mapping[str, str],
    *,
    steps: str = "",
) -> tuple[Cache, Fixed]:
    """A cache of that kind, checked, and what it fixes; ``steps`` names the axis of time."""
    if not isinstance(value, kind):
        raise TypeError(
            f"`{name}` must be the {kind.__name__} of the forward pass; got {describe(value)}"
        )
    if not steps and of_a_sequence(value):
        raise ValueError(
            f"`{name}` must be the cache of one step; got the {kind.__name__} of a sequence, whose "
            f"step t is cache_at({name}, t)"
        )
    held = value._asdict()
    checked, fixed = parameters_of(held.pop("parameters"), parameters, f"{name}.parameters")
    arrays = {
        field: array(f"{name}.{field}", leaf, f"{steps} {axes[field]}", fixed)
        for field, leaf in held.items()
    }
    return value._replace(parameters=checked, **arrays), fixed


def of_a_sequence(cache: Any) -> bool:
    """Whether a cache has a leading axis of time on its fields."""
    return getattr(getattr(cache, cache._fields[0]), "ndim", 0) == 3


def field_of_a_step(cache: Any, index: Any) -> Any:
    """``cache[index]``, a field of the cache of one step.

    In the documents ``caches[t]`` is a step. Here it would be a field, so it is refused.
    """
    if of_a_sequence(cache) and not isinstance(index, slice):
        raise TypeError(
            f"the caches of a sequence have no step [{index!r}]: it is cache_at(caches, t), from "
            "jaxrnn.textbook. They hold the input too, so there is no (caches, x) to unpack"
        )
    return tuple.__getitem__(cache, index)


def describe(value: Any) -> str:
    """A value as an error names it: an array by dtype and shape, a record or the rest by type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, (tuple, list, Mapping)):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r}"[:200]
