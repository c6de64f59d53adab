"""What the compiled loops over time hold: why they are fast, so that a change cannot lose it."""

import re

import jax
import jax.numpy as jnp
import pytest
from support.programs import INSTRUCTION, computations, instructions

import jaxrnn

T, B, I, H = 256, 8, 16, 32
GATES = {"ELMAN": 1, "LSTM": 4, "GRU": 3}
# of one step, forwards and backwards, each a call of its own at run time: the product, the
# elementwise parts, what is stacked over time, the loop's counter
KERNELS = {"ELMAN": (5, 5), "LSTM": (9, 9), "GRU": (12, 9)}
FREE = ("parameter", "get-tuple-element", "tuple", "constant", "bitcast")


def training_step(cell, unroll=jaxrnn.unroll, *, T=T, H=H, **options):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H, dtype=jnp.float32))
    xs, cotangent = (jax.ShapeDtypeStruct((T, B, n), jnp.float32) for n in (I, H))

    def step(params, xs, cotangent):
        _, pull = jax.vjp(lambda *args: unroll(cell, *args, **options)[1], params, xs)
        return pull(cotangent)

    return jax.jit(step).lower(params, xs, cotangent).compile()


def kernels_per_step(compiled):
    """How many kernels the body of each loop over single steps calls, in the program's order."""
    found, counts = computations(compiled.as_text()), []

    def visit(name):
        for line in found[name]:
            for body in re.findall(r" while\(.*body=%?([\w.-]+)", line):
                if not visit(body):
                    ops = [m["op"] for m in map(INSTRUCTION.match, found[body]) if m]
                    counts.append(sum(op not in FREE for op in ops))
        return any(" while(" in line for line in found[name])

    visit(None)
    return counts


def shape_of(instruction):
    return INSTRUCTION.match(instruction.line)["shape"].split("{")[0]


def test_a_weight_is_transposed_outside_of_all_loops(cell):
    transposed = f"f32[{GATES[cell.name] * H},{H}]"
    copies = [
        i.depth
        for i in instructions(training_step(cell, residuals="gates"))
        if i.op in ("copy", "transpose") and shape_of(i) == transposed
    ]
    assert set(copies) == {0}


def test_no_step_transposes_or_copies_a_weight(cell):
    """Nor does one called by the user: it reads the weights as they lie in memory."""
    shapes = {f"f32[{H},{GATES[cell.name] * H}]", f"f32[{GATES[cell.name] * H},{H}]"}
    program = instructions(training_step(cell, residuals="gates"))
    inner = max(i.depth for i in program)
    in_steps = [i for i in program if i.depth == inner and shape_of(i) in shapes]
    assert not [i.op for i in in_steps if i.op in ("copy", "transpose", "fusion")]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H, dtype=jnp.float32))
    state = jax.eval_shape(lambda: cell.initial_state(params, (B,)))
    x = jax.ShapeDtypeStruct((B, I), jnp.float32)
    step = jax.jit(cell.step).lower(params, state, x).compile()
    assert not [
        i for i in instructions(step) if i.op in ("copy", "transpose") and shape_of(i) in shapes
    ]


def test_no_step_adds_to_the_gradient_of_a_weight(cell):
    """As the loop over steps does that autodiff makes of the reference."""
    weight = f"f32[{H},{GATES[cell.name] * H}]"

    def added_per_step(unroll):
        program = instructions(training_step(cell, unroll))
        return [i for i in program if i.op == "add" and i.times >= T and shape_of(i) == weight]

    assert added_per_step(jaxrnn.unroll_reference)
    assert not added_per_step(jaxrnn.unroll)


def test_a_forward_pass_with_small_inputs_has_no_loop_over_chunks(cell):
    def product_depths(**options):
        program = instructions(training_step(cell, T=2048, **options))
        return sorted({i.depth for i in program if i.op == "dot" and i.times >= 2048})

    # those of the steps, forwards and backwards
    assert product_depths() == [1, 2]
    assert product_depths(residuals="states") == [2]


def test_the_states_before_the_steps_of_a_chunk_are_written_once(cell):
    """Not by each of their readers; and not as a concatenation, which takes longer to compile."""
    program = instructions(training_step(cell, residuals="states"))
    chunk = rf"f32\[(1,)?\d+,{B},{H}\]"
    written = [i.op for i in program if re.fullmatch(chunk, shape_of(i)) and i.depth == 1]
    fields = len(cell.initial_state(cell.init(jax.random.key(0), I, H)))
    assert written.count("pad") == fields
    assert written.count("concatenate") == 0


@pytest.mark.parametrize("residuals", ["gates", "states"])
def test_a_step_is_a_few_kernels(cell, residuals):
    forward, backward = kernels_per_step(training_step(cell, residuals=residuals))
    assert forward <= KERNELS[cell.name][0]
    assert backward <= KERNELS[cell.name][1]
    assert max(kernels_per_step(training_step(cell, jaxrnn.unroll_reference))) > max(
        forward, backward
    )


def test_no_kernel_of_a_small_step_is_divided_among_threads(cell):
    """XLA:CPU divides those that it thinks long: with a core busy elsewhere, a step takes twice."""
    program = instructions(training_step(cell, T=64, H=128, residuals="gates"))
    inner = max(i.depth for i in program)
    in_steps = [i.line for i in program if i.depth == inner]
    assert any(" dot(" in line for line in in_steps)
    assert not [line for line in in_steps if re.search(r'outer_dimension_partitions":\["', line)]
