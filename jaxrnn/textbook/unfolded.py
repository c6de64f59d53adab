"""The network of the document "Backpropagation Through Time - I", unfolded over time.

W_F takes the input forward, W_R is recurrent, W_o makes the prediction. The document gives neither
shapes nor activations nor the error; here the hidden activation is tanh, the prediction a softmax,
the error a cross-entropy, there are no biases, and the hidden state o_0 before the first step is
zero. Features come first, then the m examples, then the T steps: ``x (n_x, m, T)``,
``o (n_o, m, T)``, ``y_hat, y (n_y, m, T)``; ``W_F (n_o, n_x)``, ``W_R (n_o, n_o)``,
``W_o (n_y, n_o)``. In the equations ∘ is the product entry by entry. What is marked + is not in the
document.

    net-1     o_t = tanh(W_F x_t + W_R o_{t-1}), o_0 = 0
    net-2     ŷ_t = softmax(W_o o_t)
    net-3     E = Σ_t E_t, E_t = -Σ_batch Σ_features y_t ∘ log ŷ_t
    net-4     dE/dW_o = Σ_t dE_t/dŷ_t dŷ_t/dW_o = Σ_t (ŷ_t ∘ Σ_features y_t - y_t) o_tᵀ
    net-5 +   dE_t/do_t = W_oᵀ (ŷ_t ∘ Σ_features y_t - y_t)
    net-6 +   ∂o_t/∂o_k = Π_{j=t..k+1} diag(1 - o_j²) W_R for k < t, identity for k = t
    net-7 +   p(t, k) = (1 - o_k²) ∘ (∂o_t/∂o_k)ᵀ dE_t/do_t for k <= t, zero for k > t
    net-8     dE/dW_F = Σ_t Σ_{k<=t} p(t, k) x_kᵀ
    net-9 +   dE/dW_R = Σ_t Σ_{k<=t} p(t, k) o_{k-1}ᵀ
    net-10 +  dE/dx_k = Σ_{t>=k} W_Fᵀ p(t, k)

p(t, k) is the gradient of the error of step t with respect to the argument of tanh at step k, along
the path through the hidden states between them. Of net-8 the document keeps the terms k = t.

The sums over t need no p(t, k) by itself: p_k = Σ_{t>=k} p(t, k) follows from net-6 and net-7 as
p_k = (1 - o_k²) ∘ (dE_k/do_k + W_Rᵀ p_{k+1}), zero after T, which is one pass from the last step to
the first. `net_backward` takes it; `net_terms` and `net_paths` keep the p(t, k) apart.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxrnn.textbook.checks import Array, Parameters, array, cache_of, parameters_of
from jaxrnn.textbook.head import cross_entropy_terms, logit_gradient, predict

__all__ = [
    "NET_PARAMETERS",
    "NetCache",
    "net_backward",
    "net_error",
    "net_forward",
    "net_paths",
    "net_terms",
]

NET_PARAMETERS = {"W_F": "n_o n_x", "W_R": "n_o n_o", "W_o": "n_y n_o"}
"""The keys of the dictionary of parameters, and the axes of each."""


class NetCache(NamedTuple):
    """Inputs of a sequence's gradients, time first: ``x (T, n_x, m)``, ``o_prev, o
    (T, n_o, m)``, ``y_hat (T, n_y, m)``; and the parameters."""

    x: Array
    o_prev: Array
    o: Array
    y_hat: Array
    parameters: Parameters


CACHE = {"x": "n_x m", "o_prev": "n_o m", "o": "n_o m", "y_hat": "n_y m"}


def net_forward(x: Any, parameters: dict[str, Any]) -> tuple[Array, Array, NetCache]:
    """All steps in order: net-1, net-2.

    Args:
        x: the inputs, ``(n_x, m, T)``; T may be 0.
        parameters: ``W_F (n_o, n_x)``, ``W_R (n_o, n_o)``, ``W_o (n_y, n_o)``.

    Returns:
        ``(o (n_o, m, T), y_hat (n_y, m, T), caches)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, NET_PARAMETERS)
    x = array("x", x, "n_x m T", fixed)

    def step(o_prev: Array, x_t: Array) -> tuple[Array, NetCache]:
        o_t = jnp.tanh(p["W_F"] @ x_t + p["W_R"] @ o_prev)
        return o_t, NetCache(x_t, o_prev, o_t, predict(p["W_o"], o_t), {})

    o_0 = jnp.zeros((fixed.sizes["n_o"], fixed.sizes["m"]), x.dtype)
    _, caches = lax.scan(step, o_0, jnp.moveaxis(x, -1, 0))
    o, y_hat = jnp.moveaxis(caches.o, 0, -1), jnp.moveaxis(caches.y_hat, 0, -1)
    return o, y_hat, caches._replace(parameters=p)


