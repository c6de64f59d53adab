"""Generation: tokens drawn one after the other from a network's logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.checks import array, describe, prng_key, size
from jaxrnn.dtypes import accumulation_dtype
from jaxrnn.masks import select

__all__ = ["generate"]


def generate(
    step_fn: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    state: Any,
    first: Any,
    length: int,
    *,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draw tokens one after the other; one loop, under one `jax.jit` of the caller's.

    Args:
        step_fn: ``(state, tokens [...]) -> (state, logits [..., V])``, such as an embedding, a
            network's ``step`` and an affine head.
        state: the state before ``first``, a pytree of arrays that start with the rows ``[...]``.
        first: the tokens to begin with, integers ``[...]``: the last of a prompt that the state has
            read up to there.
        length: how many tokens to draw.
        key: a `jax.random.key`; not needed with a temperature of 0.
        temperature: the logits are divided by it; 0 takes the most probable token.
        top_k: draw from the k most probable tokens, and those as probable as the last of them.
        top_p: draw from the fewest most probable tokens whose probabilities add up to this
            (A. Holtzman et al., "The curious case of neural text degeneration", 2020), after
            temperature and ``top_k``.
        stop: the token that ends a row.

    Returns:
        ``(tokens [length, ...], lengths [...])``: the drawn tokens, without ``first``, and how many
        a row has, its stop included. Behind it, a row holds ``stop``.

    Raises:
        TypeError: a step that returns something else, tokens that are no integers, no key where one
            is needed.
        ValueError: a number out of its range.

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
    greedy = isinstance(temperature, (int, float)) and temperature == 0
    if isinstance(temperature, (int, float)) and temperature < 0:
        raise ValueError(f"`temperature` must be at least 0; got {temperature}")
    if top_k is not None:
        top_k = size("top_k", top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be above 0 and at most 1; got {top_p}")
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
        raise TypeError("`key` must be a jax.random.key, unless `temperature` is 0; got None")
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
        if stop is not None and stop >= logits.shape[-1]:
            raise ValueError(f"`stop` must be in 0..{logits.shape[-1] - 1}; got {stop}")
        # noise of 16 bits has few values, and the greatest of them come too often
        logits = logits.astype(accumulation_dtype(logits.dtype))
        if greedy:
            found = jnp.argmax(logits, -1)
        else:
            assert key is not None
            found = jax.random.categorical(key, _kept(logits / temperature, top_k, top_p))
        found = found.astype(tokens.dtype)
        still = alive
        if stop is not None:
            found = jnp.where(alive, found, stop)
            after, still = select(alive, after, state), alive & (found != stop)
        return (after, found, still), (found, alive)

    alive = jnp.ones(first.shape, bool)
    _, (tokens, drawn) = lax.scan(draw, (state, first, alive), keys, length=length)
    return tokens, jnp.sum(drawn, axis=0, dtype=jnp.int32)


def _kept(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """The logits, at minus infinity where a token must not be drawn."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        sorted_logits = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(sorted_logits, axis=-1)
        # a token is kept if those before it do not reach the sum: the first one always is
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < top_p, sorted_logits, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
