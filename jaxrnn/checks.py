"""Checks at the public boundary: what was wrong is said before any tracing goes deep.

Each error names the argument, what was expected, what came, and the likely fix where there is one.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

__all__ = [
    "array",
    "batch_shape_of",
    "booleans",
    "concrete",
    "describe",
    "floating",
    "floating_dtype",
    "lengths_of",
    "matching_arrays",
    "positive",
    "prng_key",
    "rate_of",
    "require_hashable",
    "same_structure",
    "sequence_of",
    "size",
    "sizes_of",
    "static_bool",
    "step_arguments",
    "vector",
]


def concrete(value: Any) -> np.ndarray | None:
    """The values of an array, or None where they are unknown while Python runs.

    Under `jax.jit` and the like an argument is traced, a constant is not, and what JAX makes of
    the constant there is: so ask the value as it came. Values sharded over other processes are
    unknown, too.
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


def booleans(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """``value`` as a mask of the steps, ``[T, ...]``."""
    mask = array(name, value)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be booleans; got dtype {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(
            f"`{name}` must be [T, ...] as `xs` without its last axis, {shape}; "
            f"got shape {mask.shape}"
        )
    return mask


def require_hashable(cell: Any) -> None:
    """Refuse a cell with a field that no program can be remembered by."""
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(
            f"`cell` must be hashable: every field of {cell.name} a function or a constant, "
            "arrays through params, state, xs or consts"
        ) from error


def describe(value: Any) -> str:
    """A value as an error names it: arrays by shape and dtype, the rest by type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array_like = f"{value.dtype}{list(value.shape)}"
        known = isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))
        return array_like if known else f"{type(value).__name__} of {array_like}"
    if getattr(type(value).__repr__, "__module__", "").startswith("jaxrnn"):
        # a cell or a network, in a few words
        return repr(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = (f"{n}={describe(v)}" for n, v in zip(value._fields, value, strict=True))
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={describe(v)}' for key, v in value.items())})"[:200]
    if isinstance(value, (list, tuple)) and any(
        hasattr(v, "shape") or hasattr(v, "_fields") for v in value
    ):
        return f"{type(value).__name__}({', '.join(map(describe, value))})"[:200]
    return f"{type(value).__name__} {value!r}"[:200]


def batch_shape_of(value: Any) -> tuple[int, ...]:
    """``batch_shape`` as a tuple of ints."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`batch_shape` must be a tuple of ints, such as (2,); got {value!r}")
    for axis in value:
        # sizes known by name alone, as in `jax.export`, are no ints
        if isinstance(axis, bool) or not (hasattr(axis, "__index__") or is_symbolic_dim(axis)):
            raise TypeError(
                f"`batch_shape` must be a tuple of ints, such as (2,); got {tuple(value)!r}"
            )
    return tuple(value)


def vector(size: int, dtype: Any) -> Any:
    """The type of a vector, for `jaxrnn.cells.Expects`."""
    return jax.ShapeDtypeStruct((size,), dtype)


def rate_of(name: str, value: Any) -> float:
    """``value`` as a share in 0..1, 1 excluded, known before tracing."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number, known before tracing; got {value!r}")
    rate = float(value)
    if not 0 <= rate < 1:
        raise ValueError(f"`{name}` must be in 0..1, 1 excluded; got {value}")
    return rate


def positive(name: str, value: Any) -> float:
    """``value`` as a number above 0, known before tracing."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number, known before tracing; got {value!r}")
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"`{name}` must be above 0 and finite; got {value}")
    return number


