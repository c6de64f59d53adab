"""From hidden states to a loss: an affine head, two losses, and their handwritten gradients.

    y_t = h_t W_y + b_y                   dW_y = sum_t h_t^T dy_t,   db_y = sum_t dy_t,
                                          dh_t = dy_t W_y^T
    softmax cross-entropy                 dy = softmax(y) - onehot(label)
    squared error  1/2 |y - target|^2     dy = y - target,   dtarget = target - y

    weighted mean m = Σ w l / Σ w         dl_i = w_i / Σ w,   dw_i = (l_i - m) / Σ w

Both losses weight the positions (time steps, batch rows) that ``mask`` keeps, equally by default.
With nothing kept, or weights that sum to 0, the mean and its gradients are zero. A masked position
is never read: a NaN there changes nothing.

Means of microbatches with different numbers of valid positions do not average to the mean of the
whole batch. Add the gradients of ``reduction="sum"`` and the sums of ``weights`` (or the numbers of
kept positions), and divide once. The same holds inside a `jax.shard_map` of the caller's, where a
loss is that of the device's own rows.

Reference for both output gradients: C. M. Bishop, "Pattern recognition and machine learning",
2006, section 5.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import register_namedtuple_serialization

from jaxrnn import products
from jaxrnn.checks import (
    array,
    concrete,
    describe,
    floating,
    floating_dtype,
    lengths_of,
    size,
)
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.initializers import Initializer, glorot_uniform, zeros
from jaxrnn.sharding import of_one_layout, of_one_type

__all__ = [
    "AffineParams",
    "affine",
    "init_affine",
    "last_valid",
    "softmax_cross_entropy",
    "squared_error",
]


class AffineParams(NamedTuple):
    """Weights of `affine`: ``w [H, O]``, ``b [O]``."""

    w: jax.Array
    b: jax.Array


register_namedtuple_serialization(AffineParams, serialized_name="jaxrnn.AffineParams")


def init_affine(
    key: jax.Array,
    hidden_size: int,
    output_size: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    weight_init: Initializer = glorot_uniform,
    bias_init: Initializer = zeros,
) -> AffineParams:
    """Initial weights of an affine head, each initializer a function ``(key, shape, dtype)``."""
    H, O = size("hidden_size", hidden_size), size("output_size", output_size)
    dtype = floating_dtype("dtype", dtype)
    k_w, k_b = jax.random.split(key)
    return AffineParams(w=weight_init(k_w, (H, O), dtype), b=bias_init(k_b, (O,), dtype))


def affine(params: AffineParams, hs: jax.Array) -> jax.Array:
    """``hs [..., H] @ w + b -> [..., O]``: at every step, or at one, as ``hs`` has it.

    Raises:
        TypeError: ``params`` of another type; dtypes that differ.
        ValueError: shapes that do not fit.
    """
    if not isinstance(params, AffineParams):
        raise TypeError(f"`params` must be AffineParams; got {describe(params)}")
    params = AffineParams(floating("params.w", params.w), floating("params.b", params.b))
    hs = floating("hs", hs)
    if params.w.ndim != 2 or params.b.shape != params.w.shape[1:]:
        raise ValueError(f"`params` must hold w [H, O] and b [O]; got {describe(params)}")
    H = params.w.shape[0]
    if hs.ndim < 1 or hs.shape[-1] != H:
        raise ValueError(f"`hs` must be [..., {H=}]; got shape {hs.shape}")
    if not params.w.dtype == params.b.dtype == hs.dtype:
        raise TypeError(
            "`params` and `hs` must have one dtype; "
            f"got w {params.w.dtype}, b {params.b.dtype}, hs {hs.dtype}"
        )
    return _affine(*of_one_type(params, hs))


@jax.custom_vjp
def _affine(params: AffineParams, hs: jax.Array) -> jax.Array:
    """Textbook: the logits of rnn-2, lstm-7, net-2."""
    return products.affine(hs, params.w, params.b)


def _affine_fwd(params: AffineParams, hs: jax.Array) -> tuple[jax.Array, Any]:
    return products.affine(hs, params.w, params.b), (params, hs)


def _affine_bwd(residuals: Any, dys: jax.Array) -> tuple[AffineParams, jax.Array]:
    """Textbook: rnn-14, rnn-15, rnn-16, lstm-28, lstm-29, lstm-30, net-4, net-5."""
    params, hs = residuals
    dparams = AffineParams(
        w=products.weight_gradient(hs, dys).astype(params.w.dtype),
        b=products.bias_gradient(dys).astype(params.b.dtype),
    )
    return dparams, products.input_gradient(dys, params.w)


_affine.defvjp(_affine_fwd, _affine_bwd)


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    mask: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """The weighted mean, over the positions kept, of ``-log softmax(logits)[label]``.

    Args:
        logits: floating ``[..., O]``.
        labels: integers ``[...]`` in 0..O-1. Concrete labels outside raise where the mask keeps
            them; traced ones make the loss NaN, and the gradient of their position.
        mask: booleans ``[...]``, the positions to keep; None for all. `jaxrnn.valid_steps` makes
            it from lengths.
        weights: floating ``[...]``, at least 0; None for ones. A weight of zero multiplies the
            loss of its position, which is read; only the mask leaves a position unread. For
            weights by class, pass ``class_weights[labels]``.
        reduction: ``"none"`` for the loss of each position times its weight, zero where masked;
            ``"sum"`` for their sum; ``"mean"`` for that sum divided by the sum of the weights kept,
            or 0 if these sum to 0. Microbatches add up by their sums: see the module.

    Returns:
        A scalar, or ``[...]`` with ``reduction="none"``; float32 if the logits have 16 bits, else
        of their dtype.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: shapes that do not fit; labels out of range; concrete weights below zero where
            the mask keeps them; another reduction.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> logits, labels = jnp.array([[0.0, 0.0], [9.0, 9.0]]), jnp.array([0, 1])
        >>> print(jax.grad(jaxrnn.softmax_cross_entropy)(logits, labels))
        [[-0.25  0.25]
         [ 0.25 -0.25]]
    """
    logits = floating("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(
            f"`logits` must be [..., O] of at least one class; got shape {logits.shape}"
        )
    O = logits.shape[-1]
    kept = _validate_mask(mask, logits)
    given, labels = labels, array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers; got dtype {labels.dtype}")
    if labels.shape != kept.shape:
        raise ValueError(
            f"`labels` must have the shape of `logits` without its last axis, {kept.shape}; "
            f"got shape {labels.shape}"
        )
    values = _kept_values(given, mask)
    if values is not None and values.size and (values.min() < 0 or values.max() >= O):
        raise ValueError(
            f"`labels` must lie in 0..{O - 1}, the classes of `logits`; "
            f"got values from {values.min()} to {values.max()}"
        )
    reduce, weights = _validate_reduction(reduction), _validate_weights(weights, mask, kept)
    logits, labels, kept, weights = of_one_type(*of_one_layout(logits, labels, kept, weights))
    return reduce(_softmax_cross_entropy(logits, labels, kept), weights)


def _cross_entropies(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """The loss of each position, zero where masked. Textbook: rnn-12, lstm-26, net-3."""
    logits, chosen = _softmax_inputs(logits, labels, mask)
    losses = -jnp.sum(jnp.where(chosen, jax.nn.log_softmax(logits), 0), axis=-1)
    return _nan_unless_chosen(losses, chosen, mask)


_softmax_cross_entropy = jax.custom_vjp(_cross_entropies)


def _softmax_cross_entropy_fwd(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Any]:
    return _cross_entropies(logits, labels, mask), (logits, labels, mask)


def _softmax_cross_entropy_bwd(residuals: Any, dlosses: jax.Array) -> tuple[jax.Array, None, None]:
    """Textbook: rnn-13, lstm-27."""
    wide, chosen = _softmax_inputs(*residuals)
    logits, _, mask = residuals
    dlosses = _nan_unless_chosen(dlosses, chosen, mask)
    dlogits = (jax.nn.softmax(wide) - chosen.astype(wide.dtype)) * dlosses[..., None]
    return jnp.where(mask[..., None], dlogits, 0).astype(logits.dtype), None, None


_softmax_cross_entropy.defvjp(_softmax_cross_entropy_fwd, _softmax_cross_entropy_bwd)


def _softmax_inputs(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kept logits in the accumulation dtype, and which class is each position's label."""
    wide = logits.astype(accumulation_dtype(logits.dtype))
    # in 32 bits at least: narrower labels could not be compared with more classes than they hold
    labels = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.broadcast_to(labels[..., None], logits.shape) == classes
    return jnp.where(mask[..., None], wide, 0), chosen


