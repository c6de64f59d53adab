"""What bad input gets: an error that names the argument, what was expected and what came.

Each case is what to change in a good call, the error's type, and what its message must say.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.problems import assert_same, make_problem

import jaxrnn
from jaxrnn import AffineParams, ElmanState, LSTMState

T, B, I, H = 5, 2, 3, 4
GOOD = make_problem(jaxrnn.LSTM, T, (B,), I, H, dtype=jnp.float32)
PARAMS, XS, STATE = GOOD.params, GOOD.xs, GOOD.initial_state
GRU_PARAMS = make_problem(jaxrnn.GRU, 1, (), I, H, dtype=jnp.float32).params
DHS = jnp.zeros((T, B, H), jnp.float32)


def f32(*shape):
    return jnp.zeros(shape, jnp.float32)


def unroll(function=jaxrnn.unroll, **changes):
    """A good call but for ``changes``."""
    arguments = {"cell": jaxrnn.LSTM, "params": PARAMS, "xs": XS, "initial_state": STATE}
    arguments |= changes
    positional = [arguments.pop(name) for name in ("cell", "params", "xs", "initial_state")]
    return function(*positional, **arguments)


def reference(**changes):
    return unroll(jaxrnn.unroll_reference, **changes)


def backpropagate(**changes):
    arguments = {"dhs": DHS, "dfinal": None, "initial_state": STATE, **changes}
    cell, params = arguments.pop("cell", jaxrnn.LSTM), arguments.pop("params", PARAMS)
    return jaxrnn.diagnostics.backpropagate(cell, params, arguments.pop("xs", XS), **arguments)


def is_array(value):
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, jax.Array) for leaf in leaves)


def called_under_jit(call, changes):
    """The same call with the changed arrays traced, and all else closed over."""
    traced = {name: value for name, value in changes.items() if is_array(value)}
    constant = {name: value for name, value in changes.items() if name not in traced}
    return jax.jit(lambda traced: call(**constant, **traced))(traced)


def assert_error(call, changes, error, said, *, jit=True):
    for run in (lambda: call(**changes), lambda: called_under_jit(call, changes))[: 1 + jit]:
        with pytest.raises(error) as caught:
            run()
        # a tracing error can be a TypeError too
        assert type(caught.value) is error
        for part in said:
            assert part in str(caught.value)


def case(name, changes, error, *said):
    return pytest.param(changes, error, said, id=name)


# of every function that takes a cell and a sequence
SEQUENCE = [
    case("cell is a string", {"cell": "LSTM"}, TypeError, "`cell`", "jaxrnn.Cell", "'LSTM'"),
    case("cell is None", {"cell": None}, TypeError, "`cell`", "jaxrnn.Cell", "NoneType"),
    case("cell is a type", {"cell": LSTMState}, TypeError, "`cell`", "jaxrnn.Cell", "type"),
    case(
        "params of another cell",
        {"params": GRU_PARAMS},
        TypeError,
        *("`params`", "LSTMParams", "LSTM.init", "got GRUParams(w_ih=float32[3, 12]"),
    ),
    case(
        "params as a plain tuple",
        {"params": tuple(PARAMS)},
        TypeError,
        *("`params`", "LSTMParams", "got tuple"),
    ),
    case("params are None", {"params": None}, TypeError, "`params`", "LSTMParams", "NoneType"),
    case(
        "a leaf of params is missing",
        {"params": PARAMS._replace(b=None)},
        TypeError,
        *("`params.b`", "array", "got NoneType None"),
    ),
    case(
        "a leaf of params is no array",
        {"params": PARAMS._replace(b="b")},
        TypeError,
        *("`params.b`", "array", "got str 'b'"),
    ),
    case(
        "a leaf of params of another shape",
        {"params": PARAMS._replace(w_hh=f32(4, 12))},
        ValueError,
        *("`params.w_hh`", "(4, 16)", "LSTM of I=3, H=4", "got shape (4, 12)"),
    ),
    case(
        "a leaf of params of another rank",
        {"params": PARAMS._replace(b=f32(1, 16))},
        ValueError,
        *("`params.b`", "[4H]", "got shape (1, 16)"),
    ),
    case(
        "an empty leaf of params",
        {"params": PARAMS._replace(w_ih=f32(0, 16))},
        ValueError,
        *("`params.w_ih`", "none of them empty", "got shape (0, 16)"),
    ),
    case(
        "integer params",
        {"params": PARAMS._replace(w_ih=jnp.ones((3, 16), jnp.int32))},
        TypeError,
        *("`params.w_ih`", "floating dtype", "got int32"),
    ),
    case(
        "params of two dtypes",
        {"params": PARAMS._replace(b=jnp.zeros(16, jnp.float64))},
        TypeError,
        *("`params` must have one dtype", "w_hh float32", "b float64"),
    ),
    case("xs without time", {"xs": f32(3)}, ValueError, "`xs`", "[T, ..., I=3]", "got shape (3,)"),
    case(
        "xs of another feature size",
        {"xs": f32(5, 2, 7)},
        ValueError,
        *("`xs`", "[T, ..., I=3]", "got shape (5, 2, 7)"),
    ),
    case(
        "integer xs",
        {"xs": jnp.ones((5, 2, 3), jnp.int32)},
        TypeError,
        *("`xs`", "the dtype of `params`, float32", "got int32", "xs.astype(float32)"),
    ),
    case(
        "xs of another dtype",
        {"xs": jnp.ones((5, 2, 3), jnp.float64)},
        TypeError,
        *("`xs`", "the dtype of `params`, float32", "got float64", "xs.astype(float32)"),
    ),
    case("xs is a string", {"xs": "abc"}, TypeError, "`xs`", "array", "got str 'abc'"),
    case("xs is None", {"xs": None}, TypeError, "`xs`", "array", "NoneType"),
    case("xs is ragged", {"xs": [[1.0], [1.0, 2.0]]}, TypeError, "`xs`", "array", "got list"),
    case(
        "state of another cell",
        {"initial_state": ElmanState(f32(2, 4))},
        TypeError,
        *("`initial_state`", "LSTMState(h=float32[2, 4], c=float32[2, 4])"),
        *("the state of LSTM for this batch shape", "got ElmanState(h=float32[2, 4])"),
    ),
    case(
        "state as one array",
        {"initial_state": f32(2, 4)},
        TypeError,
        *("`initial_state`", "LSTMState(h=float32[2, 4]", "got float32[2, 4]"),
    ),
    case(
        "state of another batch size",
        {"initial_state": LSTMState(f32(2, 4), f32(3, 4))},
        ValueError,
        *("`initial_state.c`", "(2, 4)", "got shape (3, 4)"),
    ),
    case(
        "state without the batch axis",
        {"initial_state": LSTMState(f32(4), f32(4))},
        ValueError,
        *("`initial_state.h`", "(2, 4)", "got shape (4,)"),
    ),
    case(
        "state of another dtype",
        {"initial_state": LSTMState(f32(2, 4), jnp.zeros((2, 4), jnp.bfloat16))},
        TypeError,
        *("`initial_state.c`", "float32", "got bfloat16"),
    ),
    case(
        "lengths of another shape",
        {"lengths": jnp.array([5, 5, 5])},
        ValueError,
        *("`lengths`", "the batch shape of `xs`, (2,)", "got shape (3,)"),
    ),
    case("one length for all", {"lengths": 5}, ValueError, "`lengths`", "(2,)", "got shape ()"),
    case(
        "float lengths",
        {"lengths": jnp.array([5.0, 5.0])},
        TypeError,
        *("`lengths`", "integers", "got dtype float64"),
    ),
    case(
        "boolean lengths",
        {"lengths": jnp.array([True, False])},
        TypeError,
        *("`lengths`", "integers", "got dtype bool"),
    ),
    case("lengths is a string", {"lengths": "all"}, TypeError, "`lengths`", "array", "'all'"),
    case(
        "integer resets",
        {"resets": jnp.zeros((5, 2), jnp.int32)},
        TypeError,
        *("`resets`", "booleans", "got dtype int32"),
    ),
    case(
        "resets batch-major",
        {"resets": jnp.zeros((2, 5), jnp.bool_)},
        ValueError,
        *("`resets`", "[T, ...]", "(5, 2)", "got shape (2, 5)"),
    ),
    case(
        "resets per step only",
        {"resets": jnp.zeros(5, jnp.bool_)},
        ValueError,
        *("`resets`", "(5, 2)", "got shape (5,)"),
    ),
    case("resets is a string", {"resets": "none"}, TypeError, "`resets`", "array", "'none'"),
    case("reverse is a number", {"reverse": 1}, TypeError, "`reverse`", "True or False", "got 1"),
    case(
        "reverse is an array",
        {"reverse": jnp.array(True)},
        TypeError,
        *("`reverse`", "known before tracing", "bool"),
    ),
    case(
        "consts for a cell that takes none",
        {"consts": f32(3)},
        ValueError,
        *("`consts`", "must be None", "LSTM takes none", "got float32[3]"),
    ),
]


@pytest.mark.parametrize("call", [unroll, reference, backpropagate])
@pytest.mark.parametrize(("changes", "error", "said"), SEQUENCE)
def test_sequence_arguments(call, changes, error, said):
    assert_error(call, changes, error, said)


@pytest.mark.parametrize("call", [unroll, reference])
@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        case(
            "unknown residuals",
            {"residuals": "all"},
            ValueError,
            *("`residuals`", "None or one of ('gates', 'states', 'carries')", "got 'all'"),
        ),
        case("residuals is a bool", {"residuals": True}, ValueError, "`residuals`", "got True"),
        case("residuals is empty", {"residuals": ""}, ValueError, "`residuals`", "got ''"),
        case(
            "return_states is an array",
            {"return_states": jnp.array(True)},
            TypeError,
            *("`return_states`", "True or False", "known before tracing", "bool"),
        ),
        case("return_states is None", {"return_states": None}, TypeError, "`return_states`"),
    ],
)
def test_options_of_unroll(call, changes, error, said):
    assert_error(call, changes, error, said)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        case("dhs is a state", {"dhs": STATE}, TypeError, "`dhs`", "float32[5, 2, 4]", "LSTMState"),
        case(
            "dhs of another shape",
            {"dhs": f32(5, 2, 3)},
            ValueError,
            *("`dhs`", "(5, 2, 4)", "got shape (5, 2, 3)"),
        ),
        case(
            "dhs of another dtype",
            {"dhs": DHS.astype(jnp.float16)},
            TypeError,
            *("`dhs`", "float32", "got float16"),
        ),
        case(
            "dfinal as one array",
            {"dfinal": f32(2, 4)},
            TypeError,
            *("`dfinal`", "LSTMState(h=float32[2, 4], c=float32[2, 4])", "got float32[2, 4]"),
        ),
        case(
            "dfinal of another shape",
            {"dfinal": LSTMState(f32(2, 4), f32(4))},
            ValueError,
            *("`dfinal.c`", "(2, 4)", "got shape (4,)"),
        ),
    ],
)
def test_cotangents_of_backpropagate(changes, error, said):
    assert_error(backpropagate, changes, error, said)


@pytest.mark.parametrize("call", [unroll, reference, backpropagate])
@pytest.mark.parametrize("outcome", ["raises", "accepts"])
def test_the_cell_decides_about_consts(call, outcome):
    """A cell of one's own that takes consts gets them checked; no cell here does."""
    taking = jaxrnn.LSTM._replace(name="TAKING", consts_rows=lambda consts: False)
    if outcome == "raises":
        consts = {"scale": jnp.ones(3, jnp.float64)}
        said = ("`consts['scale']`", "the dtype of `params`, float32", "got float64")
        assert_error(call, {"cell": taking, "consts": consts}, TypeError, said)
        said = ("`consts['scale']`", "array", "got str 'x'")
        assert_error(call, {"cell": taking, "consts": {"scale": "x"}}, TypeError, said)
        of_rows = taking._replace(consts_rows=lambda consts: True)
        said = ("`consts['scale']`", "the batch axes of `xs`, (2,)", "got shape (3,)")
        assert_error(call, {"cell": of_rows, "consts": {"scale": f32(3)}}, ValueError, said)
    else:
        with pytest.raises(ValueError, match=r"`consts` must be None: LSTM takes none"):
            call(consts={})


