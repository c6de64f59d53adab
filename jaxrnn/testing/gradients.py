"""Values and gradients of one function against those of another, and where they differ.

Both are computed in float64, where rounding and error are far apart: two ways to one gradient
round the same sums in another order, which makes some hundreds of roundings of at most eps each,
relative to the largest term; a wrong term makes a sizeable part of the gradient. The tolerance
stands between the two: ``2**12 * eps`` of the gradient's largest entry, which is 9.1e-13 in float64
(and 4.9e-4 in float32).

A cotangent of ones can hide a wrong term, and one output another: so the cotangents are random, on
all outputs together first, then on each alone.
"""

import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.validation import describe, floating_dtype, size, static_bool

__all__ = [
    "Arrays",
    "Function",
    "Setup",
    "begins",
    "check_sequence_gradients",
    "compare",
    "compare_derivatives",
    "compiled",
    "differences",
    "flat_function",
    "floating",
    "floats",
    "named",
    "normal",
    "pull_back",
    "require_like",
    "require_same",
    "tolerance_of",
]

Arrays: TypeAlias = dict[str, Any]
"""Leaves of pytrees by name, such as ``params.w_hh``."""

Function: TypeAlias = Callable[[Arrays], tuple[Arrays, Arrays]]
"""From floating leaves to floating outputs, and beside them the outputs that have no gradient."""


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
            for ``2**12 * eps`` of ``dtype``.
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


class Setup(NamedTuple):
    """What a check needs beside the functions: how to compare, and what to tell."""

    sides: tuple[str, str]
    tolerance: float
    seed: int
    title: str = ""
    setting: str = ""
    reverse: bool = False


