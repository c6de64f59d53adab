"""On several devices: what they exchange, and that the numbers are those of one.

The structure is read off the compiled programs for eight devices, virtual ones of the CPU.
"""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.cells import MASKED_ELMAN
from support.problems import assert_same, inputs_of, make_problem, random_tree
from support.programs import collectives, product_flops

import jaxrnn
from jaxrnn import bptt, parallel, products

T, B, I, H, O = 64, 16, 5, 8, 3
KINDS = [AxisType.Auto, AxisType.Explicit]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
# where what is tested is the same on both, one of them each time and both with the slow tests
by_kind_in_full = pytest.mark.parametrize(
    "kind",
    [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit],
    ids=lambda kind: kind.name,
)


def mesh_of(kind, **axes):
    axes = axes or {"data": 8}
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (kind,) * len(axes))


def put(tree, mesh, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


# what is exchanged


def make_loss(cell, unroll):
    """A loss of every step and of the final state, with every kind of argument."""

    def loss(params, batch, key):
        xs, lengths, resets, initial_state, labels = batch
        xs = xs + 0.1 * jax.random.normal(key, xs.shape, xs.dtype)
        state, hs = unroll(cell, params["cell"], xs, initial_state, lengths=lengths, resets=resets)
        mask = None if lengths is None else jaxrnn.valid_steps(lengths, T)
        read = functools.partial(jaxrnn.affine, params["head"])
        return jaxrnn.softmax_cross_entropy(read(hs), labels, mask=mask) + jnp.mean(
            read(state.h) ** 2
        )

    return loss


AXES = (1, 0, 1, 0, 1)


def make_batch(cell, *, masks):
    problem = make_problem(
        cell, T=T, batch=(B,), I=I, H=H, lengths=masks, resets=masks, dtype=jnp.float32
    )
    labels = jnp.asarray(np.random.default_rng(0).integers(0, O, (T, B)), jnp.int32)
    lengths, resets = problem.options.get("lengths"), problem.options.get("resets")
    state = problem.initial_state if masks else None
    head = jaxrnn.init_affine(jax.random.key(0), H, O)
    return {"cell": problem.params, "head": head}, (problem.xs, lengths, resets, state, labels)


@functools.cache
def flops_of_one_device(cell, masks):
    params, batch = make_batch(cell, masks=masks)
    gradient = jax.jit(jax.value_and_grad(make_loss(cell, jaxrnn.unroll)))
    return product_flops(gradient.lower(params, batch, jax.random.key(0)).compile())


def compiled_gradient(cell, kind, unroll=jaxrnn.unroll, *, masks=True, rows="data"):
    """Value and gradient of the loss under a plain `jax.jit`, of sharded arguments."""
    mesh = mesh_of(kind, **{rows: 8})
    params, batch = make_batch(cell, masks=masks)
    batch = jax.tree.map(
        lambda leaf, axis: put(leaf, mesh, *[None] * axis, rows),
        batch,
        jax.tree.broadcast(AXES, batch),
    )
    gradient = jax.jit(jax.value_and_grad(make_loss(cell, unroll)))
    return gradient.lower(put(params, mesh), batch, jax.random.key(0)).compile()


def compiled_train_step(cell, kind):
    mesh, optimizer = mesh_of(kind), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    params, batch = make_batch(cell, masks=True)
    train_step = parallel.make_train_step(make_loss(cell, jaxrnn.unroll), optimizer, mesh)
    state = jaxrnn.init_train_state(params, optimizer, jax.random.key(0))
    batch = parallel.shard_rows(batch, mesh, AXES)
    return train_step.lower(parallel.replicate(state, mesh), batch).compile()


def assert_only_sums_after_the_loops(compiled, *, at_most):
    found = collectives(compiled)
    assert set(found) == {(0, "all-reduce")}
    # XLA may fuse them, or may not
    assert found[0, "all-reduce"] <= at_most


def weights_of(cell):
    # of the cell and of the head; the loss; the number of valid steps that it is divided by
    return len(cell.init(jax.random.key(0), I, H)) + 2 + 2


@by_kind
def test_no_collective_in_any_loop_and_an_eighth_of_the_work(cell, kind):
    compiled = compiled_gradient(cell, kind)
    assert_only_sums_after_the_loops(compiled, at_most=weights_of(cell))
    assert product_flops(compiled) <= 1.1 / 8 * flops_of_one_device(cell, True)


@by_kind
def test_nor_from_a_state_of_zeros_and_without_masks(kind):
    compiled = compiled_gradient(jaxrnn.LSTM, kind, masks=False)
    assert_only_sums_after_the_loops(compiled, at_most=weights_of(jaxrnn.LSTM))
    assert product_flops(compiled) <= 1.1 / 8 * flops_of_one_device(jaxrnn.LSTM, False)


@pytest.mark.parametrize(
    "kind",
    [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)],
    ids=lambda kind: kind.name,
)
def test_a_training_step_sums_each_weights_gradient_once(cell, kind):
    compiled = compiled_train_step(cell, kind)
    assert_only_sums_after_the_loops(compiled, at_most=weights_of(cell))
    assert product_flops(compiled) <= 1.1 / 8 * flops_of_one_device(cell, True)


