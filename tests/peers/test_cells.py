"""Cells against ONNX Runtime's, Flax's and Keras's, on the same weights: values and gradients.

ONNX Runtime has no gradients; the adjoints are held to those of autodiff elsewhere.
"""

import functools
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import onnxruntime
import pytest

import jaxrnn

T, B, I, H = 7, 4, 3, 5


@pytest.fixture(autouse=True)
def dtypes_as_users_have_them():
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        yield


def drawn(cell, seed=0):
    """Params without zeros, and inputs, in float32."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32) / 2, like)
    return params, rng.normal(size=(T, B, I)).astype(np.float32)


def blocks(array, order):
    """Gate blocks of the last axis in another order, as rows: ONNX has them so."""
    found = np.split(array, len(order), axis=-1)
    return np.concatenate([found[gate] for gate in order], axis=-1).T


def by_onnx(operator, arrays, xs, **attributes):
    """The outputs ``[T, B, H]`` of an operator of ONNX in one direction."""
    # optional inputs that are left out have no name
    names = [name if array is not None else "" for name, array in arrays.items()]
    given = {name: array for name, array in arrays.items() if array is not None}
    node = onnx.helper.make_node(
        operator, ["X", *names], ["Y"], hidden_size=H, direction="forward", **attributes
    )
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "recurrence",
        [onnx.helper.make_tensor_value_info("X", floats, xs.shape)],
        [onnx.helper.make_tensor_value_info("Y", floats, (T, 1, B, H))],
        [onnx.numpy_helper.from_array(array[None], name) for name, array in given.items()],
    )
    opset = onnx.helper.make_opsetid("", 22)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (hs,) = session.run(None, {"X": xs})
    return hs[:, 0]


def test_peepholes_are_those_of_onnx():
    params, xs = drawn(jaxrnn.PEEPHOLE_LSTM)
    ifgo_as_iofg = 0, 3, 1, 2
    b = blocks(params.b, ifgo_as_iofg)
    arrays = {
        "W": blocks(params.w_ih, ifgo_as_iofg),
        "R": blocks(params.w_hh, ifgo_as_iofg),
        "B": np.concatenate([b, np.zeros_like(b)]),
        "lengths": None,
        "h": None,
        "c": None,
        "P": blocks(params.p, (0, 2, 1)),
    }
    _, hs = jaxrnn.unroll(jaxrnn.PEEPHOLE_LSTM, params, xs)
    np.testing.assert_allclose(hs, by_onnx("LSTM", arrays, xs), atol=1e-6)


def test_coupled_gates_are_those_of_onnx():
    """Its forget gate is 1 - i, too, and has weights that are not read."""
    params, xs = drawn(jaxrnn.COUPLED_LSTM)

    def with_a_forget_gate(array):
        i, g, o = np.split(array, 3, axis=-1)
        return np.concatenate([i, o, np.full_like(i, 7), g], axis=-1).T

    b = with_a_forget_gate(params.b)
    arrays = {
        "W": with_a_forget_gate(params.w_ih),
        "R": with_a_forget_gate(params.w_hh),
        "B": np.concatenate([b, np.zeros_like(b)]),
    }
    _, hs = jaxrnn.unroll(jaxrnn.COUPLED_LSTM, params, xs)
    np.testing.assert_allclose(hs, by_onnx("LSTM", arrays, xs, input_forget=1), atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "after"), [(jaxrnn.GRU, 1), (jaxrnn.RESET_BEFORE_GRU, 0)], ids=["after", "before"]
)
def test_both_forms_of_the_gru_are_those_of_onnx(cell, after):
    params, xs = drawn(cell)
    rzn_as_zrn = 1, 0, 2
    recurrent_bias = np.zeros(3 * H, np.float32)
    if after:
        recurrent_bias[2 * H :] = params.b_hn
    arrays = {
        "W": blocks(params.w_ih, rzn_as_zrn),
        "R": blocks(params.w_hh, rzn_as_zrn),
        "B": np.concatenate([blocks(params.b, rzn_as_zrn), recurrent_bias]),
    }
    _, hs = jaxrnn.unroll(cell, params, xs)
    expected = by_onnx("GRU", arrays, xs, linear_before_reset=after)
    np.testing.assert_allclose(hs, expected, atol=1e-6)


def assert_same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), ours, theirs)


def value_and_gradients(unroll, *inputs):
    """``hs``, and the gradients of a loss that reads every step."""

    def loss(*inputs):
        hs = unroll(*inputs)
        return jnp.sum(jnp.sin(hs)), hs

    both = jax.value_and_grad(loss, argnums=tuple(range(len(inputs))), has_aux=True)
    (_, hs), gradients = jax.jit(both)(*inputs)
    return hs, gradients


def test_the_reset_before_the_product_is_that_of_keras():
    params, xs = drawn(jaxrnn.RESET_BEFORE_GRU)
    module = keras.layers.GRU(H, reset_after=False, return_sequences=True)
    module.build((B, T, I))

    def theirs(params, xs):
        def zrn(array):
            r, z, n = jnp.split(array, 3, axis=-1)
            return jnp.concatenate([z, r, n], axis=-1)

        weights = [zrn(params.w_ih), zrn(params.w_hh), zrn(params.b)]
        seeds = [variable.value for variable in module.non_trainable_variables]
        state = module.stateless_call(weights, seeds, jnp.swapaxes(xs, 0, 1))
        return jnp.swapaxes(state[0], 0, 1)

    def ours(params, xs):
        return jaxrnn.unroll(jaxrnn.RESET_BEFORE_GRU, params, xs)[1]

    assert_same(*(value_and_gradients(f, params, xs) for f in (ours, theirs)))


def test_the_minimal_gated_unit_of_flax_is_a_gru_with_one_gate():
    """It resets after the product and keeps the state where its gate is 1: `MGU` is the paper's."""
    rng = np.random.default_rng(0)
    module = nn.MGUCell(features=H)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones(H), jnp.ones(I)))
    weights = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32) / 2, like)
    xs = rng.normal(size=(T, B, I)).astype(np.float32)

    def theirs(weights, xs):
        return jax.lax.scan(functools.partial(module.apply, weights), jnp.zeros((B, H)), xs)[1]

    def ours(weights, xs):
        p = weights["params"]

        def with_one_gate(f, n):
            return jnp.concatenate([f, f, n], axis=-1)

        params = jaxrnn.GRUParams(
            w_ih=with_one_gate(p["if"]["kernel"], p["in"]["kernel"]),
            w_hh=with_one_gate(p["hf"]["kernel"], p["hn"]["kernel"]),
            b=with_one_gate(p["if"]["bias"], p["in"]["bias"]),
            b_hn=p["hn"]["bias"],
        )
        return jaxrnn.unroll(jaxrnn.GRU, params, xs)[1]

    assert_same(*(value_and_gradients(f, weights, xs) for f in (ours, theirs)))
