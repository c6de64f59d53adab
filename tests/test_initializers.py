"""Initial weights: shapes and dtypes as promised, and every gate's block a layer of its own."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same

import jaxrnn
from jaxrnn import initializers

GATES = {"ELMAN": 1, "LSTM": 4, "GRU": 3}
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]
I, H = 5, 7


@functools.cache
def initial(cell, seed=0, dtype=jnp.float32):
    return cell.init(jax.random.key(seed), I, H, dtype=dtype)


def blocks(w, cell):
    """Each gate's part of a weight, in float64."""
    return np.split(np.asarray(w, np.float64), GATES[cell.name], axis=-1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes_are_as_promised(cell, dtype):
    G = GATES[cell.name]
    params = initial(cell, dtype=dtype)
    shapes = {"w_ih": (I, G * H), "w_hh": (H, G * H), "b": (G * H,), "b_hn": (H,)}
    for name, leaf in params._asdict().items():
        assert leaf.shape == shapes[name]
        assert leaf.dtype == dtype


def test_default_dtype_is_float32(cell):
    """Under x64 too, where jax.numpy's own default is float64; and `init` can be traced."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H))
    assert {leaf.dtype for leaf in params} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_recurrent_weights_are_orthogonal_gate_by_gate(cell, dtype):
    for w in blocks(initial(cell, dtype=dtype).w_hh, cell):
        # each of the H products in an entry is off by the rounding of two entries of at most 1
        np.testing.assert_allclose(w @ w.T, np.eye(H), atol=H * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_input_weights_fill_the_glorot_range_of_one_gate(cell, dtype):
    bound = np.sqrt(6 / (I + H))
    for w in blocks(initial(cell, dtype=dtype).w_ih, cell):
        assert np.abs(w).max() <= bound * (1 + float(jnp.finfo(dtype).eps))
        # the bound of all gates as one layer is at most 0.71 of it; 35 uniform draws come closer
        assert np.abs(w).max() > 0.85 * bound
        # a uniform's standard deviation is bound / sqrt(3), here known to about 8 %
        assert np.std(w) == pytest.approx(bound / np.sqrt(3), rel=0.3)


def test_gates_are_drawn_independently(cell):
    params = initial(cell)
    for w in (params.w_ih, params.w_hh):
        drawn = blocks(w, cell)
        for gate, other in itertools.pairwise(drawn):
            assert np.abs(gate - other).max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_biases_are_zero_but_the_forget_gate(cell, dtype):
    params = initial(cell, dtype=dtype)
    expected = np.zeros(GATES[cell.name] * H)
    if cell is jaxrnn.LSTM:
        expected[H : 2 * H] = 1
    np.testing.assert_array_equal(np.asarray(params.b, np.float64), expected)
    if cell is jaxrnn.GRU:
        np.testing.assert_array_equal(params.b_hn, np.zeros(H))


def test_weights_are_a_function_of_the_key(cell):
    again = cell.init(jax.random.key(0), I, H)
    assert_same(again, initial(cell), 0)
    other = initial(cell, seed=1)
    for w, w_other in ((again.w_ih, other.w_ih), (again.w_hh, other.w_hh)):
        assert not np.any(np.asarray(w) == np.asarray(w_other))


def test_every_choice_is_an_argument(cell):
    """And each reaches its own weight, as an initializer of `jax.nn.initializers` would have it."""
    G = GATES[cell.name]
    params = cell.init(
        jax.random.key(0),
        I,
        H,
        dtype=jnp.float64,
        input_init=jax.nn.initializers.constant(2.0),
        recurrent_init=jax.nn.initializers.normal(1e-3),
        bias_init=jax.nn.initializers.constant(3.0),
        **({"forget_bias": 0.5} if cell is jaxrnn.LSTM else {}),
    )
    np.testing.assert_array_equal(params.w_ih, np.full((I, G * H), 2.0))
    assert 0 < np.abs(params.w_hh).max() < 1e-2
    bias = np.full(G * H, 3.0)
    if cell is jaxrnn.LSTM:
        bias[H : 2 * H] += 0.5
    np.testing.assert_array_equal(params.b, bias)
    if cell is jaxrnn.GRU:
        np.testing.assert_array_equal(params.b_hn, np.full(H, 3.0))


def test_initializers_see_one_gate_at_a_time(cell):
    seen = []

    def record(key, shape, dtype):
        seen.append(shape)
        return jnp.zeros(shape, dtype)

    jax.eval_shape(
        lambda: cell.init(
            jax.random.key(0), I, H, input_init=record, recurrent_init=record, bias_init=record
        )
    )
    G = GATES[cell.name]
    biases = G + (cell is jaxrnn.GRU)
    assert sorted(seen) == sorted([(I, H)] * G + [(H, H)] * G + [(H,)] * biases)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_fan_out_fills_its_range(dtype):
    """±1/sqrt(H), of matrices and of biases: what PyTorch's recurrent layers draw from."""
    bound = 16**-0.5
    for shape in ((9, 16), (16,)):
        w = np.asarray(initializers.uniform_fan_out(jax.random.key(0), shape, dtype), np.float64)
        assert w.shape == shape
        assert 0.8 * bound < np.abs(w).max() <= bound
        assert w.min() < 0 < w.max()


def test_uniform_fan_out_serves_every_weight(cell):
    draw = initializers.uniform_fan_out
    params = cell.init(
        jax.random.key(0), I, H, input_init=draw, recurrent_init=draw, bias_init=draw
    )
    bound = H**-0.5
    for name, w in params._asdict().items():
        w = np.array(w)
        if cell is jaxrnn.LSTM and name == "b":
            w[H : 2 * H] -= 1
        assert 0.5 * bound < np.abs(w).max() <= bound + 1e-6


def test_affine_head_starts_as_a_glorot_layer_without_bias():
    params = jaxrnn.init_affine(jax.random.key(0), H, 3)
    assert type(params) is jaxrnn.AffineParams
    assert params.w.dtype == params.b.dtype == jnp.float32
    bound = np.sqrt(6 / (H + 3))
    assert 0.8 * bound < np.abs(params.w).max() <= bound
    np.testing.assert_array_equal(params.b, np.zeros(3))
    constants = jaxrnn.init_affine(
        jax.random.key(0),
        H,
        3,
        dtype=jnp.float16,
        weight_init=jax.nn.initializers.constant(2.0),
        bias_init=jax.nn.initializers.constant(3.0),
    )
    np.testing.assert_array_equal(constants.w, np.full((H, 3), 2, np.float16))
    np.testing.assert_array_equal(constants.b, np.full(3, 3, np.float16))


def test_an_identity_hands_the_state_on(cell):
    params = cell.init(jax.random.key(0), I, H, recurrent_init=initializers.identity)
    for block in jnp.split(params.w_hh, params.w_hh.shape[1] // H, axis=-1):
        np.testing.assert_array_equal(block, np.eye(H))


@pytest.mark.parametrize("radius", [0.5, 1.25])
def test_every_gate_has_the_spectral_radius(cell, radius):
    draw = initializers.spectral_radius(radius)
    params = jax.jit(lambda key: cell.init(key, I, H, recurrent_init=draw, dtype=jnp.float64))(
        jax.random.key(0)
    )
    blocks = np.split(np.asarray(params.w_hh), params.w_hh.shape[1] // H, axis=-1)
    for block in blocks:
        assert abs(np.max(np.abs(np.linalg.eigvals(block))) - radius) < 1e-12
    assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_weights_decay_and_nothing_else():
    network = jaxrnn.layer(jaxrnn.GRU, H, learned_initial_state=True)
    params = network.init(jax.random.key(0), I), jaxrnn.init_affine(jax.random.key(1), H, 3)
    (of_layer,), head = (jaxrnn.decay_mask(params)[0].layers, jaxrnn.decay_mask(params)[1])
    assert of_layer.forward == jaxrnn.GRUParams(w_ih=True, w_hh=True, b=False, b_hn=False)
    assert of_layer.initial_state.forward.h is False
    assert head == jaxrnn.AffineParams(w=True, b=False)


@pytest.mark.parametrize(
    ("cell", "option", "keeps", "others"),
    [(jaxrnn.LSTM, "forget_bias", 1, {0: -1}), (jaxrnn.GRU, "update_bias", 1, {})],
    ids=["LSTM", "GRU"],
)
def test_chrono_biases_spread_the_memory_of_units_over_the_dependencies(
    cell, option, keeps, others
):
    """Uniform on 1..T-1, the input gate's the negative, all other gates as without it."""
    longest, units = 50, 4000
    draw = {option: initializers.chrono(longest)}
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1, units, **draw))
    assert {leaf.dtype for leaf in params} == {jnp.dtype(jnp.float32)}
    # small weights: orthogonal ones of so many units take seconds
    small = jax.nn.initializers.zeros
    drawn = cell.init(jax.random.key(0), 1, units, recurrent_init=small, **draw).b
    gates = np.split(np.asarray(drawn, np.float64), GATES[cell.name])
    steps = np.exp(gates[keeps])
    assert 1 <= steps.min() < 1.1
    assert longest - 1.1 < steps.max() <= (longest - 1) * (1 + 1e-6)
    assert np.mean(steps) == pytest.approx(longest / 2, rel=0.03)
    assert np.std(steps) == pytest.approx((longest - 2) / np.sqrt(12), rel=0.03)
    for gate in range(GATES[cell.name]):
        if gate != keeps:
            np.testing.assert_array_equal(gates[gate], others.get(gate, 0) * gates[keeps])


def test_chrono_needs_a_dependency_of_several_steps():
    with pytest.raises(ValueError, match="`longest` must be at least 3 steps; got 2"):
        initializers.chrono(2)


def test_a_number_as_the_update_bias_is_the_update_gates_alone():
    b = jaxrnn.GRU.init(jax.random.key(0), I, H, update_bias=2.0).b
    np.testing.assert_array_equal(b, np.repeat([0.0, 2.0, 0.0], H).astype(np.float32))
