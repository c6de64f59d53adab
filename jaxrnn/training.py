"""Training with optax: one pure, jitted step for any loss and any optimizer."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.export import register_namedtuple_serialization

from jaxrnn import platforms
from jaxrnn.checks import describe, prng_key, static_bool
from jaxrnn.dtypes import accumulation_dtype, in_dtype_of, zero_sums

__all__ = ["TrainState", "accumulate", "decay_mask", "init_train_state", "make_train_step"]


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

Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
TrainStep: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def init_train_state(params: Any, optimizer: Optimizer, key: jax.Array) -> TrainState:
    """The state before the first step.

    Everything is copied, because the training step donates its state: it would delete arrays that
    the caller still holds, and one that the optimizer's state shares with the params twice.

    A checkpoint is restored into a state of the same structure: give this one to orbax as the
    target. Without a target orbax returns dicts, and ``GRUParams(**restored)`` makes params of one.

    Raises:
        TypeError: an optimizer that is not optax's; a key that is no JAX PRNG key.
    """
    _require_optimizer(optimizer)
    prng_key("key", key)
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key
    )
    state = jax.tree.map(jnp.copy, state)
    # a weakly typed leaf would have no weak type after the first step, and the second traced anew
    return jax.tree.map(_strongly_typed, state)


def make_train_step(
    loss_fn: Callable[..., Any],
    optimizer: Optimizer,
    *,
    has_aux: bool = False,
    donate: bool = True,
    compiler_options: dict[str, Any] | Literal["auto"] | None = None,
) -> TrainStep:
    """A jitted ``train_step(state, batch) -> (state, metrics)``.

    Batches of one shape share one trace.

    Args:
        loss_fn: ``(params, batch, key) -> loss``, a scalar; with ``has_aux`` ``(loss, aux)``,
            where ``aux`` is a dict of arrays to report. The key is new at every step.
        optimizer: any optax optimizer, or `optax.MultiSteps`; schedules and clipping are chained
            into it. Optimizers that name ``value``, ``grad``, ``value_fn``, ``grad_fn`` or
            ``obj_fn`` (`optax.lbfgs`, `optax.contrib.sam`) get these, of the same batch and key.
        has_aux: whether ``loss_fn`` returns such a dict too.
        donate: whether the buffers of the state passed in are reused for the state returned. Then
            keep only the latter. With False, the state passed in stays usable, at the cost of a
            second copy of the params and of the optimizer's state.
        compiler_options: None, or those of `jax.jit`; ``"auto"`` for `jaxrnn.compiler_options()`.
            JAX takes them at the outermost `jax.jit` alone: with any, the step cannot be called
            inside of another one, of `jax.lax.scan`, or of `jax.grad`.

    Returns:
        The step. Its metrics are ``"loss"``, ``"gradient_norm"`` (over all params, before the
        optimizer) and the entries of ``aux``. Its attribute ``lower`` is that of `jax.jit`.

    Raises:
        TypeError: a loss that is no function of three arguments, an optimizer that is not optax's;
            at the first step, a ``loss_fn`` that returns something else.
        ValueError: compiler options that are neither; at a step, a state that was donated to an
            earlier one.
        jax.errors.JaxRuntimeError: at the first step, options with which it does not compile.

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
    step = step_function(loss_fn, optimizer, has_aux=has_aux)
    return compiled(step, donate=donate, compiler_options=compiler_options)


