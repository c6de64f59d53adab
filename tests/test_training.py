"""The training step: one trace, donated state, the same run from the same key."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.problems import assert_same

import jaxrnn
from jaxrnn import platforms


def noisy_loss(params, batch, key):
    """A loss that depends on its key: inputs are masked at random, as by dropout."""
    kept = jax.random.bernoulli(key, 0.8, batch.shape)
    ys = jaxrnn.affine(params, jnp.where(kept, batch, 0))
    return jaxrnn.squared_error(ys, batch[:, :2])


BATCHES = [jnp.asarray(np.random.default_rng(k).normal(size=(6, 3))) for k in range(4)]


def new_params(seed=0):
    return jaxrnn.init_affine(jax.random.key(seed), 3, 2, dtype=jnp.float64)


def new_state(optimizer, seed=1):
    return jaxrnn.init_train_state(new_params(), optimizer, jax.random.key(seed))


def run(train_step, state, batches=BATCHES):
    losses = []
    for batch in batches:
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"])
    return state, losses


def numbers(state):
    """The state with its key as numbers, to be compared."""
    return state._replace(key=jax.random.key_data(state.key))


def test_one_trace_for_a_whole_run():
    traces = []

    def loss_fn(params, batch, key):
        traces.append(1)
        return noisy_loss(params, batch, key)

    optimizer = optax.sgd(optax.schedules.cosine_decay_schedule(0.1, 10), momentum=0.9)
    train_step = jaxrnn.make_train_step(loss_fn, optimizer)
    # optax's schedules mix dtypes, which the tests' strict promotion refuses
    with jax.numpy_dtype_promotion("standard"):
        state, _ = run(train_step, new_state(optimizer), [*BATCHES, *BATCHES])
    assert len(traces) == 1
    assert int(state.step) == 8


def test_state_is_donated_and_the_callers_arrays_are_not():
    optimizer = optax.sgd(0.1, momentum=0.9)
    params, key = new_params(), jax.random.key(1)
    first = jaxrnn.init_train_state(params, optimizer, key)
    second, _ = jaxrnn.make_train_step(noisy_loss, optimizer)(first, BATCHES[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, key, second)))
    # alive, and readable
    jax.random.split(key)
    assert_same(params, new_params(), 0)


def test_run_is_a_function_of_its_key():
    optimizer = optax.sgd(0.1)
    train_step = jaxrnn.make_train_step(noisy_loss, optimizer)
    state, losses = run(train_step, new_state(optimizer))
    again, losses_again = run(train_step, new_state(optimizer))
    assert_same((numbers(again), losses_again), (numbers(state), losses), 0)
    other, _ = run(train_step, new_state(optimizer, seed=2))
    assert not np.any(np.asarray(other.params.w) == np.asarray(state.params.w))


def test_every_step_has_its_own_key():
    """And it is a function of the step alone, not of how the run came there."""

    def loss_fn(params, batch, key):
        return jnp.sum(params.w**2), {"key": jax.random.key_data(key)}

    optimizer = optax.sgd(0.1)
    train_step = jaxrnn.make_train_step(loss_fn, optimizer, has_aux=True)
    state, keys = new_state(optimizer), []
    for _ in range(4):
        state, metrics = train_step(state, None)
        keys.append(metrics["key"])
    assert len({tuple(np.asarray(key)) for key in keys}) == 4
    for step, key in enumerate(keys):
        expected = jax.random.fold_in(jax.random.key(1), step)
        np.testing.assert_array_equal(key, jax.random.key_data(expected))


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_run_equals_the_uninterrupted(stop):
    """From numbers alone, as a checkpoint holds them."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    train_step = jaxrnn.make_train_step(noisy_loss, optimizer)
    expected, losses = run(train_step, new_state(optimizer))

    halted, before = run(train_step, new_state(optimizer), BATCHES[:stop])
    saved = jax.device_get(numbers(halted))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(saved))
    restored = jax.tree.map(jnp.asarray, saved)
    restored = restored._replace(key=jax.random.wrap_key_data(restored.key))

    state, after = run(train_step, restored, BATCHES[stop:])
    assert_same((numbers(state), before + after), (numbers(expected), losses), 0)


def test_old_style_keys_serve_too():
    optimizer = optax.sgd(0.1)
    train_step = jaxrnn.make_train_step(noisy_loss, optimizer)
    old = jaxrnn.init_train_state(new_params(), optimizer, jax.random.PRNGKey(1))
    state, losses = run(train_step, old)
    expected, expected_losses = run(train_step, new_state(optimizer))
    assert_same((state.params, losses), (expected.params, expected_losses), 0)


