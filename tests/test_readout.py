"""The head and the losses: their rules are autodiff's of the plain formulas, also where masked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from support.problems import assert_same, random_tree

import jaxrnn
from jaxrnn import AffineParams
from jaxrnn.testing import relative_differences

T, B, H, O = 5, 3, 4, 6
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(T, B, O)))
LABELS = jnp.asarray(RNG.integers(0, O, size=(T, B)), jnp.int32)
TARGETS = jnp.asarray(RNG.normal(size=(T, B, O)))
MASK = jnp.asarray(RNG.random(size=(T, B)) < 0.6)
WEIGHTS = jnp.asarray(RNG.uniform(0.5, 2, size=(T, B)))
SHAPES = [(), (1,), (B,), (T, B), (2, T, B)]


def reduced(losses, mask=None, weights=None, reduction="mean"):
    """The plain formulas: a sum over what is kept, divided by how much that is."""
    if mask is None and weights is None and reduction == "mean":
        return jnp.mean(losses)
    weights = jnp.ones_like(losses) if weights is None else weights
    weights = weights if mask is None else weights * mask.astype(losses.dtype)
    return {
        "none": losses * weights,
        "sum": jnp.sum(losses * weights),
        "mean": jnp.sum(losses * weights) / jnp.sum(weights),
    }[reduction]


def plain_cross_entropy(logits, labels, **options):
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return reduced(losses, **options)


def plain_squared_error(predictions, targets, **options):
    return reduced(jnp.sum(optax.losses.l2_loss(predictions, targets), axis=-1), **options)


LOSSES = {
    "softmax_cross_entropy": (jaxrnn.softmax_cross_entropy, plain_cross_entropy, LABELS),
    "squared_error": (jaxrnn.squared_error, plain_squared_error, TARGETS),
}


@pytest.fixture(params=LOSSES)
def loss(request):
    """(the loss, its plain formula, what [T, B, O] is compared with)."""
    return LOSSES[request.param]


def value_and_gradients(loss_fn, y, other, mask, scale=1.7):
    """Of everything that has a gradient, with a cotangent other than 1."""
    argnums = (0, 1) if jnp.issubdtype(other.dtype, jnp.floating) else (0,)

    def scaled(y, other):
        return scale * loss_fn(y, other, mask=mask)

    return jax.jit(jax.value_and_grad(scaled, argnums))(y, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_the_plain_formula(loss, shape, masked):
    rule, plain, other = loss
    y = random_tree(jax.ShapeDtypeStruct((*shape, O), jnp.float64), seed=1)
    other = jnp.resize(other, shape if other.ndim == 2 else (*shape, O))
    mask = jnp.resize(MASK, shape) if masked else None
    assert mask is None or mask.any()
    assert_same(
        value_and_gradients(rule, y, other, mask), value_and_gradients(plain, y, other, mask)
    )


REDUCTIONS = ["mean", "sum", "none"]


def value_and_every_gradient(loss_fn, y, other, *, mask, weights, reduction):
    """Of the loss times a random cotangent; the gradients of the weights are the last."""
    cotangent = random_tree(WEIGHTS if reduction == "none" else jnp.zeros(()), seed=6)

    def scalar(y, other, weights):
        value = loss_fn(y, other, mask=mask, weights=weights, reduction=reduction)
        return jnp.vdot(value.astype(cotangent.dtype), cotangent), value

    argnums = (0, 1, 2) if jnp.issubdtype(other.dtype, jnp.floating) else (0, 2)
    pull = jax.jit(jax.value_and_grad(scalar, argnums, has_aux=True))
    (_, value), gradients = pull(y, other, weights)
    return value, gradients


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_and_reductions_are_the_plain_formulas(loss, reduction):
    """Eagerly too; and nothing masked is read, a weight neither."""
    rule, plain, other = loss
    options = {"mask": MASK, "weights": WEIGHTS, "reduction": reduction}
    expected = value_and_every_gradient(plain, LOGITS, other, **options)
    options["weights"] = jnp.where(MASK, WEIGHTS, jnp.nan)
    poisoned = jnp.where(MASK[..., None], LOGITS, jnp.nan)
    actual = value_and_every_gradient(rule, poisoned, other, **options)
    # the plain formula reads a masked loss, so that its weight has a gradient
    masked = jnp.where(MASK, expected[1][-1], 0)
    assert_same(actual, (expected[0], (*expected[1][:-1], masked)))
    assert_same(rule(poisoned, other, **options), expected[0])
    without = rule(poisoned, other, mask=MASK, reduction=reduction)
    assert_same(without, plain(LOGITS, other, mask=MASK, reduction=reduction))


def test_a_weight_counts_as_so_many_copies_of_its_position(loss):
    rule, _, other = loss
    copies = np.array([0, 3, 1, 2, 0])
    y, other = LOGITS[:, 0], other[:, 0]
    repeated = rule(jnp.repeat(y, copies, axis=0), jnp.repeat(other, copies, axis=0))
    assert_same(rule(y, other, weights=copies.astype(np.float64)), repeated)


def test_microbatches_add_up_by_their_sums(loss):
    """The sum of gradients over the sum of weights is the whole batch's; a mean of means is not."""
    rule, _, other = loss
    lengths = jnp.array([5, 1, 2])
    mask = jaxrnn.valid_steps(lengths, T)

    def gradient(rows, reduction):
        def loss(y):
            options = {"mask": mask[:, rows], "weights": WEIGHTS[:, rows], "reduction": reduction}
            return rule(y[:, rows], other[:, rows], **options)

        return jax.grad(loss)(LOGITS)

    microbatches = [slice(0, 1), slice(1, 3)]
    whole = gradient(slice(None), "mean")
    count = sum(jnp.sum(jnp.where(mask, WEIGHTS, 0)[:, rows]) for rows in microbatches)
    assert_same(sum(gradient(rows, "sum") for rows in microbatches) / count, whole)
    of_means = sum(gradient(rows, "mean") for rows in microbatches) / 2
    assert max(relative_differences(of_means, whole).values()) > 0.2


