"""PyTorch's layout against its documented formulas, in NumPy; `tests/peers` has torch itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn.convert import from_torch, to_torch

GATES = {"RNN": 1, "RNN relu": 1, "GRU": 3, "LSTM": 4, "LSTM projected": 4}
CELLS = {
    "RNN": jaxrnn.ELMAN,
    "RNN relu": jaxrnn.elman("relu"),
    "GRU": jaxrnn.GRU,
    "LSTM": jaxrnn.LSTM,
    "LSTM projected": jaxrnn.projected(jaxrnn.LSTM, 1),
}
I, H = 3, 2


def state_dict(kind, layers=1, *, bidirectional=False, bias=True, prefix="", cell=False, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    P = 1 if kind == "LSTM projected" else H
    for n in range(layers):
        width = P * (1 + bidirectional) if n else I
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            at = "" if cell else f"_l{n}{suffix}"
            rows = GATES[kind] * H
            found[f"{prefix}weight_ih{at}"] = rng.normal(size=(rows, width))
            found[f"{prefix}weight_hh{at}"] = rng.normal(size=(rows, P))
            if kind == "LSTM projected":
                found[f"{prefix}weight_hr{at}"] = rng.normal(size=(P, H))
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
    c = np.zeros((B, H))
    h = np.zeros((B, get("weight_hh").shape[1]))
    hs = np.zeros((T, *h.shape))
    for t in range(T)[:: -1 if suffix else 1]:
        a = xs[t] @ get("weight_ih").T + get("bias_ih")
        u = h @ get("weight_hh").T + get("bias_hh")
        if kind == "RNN":
            h = np.tanh(a + u)
        elif kind == "RNN relu":
            h = np.maximum(a + u, 0)
        elif kind.startswith("LSTM"):
            i, f, g, o = np.split(a + u, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            if kind == "LSTM projected":
                h = h @ get("weight_hr").T
        else:
            (a_r, a_z, a_n), (u_r, u_z, u_n) = np.split(a, 3, -1), np.split(u, 3, -1)
            r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
            h = (1 - z) * np.tanh(a_n + r * u_n) + z * h
        hs[t] = h
    return hs


def options(kind):
    return {"nonlinearity": "relu"} if kind == "RNN relu" else {}


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", GATES)
def test_a_network_from_torch_computes_their_formulas(kind, bidirectional, bias):
    weights = state_dict(kind, 2, bidirectional=bidirectional, bias=bias)
    others = {"rnn.norm.weight": np.ones(3), "head.weight": np.ones((2, 2))}
    prefixed = {f"rnn.{key}": a for key, a in weights.items()}
    network, params = from_torch(prefixed | others, "rnn.", **options(kind))
    xs = np.random.default_rng(1).normal(size=(4, 3, I))
    expected = xs
    for n in range(2):
        directions = [by_their_formulas(kind, weights, expected, n, "")]
        if bidirectional:
            directions.append(by_their_formulas(kind, weights, expected, n, "_reverse"))
        expected = np.concatenate(directions, -1)
    assert_same(network.apply(params, jnp.asarray(xs))[1], jnp.asarray(expected))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_cell_class_is_a_layer(kind):
    weights = state_dict(kind, cell=True)
    network, params = from_torch(weights)
    (of_layer,) = from_torch({f"{key}_l0": a for key, a in weights.items()})[1].layers
    assert_same(params.layers[0], of_layer, 0)
    assert len(network.layers) == 1
    again = to_torch(network, params, "cell.", cell_class=True)
    assert set(again) == {f"cell.{key}" for key in weights}
    assert_same(from_torch(again, "cell.")[1], params, 0)


@pytest.mark.parametrize("kind", GATES)
def test_ours_to_theirs_to_ours_is_bit_exact_and_theirs_to_ours_to_theirs_the_same_function(kind):
    network = jaxrnn.stack(
        *(jaxrnn.layer(CELLS[kind], H, bidirectional=True) for _ in range(2)), dropout=0.5
    )
    like = network.init(jax.random.key(0), I, dtype=jnp.float32)
    params = random_tree(like, seed=2)
    theirs = to_torch(network, params, "encoder.")
    assert set(theirs) == set(state_dict(kind, 2, bidirectional=True, prefix="encoder."))
    assert all(a.flags.c_contiguous and a.dtype == np.float32 for a in theirs.values())
    again, back = from_torch(theirs, "encoder.", dropout=0.5, **options(kind))
    assert again == network
    assert_same(back, params, 0)

    given = state_dict(kind)
    network, params = from_torch(given, **options(kind))
    twice = to_torch(network, params)
    xs = np.random.default_rng(1).normal(size=(4, 3, I))
    functions = [by_their_formulas(kind, weights, xs, 0, "") for weights in (given, twice)]
    assert_same(*functions, 1e-14)


def test_16_bit_params_go_there_and_back_bit_by_bit():
    network = jaxrnn.layer(jaxrnn.GRU, H)
    params = random_tree(network.init(jax.random.key(0), I, dtype=jnp.bfloat16))
    assert_same(from_torch(to_torch(network, params))[1], params, 0)


def test_a_cell_with_initializers_of_its_own_is_the_same_module():
    init = functools.partial(jaxrnn.LSTM.init, forget_bias=0.0)
    network = jaxrnn.layer(jaxrnn.LSTM._replace(init=init), H)
    params = network.init(jax.random.key(0), I)
    assert set(to_torch(network, params)) == set(state_dict("LSTM"))


PROJECTED = CELLS["LSTM projected"]


def written(network, **options):
    return to_torch(network, network.init(jax.random.key(0), I), **options)


@pytest.mark.parametrize(
    ("cell", "plain"),
    [
        (jaxrnn.recurrent_dropout(jaxrnn.LSTM, 0.2), jaxrnn.LSTM),
        (jaxrnn.recurrent_dropout(jaxrnn.GRU, 0.2), jaxrnn.GRU),
        (jaxrnn.recurrent_dropout(PROJECTED, 0.2), PROJECTED),
        (jaxrnn.clip_adjoint(jaxrnn.LSTM, norm=1.0), jaxrnn.LSTM),
    ],
    ids=lambda cell: cell.name,
)
def test_a_cell_that_is_torchs_without_a_key_is_written_as_that(cell, plain):
    # beside a layer of the plain cell, too
    network = jaxrnn.stack(jaxrnn.layer(cell, H), jaxrnn.layer(plain, H))
    params = network.init(jax.random.key(0), I)
    again, back = from_torch(to_torch(network, params))
    assert [each.cell for each in again.layers] == [plain, plain]
    assert_same(back, params, 0)
    xs = jnp.ones((4, 3, I), jnp.float32)
    assert_same(again.apply(back, xs), network.apply(params, xs), 1e-6)


@pytest.mark.parametrize("turned", ["weight_ih_l1", "weight_hh_l1_reverse", "weight_hr_l0"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "LSTM projected"])
def test_one_transposed_weight_is_named(kind, turned):
    weights = state_dict(kind, 2, bidirectional=True)
    if turned in weights:
        name = turned[: len("weight_ih")]
        with pytest.raises(ValueError, match=f"in layer {turned[11]}, .*; {name} looks transposed"):
            from_torch({k: a.T if k == turned else a for k, a in weights.items()})


BIASES_OF_1 = ("bias_ih_l1", "bias_hh_l1")
TWO_LAYERS = state_dict("LSTM", 2)
WRONG = {
    "nonlinearity": (lambda: from_torch(state_dict("RNN"), nonlinearity="elu"), "'tanh' or 'relu'"),
    "relu of a GRU": (
        lambda: from_torch(state_dict("GRU"), nonlinearity="relu"),
        "must be 'tanh' for the weights of GRU",
    ),
    "nothing": (lambda: from_torch({"w": np.ones(3)}, "rnn."), "keys such as 'rnn.weight_ih_l0'"),
    "another prefix": (
        lambda: from_torch(state_dict("LSTM", prefix="rnn.")),
        r"there are some behind the prefixes \['rnn.'\]",
    ),
    "another key": (lambda: from_torch({"w": np.ones(3)}), "behind the prefix ''; got 'w'"),
    "projection": (
        lambda: from_torch({**state_dict("LSTM"), "weight_hr_l0": np.ones((1, 2))}),
        r"weight_hh \[4 H, P\] with weight_hr \[P, H\] of a projection",
    ),
    "layers that do not fit": (
        lambda: from_torch({**TWO_LAYERS, "weight_ih_l1": np.ones((4 * H, 7))}),
        r"weight_ih \[G H, 2\] in layer 1",
    ),
    "layers of two sizes": (
        lambda: from_torch(
            {
                **TWO_LAYERS,
                "weight_ih_l1": np.ones((12, 2)),
                "weight_hh_l1": np.ones((12, 3)),
                "bias_ih_l1": np.ones(12),
                "bias_hh_l1": np.ones(12),
            }
        ),
        "one weight_hh shape, that of layer 0",
    ),
    "biases in one layer": (
        lambda: from_torch({k: a for k, a in TWO_LAYERS.items() if k not in BIASES_OF_1}),
        "biases in all layers or in none",
    ),
    "a layer twice": (
        lambda: from_torch({**state_dict("GRU"), **state_dict("GRU", cell=True)}),
        "must have layer 0 once",
    ),
    "one weight transposed": (
        lambda: from_torch({**state_dict("LSTM"), "weight_ih_l0": np.ones((I, 4 * H))}),
        "; weight_ih looks transposed",
    ),
    "empty": (
        lambda: from_torch({"weight_ih_l0": np.ones((0, 2)), "weight_hh_l0": np.ones((0, 0))}),
        "with G of 1",
    ),
    "one bias": (
        lambda: from_torch({k: a for k, a in state_dict("GRU").items() if "bias_hh" not in k}),
        "both biases or none, of layer 0",
    ),
    "transposed": (
        lambda: from_torch({k: a.T for k, a in TWO_LAYERS.items()}),
        "; weight_ih and weight_hh look transposed",
    ),
    "a gap": (
        lambda: from_torch({k.replace("l0", "l1"): a for k, a in state_dict("LSTM").items()}),
        "must have weights of layer 0",
    ),
    "residual": (
        lambda: to_torch(jaxrnn.layer(jaxrnn.GRU, 3, residual=True), None),
        "what one torch module can be",
    ),
    "layers of two cells": (
        lambda: written(jaxrnn.stack(jaxrnn.layer(jaxrnn.GRU, 3), jaxrnn.layer(jaxrnn.LSTM, 3))),
        "layers of one cell",
    ),
    "zoneout": (
        lambda: written(jaxrnn.layer(jaxrnn.zoneout(PROJECTED, h=0.1), H)),
        "that compute the same without a key; got LSTM projected to 1 with zoneout",
    ),
    "clipped": (
        lambda: written(jaxrnn.layer(jaxrnn.clipped(jaxrnn.LSTM, 100.0), H)),
        "that compute the same without a key; got LSTM clipped to 100",
    ),
    "fewer bits": (
        lambda: written(jaxrnn.layer(jaxrnn.with_dtypes(PROJECTED, compute="bfloat16"), H)),
        "that compute the same without a key; got LSTM projected to 1 in bfloat16",
    ),
    "heads": (
        lambda: written(jaxrnn.layer(jaxrnn.heads(jaxrnn.LSTM, 2), H)),
        "that compute the same without a key; got LSTM",
    ),
    "another cell": (
        lambda: written(jaxrnn.layer(jaxrnn.MGU, H)),
        "that compute the same without a key; got MGU",
    ),
    "a step of the user's": (
        lambda: to_torch(
            jaxrnn.layer(
                jaxrnn.cell_from_step(jaxrnn.GRU.step, initial_state=jaxrnn.GRU.initial_state), H
            ),
            jaxrnn.layer(jaxrnn.GRU, H).init(jax.random.key(0), I),
        ),
        "that compute the same without a key; got",
    ),
    "a cell class of two layers": (
        lambda: written(
            jaxrnn.stack(*[jaxrnn.layer(jaxrnn.GRU, H)] * 2),
            cell_class=True,
        ),
        "`cell_class` must be False unless the network is one layer",
    ),
    "a cell class in both directions": (
        lambda: written(jaxrnn.layer(jaxrnn.GRU, H, bidirectional=True), cell_class=True),
        "`cell_class` must be False unless the network is one layer",
    ),
    "a projected cell class": (
        lambda: written(jaxrnn.layer(PROJECTED, H), cell_class=True),
        "`cell_class` must be False unless the network is one layer",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_module_of_torch_is_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
