"""The recurrent network of the document "Recurrent Neural Network", in its own notation.

Features come first, then the m examples, then the T_x steps: ``x (n_x, m, T_x)``,
``a (n_a, m, T_x)``, ``y_pred (n_y, m, T_x)``; a bias is ``(n, 1)``. In the equations <t> is the
time step, ∘ the product entry by entry, and dq the gradient of the loss with respect to q. What is
marked + is not in the document.

    rnn-1     a<t> = tanh(Wax x<t> + Waa a<t-1> + ba)
    rnn-2     ŷ<t> = softmax(Wya a<t> + by)
    rnn-3     ∂tanh(u)/∂u = 1 - tanh²(u)
    rnn-4     dtanh = da_next ∘ (1 - tanh²(Wax x<t> + Waa a<t-1> + ba))
    rnn-5     dWax = dtanh x<t>ᵀ
    rnn-6     dWaa = dtanh a<t-1>ᵀ
    rnn-7     dba = Σ_batch dtanh
    rnn-8     dxt = Waxᵀ dtanh
    rnn-9     da_prev = Waaᵀ dtanh
    rnn-10 +  da_next<t> = da<t> + da_prev<t+1>, da_prev<T_x+1> = 0, da0 = da_prev<1>
    rnn-11 +  dWax = Σ_t dWax<t>, dWaa = Σ_t dWaa<t>, dba = Σ_t dba<t>
    rnn-12 +  E = -Σ_t Σ_batch Σ_features y<t> ∘ log ŷ<t>
    rnn-13 +  dz<t> = ŷ<t> ∘ Σ_features y<t> - y<t>, for z<t> = Wya a<t> + by
    rnn-14 +  dWya = Σ_t dz<t> a<t>ᵀ
    rnn-15 +  dby = Σ_t Σ_batch dz<t>
    rnn-16 +  da<t> = Wyaᵀ dz<t>

``dtanh`` is the document's name for the gradient with respect to the *argument* of tanh.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxrnn.textbook.checks import (
    Array,
    Parameters,
    array,
    cache_of,
    field_of_a_step,
    parameters_of,
)
from jaxrnn.textbook.head import head_backward, predict

__all__ = [
    "RNN_PARAMETERS",
    "RNNCache",
    "rnn_backward",
    "rnn_cell_backward",
    "rnn_cell_forward",
    "rnn_forward",
    "rnn_head_backward",
]

RNN_PARAMETERS = {
    "Wax": "n_a n_x",
    "Waa": "n_a n_a",
    "Wya": "n_y n_a",
    "ba": "n_a 1",
    "by": "n_y 1",
}
"""The keys of the dictionary of parameters, and the axes of each."""


class RNNCache(NamedTuple):
    """Inputs of the backward pass, in the document's order.

    Of one step: ``a_next (n_a, m)``, ``a_prev (n_a, m)``, ``xt (n_x, m)`` and the parameters. Of a
    sequence: the same with a leading axis T_x on all but the parameters, which are held once.
    """

    a_next: Array
    a_prev: Array
    xt: Array
    parameters: Parameters

    def __getitem__(self, index: Any) -> Any:
        return field_of_a_step(self, index)


CACHE = {"a_next": "n_a m", "a_prev": "n_a m", "xt": "n_x m"}


def rnn_cell_forward(
    xt: Any, a_prev: Any, parameters: dict[str, Any]
) -> tuple[Array, Array, RNNCache]:
    """One step: rnn-1, rnn-2.

    Args:
        xt: the input of the step, ``(n_x, m)``.
        a_prev: the hidden state of the step before, ``(n_a, m)``.
        parameters: ``Wax (n_a, n_x)``, ``Waa (n_a, n_a)``, ``Wya (n_y, n_a)``, ``ba (n_a, 1)``,
            ``by (n_y, 1)``.

    Returns:
        ``(a_next (n_a, m), yt_pred (n_y, m), cache)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, RNN_PARAMETERS)
    xt = array("xt", xt, "n_x m", fixed)
    a_prev = array("a_prev", a_prev, "n_a m", fixed)
    a_next = jnp.tanh(p["Wax"] @ xt + p["Waa"] @ a_prev + p["ba"])
    yt_pred = predict(p["Wya"], a_next, p["by"])
    return a_next, yt_pred, RNNCache(a_next, a_prev, xt, p)


def rnn_forward(x: Any, a0: Any, parameters: dict[str, Any]) -> tuple[Array, Array, RNNCache]:
    """All steps in order: rnn-1, rnn-2 at each.

    Args:
        x: the inputs, ``(n_x, m, T_x)``; T_x may be 0.
        a0: the initial hidden state, ``(n_a, m)``.
        parameters: as in `rnn_cell_forward`.

    Returns:
        ``(a (n_a, m, T_x), y_pred (n_y, m, T_x), caches)``.

    Raises:
        TypeError, ValueError: as `rnn_cell_forward`.
    """
    p, fixed = parameters_of(parameters, RNN_PARAMETERS)
    x = array("x", x, "n_x m T_x", fixed)
    a0 = array("a0", a0, "n_a m", fixed)

    def step(a_prev: Array, xt: Array) -> tuple[Array, tuple[Array, RNNCache]]:
        a_next, yt_pred, cache = rnn_cell_forward(xt, a_prev, p)
        return a_next, (yt_pred, cache._replace(parameters={}))

    _, (y_pred, caches) = lax.scan(step, a0, jnp.moveaxis(x, -1, 0))
    a = jnp.moveaxis(caches.a_next, 0, -1)
    return a, jnp.moveaxis(y_pred, 0, -1), caches._replace(parameters=p)


