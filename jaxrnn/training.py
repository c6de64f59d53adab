"""Training with optax: one pure, jitted step for any loss and any optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.export import register_namedtuple_serialization

from jaxrnn.validation import describe

__all__ = ["TrainState", "init_train_state", "make_train_step"]


class TrainState(NamedTuple):
    """All that a training run carries from step to step, and all that a checkpoint must hold.

    ``step`` counts updates (int32 scalar). ``key`` never changes: step k draws from
    ``jax.random.fold_in(key, k)``, so a run resumed from a saved state repeats what the
    uninterrupted run would have done.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


register_namedtuple_serialization(TrainState, serialized_name="jaxrnn.TrainState")


def init_train_state(
    params: Any, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """The state before the first step.

    Everything is copied: the training step donates its state, and with it would delete arrays that
    the caller still holds; nor can an array that the optimizer's state shares be donated twice.

    Raises:
        TypeError: an optimizer that is not optax's; a key that is no JAX PRNG key.
    """
    _require_optimizer(optimizer)
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`key` must be a JAX PRNG key; got {describe(key)}") from error
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key
    )
    return jax.tree.map(jnp.copy, state)


def make_train_step(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted ``train_step(state, batch) -> (state, metrics)``.

    The state passed in is donated: its buffers are reused for the state returned, so keep only the
    latter. Batches of one shape share one trace.

    Args:
        loss_fn: ``(params, batch, key) -> loss``, a scalar; with ``has_aux`` ``(loss, aux)``,
            where ``aux`` is a dict of arrays to report. The key is new at every step.
        optimizer: any optax optimizer; schedules and clipping are chained into it. Those that
            evaluate the loss themselves (`optax.lbfgs`, say) see it on the same batch and key.
        has_aux: whether ``loss_fn`` returns such a dict too.

    Returns:
        The step. Its metrics are ``"loss"``, ``"gradient_norm"`` (over all params, before the
        optimizer) and the entries of ``aux``.

    Raises:
        TypeError: a loss that is no function, an optimizer that is not optax's; at the first step,
            a ``loss_fn`` that returns something else.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> params = jaxrnn.init_affine(jax.random.key(0), 3, 1)
        >>> def loss_fn(params, batch, key):
        ...     return jaxrnn.squared_error(jaxrnn.affine(params, batch), batch[:, :1])
        >>> optimizer = optax.sgd(0.1)
        >>> train_step = jaxrnn.make_train_step(loss_fn, optimizer)
        >>> state = jaxrnn.init_train_state(params, optimizer, jax.random.key(1))
        >>> state, metrics = train_step(state, jnp.ones((8, 3)))
        >>> int(state.step), sorted(metrics)
        (1, ['gradient_norm', 'loss'])
    """
    _require_optimizer(optimizer)
    if not callable(loss_fn):
        raise TypeError(f"`loss_fn` must be a function; got {describe(loss_fn)}")
    # some optimizers (line searches, schedules on plateaus) also read the loss, most do not
    update = optax.with_extra_args_support(optimizer).update

    def loss_and_aux(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        out = loss_fn(params, batch, key)
        if not has_aux:
            out = (out, {})
        elif not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"`loss_fn` must return (loss, aux) with has_aux; got {describe(out)}")
        loss, aux = out
        if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(
                f"`loss_fn` must return a floating scalar loss; got {describe(loss)} "
                "(a pair of loss and aux needs has_aux=True)"
            )
        if loss.shape != ():
            raise TypeError(f"`loss_fn` must return a scalar loss; got shape {loss.shape}")
        if not isinstance(aux, dict) or not {"loss", "gradient_norm"}.isdisjoint(aux):
            raise TypeError(
                "`loss_fn` must return `aux` as a dict without the keys 'loss' and "
                f"'gradient_norm'; got {describe(aux)}"
            )
        return loss, aux

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if not isinstance(state, TrainState):
            raise TypeError(f"`state` must be a jaxrnn.TrainState; got {describe(state)}")
        key = jax.random.fold_in(state.key, state.step)
        (loss, aux), gradients = jax.value_and_grad(loss_and_aux, has_aux=True)(
            state.params, batch, key
        )
        updates, opt_state = update(
            gradients,
            state.opt_state,
            state.params,
            value=loss,
            grad=gradients,
            value_fn=lambda params: loss_and_aux(params, batch, key)[0],
        )
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients), **aux}
        return (
            TrainState(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
                key=state.key,
            ),
            metrics,
        )

    return jax.jit(train_step, donate_argnums=0)


def _require_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"`optimizer` must be an optax.GradientTransformation; got {type(optimizer).__name__}"
        )
