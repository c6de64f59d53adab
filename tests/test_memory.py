"""What a scan holds for its gradient: the bytes of each policy, and what a budget buys."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from support.problems import make_problem

import jaxrnn
from jaxrnn import memory, plan
from jaxrnn.call import plan_of, sizes_of_call, validate
from jaxrnn.gpu_loops import UNROLL
from jaxrnn.plan import RESIDUALS
from jaxrnn.platforms import target_platform

ROOT = Path(__file__).parent.parent
TUNING = plan.TUNING["cpu"]
# the shape at which design goals are stated, and one prime number of steps
SHAPE = dict(T=1000, B=32, I=128, H=256)


def call_of(problem):
    """The checked call, of which xs may be a shape alone."""
    xs = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), problem.xs)
    options = {**problem.options, "consts": problem.consts}
    call = validate(problem.cell, problem.params, xs, problem.initial_state, options)
    return call._replace(xs=problem.xs, T=problem.xs.shape[0])


def choose(problem, **policy):
    plan = plan_of(call_of(problem), **policy)
    return plan.residuals, plan.chunk, plan.forward_chunk


def abstract_problem(cell, *, T, B, I, H):
    """A problem of that shape, of which nothing but shapes is read: its steps take no memory."""
    problem = make_problem(cell, T=1, batch=(B,), I=I, H=H, dtype=jnp.float32)
    return problem._replace(xs=jax.ShapeDtypeStruct((T, B, I), jnp.float32))


def footprint(problem, residuals, chunk, forward_chunk=1):
    step, sizes = sizes_of_call(call_of(problem))
    return memory.footprint(
        step,
        sizes.weights,
        sizes.T,
        residuals,
        chunk,
        forward_chunk,
        hs_in_states=sizes.hs_in_states,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("steps", [64, 61])
@pytest.mark.parametrize("residuals", RESIDUALS)
def test_what_is_kept_is_the_closed_form_in_bytes(cell, residuals, steps, dtype):
    problem = make_problem(cell, T=steps, batch=(3,), I=5, H=7, dtype=dtype)
    _, pull = jax.vjp(lambda xs: problem._replace(xs=xs).outputs(residuals=residuals), problem.xs)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.ndim >= 3]
    of_xs = problem.xs.nbytes
    chunk = 8 if residuals == "carries" and steps == 64 else 7 if residuals == "carries" else 16
    assert sum(leaf.nbytes for leaf in kept) - of_xs == footprint(problem, residuals, chunk).kept


def test_the_table_of_units(cell):
    """In units of T*B*H floats, without the states that enter chunks: the module's docstring."""
    problem = make_problem(cell, T=64, batch=(3,), I=5, H=7, dtype=jnp.float32)
    unit = 64 * 3 * 7 * 4
    entering = len(problem.initial_state) * unit // 64
    units = {r: (footprint(problem, r, 64).kept - entering) / unit for r in RESIDUALS}
    assert (
        units
        == {
            "ELMAN": dict(gates=1, states=1, carries=0),
            "LSTM": dict(gates=6, states=2, carries=0),
            "GRU": dict(gates=5, states=1, carries=0),
        }[cell.name]
    )


