"""Watching backpropagation through time: the gradient, step by step.

Every function here takes the arguments of `jaxrnn.unroll`, and either the cotangents that a loss
sends to its outputs or the loss itself: ``(cell, params, xs, dhs, dfinal, initial_state, *, loss,
lengths, mask, resets, reset_state, detach, reverse, consts, key)``, for any cell. All but `explain`
work under `jax.jit`, with the cell static.

- `backpropagate`: the rule itself, with the gradient at every step.
- `step_contributions`, `horizon`: which steps make a parameter's gradient.
- `example_gradient_norms`: which rows of the batch do.
- `gradient_flow`: where the gradient vanishes, explodes, or becomes NaN.
- `truncation_bias`: what truncated backpropagation through time would lose.
- `explain`: all of it as a table and a figure.
"""

from jaxrnn.diagnostics.contributions import (
    ExampleGradientNorms,
    StepContributions,
    example_gradient_norms,
    horizon,
    step_contributions,
)
from jaxrnn.diagnostics.explain import Explanation, explain
from jaxrnn.diagnostics.flow import ORIGINS, GradientFlow, NonFinite, gradient_flow
from jaxrnn.diagnostics.recording import Gradients, backpropagate
from jaxrnn.diagnostics.truncation import TruncationBias, truncation_bias

__all__ = [
    "ORIGINS",
    "ExampleGradientNorms",
    "Explanation",
    "GradientFlow",
    "Gradients",
    "NonFinite",
    "StepContributions",
    "TruncationBias",
    "backpropagate",
    "example_gradient_norms",
    "explain",
    "gradient_flow",
    "horizon",
    "step_contributions",
    "truncation_bias",
]
