"""The LSTM of the document "LSTM - Derivation of Back propagation through time", in its notation.

Each gate has a weight for the input, one for the hidden state, and a bias: ``wxi wxg wxf wxo
(n_h, n_x)``, ``whi whg whf who (n_h, n_h)``, ``bi bg bf bo (n_h, 1)``. The document gives no
shapes; here features come first, then the m examples, then the T steps: ``x (n_x, m, T)``,
``h, c, y (n_h, m, T)``. In the equations ∘ is the product entry by entry; the gradient dE/dq has
the key ``dq`` in the dictionaries (``do``, ``dc`` for c_t, ``dc_prev`` for c_{t-1}, ``dwxi``).
What is marked + is not in the document.

    step-1     zg = wxg x_t + whg h_{t-1} + bg, g = tanh(zg)
    step-2     zi = wxi x_t + whi h_{t-1} + bi, i = σ(zi)
    step-3     input_gate_out = g ∘ i
    step-4     zf = wxf x_t + whf h_{t-1} + bf, f = σ(zf)
    step-5     zo = wxo x_t + who h_{t-1} + bo, o = σ(zo)
    step-6     c_t = c_{t-1} ∘ f + input_gate_out
    step-7     h_t = o ∘ tanh(c_t)
    step-8     E = 1/2 Σ (h - y)², E_delta = dE/dh_t = h_t - y_t
    step-9     dE/do = E_delta ∘ tanh(c_t)
    step-10    dE/dc_t = E_delta ∘ o ∘ (1 - tanh²(c_t))
    step-11    dE/di = dE/dc_t ∘ g
    step-12    dE/dg = dE/dc_t ∘ i
    step-13    dE/df = dE/dc_t ∘ c_{t-1}
    step-14    dE/dc_{t-1} = dE/dc_t ∘ f
    step-15    dE/dwxo = (dE/do ∘ o ∘ (1 - o)) x_tᵀ
    step-16    dE/dwho = (dE/do ∘ o ∘ (1 - o)) h_{t-1}ᵀ
    step-17    dE/dbo = Σ_batch dE/do ∘ o ∘ (1 - o)
    step-18    dE/dwxf = (dE/df ∘ f ∘ (1 - f)) x_tᵀ
    step-19    dE/dwhf = (dE/df ∘ f ∘ (1 - f)) h_{t-1}ᵀ
    step-20    dE/dbf = Σ_batch dE/df ∘ f ∘ (1 - f)
    step-21    dE/dwxi = (dE/di ∘ i ∘ (1 - i)) x_tᵀ
    step-22    dE/dwhi = (dE/di ∘ i ∘ (1 - i)) h_{t-1}ᵀ
    step-23    dE/dbi = Σ_batch dE/di ∘ i ∘ (1 - i)
    step-24    dE/dwxg = (dE/dg ∘ (1 - g²)) x_tᵀ
    step-25    dE/dwhg = (dE/dg ∘ (1 - g²)) h_{t-1}ᵀ
    step-26    dE/dbg = Σ_batch dE/dg ∘ (1 - g²)
    step-27 +  dE/dx_t = Σ_gates wx_gateᵀ dE/dz_gate
    step-28 +  dE/dh_{t-1} = Σ_gates wh_gateᵀ dE/dz_gate
    step-29 +  over a sequence, dE/dh_t = E_delta_t + what step-28 of step t+1 returns
    step-30 +  over a sequence, dE/dc_t = step-10 with dE/dh_t for E_delta + step-14 of step t+1
    step-31 +  dE/dw = Σ_t dE/dw of step t, for all twelve

dE/dz_gate, the gradient with respect to the argument of a gate, is what stands in the brackets of
step-15 to step-26.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.textbook.checks import (
    Array,
    Fixed,
    Parameters,
    array,
    cache_of,
    field_of_a_step,
    parameters_of,
)

__all__ = [
    "STEP_PARAMETERS",
    "StepCache",
    "gradients_at_step",
    "gradients_each_step",
    "gradients_over_sequence",
    "sequence_forward",
    "squared_error",
    "step_forward",
]

STEP_PARAMETERS = {
    "wxi": "n_h n_x",
    "whi": "n_h n_h",
    "bi": "n_h 1",
    "wxg": "n_h n_x",
    "whg": "n_h n_h",
    "bg": "n_h 1",
    "wxf": "n_h n_x",
    "whf": "n_h n_h",
    "bf": "n_h 1",
    "wxo": "n_h n_x",
    "who": "n_h n_h",
    "bo": "n_h 1",
}
"""The keys of the dictionary of parameters, and the axes of each."""


class StepCache(NamedTuple):
    """Inputs of one step's gradients.

    ``x (n_x, m)``, ``h_prev c_prev i g f o c (n_h, m)`` and the parameters. Of a sequence: the same
    with a leading axis T on all but the parameters, which are held once.
    """

    x: Array
    h_prev: Array
    c_prev: Array
    i: Array
    g: Array
    f: Array
    o: Array
    c: Array
    parameters: Parameters

    def __getitem__(self, index: Any) -> Any:
        return field_of_a_step(self, index)


CACHE = {field: "n_x m" if field == "x" else "n_h m" for field in StepCache._fields[:-1]}


def step_forward(
    x_t: Any, h_prev: Any, c_prev: Any, parameters: dict[str, Any]
) -> tuple[Array, Array, StepCache]:
    """One step: step-1, step-2, step-3, step-4, step-5, step-6, step-7.

    Args:
        x_t: the input of the step, ``(n_x, m)``.
        h_prev, c_prev: h_{t-1} and c_{t-1}, ``(n_h, m)``.
        parameters: the twelve of the module's first lines.

    Returns:
        ``(h_t (n_h, m), c_t (n_h, m), cache)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, STEP_PARAMETERS)
    x_t = array("x_t", x_t, "n_x m", fixed)
    h_prev = array("h_prev", h_prev, "n_h m", fixed)
    c_prev = array("c_prev", c_prev, "n_h m", fixed)

    g = jnp.tanh(p["wxg"] @ x_t + p["whg"] @ h_prev + p["bg"])
    i = jax.nn.sigmoid(p["wxi"] @ x_t + p["whi"] @ h_prev + p["bi"])
    input_gate_out = g * i
    f = jax.nn.sigmoid(p["wxf"] @ x_t + p["whf"] @ h_prev + p["bf"])
    o = jax.nn.sigmoid(p["wxo"] @ x_t + p["who"] @ h_prev + p["bo"])
    c_t = c_prev * f + input_gate_out
    h_t = o * jnp.tanh(c_t)
    return h_t, c_t, StepCache(x_t, h_prev, c_prev, i, g, f, o, c_t, p)


