"""Values and gradients of one function against those of another."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.checks import describe, floating_dtype, size, static_bool
from jaxrnn.testing.arrays import Function, cast, flat_function, floats, named
from jaxrnn.testing.compare import Setup, compare, compare_derivatives, tolerance_of

__all__ = ["check_sequence_gradients"]


def check_sequence_gradients(
    f: Callable[..., Any],
    reference: Callable[..., Any],
    args: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    time_axis: int | Sequence[int | None] | None = None,
    reverse: bool = False,
    order: int = 1,
    dtype: jax.typing.DTypeLike = jnp.float64,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Check the values and gradients of one function against those of another.

    For every floating leaf of the arguments, with random cotangents of all outputs together and
    then of each alone. All other leaves (integers, booleans, keys, options) are held fixed.

    Args:
        f, reference: functions of the same arguments that return the same pytree of arrays.
        args: their arguments, a tuple of pytrees.
        names: what the message calls the arguments; None for ``args[0]``, ``args[1]``, ...
        time_axis: the axis of the leaves that is time, negative to count from the last, None for
            no such axis: one for all arguments, or a tuple with one for each. Only the message
            depends on it.
        reverse: the functions run from the last step to the first.
        order: 2 to compare second derivatives too: how the gradients depend on the arguments and
            on the cotangents.
        dtype: what the floating leaves are cast to.
        tolerance: the largest difference allowed, relative to the gradient's largest entry; None
            for ``2**12 * eps`` of ``dtype``, or ``2**4 * eps`` of one of 16 bits.
        seed: for the cotangents.

    Raises:
        AssertionError: they differ; the message says in which value or gradient, for which
            cotangents, by how much, and from which time step on.
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.testing import check_sequence_gradients
        >>> check_sequence_gradients(jnp.cumsum, lambda xs: jnp.tri(5) @ xs, (jnp.arange(5.0),))
    """
    for name, function in (("f", f), ("reference", reference)):
        if not callable(function):
            raise TypeError(f"`{name}` must be a function; got {describe(function)}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"`args` must be a tuple of arguments; got {describe(args)}")
    if names is None:
        names = [f"args[{i}]" for i in range(len(args))]
    if not isinstance(time_axis, (tuple, list)):
        time_axis = [time_axis] * len(args)  # type: ignore[list-item]
    for name, given in (("names", names), ("time_axis", time_axis)):
        if not isinstance(given, (tuple, list)) or len(given) != len(args):
            raise ValueError(f"`{name}` must have one entry for each of `args`; got {given!r}")
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`names` must be strings; got {names!r}")
    for axis in time_axis:
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, (int, np.integer))):
            raise TypeError(f"`time_axis` must be an int or None for each of `args`; got {axis!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"`names` must be all different; got {names!r}")
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2; got {order!r}")
    dtype = floating_dtype("dtype", dtype)
    setup = Setup(
        sides=("f", "reference"),
        tolerance=tolerance_of(tolerance, dtype),
        seed=size("seed", seed, least=0),
        setting=f"{dtype}",
        reverse=static_bool("reverse", reverse),
    )
    with jax.enable_x64(True):
        args = cast(args, dtype)
        inputs, times = {}, {}
        for name, arg, axis in zip(names, args, time_axis, strict=True):
            for path, leaf in named([name], [arg]).items():
                if floats(leaf):
                    inputs[path] = leaf
                    if axis is not None:
                        if not -leaf.ndim <= axis < leaf.ndim:
                            raise ValueError(
                                f"`time_axis` must be an axis of {path}, {describe(leaf)}, or None "
                                f"for an argument without time; got {axis}"
                            )
                        times[path] = int(axis) % leaf.ndim
        if not inputs:
            raise ValueError("`args` must have a floating leaf")

        def function(g: Callable[..., Any]) -> Function:
            return flat_function(lambda *args: (g(*args),), names, args, ["output"])

        compare(setup, function(f), function(reference), inputs, times)
        if order == 2:
            compare_derivatives(setup, function(f), function(reference), inputs)