@pytest.mark.parametrize(
    ("call", "top"),
    [
        (unroll, T),
        (reference, T),
        (backpropagate, T),
        (lambda lengths: jaxrnn.valid_steps(lengths, T), T),
        (lambda lengths: jaxrnn.last_valid(DHS, lengths), T),
    ],
    ids=["unroll", "unroll_reference", "backpropagate", "valid_steps", "last_valid"],
)
@pytest.mark.parametrize(
    ("lengths", "came"),
    [
        (jnp.array([6, 0]), "from 0 to 6"),
        (jnp.array([5, -1]), "from -1 to 5"),
        (jnp.array([6, 0], jnp.uint8), "from 0 to 6"),
        (jnp.array([-128, 0], jnp.int8), "from -128 to 0"),
        (np.array([6, 0]), "from 0 to 6"),
        (np.array([2**32 + 1, 0]), f"from 0 to {2**32 + 1}"),
        (np.array([2**63 + 1, 0], np.uint64), f"from 0 to {2**63 + 1}"),
        ([6, 0], "from 0 to 6"),
        ((5, -1), "from -1 to 5"),
    ],
    ids=str,
)
def test_concrete_lengths_out_of_range(call, top, lengths, came):
    """Also as a constant that a jitted function closes over: its values are known there."""
    with pytest.raises(ValueError, match=rf"`lengths` must lie in 0\.\.T={top}; .* {came}"):
        call(lengths=lengths)
    with pytest.raises(ValueError, match=rf"`lengths` must lie in 0\.\.T={top}; .* {came}"):
        jax.jit(lambda: call(lengths=lengths))()


