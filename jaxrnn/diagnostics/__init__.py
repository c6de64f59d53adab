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

The first argument may be a `jaxrnn.Network`, too. Then the others are those of its ``apply``
(``params, xs, initial_state, lengths, mask, resets, detach, key``), and the loss or the cotangents
are of its outputs. The result has the fields that the result of a cell has. A field that is shaped
as the params is a `jaxrnn.StackParams`; any other one is a `jaxrnn.StackState`, with an entry for
each layer and direction.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> network = jaxrnn.stack(jaxrnn.layer(jaxrnn.LSTM, 5), jaxrnn.layer(jaxrnn.GRU, 4))
    >>> params = network.init(jax.random.key(0), 3)
    >>> def loss(final_state, hs):
    ...     return jnp.mean(hs[-1] ** 2)
    >>> parts = step_contributions(network, params, jnp.ones((7, 2, 3)), loss=loss)
    >>> parts.norms.layers[0].forward.w_hh.shape
    (7,)
    >>> example_gradient_norms(network, params, jnp.ones((7, 2, 3)), loss=loss).total.shape
    (2,)
"""

from jaxrnn.diagnostics.backpropagation import Gradients, backpropagate
from jaxrnn.diagnostics.contributions import (
    ExampleGradientNorms,
    StepContributions,
    example_gradient_norms,
    horizon,
    step_contributions,
)
from jaxrnn.diagnostics.explain import Explanation, explain
from jaxrnn.diagnostics.flow import ORIGINS, GradientFlow, NonFinite, gradient_flow
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