def accumulate(
    sum_fn: Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]],
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """The mean loss over microbatches, as a loss function for `make_train_step`.

    The sum of all losses is divided by the sum of all weights, so microbatches with different
    numbers of valid steps count as in one batch. The gradient of each microbatch is taken together
    with its loss, and added up: one microbatch is in memory at a time.

    Args:
        sum_fn: ``(params, microbatch, key) -> (sum of losses, sum of weights)``, two scalars: a
            loss with ``reduction="sum"``, and the sum of its ``weights`` or of its ``mask``.

    Returns:
        ``loss_fn(params, microbatches, key) -> loss``. Every leaf of ``microbatches`` has one axis
        before those of a microbatch, and every microbatch a key of its own. If the weights sum to
        0, the loss is 0 with zero gradients. It is differentiated by the params alone, and the
        weights count as constants: they must not depend on the params.

    Raises:
        TypeError: a ``sum_fn`` that is no function of three arguments; at a call, one that does not
            return two scalars, the first of them floating.
        ValueError: at a call, leaves with different numbers of microbatches, or with none.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.init_affine(jax.random.key(0), 3, 1)
        >>> def sum_fn(params, microbatch, key):
        ...     xs, ys, mask = microbatch
        ...     predictions = jaxrnn.affine(params, xs)
        ...     loss = jaxrnn.squared_error(predictions, ys, mask=mask, reduction="sum")
        ...     return loss, mask.sum()
        >>> loss_fn = jaxrnn.accumulate(sum_fn)
        >>> batch = jnp.ones((4, 8, 3)), jnp.ones((4, 8, 1)), jnp.ones((4, 8), bool)
        >>> jax.grad(loss_fn)(params, batch, jax.random.key(1)).w.shape
        (3, 1)
    """
    _require_function("sum_fn", sum_fn, "(params, microbatch, key)")

    def loss_fn(params: Any, microbatches: Any, key: jax.Array) -> jax.Array:
        each = microbatches, jax.random.split(prng_key("key", key), _count(microbatches))
        first = jax.tree.map(lambda leaf: leaf[0], each)
        nothing = _zero_sums_of(jax.eval_shape(sum_fn, params, *first))

        def add(sums: Any, found: Any) -> tuple[Any, None]:
            found = jax.tree.map(lambda a, total: jnp.asarray(a, total.dtype), found, sums)
            return jax.tree.map(jnp.add, sums, found), None

        # a closure over the batch: to differentiate by it is an error of JAX's, not a wrong zero
        @jax.custom_vjp
        def mean_loss(params: Any) -> jax.Array:
            def of_one(sums: Any, one: Any) -> tuple[Any, None]:
                return add(sums, sum_fn(params, *one))

            (loss, weight), _ = lax.scan(of_one, nothing, each)
            return loss * _reciprocal(weight)

        def forward(params: Any) -> tuple[jax.Array, Any]:
            def of_one(sums: Any, one: Any) -> tuple[Any, None]:
                return add(sums, jax.value_and_grad(sum_fn, has_aux=True)(params, *one))

            ((loss, weight), dparams), _ = lax.scan(of_one, (nothing, zero_sums(params)), each)
            share = _reciprocal(weight)
            return loss * share, in_dtype_of(params, jax.tree.map(lambda d: d * share, dparams))

        def backward(dparams: Any, dloss: jax.Array) -> tuple[Any]:
            return (jax.tree.map(lambda d: d * dloss.astype(d.dtype), dparams),)

        mean_loss.defvjp(forward, backward)
        return mean_loss(params)

    return loss_fn