def test_lengths_beyond_any_integer_dtype():
    with pytest.raises((TypeError, ValueError), match="`lengths`"):
        unroll(lengths=[2**70, 1])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32, jnp.int64])
@pytest.mark.parametrize("call", [unroll, reference], ids=["unroll", "unroll_reference"])
def test_traced_lengths_are_clipped(call, dtype):
    info = jnp.iinfo(dtype)
    wild = jnp.array([info.max, info.min], dtype)
    clipped = jax.jit(lambda lengths: call(lengths=lengths))(wild)
    assert_same(clipped, call(lengths=jnp.array([T, 0])), 1e-6)


def test_traced_lengths_below_a_length_that_their_dtype_cannot_hold():
    lengths = jnp.array([255, 3], jnp.uint8)
    valid = jax.jit(lambda lengths: jaxrnn.valid_steps(lengths, 300))(lengths)
    np.testing.assert_array_equal(jnp.sum(valid, axis=0), [255, 3])


@pytest.mark.parametrize("lengths", [[5, 2], (5, 2), np.array([5, 2]), np.array([5, 2], np.uint8)])
def test_lengths_need_not_be_jax_arrays(lengths):
    expected = unroll(lengths=jnp.array([5, 2]))
    assert_same(unroll(lengths=lengths), expected, 0)
    assert_same(jaxrnn.valid_steps(lengths, T), jaxrnn.valid_steps(jnp.array([5, 2]), T), 0)


