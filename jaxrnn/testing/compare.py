"""Comparison of values and gradients: the leaves and steps that differ, and by how much.

Two ways to one gradient round the same sums in another order, which makes some hundreds of
roundings of at most eps each, relative to the largest term. A wrong term makes a sizeable part of
the gradient. The tolerance stands between the two: ``2**12 * eps`` of the gradient's largest
entry, which is 9.1e-13 in float64 and 4.9e-4 in float32. In 16 bits there is less room between:
``2**4 * eps``, 0.125 in bfloat16.

A cotangent of ones can hide a wrong term, and one output another: so the cotangents are random, on
all outputs together first, then on each alone.
"""

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.checks import describe
from jaxrnn.testing.arrays import Arrays, Function, Run, differentiated, normal, pull_back

__all__ = [
    "Setup",
    "begins",
    "compare",
    "compare_derivatives",
    "compare_runs",
    "differences",
    "relative_differences",
    "require_like",
    "require_same",
    "tolerance_of",
]


class Setup(NamedTuple):
    """The options of a comparison, and the beginning of its message."""

    sides: tuple[str, str]
    tolerance: float
    seed: int
    title: str = ""
    setting: str = ""
    reverse: bool = False


def compare(
    setup: Setup,
    function: Function,
    reference: Function,
    inputs: Arrays,
    times: Mapping[str, int],
    locate: Callable[[Arrays], dict[str, str]] | None = None,
) -> tuple[Run, Run]:
    """Values, then gradients, for cotangents of all outputs together and then of each alone.

    Returns:
        The two programs, to be run on other inputs.
    """
    (found, found_others), (outputs, others) = (
        jax.eval_shape(f, inputs) for f in (function, reference)
    )
    if not outputs:
        raise ValueError(f"`{setup.sides[1]}` must return a floating array")
    require_like(setup, {**found, **found_others}, {**outputs, **others})
    runs = differentiated(function), differentiated(reference)
    drawn = normal(outputs, setup.seed)
    compare_runs(setup, runs, inputs, drawn, "all outputs", times, locate)
    for path in outputs:
        alone = {p: d if p == path else np.zeros_like(d) for p, d in drawn.items()}
        compare_runs(setup, runs, inputs, alone, f"{path} alone", times, locate)
    return runs


def compare_runs(
    setup: Setup,
    runs: tuple[Run, Run],
    inputs: Arrays,
    cotangents: Arrays,
    on: str,
    times: Mapping[str, int],
    locate: Callable[[Arrays], dict[str, str]] | None = None,
) -> None:
    """Values, then gradients, for these cotangents."""
    (values, gradients), (true_values, true_gradients) = (run(inputs, cotangents) for run in runs)
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
    """Refuse values that differ: which, from which step on, by how much."""
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
        largest = _largest(expected[path])
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


# a value that is not finite is a difference to be told, not a warning
@np.errstate(all="ignore")
def differences(
    found: Arrays, expected: Arrays, tolerance: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every leaf that differs: how much, and where too much."""
    largest = {path: _largest(leaf) for path, leaf in expected.items()}
    wrong = {}
    for path in expected:
        a, e = (np.asarray(tree[path], np.float64) for tree in (found, expected))
        error = np.abs(a - e)
        # a gradient that cancels to nothing errs by the rounding of the terms that cancel
        relative = error / max(largest[path], max(largest.values()) / 100)
        # equal zeros are 0 / 0; written so that any other NaN is wrong
        mask = ~((a == e) | (relative <= tolerance))
        if mask.any():
            wrong[path] = error, mask
    return wrong


@np.errstate(all="ignore")
def relative_differences(actual: Any, expected: Any) -> dict[str, float]:
    """Per leaf by name, the largest difference relative to the largest entry that is expected.

    Args:
        actual, expected: pytrees of arrays or numbers, compared in float64.

    Returns:
        For every leaf by its path (``"forward.w_hh"``): the largest difference, divided by the
        largest entry of ``expected``, or as it is where that is zero throughout. NaN or infinite
        where an entry is not finite, and infinite for a leaf that only one of the two has, or of
        another shape: require ``difference <= tolerance``, which holds for neither. 0 for leaves
        of dtype float0, the gradients of integers, because they have no entries.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.testing import relative_differences
        >>> actual = {"cell": {"w": jnp.array([1.0, 5.0]), "b": jnp.zeros(2)}}
        >>> expected = {"cell": {"w": jnp.array([1.0, 4.0]), "b": jnp.zeros(2)}}
        >>> relative_differences(actual, expected)
        {'cell.b': 0.0, 'cell.w': 0.25}
    """
    leaves, right = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (actual, expected)
    )
    found = {}
    for name in {**right, **leaves}:
        a, e = leaves.get(name), right.get(name)
        if a is None or e is None or a.shape != e.shape:
            found[name] = math.inf
        elif a.dtype == e.dtype == jax.dtypes.float0:
            found[name] = 0.0
        else:
            e = e.astype(np.float64)
            error = np.max(np.abs(a.astype(np.float64) - e), initial=0.0)
            found[name] = float(error / (_largest(e) or 1.0))
    return found


def _largest(leaf: Any) -> float:
    """The largest magnitude among the finite entries."""
    magnitudes = np.abs(np.asarray(leaf, np.float64))
    return float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))


def begins(wrong: np.ndarray, axis: int, *, last: bool) -> str:
    """The first visited step of those that are wrong, in words."""
    steps = np.flatnonzero(np.moveaxis(wrong, axis, 0).reshape(wrong.shape[axis], -1).any(axis=1))
    return f"first at step {steps[-1 if last else 0]} ({len(steps)} of {wrong.shape[axis]} differ)"


def tolerance_of(value: Any, *dtypes: jax.typing.DTypeLike) -> float:
    """The tolerance that is given, or that of the coarsest of these dtypes."""
    if value is None:
        types = [jnp.finfo(dtype) for dtype in dtypes]
        return max((2**4 if t.bits < 32 else 2**12) * float(t.eps) for t in types)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`tolerance` must be a number or None; got {describe(value)}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"`tolerance` must be finite and not negative; got {value}")
    return float(value)
