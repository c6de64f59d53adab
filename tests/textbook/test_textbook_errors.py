"""Bad input of the textbook's functions is refused by name."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from notations import SPECS, compiled, forward, make, random_sizes

from jaxrnn import textbook


class Given(NamedTuple):
    """Good input of the forward functions, and what they return."""

    inputs: dict
    out: dict
    caches: Any
    wide: Any


@pytest.fixture(scope="module")
def given():
    """Good input of every function, for the cases below to spoil."""

    def all_of(notation):
        inputs = make(notation, random_sizes(0)).inputs
        out, caches = compiled(functools.partial(forward, notation), inputs)
        # as an array that has one feature too many
        return Given(inputs, out, caches, jnp.zeros((9, *inputs["x"].shape[1:])))

    return {notation: all_of(notation) for notation in SPECS}


def wrong(notation, change):
    """A call of the notation's forward function on spoilt inputs."""
    return lambda g: forward(notation, {**g[notation].inputs, **change(g[notation].inputs)})


def spoilt(notation, **changes):
    """The caches with some fields changed."""
    return lambda g: g[notation].caches._replace(
        **{field: change(getattr(g[notation].caches, field)) for field, change in changes.items()}
    )


def float32(a):
    return a.astype(jnp.float32)


def cell(g, notation):
    return textbook.cache_at(g[notation].caches, 0)