def test_autodiff_of_the_reference_exchanges_at_every_step(cell):
    """That the tests above can fail: its loop over time is the outermost one, and sums within."""
    found = collectives(compiled_gradient(cell, AxisType.Auto, jaxrnn.unroll_reference))
    assert found[1, "all-reduce"] >= 1


def test_rows_on_an_auto_axis_of_another_name_are_summed_once_per_chunk(cell):
    """Where nothing tells that the rows are spread, still not once per step."""
    compiled = compiled_gradient(cell, AxisType.Auto, rows="batch")
    assert set(collectives(compiled)) == {(0, "all-reduce"), (1, "all-reduce")}
    assert product_flops(compiled) <= 1.1 / 8 * flops_of_one_device(cell, True)


def merged(x):
    return x.reshape(-1, x.shape[-1])


def merged_affine(x, w, b):
    y = merged(x) @ w
    return (y + jnp.broadcast_to(b, y.shape)).reshape(*x.shape[:-1], len(b))


FAULTS = {
    "rows left to the compiler": [(bptt, "over_rows", lambda run, *_, **__: run)],
    "time and batch merged": [
        (products, "affine", merged_affine),
        (products, "weight_gradient", lambda x, dy: merged(x).T @ merged(dy)),
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_that_exchanges_more_is_noticed(fault, monkeypatch):
    for module, name, broken in FAULTS[fault]:
        monkeypatch.setattr(module, name, broken)
    # under another name, so that no program is taken from a cache
    cell = jaxrnn.ELMAN._replace(name=fault)
    compiled = compiled_gradient(cell, AxisType.Auto)
    with pytest.raises(AssertionError):
        assert_only_sums_after_the_loops(compiled, at_most=weights_of(cell))


# the numbers


def laid_out(problem, mesh, rows=("data",), hidden=None):
    """The problem with its rows spread, and its hidden units too where an axis is named."""
    options = dict(problem.options)
    for name, axis in (("lengths", 0), ("resets", 1)):
        if name in options:
            options[name] = put(options[name], mesh, *[None] * axis, *rows)
    return problem._replace(
        params=jax.tree.map(lambda w: put(w, mesh, *[None] * (w.ndim - 1), hidden), problem.params),
        xs=put(problem.xs, mesh, None, *rows),
        initial_state=put(problem.initial_state, mesh, *rows, hidden),
        consts=put(problem.consts, mesh, *rows),
        options=options,
    )


def small(cell, batch=(4,), **options):
    return make_problem(cell, T=20, batch=batch, I=3, H=4, lengths=True, resets=True, **options)


def loss_of(problem, **more):
    """A curved loss of every output, as a function of the problem's params, xs and state."""

    def loss(params, xs, initial_state):
        these = problem._replace(params=params, xs=xs, initial_state=initial_state)
        outputs = these.outputs(return_states=True, **more)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

    return loss


def gradient(problem, **more):
    inputs = inputs_of(problem)[:3]
    return jax.jit(jax.value_and_grad(loss_of(problem, **more), argnums=(0, 1, 2)))(*inputs)


def without_a_state(problem):
    params, xs, _, _ = inputs_of(problem)
    loss = loss_of(problem)
    return jax.jit(jax.grad(lambda params, xs: loss(params, xs, None), argnums=(0, 1)))(params, xs)


def gradient_of_the_gradient(problem):
    def slope(*inputs):
        gradients = jax.grad(loss_of(problem), argnums=(0, 1, 2))(*inputs)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(gradients))

    return jax.jit(jax.grad(slope, argnums=(0, 1, 2)))(*inputs_of(problem)[:3])


def forward_over_reverse(problem):
    inputs = inputs_of(problem)[:3]
    pull = jax.grad(loss_of(problem), argnums=(0, 1, 2))
    return jax.jit(lambda *inputs: jax.jvp(pull, inputs, inputs))(*inputs)


def rematerialised(problem):
    loss = jax.checkpoint(loss_of(problem))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs_of(problem)[:3])