def test_a_list_of_traced_values_is_traced():
    """A list that holds traced values is no constant: nothing of it may be read."""
    _, expected = unroll(lengths=[5, 2])
    _, hs = jax.jit(lambda n: unroll(lengths=[5, n]))(2)
    assert_same(hs, expected, 1e-6)
    logits = jnp.ones((2, 3))
    loss = jax.jit(lambda n, keep: jaxrnn.softmax_cross_entropy(logits, [0, n], mask=[True, keep]))
    assert_same(loss(1, True), jaxrnn.softmax_cross_entropy(logits, [0, 1]))


def test_traced_options_are_refused():
    with pytest.raises(TypeError, match="`T`") as caught:
        jax.jit(lambda T: jaxrnn.valid_steps(jnp.array([1]), T))(3)
    assert type(caught.value) is TypeError
    for option in ("reverse", "return_states"):
        for call in (unroll, reference):
            with pytest.raises(TypeError, match=f"`{option}` must be True or False, known before"):
                jax.jit(lambda on, call=call, option=option: call(**{option: on}))(True)


def cross_entropy(logits=f32(5, 2, 3), labels=jnp.zeros((5, 2), jnp.int32), **options):  # noqa: B008
    return jaxrnn.softmax_cross_entropy(logits, labels, **options)


def squared_error(predictions=f32(5, 2, 3), targets=f32(5, 2, 3), **options):  # noqa: B008
    return jaxrnn.squared_error(predictions, targets, **options)


def affine(params=AffineParams(f32(4, 3), f32(3)), hs=DHS):  # noqa: B008
    return jaxrnn.affine(params, hs)


def last_valid(hs=DHS, lengths=jnp.array([5, 2])):  # noqa: B008
    return jaxrnn.last_valid(hs, lengths)