def test_sgd_step_is_the_formula():
    """params - rate * gradient; the metrics are of the params before the step."""
    optimizer = optax.sgd(0.25)

    def loss_fn(params, batch, key):
        loss = noisy_loss(params, batch, key)
        return loss, {"twice": 2 * loss, "size": jnp.array(batch.shape[0])}

    first = jax.random.fold_in(jax.random.key(1), 0)
    loss, gradient = jax.value_and_grad(noisy_loss)(new_params(), BATCHES[0], first)
    state, metrics = jaxrnn.make_train_step(loss_fn, optimizer, has_aux=True)(
        new_state(optimizer), BATCHES[0]
    )
    assert_same(state.params, jax.tree.map(lambda p, d: p - 0.25 * d, new_params(), gradient))
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 1
    np.testing.assert_array_equal(
        jax.random.key_data(state.key), jax.random.key_data(jax.random.key(1))
    )
    norm = jnp.sqrt(sum(jnp.sum(d * d) for d in gradient))
    expected = {"loss": loss, "gradient_norm": norm, "twice": 2 * loss, "size": jnp.array(6)}
    assert_same(metrics, expected)


def test_metrics_without_aux():
    optimizer = optax.sgd(0.1)
    _, metrics = jaxrnn.make_train_step(noisy_loss, optimizer)(new_state(optimizer), BATCHES[0])
    assert metrics.keys() == {"loss", "gradient_norm"}


def test_gradient_norm_is_taken_before_the_optimizer():
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state, metrics = jaxrnn.make_train_step(noisy_loss, clipped)(new_state(clipped), BATCHES[0])
    moved = jax.tree.map(jnp.subtract, state.params, new_params())
    assert float(metrics["gradient_norm"]) > 0.1
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-3)


def test_only_the_params_given_are_trained():
    """`None` leaves and nested containers pass through, as pytrees do."""
    params = {"head": new_params(), "unused": None, "stack": [jnp.ones(2), jnp.zeros((1, 2))]}
    optimizer = optax.sgd(0.1)
    train_step = jaxrnn.make_train_step(
        lambda p, batch, key: jnp.sum(p["stack"][0] ** 2) + noisy_loss(p["head"], batch, key),
        optimizer,
    )
    state, _ = train_step(jaxrnn.init_train_state(params, optimizer, jax.random.key(1)), BATCHES[0])
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert_same(state.params["stack"], [jnp.full(2, 0.8), jnp.zeros((1, 2))])


OPTIMIZERS = {
    "sgd": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3, momentum=0.8)),
    "adamw, clipped and scheduled": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.schedules.warmup_cosine_decay_schedule(0.0, 0.03, 5, 100)),
    ),
}


def recall(cell, optimizer, steps=100):
    """Losses on a task of memory: the sign of the first input, asked for after the last.

    The sequences end at different steps, and what follows them is noise.
    """
    T, B, H = 6, 16, 8
    rng = np.random.default_rng(0)
    k_cell, k_head, k_run = jax.random.split(jax.random.key(0), 3)
    params = {
        "cell": cell.init(k_cell, 1, H, dtype=jnp.float32),
        "head": jaxrnn.init_affine(k_head, H, 2, dtype=jnp.float32),
    }

    def loss_fn(params, batch, key):
        xs, lengths = batch
        _, hs = jaxrnn.unroll(cell, params["cell"], xs, lengths=lengths)
        logits = jaxrnn.affine(params["head"], jaxrnn.last_valid(hs, lengths))
        return jaxrnn.softmax_cross_entropy(logits, (xs[0, :, 0] > 0).astype(jnp.int32))

    train_step = jaxrnn.make_train_step(loss_fn, optimizer)
    state = jaxrnn.init_train_state(params, optimizer, k_run)
    losses = []
    for _ in range(steps):
        batch = (
            jnp.asarray(rng.normal(size=(T, B, 1)), jnp.float32),
            jnp.asarray(rng.integers(3, T + 1, B), jnp.int32),
        )
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("ELMAN", "adamw, clipped and scheduled"),
        ("LSTM", "adamw, clipped and scheduled"),
        ("GRU", "adamw, clipped and scheduled"),
        ("GRU", "sgd"),
    ],
)
def test_loss_falls_on_a_task_of_memory(name, optimizer):
    """From log 2, the loss of a guess."""
    # optax's adam and schedules mix dtypes, which the tests' strict promotion refuses
    lenient = jax.numpy_dtype_promotion("standard")
    with contextlib.nullcontext() if optimizer == "sgd" else lenient:
        losses = recall(getattr(jaxrnn, name), OPTIMIZERS[optimizer]())
    assert np.mean(losses[:3]) == pytest.approx(np.log(2), abs=0.35)
    assert np.mean(losses[-10:]) < 0.6 * np.log(2)


