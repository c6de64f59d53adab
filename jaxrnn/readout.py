"""From hidden states to a loss: an affine head, two losses, and their handwritten gradients.

    y_t = h_t W_y + b_y                   dW_y = sum_t h_t^T dy_t,   db_y = sum_t dy_t,
                                          dh_t = dy_t W_y^T
    softmax cross-entropy                 dy = softmax(y) - onehot(label)
    squared error  1/2 |y - target|^2     dy = y - target,   dtarget = target - y

Both losses are means over the positions (time steps, batch rows) that ``mask`` keeps, so each
position's gradient is divided by their number; with nothing kept, loss and gradients are zero.
What a masked position holds is never read: a NaN there changes nothing.

Reference for both output gradients: C. M. Bishop, "Pattern recognition and machine learning",
2006, section 5.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import register_namedtuple_serialization

from jaxrnn import products
from jaxrnn.initializers import Initializer, glorot_uniform, zeros
from jaxrnn.validation import (
    array,
    concrete,
    describe,
    floating,
    floating_dtype,
    lengths_of,
    size,
)

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
    return _affine(params, hs)


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
    logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """The mean over the positions kept of ``-log softmax(logits)[label]``.

    Args:
        logits: floating ``[..., O]``.
        labels: integers ``[...]`` in 0..O-1. Concrete labels outside raise where the mask keeps
            them; traced ones make the loss NaN.
        mask: booleans ``[...]``, the positions to keep; None for all. `jaxrnn.valid_steps` makes
            it from lengths.

    Returns:
        A scalar; float32 if the logits have 16 bits, else of their dtype.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: shapes that do not fit; labels out of range.

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
    *positions, O = logits.shape
    kept = _validate_mask(mask, tuple(positions))
    given, labels = labels, array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers; got dtype {labels.dtype}")
    if labels.shape != kept.shape:
        raise ValueError(
            f"`labels` must have the shape of `logits` without its last axis, {kept.shape}; "
            f"got shape {labels.shape}"
        )
    values, known = concrete(given), concrete(True if mask is None else mask)
    if values is not None and known is not None:
        values = values[np.broadcast_to(known, values.shape)]
        if values.size and (values.min() < 0 or values.max() >= O):
            raise ValueError(
                f"`labels` must lie in 0..{O - 1}, the classes of `logits`; "
                f"got values from {values.min()} to {values.max()}"
            )
    return _softmax_cross_entropy(logits, labels, kept)


def _mean_cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Textbook: rnn-12, lstm-26, net-3, as a mean."""
    logits, chosen = _softmax_inputs(logits, labels, mask)
    losses = -jnp.sum(jnp.where(chosen, jax.nn.log_softmax(logits), 0), axis=-1)
    # a label that names no class has no loss: say so, where nothing could raise
    losses = jnp.where(jnp.any(chosen, axis=-1) | ~mask, losses, jnp.nan)
    return jnp.sum(jnp.where(mask, losses, 0)) * _share(mask, losses.dtype)


_softmax_cross_entropy = jax.custom_vjp(_mean_cross_entropy)


def _softmax_cross_entropy_fwd(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Any]:
    return _mean_cross_entropy(logits, labels, mask), (logits, labels, mask)


def _softmax_cross_entropy_bwd(residuals: Any, dloss: jax.Array) -> tuple[jax.Array, None, None]:
    """Textbook: rnn-13, lstm-27, as a mean."""
    wide, chosen = _softmax_inputs(*residuals)
    logits, _, mask = residuals
    dlogits = (jax.nn.softmax(wide) - chosen.astype(wide.dtype)) * (
        dloss * _share(mask, wide.dtype)
    )
    return jnp.where(mask[..., None], dlogits, 0).astype(logits.dtype), None, None


_softmax_cross_entropy.defvjp(_softmax_cross_entropy_fwd, _softmax_cross_entropy_bwd)


def _softmax_inputs(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kept logits in the accumulation dtype, and which class is each position's label."""
    wide = logits.astype(products.accumulation_dtype(logits.dtype))
    # in 32 bits at least: narrower labels could not be compared with more classes than they hold
    labels = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.broadcast_to(labels[..., None], logits.shape) == classes
    return jnp.where(mask[..., None], wide, 0), chosen


def squared_error(
    predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """The mean over the positions kept of ``1/2 |prediction - target|^2``.

    The square is summed over the last axis and halved, so that a position's gradient is its error;
    for the mean over the last axis too, multiply by 2/O.

    Args:
        predictions: floating ``[..., O]``.
        targets: ``[..., O]``, of the same dtype.
        mask: booleans ``[...]``, the positions to keep; None for all.

    Returns:
        A scalar; float32 if the predictions have 16 bits, else of their dtype.

    Raises:
        TypeError: an argument of another dtype.
        ValueError: shapes that do not fit.

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
    return _squared_error(predictions, targets, _validate_mask(mask, predictions.shape[:-1]))


def _mean_squared_error(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    errors = _errors(predictions, targets, mask)
    return jnp.sum(errors * errors) * (0.5 * _share(mask, errors.dtype))


_squared_error = jax.custom_vjp(_mean_squared_error)


def _squared_error_fwd(
    predictions: jax.Array, targets: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Any]:
    return _mean_squared_error(predictions, targets, mask), (predictions, targets, mask)


def _squared_error_bwd(residuals: Any, dloss: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    """Textbook: step-8, as a mean."""
    predictions, _, mask = residuals
    errors = _errors(*residuals)
    dpredictions = (errors * (dloss * _share(mask, errors.dtype))).astype(predictions.dtype)
    return dpredictions, -dpredictions, None


_squared_error.defvjp(_squared_error_fwd, _squared_error_bwd)


def _errors(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """``prediction - target`` in the accumulation dtype, zero where masked."""
    wide = products.accumulation_dtype(predictions.dtype)
    return jnp.where(mask[..., None], predictions.astype(wide) - targets.astype(wide), 0)


def last_valid(hs: jax.Array, lengths: jax.Array) -> jax.Array:
    """``hs [T, ..., H]`` at each row's last valid step, ``[..., H]``; zero for length 0.

    For many-to-one networks. After one `jaxrnn.unroll` it is what ``final_state.h`` already holds
    (there, a row of length 0 holds the initial state).

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


def _validate_mask(mask: Any, shape: tuple[int, ...]) -> jax.Array:
    if mask is None:
        return jnp.ones(shape, jnp.bool_)
    mask = array("mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"`mask` must be booleans; got dtype {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(
            f"`mask` must have one entry per position, shape {shape}; got shape {mask.shape}"
        )
    return mask


def _share(mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """One position's part in the mean: 1 / (number kept), of at least one."""
    return 1 / jnp.maximum(jnp.sum(mask, dtype=dtype), 1)