OPTIONS_OF_LOSSES = [
    case(
        "integer mask",
        {"mask": jnp.ones((5, 2), jnp.int32)},
        TypeError,
        *("`mask`", "booleans", "got dtype int32"),
    ),
    case(
        "mask of another shape",
        {"mask": jnp.ones((5,), jnp.bool_)},
        ValueError,
        *("`mask`", "one entry per position, shape (5, 2)", "got shape (5,)"),
    ),
    case(
        "mask over the last axis too",
        {"mask": jnp.ones((5, 2, 3), jnp.bool_)},
        ValueError,
        *("`mask`", "shape (5, 2)", "got shape (5, 2, 3)"),
    ),
    case("mask is a string", {"mask": "all"}, TypeError, "`mask`", "array", "got str 'all'"),
    case(
        "booleans as weights",
        {"weights": jnp.ones((5, 2), jnp.bool_)},
        TypeError,
        *("`weights`", "floating dtype", "got bool", "as `mask`"),
    ),
    case(
        "weights of another shape",
        {"weights": f32(2)},
        ValueError,
        *("`weights`", "one entry per position, shape (5, 2)", "got shape (2,)"),
    ),
    case(
        "another reduction",
        {"reduction": "average"},
        ValueError,
        *("`reduction`", "'mean', 'none', 'sum'", "got 'average'"),
    ),
    case(
        "reduction is no string",
        {"reduction": None},
        ValueError,
        *("`reduction`", "'mean', 'none', 'sum'", "got None"),
    ),
]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        *OPTIONS_OF_LOSSES,
        case(
            "integer logits",
            {"logits": jnp.ones((5, 2, 3), jnp.int32)},
            TypeError,
            *("`logits`", "floating dtype", "got int32"),
        ),
        case("logits without classes", {"logits": f32()}, ValueError, "`logits`", "[..., O]", "()"),
        case("logits are None", {"logits": None}, TypeError, "`logits`", "array", "NoneType"),
        case(
            "float labels",
            {"labels": f32(5, 2)},
            TypeError,
            *("`labels`", "integers", "got dtype float32"),
        ),
        case(
            "one-hot labels",
            {"labels": jnp.zeros((5, 2, 3), jnp.int32)},
            ValueError,
            *("`labels`", "without its last axis, (5, 2)", "got shape (5, 2, 3)"),
        ),
        case("labels is a string", {"labels": "one"}, TypeError, "`labels`", "array", "str 'one'"),
        case("ragged labels", {"labels": [[0], [1, 2]]}, TypeError, "`labels`", "array", "list"),
    ],
)
def test_arguments_of_cross_entropy(changes, error, said):
    assert_error(cross_entropy, changes, error, said)


@pytest.mark.parametrize("make", [jnp.array, np.array, list], ids=["jax", "numpy", "list"])
@pytest.mark.parametrize(("label", "came"), [(3, "from 0 to 3"), (-1, "from -1 to 2")])
def test_concrete_labels_out_of_range(make, label, came):
    labels = make([0, 2, label])
    call = functools.partial(jaxrnn.softmax_cross_entropy, f32(3, 3), labels)
    for run in (call, lambda: jax.jit(lambda: call())()):
        with pytest.raises(ValueError, match=rf"`labels` must lie in 0\.\.2, .*; got .* {came}"):
            run()
    # what the mask leaves out is not read
    call(mask=jnp.array([True, True, False]))