def decay_mask(params: Any) -> Any:
    """True for the weights that an optimizer may let decay, False for biases and initial states.

    A weight is a matrix, or a stack of them: what has two axes or more. For optax's optimizers with
    a ``mask``.

    Example:
        >>> import jax, jaxrnn, optax
        >>> params = jaxrnn.GRU.init(jax.random.key(0), 3, 5)
        >>> jaxrnn.decay_mask(params)
        GRUParams(w_ih=True, w_hh=True, b=False, b_hn=False)
        >>> optimizer = optax.adamw(1e-3, weight_decay=0.01, mask=jaxrnn.decay_mask)
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


def step_function(loss_fn: Callable[..., Any], optimizer: Optimizer, *, has_aux: bool) -> TrainStep:
    """The training step before `jax.jit`."""
    _require_optimizer(optimizer)
    _require_function("loss_fn", loss_fn, "(params, batch, key)")

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
        key = jax.random.fold_in(state.key, state.step)
        (loss, aux), gradients = jax.value_and_grad(loss_and_aux, has_aux=True)(
            state.params, batch, key
        )

        def value_fn(params: Any) -> jax.Array:
            # line searches make trial params of the dtype of their step size, float64 with x64 on
            trial = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, state.params)
            return loss_and_aux(trial, batch, key)[0]

        updates, opt_state = _update(
            optimizer,
            (gradients, state.opt_state, state.params),
            {
                "value": loss,
                "grad": gradients,
                "value_fn": value_fn,
                # optax's SAM also passes the number of its inner step
                "grad_fn": lambda params, *_: jax.grad(value_fn)(params),
                "obj_fn": value_fn,
            },
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

    return train_step


def compiled(
    step: TrainStep,
    *,
    donate: bool,
    compiler_options: Any,
    platform: str | None = None,
    **shardings: Any,
) -> TrainStep:
    """`jax.jit` of a training step, which refuses a state that is none or has been donated."""
    donate = static_bool("donate", donate)
    options = _options(compiler_options, platform)
    jitted = jax.jit(
        step, donate_argnums=0 if donate else (), compiler_options=options, **shardings
    )

    @functools.wraps(step)
    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if not isinstance(state, TrainState):
            raise TypeError(f"`state` must be a jaxrnn.TrainState; got {describe(state)}")
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, jax.Array) and _is_deleted(leaf):
                raise ValueError(
                    "`state` has been donated to an earlier training step, which reused its "
                    "buffers: keep the state that the step returns, or make the step with "
                    "donate=False"
                )
        try:
            return jitted(state, batch)
        except jax.errors.JaxRuntimeError as error:
            if options is not None:
                error.add_note(
                    f"The training step was compiled with compiler_options={options}: if it works "
                    "with compiler_options=None, XLA cannot compile or run this one with them"
                )
            raise

    train_step.lower = jitted.lower  # type: ignore[attr-defined]
    return train_step


def _options(options: Any, platform: str | None) -> dict[str, Any] | None:
    """The options for `jax.jit`: None where there are none, as an inner jit must have."""
    if options == "auto":
        options = platforms.compiler_options(platform)
    known = isinstance(options, dict) and all(
        isinstance(key, str) and isinstance(value, (str, bool, int, float))
        for key, value in options.items()
    )
    if options is not None and not known:
        raise ValueError(
            "`compiler_options` must be None, 'auto' or a dict of XLA's options by name, values "
            f"strings, numbers or booleans; got {options!r}"
        )
    return options or None


def _count(microbatches: Any) -> int:
    """The number of microbatches, the first axis of every leaf."""
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(microbatches)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            "`microbatches` must be arrays [N, ...] with N microbatches each, at least one; got "
            f"{describe(microbatches)}"
        )
    return counts.pop()[0]


def _zero_sums_of(like: Any) -> tuple[jax.Array, jax.Array]:
    """Zeros in the place of the two sums that a ``sum_fn`` returns, of one dtype."""
    if (
        not isinstance(like, tuple)
        or [getattr(leaf, "shape", None) for leaf in like] != [(), ()]
        or not jnp.issubdtype(like[0].dtype, jnp.floating)
    ):
        raise TypeError(
            "`sum_fn` must return (sum of losses, sum of weights), two scalars, the first one "
            f"floating; got {describe(like)}"
        )
    dtype = accumulation_dtype(like[0].dtype)
    return jnp.zeros((), dtype), jnp.zeros((), dtype)


def _reciprocal(weight: jax.Array) -> jax.Array:
    """``1 / weight``, 0 for 0."""
    return jnp.where(weight == 0, 0, 1 / jnp.where(weight == 0, 1, weight))


def _is_deleted(leaf: jax.Array) -> bool:
    return not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted()


def _strongly_typed(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return lax.convert_element_type(leaf, leaf.dtype)


def _update(optimizer: Optimizer, arguments: tuple[Any, ...], extras: dict[str, Any]) -> Any:
    """``optimizer.update`` of these arguments and of as many of the extras as it takes.

    Signatures do not tell which these are: `optax.chain` and all wrappers declare ``**extra_args``
    and pass them on to transforms that refuse some (SAM), need some (line searches), or refuse
    what they do not need (line searches, too). A trial does tell, for transforms of others as well.
    It is abstract, so that a refused call leaves nothing in the program.
    """
    if not isinstance(optimizer, (optax.GradientTransformationExtraArgs, optax.MultiSteps)):
        return optimizer.update(*arguments)
    refusals: list[Exception] = []
    for count in range(len(extras), -1, -1):
        for names in itertools.combinations(extras, count):
            update = functools.partial(optimizer.update, **{name: extras[name] for name in names})
            try:
                jax.eval_shape(update, *arguments)
            except Exception as error:
                # an argument that is refused is a TypeError, and calls for fewer of them
                if not refusals and not isinstance(error, TypeError):
                    raise
                refusals.append(error)
            else:
                return update(*arguments)
    raise refusals[0]


def _require_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, (optax.GradientTransformation, optax.MultiSteps)):
        raise TypeError(
            "`optimizer` must be an optax.GradientTransformation or optax.MultiSteps; "
            f"got {type(optimizer).__name__}"
        )


def _require_function(name: str, function: Any, takes: str) -> None:
    """Refuse what cannot be called with three arguments."""
    if not callable(function):
        raise TypeError(f"`{name}` must be a function; got {describe(function)}")
    try:
        signature = inspect.signature(function)
    except ValueError:
        # a builtin does not say what it takes
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must take {takes}, even if it does not use the key; "
            f"got a function of {signature}"
        ) from error
