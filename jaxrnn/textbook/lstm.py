"""The LSTM of the document "Recurrent Neural Network", in its own notation.

Features come first, then the m examples, then the T_x steps: ``x (n_x, m, T_x)``,
``a, c (n_a, m, T_x)``, ``y_pred (n_y, m, T_x)``; each gate's weight is ``(n_a, n_a + n_x)`` and
multiplies the hidden state stacked on the input, ``[a, x]``; a bias is ``(n_a, 1)``. In the
equations <t> is the time step, ∘ the product entry by entry, dq the gradient of the loss with
respect to q; Γf, Γi, Γo are the forget, update and output gates, c̃ is the candidate. γf, γi, γo
are the *arguments* of the gates' sigmoids, and dc̃ is the document's name for the gradient with
respect to the argument of the candidate's tanh. ``W[:, a]`` and ``W[:, x]`` are the columns of W
that multiply a and x. What is marked + is not in the document.

    lstm-1     Γf<t> = σ(Wf [a<t-1>, x<t>] + bf)
    lstm-2     c̃<t> = tanh(Wc [a<t-1>, x<t>] + bc)
    lstm-3     Γi<t> = σ(Wi [a<t-1>, x<t>] + bi)
    lstm-4     c<t> = Γf<t> ∘ c<t-1> + Γi<t> ∘ c̃<t>
    lstm-5     Γo<t> = σ(Wo [a<t-1>, x<t>] + bo)
    lstm-6     a<t> = Γo<t> ∘ tanh(c<t>)
    lstm-7     ŷ<t> = softmax(Wy a<t> + by)
    lstm-8     dγo = da_next ∘ tanh(c_next) ∘ Γo ∘ (1 - Γo)
    lstm-9     dc = dc_next + da_next ∘ Γo ∘ (1 - tanh²(c_next))
    lstm-10    dc̃ = dc ∘ Γi ∘ (1 - c̃²)
    lstm-11    dγi = dc ∘ c̃ ∘ Γi ∘ (1 - Γi)
    lstm-12    dγf = dc ∘ c_prev ∘ Γf ∘ (1 - Γf)
    lstm-13    dWf = dγf [a_prev, xt]ᵀ
    lstm-14    dWi = dγi [a_prev, xt]ᵀ
    lstm-15    dWc = dc̃ [a_prev, xt]ᵀ
    lstm-16    dWo = dγo [a_prev, xt]ᵀ
    lstm-17    dbf = Σ_batch dγf
    lstm-18    dbi = Σ_batch dγi
    lstm-19    dbc = Σ_batch dc̃
    lstm-20    dbo = Σ_batch dγo
    lstm-21    da_prev = Wf[:, a]ᵀ dγf + Wi[:, a]ᵀ dγi + Wc[:, a]ᵀ dc̃ + Wo[:, a]ᵀ dγo
    lstm-22    dc_prev = dc ∘ Γf
    lstm-23    dxt = Wf[:, x]ᵀ dγf + Wi[:, x]ᵀ dγi + Wc[:, x]ᵀ dc̃ + Wo[:, x]ᵀ dγo
    lstm-24 +  da_next<t> = da<t> + da_prev<t+1>, dc_next<t> = dc<t> + dc_prev<t+1>, zero after T_x
    lstm-25 +  dW = Σ_t dW<t>, db = Σ_t db<t> for the four gates; da0 = da_prev<1>, dc0 = dc_prev<1>
    lstm-26 +  E = -Σ_t Σ_batch Σ_features y<t> ∘ log ŷ<t>
    lstm-27 +  dz<t> = ŷ<t> ∘ Σ_features y<t> - y<t>, for z<t> = Wy a<t> + by
    lstm-28 +  dWy = Σ_t dz<t> a<t>ᵀ
    lstm-29 +  dby = Σ_t Σ_batch dz<t>
    lstm-30 +  da<t> = Wyᵀ dz<t>
"""

from typing import Any, NamedTuple

import jax
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
    "LSTM_PARAMETERS",
    "LSTMCache",
    "lstm_backward",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "lstm_head_backward",
]

LSTM_PARAMETERS = {
    "Wf": "n_a n_a+n_x",
    "bf": "n_a 1",
    "Wi": "n_a n_a+n_x",
    "bi": "n_a 1",
    "Wc": "n_a n_a+n_x",
    "bc": "n_a 1",
    "Wo": "n_a n_a+n_x",
    "bo": "n_a 1",
    "Wy": "n_y n_a",
    "by": "n_y 1",
}
"""The keys of the dictionary of parameters, and the axes of each."""


class LSTMCache(NamedTuple):
    """Inputs of the backward pass, in the order of the document's code.

    Of one step: the states ``a_next c_next a_prev c_prev (n_a, m)``, the forget and update gates,
    the candidate and the output gate ``ft it cct ot (n_a, m)``, the input ``xt (n_x, m)`` and the
    parameters. Of a sequence: the same with a leading axis T_x on all but the parameters, which
    are held once.
    """

    a_next: Array
    c_next: Array
    a_prev: Array
    c_prev: Array
    ft: Array
    it: Array
    cct: Array
    ot: Array
    xt: Array
    parameters: Parameters

    def __getitem__(self, index: Any) -> Any:
        return field_of_a_step(self, index)