@pytest.mark.parametrize("make", [jnp.array, np.array, list], ids=["jax", "numpy", "list"])
@pytest.mark.parametrize(
    "loss", [jaxrnn.softmax_cross_entropy, jaxrnn.squared_error], ids=lambda loss: loss.__name__
)
def test_concrete_negative_weights(loss, make):
    labels = [0, 2, 1] if loss is jaxrnn.softmax_cross_entropy else f32(3, 3)
    call = functools.partial(loss, f32(3, 3), labels, weights=make([0.0, 2.0, -0.5]))
    for run in (call, lambda: jax.jit(lambda: call())()):
        with pytest.raises(ValueError, match=r"`weights` must be at least 0; got .* -0\.5"):
            run()
    # what the mask leaves out is not read
    call(mask=jnp.array([True, True, False]))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        *OPTIONS_OF_LOSSES,
        case(
            "integer predictions",
            {"predictions": jnp.ones((5, 2, 3), jnp.int32)},
            TypeError,
            *("`predictions`", "floating dtype", "got int32"),
        ),
        case(
            "scalar predictions",
            {"predictions": f32(), "targets": f32()},
            ValueError,
            *("`predictions`", "[..., O]", "got shape ()"),
        ),
        case(
            "targets of another shape",
            {"targets": f32(5, 2, 1)},
            ValueError,
            *("`targets`", "the shape of `predictions`, (5, 2, 3)", "got shape (5, 2, 1)"),
        ),
        case(
            "targets of another dtype",
            {"targets": jnp.zeros((5, 2, 3))},
            TypeError,
            *("`targets`", "the dtype of `predictions`, float32", "got float64"),
        ),
        case(
            "integer targets",
            {"targets": jnp.ones((5, 2, 3), jnp.int32)},
            TypeError,
            *("`targets`", "floating dtype", "got int32"),
        ),
    ],
)
def test_arguments_of_squared_error(changes, error, said):
    assert_error(squared_error, changes, error, said)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        case(
            "params as one array",
            {"params": f32(4, 3)},
            TypeError,
            *("`params`", "AffineParams", "got float32[4, 3]"),
        ),
        case(
            "params of a cell",
            {"params": PARAMS},
            TypeError,
            *("`params`", "AffineParams", "got LSTMParams"),
        ),
        case(
            "w and b of two sizes",
            {"params": AffineParams(f32(4, 3), f32(2))},
            ValueError,
            *("`params`", "w [H, O] and b [O]", "AffineParams(w=float32[4, 3], b=float32[2])"),
        ),
        case(
            "w is a vector",
            {"params": AffineParams(f32(4), f32())},
            ValueError,
            *("`params`", "w [H, O]", "w=float32[4]"),
        ),
        case(
            "w is no array",
            {"params": AffineParams("w", f32(3))},
            TypeError,
            *("`params.w`", "array", "got str 'w'"),
        ),
        case(
            "hs of another size",
            {"hs": f32(5, 2, 7)},
            ValueError,
            *("`hs`", "[..., H=4]", "got shape (5, 2, 7)"),
        ),
        case("a state in the place of hs", {"hs": STATE}, TypeError, "`hs`", "array", "LSTMState"),
        case(
            "hs of another dtype",
            {"hs": jnp.ones((5, 2, 4))},
            TypeError,
            *("`params` and `hs`", "one dtype", "w float32, b float32, hs float64"),
        ),
    ],
)
def test_arguments_of_affine(changes, error, said):
    assert_error(affine, changes, error, said)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        case("hs of one step", {"hs": f32(4)}, ValueError, "`hs`", "[T, ..., H]", "got shape (4,)"),
        case("hs is None", {"hs": None}, TypeError, "`hs`", "array", "NoneType"),
        case(
            "lengths of another shape",
            {"lengths": jnp.array([1, 2, 3])},
            ValueError,
            *("`lengths`", "the batch shape of `hs`, (2,)", "got shape (3,)"),
        ),
        case(
            "float lengths",
            {"lengths": jnp.array([1.0, 2.0])},
            TypeError,
            *("`lengths`", "integers", "got dtype float64"),
        ),
    ],
)
def test_arguments_of_last_valid(changes, error, said):
    assert_error(last_valid, changes, error, said)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        case("negative T", {"T": -1}, ValueError, "`T`", "got -1"),
        case("float T", {"T": 2.5}, TypeError, "`T`", "got 2.5"),
        case("T is None", {"T": None}, TypeError, "`T`", "None"),
        case(
            "float lengths",
            {"lengths": jnp.array([1.0])},
            TypeError,
            *("`lengths`", "integers", "got dtype float64"),
        ),
    ],
)
def test_arguments_of_valid_steps(changes, error, said):
    def valid_steps(lengths=jnp.zeros(2, jnp.int32), T=3):  # noqa: B008
        return jaxrnn.valid_steps(lengths, T)

    assert_error(valid_steps, changes, error, said)


