"""One worked example per notation: a forward pass in numpy beside the textbook's and autodiff's.

Computed once for the tests of the equations and of the errata. ``cell`` and ``cell_auto`` are the
gradients of the first step alone, ``ours`` and ``auto`` those of the sequence, by the textbook's
formulas and by autodiff.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from notations import (
    compiled,
    forward,
    solved,
    unpack,
)

from jaxrnn import textbook


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    return np.exp(z) / np.sum(np.exp(z), axis=0, keepdims=True)


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def sequence(notation):
    """A problem, its outputs, and its gradients by the formulas and by autodiff, as numpy."""
    problem, (out, ours), (_, auto) = solved(notation, 4)
    p, x, *states = to_numpy(unpack(notation, problem.inputs))
    return SimpleNamespace(
        problem=problem, out=to_numpy(out), ours=ours, auto=auto, p=p, x=x, states=states,
        y=np.asarray(problem.y), T=problem.sizes["T"],
    )  # fmt: skip


def example(cache):
    """The first example alone: its bias gradients are the gradients of the pre-activations."""
    return cache._replace(
        **{f: leaf[:, :1] for f, leaf in cache._asdict().items() if f != "parameters"}
    )


@functools.cache
def rnn_example():
    """The first step of a sequence as a cell, eagerly; and the sequence."""
    s = sequence("rnn")
    s.xt, s.a_prev = s.x[..., 0], s.states[0]
    s.da_next = np.asarray(s.problem.da[..., 0])
    s.a_next, s.yt_pred, cache = textbook.rnn_cell_forward(s.xt, s.a_prev, s.p)
    s.cell = textbook.rnn_cell_backward(s.da_next, cache)
    s.first = textbook.rnn_cell_backward(s.da_next[:, :1], example(cache))
    s.unit = textbook.rnn_cell_backward(np.ones_like(s.da_next[:, :1]), example(cache))

    def pull(p, xt, a_prev):
        _, pull = jax.vjp(lambda *args: textbook.rnn_cell_forward(args[1], args[2], args[0])[0],
                          p, xt, a_prev)  # fmt: skip
        return pull(jnp.asarray(s.da_next))

    dp, dxt, da_prev = compiled(pull, s.p, s.xt, s.a_prev)
    s.cell_auto = {f"d{key}": value for key, value in dp.items()}
    s.cell_auto |= {"dxt": dxt, "da_prev": da_prev}
    s.u = s.p["Wax"] @ s.xt + s.p["Waa"] @ s.a_prev + s.p["ba"]
    s.dtanh = s.da_next * (1 - np.tanh(s.u) ** 2)

    # what the equations of the sequence share: logits' gradients, and dtanh of every step
    s.z_adjoint = s.out["y_pred"] * s.y.sum(0, keepdims=True) - s.y
    s.da = np.einsum("ya,ymt->amt", s.p["Wya"], s.z_adjoint) + np.asarray(s.problem.da)
    s.before = np.concatenate([s.a_prev[..., None], s.out["a"][..., :-1]], axis=-1)
    s.dtanhs, s.da0 = np.zeros_like(s.da), np.zeros_like(s.a_prev)
    for t in reversed(range(s.T)):
        s.dtanhs[..., t] = (s.da[..., t] + s.da0) * (1 - s.out["a"][..., t] ** 2)
        s.da0 = s.p["Waa"].T @ s.dtanhs[..., t]
    return s


@functools.cache
def lstm_example():
    """The first step of a sequence as a cell, eagerly; and the sequence."""
    s = sequence("lstm")
    s.xt, (s.a_prev, s.c_prev) = s.x[..., 0], s.states
    s.da_next, s.dc_next = (np.asarray(q[..., 0]) for q in (s.problem.da, s.problem.dc))
    s.a_next, s.c_next, s.yt_pred, s.cache = textbook.lstm_cell_forward(
        s.xt, s.a_prev, s.c_prev, s.p
    )
    s.cell = textbook.lstm_cell_backward(s.da_next, s.dc_next, s.cache)
    s.first = textbook.lstm_cell_backward(s.da_next[:, :1], s.dc_next[:, :1], example(s.cache))

    def pull(*args):
        def step(p, *args):
            return textbook.lstm_cell_forward(*args, p)[:2]

        return jax.vjp(step, *args)[1]((jnp.asarray(s.da_next), jnp.asarray(s.dc_next)))

    dp, dxt, da_prev, dc_prev = compiled(pull, s.p, s.xt, s.a_prev, s.c_prev)
    s.cell_auto = {f"d{key}": value for key, value in dp.items()}
    s.cell_auto |= {"dxt": dxt, "da_prev": da_prev, "dc_prev": dc_prev}

    s.concat = np.concatenate([s.a_prev, s.xt])
    s.z = {gate: s.p[f"W{gate}"] @ s.concat + s.p[f"b{gate}"] for gate in "fico"}
    f, i, c, o = sigmoid(s.z["f"]), sigmoid(s.z["i"]), np.tanh(s.z["c"]), sigmoid(s.z["o"])
    s.ft, s.it, s.cct, s.ot = f, i, c, o
    s.c = f * s.c_prev + i * c
    s.dc = s.dc_next + s.da_next * o * (1 - np.tanh(s.c) ** 2)
    s.dz = {
        "o": s.da_next * np.tanh(s.c) * o * (1 - o),
        "c": s.dc * i * (1 - c**2),
        "i": s.dc * c * i * (1 - i),
        "f": s.dc * s.c_prev * f * (1 - f),
    }

    def from_arguments(z):
        c = jax.nn.sigmoid(z["f"]) * s.c_prev + jax.nn.sigmoid(z["i"]) * jnp.tanh(z["c"])
        return jax.nn.sigmoid(z["o"]) * jnp.tanh(c), c

    (s.dz_auto,) = compiled(
        lambda z, da, dc: jax.vjp(from_arguments, z)[1]((da, dc)), s.z, s.da_next, s.dc_next
    )
    s.z_adjoint = s.out["y_pred"] * s.y.sum(0, keepdims=True) - s.y
    return s


@functools.cache
def lstm_loop():
    """The cell's gradients at every step, the states' carried from step to step in Python."""
    lstm = lstm_example()

    def loop(inputs, da):
        _, caches = forward("lstm", inputs)
        da_prev = dc_prev = jnp.zeros_like(inputs["a0"])
        each = []
        for t in reversed(range(lstm.T)):
            cell = textbook.lstm_cell_backward(
                da[..., t] + da_prev,
                lstm.problem.dc[..., t] + dc_prev,
                textbook.cache_at(caches, t),
            )
            da_prev, dc_prev = cell["da_prev"], cell["dc_prev"]
            each.append(cell)
        return each[::-1]

    da = np.einsum("ya,ymt->amt", lstm.p["Wy"], lstm.z_adjoint) + np.asarray(lstm.problem.da)
    return to_numpy(compiled(loop, lstm.problem.inputs, da))


@functools.cache
def step_example():
    """The first step of a sequence alone, eagerly, from E_delta of its own error; the sequence."""
    s = sequence("step")
    s.x_t, (s.h_prev, s.c_prev) = s.x[..., 0], s.states
    s.h_t, s.c_t, s.cache = textbook.step_forward(s.x_t, s.h_prev, s.c_prev, s.p)
    s.y_t = s.y[..., 0]
    s.E, s.E_delta = to_numpy(textbook.squared_error(s.y_t, s.h_t))
    s.cell = textbook.gradients_at_step(s.E_delta, s.cache)

    def error(p, x_t, h_prev, c_prev):
        return textbook.squared_error(s.y_t, textbook.step_forward(x_t, h_prev, c_prev, p)[0])[0]

    def of_gates(q):
        c = q["c_prev"] * q["f"] + q["g"] * q["i"]
        return textbook.squared_error(s.y_t, q["o"] * jnp.tanh(c))[0]

    def of_cell_state(c):
        return textbook.squared_error(s.y_t, jnp.asarray(s.o) * jnp.tanh(c))[0]

    s.z = {
        gate: s.p[f"wx{gate}"] @ s.x_t + s.p[f"wh{gate}"] @ s.h_prev + s.p[f"b{gate}"]
        for gate in "igfo"
    }
    s.i, s.g, s.f, s.o = sigmoid(s.z["i"]), np.tanh(s.z["g"]), sigmoid(s.z["f"]), sigmoid(s.z["o"])
    s.c = s.c_prev * s.f + s.g * s.i

    def autodiff(gates, c, *args):
        dp, dx, dh_prev, dc_prev = jax.grad(error, argnums=(0, 1, 2, 3))(*args)
        dgates = jax.grad(of_gates)(gates)
        return {
            **{f"d{key}": value for key, value in dp.items()},
            **{f"d{key}": value for key, value in dgates.items() if key != "c_prev"},
            "dc": jax.grad(of_cell_state)(c), "dx": dx, "dh_prev": dh_prev, "dc_prev": dc_prev,
        }  # fmt: skip

    gates = {"i": s.i, "g": s.g, "f": s.f, "o": s.o, "c_prev": s.c_prev}
    s.cell_auto = compiled(autodiff, gates, s.c, s.p, s.x_t, s.h_prev, s.c_prev)
    s.dc = s.E_delta * s.o * (1 - np.tanh(s.c) ** 2)
    s.dz = {
        "o": s.E_delta * np.tanh(s.c) * s.o * (1 - s.o),
        "f": s.dc * s.c_prev * s.f * (1 - s.f),
        "i": s.dc * s.g * s.i * (1 - s.i),
        "g": s.dc * s.i * (1 - s.g**2),
    }
    return s


@functools.cache
def step_terms():
    """Every step's gradients: by the textbook, and by autodiff as if each step had own weights."""
    step = step_example()
    x = jnp.asarray(step.x)
    E_delta = step.out["a"] - step.y

    def error(copies, nudges):
        """The whole error; ``nudges`` are added to every h_t and c_t, to differentiate by them."""
        h, c = map(jnp.asarray, step.states)
        E = jnp.zeros(())
        for t in range(step.T):
            own = {key: value[t] for key, value in copies.items()}
            h, c, _ = textbook.step_forward(x[..., t], h, c, own)
            h, c = h + nudges["h"][t], c + nudges["c"][t]
            E = E + textbook.squared_error(step.y[..., t], h)[0]
        return E

    def run(inputs):
        _, caches = forward("step", inputs)
        each = textbook.gradients_each_step(E_delta, caches)
        copies = {k: jnp.stack([v] * step.T) for k, v in inputs["parameters"].items()}
        nothing = jnp.zeros((step.T, *step.h_prev.shape))
        auto = jax.grad(error, argnums=(0, 1))(copies, {"h": nothing, "c": nothing})
        return each, *auto

    return compiled(run, step.problem.inputs)


@functools.cache
def net_example():
    """The network, its terms, and in numpy the products of Jacobians that net-6 names."""
    s = sequence("net")
    o = s.out["a"]

    def run(inputs):
        _, caches = forward("net", inputs)
        return textbook.net_paths(s.problem.y, caches), textbook.net_terms(s.problem.y, caches)

    s.paths, s.terms = to_numpy(compiled(run, s.problem.inputs))
    s.o, s.y_hat = o, s.out["y_pred"]
    s.o_prev = np.concatenate([np.zeros_like(o[..., :1]), o[..., :-1]], axis=-1)
    s.dz = s.y_hat * s.y.sum(0, keepdims=True) - s.y
    s.do = np.einsum("yo,ymt->omt", s.p["W_o"], s.dz)
    return s
