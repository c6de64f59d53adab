"""`jax.export` with sizes known by name alone: one artifact for all batches, lengths, platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same

import jaxrnn

T, B, I, H = 21, 3, 2, 4
POLICIES = [None, "gates", "states", "carries"]


def arguments(T):
    rng = np.random.default_rng(T)
    xs = jnp.asarray(rng.normal(size=(T, B, I)))
    lengths = jnp.asarray(rng.integers(0, T + 1, size=B), jnp.int32)
    return xs, lengths, jnp.asarray(rng.random((T, B)) < 0.3), jnp.asarray(rng.random((T, B)) < 0.7)


# the pairs of cell and policy that cover each of both; all of them run with make test-all
CASES = [
    pytest.param(
        cell, policy, marks=[] if (i + j) % 4 == 1 or cell is jaxrnn.LSTM else pytest.mark.slow,
        id=f"{cell.name}-{policy}",
    )
    for i, cell in enumerate((jaxrnn.ELMAN, jaxrnn.LSTM, jaxrnn.GRU))
    for j, policy in enumerate(POLICIES)
]  # fmt: skip


@pytest.mark.parametrize(
    "symbols", [pytest.param("batch", marks=pytest.mark.slow), "time and batch"]
)
@pytest.mark.parametrize(("cell", "policy"), CASES)
def test_one_export_serves_every_size_with_values_and_gradients(cell, policy, symbols):
    params = cell.init(jax.random.key(0), I, H, dtype=jnp.float64)
    time = symbols == "time and batch"

    def plain(xs):
        return jaxrnn.unroll(cell, params, xs, residuals=policy)

    def masked(xs, lengths, resets, mask):
        padded = jaxrnn.unroll(
            cell, params, xs, lengths=lengths, resets=resets, reverse=True, residuals=policy
        )
        return padded, jaxrnn.unroll(cell, params, xs, mask=mask, residuals=policy)

    dims = jax.export.symbolic_shape("t, b" if time else "b")
    shape = dims if time else (T, *dims)
    like = (
        jax.ShapeDtypeStruct((*shape, I), jnp.float64),
        jax.ShapeDtypeStruct(shape[1:], jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
    )
    for f, count in ((plain, 1), (masked, 4)):
        exported = jax.export.export(jax.jit(f), platforms=("cpu", "cuda"))(*like[:count])
        restored = jax.export.deserialize(exported.serialize(vjp_order=1))
        for steps in (1, T) if time else (T,):
            xs, *masks = arguments(steps)[:count]
            results = []
            for g in (restored.call, f):
                outputs, pull = jax.vjp(lambda xs, g=g, masks=masks: g(xs, *masks), xs)
                results.append((outputs, pull(outputs)))
            assert_same(*results)


def test_a_mask_of_a_symbolic_number_of_steps_is_exported():
    t, b = jax.export.symbolic_shape("t, b")
    f = jax.jit(lambda xs, lengths: jaxrnn.valid_steps(lengths, xs.shape[0]))
    like = jax.ShapeDtypeStruct((t, b), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.int32)
    mask = jax.export.export(f)(*like).call(
        jnp.zeros((3, 2), jnp.float32), jnp.array([1, 3], jnp.int32)
    )
    assert mask.astype(int).tolist() == [[1, 1], [0, 1], [0, 1]]


def test_a_budget_of_bytes_needs_sizes_that_are_known():
    (b,) = jax.export.symbolic_shape("b")
    params = jaxrnn.GRU.init(jax.random.key(0), I, H)
    f = jax.jit(lambda xs: jaxrnn.unroll(jaxrnn.GRU, params, xs, memory_budget=10**6)[1])
    with pytest.raises(ValueError, match="`memory_budget` must be None for symbolic sizes"):
        jax.export.export(f)(jax.ShapeDtypeStruct((T, b, I), jnp.float32))
