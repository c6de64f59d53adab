"""One step out of the caches of a sequence."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.textbook.checks import Cache, describe

__all__ = ["cache_at"]


def cache_at(caches: Cache, t: int) -> Cache:
    """The cache of step ``t``, 0 for the first: what the document writes as ``caches[t]``.

    The document unpacks ``(caches, x) = caches`` before. Leave that out, because the caches hold
    the input (erratum E47).

    Args:
        caches: what `rnn_forward`, `lstm_forward` or `sequence_forward` returned.
        t: an int, Python's or numpy's, in 0..T-1, known before tracing.

    Returns:
        The argument of `rnn_cell_backward`, `lstm_cell_backward` or `gradients_at_step`.

    Raises:
        TypeError: caches of another type, or ``t`` that is not an int.
        ValueError: the cache of one step, or a step that is not there.
    """
    if not (isinstance(caches, tuple) and hasattr(caches, "parameters")):
        raise TypeError(f"`caches` must be those of a forward pass; got {describe(caches)}")
    stacked: dict[str, Any] = caches._asdict()
    del stacked["parameters"]
    for field, leaf in stacked.items():
        if jnp.ndim(leaf) != 3:
            raise ValueError(
                "`caches` must be those of a sequence, with time first of three axes; got shape "
                f"{jnp.shape(leaf)} of `caches.{field}`"
            )
    T = len(next(iter(stacked.values())))
    if isinstance(t, bool) or not isinstance(t, (int, np.integer)):
        raise TypeError(f"`t` must be an int, known before tracing; got {describe(t)}")
    if not 0 <= t < T:
        raise ValueError(f"`t` must lie in 0..{T - 1}, the steps of `caches`; got {t}")
    return caches._replace(**{key: leaf[t] for key, leaf in stacked.items()})
