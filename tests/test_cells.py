"""The cells as functions: `step` is the documented equations, and fits into `lax.scan` as it is."""

import gc
import pydoc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem, random_tree

import jaxrnn
from jaxrnn.blocks import sigmoid_or_tanh


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def block(w, gate, H):
    """The gate's own columns of a weight that holds all gates side by side."""
    return w[..., gate * H : (gate + 1) * H]


def elman_step(params, state, x):
    w_ih, w_hh, b = params
    (h,) = state
    return (np.tanh(x @ w_ih + h @ w_hh + b),)


def lstm_step(params, state, x):
    """Gate by gate, in PyTorch's order: input, forget, candidate, output."""
    w_ih, w_hh, b = params
    h, c = state
    H = h.shape[-1]

    def preactivation(gate):
        return x @ block(w_ih, gate, H) + h @ block(w_hh, gate, H) + block(b, gate, H)

    i, f = sigmoid(preactivation(0)), sigmoid(preactivation(1))
    g, o = np.tanh(preactivation(2)), sigmoid(preactivation(3))
    c = f * c + i * g
    return o * np.tanh(c), c


def gru_step(params, state, x):
    """Gate by gate, in PyTorch's order: reset, update, candidate; the reset after the product."""
    w_ih, w_hh, b, b_hn = params
    (h,) = state
    H = h.shape[-1]
    a_r, a_z, a_n = (x @ block(w_ih, gate, H) + block(b, gate, H) for gate in range(3))
    r = sigmoid(a_r + h @ block(w_hh, 0, H))
    z = sigmoid(a_z + h @ block(w_hh, 1, H))
    n = np.tanh(a_n + r * (h @ block(w_hh, 2, H) + b_hn))
    return ((1 - z) * n + z * h,)


NUMPY_STEPS = {"ELMAN": elman_step, "LSTM": lstm_step, "GRU": gru_step}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_step_is_the_documented_equations(cell, batch):
    problem = make_problem(cell, T=1, batch=batch, I=3, H=4)
    params, state, x = problem.params, problem.initial_state, problem.xs[0]
    expected = NUMPY_STEPS[cell.name](*jax.tree.map(np.asarray, (params, state, x)))
    after, h = jax.jit(cell.step)(params, state, x)
    assert type(after) is type(state)
    assert_same(after, type(state)(*map(jnp.asarray, expected)))
    np.testing.assert_array_equal(h, after.h)


SHUT, OPEN = -20.0, 20.0
# per gate: the other pre-activations, and the state before, of which one step makes the gate itself
# (r as tanh(r))
ISOLATED = {
    "ELMAN": {"h": ((None,), (0,))},
    "LSTM": {
        "i": ((None, 0, OPEN, OPEN), (0, 0)),
        "f": ((0, None, 0, OPEN), (0, 1)),
        "g": ((OPEN, 0, None, OPEN), (0, 0)),
        "o": ((0, OPEN, 0, None), (0, 100)),
    },
    "GRU": {
        "r": ((None, SHUT, 0), (0,)),
        "z": ((0, None, 0), (1,)),
        "n": ((0, SHUT, None), (1,)),
    },
}
WAYS = ("step", "gates", "states", "carries", "reference")