def test_second_derivatives_of_losses(loss):
    """Forward over the rule, and the rule by itself; NaN where masked stays out of both."""
    rule, plain, other = loss
    directions = random_tree((LOGITS, WEIGHTS), seed=2)
    directions = (directions[0], jnp.where(MASK, directions[1], 0))

    def second(loss_fn, *inputs):
        def f(y, weights):
            return jnp.sin(loss_fn(y, other, mask=MASK, weights=weights))

        def slope(*inputs):
            gradients = jax.grad(f, argnums=(0, 1))(*inputs)
            # the plain formula reads masked losses
            return jnp.vdot(gradients[0], directions[0]) + jnp.vdot(gradients[1], directions[1])

        def run(*inputs):
            forward = jax.jvp(jax.grad(f), inputs, directions)[1]
            return forward, jax.grad(slope, argnums=(0, 1))(*inputs)

        forward, (dy, dweights) = jax.jit(run)(*inputs)
        return forward, dy, jnp.where(MASK, dweights, 0)

    expected = second(plain, LOGITS, WEIGHTS)
    assert_same(second(rule, LOGITS, WEIGHTS), expected)
    poisoned = jnp.where(MASK[..., None], LOGITS, jnp.nan)
    assert_same(second(rule, poisoned, jnp.where(MASK, WEIGHTS, jnp.nan)), expected)


def test_hessian_of_cross_entropy():
    """diag(p) - p p^T of each position's probabilities."""
    logits, labels = LOGITS[0, 0], LABELS[0, 0]
    p = jax.nn.softmax(logits)
    hessian = jax.jit(jax.hessian(lambda y: jaxrnn.softmax_cross_entropy(y, labels)))(logits)
    assert_same(hessian, jnp.diag(p) - jnp.outer(p, p))