def mapped(problem):
    def loss(*inputs):
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), inputs)
        return jnp.sum(jax.vmap(loss_of(problem))(*stacked))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs_of(problem)[:3])


def gradients_per_example(problem):
    def loss(params, xs):
        return jnp.sum(jaxrnn.unroll(problem.cell, params, xs)[1])

    each = jax.vmap(jax.grad(loss), in_axes=(None, 1))
    return jax.jit(each)(problem.params, problem.xs)


def in_segments(problem):
    def loss(params, xs, initial_state):
        def segment(state, xs):
            return jaxrnn.unroll(problem.cell, params, xs, state)

        segments = xs.reshape(4, 5, *xs.shape[1:])
        state, hs = jax.lax.scan(segment, initial_state, segments)
        return jnp.sum(jnp.sin(hs)) + jnp.sum(state.h)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs_of(problem)[:3])


def read_out(problem):
    """The readout's rules, on the inputs as if they were hidden states."""
    lengths, labels = problem.options["lengths"], jnp.argmax(problem.xs, axis=-1)
    head = jaxrnn.init_affine(jax.random.key(0), 3, 5, dtype=jnp.float64)

    def loss(head, hs):
        ys, mask = jaxrnn.affine(head, hs), jaxrnn.valid_steps(lengths, len(hs))
        return (
            jaxrnn.softmax_cross_entropy(ys, labels, mask=mask)
            + jaxrnn.squared_error(ys, jnp.sin(ys), mask=mask)
            + jnp.sum(jnp.sin(jaxrnn.last_valid(hs, lengths)))
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(head, problem.xs)


def watched(problem):
    dhs = jnp.sin(problem.outputs()[1])
    return jaxrnn.diagnostics.backpropagate(
        problem.cell, problem.params, problem.xs, dhs, None, problem.initial_state,
        **problem.options,
    )  # fmt: skip


def compiled_values(problem, there):
    """The compiled `gradient` of the problem laid out, with the numbers of one device."""
    inputs = inputs_of(there)[:3]
    program = jax.jit(jax.value_and_grad(loss_of(there), argnums=(0, 1, 2)))
    compiled = program.lower(*inputs).compile()
    actual = jax.device_get(compiled(*inputs))
    assert_same(jax.tree.map(jnp.asarray, actual), gradient(problem))
    return compiled


WAYS = [
    gradient,
    functools.partial(gradient, reverse=True, residuals="carries"),
    without_a_state,
    in_segments,
    read_out,
    watched,
    *(
        pytest.param(way, marks=pytest.mark.slow)
        for way in (
            gradient_of_the_gradient,
            forward_over_reverse,
            rematerialised,
            mapped,
            gradients_per_example,
        )
    ),
]


def name_of(way):
    return getattr(way, "__name__", "gradient_reversed")


def assert_values_of_one_device(way, problem, there):
    assert_same(*(jax.tree.map(jnp.asarray, jax.device_get(way(p))) for p in (there, problem)))


@by_kind_in_full
@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_values_and_gradients_are_those_of_one_device(way, kind):
    problem = small(jaxrnn.LSTM)
    assert_values_of_one_device(way, problem, laid_out(problem, mesh_of(kind, data=4)))


@pytest.mark.parametrize("way", [gradient, without_a_state, in_segments], ids=name_of)
def test_values_are_the_same_where_types_do_not_tell_the_layout(way):
    problem = small(jaxrnn.LSTM)
    assert_values_of_one_device(way, problem, laid_out(problem, mesh_of(AxisType.Auto, data=4)))


def test_an_ambient_mesh_tells_where_the_rows_are():
    problem, mesh = small(jaxrnn.GRU), mesh_of(AxisType.Auto)
    text = jax.jit(loss_of(problem)).lower(*inputs_of(problem)[:3]).as_text()
    with jax.set_mesh(mesh_of(AxisType.Auto, data=4)):
        there = jax.jit(loss_of(problem)).lower(*inputs_of(problem)[:3]).as_text()
    assert "manual_computation" in there
    assert "manual_computation" not in text
    # eight devices cannot have equal parts of four rows: they do the same work
    with jax.set_mesh(mesh):
        there = jax.jit(loss_of(problem)).lower(*inputs_of(problem)[:3]).as_text()
    assert "manual_computation" not in there


def state_elsewhere(problem, mesh):
    there = laid_out(problem, mesh)
    return there._replace(initial_state=put(problem.initial_state, mesh, None, "data"))


def masks_everywhere(problem, mesh):
    options = {**problem.options, **put({k: problem.options[k] for k in MASKS}, mesh)}
    return laid_out(problem, mesh)._replace(options=options)


def inputs_everywhere(problem, mesh):
    return laid_out(problem, mesh)._replace(xs=put(problem.xs, mesh))


def rows_on_both_axes(problem, mesh):
    return laid_out(problem, mesh, (("data", "model"),))


def rows_on_another_axis(problem, mesh):
    return laid_out(problem, mesh, ("model",))


MASKS = ("lengths", "resets")
LAYOUTS = [
    state_elsewhere,
    masks_everywhere,
    inputs_everywhere,
    rows_on_both_axes,
    rows_on_another_axis,
]


@by_kind_in_full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_may_lie_anywhere(layout, kind):
    problem = small(jaxrnn.GRU)
    there = layout(problem, mesh_of(kind, data=2, model=2))
    assert_values_of_one_device(gradient, problem, there)


@by_kind_in_full
def test_two_batch_axes_may_both_be_spread(kind):
    problem = small(jaxrnn.ELMAN, batch=(4, 2))
    there = laid_out(problem, mesh_of(kind, data=2, model=2), ("data", "model"))
    assert_values_of_one_device(gradient, problem, there)


@by_kind
def test_consts_that_are_rows_add_no_collective_to_any_loop(kind):
    """Which of their leaves are rows, the cell says."""
    consts = {"mask": jnp.full((B, H), 0.5), "name": jnp.zeros(B, jnp.int32)}
    problem = make_problem(MASKED_ELMAN, T=T, batch=(B,), I=I, H=H, lengths=True, consts=consts)
    there = laid_out(problem, mesh_of(kind))
    found = collectives(compiled_values(problem, there))
    assert {depth for depth, _ in found} == {0}


@by_kind
@pytest.mark.parametrize(
    "cell",
    [jaxrnn.zoneout(jaxrnn.GRU, h=0.3), jaxrnn.recurrent_dropout(jaxrnn.GRU, 0.3)],
    ids=["zoneout", "recurrent_dropout"],
)
def test_the_same_key_draws_the_same_on_any_number_of_devices(cell, kind):
    """Arrays for every step, and one for the whole sequence: drawn once, spread like the rows."""
    problem = make_problem(cell, T=T, batch=(B,), I=I, H=H, resets=True)
    problem.options.update(key=jax.random.key(3), mask=jnp.arange(T * B).reshape(T, B) % 5 > 0)
    problem.options["reset_state"] = random_tree(problem.initial_state, seed=4)
    there = laid_out(problem, mesh_of(kind))
    there.options["mask"] = put(problem.options["mask"], mesh_of(kind), None, "data")
    there.options["reset_state"] = put(problem.options["reset_state"], mesh_of(kind), "data")
    found = collectives(compiled_values(problem, there))
    assert {depth for depth, _ in found} == {0}


@by_kind_in_full
def test_inside_a_shard_map_of_the_callers(kind):
    problem, mesh = small(jaxrnn.LSTM), mesh_of(kind, data=4)
    by_row = PartitionSpec(None, "data"), PartitionSpec("data")
    specs = (PartitionSpec(), *by_row)

    def pull(inputs, lengths, resets):
        options = {**problem.options, "lengths": lengths, "resets": resets}
        return jax.grad(loss_of(problem._replace(options=options)), argnums=(0, 1, 2))(*inputs)

    there = laid_out(problem, mesh)
    run = jax.shard_map(pull, mesh=mesh, in_specs=(specs, *by_row[::-1]), out_specs=specs)
    actual = jax.jit(run)(inputs_of(there)[:3], *(there.options[name] for name in MASKS))
    _, expected = gradient(problem)
    assert_same(*(jax.tree.map(jnp.asarray, jax.device_get(g)) for g in (actual, expected)))


def affine_alone(head, hs):
    return jnp.sum(jnp.sin(jaxrnn.affine(head, hs)))


def cross_entropy_alone(logits, labels, weights):
    return jaxrnn.softmax_cross_entropy(logits, labels, weights=weights, reduction="sum")


def squared_error_alone(predictions, targets, weights):
    return jaxrnn.squared_error(predictions, targets, weights=weights)


# each with which of its arguments have rows, on axis 0: all others are the same on both devices
READOUTS = {
    "affine of replicated params": (affine_alone, (False, True)),
    "affine of replicated hidden states": (affine_alone, (True, False)),
    "cross-entropy of replicated logits": (cross_entropy_alone, (False, True, False)),
    "cross-entropy of replicated labels": (cross_entropy_alone, (True, False, False)),
    "cross-entropy of weights by row": (cross_entropy_alone, (False, False, True)),
    "squared error of replicated predictions": (squared_error_alone, (False, True, False)),
    "squared error of replicated targets": (squared_error_alone, (True, False, False)),
    "squared error of weights by row": (squared_error_alone, (False, False, True)),
}


def readout_arguments(function, by_row):
    """Random arguments, what one of two devices sees of each, and which have gradients."""
    rows, shared = 4, 2
    if function is affine_alone:
        # params by row are a head for each device, as in a population
        head = random_tree(jaxrnn.init_affine(jax.random.key(0), 3, O, dtype=jnp.float64))
        head = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), head) if by_row[0] else head
        return (head, random_tree(jnp.zeros((rows if by_row[1] else shared, 3)), 1)), (0, 1)
    sizes = [rows if of_rows else shared for of_rows in by_row]
    y = random_tree(jnp.zeros((sizes[0], O)), 1)
    weights = jnp.arange(1.0, sizes[2] + 1)
    if function is cross_entropy_alone:
        return (y, jnp.arange(sizes[1], dtype=jnp.int32) % O, weights), (0, 2)
    return (y, random_tree(jnp.zeros((sizes[1], O)), 2), weights), (0, 1, 2)