ERRORS = {
    "missing_key": (
        wrong("rnn", lambda i: {"parameters": {"Wax": 1.0}}),
        (ValueError, r"`parameters` must have the keys Wax, Waa, .*; got missing 'Waa', 'Wya'"),
    ),
    "unknown_key": (
        wrong("step", lambda i: {"parameters": {**i["parameters"], "whj": 1.0}}),
        (ValueError, r"got unknown 'whj'"),
    ),
    "not_a_dict": (
        wrong("net", lambda i: {"parameters": [1.0]}),
        (TypeError, r"`parameters` must be a dict of W_F, W_R, W_o; got list"),
    ),
    "parameter_not_square": (
        wrong("rnn", lambda i: {"parameters": {**i["parameters"], "Waa": i["parameters"]["Wax"]}}),
        (ValueError, r"`parameters\['Waa'\]` must have shape \(n_a=\d, n_a=\d\); got shape"),
    ),
    "parameter_without_the_hidden_columns": (
        wrong("lstm", lambda i: {"parameters": {**i["parameters"], "Wi": i["parameters"]["Wy"]}}),
        (ValueError, r"`parameters\['Wi'\]` must have shape \(n_a=\d, n_a\+n_x=\d+\); got shape"),
    ),
    "bias_of_one_axis": (
        wrong(
            "lstm", lambda i: {"parameters": {**i["parameters"], "by": i["parameters"]["by"][0]}}
        ),
        (ValueError, r"`parameters\['by'\]` must have shape \(n_y=\d, 1\); got shape \(1,\)"),
    ),
    "parameter_of_integers": (
        wrong("net", lambda i: {"parameters": jax.tree.map(jnp.int32, i["parameters"])}),
        (TypeError, r"`parameters\['W_F'\]` must have a floating dtype; got int32"),
    ),
    "parameter_not_an_array": (
        wrong("net", lambda i: {"parameters": {**i["parameters"], "W_R": "w"}}),
        (TypeError, r"`parameters\['W_R'\]` must be an array; got str 'w'"),
    ),
    "x_of_two_axes": (
        wrong("rnn", lambda i: {"x": i["x"][..., 0]}),
        (ValueError, r"`x` must have shape \(n_x=\d, m, T_x\); got shape \(\d, \d\)"),
    ),
    "x_of_other_features": (
        lambda g: textbook.net_forward(g["net"].wide, g["net"].inputs["parameters"]),
        (ValueError, r"`x` must have shape \(n_x=\d, m, T\); got shape \(9, "),
    ),
    "x_of_another_dtype": (
        wrong("lstm", lambda i: {"x": float32(i["x"])}),
        (TypeError, r"`x` must have the dtype of `parameters\['Wf'\]`, float64; got float32"),
    ),
    "a0_of_other_examples": (
        wrong("rnn", lambda i: {"a0": i["a0"][:, :1]}),
        (ValueError, r"`a0` must have shape \(n_a=\d, m=\d\); got shape \(\d, 1\)"),
    ),
    "c0": (wrong("lstm", lambda i: {"c0": i["x"]}), (ValueError, r"`c0` must have shape")),
    "h0": (wrong("step", lambda i: {"h0": i["x"]}), (ValueError, r"`h0` must have shape")),
    "xt": (
        lambda g: textbook.rnn_cell_forward(g["rnn"].wide, None, g["rnn"].inputs["parameters"]),
        (ValueError, r"`xt` must have shape \(n_x=\d, m\)"),
    ),
    "a_prev": (
        lambda g: textbook.rnn_cell_forward(
            g["rnn"].inputs["x"][..., 0], None, g["rnn"].inputs["parameters"]
        ),
        (TypeError, r"`a_prev` must "),
    ),
    "da_next": (
        lambda g: textbook.rnn_cell_backward(g["rnn"].wide[..., 0], cell(g, "rnn")),
        (ValueError, r"`da_next` must have shape \(n_a=\d, m=\d\)"),
    ),
    "dc_next": (
        lambda g: textbook.lstm_cell_backward(
            g["lstm"].inputs["a0"], g["lstm"].wide, cell(g, "lstm")
        ),
        (ValueError, r"`dc_next` must have shape"),
    ),
    "da_of_other_steps": (
        lambda g: textbook.rnn_backward(g["rnn"].out["a"][..., 1:], g["rnn"].caches),
        (ValueError, r"`da` must have shape \(n_a=\d, m=\d, T_x=\d\)"),
    ),
    "dc": (
        lambda g: textbook.lstm_backward(
            g["lstm"].out["a"], g["lstm"].caches, dc=float32(g["lstm"].out["a"])
        ),
        (TypeError, r"`dc` must have the dtype of `caches\.parameters\['Wf'\]`, float64"),
    ),
    "cache_of_another_network": (
        lambda g: textbook.rnn_cell_backward(g["rnn"].out["a"][..., 0], cell(g, "lstm")),
        (TypeError, r"`cache` must be the RNNCache of the forward pass; got LSTMCache of 10"),
    ),
    "cache_of_a_sequence_for_a_cell": (
        lambda g: textbook.rnn_cell_backward(g["rnn"].out["a"][..., 0], g["rnn"].caches),
        (ValueError, r"`cache` must be the cache of one step; .* RNNCache .* cache_at\(cache, t\)"),
    ),
    "cache_of_a_cell_for_a_sequence": (
        lambda g: textbook.rnn_backward(g["rnn"].out["a"], cell(g, "rnn")),
        (ValueError, r"`caches\.a_next` must have shape \(T_x, n_a=\d, m\); got shape"),
    ),
    "caches_that_do_not_fit": (
        lambda g: textbook.rnn_backward(g["rnn"].out["a"], spoilt("rnn", xt=lambda xt: xt[1:])(g)),
        (ValueError, r"`caches\.xt` must have shape \(T_x=\d, n_x=\d, m=\d\)"),
    ),
    "caches_without_parameters": (
        lambda g: textbook.lstm_backward(
            g["lstm"].out["a"], spoilt("lstm", parameters=lambda p: {})(g)
        ),
        (ValueError, r"`caches\.parameters` must have the keys Wf"),
    ),
    "targets": (
        lambda g: textbook.rnn_head_backward(
            g["rnn"].wide, g["rnn"].out["y_pred"], g["rnn"].out["a"], g["rnn"].inputs["parameters"]
        ),
        (ValueError, r"`y` must have shape \(n_y=\d, m=\d, T_x=\d\)"),
    ),
    "predictions": (
        lambda g: textbook.lstm_head_backward(
            g["lstm"].wide, g["lstm"].wide, g["lstm"].out["a"], g["lstm"].inputs["parameters"]
        ),
        (ValueError, r"`y_pred` must have shape"),
    ),
    "targets_of_the_error": (
        lambda g: textbook.cross_entropy(g["rnn"].wide, g["rnn"].out["y_pred"]),
        (ValueError, r"`y` must have shape"),
    ),
    "labels_for_targets": (
        lambda g: textbook.net_error(jnp.ones(3, int), g["net"].out["y_pred"]),
        (TypeError, r"`y` must have a floating dtype"),
    ),
    "predictions_of_the_network": (
        lambda g: textbook.net_error(g["net"].wide, 1.0),
        (ValueError, r"`y_hat` must have shape"),
    ),
    "targets_of_the_network": (
        lambda g: textbook.net_backward(g["net"].wide, g["net"].caches),
        (ValueError, r"`y` must have shape \(n_y=\d, m=\d, T=\d\)"),
    ),
    "targets_of_the_derivation": (
        lambda g: textbook.squared_error(g["step"].wide, g["step"].out["a"]),
        (ValueError, r"`y` must have shape \(n_h=\d, m=\d, T=\d\)"),
    ),
    "e_delta": (
        lambda g: textbook.gradients_at_step(g["step"].out["a"], cell(g, "step")),
        (ValueError, r"`E_delta` must have shape \(n_h=\d, m=\d\)"),
    ),
    "e_delta_of_a_sequence": (
        lambda g: textbook.gradients_each_step(g["step"].out["a"][..., 1:], g["step"].caches),
        (ValueError, r"`E_delta` must have shape \(n_h=\d, m=\d, T=\d\)"),
    ),
    "dc_next_of_the_derivation": (
        lambda g: textbook.gradients_at_step(
            g["step"].out["a"][..., 0], cell(g, "step"), dc_next=g["step"].wide
        ),
        (ValueError, r"`dc_next` must have shape"),
    ),
    "step_that_is_not_there": (
        lambda g: textbook.cache_at(g["rnn"].caches, 7),
        (ValueError, r"`t` must lie in 0\.\.\d, the steps of `caches`; got 7"),
    ),
    "step_that_is_no_int": (
        lambda g: textbook.cache_at(g["rnn"].caches, 1.0),
        (TypeError, r"`t` must be an int"),
    ),
    "step_that_is_a_bool": (
        lambda g: textbook.cache_at(g["rnn"].caches, np.bool_(True)),
        (TypeError, r"`t` must be an int"),
    ),
    "caches_of_one_step": (
        lambda g: textbook.cache_at(cell(g, "lstm"), 0),
        (
            ValueError,
            r"`caches` must be those of a sequence, .* got shape \(\d, \d\) of `caches\.a_",
        ),
    ),
    "caches_of_nothing": (
        lambda g: textbook.cache_at((1, 2), 0),
        (TypeError, r"`caches` must be those of a forward pass; got tuple of 2"),
    ),
}