def isolated_gates(cell, dtype):
    """``(params, state, x, gate)``: a row per gate and pre-activation, ``gate`` its column."""
    near_zero = np.logspace(-3, 0, 25)
    points = np.concatenate([np.linspace(SHUT, OPEN, 161), near_zero, -near_zero])
    gates = ISOLATED[cell.name].values()
    x = np.array(
        [[a if one is None else one for one in others] for others, _ in gates for a in points]
    )
    state = np.repeat([before for _, before in gates], len(points), axis=0)
    gate = np.repeat(np.arange(len(gates)), len(points))
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), len(gates), 1, dtype=dtype))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), params)
    params = params._replace(w_ih=jnp.eye(len(gates), dtype=dtype))
    if cell.name == "GRU":
        # q = 1 - h: 1 from a zero state, and 0 where the candidate must not read r
        params = params._replace(w_hh=params.w_hh.at[0, 2].set(-1), b_hn=jnp.ones(1, dtype))
    like = jax.eval_shape(lambda: cell.initial_state(params, gate.shape))
    state = type(like)(*(jnp.asarray(leaf, dtype)[:, None] for leaf in state.T))
    return params, state, jnp.asarray(x, dtype), gate


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_gates_are_right_relative_to_their_size(cell, dtype):
    """Values and slopes of every gate from shut to open, against the equations in float64.

    A value is the product of at most four that have two or three roundings each. A slope is taken
    from the rounded value: s (1 - s) is as exact as s where the gate is shut, and off by a rounding
    of 1 where it is open, as 1 - g^2 is everywhere.
    """
    params, state, x, gate = isolated_gates(cell, dtype)

    def step(state, x):
        return cell.step(params, state, x)[0]

    def unrolled(unroll, **options):
        return lambda state, x: unroll(cell, params, x[None], state, **options)[0]

    functions = (
        step,
        *(unrolled(jaxrnn.unroll, residuals=kept) for kept in WAYS[1:4]),
        unrolled(jaxrnn.unroll_reference),
    )

    @jax.jit
    def run(state, x):
        def both(function):
            after, pull = jax.vjp(function, state, x)
            return after, pull(jax.tree.map(jnp.ones_like, after))[1]

        return [both(function) for function in functions]

    wide = [np.asarray(leaf, np.float64) for leaf in (*params, *state, x)]
    weights, before, at = wide[: len(params)], wide[len(params) : -1], wide[-1]
    exact = NUMPY_STEPS[cell.name](weights, before, at)
    rows = np.arange(len(gate))
    # the derivative by one's own pre-activation, by a complex step
    moved = at.astype(complex)
    moved[rows, gate] += 1e-200j
    slope = sum(leaf.imag[:, 0] / 1e-200 for leaf in NUMPY_STEPS[cell.name](weights, before, moved))
    own = at[rows, gate]
    is_tanh = np.isin(np.array(list(ISOLATED[cell.name]))[gate], ["h", "g", "n"])
    size = np.where(is_tanh, 1, sigmoid(own))

    def assert_error(name, value, right, size, roundings):
        # subnormal numbers have fewer digits, or are zero
        normal = size >= float(jnp.finfo(dtype).tiny)
        error = np.abs(np.asarray(value, np.float64) - right)[normal] / size[normal]
        worst = np.argmax(error)
        at_most = roundings * float(jnp.finfo(dtype).eps)
        assert error[worst] <= at_most, f"{name} is {error[worst]:.1e} off at {own[normal][worst]}"

    for way, (after, dx) in zip(WAYS, run(state, x), strict=True):
        for name, value, right in zip(after._fields, after, exact, strict=True):
            assert_error(f"{way}: {name}", value[:, 0], right[:, 0], np.abs(right[:, 0]), 4)
        assert_error(f"{way}: slope", dx[rows, gate], slope, size, 6)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("residuals", ["gates", "states", "carries"])
def test_what_an_update_gate_next_to_1_lets_in_is_right_relative_to_its_size(dtype, residuals):
    """(1 - z) n of a state of zeros, and its slope by a_z: 1 - z of a rounded z would be lost."""
    eps, a_z = float(jnp.finfo(dtype).eps), np.arange(-20, 20.5, 0.5)
    one, zero = jnp.ones((), dtype), jnp.zeros((1, 3), dtype)
    params = jaxrnn.GRUParams(
        w_ih=zero.at[0, 1].set(one), w_hh=zero, b=zero[0].at[2].set(one), b_hn=zero[0, :1]
    )

    def run(unroll, x):
        outputs, pull = jax.vjp(lambda x: unroll(jaxrnn.GRU, params, x, residuals=residuals)[1], x)
        return outputs, pull(jnp.ones_like(outputs))[0]

    x = jnp.asarray(a_z, dtype)[None, :, None]
    n = float(jnp.tanh(one))
    lets_in = n * sigmoid(-a_z)
    normal = lets_in * sigmoid(a_z) > float(jnp.finfo(dtype).tiny)
    for unroll in (jaxrnn.unroll, jaxrnn.unroll_reference):
        h, slope = (np.asarray(a, np.float64)[0, normal, 0] for a in run(unroll, x))
        np.testing.assert_allclose(h, lets_in[normal], rtol=4 * eps)
        np.testing.assert_allclose(slope, -(lets_in * sigmoid(a_z))[normal], rtol=6 * eps)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_gates_of_infinity_are_their_limits_and_of_nan_are_nan(dtype):
    def both(a):
        return sigmoid_or_tanh(a, "sigmoid tanh")

    a = jnp.asarray([np.inf, -np.inf, 200, -1000, np.nan] * 2, dtype)
    value, slope = jax.jit(lambda a: jax.jvp(both, (a,), (jnp.ones_like(a),)))(a)
    value, slope = np.asarray(value, np.float64), np.asarray(slope, np.float64)
    np.testing.assert_array_equal(value, [1, 0, 1, 0, np.nan, 1, -1, 1, -1, np.nan])
    np.testing.assert_array_equal(slope, [0, 0, 0, 0, np.nan, 0, 0, 0, 0, np.nan])


