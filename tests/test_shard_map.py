"""Inside the caller's own `jax.shard_map`: the gradients are the unsharded ones."""

import functools

import jax
import jax.numpy as jnp
import pytest
from support.problems import assert_same, make_problem, random_tree

import jaxrnn

P = jax.sharding.PartitionSpec
# chunks that do not divide the time, and rows for two devices
T, B, I, H = 19, 4, 3, 5


def rate_step(params, v, x):
    v = 0.9 * v + 0.1 * (jnp.tanh(v) @ params["w"] + x @ params["u"])
    return v, jnp.tanh(v)


def rate_initial_state(params, batch_shape=()):
    return jnp.zeros((*batch_shape, H), params["w"].dtype)


RATE = jaxrnn.cell_from_step(rate_step, initial_state=rate_initial_state, name="RATE")
OUTPUTS = {
    "hs alone": lambda final_state, hs: hs,
    "final state alone": lambda final_state, hs: jax.tree.leaves(final_state)[0],
    "cell state alone": lambda final_state, hs: jax.tree.leaves(final_state)[-1],
}
CASES = [
    (unroll, cell, output)
    for unroll in (jaxrnn.unroll, jaxrnn.unroll_reference)
    for cell in (jaxrnn.LSTM, RATE)
    for output in OUTPUTS
    if cell is jaxrnn.LSTM or output != "cell state alone"
]


@functools.cache
def problem_of(cell):
    if cell is RATE:
        params = random_tree({"w": jnp.zeros((H, H)), "u": jnp.zeros((I, H))})
        return params, random_tree(jnp.zeros((T, B, I)), seed=1)
    problem = make_problem(cell, T=T, batch=(B,), I=I, H=H)
    return problem.params, problem.xs


def loss(unroll, cell, output, params, xs):
    read = OUTPUTS[output](*unroll(cell, params, xs, residuals=None))
    return jnp.sum(jnp.sin(read))


@functools.cache
def expected(cell, output):
    f = functools.partial(loss, jaxrnn.unroll_reference, cell, output)
    return jax.jit(jax.grad(f, argnums=(0, 1)))(*problem_of(cell))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize(
    ("unroll", "cell", "output"),
    CASES,
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", None) or v.name,
)
def test_each_output_alone_has_the_unsharded_gradient(unroll, cell, output, kind):
    """Inside of the map, where the gradients of params are summed over devices, and outside."""
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(axis_type,), devices=jax.devices()[:2])
    rows = P(None, "i")
    params, xs = problem_of(cell)
    f = functools.partial(loss, unroll, cell, output)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, jax.sharding.NamedSharding(mesh, P()))
        xs = jax.device_put(xs, jax.sharding.NamedSharding(mesh, rows))
        summed = jax.shard_map(
            lambda params, xs: jax.lax.psum(f(params, xs), "i"), in_specs=(P(), rows), out_specs=P()
        )
        inside = jax.shard_map(
            jax.grad(f, argnums=(0, 1)), in_specs=(P(), rows), out_specs=(P(), rows)
        )
        both = jax.jit(lambda *args: (jax.grad(summed, argnums=(0, 1))(*args), inside(*args)))
        outside, inside = jax.device_get(both(params, xs))
    assert_same(outside, jax.device_get(expected(cell, output)))
    assert_same(inside, jax.device_get(expected(cell, output)))


@pytest.mark.parametrize("cell", [jaxrnn.GRU, RATE], ids=lambda cell: cell.name)
@pytest.mark.parametrize("unroll", [jaxrnn.unroll, jaxrnn.unroll_reference])
def test_a_population_over_devices_has_the_gradients_of_each_member(unroll, cell):
    """Params that differ by device, inputs that do not."""
    mesh = jax.make_mesh(
        (2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    params, xs = problem_of(cell)
    population = jax.tree.map(lambda w: jnp.stack([w, 2 * w, -w, w / 2]), params)
    f = functools.partial(loss, unroll, cell, "hs alone")
    members = jax.shard_map(
        jax.vmap(jax.grad(f), in_axes=(0, None)),
        mesh=mesh,
        in_specs=(P("i"), P()),
        out_specs=P("i"),
    )
    alone = jax.vmap(
        jax.grad(functools.partial(loss, jaxrnn.unroll_reference, cell, "hs alone")),
        in_axes=(0, None),
    )
    assert_same(
        jax.device_get(jax.jit(members)(population, xs)),
        jax.device_get(jax.jit(alone)(population, xs)),
    )