@pytest.mark.parametrize(("call", "error"), ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(given, call, error):
    kind, message = error
    with pytest.raises(kind, match=message):
        call(given)


@pytest.mark.parametrize("notation", ["rnn", "lstm", "step"])
@pytest.mark.parametrize("t", [0, 1, np.int64(-1), 99], ids=repr)
def test_a_step_is_not_taken_by_an_index(given, notation, t):
    """``caches[t]`` of the documents would be a field, of all steps."""
    with pytest.raises(TypeError, match=r"no step .* cache_at\(caches, t\)"):
        given[notation].caches[t]


@pytest.mark.parametrize("notation", ["rnn", "lstm", "step"])
def test_the_cache_of_a_step_is_a_tuple(given, notation):
    cache = cell(given, notation)
    assert cache[0] is getattr(cache, cache._fields[0])
    assert cache[-1] is cache.parameters
    first, *_, parameters = cache
    assert first is cache[0]
    assert parameters is cache.parameters


@pytest.mark.parametrize(
    "call",
    [
        lambda x: textbook.cross_entropy(x, x),
        lambda x: textbook.cross_entropy(jnp.asarray(x, jnp.float32), list(x)),
        lambda x: textbook.rnn_forward(x, x[..., 0], dict.fromkeys(textbook.RNN_PARAMETERS, x)),
        lambda x: textbook.net_error(x, jnp.asarray(x, jnp.float32)),
        lambda x: textbook.squared_error(x, x),
    ],
    ids=["both", "list of arrays", "parameters", "one", "squared error"],
)
def test_float64_is_never_rounded_in_silence(call):
    x = np.full((2, 3, 4), 0.1)
    with (
        jax.enable_x64(False),
        pytest.raises(TypeError, match=r"is float64, .*update\(\"jax_enable_x64\", True\)"),
    ):
        call(x)


def test_float32_serves_while_x64_is_off():
    with jax.enable_x64(False):
        x = np.full((2, 3, 4), 0.5, np.float32)
        assert textbook.cross_entropy(x, jnp.asarray(x)).dtype == jnp.float32
