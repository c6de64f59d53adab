"""Layer normalisation of rows and of products, with its adjoint.

A row of N values has mean 0 and variance 1 after

    y  = s (a - mean(a)),   s = 1 / sqrt(var(a) + EPSILON)
    da = s (dy - mean(dy) - y mean(dy y))

A product is centred by its weights, ``a - mean(a) = x C`` with ``C = centre(W)``: a step then has
one sum over the row. The adjoint of ``z = gain * y``, with ``y = u C`` and ``u = s x``, needs no
other array as wide as the product:

    p  = dz (gain * C)^T
    k  = mean(dy y) = sum(u p) / N
    dx = s (p - k u C C^T)
    P  = sum_t u_t^T dz_t
    dgain = sum over rows of C * P
    dW    = centre(gain * P - (sum_t k_t u_t^T u_t) C)

Reference: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.products import input_gradient, weight_gradient

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


def normalised_product(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x [..., I] @ w [I, N]`` with mean 0 and variance 1, and its ``s [..., 1]``."""
    # loops over steps centre a weight once, before the first step: XLA takes it out of them
    return _rescale(x @ centre(w))


class ProductFactors(NamedTuple):
    """Local derivatives of a normalised product.

    ``u = s x`` and ``v = u C C^T``, each ``[..., I]``, and ``s [..., 1]``.
    """

    u: jax.Array
    v: jax.Array
    s: jax.Array


def product_factors(x: jax.Array, s: jax.Array, w: jax.Array) -> ProductFactors:
    """The factors of ``x @ w``, normalised by ``s``; in bulk."""
    u, c = s * x, centre(w)
    I, N = c.shape
    # the order of products that is less work
    v = u @ (c @ c.T) if I <= N else input_gradient(u @ c, c)
    return ProductFactors(u=u, v=v, s=s)


def product_input_gradient(
    dz: jax.Array, factors: ProductFactors, w: jax.Array, gain: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``dx [..., I]``, and ``k [..., 1]`` for `product_weight_gradients`."""
    u, v, s = factors
    p = input_gradient(dz, multiply_gain(centre(w), gain))
    wide = accumulation_dtype(p.dtype)
    along = jnp.sum(u.astype(wide) * p.astype(wide), axis=-1, keepdims=True)
    k = (along / w.shape[-1]).astype(p.dtype)
    return s * (p - k * v), k


def product_weight_gradients(
    u: jax.Array, dz: jax.Array, k: jax.Array, w: jax.Array, gain: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``dw [I, N]`` and ``dgain [N]``, summed over the leading axes in the accumulation dtype."""
    c = centre(w)
    I, N = c.shape
    product, ku = weight_gradient(u, dz), k * u
    wide = c.astype(product.dtype)
    along = weight_gradient(u, ku) @ wide if I <= N else weight_gradient(u, ku @ c)
    dw = centre(multiply_gain(product, gain.astype(product.dtype)) - along)
    return dw, jnp.sum(wide * product, axis=0)


def _mean(wide: jax.Array) -> jax.Array:
    return jnp.mean(wide, axis=-1, keepdims=True)