def rnn_cell_backward(da_next: Any, cache: RNNCache) -> dict[str, Array]:
    """The gradients of one step: rnn-3, rnn-4, rnn-5, rnn-6, rnn-7, rnn-8, rnn-9.

    Args:
        da_next: the gradient of the loss with respect to ``a_next``, ``(n_a, m)``.
        cache: what `rnn_cell_forward` returned.

    Returns:
        ``dxt (n_x, m)``, ``da_prev (n_a, m)``, ``dWax (n_a, n_x)``, ``dWaa (n_a, n_a)``,
        ``dba (n_a, 1)``. The prediction has no part in them: see `rnn_head_backward`.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype or shape.
    """
    cache, fixed = cache_of("cache", cache, RNNCache, RNN_PARAMETERS, CACHE)
    da_next = array("da_next", da_next, "n_a m", fixed)
    a_next, a_prev, xt, p = cache
    # a_next is the value of tanh: nothing is computed twice
    dtanh = da_next * (1 - a_next**2)
    return {
        "dxt": p["Wax"].T @ dtanh,
        "da_prev": p["Waa"].T @ dtanh,
        "dWax": dtanh @ xt.T,
        "dWaa": dtanh @ a_prev.T,
        "dba": jnp.sum(dtanh, axis=1, keepdims=True),
    }


def rnn_backward(da: Any, caches: RNNCache) -> dict[str, Array]:
    """Backpropagation through time: rnn-10, rnn-11, and `rnn_cell_backward` at every step.

    Args:
        da: the gradient of the loss with respect to every hidden state, ``(n_a, m, T_x)``, as its
            readers outside the recursion send it (`rnn_head_backward`, for one).
        caches: what `rnn_forward` returned.

    Returns:
        ``dx (n_x, m, T_x)``, ``da0 (n_a, m)``, ``dWax (n_a, n_x)``, ``dWaa (n_a, n_a)``,
        ``dba (n_a, 1)``; for T_x = 0, zeros.

    Raises:
        TypeError, ValueError: as `rnn_cell_backward`.
    """
    caches, fixed = cache_of("caches", caches, RNNCache, RNN_PARAMETERS, CACHE, steps="T_x")
    da = array("da", da, "n_a m T_x", fixed)
    p = caches.parameters

    def step(
        carry: tuple[Array, Parameters], at: tuple[Array, RNNCache]
    ) -> tuple[tuple[Array, Parameters], Array]:
        (da_prevt, sums), (dat, cache) = carry, at
        gradients = rnn_cell_backward(dat + da_prevt, cache._replace(parameters=p))
        sums = {key: sums[key] + gradients[key] for key in sums}
        return (gradients["da_prev"], sums), gradients["dxt"]

    zeros = {f"d{key}": jnp.zeros_like(p[key]) for key in ("Wax", "Waa", "ba")}
    da_prevt = jnp.zeros((fixed.sizes["n_a"], fixed.sizes["m"]), da.dtype)
    (da0, sums), dx = lax.scan(
        step,
        (da_prevt, zeros),
        (jnp.moveaxis(da, -1, 0), caches._replace(parameters={})),
        reverse=True,
    )
    # a scan returns dictionaries sorted by key: back to the order of the document
    return {"dx": jnp.moveaxis(dx, 0, -1), "da0": da0, **{key: sums[key] for key in zeros}}


def rnn_head_backward(y: Any, y_pred: Any, a: Any, parameters: dict[str, Any]) -> dict[str, Array]:
    """The gradients of the prediction: rnn-13, rnn-14, rnn-15, rnn-16 (beyond the document).

    The loss is `cross_entropy`: a sum over steps and examples.

    Args:
        y: the targets, ``(n_y, m, T_x)``.
        y_pred, a: what `rnn_forward` returned.
        parameters: as in `rnn_cell_forward`.

    Returns:
        ``da (n_a, m, T_x)``, the argument of `rnn_backward`; ``dWya (n_y, n_a)``, ``dby (n_y, 1)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, RNN_PARAMETERS)
    a = array("a", a, "n_a m T_x", fixed)
    y_pred = array("y_pred", y_pred, "n_y m T_x", fixed)
    y = array("y", y, "n_y m T_x", fixed)
    dWya, dby, da = head_backward(y, y_pred, a, p["Wya"])
    return {"da": da, "dWya": dWya, "dby": dby}
