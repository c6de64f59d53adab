"""Pytrees as flat dicts of leaves by name, and functions of such dicts.

Everything that the checks draw, differentiate or compile passes through here.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

__all__ = [
    "Arrays",
    "Function",
    "Run",
    "cast",
    "compiled",
    "differentiated",
    "flat_function",
    "floating",
    "floats",
    "named",
    "normal",
    "pull_back",
]

Arrays: TypeAlias = dict[str, Any]
"""Leaves of pytrees by name, such as ``params.w_hh``."""

Function: TypeAlias = Callable[[Arrays], tuple[Arrays, Arrays]]
"""From floating leaves to floating outputs, and beside them the outputs that have no gradient."""

Run: TypeAlias = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]
"""From floating leaves and cotangents to all outputs and the gradients, as numpy arrays."""


def named(names: Sequence[str], trees: Sequence[Any]) -> Arrays:
    """The leaves of some pytrees, each with the name of its tree and its path in it."""
    return {
        name + jax.tree_util.keystr(path): leaf
        for name, tree in zip(names, trees, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def floats(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)


def floating(arrays: Arrays) -> Arrays:
    return {path: leaf for path, leaf in arrays.items() if floats(leaf)}


def cast(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    """The pytree with its floating leaves in that dtype."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if floats(a) else a, tree)


def normal(like: Any, seed: int) -> Any:
    """A pytree of these shapes and dtypes, drawn from the standard normal distribution.

    Integers are 0 or 1, and so are booleans. Nothing is compiled.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        values = rng.normal(size=leaf.shape) if floats(leaf) else rng.integers(0, 2, leaf.shape)
        return np.asarray(values).astype(leaf.dtype)

    return jax.tree.map(draw, like)


def flat_function(
    f: Callable[..., Any], names: Sequence[str], args: Sequence[Any], outputs: Sequence[str]
) -> Function:
    """``f`` as a function of the floating leaves of its arguments, all others held fixed."""
    leaves, structure = named(names, args), jax.tree.structure(tuple(args))

    def function(inputs: Arrays) -> tuple[Arrays, Arrays]:
        given = [inputs.get(path, leaf) for path, leaf in leaves.items()]
        found = named(outputs, f(*jax.tree.unflatten(structure, given)))
        values = floating(found)
        return values, {path: leaf for path, leaf in found.items() if path not in values}

    return function


def pull_back(function: Function, inputs: Arrays, cotangents: Arrays) -> Arrays:
    """The gradients of the inputs, of the same names."""
    _, pull, _ = jax.vjp(function, inputs, has_aux=True)
    (gradients,) = pull(cotangents)
    return gradients


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``f`` under `jax.jit`, without optimisation where the compiler is known to take the options.

    For programs that run once, so that to compile them is all that they cost. A check is about the
    program, not about the code that an optimising compiler makes of it.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(f, **options)
    fast: dict[str, Any] = {
        "xla_backend_optimization_level": "0",
        "xla_llvm_disable_expensive_passes": True,
    }
    if jaxlib.version.__version__.startswith("0.10."):
        # XLA's older emitter compiles in half of the time; later versions have it no more
        fast["xla_cpu_use_fusion_emitters"] = False
    return jax.jit(f, compiler_options=fast, **options)


def differentiated(function: Function) -> Run:
    """From inputs and cotangents to values and gradients, compiled once for all cotangents."""

    @compiled
    def run(inputs: Arrays, cotangents: Arrays) -> tuple[Arrays, Arrays]:
        values, pull, others = jax.vjp(function, inputs, has_aux=True)
        (gradients,) = pull(cotangents)
        return {**values, **others}, gradients

    return lambda *given: jax.tree.map(np.asarray, run(*given))
