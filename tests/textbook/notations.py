"""The four notations of the textbook as problems of one form, shared by the tests.

Each has random parameters and inputs of random sizes, and three ways to the same gradients: by the
textbook's formulas, by autodiff of the textbook's forward pass, and by the engine.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import textbook
from jaxrnn.convert import textbook as convert
from jaxrnn.testing import arrays


class Problem(NamedTuple):
    """``inputs`` is what is differentiated: parameters, x, and the initial states by name."""

    inputs: dict[str, Any]
    sizes: dict[str, int]
    labels: Any
    y: Any
    da: Any
    dc: Any


SPECS = {
    "rnn": textbook.RNN_PARAMETERS,
    "lstm": textbook.LSTM_PARAMETERS,
    "step": textbook.STEP_PARAMETERS,
    "net": textbook.NET_PARAMETERS,
}
HIDDEN = {"rnn": "n_a", "lstm": "n_a", "step": "n_h", "net": "n_o"}
STATES = {"rnn": ("a0",), "lstm": ("a0", "c0"), "step": ("h0", "c0"), "net": ()}


def random_sizes(seed):
    """All different, so that nothing transposed or mixed up can fit."""
    sizes = np.random.default_rng(seed).permutation(np.arange(2, 7))
    return dict(zip(("n_x", "hidden", "n_y", "m", "T"), map(int, sizes), strict=True))


def random_parameters(notation, sizes, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    sizes = {**sizes, HIDDEN[notation]: sizes["hidden"], "1": 1}

    def draw(axes):
        shape = [sum(sizes[part] for part in axis.split("+")) for axis in axes.split()]
        return jnp.asarray(0.5 * rng.normal(size=shape), dtype)

    return {key: draw(axes) for key, axes in SPECS[notation].items()}


def make(notation, sizes, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed + 1)
    n_x, hidden, n_y, m, T = (sizes[key] for key in ("n_x", "hidden", "n_y", "m", "T"))

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    labels = jnp.asarray(rng.integers(0, n_y, size=(m, T)), jnp.int32)
    inputs = {
        "parameters": random_parameters(notation, sizes, seed, dtype),
        "x": draw(n_x, m, T),
        **{name: draw(hidden, m) for name in STATES[notation]},
    }
    y = jnp.asarray(np.eye(n_y)[:, np.asarray(labels)], dtype)
    return Problem(
        inputs, sizes, labels, draw(hidden, m, T) if notation == "step" else y,
        draw(hidden, m, T), draw(hidden, m, T),
    )  # fmt: skip


def unpack(notation, inputs):
    """(parameters, x, states...): a dictionary that went through jit has lost its order."""
    return [inputs[key] for key in ("parameters", "x", *STATES[notation])]


def forward(notation, inputs):
    """The outputs by name, and the caches."""
    p, x = inputs["parameters"], inputs["x"]
    if notation == "rnn":
        a, y_pred, caches = textbook.rnn_forward(x, inputs["a0"], p)
        return {"a": a, "y_pred": y_pred}, caches
    if notation == "lstm":
        a, y_pred, c, caches = textbook.lstm_forward(x, inputs["a0"], p, c0=inputs["c0"])
        return {"a": a, "y_pred": y_pred, "c": c}, caches
    if notation == "step":
        h, c, caches = textbook.sequence_forward(x, p, inputs["h0"], inputs["c0"])
        return {"a": h, "c": c}, caches
    o, y_hat, caches = textbook.net_forward(x, p)
    return {"a": o, "y_pred": y_hat}, caches


def textbook_loss(notation, problem):
    """E, and where the textbook takes more cotangents, what reads a and c besides."""

    def loss(inputs):
        out, _ = forward(notation, inputs)
        if notation == "step":
            return textbook.squared_error(problem.y, out["a"])[0], out
        if notation == "net":
            return textbook.net_error(problem.y, out["y_pred"])[0], out
        E = textbook.cross_entropy(problem.y, out["y_pred"]) + jnp.sum(problem.da * out["a"])
        return E + (jnp.sum(problem.dc * out["c"]) if notation == "lstm" else 0), out

    return loss


def engine_loss(notation, problem):
    """The same of the engine, whose losses are means over all steps and examples."""
    count = problem.sizes["m"] * problem.sizes["T"]

    def loss(inputs):
        from_textbook: Callable[..., Any] = getattr(convert, f"{notation}_from_textbook")
        converted = from_textbook(inputs["parameters"])
        params, head = (converted, None) if notation == "step" else converted
        states = [inputs[name].T for name in STATES[notation]]
        is_lstm = notation in ("lstm", "step")
        cell = jaxrnn.LSTM if is_lstm else jaxrnn.ELMAN
        state = (jaxrnn.LSTMState if is_lstm else jaxrnn.ElmanState)(*states) if states else None
        _, hs, states = jaxrnn.unroll(cell, params, inputs["x"].T, state, return_states=True)
        out = {"a": hs.T}
        if is_lstm:
            out["c"] = states.c.T
        if notation == "step":
            return count * jaxrnn.squared_error(hs, problem.y.T), out
        logits = jaxrnn.affine(head, hs)
        out["y_pred"] = jax.nn.softmax(logits).T
        E = count * jaxrnn.softmax_cross_entropy(logits, problem.labels.T)
        if notation == "net":
            return E, out
        E = E + jnp.sum(problem.da * out["a"])
        return E + (jnp.sum(problem.dc * out["c"]) if notation == "lstm" else 0), out

    return loss


def by_formulas(notation, problem):
    """``run(inputs) -> (outputs, gradients)`` by the textbook's backward functions alone."""

    def run(inputs):
        out, caches = forward(notation, inputs)
        if notation == "step":
            _, E_delta = textbook.squared_error(problem.y, out["a"])
            return out, textbook.gradients_over_sequence(E_delta, caches)
        if notation == "net":
            return out, textbook.net_backward(problem.y, caches)
        head_backward = getattr(textbook, f"{notation}_head_backward")
        head = head_backward(problem.y, out["y_pred"], out["a"], inputs["parameters"])
        da = head.pop("da") + problem.da
        if notation == "rnn":
            return out, {**head, **textbook.rnn_backward(da, caches)}
        return out, {**head, **textbook.lstm_backward(da, caches, dc=problem.dc)}

    return run


def by_autodiff(loss):
    """``run(inputs) -> (outputs, gradients)``, the gradients with the textbook's keys."""

    def run(inputs):
        gradients, out = jax.grad(loss, has_aux=True)(inputs)
        dparameters = gradients.pop("parameters")
        return out, {f"d{key}": value for key, value in {**dparameters, **gradients}.items()}

    return run


def compiled(run, *args):
    """Compiled without optimisation: each program runs once."""
    return arrays.compiled(run)(*args)


@functools.cache
def solved(notation, seed, steps=None):
    """A problem of random sizes, and its outputs and gradients by the formulas and by autodiff."""
    sizes = random_sizes(seed)
    problem = make(notation, {**sizes, "T": sizes["T"] if steps is None else steps}, seed)
    ours = compiled(by_formulas(notation, problem), problem.inputs)
    auto = compiled(by_autodiff(textbook_loss(notation, problem)), problem.inputs)
    return problem, ours, auto
