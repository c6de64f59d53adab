"""Layer normalisation of rows and of products, with its adjoint.

A row of N values has mean 0 and variance 1 after

    y  = s (a - mean(a)),   s = 1 / sqrt(var(a) + EPSILON)
    da = s (dy - mean(dy) - y mean(dy y))

A product is centred by its weights, ``a - mean(a) = x C`` with ``C = centre(W)``: a step then has
one sum over the row. The adjoint of ``z = gain * y``, with ``y = u C`` and ``u = s x``, is taken on
the side of x, whose rows are shorter:

    p  = dz (gain * C)^T
    k  = mean(dy y) = sum(u p) / N
    dx = s (p - k u C C^T)
    P  = sum_t u_t^T dz_t
    dgain = sum over rows of C * P                            = sum_t dz_t * y_t
    dW    = centre(gain * P - (sum_t k_t u_t^T u_t) C)        = sum_t u_t^T (centre(dy_t) - k_t y_t)

The second forms serve a weight with more rows than columns, and one whose product is not the plain
one (`jaxrnn.products.Weight`): ``dy C^T = centre(dy) W^T``.

Reference: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.products import Weight, bias_gradient, input_gradient, weight_gradient

__all__ = [
    "EPSILON",
    "ProductFactors",
    "centre",
    "multiply_gain",
    "normalise",
    "normalise_gradient",
    "normalised_product",
    "product_factors",
    "product_input_gradient",
    "product_weight_gradients",
]

EPSILON = 1e-5
"""Added to the variance: a row of equal values becomes zeros, with a finite gradient."""


def centre(a: jax.Array) -> jax.Array:
    """``a - mean(a)``, row by row; also its own adjoint."""
    wide = a.astype(accumulation_dtype(a.dtype))
    return (wide - _mean(wide)).astype(a.dtype)


def normalise(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``y`` of mean 0 and variance 1, and ``s [..., 1]``."""
    return _rescale(centre(a))


def normalise_gradient(dy: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    """``da`` of `normalise`."""
    wide = accumulation_dtype(dy.dtype)
    dy_wide, y_wide = dy.astype(wide), y.astype(wide)
    along = dy_wide - _mean(dy_wide) - y_wide * _mean(dy_wide * y_wide)
    return (s.astype(wide) * along).astype(dy.dtype)


def _rescale(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``y = s a`` and ``s``, of rows of mean 0."""
    wide = a.astype(accumulation_dtype(a.dtype))
    s = lax.rsqrt(_mean(wide * wide) + EPSILON)
    return (s * wide).astype(a.dtype), s.astype(a.dtype)


def multiply_gain(y: jax.Array, gain: jax.Array) -> jax.Array:
    """``gain [N] * y [..., N]``, with the broadcast spelled out for strict rank promotion."""
    return jnp.broadcast_to(gain, y.shape) * y


def normalised_product(x: jax.Array, w: jax.Array | Weight) -> tuple[jax.Array, jax.Array]:
    """``x [..., I] @ w [I, N]`` with mean 0 and variance 1, and its ``s [..., 1]``."""
    return _rescale(_centred_product(x, w))


class ProductFactors(NamedTuple):
    """Local derivatives of a normalised product.

    ``u = s x`` and ``v = u C C^T``, each ``[..., I]``, and ``s [..., 1]``.
    """

    u: jax.Array
    v: jax.Array
    s: jax.Array


def product_factors(x: jax.Array, s: jax.Array, w: jax.Array | Weight) -> ProductFactors:
    """The factors of ``x @ w``, normalised by ``s``; in bulk."""
    u = s * x
    if isinstance(w, Weight):
        v = input_gradient(centre(u @ w), w)
    else:
        c = centre(w)
        v = u @ (c @ c.T) if _is_narrow(c) else input_gradient(u @ c, c)
    return ProductFactors(u=u, v=v, s=s)


def product_input_gradient(
    dz: jax.Array, factors: ProductFactors, w: jax.Array | Weight, gain: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``dx [..., I]``, and ``k [..., 1]`` for `product_weight_gradients`."""
    u, v, s = factors
    if isinstance(w, Weight):
        p = input_gradient(centre(multiply_gain(dz, gain)), w)
    else:
        p = input_gradient(dz, multiply_gain(centre(w), gain))
    wide = accumulation_dtype(p.dtype)
    along = jnp.sum(u.astype(wide) * p.astype(wide), axis=-1, keepdims=True)
    k = (along / dz.shape[-1]).astype(p.dtype)
    return s * (p - k * v), k


def product_weight_gradients(
    u: jax.Array, dz: jax.Array, k: jax.Array, w: jax.Array | Weight, gain: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``dw [I, N]`` and ``dgain [N]``, summed over the leading axes in the accumulation dtype."""
    if isinstance(w, Weight) or not _is_narrow(w):
        y = _centred_product(u, w)
        dw = weight_gradient(u, centre(multiply_gain(dz, gain)) - k * y, w)
        return dw, bias_gradient(dz * y)
    product, along = weight_gradient(u, dz), weight_gradient(u, k * u)
    c, gain = (a.astype(product.dtype) for a in (centre(w), gain))
    return centre(multiply_gain(product, gain) - along @ c), jnp.sum(c * product, axis=0)


def _centred_product(x: jax.Array, w: jax.Array | Weight) -> jax.Array:
    # XLA centres a weight once, before the loop over steps that reads it
    return centre(x @ w) if isinstance(w, Weight) else x @ centre(w)


def _is_narrow(w: jax.Array) -> bool:
    """Whether a row of x is no longer than a row of its product."""
    I, N = w.shape
    return I <= N


def _mean(wide: jax.Array) -> jax.Array:
    return jnp.mean(wide, axis=-1, keepdims=True)