@functools.cache
def training_step(cell, loss, *, T, B, I, H, **options):
    """The compiled gradient of params and xs: its bytes of temporaries in units of T*B*H floats."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H, dtype=jnp.float32))
    xs = jax.ShapeDtypeStruct((T, B, I), jnp.float32)
    cotangent = jax.ShapeDtypeStruct((T, B, H), jnp.float32)

    def step(params, xs, cotangent):
        def outputs(params, xs):
            return loss(jaxrnn.unroll(cell, params, xs, **options), cotangent)

        return jax.grad(outputs, argnums=(0, 1))(params, xs)

    compiled = jax.jit(step).lower(params, xs, cotangent).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (T * B * H * 4)


def every_h(outputs, cotangent):
    return jnp.sum(outputs[1] * cotangent)


def last_h(outputs, cotangent):
    return jnp.sum(outputs[0].h)


@pytest.mark.parametrize("loss", [every_h, last_h])
@pytest.mark.parametrize(("residuals", "most"), [("states", 2.6), ("carries", 1.6), (None, 6.0)])
def test_temporaries_of_a_training_step_of_the_lstm(residuals, most, loss):
    assert training_step(jaxrnn.LSTM, loss, residuals=residuals, **SHAPE) <= most


@pytest.mark.parametrize("residuals", RESIDUALS)
def test_a_prime_number_of_steps_costs_no_more_than_its_neighbour(residuals):
    prime, neighbour = (
        training_step(jaxrnn.LSTM, every_h, residuals=residuals, **{**SHAPE, "T": steps})
        for steps in (997, 1000)
    )
    # chunks of carries are the root of the steps, to the next divisor
    assert prime <= 1.1 * neighbour + (0.05 if residuals == "carries" else 0)


@pytest.mark.parametrize("residuals", RESIDUALS)
@pytest.mark.parametrize(
    "cell",
    [
        jaxrnn.LSTM,
        pytest.param(jaxrnn.GRU, marks=pytest.mark.slow),
        pytest.param(jaxrnn.ELMAN, marks=pytest.mark.slow),
    ],
    ids=lambda cell: cell.name,
)
def test_the_footprint_covers_what_xla_allocates(cell, residuals):
    problem = abstract_problem(cell, **SHAPE)
    unit = SHAPE["T"] * SHAPE["B"] * SHAPE["H"] * 4
    claimed = footprint(problem, *choose(problem, residuals=residuals)).total / unit
    found = training_step(cell, every_h, residuals=residuals, **SHAPE)
    assert found <= claimed <= found + 2.5


@pytest.mark.slow
def test_the_table_in_the_readme_is_what_is_measured():
    """To a tenth of a unit, in which versions of XLA differ."""
    units = {"gates": (1, 6, 5), "states": (1, 2, 1), "carries": (0, 0, 0)}
    for residuals in RESIDUALS:
        cells = (jaxrnn.ELMAN, jaxrnn.LSTM, jaxrnn.GRU)
        found = [training_step(cell, every_h, residuals=residuals, **SHAPE) for cell in cells]
        (row,) = re.findall(rf'\| `"{residuals}"` \| (.*) \|\n', (ROOT / "README.md").read_text())
        shown = list(map(float, row.split(" | ")))
        assert shown == pytest.approx([*units[residuals], *found], abs=0.1)


def test_a_small_sequence_is_one_chunk_by_default_but_not_by_policy():
    def chunk(T, B=8, **policy):
        return choose(abstract_problem(jaxrnn.LSTM, T=T, B=B, I=5, H=32), **policy)[1]

    assert chunk(1024) == 1024
    assert chunk(1025) < 128
    assert chunk(1024, B=4) < 128
    assert chunk(1024, residuals="gates") < 128


def test_a_forward_pass_is_one_chunk_by_default_while_its_inputs_are_small():
    def chunks(T, **policy):
        return choose(abstract_problem(jaxrnn.LSTM, T=T, B=8, I=5, H=32), **policy)

    most = TUNING.whole_forward_limit // (8 * 4 * 32 * 4)
    residuals, chunk, forward_chunk = chunks(most)
    assert (residuals, forward_chunk) == ("states", most)
    assert chunk < 128
    _, chunk, forward_chunk = chunks(most + 1)
    assert chunk == forward_chunk < 128
    _, chunk, forward_chunk = chunks(most, residuals="states")
    assert chunk == forward_chunk < 128


def test_a_longer_forward_pass_has_longer_chunks_by_default():
    """It works on fewer arrays of each step than the backward pass."""
    _, chunk, forward_chunk = choose(abstract_problem(jaxrnn.LSTM, **SHAPE))
    assert chunk < forward_chunk < SHAPE["T"]


@pytest.mark.parametrize("residuals", ["gates", "states"])
@pytest.mark.parametrize("H", [128, 256, 512])
def test_what_a_chunk_works_on_stays_in_the_cache(cell, H, residuals):
    """More units, rows or gates make chunks shorter, fewer make them longer."""
    problem = abstract_problem(cell, T=4096, B=32, I=64, H=H)
    _, chunk, _ = choose(problem, residuals=residuals)
    one, two = (footprint(problem, residuals, steps).workspace for steps in (1, 2))
    assert 8 <= chunk <= 4096 // 4
    assert TUNING.cached / 2 < (two - one) * chunk < TUNING.cached * 2


def test_a_budget_buys_the_fastest_plan_that_fits():
    problem = abstract_problem(jaxrnn.LSTM, T=1000, B=4, I=5, H=512)
    for residuals in RESIDUALS:
        budget = footprint(problem, *choose(problem, residuals=residuals)).total
        plan = choose(problem, memory_budget=budget)
        assert plan[0] == residuals
        assert footprint(problem, *plan).total <= budget


@pytest.mark.parametrize("T", [100, 1000, 10_000, 100_000])
@pytest.mark.parametrize("H", [7, 64, 512])
def test_a_large_budget_buys_what_is_taken_without_one_and_no_more(H, T):
    problem = abstract_problem(jaxrnn.LSTM, T=T, B=8, I=5, H=H)
    plan = choose(problem)
    least = footprint(problem, *plan).total
    assert choose(problem, memory_budget=least) == plan
    tighter = choose(problem, memory_budget=least - 1)
    assert footprint(problem, *tighter).total < least


@pytest.mark.parametrize("budget", [10**9, 500_000])
def test_values_and_gradients_do_not_depend_on_the_budget(budget):
    problem = make_problem(jaxrnn.LSTM, T=300, batch=(2,), I=3, H=5)

    def loss(params, **options):
        final, hs = problem._replace(params=params).outputs(**options)
        return jnp.sum(hs**2) + jnp.sum(final.c)

    expected = jax.value_and_grad(loss)(problem.params, residuals="gates")
    found = jax.value_and_grad(loss)(problem.params, memory_budget=budget)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.allclose(a, b, rtol=1e-12)


def test_without_a_budget_gates_are_kept_where_that_is_faster_and_they_are_small():
    def kept(T, I, H, B=2):
        return choose(abstract_problem(jaxrnn.LSTM, T=T, B=B, I=I, H=H))[0]

    # all steps are one chunk, or the products are large
    assert kept(100, I=3, H=128) == "gates"
    assert kept(10_000, I=3, H=128) == "states"
    assert kept(1025, I=256, H=256) == "gates"
    assert kept(1025, I=255, H=256) == "states"
    limit = TUNING.gates_limit // (6 * 2 * 256 * 4)
    assert kept(limit, I=256, H=256) == "gates"
    assert kept(limit + 1, I=256, H=256) == "states"


def test_a_budget_too_small_says_what_would_do():
    problem = make_problem(jaxrnn.LSTM, T=300, batch=(2,), I=3, H=5)
    with pytest.raises(ValueError, match=r"`memory_budget` must be at least (\d+) bytes") as error:
        problem.outputs(memory_budget=1000)
    least = int(str(error.value).split("at least ")[1].split()[0])
    problem.outputs(memory_budget=least)
    with pytest.raises(ValueError, match="`memory_budget` must be at least"):
        problem.outputs(memory_budget=least - 1)


@pytest.mark.parametrize("unroll", [jaxrnn.unroll, jaxrnn.unroll_reference])
def test_a_budget_beside_a_policy_or_of_another_kind_is_refused(unroll):
    problem = make_problem(jaxrnn.LSTM, T=5, batch=(2,), I=3, H=5)
    with pytest.raises(ValueError, match="`memory_budget` chooses `residuals`"):
        problem.outputs(unroll, memory_budget=10**9, residuals="states")
    with pytest.raises(TypeError, match="`memory_budget` must be an int of at least 1"):
        problem.outputs(unroll, memory_budget=1e9)
    with pytest.raises(ValueError, match="`memory_budget` must be an int of at least 1"):
        problem.outputs(unroll, memory_budget=0)


LONG = """
import json, resource, sys
import jax, jax.numpy as jnp, jaxrnn