def prng_key(name: str, value: Any) -> Any:
    """``value`` as one PRNG key."""
    try:
        jax.eval_shape(jax.random.fold_in, value, 0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be one jax.random.key; got {describe(value)}") from error
    return value


def sizes_of(
    params: Any, params_type: Any, axes: tuple[str, ...], *, owner: str
) -> tuple[dict[str, int], Any]:
    """The sizes of a cell's params, and what they make of them: shapes and one floating dtype.

    Args:
        params: of any type.
        params_type: the NamedTuple that they must be.
        axes: a string for each of its fields that names the array's axes, such as ``"I 4H"``: a
            letter is a size, a number before it a multiple.
        owner: the cell or layer whose params they are.

    Returns:
        ``(sizes, like)``: the sizes by letter, and the params' `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: another container or dtype.
        ValueError: shapes that do not fit each other.
    """
    if not isinstance(params, params_type):
        fix = ""
        if isinstance(params, dict) and set(params) == set(params_type._fields):
            fix = f" (make it {params_type.__name__}(**params))"
        raise TypeError(
            f"`params` must be {params_type.__name__} from {owner}.init; got "
            f"{describe(params)}{fix}"
        )
    leaves = {
        name: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else floating(f"params.{name}", leaf)
        for name, leaf in params._asdict().items()
    }
    named = {name: text.split() for name, text in zip(leaves, axes, strict=True)}
    for name, leaf in leaves.items():
        if leaf.ndim != len(named[name]) or 0 in leaf.shape:
            raise ValueError(
                f"`params.{name}` must be [{', '.join(named[name])}], none of them empty; "
                f"got shape {leaf.shape}"
            )
    dtypes = {name: leaf.dtype for name, leaf in leaves.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"`params` must have one dtype; got {listed}")

    def solve(found: dict[str, tuple[int, ...]]) -> tuple[dict[str, int], str | None]:
        """Sizes by the axes that are a letter alone, and the first array that contradicts them."""
        sizes: dict[str, int] = {}
        for name, shape in found.items():
            for axis, length in zip(named[name], shape, strict=True):
                if axis.isalpha():
                    sizes.setdefault(axis, length)
        for name, shape in found.items():
            if shape != tuple(_multiple(axis, sizes) for axis in named[name]):
                return sizes, name
        return sizes, None

    found = {name: leaf.shape for name, leaf in leaves.items()}
    sizes, wrong = solve(found)
    if wrong is not None:
        if solve({n: s[::-1] for n, s in found.items()})[1] is None:
            raise ValueError(
                f"`params.{wrong}` must be [{', '.join(named[wrong])}]; got shape {found[wrong]}: "
                "transposed they would fit (PyTorch stores a weight as [outputs, inputs])"
            )
        given = ", ".join(f"{letter}={n}" for letter, n in sizes.items())
        right = tuple(_multiple(axis, sizes) for axis in named[wrong])
        raise ValueError(
            f"`params.{wrong}` must be [{', '.join(named[wrong])}], {right} in {owner} of {given}; "
            f"got shape {found[wrong]}"
        )
    dtype = next(iter(dtypes.values()))
    like = params_type(*(jax.ShapeDtypeStruct(shape, dtype) for shape in found.values()))
    return sizes, like


def _multiple(axis: str, sizes: dict[str, int]) -> int:
    """The length of an axis such as ``"4H"``."""
    letter = axis.lstrip("0123456789")
    return int(axis.removesuffix(letter) or 1) * sizes[letter]


def sequence_of(xs: Any, like: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """``xs`` as arrays ``[T, *batch, ...]``: ``(xs, T, batch_shape)``.

    Args:
        xs: a pytree like ``like``, each leaf with time and batch axes in front.
        like: as `jaxrnn.cells.Expects.x`: `jax.ShapeDtypeStruct` or ranks.
    """
    if isinstance(like, jax.ShapeDtypeStruct) and isinstance(xs, (list, tuple, dict)):
        raise TypeError(
            f"`xs` must be one array [T, ..., I]; got {describe(xs)} (pad recordings of different "
            "lengths to one array, and tell the lengths by `lengths`)"
        )
    ranks = isinstance(like, int)
    if ranks:
        like = jax.tree.map(lambda _: like, xs)
    if not same_structure(xs, like) or not jax.tree.leaves(xs):
        raise TypeError(
            f"`xs` must be a pytree of arrays like {describe(like)}; got {describe(xs)}"
        )
    first: tuple[str, tuple[Any, ...]] | None = None

    def check(path: Any, leaf: Any, like: Any) -> jax.Array:
        nonlocal first
        label = "xs" + jax.tree_util.keystr(path)
        leaf = array(label, leaf)
        rank = like if isinstance(like, int) else len(like.shape)
        sizes = ["..."] * rank if isinstance(like, int) else list(map(str, like.shape))
        if rank == 1 and not isinstance(like, int):
            sizes = [f"I={like.shape[0]}"]
        leading = leaf.ndim - rank
        if leading < 1 or (not isinstance(like, int) and leaf.shape[leading:] != like.shape):
            raise ValueError(
                f"`{label}` must be [{', '.join(['T', '...', *sizes])}], time first; got shape "
                f"{leaf.shape}"
            )
        if not isinstance(like, int) and leaf.dtype != like.dtype:
            raise TypeError(
                f"`{label}` must have the dtype of `params`, {like.dtype}; got {leaf.dtype} "
                f"(convert one of them: xs.astype({like.dtype})){_x64_hint(leaf.dtype, like.dtype)}"
            )
        if first is None:
            first = label, leaf.shape[:leading]
        elif leaf.shape[:leading] != first[1]:
            raise ValueError(
                f"`{label}` must start with the time and batch axes of `{first[0]}`, {first[1]}; "
                f"got shape {leaf.shape}"
            )
        return leaf

    xs = jax.tree_util.tree_map_with_path(check, xs, like)
    assert first is not None
    T, *batch_shape = first[1]
    return xs, T, tuple(batch_shape)


def step_arguments(expects: Any, state: Any, x: Any) -> tuple[Any, Any]:
    """``state`` and ``x`` of one step, as arrays that fit each other and the params."""
    xs = jax.tree.map(lambda leaf: array("x", leaf)[None], x)
    try:
        xs, _, batch_shape = sequence_of(xs, expects.x)
    except (TypeError, ValueError) as error:
        raise type(error)(
            str(error).replace("`xs", "`x").replace("[T, ...", "[...").replace(", time first", "")
        ) from error
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*batch_shape, *leaf.shape), leaf.dtype), expects.state
    )
    return matching_arrays("state", state, like, " (for this x)"), jax.tree.map(
        lambda leaf: leaf[0], xs
    )


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
        fix = ""
        fields = getattr(expected, "_fields", ())
        if isinstance(value, dict) and set(value) == set(fields):
            fix = f" (make it {type(expected).__name__}(**{name}))"
        elif isinstance(value, (tuple, list)) and fields and len(value) == len(fields):
            fix = f" (make it {type(expected).__name__}(*{name}))"
        raise TypeError(f"`{name}` must be {describe(expected)}{why}; got {describe(value)}{fix}")

    def check(path: Any, leaf: Any, want: jax.ShapeDtypeStruct) -> jax.Array:
        label = name + jax.tree_util.keystr(path)
        leaf = array(label, leaf)
        if leaf.shape != want.shape:
            raise ValueError(f"`{label}` must have shape {want.shape}{why}; got shape {leaf.shape}")
        if leaf.dtype != want.dtype:
            hint = _x64_hint(leaf.dtype, want.dtype)
            raise TypeError(f"`{label}` must have dtype {want.dtype}{why}; got {leaf.dtype}{hint}")
        return leaf

    return jax.tree_util.tree_map_with_path(check, value, expected)