def net_error(y: Any, y_hat: Any) -> tuple[Array, Array]:
    """``(E, E_t (T,))``, the error and the time steps' terms of it: net-3.

    Args:
        y: the targets, ``(n_y, m, T)``: one-hot columns, or any other weights.
        y_hat: what `net_forward` returned.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong dtype or shape.
    """
    terms = cross_entropy_terms(y, y_hat, name="y_hat")
    return jnp.sum(terms), terms


def net_backward(y: Any, caches: NetCache) -> dict[str, Array]:
    """The gradients of E: net-4, net-8, net-9, net-10, in time and memory linear in T.

    Args:
        y: the targets, ``(n_y, m, T)``.
        caches: what `net_forward` returned.

    Returns:
        ``dW_F (n_o, n_x)``, ``dW_R (n_o, n_o)``, ``dW_o (n_y, n_o)``, the sums of `net_terms`;
        beyond the document ``dx (n_x, m, T)``. For T = 0, zeros.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype or shape.
    """
    caches, dz = _checked(y, caches)
    # with the sums over t the double sums are sums over k
    p = _summed_paths(dz, caches)
    return {
        "dW_F": jnp.einsum("kom,kim->oi", p, caches.x),
        "dW_R": jnp.einsum("kom,kim->oi", p, caches.o_prev),
        "dW_o": jnp.einsum("tym,tom->yo", dz, caches.o),
        "dx": jnp.einsum("oi,kom->imk", caches.parameters["W_F"], p),
    }


def net_terms(y: Any, caches: NetCache) -> dict[str, Array]:
    """The terms of which `net_backward` is the sum: net-4, net-8, net-9 before their sums.

    Args:
        y, caches: as in `net_backward`.

    Returns:
        ``dW_F (T, T, n_o, n_x)`` and ``dW_R (T, T, n_o, n_o)``: entry ``[t, k]`` is what the error
        of step t gives to the weight as it was used at step k, zero for k > t; ``dW_o
        (T, n_y, n_o)``: entry ``[t]`` is the term of step t.

    Raises:
        TypeError, ValueError: as `net_backward`.
    """
    caches, dz = _checked(y, caches)
    p = _paths(dz, caches)
    return {
        "dW_F": jnp.einsum("tkom,kim->tkoi", p, caches.x),
        "dW_R": jnp.einsum("tkom,kim->tkoi", p, caches.o_prev),
        "dW_o": jnp.einsum("tym,tom->tyo", dz, caches.o),
    }


def net_paths(y: Any, caches: NetCache) -> Array:
    """p(t, k) for all t and k, ``(T, T, n_o, m)``: net-5, net-6, net-7.

    Args:
        y, caches: as in `net_backward`.

    Raises:
        TypeError, ValueError: as `net_backward`.
    """
    caches, dz = _checked(y, caches)
    return _paths(dz, caches)


def _checked(y: Any, caches: NetCache) -> tuple[NetCache, Array]:
    """The caches, and every step's gradient with respect to W_o o_t, ``(T, n_y, m)``."""
    caches, fixed = cache_of("caches", caches, NetCache, NET_PARAMETERS, CACHE, steps="T")
    y = array("y", y, "n_y m T", fixed)
    return caches, logit_gradient(jnp.moveaxis(y, -1, 0), caches.y_hat, axis=1)


def _summed_paths(dz: Array, caches: NetCache) -> Array:
    """Σ_t p(t, k) of every k, ``(T, n_o, m)``, from the last step to the first."""
    W_R, W_o = caches.parameters["W_R"], caches.parameters["W_o"]

    def step_back(p_next: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        dz_k, o_k = at
        p_k = (1 - o_k**2) * (W_o.T @ dz_k + W_R.T @ p_next)
        return p_k, p_k

    nothing = jnp.zeros(caches.o.shape[1:], dz.dtype)
    _, p = lax.scan(step_back, nothing, (dz, caches.o), reverse=True)
    return p


def _paths(dz: Array, caches: NetCache) -> Array:
    """All paths at once: those of every t go one step further back as k falls from T to 1."""
    W_R, W_o = caches.parameters["W_R"], caches.parameters["W_o"]
    T = dz.shape[0]

    def step_back(p_next: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        # p_next (T, n_o, m) holds p(t, k+1) of every t, still zero for the paths with t <= k
        starts_here, dz_k, o_k = at
        do_k = jnp.einsum("ji,tjm->tim", W_R, p_next)
        do_k = jnp.where(starts_here[:, None, None], (W_o.T @ dz_k)[None], do_k)
        p_k = (1 - o_k**2)[None] * do_k
        return p_k, p_k

    nothing = jnp.zeros((T, *caches.o.shape[1:]), dz.dtype)
    _, p = lax.scan(step_back, nothing, (jnp.eye(T, dtype=bool), dz, caches.o), reverse=True)
    return jnp.moveaxis(p, 0, 1)