def test_step_is_a_body_of_scan(cell):
    problem = make_problem(cell, T=5, batch=(3,))

    @jax.jit
    def scan(params, state, xs):
        return jax.lax.scan(lambda carry, x: cell.step(params, carry, x), state, xs)

    final_state, hs = scan(problem.params, problem.initial_state, problem.xs)
    assert_same((final_state, hs), problem.outputs())


@pytest.mark.parametrize("T", [0, 1, 2, 33])
def test_unroll_is_a_python_loop(cell, T):
    """33 steps are two chunks of the engine and a rest of one step."""
    problem = make_problem(cell, T=T, batch=(2,))
    step = NUMPY_STEPS[cell.name]
    params, state, xs = jax.tree.map(
        np.asarray, (problem.params, problem.initial_state, problem.xs)
    )
    states = []
    for x in xs:
        state = step(params, state, x)
        states.append(state)
    final_state, hs, unrolled_states = problem.outputs(return_states=True)
    assert_same(tuple(final_state), tuple(map(jnp.asarray, state)))
    assert hs.shape == (T, 2, 4)
    for t in range(T):
        assert_same(tuple(leaf[t] for leaf in unrolled_states), tuple(map(jnp.asarray, states[t])))
        np.testing.assert_array_equal(hs[t], unrolled_states.h[t])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_initial_state_is_zero(cell, batch):
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3, 4, dtype=jnp.float16))
    params = random_tree(like)
    state = cell.initial_state(params, batch)
    assert type(state).__name__ == {"ELMAN": "Elman"}.get(cell.name, cell.name) + "State"
    for leaf in state:
        assert leaf.dtype == jnp.float16
        np.testing.assert_array_equal(leaf, np.zeros((*batch, 4)))
    if not batch:
        assert_same(cell.initial_state(params), state, 0)


def test_cells_are_hashable_constants(cell):
    others = {jaxrnn.ELMAN, jaxrnn.LSTM, jaxrnn.GRU} - {cell}
    assert len(others) == 2
    assert cell == getattr(jaxrnn, cell.name)
    assert hash(cell) == hash(cell._replace(name=cell.name))
    assert all(cell != other for other in others)
    assert cell.consts_rows is None


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (jaxrnn.ElmanParams, ("w_ih", "w_hh", "b")),
        (jaxrnn.LSTMParams, ("w_ih", "w_hh", "b")),
        (jaxrnn.GRUParams, ("w_ih", "w_hh", "b", "b_hn")),
        (jaxrnn.ElmanState, ("h",)),
        (jaxrnn.LSTMState, ("h", "c")),
        (jaxrnn.GRUState, ("h",)),
    ],
)
def test_fields_keep_their_names_and_order(record, fields):
    assert record._fields == fields


@pytest.mark.parametrize("batch_shape", [2, None, "2"])
def test_batch_shape_must_be_a_tuple(cell, batch_shape):
    params = cell.init(jax.random.key(0), 3, 4)
    with pytest.raises(TypeError, match=f"`batch_shape` must be a tuple .*; got {batch_shape!r}"):
        cell.initial_state(params, batch_shape)


