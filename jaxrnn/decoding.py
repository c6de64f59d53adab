"""Generation: tokens drawn one after the other from a network's logits."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.checks import array, concrete, describe, prng_key, size
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.masks import select

__all__ = ["generate"]

# XLA flushes smaller numbers to 0, and logits must not be divided by 0
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


def generate(
    step_fn: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    state: Any,
    first: Any,
    length: int,
    *,
    key: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
    stop: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draw tokens one after the other; one loop, under one `jax.jit` of the caller's.

    Args:
        step_fn: ``(state, tokens [...]) -> (state, logits [..., V])``, such as an embedding, a
            network's ``step`` and an affine head.
        state: the state before ``first``, a pytree of arrays that start with the rows ``[...]``.
        first: the tokens to begin with, integers ``[...]``: the last of a prompt that the state has
            read up to there. The drawn tokens have its dtype, which must hold V - 1.
        length: how many tokens to draw.
        key: a `jax.random.key`; not needed with a temperature of 0 that is known before tracing.
        temperature: the logits are divided by it; 0 takes the most probable token. A traced one is
            chosen in the program, where all that is not above 0 counts as 0.
        top_k: draw from the k most probable tokens, and those as probable as the last of them.
        top_p: draw from the fewest most probable tokens whose probabilities add up to this
            (A. Holtzman et al., "The curious case of neural text degeneration", 2020), after
            temperature and ``top_k``. All that is not above 0 leaves the most probable token if it
            is traced.
        stop: the token that ends a row.

    Returns:
        ``(tokens [length, ...], lengths [...])``: the drawn tokens, without ``first``, and how many
        a row has, its stop included. Behind it, a row holds ``stop``.

    Raises:
        TypeError: a step that returns something else, tokens that are no integers, no key where one
            is needed.
        ValueError: a number out of its range, if it is known; a dtype that has too few tokens.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> def counting(state, tokens):  # the next token is one more
        ...     return state, jax.nn.one_hot(tokens + 1, 8)
        >>> tokens, lengths = jaxrnn.generate(
        ...     counting, (), jnp.array([2, 5]), 4, temperature=0, stop=7
        ... )
        >>> tokens.T.tolist(), lengths.tolist()
        ([[3, 4, 5, 6], [6, 7, 7, 7]], [4, 2])
    """
    first, length = array("first", first), size("length", length, least=0)
    if not jnp.issubdtype(first.dtype, jnp.integer):
        raise TypeError(f"`first` must be integers; got dtype {first.dtype}")
    known = _number("temperature", temperature)
    if known is not None and not 0 <= known < math.inf:
        raise ValueError(f"`temperature` must be at least 0 and finite; got {known}")
    greedy = known is not None and known < _LEAST_TEMPERATURE
    if top_k is not None:
        top_k = size("top_k", top_k)
    if top_p is not None:
        share = _number("top_p", top_p)
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1; got {share}")
    if stop is not None:
        stop = size("stop", stop, least=0)
        # a row that has stopped keeps its state
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if jnp.shape(leaf)[: first.ndim] != first.shape:
                raise ValueError(
                    f"`state` must have the rows of `first`, {first.shape}, in every leaf; got "
                    f"shape {jnp.shape(leaf)} at {jax.tree_util.keystr(path) or 'its only leaf'}"
                )
    if key is not None:
        prng_key("key", key)
    elif not greedy:
        raise TypeError(
            "`key` must be a jax.random.key, unless `temperature` is 0 and known before tracing; "
            "got None"
        )
    # no draw without a key, and a loop needs one to split
    keys = None if key is None else jax.random.split(key, length)

    def draw(carry: Any, key: jax.Array | None) -> tuple[Any, Any]:
        state, tokens, alive = carry
        stepped = step_fn(state, tokens)
        if not isinstance(stepped, tuple) or len(stepped) != 2:
            raise TypeError(f"`step_fn` must return (state, logits); got {describe(stepped)}")
        after, logits = stepped
        if jnp.shape(logits)[:-1] != tokens.shape:
            raise TypeError(
                f"`step_fn` must return logits [..., V] for tokens {tokens.shape}; got "
                f"{describe(logits)}"
            )
        last = logits.shape[-1] - 1
        if last > jnp.iinfo(tokens.dtype).max:
            raise ValueError(
                f"`first` must have a dtype that holds every token, 0..{last}, such as int32; got "
                f"{tokens.dtype}"
            )
        if stop is not None and stop > last:
            raise ValueError(f"`stop` must be in 0..{last}; got {stop}")
        # noise of 16 bits has few values, and the greatest of them come too often
        logits = logits.astype(accumulation_dtype(logits.dtype))
        if greedy:
            found = jnp.argmax(logits, -1)
        else:
            assert key is not None
            found = _drawn(key, logits, temperature, top_k, top_p)
        found = found.astype(tokens.dtype)
        still = alive
        if stop is not None:
            found = jnp.where(alive, found, stop)
            after, still = select(alive, after, state), alive & (found != stop)
        return (after, found, still), (found, alive)

    alive = jnp.ones(first.shape, bool)
    _, (tokens, drawn) = lax.scan(draw, (state, first, alive), keys, length=length)
    return tokens, jnp.sum(drawn, axis=0, dtype=jnp.int32)


def _number(name: str, value: Any) -> float | None:
    """The value of one number, or None where it is traced."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        valid = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        numeric = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
        valid = numeric and jnp.shape(value) == ()
    if not valid:
        raise TypeError(f"`{name}` must be one number; got {describe(value)}")
    known = concrete(value)
    return None if known is None else float(known)


def _drawn(
    key: jax.Array, logits: jax.Array, temperature: Any, top_k: int | None, top_p: Any
) -> jax.Array:
    """One token of each row ``[...]``, the most probable one if ``temperature`` is 0."""
    limits = jnp.finfo(logits.dtype)
    temperature = jnp.asarray(temperature, logits.dtype)
    # quotients of a small temperature overflow, and infinite ones would all be as probable
    scaled = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = scaled / jnp.clip(temperature, limits.tiny, limits.max)
    found = jax.random.categorical(key, _kept(scaled, top_k, top_p))
    return jnp.where(temperature >= limits.tiny, found, jnp.argmax(logits, axis=-1))


def _kept(logits: jax.Array, top_k: int | None, top_p: Any) -> jax.Array:
    """The logits, at minus infinity where a token must not be drawn."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        sorted_logits = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(sorted_logits, axis=-1)
        # a token is kept if those before it do not reach the sum: the first one always is
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = before < jnp.asarray(top_p, logits.dtype)
        least = jnp.min(jnp.where(kept, sorted_logits, sorted_logits[..., :1]), axis=-1)
        logits = jnp.where(logits < least[..., None], -jnp.inf, logits)
    return logits
