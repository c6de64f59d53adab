"""Converters between the textbook's dictionaries and the engine's params: exact, both ways."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from notations import SPECS, random_parameters, random_sizes
from support.problems import random_tree

import jaxrnn
from jaxrnn.convert import textbook as convert

NOTATIONS = list(SPECS)
EACH = pytest.mark.parametrize("notation", NOTATIONS)
SIZES = random_sizes(0)
I, H, O = (SIZES[key] for key in ("n_x", "hidden", "n_y"))


def converters(notation):
    """(from, to), where ``to`` takes what ``from`` returns."""
    to_textbook = getattr(convert, f"{notation}_to_textbook")
    return getattr(convert, f"{notation}_from_textbook"), (
        to_textbook if notation == "step" else lambda pair: to_textbook(*pair)
    )


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e, strict=True)


@EACH
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_there_and_back_is_the_identity(notation, dtype):
    there, back = converters(notation)
    parameters = random_parameters(notation, SIZES, dtype=dtype)
    converted = there(parameters)
    assert_equal(back(converted), parameters)
    assert list(back(converted)) == list(SPECS[notation])
    assert_equal(there(back(converted)), converted)


def test_the_rnn_is_transposed():
    parameters = random_parameters("rnn", SIZES)
    params, head = convert.rnn_from_textbook(parameters)
    assert params.w_ih.shape == (I, H)
    assert_equal(params.w_ih, parameters["Wax"].T)
    assert_equal(params.w_hh, parameters["Waa"].T)
    assert_equal(params.b, parameters["ba"][:, 0])
    assert_equal(head, jaxrnn.AffineParams(parameters["Wya"].T, parameters["by"][:, 0]))


@pytest.mark.parametrize(("block", "gate"), list(enumerate("ifco")), ids=list("ifco"))
def test_the_gates_of_the_concatenated_lstm_find_their_places(block, gate):
    parameters = random_parameters("lstm", SIZES)
    params, head = convert.lstm_from_textbook(parameters)
    columns = slice(block * H, (block + 1) * H)
    W = parameters[f"W{gate}"]
    # the first columns of a gate's weight multiply the hidden state
    assert_equal(params.w_hh[:, columns], W[:, :H].T)
    assert_equal(params.w_ih[:, columns], W[:, H:].T)
    assert_equal(params.b[columns], parameters[f"b{gate}"][:, 0])
    assert_equal(head.w, parameters["Wy"].T)


@pytest.mark.parametrize(("block", "gate"), list(enumerate("ifgo")), ids=list("ifgo"))
def test_the_gates_of_the_twelve_weights_find_their_places(block, gate):
    parameters = random_parameters("step", SIZES)
    params = convert.step_from_textbook(parameters)
    columns = slice(block * H, (block + 1) * H)
    assert_equal(params.w_ih[:, columns], parameters[f"wx{gate}"].T)
    assert_equal(params.w_hh[:, columns], parameters[f"wh{gate}"].T)
    assert_equal(params.b[columns], parameters[f"b{gate}"][:, 0])


def test_the_network_without_biases_gets_zeros():
    params, head = convert.net_from_textbook(random_parameters("net", SIZES))
    assert_equal((params.b, head.b), (jnp.zeros(H), jnp.zeros(O)))


def test_the_transpose_of_all_axes_is_the_layout_of_the_other_side():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    assert x.T.shape == (4, 3, 2)
    assert_equal(x.T[3, 1], x[:, 1, 3])


@EACH
def test_gradients_convert_by_the_chain_rule(notation):
    """As the module says: the engine's gradients under the textbook's names."""
    there, back = converters(notation)
    parameters = random_parameters(notation, SIZES)
    gradients = random_tree(there(parameters), seed=9)
    (named,) = jax.vjp(there, parameters)[1](gradients)
    assert named.keys() == parameters.keys()
    # a permutation of the entries: the inverse does the same, where no bias is left out
    if notation != "net":
        assert_equal(named, back(gradients))


def test_a_bias_that_the_notation_does_not_have_is_refused_by_name():
    params, head = convert.net_from_textbook(random_parameters("net", SIZES))
    one = params._replace(b=params.b.at[1].set(0.5))
    with pytest.raises(
        ValueError, match=r"`params\.b` must be zero: the notation of W_F, W_R, W_o"
    ):
        convert.net_to_textbook(one, head)
    with pytest.raises(ValueError, match=r"`head\.b` must be zero"):
        convert.net_to_textbook(params, head._replace(b=head.b + 1))
    # NaN is not zero either
    with pytest.raises(ValueError, match=r"`params\.b` must be zero"):
        convert.net_to_textbook(params._replace(b=params.b * jnp.nan), head)
    # what is traced cannot be looked at
    assert_equal(jax.jit(convert.net_to_textbook)(one, head), convert.net_to_textbook(params, head))


@pytest.fixture(scope="module")
def given():
    """Good input of every converter, for the cases below to spoil."""
    p = random_parameters("lstm", SIZES)
    rnn, head = convert.rnn_from_textbook(random_parameters("rnn", SIZES))
    return SimpleNamespace(p=p, rnn=rnn, head=head, lstm=convert.lstm_from_textbook(p)[0])


def without(parameters, key):
    return {name: value for name, value in parameters.items() if name != key}


FROM, TO_RNN, TO_LSTM = (
    convert.lstm_from_textbook,
    convert.rnn_to_textbook,
    convert.lstm_to_textbook,
)
ERRORS = {
    "missing": (
        lambda g: FROM(without(g.p, "Wf")),
        ValueError,
        r"`parameters` must have the keys Wf, .*; got missing 'Wf'",
    ),
    "unknown": (lambda g: FROM({**g.p, "Wu": 1.0}), ValueError, r"got unknown 'Wu'"),
    "both": (
        lambda g: FROM({**without(g.p, "Wf"), "Wu": 1.0}),
        ValueError,
        r"got missing 'Wf' and unknown 'Wu'",
    ),
    "not_a_dict": (
        lambda g: FROM(g.lstm),
        TypeError,
        r"`parameters` must be a dict of Wf, .*; got LSTMParams",
    ),
    "shape": (
        lambda g: FROM({**g.p, "bo": g.p["bo"][:, 0]}),
        ValueError,
        rf"`parameters\['bo'\]` must have shape \(n_a={H}, 1\); got shape \({H},\)",
    ),
    "dtype": (
        lambda g: FROM({**g.p, "Wy": g.p["Wy"].astype(jnp.float32)}),
        TypeError,
        r"`parameters\['Wy'\]` must have the dtype of `parameters\['Wf'\]`",
    ),
    "integers": (
        lambda g: FROM({**g.p, "by": g.p["by"].astype(jnp.int32)}),
        TypeError,
        r"`parameters\['by'\]` must have a floating dtype; got int32",
    ),
    "another_cell": (
        lambda g: TO_RNN(g.lstm, g.head),
        TypeError,
        r"`params` must be ElmanParams; got LSTMParams",
    ),
    "not_params": (
        lambda g: convert.step_to_textbook(g.rnn),
        TypeError,
        r"`params` must be LSTMParams; got ElmanParams",
    ),
    "not_a_head": (
        lambda g: TO_LSTM(g.lstm, g.rnn),
        TypeError,
        r"`head` must be AffineParams; got ElmanParams",
    ),
    "head_shape": (
        lambda g: TO_LSTM(g.lstm, g.head._replace(w=g.head.w[1:])),
        ValueError,
        r"`head\.w` must have shape",
    ),
    "head_rank": (
        lambda g: TO_LSTM(g.lstm, g.head._replace(w=g.head.b)),
        ValueError,
        r"`head\.w` must be \[H, O\]; got shape",
    ),
    "weight_rank": (
        lambda g: TO_RNN(g.rnn._replace(w_ih=g.rnn.b), g.head),
        ValueError,
        r"`params` must hold weights of two axes",
    ),
    "weight_shape": (
        lambda g: TO_LSTM(g.lstm._replace(w_hh=g.lstm.w_hh[:, 1:]), g.head),
        ValueError,
        r"`params\.w_hh` must have shape",
    ),
    "bias_type": (
        lambda g: TO_RNN(g.rnn._replace(b="b"), g.head),
        TypeError,
        r"`params\.b` must be an array",
    ),
    "params_dtype": (
        lambda g: TO_RNN(g.rnn, jax.tree.map(lambda a: a.astype(jnp.float32), g.head)),
        TypeError,
        r"`head\.w` must have dtype float64; got float32",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(given, call, error, message):
    with pytest.raises(error, match=message):
        call(given)