def test_losses_under_vmap(loss):
    rule, _, other = loss
    mask = MASK.at[:, 0].set(True)

    def gradient(y, other, mask, weights):
        def mapped(y, weights):
            return rule(y, other, mask=mask, weights=weights)

        return jax.value_and_grad(mapped, argnums=(0, 1))(y, weights)

    mapped = jax.jit(jax.vmap(gradient, in_axes=1))(LOGITS, other, mask, WEIGHTS)
    rows = [gradient(LOGITS[:, b], other[:, b], mask[:, b], WEIGHTS[:, b]) for b in range(B)]
    assert_same(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


BAD_LABELS = [-1, O, O + 100, -(2**31), 2**31 - 1]


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_masked_is_never_read(loss, poison):
    rule, _, other = loss
    expected = value_and_gradients(rule, LOGITS, other, MASK)
    poisoned = jnp.where(MASK[..., None], LOGITS, poison)
    if other.ndim == 2:
        bad = jnp.resize(jnp.array(BAD_LABELS, jnp.int32), MASK.shape)
        others = jnp.where(MASK, other, bad)
    else:
        others = jnp.where(MASK[..., None], other, poison)
    actual = value_and_gradients(rule, poisoned, others, MASK)
    assert_same(actual, expected, 0)
    for gradient in actual[1]:
        np.testing.assert_array_equal(gradient[~MASK], 0)


@pytest.mark.parametrize("case", ["all masked", "no positions"])
def test_nothing_to_average_is_zero(loss, case):
    rule, _, other = loss
    y, mask = jnp.full((T, B, O), jnp.nan), jnp.zeros((T, B), jnp.bool_)
    if case == "no positions":
        y, other, mask = y[:0], other[:0], None
    value, gradients = value_and_gradients(rule, y, other, mask)
    assert value == 0
    for gradient in gradients:
        assert gradient.shape == y.shape
        np.testing.assert_array_equal(gradient, 0)


def test_weights_that_sum_to_zero_are_a_mean_of_zero(loss):
    rule, _, other = loss
    weights = jnp.zeros((T, B))

    def gradients(*inputs):
        def mean(y, weights):
            return rule(y, other, weights=weights)

        return jax.value_and_grad(mean, argnums=(0, 1))(*inputs)

    def slope(*inputs):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradients(*inputs)))

    run = jax.jit(lambda *inputs: (gradients(*inputs), jax.grad(slope, (0, 1))(*inputs)))
    for leaf in jax.tree.leaves(run(LOGITS, weights)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.fixture(scope="module")
def traced_cross_entropy():
    """Value and gradient, compiled for any labels and mask."""

    def loss_fn(logits, labels, mask):
        return jaxrnn.softmax_cross_entropy(logits, labels, mask=mask)

    return jax.jit(jax.value_and_grad(loss_fn))


@pytest.mark.parametrize("label", BAD_LABELS)
def test_traced_label_out_of_range_is_nan(label, traced_cross_entropy):
    """In the loss and in the gradient of its own position; masked, it is not read."""
    keep = jnp.ones((T, B), jnp.bool_)
    _, expected = traced_cross_entropy(LOGITS, LABELS, keep)
    labels = LABELS.at[1, 2].set(label)
    value, gradient = traced_cross_entropy(LOGITS, labels, keep)
    assert jnp.isnan(value)
    np.testing.assert_array_equal(gradient, expected.at[1, 2].set(jnp.nan))
    without = keep.at[1, 2].set(False)
    value, gradient = traced_cross_entropy(LOGITS, labels, without)
    assert_same((value, gradient), traced_cross_entropy(LOGITS, LABELS.at[1, 2].set(0), without), 0)
    assert jnp.isfinite(value)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int64, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """Also where there are more classes than the labels' dtype can count."""
    logits = jnp.asarray(RNG.normal(size=(4, 300)))
    labels = jnp.array([0, 1, 99, 127], dtype)
    assert_same(
        value_and_gradients(jaxrnn.softmax_cross_entropy, logits, labels, None)[0],
        1.7 * plain_cross_entropy(logits, labels.astype(jnp.int32)),
    )


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_large_logits_are_stable(dtype):
    """A gap of 2e4 between the classes: the loss is the gap, or zero, and never overflows."""
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], dtype)
    labels = jnp.array([1, 0])
    value, (gradient,) = value_and_gradients(
        jaxrnn.softmax_cross_entropy, logits, labels, None, scale=1
    )
    gap = float(logits[0, 0]) - float(logits[0, 1])
    assert float(value) == pytest.approx(gap / 2, rel=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient, np.float64), [[0.5, -0.5, 0], [0, 0, 0]])


