"""No time without agreement: every contender's values and gradients against the reference."""

from collections.abc import Mapping

import numpy as np

from jaxrnn.testing import relative_differences

# of an array's largest entry, by the dtype of the products. Right contenders in float32 were within
# 3e-6 at the shapes tried, large ones among them, and in bfloat16 within 1e-2; a wrong gate order,
# bias or step is off by far more than this
TOLERANCES = {"float32": 2e-5, "bfloat16": 4e-2}


def differences(
    outputs: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Per array by name, the largest difference, relative to the largest entry of the truth.

    Infinite for an array that only one of them has, or of another shape.
    """
    return relative_differences(dict(outputs), dict(truth))


def disagreement(found: Mapping[str, float], dtype: str = "float32") -> str | None:
    """Name the arrays that differ by more than the tolerance; None where all agree."""
    tolerance = TOLERANCES[dtype]
    # not `>`: a NaN must not pass
    wrong = [f"{name} by {value:.0e}" for name, value in found.items() if not value <= tolerance]
    return ", ".join(wrong) or None
