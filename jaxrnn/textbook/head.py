"""The prediction of a step, its error, and the gradients that no document writes down.

    z = W a + b,   ŷ = softmax(z) over the features,   E = -Σ_t Σ_examples Σ_features y ∘ log ŷ

The targets y have the shape of the predictions: one-hot columns, or any other weights. A column of
zeros takes its example, at that step, out of the error. E is a sum over time steps and over
examples, not a mean. The shapes are the documents': features first, then the m examples, then the
T_x steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxrnn.textbook.checks import Array, Fixed, array

__all__ = ["cross_entropy", "cross_entropy_terms", "head_backward", "logit_gradient", "predict"]


def predict(W: Array, a: Array, b: Array | None = None) -> Array:
    """ŷ ``(n_y, m)`` = softmax(W a + b), for ``a (n_a, m)``; no bias if None."""
    # jax.nn.softmax subtracts the largest entry of a column first: no exponential overflows
    return jax.nn.softmax(W @ a if b is None else W @ a + b, axis=0)


def cross_entropy_terms(y: Any, y_pred: Any, name: str = "y_pred") -> Array:
    """The error of every step, ``(T_x,)``; ``name`` is how the caller calls ``y_pred``."""
    fixed = Fixed({}, {})
    y_pred = array(name, y_pred, "n_y m T_x", fixed)
    y = array("y", y, "n_y m T_x", fixed)
    return -jnp.sum(xlogy(y, y_pred), axis=(0, 1))


def cross_entropy(y: Any, y_pred: Any) -> Array:
    """The error E = -Σ y log ŷ of predictions ``y_pred (n_y, m, T_x)``: rnn-12, lstm-26.

    Beyond the document "Recurrent Neural Network", which has no loss. A sum over steps and
    examples; targets ``y`` of the same shape, see the module.
    It is infinite once the prediction for a target has underflowed to zero; the gradients of
    `rnn_head_backward` and `lstm_head_backward` stay exact there.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong dtype or shape.
    """
    return jnp.sum(cross_entropy_terms(y, y_pred))


def logit_gradient(y: Array, y_pred: Array, axis: int = 0) -> Array:
    """dE/dz, of the shape of ``y``: ŷ - y where the features of y, on ``axis``, sum to 1."""
    return y_pred * jnp.sum(y, axis=axis, keepdims=True) - y


def head_backward(y: Array, y_pred: Array, a: Array, W: Array) -> tuple[Array, Array, Array]:
    """dW, db and da of the error, over all steps."""
    dz = logit_gradient(y, y_pred)
    dW = jnp.tensordot(dz, a, axes=((1, 2), (1, 2)))
    db = jnp.sum(dz, axis=(1, 2))[:, None]
    return dW, db, jnp.tensordot(W.T, dz, axes=1)