def fit(params, batch, key):
    """The loss of a tiny network that can be fitted exactly."""
    return jaxrnn.squared_error(jaxrnn.affine(params, batch), batch[:, :2])


def sam(**options):
    return optax.contrib.sam(
        optax.sgd(0.3), optax.chain(optax.contrib.normalize(), optax.sgd(0.01)), **options
    )


# optimizers that name arguments of `update` beside the params, alone and within what hides that
WITH_EXTRA_ARGUMENTS = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.5),
    "reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.3), optax.contrib.reduce_on_plateau(patience=50)
    ),
    "sam": sam,
    "opaque sam": lambda: sam(opaque_mode=True),
    "sophia": lambda: optax.contrib.sophia(0.1, gamma=1.0, update_interval=1),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.5),
    "sam, chained": lambda: optax.chain(optax.clip_by_global_norm(9.0), sam(), optax.scale(0.5)),
    "sam, if finite": lambda: optax.apply_if_finite(sam(opaque_mode=True), 3),
    "polyak_sgd, masked": lambda: optax.masked(optax.polyak_sgd(0.5), True),
    "polyak_sgd, injected": lambda: optax.inject_hyperparams(optax.polyak_sgd)(0.5),
    "sgd, in two steps": lambda: optax.MultiSteps(optax.sgd(0.5), 2),
    "opaque sam, in two steps": lambda: optax.MultiSteps(sam(opaque_mode=True), 2),
    "sgd, transformed": lambda: optax.MultiSteps(optax.sgd(0.5), 2).gradient_transformation(),
}


@pytest.mark.parametrize("optimizer", WITH_EXTRA_ARGUMENTS.values(), ids=WITH_EXTRA_ARGUMENTS)
def test_optimizers_are_given_the_arguments_that_they_name(optimizer):
    # optax mixes dtypes in these
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optimizer()
        step, state = jaxrnn.make_train_step(fit, optimizer), new_state(optimizer)
        state, first = step(state, BATCHES[0])
        for _ in range(40):
            state, metrics = step(state, BATCHES[0])
    assert metrics["loss"] < 0.2 * first["loss"]


def of_arguments(*named):
    """An optimizer that takes these arguments alone, and keeps what they are of the params."""

    def made(value=None, grad=None, value_fn=None, grad_fn=None, obj_fn=None, *, params):
        return {
            "value": value,
            "grad": grad,
            "value_fn": value_fn and value_fn(params),
            "grad_fn": grad_fn and (grad_fn(params), grad_fn(params, 0)),
            "obj_fn": obj_fn and obj_fn(params),
        }

    def init(params):
        value, grad = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return made(value, grad, lambda _: value, lambda *_: grad, lambda _: value, params=params)

    def update(updates, state, params, **given):
        if set(given) != set(named):
            raise TypeError(f"takes {named}; got {[*given]}")
        return updates, {**state, **{k: made(**given, params=params)[k] for k in named}}

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize(
    "names",
    [
        ("value", "grad", "value_fn", "grad_fn", "obj_fn"),
        ("grad_fn",),
        ("grad", "obj_fn"),
        (),
    ],
    ids="-".join,
)
def test_an_argument_is_passed_where_it_is_named_and_is_what_it_says(names):
    optimizer = optax.chain(of_arguments(*names), optax.sgd(0.1))
    state, _ = jaxrnn.make_train_step(noisy_loss, optimizer)(new_state(optimizer), BATCHES[0])
    first = jax.random.fold_in(jax.random.key(1), 0)
    loss, gradient = jax.value_and_grad(noisy_loss)(new_params(), BATCHES[0], first)
    zero = jax.tree.map(jnp.zeros_like, gradient)
    expected = {
        "value": loss,
        "grad": gradient,
        "value_fn": loss,
        "grad_fn": (gradient, gradient),
        "obj_fn": loss,
    }
    nothing = {
        **dict.fromkeys(expected, jnp.zeros(())),
        "grad": zero,
        "grad_fn": (zero, zero),
    }
    assert_same(state.opt_state[0], {k: (expected if k in names else nothing)[k] for k in expected})


