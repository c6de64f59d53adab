"""A cell from a step alone: JAX derives the adjoint of one step, the engine does the rest.

For ``s_t, h_t = step(params, s_{t-1}, x_t)``:

    linearize    the vjp of every step with respect to ``s_{t-1}``, in bulk, outside of the loop
    pull         ds_{t-1} = (∂(s_t, h_t)/∂s_{t-1})^T (ds_t, dh_t), with the saved linearisation
    gradients    (∂(s_t, h_t)/∂(params, x_t))^T (ds_t, dh_t), one vjp of all steps at once

The deltas are the adjoints ``(ds_t, dh_t)`` themselves. Residuals of the linearisation that depend
on neither state nor input, such as the weights, are `Same` at every step: not stacked over time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Cell, Consts, Drawn, Expects, Params, Same, State
from jaxrnn.checks import describe
from jaxrnn.dtypes import differentiable, zero_sums

__all__ = ["cell_from_step"]


def cell_from_step(
    step: Callable[[Params, State, Any], tuple[State, Any]],
    *,
    initial_state: Callable[..., State],
    init: Callable[..., Params] | None = None,
    x_ndim: Any = None,
    name: str | None = None,
) -> Cell:
    """The cell of any pure step, with its adjoint derived by JAX step by step.

    Everything that `jaxrnn.unroll` and `jaxrnn.diagnostics` do works with it. To write the adjoint
    by hand later, replace ``linearize``, ``pull`` and ``gradients`` (``cell._replace``), and let
    `jaxrnn.testing.check_cell` hold them against the step. In 16-bit dtypes, the gradients of a
    chunk are summed as JAX's own derivative of the step sums them.

    Args:
        step: ``(params, state, x) -> (state, output)``. ``params``, ``state``, ``x`` and the output
            are any pytrees of arrays; ``state`` returns with the shapes and dtypes that it had. It
            sees one step with all batch axes. It must be hashable, and so must be whatever it
            closes over: arrays come through ``params``, ``state`` or ``x``. For noise at every
            step, give the cell a ``draw`` (``cell._replace(draw=...)``) that returns ``(None,
            steps)``: ``x`` is then a `jaxrnn.cells.Drawn`.
        initial_state: ``(params, batch_shape=()) -> state``, where the state starts and resets
            return to; gradients reach the params that it reads.
        init: ``(key, input_size, hidden_size, *, dtype) -> params``, if there is such a function.
        x_ndim: how many axes one input has without time and batch: an int for all arrays of ``x``,
            or a pytree with one for each; None for 1, a vector of features.
        name: for errors and reports; None for the name of ``step``.

    Returns:
        A `jaxrnn.Cell`; the same arguments give the same one.

    Raises:
        TypeError: a function that is none or cannot be hashed; ranks that are no ints.

    Example:
        A leaky rate network, ``v' = (1 - a) v + a (tanh(v) W + x U)``, with output ``tanh(v)``:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> def step(params, v, x):
        ...     v = 0.9 * v + 0.1 * (jnp.tanh(v) @ params["w"] + x @ params["u"])
        ...     return v, jnp.tanh(v)
        >>> def initial_state(params, batch_shape=()):
        ...     return jnp.zeros((*batch_shape, len(params["w"])))
        >>> cell = jaxrnn.cell_from_step(step, initial_state=initial_state, name="RATE")
        >>> params = {"w": jnp.eye(5), "u": jnp.ones((3, 5))}
        >>> v, rates = jaxrnn.unroll(cell, params, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
        >>> v.shape, rates.shape
        ((2, 5), (7, 2, 5))
    """
    for argument, function in (("step", step), ("initial_state", initial_state), ("init", init)):
        if function is None and argument == "init":
            continue
        if not callable(function):
            raise TypeError(f"`{argument}` must be a function; got {describe(function)}")
        try:
            hash(function)
        except TypeError as error:
            raise TypeError(f"`{argument}` must be hashable; got {describe(function)}") from error
    ranks, structure = jax.tree.flatten(1 if x_ndim is None else x_ndim)
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise TypeError(f"`x_ndim` must be an int, or a pytree of ints; got {x_ndim!r}")
    if name is None:
        name = getattr(step, "__name__", "step")
    return _cell_from_step(step, initial_state, init, tuple(ranks), structure, name)


# bounded: a cell holds its step, and whatever that closes over
@functools.lru_cache(maxsize=128)
def _cell_from_step(
    step: Callable[[Params, State, Any], tuple[State, Any]],
    initial_state: Callable[..., State],
    init: Callable[..., Params] | None,
    ranks: tuple[int, ...],
    x_structure: Any,
    name: str,
) -> Cell:
    def run(params: Params, state: State, x: Any, consts: Consts = None) -> tuple[State, Any]:
        if jax.tree.leaves(consts):
            raise TypeError(
                f"the step of {name} reads no consts: `draw` must return (None, steps), arrays for "
                "every step"
            )
        returned = step(params, state, x)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TypeError(
                f"the step of {name} must return (state, output); got {describe(returned)}"
            )
        # a Python number is an array of every step, too
        return returned[0], jax.tree.map(jnp.asarray, returned[1])

    def expects(params: Params) -> Expects:
        state = jax.eval_shape(lambda params: initial_state(params, ()), params)
        return Expects(params=None, x=jax.tree.unflatten(x_structure, ranks), state=state)

    def project(params: Params, xs: Any, consts: Consts) -> Any:
        del params, consts
        return xs

    def advance(params: Params, before: State, x: Any, consts: Consts) -> tuple[State, Any]:
        return run(params, before, x, consts)

    def output(params: Params, after: State, gates: Any, consts: Consts) -> Any:
        del params, after, consts
        return gates

    def linearize(
        params: Params, xs: Any, before: State, after: State, gates: Any, consts: Consts
    ) -> Any:
        """The function from ``(ds_t, dh_t)`` to ``ds_{t-1}``, a pytree of its residuals."""
        del after, gates, consts

        def pull_of(params: Params, before: State, x: Any) -> Any:
            def floating(state: State) -> Any:
                return differentiable(run(params, _merged(state, before), x))

            return jax.vjp(floating, differentiable(before))[1]

        # vmap would make a copy of the weights for every step: leave out what no step changes
        varies = _varies(pull_of, params, *jax.tree.map(_of_one_step, (before, xs)))
        structure = None

        def residuals(before: State, x: Any) -> list[Any]:
            nonlocal structure
            leaves, structure = jax.tree.flatten(pull_of(params, before, x))
            return leaves

        out_axes = [0 if each else None for each in varies]
        leaves = jax.vmap(residuals, out_axes=out_axes)(before, xs)
        assert structure is not None
        return jax.tree.unflatten(
            structure,
            [leaf if each else Same(leaf) for leaf, each in zip(leaves, varies, strict=True)],
        )

    def pull(params: Params, adjoint: Any, factors: Any, consts: Consts) -> tuple[State, Any]:
        del params, consts
        (dbefore,) = factors(adjoint)
        return dbefore, adjoint

    def gradients(
        params: Params,
        xs: Any,
        before: State,
        after: State,
        gates: Any,
        deltas: Any,
        consts: Consts,
    ) -> tuple[Params, Any, Consts]:
        del after, gates, consts

        given = xs.given if isinstance(xs, Drawn) else xs

        def steps(floating_params: Params, floating_xs: Any) -> Any:
            whole = _merged(floating_params, params)
            whole_xs = _merged(floating_xs, given)
            if isinstance(xs, Drawn):
                whole_xs = xs._replace(given=whole_xs)
            return jax.vmap(lambda before, x: differentiable(run(whole, before, x)))(
                before, whole_xs
            )

        _, pull_all = jax.vjp(steps, differentiable(params), differentiable(given))
        dparams, dxs = pull_all(deltas)
        dparams = jax.tree.map(lambda d, like: d.astype(like.dtype), dparams, zero_sums(params))
        return dparams, dxs, None

    return Cell(
        name=name,
        init=init,  # type: ignore[arg-type]
        initial_state=initial_state,
        step=run,
        expects=expects,
        project=project,
        advance=advance,
        output=output,
        linearize=linearize,
        pull=pull,
        gradients=gradients,
        doc=step.__doc__,
    )


def _of_one_step(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _merged(floating: Any, whole: Any) -> Any:
    """``whole`` with the leaves that `differentiable` keeps replaced."""
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf,
        floating,
        whole,
        is_leaf=lambda leaf: leaf is None,
    )


def _varies(f: Callable[..., Any], params: Params, *args: Any) -> list[bool]:
    """For each leaf of ``f(params, *args)``, whether it depends on more than the params."""
    jaxpr = jax.make_jaxpr(lambda *given: jax.tree.leaves(f(*given)))(params, *args).jaxpr
    varying = set(jaxpr.invars[len(jax.tree.leaves(params)) :])

    def reads(variables: Any) -> list[bool]:
        # a literal is no variable, and cannot be hashed
        return [not hasattr(v, "val") and v in varying for v in variables]

    for equation in jaxpr.eqns:
        if any(reads(equation.invars)):
            varying.update(equation.outvars)
    return reads(jaxpr.outvars)