@by_kind
@pytest.mark.parametrize(("function", "by_row"), READOUTS.values(), ids=READOUTS)
def test_the_readout_inside_a_shard_map_of_the_callers(function, by_row, kind):
    """Values, and gradients taken outside and inside, are the sum over what each device sees."""
    mesh = jax.make_mesh((2,), ("data",), (kind,), devices=jax.devices()[:2])
    arguments, argnums = readout_arguments(function, by_row)
    specs = tuple(PartitionSpec("data") if of_rows else PartitionSpec() for of_rows in by_row)
    population = function is affine_alone and by_row[0]

    def local(*arguments):
        if population:
            arguments = (jax.tree.map(lambda w: w[0], arguments[0]), *arguments[1:])
        return function(*arguments)

    def part(device, *arguments):
        """What a device sees of the arguments."""
        halves = [
            jax.tree.map(lambda a: jnp.split(a, 2)[device], argument) if of_rows else argument
            for argument, of_rows in zip(arguments, by_row, strict=True)
        ]
        return local(*halves)

    def whole(*arguments):
        return part(0, *arguments) + part(1, *arguments)

    def outside(*arguments):
        total = jax.shard_map(
            lambda *arguments: jax.lax.psum(local(*arguments), "data"),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
        )
        return jax.value_and_grad(total, argnums)(*arguments)

    def inside(*arguments):
        def run(*arguments):
            value, gradients = jax.value_and_grad(local, argnums)(*arguments)
            return jax.lax.psum(value, "data"), gradients

        out_specs = (PartitionSpec(), tuple(specs[n] for n in argnums))
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=out_specs)(*arguments)

    there = tuple(put(a, mesh, *spec) for a, spec in zip(arguments, specs, strict=True))
    expected = jax.jit(jax.value_and_grad(whole, argnums))(*arguments)
    for run in (outside, inside):
        actual = jax.device_get(jax.jit(run)(*there))
        assert_same(jax.tree.map(jnp.asarray, actual), expected)