@pytest.mark.parametrize("name", ["ELMAN", "LSTM", "GRU", "affine"])
@pytest.mark.parametrize(
    ("size", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("3", TypeError)],
)
def test_sizes_are_positive_ints(name, size, error):
    init = jaxrnn.init_affine if name == "affine" else getattr(jaxrnn, name).init
    names = ("hidden_size", "output_size") if name == "affine" else ("input_size", "hidden_size")
    for argument, sizes in zip(names, ((size, 3), (3, size)), strict=True):
        with pytest.raises(
            error, match=f"`{argument}` must be an int of at least 1.*; got {size!r}"
        ):
            init(jax.random.key(0), *sizes)


def test_sizes_of_numpy_are_ints(cell):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), np.int64(3), np.int32(4)))
    assert params.w_hh.shape[0] == 4


OPTIMIZER = optax.sgd(0.1)


@pytest.mark.parametrize("optimizer", ["adam", None, optax.sgd, 0.1])
def test_optimizer_must_be_optax(optimizer):
    came = type(optimizer).__name__
    with pytest.raises(TypeError, match=f"`optimizer` must be an optax.*; got {came}"):
        jaxrnn.make_train_step(lambda params, batch, key: 0.0, optimizer)


@pytest.mark.parametrize(
    ("has_aux", "result", "came"),
    [
        (False, lambda w: w, r"scalar loss; got shape \(2,\)"),
        (False, lambda w: (w.sum(), {}), "loss"),
        (False, lambda w: None, "loss"),
        (True, lambda w: (w, {}), r"scalar loss; got shape \(2,\)"),
        (True, lambda w: w.sum(), "aux"),
        (True, lambda w: (w.sum(), {}, {}), "aux"),
        (True, lambda w: (w.sum(), [w]), "`aux` as a dict .*; got "),
        (True, lambda w: (w.sum(), {"loss": w}), "`aux` as a dict without the keys 'loss'"),
        (True, lambda w: (w.sum(), {"gradient_norm": w}), "without the keys .*'gradient_norm'"),
    ],
    ids=[
        *("vector", "tuple", "nothing", "vector and aux", "no aux", "three", "list"),
        *("loss in aux", "gradient_norm in aux"),
    ],
)
def test_what_loss_fn_returns(has_aux, result, came):
    def loss_fn(params, batch, key):
        return result(params["w"])

    step = jaxrnn.make_train_step(loss_fn, OPTIMIZER, has_aux=has_aux)
    state = jaxrnn.init_train_state({"w": jnp.ones(2)}, OPTIMIZER, jax.random.key(0))
    with pytest.raises(TypeError, match=f"`loss_fn` must return .*{came}") as caught:
        step(state, None)
    assert type(caught.value) is TypeError


@pytest.mark.parametrize("name", ["ELMAN", "LSTM", "GRU", "affine"])
@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool", "float99", None.__class__])
def test_params_are_floating(name, dtype):
    init = jaxrnn.init_affine if name == "affine" else getattr(jaxrnn, name).init
    with pytest.raises(TypeError, match="`dtype` must be a floating dtype; got "):
        init(jax.random.key(0), 3, 4, dtype=dtype)


def test_the_state_of_a_training_step_is_a_train_state():
    step = jaxrnn.make_train_step(lambda params, batch, key: params["w"].sum(), OPTIMIZER)
    with pytest.raises(TypeError, match=r"`state` must be a jaxrnn\.TrainState; got dict"):
        step({"w": jnp.ones(2)}, None)


@pytest.mark.parametrize("key", [0, None, "key", jnp.ones(3)], ids=repr)
def test_key_of_a_train_state_is_a_key(key):
    with pytest.raises(TypeError, match=r"`key` must be one jax\.random\.key; got "):
        jaxrnn.init_train_state({"w": jnp.ones(2)}, OPTIMIZER, key)


def test_loss_fn_is_a_function():
    with pytest.raises(TypeError, match="`loss_fn` must be a function; got NoneType"):
        jaxrnn.make_train_step(None, OPTIMIZER)


@pytest.mark.parametrize(
    ("loss_fn", "came"),
    [
        (lambda p, b: 0.0, r"\(p, b\)"),
        (lambda p, b, k, more: 0.0, r"\(p, b, k, more\)"),
        (lambda p, b, *, key: 0.0, r"\(p, b, \*, key\)"),
        (jax.jit(lambda p: 0.0), r"\(p\)"),
    ],
    ids=["two", "four", "key by name", "jitted"],
)
def test_loss_fn_takes_params_batch_and_key(loss_fn, came):
    with pytest.raises(TypeError, match=rf"`loss_fn` must take \(params, batch, key\).*{came}"):
        jaxrnn.make_train_step(loss_fn, OPTIMIZER)