OTHER = {"ELMAN": jaxrnn.GRU, "LSTM": jaxrnn.ELMAN, "GRU": jaxrnn.LSTM}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda c, o, a: {**a, "params": o.init(jax.random.key(0), 3, 4)}, TypeError, "`params`"),
        (
            lambda c, o, a: {**a, "state": o.initial_state(o.init(jax.random.key(0), 3, 4), (2,))},
            TypeError,
            "`state`",
        ),
        (lambda c, o, a: {**a, "state": c.initial_state(a["params"])}, ValueError, "`state.h`"),
        (
            lambda c, o, a: {**a, "x": jnp.ones((2, 5), jnp.float32)},
            ValueError,
            "`x` must be .*I=3",
        ),
        (lambda c, o, a: {**a, "x": jnp.ones((2, 3), jnp.int32)}, TypeError, "`x` .*; got int32"),
    ],
    ids=["params of another", "state of another", "state without batch", "width of x", "integer x"],
)
def test_step_refuses_what_does_not_fit(cell, change, error, said):
    params = cell.init(jax.random.key(0), 3, 4)
    arguments = {
        "params": params,
        "state": cell.initial_state(params, (2,)),
        "x": jnp.ones((2, 3), jnp.float32),
    }
    cell.step(**arguments)
    with pytest.raises(error, match=said):
        cell.step(**change(cell, OTHER[cell.name], arguments))


def wrong(piece, change):
    """LSTM with a piece whose returned value is changed."""
    right = getattr(jaxrnn.LSTM, piece)
    return jaxrnn.LSTM._replace(name="MINE", **{piece: lambda *args: change(right(*args))})


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (wrong("advance", lambda out: out[0]), "MINE.advance must return `state`"),
        (wrong("advance", lambda out: out[0].h), "MINE.advance must return 2 values"),
        (wrong("advance", lambda out: (out[0].h, out[1])), "MINE.advance must return `state`"),
        (wrong("pull", lambda out: out[1]), "MINE.pull must return 2 values"),
        (
            wrong("pull", lambda out: (out[0]._replace(h=out[0].h[:1]), out[1])),
            "MINE.pull must return `dbefore`",
        ),
        (wrong("gradients", lambda out: out[:2]), "MINE.gradients must return 3 values"),
        (
            wrong("gradients", lambda out: (out[0]._replace(b=out[0].b.sum()), *out[1:])),
            r"MINE.gradients must return `dparams` as .*b=float64\[16\].*; got .*b=float64\[\]",
        ),
        (
            wrong("gradients", lambda out: (out[0], out[1].sum(1, keepdims=True), out[2])),
            "MINE.gradients must return `dxs`",
        ),
        (
            jaxrnn.LSTM._replace(name="MINE", initial_state=lambda p, b: jnp.zeros(b)),
            r"`MINE.initial_state\(params, batch_shape\)` must be LSTMState",
        ),
        (
            jaxrnn.cell_from_step(
                lambda params, state, x: (state, state),
                initial_state=lambda params, batch=(): jnp.zeros((*batch, 4)),
                name="MINE",
            )._replace(output=None),
            "the state of MINE must be a NamedTuple with a field h",
        ),
        (jaxrnn.LSTM._replace(step=[]), "`cell` must be hashable"),
    ],
)
def test_a_cell_of_ones_own_that_breaks_the_contract_is_told_where(mine, said):
    """By name, before a sum or a mask could broadcast the wrong shape into a wrong gradient."""
    problem = make_problem(jaxrnn.LSTM, lengths=True)._replace(cell=mine, initial_state=None)
    with pytest.raises(TypeError, match=said):
        jax.grad(lambda xs: problem._replace(xs=xs).outputs()[1].sum())(problem.xs)


def test_help_and_repr_show_the_cell_and_not_its_functions(cell):
    assert repr(cell) == f"<jaxrnn.Cell {cell.name}>"
    shown = pydoc.render_doc(cell, renderer=pydoc.plaintext)
    assert "w_ih [I," in shown
    assert "h_t = " in shown
    assert "0x" not in shown
    assert "recurrent cell as a hashable record" in jaxrnn.Cell.__doc__


def test_a_cell_is_forgotten_with_the_caches():
    """A cell from a factory holds what it closes over: no cache of ours may hold the cell."""

    def advance(*arguments):
        return jaxrnn.ELMAN.advance(*arguments)

    def run(cell):
        problem = make_problem(cell, T=3)
        gradient = jax.grad(lambda xs: problem._replace(xs=xs).outputs()[1].sum())(problem.xs)
        jax.block_until_ready(gradient)

    run(jaxrnn.ELMAN._replace(advance=advance))
    held = weakref.ref(advance)
    del advance
    jax.clear_caches()
    gc.collect()
    assert held() is None