def _x64_hint(*dtypes: Any) -> str:
    """A word on JAX's flag, if one of the dtypes needs it."""
    off = jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64 and any(
        jnp.dtype(d).itemsize == 8 for d in dtypes
    )
    return " (64 bits are off: jax.config.update('jax_enable_x64', True))" if off else ""


def lengths_of(value: Any, T: int, batch_shape: tuple[int, ...], *, like: str) -> jax.Array:
    """``lengths`` as int32 ``[...]`` within 0..T, for sequences named ``like``.

    Concrete values out of range raise; traced ones are clipped.
    """
    lengths = array("lengths", value)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`lengths` must be integers; got dtype {lengths.dtype}")
    if lengths.shape != batch_shape:
        fix = ""
        if lengths.shape == (T,):
            fix = f" (is `{like}` batch-major? time comes first: jnp.swapaxes({like}, 0, 1))"
        raise ValueError(
            f"`lengths` must have the batch shape of `{like}`, {batch_shape}; "
            f"got shape {lengths.shape}{fix}"
        )
    values = concrete(value)
    if values is not None and values.size and (values.min() < 0 or values.max() > T):
        raise ValueError(
            f"`lengths` must lie in 0..{T=}; got values from {values.min()} to {values.max()}"
        )
    if not isinstance(T, int):
        return jnp.clip(lengths.astype(jnp.int32), min=0, max=jnp.asarray(T, jnp.int32))
    # clipped before a cast to 32 bits can wrap, by a bound that the lengths' own dtype can hold
    top = min(T, int(jnp.iinfo(lengths.dtype).max))
    return jnp.clip(lengths, min=0, max=top).astype(jnp.int32)
