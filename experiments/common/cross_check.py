"""The check before every training: the handwritten gradient against JAX's autodiff."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.errors import CrossCheckError, NumericalError
from jaxrnn.testing import relative_differences

# what rounding explains, by the dtype of the products
TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2}


def gradient_differences(
    loss: Callable[..., jax.Array],
    reference_loss: Callable[..., jax.Array],
    params: Any,
    *args: Any,
) -> dict[str, float]:
    """Compare the gradients of two losses that have the same value.

    Args:
        loss: ``loss(params, *args)``, with the handwritten rule.
        reference_loss: the same loss, differentiated by JAX.
        params: a pytree of parameters.
        *args: further arguments of both.

    Returns:
        For every parameter by name (``"forward.w_hh"``): the largest difference between the two
        gradients, relative to the largest entry of the reference's.

    Raises:
        NumericalError: a parameter has a useless gradient by both: there is nothing to compare.
    """
    # on a GPU float32 products default to TF32, which rounds to 10 bits: far above the tolerance
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(jax.grad(loss))(params, *args)
        expected = jax.jit(jax.grad(reference_loss))(params, *args)
    differences = relative_differences(ours, expected)
    useless = [
        name
        for name, *both in zip(differences, *map(jax.tree.leaves, (ours, expected)), strict=True)
        if not any(0 < jnp.max(jnp.abs(gradient)) < math.inf for gradient in both)
    ]
    if useless:
        raise NumericalError(
            f"the gradient of {', '.join(useless)} is not finite, or zero throughout, both by hand "
            f"and by jax.grad of the reference: nothing can be learnt from it. Try a smaller "
            f"--noise; nothing was trained"
        )
    return differences


def table(differences: Mapping[str, float], dtype: str = "float32") -> str:
    """Show the differences, one parameter a line."""
    width = max(map(len, differences))
    lines = [f"  {name:{width}}  {value:.1e}" for name, value in differences.items()]
    head = "gradient by hand against jax.grad of the reference, largest relative difference"
    return "\n".join([f"{head} (tolerance {TOLERANCES[dtype]:.0e}):", *lines])


def require_agreement(differences: Mapping[str, float], dtype: str = "float32") -> None:
    """Raise CrossCheckError unless every difference is within the tolerance."""
    tolerance = TOLERANCES[dtype]
    # not `>`: a NaN must fail too
    failed = [name for name, value in differences.items() if not value <= tolerance]
    if failed:
        raise CrossCheckError(
            f"the handwritten gradient of {', '.join(failed)} differs from jax.grad of the "
            f"reference by more than {tolerance:.0e} of its largest entry; nothing was trained"
        )