@pytest.mark.parametrize("options", ["fast", 1, {1: True}, {"xla_gpu_autotune_level": None}])
def test_compiler_options_are_a_dict_by_name(options):
    with pytest.raises(ValueError, match="`compiler_options` must be None, 'auto' or a dict"):
        jaxrnn.make_train_step(lambda *_: 0.0, OPTIMIZER, compiler_options=options)


def test_a_platform_is_a_string():
    with pytest.raises(TypeError, match="`platform` must be None or a string; got"):
        jaxrnn.compiler_options(jax.devices()[0])


def test_donate_is_a_bool():
    with pytest.raises(TypeError, match=r"`donate` must be True or False.*; got 'state'"):
        jaxrnn.make_train_step(lambda *_: 0.0, OPTIMIZER, donate="state")


def test_blocks_that_do_not_fill_the_weight_are_refused():
    draw = jaxrnn.initializers.per_gate(jaxrnn.initializers.orthogonal, 4)
    with pytest.raises(ValueError, match=r"must fill 4 blocks .*\(3, 13\); it made \(3, 12\)"):
        draw(jax.random.key(0), (3, 13), jnp.float32)


FORGIVABLE = {
    "weights as PyTorch stores them": (
        dict(params=PARAMS._replace(w_ih=PARAMS.w_ih.T, w_hh=PARAMS.w_hh.T)),
        ValueError,
        r"`params.w_ih` must be \[I, 4H\]; .*transposed they would fit",
    ),
    "params restored as a dict": (
        dict(params=PARAMS._asdict()),
        TypeError,
        r"got dict\(w_ih=.*make it LSTMParams\(\*\*params\)",
    ),
    "a state restored as a dict": (
        dict(initial_state=STATE._asdict()),
        TypeError,
        r"make it LSTMState\(\*\*initial_state\)",
    ),
    "a state as a tuple": (
        dict(initial_state=tuple(STATE)),
        TypeError,
        r"make it LSTMState\(\*initial_state\)",
    ),
    "two dtypes in the params": (
        dict(params=PARAMS._replace(b=PARAMS.b.astype(jnp.bfloat16))),
        TypeError,
        "`params` must have one dtype; got w_ih float32, w_hh float32, b bfloat16",
    ),
    "a list of recordings": (
        dict(xs=[XS[:, 0], XS[:, 1]]),
        TypeError,
        r"`xs` must be one array .*got list\(.*pad recordings .* `lengths`",
    ),
    "batch first": (
        dict(xs=jnp.swapaxes(XS, 0, 1), initial_state=None, lengths=jnp.array([5, 3])),
        ValueError,
        r"is `xs` batch-major\? time comes first",
    ),
}


@pytest.mark.parametrize(("changes", "error", "said"), FORGIVABLE.values(), ids=FORGIVABLE)
def test_a_mistake_that_many_make_is_told_with_its_fix(changes, error, said):
    for call in (unroll, reference):
        with pytest.raises(error, match=said):
            call(**changes)


def test_a_cell_that_is_called_like_a_layer_says_what_to_do():
    with pytest.raises(TypeError, match=r"LSTM\.init\(key, input_size, hidden_size\) makes params"):
        jaxrnn.LSTM(16, 24)


def test_what_holds_an_array_is_told_from_the_array():
    """A wrapper of another framework, which has a shape and a dtype."""

    class Param:
        shape, dtype = PARAMS.b.shape, PARAMS.b.dtype

    with pytest.raises(TypeError, match=r"`params.b` must be an array; got Param of float32\[16\]"):
        unroll(params=PARAMS._replace(b=Param()))


def test_64_bits_that_are_off_are_named_and_no_later_call_suffers():
    wide = make_problem(jaxrnn.LSTM, T, (B,), I, H)
    with jax.enable_x64(False), pytest.raises(TypeError, match="jax_enable_x64"):
        unroll(params=PARAMS, xs=wide.xs, initial_state=None)
    with jax.enable_x64(False):
        jax.block_until_ready(unroll())
    final_state, _ = unroll(params=wide.params, xs=wide.xs, initial_state=wide.initial_state)
    assert final_state.h.dtype == jnp.float64
