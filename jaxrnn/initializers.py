"""Initial values of weights: how each gate's block is drawn.

An initializer is a function ``(key, shape, dtype) -> array``, the convention of
`jax.nn.initializers`, so every initializer of that module can be passed where one is expected.
A weight that holds several gates side by side is drawn gate by gate (`per_gate`): each gate is a
layer of its own, and an orthogonal or Glorot matrix of the whole would be neither for its gates.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from jaxrnn.checks import size
from jaxrnn.dtypes import accumulation_dtype

__all__ = [
    "Initializer",
    "chrono",
    "glorot_uniform",
    "identity",
    "linspace",
    "orthogonal",
    "per_gate",
    "spectral_radius",
    "uniform_fan_out",
    "zeros",
]


class Initializer(Protocol):
    """``(key, shape, dtype) -> array`` of that shape and dtype."""

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> jax.Array: ...


def glorot_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Uniform on ±sqrt(6 / (fan_in + fan_out)).

    Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", 2010, eq. 16.
    """
    return initializers.glorot_uniform()(key, shape, dtype)


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """A random matrix with orthonormal rows or columns, uniform over all of them.

    All singular values are 1, so a linear recurrence neither vanishes nor explodes at the start.
    Reference: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks", 2014, section 3.
    """
    # the QR decomposition behind it exists for 32 and 64 bits only
    return initializers.orthogonal()(key, shape, accumulation_dtype(dtype)).astype(dtype)


def uniform_fan_out(
    key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Uniform on ±1/sqrt(H), with H the last axis: what PyTorch's recurrent layers draw from."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)


def identity(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Ones on the diagonal, zeros elsewhere; the key is not used.

    As a recurrent weight it hands the state on as it is: Q. V. Le, N. Jaitly and G. E. Hinton, "A
    simple way to initialize recurrent networks of rectified linear units", 2015.
    """
    del key
    rows, columns = shape
    return jnp.eye(rows, columns, dtype=dtype)


def spectral_radius(radius: float) -> Initializer:
    """The initializer of square matrices with that largest absolute eigenvalue.

    Independent normal entries, scaled. A radius just below 1 is what echo state networks start
    from: H. Jaeger, "The echo state approach to analysing and training recurrent neural networks",
    2001. The eigenvalues are computed on the CPU.
    """

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        drawn = jax.random.normal(key, shape, accumulation_dtype(dtype))

        def largest(a: np.ndarray) -> np.ndarray:
            return np.max(np.abs(np.linalg.eigvals(a)), axis=-1).astype(a.dtype)

        # XLA has no eigenvalues of matrices that are not symmetric, but on a CPU
        found = jax.pure_callback(
            largest, jax.ShapeDtypeStruct(shape[:-2], drawn.dtype), drawn, vmap_method="expand_dims"
        )
        return (drawn * (radius / found)).astype(dtype)

    return draw


def chrono(longest: int) -> Initializer:
    """The initializer of the bias of a gate that keeps the state: ``log u``, u ~ U[1, longest - 1].

    With it, a unit forgets after about u steps: some units remember as long as the dependencies
    that are expected, ``longest`` steps. `LSTM.init` takes it as ``forget_bias``, `GRU.init` as
    ``update_bias``. Reference: Tallec and Ollivier, "Can recurrent neural networks warp time?",
    2018, eq. 16.
    """
    if size("longest", longest) < 3:
        raise ValueError(f"`longest` must be at least 3 steps; got {longest}")

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        wide = accumulation_dtype(dtype)
        return jnp.log(jax.random.uniform(key, shape, wide, 1, longest - 1)).astype(dtype)

    return draw


def linspace(start: float, stop: float) -> Initializer:
    """The initializer with evenly spaced values along the last axis; the key is not used.

    As the bias of a gate that keeps the state, it gives a layer short and long memories:
    `jaxrnn.SLSTM.init` has it as ``forget_bias``.
    """

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        del key
        wide = accumulation_dtype(dtype)
        return jnp.broadcast_to(jnp.linspace(start, stop, shape[-1], dtype=wide), shape).astype(
            dtype
        )

    return draw


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """All zeros; the key is not used."""
    del key
    return jnp.zeros(shape, dtype)


def per_gate(initializer: Initializer, gates: int) -> Initializer:
    """The initializer that draws ``gates`` blocks of equal width independently, side by side.

    It raises a ValueError where the blocks do not make up the shape asked for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = per_gate(orthogonal, 4)(jax.random.key(0), (3, 12), jnp.float32)
        >>> bool(jnp.allclose(w[:, 3:6] @ w[:, 3:6].T, jnp.eye(3), atol=1e-5))
        True
    """

    if gates == 1:
        return initializer

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        block = (*shape[:-1], shape[-1] // gates)
        blocks = [initializer(k, block, dtype) for k in jax.random.split(key, gates)]
        drawn = jnp.concatenate(blocks, axis=-1)
        if drawn.shape != tuple(shape):
            raise ValueError(
                f"`initializer` must fill {gates} blocks of {block} to make {tuple(shape)}; "
                f"it made {drawn.shape}"
            )
        return drawn

    return draw