def test_an_optimizer_that_takes_no_set_of_arguments_says_what_it_said_first():
    # one needs the loss, the other refuses it
    optimizer = optax.chain(optax.polyak_sgd(0.5), of_arguments())
    step = jaxrnn.make_train_step(fit, optimizer)
    with pytest.raises(TypeError, match=r"takes \(\); got \['value', 'grad', 'value_fn'"):
        step(new_state(optimizer), BATCHES[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_trace_of_an_optimizer_whose_state_begins_weakly_typed(dtype):
    """In float32 with x64 on too, where the line search makes its trial params float64."""
    traces = []

    def loss_fn(params, batch, key):
        assert params.w.dtype == dtype
        traces.append(1)
        return fit(params, batch.astype(dtype), key)

    optimizer = optax.lbfgs()
    assert any(leaf.weak_type for leaf in jax.tree.leaves(optimizer.init(new_params())))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), new_params())
    with jax.numpy_dtype_promotion("standard"):
        state = jaxrnn.init_train_state(params, optimizer, jax.random.key(1))
        step = jaxrnn.make_train_step(loss_fn, optimizer)
        before = jax.tree.map(jax.typeof, state)
        state, first = step(state, BATCHES[0])
        assert jax.tree.map(jax.typeof, state) == before
        once = len(traces)
        for _ in range(5):
            state, metrics = step(state, BATCHES[0])
    assert len(traces) == once
    assert metrics["loss"] < 0.01 * first["loss"]


def test_a_state_that_is_not_donated_stays_usable():
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = jaxrnn.make_train_step(noisy_loss, optimizer, donate=False)
    state = new_state(optimizer)
    once, again = step(state, BATCHES[0]), step(state, BATCHES[0])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert_same((numbers(once[0]), once[1]), (numbers(again[0]), again[1]), 0)


def test_a_state_donated_before_is_refused():
    optimizer = optax.sgd(0.1)
    step, state = jaxrnn.make_train_step(noisy_loss, optimizer), new_state(optimizer)
    step(state, BATCHES[0])
    with pytest.raises(ValueError, match=r"`state` has been donated .* donate=False"):
        step(state, BATCHES[0])


@pytest.mark.parametrize("compiler_options", [None, "auto"])
def test_a_training_step_runs_within_other_transformations(compiler_options):
    """With the options of a CPU too, because there are none."""
    optimizer = optax.sgd(0.1)
    step = jaxrnn.make_train_step(noisy_loss, optimizer, compiler_options=compiler_options)
    expected, losses = run(step, new_state(optimizer))
    state, metrics = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))(
        new_state(optimizer), jnp.stack(BATCHES)
    )
    assert_same((numbers(state), metrics["loss"]), (numbers(expected), jnp.stack(losses)), 1e-12)

    # one state for several results cannot be donated
    step = jaxrnn.make_train_step(
        noisy_loss, optimizer, donate=False, compiler_options=compiler_options
    )
    fresh = new_state(optimizer)
    once = step(new_state(optimizer), BATCHES[0])[1]["loss"]
    (of_each,) = jax.vmap(lambda batch: (step(fresh, batch)[1]["loss"],))(jnp.stack(BATCHES))
    assert_same(of_each[0], once, 1e-12)

    def next_loss(params):
        state, _ = step(fresh._replace(params=params), BATCHES[0])
        return noisy_loss(state.params, BATCHES[1], jax.random.key(5))

    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(jax.grad(next_loss)(fresh.params)))


def test_the_options_of_a_gpu_are_known_to_this_xla():
    options = jaxrnn.compiler_options("gpu")
    assert "WHILE" in options["xla_gpu_enable_command_buffer"]
    assert options["xla_gpu_command_buffer_unroll_loops"] is True
    assert jaxrnn.compiler_options() == jaxrnn.compiler_options("cpu") == {}


def test_options_that_this_xla_refuses_are_left_out_with_those_that_need_them(monkeypatch):
    taken, refused = {"xla_gpu_graph_min_graph_size": 1}, {"xla_gpu_gone": True}
    groups = [taken, refused, {**refused, "xla_gpu_enable_triton_gemm": False}]
    monkeypatch.setitem(platforms._WORTH_SETTING, "of a test", groups)
    assert jaxrnn.compiler_options("of a test") == taken


def test_a_step_that_does_not_compile_with_its_options_says_so_and_keeps_the_state():
    optimizer = optax.sgd(0.1)
    options = {"xla_gpu_gone": True}
    step = jaxrnn.make_train_step(noisy_loss, optimizer, compiler_options=options)
    state = new_state(optimizer)
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option") as caught:
        step(state, BATCHES[0])
    (note,) = (n for n in caught.value.__notes__ if "compiler_options" in n)
    assert "compiler_options={'xla_gpu_gone': True}" in note
    assert "compiler_options=None" in note
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