CACHE = {field: "n_x m" if field == "xt" else "n_a m" for field in LSTMCache._fields[:-1]}


def lstm_cell_forward(
    xt: Any, a_prev: Any, c_prev: Any, parameters: dict[str, Any]
) -> tuple[Array, Array, Array, LSTMCache]:
    """One step: lstm-1, lstm-2, lstm-3, lstm-4, lstm-5, lstm-6, lstm-7.

    Args:
        xt: the input of the step, ``(n_x, m)``.
        a_prev, c_prev: the hidden and the cell state of the step before, ``(n_a, m)``.
        parameters: ``Wf Wi Wc Wo (n_a, n_a + n_x)``, ``bf bi bc bo (n_a, 1)``, ``Wy (n_y, n_a)``,
            ``by (n_y, 1)``.

    Returns:
        ``(a_next (n_a, m), c_next (n_a, m), yt_pred (n_y, m), cache)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, LSTM_PARAMETERS)
    xt = array("xt", xt, "n_x m", fixed)
    a_prev = array("a_prev", a_prev, "n_a m", fixed)
    c_prev = array("c_prev", c_prev, "n_a m", fixed)
    concat = jnp.concatenate([a_prev, xt])
    ft = jax.nn.sigmoid(p["Wf"] @ concat + p["bf"])
    it = jax.nn.sigmoid(p["Wi"] @ concat + p["bi"])
    cct = jnp.tanh(p["Wc"] @ concat + p["bc"])
    c_next = ft * c_prev + it * cct
    ot = jax.nn.sigmoid(p["Wo"] @ concat + p["bo"])
    a_next = ot * jnp.tanh(c_next)
    yt_pred = predict(p["Wy"], a_next, p["by"])
    cache = LSTMCache(a_next, c_next, a_prev, c_prev, ft, it, cct, ot, xt, p)
    return a_next, c_next, yt_pred, cache


def lstm_forward(
    x: Any, a0: Any, parameters: dict[str, Any], *, c0: Any = None
) -> tuple[Array, Array, Array, LSTMCache]:
    """All steps in order: lstm-1, lstm-2, lstm-3, lstm-4, lstm-5, lstm-6, lstm-7 at each.

    Args:
        x: the inputs, ``(n_x, m, T_x)``; T_x may be 0.
        a0: the initial hidden state, ``(n_a, m)``.
        parameters: as in `lstm_cell_forward`.
        c0: the initial cell state, ``(n_a, m)``; None for zeros. (Beyond the document, where it is
            zero.)

    Returns:
        ``(a (n_a, m, T_x), y_pred (n_y, m, T_x), c (n_a, m, T_x), caches)``.

    Raises:
        TypeError, ValueError: as `lstm_cell_forward`.
    """
    p, fixed = parameters_of(parameters, LSTM_PARAMETERS)
    x = array("x", x, "n_x m T_x", fixed)
    a0 = array("a0", a0, "n_a m", fixed)
    c0 = jnp.zeros_like(a0) if c0 is None else array("c0", c0, "n_a m", fixed)

    def step(
        carry: tuple[Array, Array], xt: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, LSTMCache]]:
        a_next, c_next, yt_pred, cache = lstm_cell_forward(xt, *carry, p)
        return (a_next, c_next), (yt_pred, cache._replace(parameters={}))

    _, (y_pred, caches) = lax.scan(step, (a0, c0), jnp.moveaxis(x, -1, 0))
    a, c = jnp.moveaxis(caches.a_next, 0, -1), jnp.moveaxis(caches.c_next, 0, -1)
    return a, jnp.moveaxis(y_pred, 0, -1), c, caches._replace(parameters=p)


def lstm_cell_backward(da_next: Any, dc_next: Any, cache: LSTMCache) -> dict[str, Array]:
    """The gradients of one step.

    lstm-8, lstm-9, lstm-10, lstm-11, lstm-12 (gates), lstm-13, lstm-14, lstm-15, lstm-16 (weights),
    lstm-17, lstm-18, lstm-19, lstm-20 (biases), lstm-21, lstm-22, lstm-23 (states and input).

    Args:
        da_next: the gradient of the loss with respect to ``a_next``, ``(n_a, m)``.
        dc_next: the same for ``c_next``, along every path but the one through ``a_next``.
        cache: what `lstm_cell_forward` returned.

    Returns:
        ``dxt (n_x, m)``, ``da_prev (n_a, m)``, ``dc_prev (n_a, m)``, ``dWf dWi dWc dWo
        (n_a, n_a + n_x)``, ``dbf dbi dbc dbo (n_a, 1)``. The prediction has no part in them: see
        `lstm_head_backward`.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype or shape.
    """
    cache, fixed = cache_of("cache", cache, LSTMCache, LSTM_PARAMETERS, CACHE)
    da_next = array("da_next", da_next, "n_a m", fixed)
    dc_next = array("dc_next", dc_next, "n_a m", fixed)
    _, c_next, a_prev, c_prev, ft, it, cct, ot, xt, p = cache
    n_a = fixed.sizes["n_a"]

    tanh_c = jnp.tanh(c_next)
    dot = da_next * tanh_c * ot * (1 - ot)
    dc = dc_next + da_next * ot * (1 - tanh_c**2)
    dcct = dc * it * (1 - cct**2)
    dit = dc * cct * it * (1 - it)
    dft = dc * c_prev * ft * (1 - ft)

    concat = jnp.concatenate([a_prev, xt])
    dconcat = p["Wf"].T @ dft + p["Wi"].T @ dit + p["Wc"].T @ dcct + p["Wo"].T @ dot
    return {
        "dxt": dconcat[n_a:],
        "da_prev": dconcat[:n_a],
        "dc_prev": dc * ft,
        "dWf": dft @ concat.T,
        "dbf": jnp.sum(dft, axis=1, keepdims=True),
        "dWi": dit @ concat.T,
        "dbi": jnp.sum(dit, axis=1, keepdims=True),
        "dWc": dcct @ concat.T,
        "dbc": jnp.sum(dcct, axis=1, keepdims=True),
        "dWo": dot @ concat.T,
        "dbo": jnp.sum(dot, axis=1, keepdims=True),
    }


def lstm_backward(da: Any, caches: LSTMCache, *, dc: Any = None) -> dict[str, Array]:
    """Backpropagation through time: lstm-24, lstm-25, and `lstm_cell_backward` at every step.

    Args:
        da: the gradient of the loss with respect to every hidden state, ``(n_a, m, T_x)``, as its
            readers outside the recursion send it (`lstm_head_backward`, for one).
        caches: what `lstm_forward` returned.
        dc: the same for the cell states ``c`` that `lstm_forward` returned; None for zeros. (Beyond
            the document, where nothing reads them.)

    Returns:
        ``dx (n_x, m, T_x)``, ``da0 (n_a, m)``, ``dWf dWi dWc dWo (n_a, n_a + n_x)``, ``dbf dbi dbc
        dbo (n_a, 1)``; beyond the document ``dc0 (n_a, m)``. For T_x = 0, zeros.

    Raises:
        TypeError, ValueError: as `lstm_cell_backward`.
    """
    caches, fixed = cache_of("caches", caches, LSTMCache, LSTM_PARAMETERS, CACHE, steps="T_x")
    da = array("da", da, "n_a m T_x", fixed)
    dc = jnp.zeros_like(da) if dc is None else array("dc", dc, "n_a m T_x", fixed)
    p = caches.parameters

    def step(
        carry: tuple[Array, Array, Parameters], at: tuple[Array, Array, LSTMCache]
    ) -> tuple[tuple[Array, Array, Parameters], Array]:
        (da_prevt, dc_prevt, sums), (dat, dct, cache) = carry, at
        cache = cache._replace(parameters=p)
        gradients = lstm_cell_backward(dat + da_prevt, dct + dc_prevt, cache)
        sums = {key: sums[key] + gradients[key] for key in sums}
        return (gradients["da_prev"], gradients["dc_prev"], sums), gradients["dxt"]

    zeros = {f"d{key}": jnp.zeros_like(p[key]) for key in p if key not in ("Wy", "by")}
    state = jnp.zeros((fixed.sizes["n_a"], fixed.sizes["m"]), da.dtype)
    (da0, dc0, sums), dx = lax.scan(
        step,
        (state, state, zeros),
        (jnp.moveaxis(da, -1, 0), jnp.moveaxis(dc, -1, 0), caches._replace(parameters={})),
        reverse=True,
    )
    # a scan returns dictionaries sorted by key: back to the order of the document
    return {
        "dx": jnp.moveaxis(dx, 0, -1),
        "da0": da0,
        "dc0": dc0,
        **{key: sums[key] for key in zeros},
    }


def lstm_head_backward(y: Any, y_pred: Any, a: Any, parameters: dict[str, Any]) -> dict[str, Array]:
    """The gradients of the prediction: lstm-27, lstm-28, lstm-29, lstm-30 (beyond the document).

    The loss is `cross_entropy`, a sum over steps and examples.

    Args:
        y: the targets, ``(n_y, m, T_x)``.
        y_pred, a: the predictions and hidden states that `lstm_forward` returned.
        parameters: as in `lstm_cell_forward`.

    Returns:
        ``da (n_a, m, T_x)``, the argument of `lstm_backward`; ``dWy (n_y, n_a)``, ``dby (n_y, 1)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, LSTM_PARAMETERS)
    a = array("a", a, "n_a m T_x", fixed)
    y_pred = array("y_pred", y_pred, "n_y m T_x", fixed)
    y = array("y", y, "n_y m T_x", fixed)
    dWy, dby, da = head_backward(y, y_pred, a, p["Wy"])
    return {"da": da, "dWy": dWy, "dby": dby}
