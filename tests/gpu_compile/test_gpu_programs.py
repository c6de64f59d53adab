"""The launches of the engine on a GPU, per time step: a speed test that needs no clock.

Each bound is a little above what was counted. The copies and counters of a step are what the loops
for GPUs are there to avoid: see `jaxrnn.gpu_loops`.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from deviceless import for_the_gpu

import jaxrnn
from jaxrnn import memory, plan
from jaxrnn.call import plan_of, sizes_of_call, validate
from jaxrnn.gpu_loops import UNROLL
from jaxrnn.plan import RESIDUALS

CELLS = {name: cell for name, cell in vars(jaxrnn).items() if isinstance(cell, jaxrnn.Cell)}
FROM_STEP = jaxrnn.cell_from_step(
    jaxrnn.LSTM.step,
    initial_state=jaxrnn.LSTM.initial_state,
    init=jaxrnn.LSTM.init,
    name="LSTM from its step",
)
# T, B, I, H
SMALL, LARGE = (256, 16, 64, 128), (256, 64, 256, 512)
SHAPES = [SMALL, LARGE]

# kernels, device copies and loop counters per time step of a training step, at most
TRAINING = {
    "COUPLED_LSTM": 5.6,
    "ELMAN": 4.9,
    "GRU": 5.4,
    "LAYER_NORM_GRU": 9.2,
    "LAYER_NORM_LSTM": 14.5,
    "LSTM": 5.3,
    "MGU": 9.8,
    "PEEPHOLE_LSTM": 5.4,
    "RESET_BEFORE_GRU": 9.9,
    "SLSTM": 6.0,
}
IN_ONE_CHUNK = {"ELMAN": 4.7, "GRU": 5.0, "LSTM": 5.0, "SLSTM": 5.7}
BY_POLICY = {
    "gates": {
        "COUPLED_LSTM": 5.8,
        "ELMAN": 5.0,
        "GRU": 6.2,
        "LAYER_NORM_GRU": 9.2,
        "LAYER_NORM_LSTM": 12.5,
        "LSTM": 5.6,
        "MGU": 10.1,
        "PEEPHOLE_LSTM": 5.8,
        "RESET_BEFORE_GRU": 10.4,
        "SLSTM": 6.9,
    },
    "states": {
        "COUPLED_LSTM": 5.5,
        "ELMAN": 5.0,
        "GRU": 5.6,
        "LAYER_NORM_GRU": 8.2,
        "LAYER_NORM_LSTM": 11.9,
        "LSTM": 5.5,
        "MGU": 9.9,
        "PEEPHOLE_LSTM": 5.5,
        "RESET_BEFORE_GRU": 10.0,
        "SLSTM": 6.2,
    },
    # in chunks of 16 steps, which are computed twice
    "carries": {
        "COUPLED_LSTM": 9.8,
        "ELMAN": 8.5,
        "GRU": 10.4,
        "LAYER_NORM_GRU": 14.5,
        "LAYER_NORM_LSTM": 20.0,
        "LSTM": 9.4,
        "MGU": 16.5,
        "PEEPHOLE_LSTM": 9.8,
        "RESET_BEFORE_GRU": 16.9,
        "SLSTM": 11.1,
    },
}
# of a forward pass: the product, all that is elementwise, and every eighth step a count and a write
FORWARD = 2.4
# and what its chunks cost, of 16 or 64 steps
FORWARD_BY_POLICY = {"gates": 2.6, "states": 2.6, "carries": 3.2}
# a step of these has a second product, and what is elementwise before it, or sums over rows: one of
# the product, and of c a mean and a variance
MORE_FORWARD = {
    "LAYER_NORM_GRU": 1.1,
    "LAYER_NORM_LSTM": 3.1,
    "MGU": 2.2,
    "RESET_BEFORE_GRU": 2.2,
}


def shapes_of(cell, shape):
    T, B, I, H = shape
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H))
    return params, jax.ShapeDtypeStruct((T, B, I), jnp.float32)


def training(cell, shape, unroll=jaxrnn.unroll, **options):
    """The program of the gradients of params and inputs, of a loss that reads every output."""

    def loss(params, xs):
        return jnp.sum(unroll(cell, params, xs, **options)[1] ** 2)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return for_the_gpu(step, *shapes_of(cell, shape))


def on_the_device(program):
    """Nothing of the program goes through the host."""
    return set(program.launches.others) <= {"Memzero", "Memset32BitValue"}


@pytest.mark.parametrize("shape", SHAPES, ids=["small", "large"])
@pytest.mark.parametrize("name", CELLS)
def test_a_training_step_launches_few_kernels_in_little_memory(name, shape, row):
    cell, T = CELLS[name], shape[0]
    program = training(cell, shape)
    reference = training(cell, shape, jaxrnn.unroll_reference)
    row("training", name, shape, program)
    row("training, reference", name, shape, reference)
    assert name in TRAINING, f"{name} is new: give it a bound, a little above what was counted"
    assert program.launches.total <= TRAINING[name] * T
    assert 3 * program.launches.total < reference.launches.total
    assert program.temporaries < reference.temporaries
    assert on_the_device(program)


def test_a_derived_adjoint_launches_fewer_than_the_differentiated_scan(row):
    SMALL[0]
    program = training(FROM_STEP, SMALL)
    reference = training(FROM_STEP, SMALL, jaxrnn.unroll_reference)
    row("training", FROM_STEP.name, SMALL, program)
    assert 2 * program.launches.total < reference.launches.total
    assert on_the_device(program)


@pytest.mark.parametrize("shape", SHAPES, ids=["small", "large"])
@pytest.mark.parametrize("name", IN_ONE_CHUNK)
def test_one_chunk_launches_fewer_still(name, shape, row, monkeypatch):
    T = shape[0]
    monkeypatch.setitem(plan.TUNING, "gpu", plan.TUNING["gpu"]._replace(shortest=T))
    program = training(CELLS[name], shape)
    row("training, one chunk", name, shape, program)
    assert program.launches.total <= IN_ONE_CHUNK[name] * T


@pytest.mark.parametrize("residuals", RESIDUALS)
@pytest.mark.parametrize("name", TRAINING)
def test_every_policy_stays_within_its_closed_form(name, residuals, row, monkeypatch):
    cell, T = CELLS[name], SMALL[0]
    program = training(cell, SMALL, residuals=residuals)
    row(f"training, {residuals}", name, SMALL, program)
    assert program.launches.total <= BY_POLICY[residuals][name] * T
    assert on_the_device(program)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    like = shapes_of(cell, SMALL)
    params, xs = (jax.tree.map(lambda a: jnp.zeros(a.shape), tree) for tree in like)
    call = validate(cell, params, xs, None, {})
    chosen, (step, sizes) = plan_of(call, residuals=residuals), sizes_of_call(call)
    assert chosen.chunk % UNROLL == 0
    closed_form = memory.footprint(
        step, sizes.weights, T, residuals, chosen.chunk, chosen.forward_chunk, hs_in_states=True
    )
    # what the loss sends back for every output is a temporary of the program too
    cotangents = step.output * T
    assert closed_form.kept <= program.temporaries <= closed_form.total + cotangents


@pytest.mark.parametrize("residuals", [None, *RESIDUALS])
@pytest.mark.parametrize("name", CELLS)
def test_a_forward_pass_is_two_kernels_a_step(name, residuals, row):
    cell, T = CELLS[name], SMALL[0]
    forward = jax.jit(lambda params, xs: jaxrnn.unroll(cell, params, xs, residuals=residuals))
    program = for_the_gpu(forward, *shapes_of(cell, SMALL))
    row(f"forward, {residuals}" if residuals else "forward", name, SMALL, program)
    bound = FORWARD_BY_POLICY.get(residuals, FORWARD) + MORE_FORWARD.get(name, 0)
    assert program.launches.total <= bound * T
    assert on_the_device(program)


@pytest.mark.parametrize("name", CELLS)
def test_one_program_serves_all_lengths_without_the_host(name, row):
    """The lengths are an argument like any other: nothing is compiled again, or copied back."""
    cell, (T, B, _, _) = CELLS[name], SMALL

    def loss(params, xs, lengths):
        return jnp.sum(jaxrnn.unroll(cell, params, xs, lengths=lengths)[1] ** 2)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    lengths = jax.ShapeDtypeStruct((B,), jnp.int32)
    program = for_the_gpu(step, *shapes_of(cell, SMALL), lengths)
    row("training, lengths", name, SMALL, program)
    assert on_the_device(program)
    assert program.launches.total <= (TRAINING[name] + 1) * T


@pytest.mark.parametrize("name", CELLS)
def test_the_options_make_one_command_buffer_of_a_whole_training_step(name, row):
    cell, (T, B, I, H) = CELLS[name], SMALL

    def loss(params, batch, key):
        final, _ = jaxrnn.unroll(cell, params["cell"], batch["xs"])
        logits = jaxrnn.affine(params["head"], final.h)
        return jaxrnn.softmax_cross_entropy(logits, batch["labels"])

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    options = jaxrnn.compiler_options("gpu")
    train_step = jaxrnn.make_train_step(loss, optimizer, compiler_options=options)
    params = {
        "cell": cell.init(jax.random.key(0), I, H),
        "head": jaxrnn.init_affine(jax.random.key(1), H, 10),
    }
    state = jaxrnn.init_train_state(params, optimizer, jax.random.key(2))
    batch = {
        "xs": jax.ShapeDtypeStruct((T, B, I), jnp.float32),
        "labels": jax.ShapeDtypeStruct((B,), jnp.int32),
    }
    program = for_the_gpu(train_step, state, batch)
    row("training step with Adam", name, SMALL, program)
    assert program.outermost == ["CommandBuffer"]
    plain = jaxrnn.make_train_step(loss, optimizer)
    assert len(for_the_gpu(plain, state, batch).outermost) > 1
