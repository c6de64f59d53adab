"""No time without agreement: every contender's values and gradients against the reference."""

from collections.abc import Mapping

import numpy as np

from jaxrnn.testing import relative_differences

# of an array's largest entry. Right contenders in float32 were within 3e-6 at the shapes tried,
# large ones among them; a wrong gate order, bias or step is off by far more than this
TOLERANCE = 2e-5


def differences(
    outputs: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Per array by name, the largest difference, relative to the largest entry of the truth.

    Infinite for an array that only one of them has, or of another shape.
    """
    return relative_differences(dict(outputs), dict(truth))


def disagreement(found: Mapping[str, float]) -> str | None:
    """Name the arrays that differ by more than the tolerance; None where all agree."""
    # not `>`: a NaN must not pass
    wrong = [f"{name} by {value:.0e}" for name, value in found.items() if not value <= TOLERANCE]
    return ", ".join(wrong) or None