T, B, I, H = 100_000, 4, 16, 128
params = jaxrnn.LSTM.init(jax.random.key(0), I, H)
xs = jax.block_until_ready(jax.random.normal(jax.random.key(1), (T, B, I)))

def loss(params, xs):
    return jnp.mean(jaxrnn.unroll(jaxrnn.LSTM, params, xs, **json.loads(sys.argv[1]))[1] ** 2)

step = jax.jit(jax.grad(loss, argnums=(0, 1)))
step = step.lower(params, xs).compile()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
dparams, dxs = jax.block_until_ready(step(params, xs))
sums = [float(jnp.sum(jnp.abs(leaf))) for leaf in (*dparams, dxs)]
print(json.dumps({"bytes": peak() - before, "sums": sums}))
"""


@pytest.mark.slow
def test_a_hundred_thousand_steps_take_less_than_a_gigabyte():
    def run(**options):
        out = subprocess.run(
            [sys.executable, "-c", LONG, json.dumps(options)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(out.stdout)

    lean, plain = run(memory_budget=10**9 // 2), run(residuals="states")
    assert lean["bytes"] < 10**9
    assert lean["sums"] == pytest.approx(plain["sums"], rel=1e-4)


GPU = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", None, "gpu"))


@pytest.mark.parametrize("residuals", [None, *RESIDUALS])
@pytest.mark.parametrize("T", [5, 64, 129, 200, 256, 997, 1000, 4096])
def test_on_a_gpu_chunks_are_several_whole_iterations(T, residuals):
    problem = abstract_problem(jaxrnn.LSTM, T=T, B=16, I=4, H=8)
    with use_abstract_mesh(GPU):
        chosen, chunk, forward_chunk = choose(problem, residuals=residuals)
    shortest = 16 if residuals == "carries" else 64
    assert chunk == T or (chunk >= shortest and chunk % UNROLL == 0)
    if residuals is None:
        assert chosen == "states"
        assert forward_chunk == T


@pytest.mark.parametrize("budget", [20_000_000, 10_000_000, 8_000_000])
def test_on_a_gpu_a_budget_buys_whole_iterations_too(budget):
    problem = abstract_problem(jaxrnn.LSTM, T=256, B=16, I=64, H=128)
    with use_abstract_mesh(GPU):
        _, chunk, _ = choose(problem, memory_budget=budget)
        with pytest.raises(ValueError, match=r"at least \d+ bytes .* in chunks of 16 steps"):
            choose(problem, memory_budget=1000)
    assert 16 <= chunk < 64
    assert chunk % UNROLL == 0


def test_the_platform_is_that_of_the_mesh_or_of_the_default_device():
    assert target_platform() == "cpu"
    with use_abstract_mesh(GPU):
        assert target_platform() == "gpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert target_platform() == "cpu"


def test_three_layers_over_ten_thousand_steps_train_within_the_closed_form():
    """The layers' footprints, and the gradient of each one's outputs, as long as they are."""
    T, B, H = 10_000, 4, 32
    network = jaxrnn.stack(*(jaxrnn.layer(cell, H) for cell in (jaxrnn.LSTM, jaxrnn.GRU)))
    network = jaxrnn.stack(network, jaxrnn.layer(jaxrnn.LSTM, H))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), H))
    xs = jax.ShapeDtypeStruct((T, B, H), jnp.float32)

    def temporaries(network, **options):
        def loss(params, xs):
            return jnp.sum(network.apply(params, xs, **options)[1] ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(params, xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    within = 0
    for each in network.layers:
        problem = abstract_problem(each.cell, T=T, B=B, I=H, H=H)
        found = footprint(problem, *choose(problem, residuals="carries"))
        within += found.total + found.outputs
    assert 0.7 * within < temporaries(network, residuals="carries") < within
    assert temporaries(jaxrnn.reference(network)) > 5 * within