def named(names: Sequence[str], trees: Sequence[Any]) -> Arrays:
    return {
        name + jax.tree_util.keystr(path): leaf
        for name, tree in zip(names, trees, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def floats(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)


def floating(arrays: Arrays) -> Arrays:
    return {path: leaf for path, leaf in arrays.items() if floats(leaf)}


def cast(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if floats(a) else a, tree)


def normal(like: Any, seed: int) -> Any:
    """A pytree of these shapes and dtypes, drawn from the standard normal distribution."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), like)


def flat_function(
    f: Callable[..., Any], names: Sequence[str], args: Sequence[Any], outputs: Sequence[str]
) -> Function:
    """``f`` as a function of the floating leaves of its arguments, all others held fixed."""
    leaves, structure = named(names, args), jax.tree.structure(tuple(args))

    def function(inputs: Arrays) -> tuple[Arrays, Arrays]:
        given = [inputs.get(path, leaf) for path, leaf in leaves.items()]
        found = named(outputs, f(*jax.tree.unflatten(structure, given)))
        values = floating(found)
        return values, {path: leaf for path, leaf in found.items() if path not in values}

    return function


def pull_back(function: Function, inputs: Arrays, cotangents: Arrays) -> Arrays:
    """The gradients of the inputs, of the same names."""
    _, pull, _ = jax.vjp(function, inputs, has_aux=True)
    (gradients,) = pull(cotangents)
    return gradients


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``f`` under `jax.jit`, without optimisation where the compiler is known to take the option.

    Each program runs once, so that to compile it is all that it costs; and what is to be checked is
    the program, not what an optimising compiler makes of it.
    """
    fast = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(f, compiler_options=fast if on_cpu else None, **options)


def differentiated(function: Function) -> Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]:
    """From inputs and cotangents to values and gradients, compiled once for all cotangents."""

    @compiled
    def run(inputs: Arrays, cotangents: Arrays) -> tuple[Arrays, Arrays]:
        values, pull, others = jax.vjp(function, inputs, has_aux=True)
        (gradients,) = pull(cotangents)
        return {**values, **others}, gradients

    return lambda *given: jax.tree.map(np.asarray, run(*given))


def compare(
    setup: Setup,
    function: Function,
    reference: Function,
    inputs: Arrays,
    times: Mapping[str, int],
    locate: Callable[[Arrays], dict[str, str]] | None = None,
) -> None:
    """Values, then gradients, for cotangents of all outputs together and then of each alone."""
    (found, found_others), (outputs, others) = (
        jax.eval_shape(f, inputs) for f in (function, reference)
    )
    if not outputs:
        raise ValueError(f"`{setup.sides[1]}` must return a floating array")
    require_like(setup, {**found, **found_others}, {**outputs, **others})
    drawn = normal(outputs, setup.seed)
    chosen = {"all outputs": list(outputs), **{f"{path} alone": [path] for path in outputs}}
    runs = differentiated(function), differentiated(reference)
    for row, (on, paths) in enumerate(chosen.items()):
        cotangents = {p: d if p in paths else np.zeros_like(d) for p, d in drawn.items()}
        (values, gradients), (true_values, true_gradients) = (
            run(inputs, cotangents) for run in runs
        )
        if row == 0:
            # values differ first where the step is made, gradients where its adjoint is
            require_same(setup, "wrong value", values, true_values, times, last=setup.reverse)
        require_same(
            setup._replace(setting=f"{setup.setting}, cotangents on {on}"),
            "wrong gradient",
            {path: gradients[path] for path in inputs},
            {path: true_gradients[path] for path in inputs},
            times,
            last=not setup.reverse,
            locate=locate and functools.partial(locate, cotangents),
        )


def compare_derivatives(
    setup: Setup, function: Function, reference: Function, inputs: Arrays
) -> None:
    """The gradients as functions of inputs and cotangents, by their own values and gradients."""
    outputs, _ = jax.eval_shape(reference, inputs)
    cotangents = {f"cotangent of {p}": d for p, d in normal(outputs, setup.seed + 1).items()}

    def gradient(function: Function) -> Function:
        def gradients(arrays: Arrays) -> tuple[Arrays, Arrays]:
            given = {path: arrays[path] for path in inputs}
            pulled = pull_back(function, given, {p: arrays[f"cotangent of {p}"] for p in outputs})
            return {f"the gradient of {path}": leaf for path, leaf in pulled.items()}, {}

        return gradients

    compare(
        setup._replace(setting=f"{setup.setting}, second order"),
        gradient(function),
        gradient(reference),
        {**inputs, **cotangents},
        times={},
    )


def require_like(setup: Setup, found: Arrays, expected: Arrays) -> None:
    """Refuse outputs of other names, shapes or dtypes."""
    for path in {**expected, **found}:
        a, e = (describe(tree[path]) if path in tree else "nothing" for tree in (found, expected))
        if a != e:
            raise AssertionError(
                f"{setup.title}wrong shape or dtype of {path}\n  {setup.setting}\n"
                f"  {setup.sides[0]} {a}, {setup.sides[1]} {e}"
            )


def require_same(
    setup: Setup,
    what: str,
    found: Arrays,
    expected: Arrays,
    times: Mapping[str, int],
    *,
    last: bool = False,
    locate: Callable[[], dict[str, str]] | None = None,
) -> None:
    """Refuse values that differ, and tell all there is to tell about it."""
    wrong = differences(found, expected, setup.tolerance)
    if not wrong:
        return
    where = locate() if locate else {}
    lines = [f"{setup.title}{what} of {', '.join(wrong)}", f"  {setup.setting}"]
    for path, (error, mask) in wrong.items():
        if path in times:
            where[path] = begins(mask, times[path], last=last)
        at = np.unravel_index(np.argmax(error), error.shape)
        first = f"{where[path]}; " if path in where else ""
        largest = np.max(np.abs(expected[path]), initial=0.0, where=np.isfinite(expected[path]))
        # of next to nothing, the share says nothing
        if error[at] <= 10 * largest:
            size_of_it = f"{error[at] / largest:.2e} of the largest entry"
        else:
            size_of_it = (
                f"where no entry should be above {largest:.2e}"
                if largest
                else ("where all should be zero")
            )
        numbers = zip(setup.sides, (found[path][at], expected[path][at]), strict=True)
        lines.append(
            f"  {path}: {first}largest difference {error[at]:.2e}, {size_of_it}, "
            f"at {[int(i) for i in at]}: "
            + ", ".join(f"{side} {number!s}" for side, number in numbers)
        )
    raise AssertionError("\n".join(lines))


# what is not finite is a difference to be told, not a warning
@np.errstate(all="ignore")
def differences(
    found: Arrays, expected: Arrays, tolerance: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every leaf that differs: how much, and where too much."""
    pairs = {
        path: tuple(np.asarray(tree[path], np.float64) for tree in (found, expected))
        for path in expected
    }
    largest = {p: np.max(np.abs(e[np.isfinite(e)]), initial=0.0) for p, (_, e) in pairs.items()}
    wrong = {}
    for path, (a, e) in pairs.items():
        error = np.abs(a - e)
        # a gradient that cancels to nothing errs by the rounding of what it is made of
        relative = error / max(largest[path], max(largest.values()) / 100)
        # equal zeros are 0 / 0; written so that any other NaN is wrong
        mask = ~((a == e) | (relative <= tolerance))
        if mask.any():
            wrong[path] = error, mask
    return wrong


def begins(wrong: np.ndarray, axis: int, *, last: bool) -> str:
    """Which step of those that are wrong is visited first."""
    steps = np.flatnonzero(np.moveaxis(wrong, axis, 0).reshape(wrong.shape[axis], -1).any(axis=1))
    return f"first at step {steps[-1 if last else 0]} ({len(steps)} of {wrong.shape[axis]} differ)"


def tolerance_of(value: Any, dtype: jax.typing.DTypeLike) -> float:
    if value is None:
        return 2**12 * float(jnp.finfo(dtype).eps)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`tolerance` must be a number or None; got {describe(value)}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"`tolerance` must be finite and not negative; got {value}")
    return float(value)