def sequence_forward(
    x: Any, parameters: dict[str, Any], h0: Any = None, c0: Any = None
) -> tuple[Array, Array, StepCache]:
    """All steps in order: step-1, step-2, step-3, step-4, step-5, step-6, step-7 at each.

    Args:
        x: the inputs, ``(n_x, m, T)``; T may be 0.
        parameters: as in `step_forward`.
        h0, c0: the states before the first step, ``(n_h, m)``; None for zeros, as in the document.

    Returns:
        ``(h (n_h, m, T), c (n_h, m, T), caches)``.

    Raises:
        TypeError, ValueError: as `step_forward`.
    """
    p, fixed = parameters_of(parameters, STEP_PARAMETERS)
    x = array("x", x, "n_x m T", fixed)
    zeros = jnp.zeros((fixed.sizes["n_h"], fixed.sizes["m"]), x.dtype)
    h0 = zeros if h0 is None else array("h0", h0, "n_h m", fixed)
    c0 = zeros if c0 is None else array("c0", c0, "n_h m", fixed)

    def step(
        carry: tuple[Array, Array], x_t: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, StepCache]]:
        h_t, c_t, cache = step_forward(x_t, *carry, p)
        return (h_t, c_t), (h_t, cache._replace(parameters={}))

    _, (h, caches) = lax.scan(step, (h0, c0), jnp.moveaxis(x, -1, 0))
    c = jnp.moveaxis(caches.c, 0, -1)
    return jnp.moveaxis(h, 0, -1), c, caches._replace(parameters=p)


def squared_error(y: Any, h: Any) -> tuple[Array, Array]:
    """``(E, E_delta)``: the error, a sum over all entries, and its gradient h - y: step-8.

    Args:
        y, h: targets and outputs of one step, ``(n_h, m)``, or of a sequence, ``(n_h, m, T)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong dtype or shape.
    """
    fixed = Fixed({}, {})
    axes = "n_h m T" if jnp.ndim(h) == 3 else "n_h m"
    h = array("h", h, axes, fixed)
    E_delta = h - array("y", y, axes, fixed)
    return jnp.sum(E_delta**2) / 2, E_delta