@pytest.mark.parametrize("loss", [jaxrnn.softmax_cross_entropy, jaxrnn.squared_error])
@pytest.mark.parametrize("spread", ["y", "other", "mask", "weights"])
def test_a_loss_takes_arguments_of_different_layouts(loss, spread):
    """One of them by rows, the others whole on each device; on Explicit axes types tell."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:2])
    labels, targets = jnp.arange(4, dtype=jnp.int32) % O, random_tree(jnp.zeros((4, O)), 2)
    arguments = {
        "y": random_tree(jnp.zeros((4, O)), 1),
        "other": labels if loss is jaxrnn.softmax_cross_entropy else targets,
        "mask": jnp.array([True, True, False, True]),
        "weights": jnp.arange(1.0, 5.0),
    }
    floating = [name for name in ("y", "other", "weights") if arguments[name].dtype == jnp.float64]

    def run(arguments):
        def mean(some):
            a = {**arguments, **some}
            return loss(a["y"], a["other"], mask=a["mask"], weights=a["weights"])

        return jax.value_and_grad(mean)({name: arguments[name] for name in floating})

    there = {name: put(a, mesh, *["data"] * (name == spread)) for name, a in arguments.items()}
    expected = run(arguments)
    actual = jax.device_get(jax.jit(run)(there))
    assert_same(jax.tree.map(jnp.asarray, actual), expected)


# hidden units spread over devices

# collectives in the loops over time steps, forwards and backwards together: where the units of a
# gate lie together, no device has all the gates of a unit, and the gates must be moved
PER_STEP = {"ELMAN": 2, "LSTM": 11, "GRU": 12}


@pytest.mark.slow
@by_kind
def test_hidden_units_may_be_spread_at_a_price_per_step(cell, kind):
    problem = make_problem(cell, T=T, batch=(8,), I=I, H=6, lengths=True)
    there = laid_out(problem, mesh_of(kind, data=4, model=2), hidden="model")
    found = collectives(compiled_values(problem, there))
    assert sum(found[depth, op] for depth, op in found if depth == 2) <= PER_STEP[cell.name]


# the functions of jaxrnn.parallel


@pytest.mark.parametrize(
    "kind",
    [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)],
    ids=lambda kind: kind.name,
)
def test_training_on_eight_devices_is_training_on_one(kind):
    mesh, optimizer, key = mesh_of(kind), optax.sgd(0.1, momentum=0.9), jax.random.key(1)
    params, batch = make_batch(jaxrnn.LSTM, masks=True)
    loss_fn = make_loss(jaxrnn.LSTM, jaxrnn.unroll)
    state = jaxrnn.init_train_state(params, optimizer, key)
    spread, rows = parallel.replicate(state, mesh), parallel.shard_rows(batch, mesh, AXES)
    one = jaxrnn.make_train_step(loss_fn, optimizer)
    eight = parallel.make_train_step(loss_fn, optimizer, mesh)
    for _ in range(5):
        state, expected = one(state, batch)
        before, (spread, metrics) = spread, eight(spread, rows)
        assert_same(*map(jax.device_get, (metrics, expected)), 1e-5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread))
    assert_same(*map(jax.device_get, (spread.params, state.params)), 1e-5)


def test_a_state_carried_from_segment_to_segment_stays_with_its_rows():
    """Truncated BPTT on several devices: the state is not gathered, and the next step as cheap."""
    network = jaxrnn.stack(jaxrnn.layer(jaxrnn.GRU, H), jaxrnn.layer(jaxrnn.ELMAN, H))
    params = network.init(jax.random.key(0), I)
    mesh, optimizer = mesh_of(AxisType.Auto), optax.sgd(0.1)

    def loss_fn(params, batch, key):
        xs, state = batch
        state, hs = network.apply(params, xs, state)
        return jnp.mean(hs**2), {"state": state}

    train_step = parallel.make_train_step(loss_fn, optimizer, mesh, has_aux=True)
    state = jaxrnn.init_train_state(params, optimizer, jax.random.key(1))
    state = parallel.replicate(state, mesh)
    xs = parallel.shard_rows(jnp.ones((7, B, I), jnp.float32), mesh, 1)
    carried = parallel.shard_rows(network.initial_state(params, (B,)), mesh)
    state, metrics = train_step(state, (xs, carried))
    for leaf in jax.tree.leaves(metrics["state"]):
        assert tuple(leaf.sharding.spec) == ("data",)
    assert metrics["loss"].sharding.is_fully_replicated
    found = collectives(train_step.lower(state, (xs, metrics["state"])).compile())
    assert set(found) == {(0, "all-reduce")}


@pytest.mark.parametrize("donate", [True, False])
def test_a_state_on_a_mesh_is_donated_if_asked(donate):
    mesh, optimizer = parallel.make_mesh(), optax.sgd(0.1)
    step = parallel.make_train_step(
        lambda params, xs, key: jnp.sum(params * jnp.mean(xs)), optimizer, mesh, donate=donate
    )
    state = jaxrnn.init_train_state(jnp.ones(3), optimizer, jax.random.key(0))
    state, xs = parallel.replicate(state, mesh), parallel.shard_rows(jnp.ones(8), mesh)
    once, _ = step(state, xs)
    if donate:
        with pytest.raises(ValueError, match="`state` has been donated"):
            step(state, xs)
    else:
        again, _ = step(state, xs)
        assert_same(*map(jax.device_get, (again.params, once.params)), 0)


def test_replicate_copies():
    mesh = parallel.make_mesh(jax.devices()[:1])
    params = {"w": put(jnp.ones(3), mesh), "key": jax.random.key(0)}
    jax.tree.map(lambda leaf: leaf.delete(), parallel.replicate(params, mesh))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_rows_are_spread_and_the_rest_is_not():
    mesh = parallel.make_mesh()
    assert mesh.axis_types == (AxisType.Auto,)
    tree = {"xs": np.ones((3, 16, 2)), "state": (jnp.ones((16, 4)),) * 2, "scale": np.ones(2)}
    there = parallel.shard_rows(tree, mesh, {"xs": 1, "state": 0, "scale": None})
    assert_same(jax.device_get(there), jax.device_get(jax.tree.map(jnp.asarray, tree)), 0)
    shapes = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, there)
    assert shapes == {"xs": (3, 2, 2), "state": ((2, 4), (2, 4)), "scale": (2,)}


@pytest.mark.parametrize(
    ("tree", "axes", "error", "message"),
    [
        (
            np.ones((5, 12)),
            1,
            ValueError,
            r"`tree` must have rows on axis 1.* 8 devices.*\(5, 12\)",
        ),
        ({"a": np.ones(8)}, 1, ValueError, r"`tree\['a'\]` must have rows on axis 1.*\(8,\)"),
        (np.ones(8), -1, ValueError, "`tree` must have rows on axis -1"),
        (np.ones(8), "data", TypeError, "`axes` must have an int or None for `tree`; got 'data'"),
        ((np.ones(8),), (0, 0), ValueError, r"`axes` must be an int, None, or a prefix.*\(0, 0\)"),
    ],
)
def test_rows_that_cannot_be_spread(tree, axes, error, message):
    with pytest.raises(error, match=message):
        parallel.shard_rows(tree, parallel.make_mesh(), axes)


@pytest.mark.parametrize(
    "function",
    [
        lambda mesh: parallel.replicate(1.0, mesh),
        lambda mesh: parallel.shard_rows(np.ones(8), mesh),
        lambda mesh: parallel.make_train_step(lambda *_: 0.0, optax.sgd(0.1), mesh),
    ],
    ids=["replicate", "shard_rows", "make_train_step"],
)
def test_a_mesh_that_is_none_or_has_no_data_axis(function):
    with pytest.raises(TypeError, match=r"`mesh` must be a jax.sharding.Mesh.*got int 8"):
        function(8)
    with pytest.raises(ValueError, match=r"`mesh` must have an axis 'data'.*\('batch',\)"):
        function(mesh_of(AxisType.Auto, batch=8))


@pytest.mark.parametrize("text", ["README.md", "jaxrnn/parallel.py"])
def test_one_line_makes_a_device_of_every_core(text):
    """The line that the documentation shows, in a process where JAX has done nothing yet."""
    root = Path(__file__).parent.parent
    (line,) = re.findall(
        r"^    (jax\.config\.update\(.*\))$", (root / text).read_text(), re.MULTILINE
    )
    code = f"""
import os
import jax
{line}
from jaxrnn import parallel
assert parallel.make_mesh().size == len(os.sched_getaffinity(0)), parallel.make_mesh()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mesh_of_no_devices():
    with pytest.raises(ValueError, match=r"`devices` must be None or at least one.*\[\]"):
        parallel.make_mesh([])
