"""What the compiled loops hold: the structure that makes the rule small and fast."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from support.problems import make_problem
from support.programs import carries, equations, outputs_of, products, step_loops

import jaxrnn
from jaxrnn.gpu_loops import UNROLL

T, B, I, H = 64, 3, 5, 7
POLICIES = ["gates", "states", "carries"]


def training_step(cell, unroll, steps_an_iteration=1, **options):
    problem = make_problem(cell, T=T, batch=(B,), I=I, H=H)

    def loss(params, xs, initial_state):
        inputs = problem._replace(params=params, xs=xs, initial_state=initial_state)
        final, hs = inputs.outputs(unroll, **options)
        return jnp.sum(hs) + sum(jnp.sum(leaf) for leaf in final)

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    arguments = problem.params, problem.xs, problem.initial_state
    platform = "cpu" if steps_an_iteration == 1 else "gpu"
    device = AbstractDevice("of a test", None, platform)
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return step_loops(gradient, *arguments, unroll=steps_an_iteration)


@pytest.mark.parametrize("masks", [{}, {"lengths": jnp.array([64, 5, 0]), "reverse": True}])
@pytest.mark.parametrize("residuals", POLICIES)
@pytest.mark.parametrize("unrolled", [1, UNROLL], ids=["cpu", "gpu"])
def test_every_step_loop_carries_the_state_alone_and_holds_one_product(
    cell, unrolled, residuals, masks
):
    loops = training_step(cell, jaxrnn.unroll, unrolled, residuals=residuals, **masks)
    # forwards and backwards, and forwards again where the states of a chunk were not kept
    assert len(loops) == (3 if residuals == "carries" else 2)
    state = [(B, H)] * len(cell.initial_state(cell.init(jax.random.key(0), I, H)))
    for loop in loops:
        assert carries(loop) == state
        assert products(loop) == 1


def test_the_loops_that_autodiff_makes_carry_weights(cell):
    """That the test above can fail: the derivative of the reference does what it forbids."""
    _, backward = training_step(cell, jaxrnn.unroll_reference)
    assert any(shape[0] in (I, H) for shape in carries(backward))
    assert products(backward) > 1


@pytest.mark.parametrize("steps", [64, 61, 997])
def test_a_length_that_no_chunk_divides_adds_one_shorter_chunk(steps):
    """Whatever T is, the loops are the same in kind: no loop over single steps outside a chunk."""
    problem = make_problem(jaxrnn.LSTM, T=steps, batch=(B,), I=I, H=H)
    loops = step_loops(
        jax.grad(lambda xs: jnp.sum(problem._replace(xs=xs).outputs()[1])), problem.xs
    )
    chunks = [loop.params["length"] for loop in loops]
    assert len(chunks) == (2 if steps == 64 else 4)
    assert max(chunks) <= 32


def test_nothing_is_kept_where_nothing_is_differentiated(cell):
    problem = make_problem(cell, T=T, batch=(B,), I=I, H=H)
    jaxpr = jax.make_jaxpr(lambda: problem.outputs())().jaxpr
    outer = next(e for e in equations(jaxpr) if e.primitive.name == "scan")
    _, stacked = outputs_of(outer)
    assert stacked == [(T // 16, 16, B, H)]


@pytest.mark.parametrize("residuals", POLICIES)
def test_what_is_kept_is_what_the_policy_says(cell, residuals):
    """In units of one [T, B, H] array, beside the arguments that were there anyway."""
    problem = make_problem(cell, T=T, batch=(B,), I=I, H=H)
    _, pull = jax.vjp(lambda xs: problem._replace(xs=xs).outputs(residuals=residuals), problem.xs)
    sizes = [leaf.size for leaf in jax.tree.leaves(pull) if leaf.ndim >= 3]
    sizes.remove(problem.xs.size)
    leaves = len(problem.initial_state)
    gates = {"ELMAN": 0, "LSTM": 4, "GRU": 4}[cell.name]
    chunk = 8 if residuals == "carries" else 16
    units = {"gates": leaves + gates, "states": leaves, "carries": 0}[residuals]
    assert sum(sizes) == (units * T + leaves * T // chunk) * B * H
