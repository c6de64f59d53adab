"""The door to the step loop: every pair of loops gives the values and gradients of autodiff."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from support.cells import MGU
from support.problems import assert_same, make_problem, random_tree
from support.programs import equations, instruction_counts

import jaxrnn
from jaxrnn import bptt, pieces
from jaxrnn.call import arrays_of, plan_of, validate
from jaxrnn.gpu_loops import GPU_LOOPS, UNROLL
from jaxrnn.loops import XLA_LOOPS, Advanced, Loops, Pulled
from jaxrnn.masks import select, zero_unless, zero_where


def at(tree, t):
    return jax.tree.map(lambda leaf: leaf[t], tree)


def stacked(entries):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *entries)


def python_advance(bound, entering, reset_state, ahead, K, *, reverse):
    carry, made = entering, [None] * K
    for t in range(K)[:: -1 if reverse else 1]:
        now = at(ahead, t)
        before = carry if now.cut is None else select(now.cut, reset_state, carry)
        after, gates = pieces.advance(bound, before, now.inputs)
        carry = select(now.valid, after, carry)
        made[t] = carry, gates
    return Advanced(carry, *stacked(made))


def python_pull(bound, dleaving, dreset, back, K, *, reverse, record):
    dcarry, found = dleaving, [None] * K
    for t in range(K)[:: 1 if reverse else -1]:
        now = at(back, t)
        dafter = dcarry if now.dstates is None else jax.tree.map(jnp.add, dcarry, now.dstates)
        if now.dhs is not None:
            dafter = dafter._replace(h=dafter.h + now.dhs)
        dbefore, deltas = pieces.pull(bound, dafter, None, now.factors)
        if dreset is not None:
            started = zero_unless(now.cut, zero_unless(now.valid, dbefore))
            dreset = jax.tree.map(jnp.add, dreset, started)
        dcarry = select(now.valid, zero_where(now.stop, zero_where(now.cut, dbefore)), dafter)
        found[t] = zero_unless(now.valid, deltas), zero_unless(now.valid, dafter)
    deltas, dafter = stacked(found)
    return Pulled(dcarry, dreset, deltas, dafter if record else None)


PYTHON_LOOPS = Loops("python", python_advance, python_pull)
EVERY_PAIR = [XLA_LOOPS, GPU_LOOPS, PYTHON_LOOPS]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("residuals", ["states", "carries"])
@pytest.mark.parametrize("cell", [jaxrnn.LSTM, MGU], ids=lambda cell: cell.name)
@pytest.mark.parametrize("loops", EVERY_PAIR, ids=lambda loops: loops.name)
def test_every_pair_of_loops_has_the_values_and_gradients_of_the_reference(
    loops, cell, residuals, reverse
):
    problem = make_problem(cell, T=5, batch=(3,), lengths=True, resets=True, reverse=reverse)
    reset_state = random_tree(problem.initial_state, seed=9)

    def engine(params, xs, initial_state, reset_state):
        options = {**problem.options, "reset_state": reset_state}
        call = validate(cell, params, xs, initial_state, options)
        plan = plan_of(call, residuals=residuals, return_states=True)._replace(loops=loops)
        outputs = bptt.unroll(cell, plan, arrays_of(call))
        return outputs.hs, outputs.states

    def reference(params, xs, initial_state, reset_state):
        these = problem._replace(params=params, xs=xs, initial_state=initial_state)
        outputs = these.outputs(
            jaxrnn.unroll_reference, reset_state=reset_state, return_states=True
        )
        return outputs[1:]

    inputs = problem.params, problem.xs, problem.initial_state, reset_state

    def both(f):
        outputs, pull = jax.vjp(f, *inputs)
        return outputs, pull(random_tree(outputs, seed=3))

    assert_same(jax.jit(lambda: both(engine))(), jax.jit(lambda: both(reference))())


GPU = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", None, "gpu"))


def test_a_program_traced_for_a_gpu_and_compiled_for_a_cpu_holds_no_loops_of_a_gpu(cell):
    """By carries, which have all loops: forwards, forwards again, and backwards."""
    problem = make_problem(cell, T=40, batch=(2,), I=3, H=4)

    def program(**loops):
        def loss(params, xs):
            call = validate(cell, params, xs, None, {})
            plan = plan_of(call, residuals="carries")._replace(**loops)
            return jnp.sum(bptt.unroll(cell, plan, arrays_of(call)).hs)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        with use_abstract_mesh(GPU):
            traced = gradient.trace(problem.params, problem.xs)
        return instruction_counts(traced.lower(lowering_platforms=("cpu",)).compile())

    found = program()
    assert found == program(loops=XLA_LOOPS)
    # that the counts tell the two apart
    assert cell is not jaxrnn.ELMAN or found != program(loops=GPU_LOOPS)


def test_what_is_traced_for_a_cpu_has_no_choice_in_it(cell):
    """So that nothing of it moves, under jax.vmap and in derivatives of derivatives neither."""
    problem = make_problem(cell, T=40, batch=(2,))

    def loss(params):
        return jnp.sum(problem._replace(params=params).outputs()[1])

    found = equations(jax.make_jaxpr(jax.grad(loss))(problem.params).jaxpr)
    assert not any(e.primitive.name in ("cond", "platform_index") for e in found)


@pytest.mark.parametrize("T", [3 * UNROLL, None], ids=["3 iterations", "symbolic steps"])
def test_a_program_lowered_for_a_gpu_has_the_loops_for_it(T):
    problem = make_problem(jaxrnn.ELMAN, T=3 * UNROLL, batch=(2,))
    f = jax.jit(lambda xs: problem._replace(xs=xs).outputs())
    like = jax.ShapeDtypeStruct(problem.xs.shape, problem.xs.dtype)
    if T is None:
        like = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("t"), 2, 3), problem.xs.dtype)
    with use_abstract_mesh(GPU):
        exported = jax.export.export(f, platforms=("cpu", "cuda"))(like)
        program = f.trace(problem.xs)
    assert_same(jax.export.deserialize(exported.serialize()).call(problem.xs), f(problem.xs))

    def counts_to(iterations, platform):
        text = program.lower(lowering_platforms=(platform,)).as_text()
        return f"stablehlo.constant dense<{iterations}>" in text

    assert counts_to(3 * UNROLL, "cpu")
    assert not counts_to(3, "cpu")
    assert counts_to(3, "cuda")
    assert not counts_to(3 * UNROLL, "cuda")