def _nan_unless_chosen(values: jax.Array, chosen: jax.Array, mask: jax.Array) -> jax.Array:
    """NaN at the kept positions whose label names no class, because no error can be raised there.

    In the gradient too: an optimizer that skips what is not finite sees nothing else.
    """
    return jnp.where(jnp.any(chosen, axis=-1) | ~mask, values, jnp.nan)


def squared_error(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """The weighted mean, over the positions kept, of ``1/2 |prediction - target|^2``.

    The square is summed over the last axis and halved, so that a position's gradient is its error;
    for the mean over the last axis too, multiply by 2/O.

    Args:
        predictions: floating ``[..., O]``.
        targets: ``[..., O]``, of the same dtype.
        mask: booleans ``[...]``, the positions to keep; None for all.
        weights: floating ``[...]``, at least 0; as in `softmax_cross_entropy`.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``; as in `softmax_cross_entropy`.

    Returns:
        A scalar, or ``[...]`` with ``reduction="none"``; float32 if the predictions have 16 bits,
        else of their dtype.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: shapes that do not fit; concrete weights below zero where the mask keeps them;
            another reduction.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> print(jaxrnn.squared_error(jnp.array([[3.0], [1.0]]), jnp.array([[1.0], [1.0]])))
        1.0
    """
    predictions, targets = floating("predictions", predictions), floating("targets", targets)
    if predictions.ndim < 1:
        raise ValueError(f"`predictions` must be [..., O]; got shape {predictions.shape}")
    if targets.shape != predictions.shape:
        raise ValueError(
            f"`targets` must have the shape of `predictions`, {predictions.shape}; "
            f"got shape {targets.shape}"
        )
    if targets.dtype != predictions.dtype:
        raise TypeError(
            f"`targets` must have the dtype of `predictions`, {predictions.dtype}; "
            f"got {targets.dtype}"
        )
    kept = _validate_mask(mask, predictions)
    reduce, weights = _validate_reduction(reduction), _validate_weights(weights, mask, kept)
    predictions, targets, kept, weights = of_one_type(
        *of_one_layout(predictions, targets, kept, weights)
    )
    return reduce(_squared_error(predictions, targets, kept), weights)


def _squared_errors(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The loss of each position, zero where masked."""
    errors = _errors(predictions, targets, mask)
    return 0.5 * jnp.sum(errors * errors, axis=-1)


_squared_error = jax.custom_vjp(_squared_errors)


def _squared_error_fwd(
    predictions: jax.Array, targets: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Any]:
    return _squared_errors(predictions, targets, mask), (predictions, targets, mask)


def _squared_error_bwd(residuals: Any, dlosses: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    """Textbook: step-8."""
    predictions, _, mask = residuals
    # the product is masked too, because a cotangent of inf times an error of zero is NaN
    dpredictions = jnp.where(mask[..., None], _errors(*residuals) * dlosses[..., None], 0)
    dpredictions = dpredictions.astype(predictions.dtype)
    return dpredictions, -dpredictions, None


_squared_error.defvjp(_squared_error_fwd, _squared_error_bwd)


def _errors(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """``prediction - target`` in the accumulation dtype, zero where masked."""
    wide = accumulation_dtype(predictions.dtype)
    return jnp.where(mask[..., None], predictions.astype(wide) - targets.astype(wide), 0)


def _weighted(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """``w_i l_i``. Its adjoint is these factors themselves, so it has no rule."""
    return losses * weights.astype(losses.dtype)


def _weighted_sum(losses: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(_weighted(losses, weights))


def _weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    return _mean(losses, weights.astype(losses.dtype))


@jax.custom_vjp
def _mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """``sum_i w_i l_i / sum_i w_i``; 0 if the weights sum to 0."""
    return _per_total(jnp.sum(losses * weights), weights)


def _mean_fwd(losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, Any]:
    mean = _per_total(jnp.sum(losses * weights), weights)
    return mean, (losses, weights, mean)


def _mean_bwd(residuals: Any, dmean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``dl_i = dm w_i / sum_j w_j`` and ``dw_i = dm (l_i - m) / sum_j w_j``."""
    losses, weights, mean = residuals
    return dmean * _per_total(weights, weights), dmean * _per_total(losses - mean, weights)


_mean.defvjp(_mean_fwd, _mean_bwd)


def _per_total(values: jax.Array, weights: jax.Array) -> jax.Array:
    """``values / sum(weights)``; 0 if that sum is 0."""
    total = jnp.sum(weights)
    empty = total == 0
    # the inner choice keeps the division by zero out of the derivative of this
    return jnp.where(empty, 0, values / jnp.where(empty, 1, total))


_REDUCTIONS = {"mean": _weighted_mean, "none": _weighted, "sum": _weighted_sum}


def last_valid(hs: jax.Array, lengths: jax.Array) -> jax.Array:
    """``hs [T, ..., H]`` at each row's last valid step, ``[..., H]``; zero for length 0.

    For many-to-one networks. After one `jaxrnn.unroll` with ``reverse=False`` it equals
    ``final_state.h``, except that there a row of length 0 holds the initial state. Reversed, the
    final state belongs to step 0, and ``last_valid`` is the output of the step that ran first.

    Raises:
        TypeError: ``lengths`` that are not integers.
        ValueError: shapes that do not fit; concrete lengths outside 0..T.
    """
    hs = array("hs", hs)
    if hs.ndim < 2:
        raise ValueError(f"`hs` must be [T, ..., H]; got shape {hs.shape}")
    T = hs.shape[0]
    lengths = lengths_of(lengths, T, hs.shape[1:-1], like="hs")
    if T == 0:
        return jnp.zeros(hs.shape[1:], hs.dtype)
    last = jnp.maximum(lengths - 1, 0)[None, ..., None]
    h = jnp.take_along_axis(hs, last, axis=0, mode="clip")[0]
    return jnp.where((lengths > 0)[..., None], h, 0)


def _validate_mask(mask: Any, y: jax.Array) -> jax.Array:
    """The positions of ``y [..., O]`` to keep."""
    if mask is None:
        # made of y, so that it is laid out as y is; O may be 0
        return jnp.all(jnp.ones_like(y[..., :1], jnp.bool_), axis=-1)
    shape = y.shape[:-1]
    mask = array("mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"`mask` must be booleans; got dtype {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(
            f"`mask` must have one entry per position, shape {shape}; got shape {mask.shape}"
        )
    return mask


def _validate_weights(weights: Any, mask: Any, kept: jax.Array) -> jax.Array:
    """The weights of the positions kept, zero elsewhere; the mask itself if None."""
    if weights is None:
        return kept
    given, weights = weights, array("weights", weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(
            f"`weights` must have a floating dtype; got {weights.dtype} (pass booleans as `mask`)"
        )
    if weights.shape != kept.shape:
        raise ValueError(
            f"`weights` must have one entry per position, shape {kept.shape}; "
            f"got shape {weights.shape}"
        )
    values = _kept_values(given, mask)
    if values is not None and (values < 0).any():
        raise ValueError(f"`weights` must be at least 0; got a least value of {values.min()}")
    return jnp.where(kept, weights, 0)


def _validate_reduction(reduction: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The reduction of that name."""
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        names = ", ".join(f"'{name}'" for name in _REDUCTIONS)
        raise ValueError(f"`reduction` must be one of {names}; got {reduction!r}")
    return _REDUCTIONS[reduction]


def _kept_values(given: Any, mask: Any) -> np.ndarray | None:
    """The values where the mask holds, or None if the values or the mask are traced."""
    values, known = concrete(given), concrete(True if mask is None else mask)
    if values is None or known is None:
        return None
    return values[np.broadcast_to(known, values.shape)]