def test_impossible_classes_have_no_gradient():
    """A logit of -inf excludes its class: 0 * log(0) must not become NaN."""
    logits = jnp.where(jnp.arange(O) < 4, LOGITS[:, 0], -jnp.inf)
    labels = jnp.array([0, 1, 2, 3, 0])
    value, (gradient,) = value_and_gradients(jaxrnn.softmax_cross_entropy, logits, labels, None)
    expected, (kept,) = value_and_gradients(
        jaxrnn.softmax_cross_entropy, logits[:, :4], labels, None
    )
    assert_same((value, gradient[:, :4]), (expected, kept))
    np.testing.assert_array_equal(gradient[:, 4:], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_of_sixteen_bits(loss, dtype):
    """float32 inside and as the loss; the gradient is rounded once, on its way out."""
    rule, _, other = loss
    y = LOGITS.astype(dtype)
    narrow, wide = other, other
    if other.ndim == 3:
        narrow = other.astype(dtype)
        wide = narrow.astype(jnp.float64)
    value, gradients = value_and_gradients(rule, y, narrow, MASK)
    exact = value_and_gradients(rule, y.astype(jnp.float64), wide, MASK)
    assert value.dtype == jnp.float32
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(dtype)}
    assert_same(value.astype(jnp.float64), exact[0], 1e-6)
    widened = tuple(gradient.astype(jnp.float64) for gradient in gradients)
    assert_same(widened, exact[1], float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("dtype", "of_weights"), [(jnp.bfloat16, jnp.float16), (jnp.float32, jnp.float64)]
)
def test_weights_may_have_another_dtype(loss, dtype, of_weights):
    """They are summed in the loss's dtype, and their gradient has their own."""
    rule, _, other = loss
    narrow = other.astype(dtype) if other.ndim == 3 else other
    wide = narrow.astype(jnp.float64) if other.ndim == 3 else other
    options = {"mask": MASK, "reduction": "mean"}
    y, weights = LOGITS.astype(dtype), WEIGHTS.astype(of_weights)
    value, gradients = value_and_every_gradient(rule, y, narrow, weights=weights, **options)
    assert value.dtype == jnp.float32
    assert [gradient.dtype for gradient in gradients] == [
        *[dtype] * (len(gradients) - 1),
        of_weights,
    ]
    y, weights = y.astype(jnp.float64), weights.astype(jnp.float64)
    exact = value_and_every_gradient(rule, y, wide, weights=weights, **options)
    assert_same(value.astype(jnp.float64), exact[0], 1e-6)
    widened = tuple(gradient.astype(jnp.float64) for gradient in gradients)
    assert_same(widened, exact[1], 10 * float(jnp.finfo(dtype).eps))


PARAMS = AffineParams(w=jnp.asarray(RNG.normal(size=(H, O))), b=jnp.asarray(RNG.normal(size=O)))


@pytest.mark.parametrize("shape", [(0,), *SHAPES])
def test_affine_is_the_plain_formula(shape):
    hs = random_tree(jax.ShapeDtypeStruct((*shape, H), jnp.float64), seed=3)

    def plain(params, hs):
        return jnp.einsum("...h,ho->...o", hs, params.w) + jnp.broadcast_to(params.b, (*shape, O))

    def pulled(f):
        def run(params, hs):
            ys, pull = jax.vjp(f, params, hs)
            return ys, pull(random_tree(ys, seed=4))

        return jax.jit(run)(PARAMS, hs)

    assert_same(pulled(jaxrnn.affine), pulled(plain))


def test_affine_twice_differentiated_and_mapped():
    check_grads(
        jax.jit(lambda params, hs: jnp.sin(jaxrnn.affine(params, hs))),
        (PARAMS, LOGITS[:2, :, :H]),
        order=2,
        modes=["rev"],
    )
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), PARAMS)
    mapped = jax.vmap(jaxrnn.affine)(stacked, LOGITS[:2, :, :H])
    assert_same(mapped[1], 2 * jaxrnn.affine(PARAMS, LOGITS[1, :, :H]))


