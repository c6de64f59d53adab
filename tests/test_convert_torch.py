"""PyTorch's layout against its documented formulas, in NumPy; `tests/peers` has torch itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn.convert import from_torch, to_torch

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
I, H = 3, 2


def state_dict(kind, layers=1, *, bidirectional=False, bias=True, prefix="", cell=False, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for n in range(layers):
        width = H * (1 + bidirectional) if n else I
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            at = "" if cell else f"_l{n}{suffix}"
            rows = GATES[kind] * H
            found[f"{prefix}weight_ih{at}"] = rng.normal(size=(rows, width))
            found[f"{prefix}weight_hh{at}"] = rng.normal(size=(rows, H))
            if bias:
                found[f"{prefix}bias_ih{at}"] = rng.normal(size=rows)
                found[f"{prefix}bias_hh{at}"] = rng.normal(size=rows)
    return found


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def by_their_formulas(kind, weights, xs, n, suffix):
    """One direction of one layer, [T, B, I] -> [T, B, H], as the modules' documentation says."""

    def get(name):
        return weights.get(f"{name}_l{n}{suffix}", 0)

    T, B = xs.shape[:2]
    h = c = np.zeros((B, H))
    hs = np.zeros((T, B, H))
    for t in range(T)[:: -1 if suffix else 1]:
        a = xs[t] @ get("weight_ih").T + get("bias_ih")
        u = h @ get("weight_hh").T + get("bias_hh")
        if kind == "RNN":
            h = np.tanh(a + u)
        elif kind == "LSTM":
            i, f, g, o = np.split(a + u, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (a_r, a_z, a_n), (u_r, u_z, u_n) = np.split(a, 3, -1), np.split(u, 3, -1)
            r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
            h = (1 - z) * np.tanh(a_n + r * u_n) + z * h
        hs[t] = h
    return hs


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", GATES)
def test_a_network_from_torch_computes_their_formulas(kind, bidirectional, bias):
    weights = state_dict(kind, 2, bidirectional=bidirectional, bias=bias)
    network, params = from_torch({f"rnn.{key}": a for key, a in weights.items()}, "rnn.")
    xs = np.random.default_rng(1).normal(size=(4, 3, I))
    expected = xs
    for n in range(2):
        directions = [by_their_formulas(kind, weights, expected, n, "")]
        if bidirectional:
            directions.append(by_their_formulas(kind, weights, expected, n, "_reverse"))
        expected = np.concatenate(directions, -1)
    assert_same(network.apply(params, jnp.asarray(xs))[1], jnp.asarray(expected))


@pytest.mark.parametrize("kind", GATES)
def test_a_cell_class_is_a_layer(kind):
    weights = state_dict(kind, cell=True)
    network, params = from_torch(weights)
    (of_layer,) = from_torch({f"{key}_l0": a for key, a in weights.items()})[1].layers
    assert_same(params.layers[0], of_layer, 0)
    assert len(network.layers) == 1


@pytest.mark.parametrize("kind", GATES)
def test_ours_to_theirs_to_ours_is_bit_exact_and_theirs_to_ours_to_theirs_the_same_function(kind):
    cell = {"RNN": jaxrnn.ELMAN, "GRU": jaxrnn.GRU, "LSTM": jaxrnn.LSTM}[kind]
    network = jaxrnn.stack(
        *(jaxrnn.layer(cell, H, bidirectional=True) for _ in range(2)), dropout=0.5
    )
    like = network.init(jax.random.key(0), I, dtype=jnp.float32)
    params = random_tree(like, seed=2)
    theirs = to_torch(network, params, "encoder.")
    assert set(theirs) == set(state_dict(kind, 2, bidirectional=True, prefix="encoder."))
    assert all(a.flags.c_contiguous and a.dtype == np.float32 for a in theirs.values())
    again, back = from_torch(theirs, "encoder.", dropout=0.5)
    assert again == network
    assert_same(back, params, 0)

    given = state_dict(kind)
    network, params = from_torch(given)
    twice = to_torch(network, params)
    xs = np.random.default_rng(1).normal(size=(4, 3, I))
    functions = [by_their_formulas(kind, weights, xs, 0, "") for weights in (given, twice)]
    assert_same(*functions, 1e-14)


WRONG = {
    "relu": (lambda: from_torch(state_dict("RNN"), nonlinearity="relu"), "'tanh'; got 'relu'"),
    "nothing": (lambda: from_torch({"w": np.ones(3)}, "rnn."), "keys such as 'rnn.weight_ih_l0'"),
    "another key": (lambda: from_torch({"w": np.ones(3)}), "behind the prefix ''; got 'w'"),
    "projection": (
        lambda: from_torch({**state_dict("LSTM"), "weight_hr_l0": np.ones((1, 2))}),
        "projections of an LSTM, `proj_size`",
    ),
    "one bias": (
        lambda: from_torch({k: a for k, a in state_dict("GRU").items() if "bias_hh" not in k}),
        "both biases or none, of layer 0",
    ),
    "transposed": (
        lambda: from_torch({k: a.T for k, a in state_dict("LSTM").items()}),
        "they look transposed",
    ),
    "a gap": (
        lambda: from_torch({k.replace("l0", "l1"): a for k, a in state_dict("LSTM").items()}),
        "must have weights of layer 0",
    ),
    "residual": (
        lambda: to_torch(jaxrnn.layer(jaxrnn.GRU, 3, residual=True), None),
        "what one torch module can be",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_module_of_torch_is_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