def gradients_at_step(E_delta: Any, cache: StepCache, *, dc_next: Any = None) -> dict[str, Array]:
    """Every gradient of one time step, with h_{t-1} and c_{t-1} held constant.

    step-9, step-10, step-11, step-12, step-13, step-14 (gates and states), step-15, step-16,
    step-17, step-18, step-19, step-20, step-21, step-22, step-23, step-24, step-25, step-26
    (weights), step-27, step-28 (beyond the document).

    With dE/dh_t = E_delta of this step's own error and no more, these are the document's direct
    terms: what earlier steps owe to this error, and what this step owes to later errors, is not in
    them. `gradients_each_step` has both.

    Args:
        E_delta: dE/dh_t, ``(n_h, m)``.
        cache: what `step_forward` returned.
        dc_next: what reaches c_t from step t+1, ``(n_h, m)``; None for nothing, as in the document.

    Returns:
        ``do dc di dg df dc_prev (n_h, m)``, the twelve ``dwxo dwho dbo dwxf dwhf dbf dwxi dwhi dbi
        dwxg dwhg dbg`` of the parameters' shapes, ``dx (n_x, m)``, ``dh_prev (n_h, m)``.

    Raises:
        TypeError, ValueError: naming the argument that has a wrong type, dtype or shape.
    """
    cache, fixed = cache_of("cache", cache, StepCache, STEP_PARAMETERS, CACHE)
    E_delta = array("E_delta", E_delta, "n_h m", fixed)
    x, h_prev, c_prev, i, g, f, o, c, p = cache

    tanh_c = jnp.tanh(c)
    do = E_delta * tanh_c
    dc = E_delta * o * (1 - tanh_c**2)
    if dc_next is not None:
        dc = dc + array("dc_next", dc_next, "n_h m", fixed)
    di, dg, df = dc * g, dc * i, dc * c_prev

    # the gradients with respect to the arguments of the gates
    dz = {
        "o": do * o * (1 - o),
        "f": df * f * (1 - f),
        "i": di * i * (1 - i),
        "g": dg * (1 - g**2),
    }
    gradients = {"do": do, "dc": dc, "di": di, "dg": dg, "df": df, "dc_prev": dc * f}
    for gate, dz_gate in dz.items():
        gradients[f"dwx{gate}"] = dz_gate @ x.T
        gradients[f"dwh{gate}"] = dz_gate @ h_prev.T
        gradients[f"db{gate}"] = jnp.sum(dz_gate, axis=1, keepdims=True)
    gradients["dx"] = (
        p["wxo"].T @ dz["o"] + p["wxf"].T @ dz["f"] + p["wxi"].T @ dz["i"] + p["wxg"].T @ dz["g"]
    )
    gradients["dh_prev"] = (
        p["who"].T @ dz["o"] + p["whf"].T @ dz["f"] + p["whi"].T @ dz["i"] + p["whg"].T @ dz["g"]
    )
    return gradients


def gradients_each_step(E_delta: Any, caches: StepCache) -> dict[str, Array]:
    """The gradients of every step, with what returns from later steps: step-29, step-30.

    Args:
        E_delta: dE/dh_t of every step's own error, ``(n_h, m, T)``.
        caches: what `sequence_forward` returned.

    Returns:
        The keys of `gradients_at_step`, each with a leading axis T: entry t is what step t adds to
        the gradient of the whole error, and ``dc`` is the whole dE/dc_t.

    Raises:
        TypeError, ValueError: as `gradients_at_step`.
    """
    _, each = _backward(E_delta, caches)
    return each


def gradients_over_sequence(E_delta: Any, caches: StepCache) -> dict[str, Array]:
    """The gradients of the whole error: step-31, over the steps of `gradients_each_step`.

    Args:
        E_delta, caches: as in `gradients_each_step`.

    Returns:
        ``dx (n_x, m, T)``, ``dh0 dc0 (n_h, m)``, and the twelve of the parameters' shapes; for
        T = 0, zeros.

    Raises:
        TypeError, ValueError: as `gradients_at_step`.
    """
    (dh0, dc0), each = _backward(E_delta, caches)
    sums = {f"d{key}": jnp.sum(each[f"d{key}"], axis=0) for key in STEP_PARAMETERS}
    return {"dx": jnp.moveaxis(each["dx"], 0, -1), "dh0": dh0, "dc0": dc0, **sums}


def _backward(E_delta: Any, caches: StepCache) -> tuple[tuple[Array, Array], dict[str, Array]]:
    """dE/dh_0 and dE/dc_0, and every step's gradients, from the last step to the first."""
    caches, fixed = cache_of("caches", caches, StepCache, STEP_PARAMETERS, CACHE, steps="T")
    E_delta = array("E_delta", E_delta, "n_h m T", fixed)

    def step(
        carry: tuple[Array, Array], at: tuple[Array, StepCache]
    ) -> tuple[tuple[Array, Array], dict[str, Array]]:
        (dh_next, dc_next), (E_delta_t, cache) = carry, at
        cache = cache._replace(parameters=caches.parameters)
        gradients = gradients_at_step(E_delta_t + dh_next, cache, dc_next=dc_next)
        return (gradients["dh_prev"], gradients["dc_prev"]), gradients

    nothing = jnp.zeros((fixed.sizes["n_h"], fixed.sizes["m"]), E_delta.dtype)
    return lax.scan(
        step,
        (nothing, nothing),
        (jnp.moveaxis(E_delta, -1, 0), caches._replace(parameters={})),
        reverse=True,
    )