def test_network_with_head_and_loss_equals_autodiff():
    """The three rules chained, over all steps and at the last valid one."""
    cell = jaxrnn.GRU
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), O, H, dtype=jnp.float64))
    params = random_tree(params, seed=5)
    lengths = jnp.array([T, 0, 2])
    mask = jaxrnn.valid_steps(lengths, T)

    def rule(params, head):
        _, hs = jaxrnn.unroll(cell, params, LOGITS, lengths=lengths)
        last = jaxrnn.affine(head, jaxrnn.last_valid(hs, lengths))
        every = jaxrnn.softmax_cross_entropy(jaxrnn.affine(head, hs), LABELS, mask=mask)
        return every + jaxrnn.softmax_cross_entropy(last, LABELS[0], mask=lengths > 0)

    def plain(params, head):
        (h, *_), hs = jaxrnn.unroll_reference(cell, params, LOGITS, lengths=lengths)
        b = jnp.broadcast_to(head.b, (T, B, O))
        every = plain_cross_entropy(hs @ head.w + b, LABELS, mask=mask)
        return every + plain_cross_entropy(h @ head.w + b[0], LABELS[0], mask=lengths > 0)

    def run(f):
        return jax.jit(jax.value_and_grad(f, (0, 1)))(params, PARAMS)

    assert_same(run(rule), run(plain))


def test_valid_steps_is_the_first_of_each_row():
    lengths = jnp.array([[0, 1, 5], [3, 5, 2]])
    mask = jaxrnn.valid_steps(lengths, T)
    assert mask.shape == (T, 2, 3)
    assert mask.dtype == jnp.bool_
    for t in range(T):
        np.testing.assert_array_equal(mask[t], t < np.asarray(lengths))
    assert jaxrnn.valid_steps(jnp.zeros(3, jnp.int32), 0).shape == (0, 3)
    np.testing.assert_array_equal(jaxrnn.valid_steps(jnp.array(2), 3), [True, True, False])
    # traced values are clipped
    wild = jax.jit(lambda lengths: jaxrnn.valid_steps(lengths, T))(jnp.array([-3, T + 3]))
    np.testing.assert_array_equal(wild, np.tile([False, True], (T, 1)))


def test_last_valid_is_the_last_valid_step():
    hs = LOGITS
    lengths = jnp.array([0, T, 2])
    expected = jnp.stack([jnp.zeros(O), hs[T - 1, 1], hs[1, 2]])
    assert_same(jaxrnn.last_valid(hs, lengths), expected, 0)
    assert_same(jaxrnn.last_valid(hs[:, 2], jnp.array(2)), hs[1, 2], 0)
    nested = jaxrnn.last_valid(jnp.stack([hs, 2 * hs], axis=1), jnp.stack([lengths, lengths]))
    assert_same(nested, jnp.stack([expected, 2 * expected]), 0)
    empty = jaxrnn.last_valid(hs[:0].astype(jnp.float16), jnp.zeros(B, jnp.int32))
    assert_same(empty, jnp.zeros((B, O), jnp.float16))


def test_last_valid_reads_and_pulls_that_step_alone():
    lengths = jnp.array([0, T, 2])
    last = jnp.zeros((T, B), jnp.bool_).at[T - 1, 1].set(True).at[1, 2].set(True)
    poisoned = jnp.where(last[..., None], LOGITS, jnp.nan)
    h, pull = jax.vjp(lambda hs: jaxrnn.last_valid(hs, lengths), poisoned)
    assert_same(h, jaxrnn.last_valid(LOGITS, lengths), 0)
    (dhs,) = pull(jnp.ones((B, O)))
    np.testing.assert_array_equal(dhs, np.broadcast_to(np.asarray(last)[..., None], dhs.shape))


def test_last_valid_is_the_final_state(cell):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), O, H, dtype=jnp.float64))
    lengths = jnp.array([0, T, 2])
    final_state, hs = jaxrnn.unroll(cell, random_tree(params), LOGITS, lengths=lengths)
    assert_same(jaxrnn.last_valid(hs, lengths), final_state.h, 0)


def test_reversed_the_last_valid_step_ran_first():
    cell, lengths = jaxrnn.ELMAN, jnp.array([1, T, 2])
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), O, H, dtype=jnp.float64))
    params = random_tree(params)
    final_state, hs = jaxrnn.unroll(cell, params, LOGITS, lengths=lengths, reverse=True)
    assert_same(final_state.h, hs[0])
    x = jaxrnn.last_valid(LOGITS, lengths)
    _, first = cell.step(params, cell.initial_state(params, (B,)), x)
    assert_same(jaxrnn.last_valid(hs, lengths), first)
