"""Rows over devices: each device runs the engine on its own rows of the batch.

    mesh      one axis "data" over 2 devices
    xs        [T, B, I], spec (None, "data"): each device has B/2 rows
    params    spec (): whole on each device
    inside    each device runs the program of a single one on its rows, and waits for nobody
    hs        [T, B, H], spec (None, "data"), as xs
    dparams   one sum over the devices per weight, after all loops

Rows do not depend on each other, so `jax.shard_map` over the axes that they are spread over needs
no collective in any loop and no layout to state; its transposition sums the gradients of the
params. The compiler alone would sum each chunk's gradients over devices before adding them up.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

__all__ = [
    "DATA_AXIS",
    "of_one_layout",
    "of_one_type",
    "over_rows",
    "product_sharding",
    "zeros_beside",
]

DATA_AXIS = "data"
"""The axis of a mesh that rows are spread over, where the types of arrays do not tell (Auto)."""


def over_rows(
    run: Callable[[Any], Any],
    xs: jax.Array,
    *,
    batch_axes: int,
    in_axes: Any,
    out_axes: Any,
    out_like: Any,
) -> Callable[[Any], Any]:
    """``run``, with each device at work on its own rows; the same values however they are spread.

    On a mesh with Explicit axes, the rows are spread as the type of ``xs`` says, and so are the
    results. On a mesh with Auto axes, whose types do not tell, they are spread over `DATA_AXIS` if
    its size divides the first axis of the batch; arrays that lie elsewhere are moved before the
    loops. Any other axis, such as one that the hidden units are spread over, is the compiler's.

    Args:
        run: a function of a pytree of arrays that treats every row alike, and on its own.
        xs: one of these arrays, ``[T, *batch, ...]``.
        batch_axes: the axes of the batch.
        in_axes: the position of the first batch axis of each array, None if it has no rows: a
            prefix of the pytree.
        out_axes: the same for what ``run`` returns.
        out_like: for each result, or as a prefix of it, an array ``[*batch, ...]`` whose layout
            behind the rows it takes; None for any.
    """
    mesh = _mesh_of(xs)
    explicit = _axes(mesh, AxisType.Explicit)
    rows = _rows(xs, mesh, batch_axes)
    names = _names(rows)
    if _axes(mesh, AxisType.Manual):
        run = functools.partial(_run_alike, run)
    elif names:
        # the axes are Auto at this point, or made so by auto_axes below, which sets the mesh
        known = explicit or not jax.sharding.get_abstract_mesh().empty
        run = jax.shard_map(
            run,
            mesh=None if known else mesh,
            in_specs=(_specs(in_axes, rows),),
            out_specs=_specs(out_axes, rows),
            axis_names=names,
            # the check would ask user-defined cells to declare their constants as varying
            check_vma=False,
        )
    if not explicit:
        return run

    def layout(axis: int, like: Any) -> Any:
        def of(leaf: jax.Array) -> NamedSharding:
            behind = jax.typeof(leaf).sharding.spec[batch_axes:]
            free = (None if names & _names((entry,)) else entry for entry in behind)
            return NamedSharding(mesh, PartitionSpec(*[None] * axis, *rows, *free))

        if like is None:
            return NamedSharding(mesh, PartitionSpec(*[None] * axis, *rows))
        return jax.tree.map(of, like)

    shardings = jax.tree.map(layout, out_axes, out_like)
    return jax.sharding.auto_axes(run, axes=tuple(explicit), out_sharding=shardings)


def of_one_type(*arguments: Any) -> tuple[Any, ...]:
    """The arguments, inside of the caller's own `jax.shard_map`, all varying over the same axes.

    A rule's cotangents must be typed as its arguments are, and those of the params vary over
    devices as soon as the rows do. The transposition is the sum over devices. Elsewhere nothing
    happens.
    """
    anywhere = frozenset().union(*map(_varying, jax.tree.leaves(arguments)))
    return jax.tree.map(lambda leaf: _vary(leaf, anywhere), arguments)


def of_one_layout(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, ``[..., O]`` and ``[...]``, spread alike on every axis that they share.

    A rule's cotangents must be laid out as its arguments are, wherever types tell the layout: on
    Explicit axes. An axis is spread as the first array that spreads it has it.
    """
    meshes = [mesh for mesh in map(_mesh_of, arrays) if _axes(mesh, AxisType.Explicit)]
    if not meshes:
        return arrays
    spec: list[Any] = []
    for axis in range(max(a.ndim for a in arrays)):
        entries = [jax.typeof(a).sharding.spec[axis] for a in arrays if a.ndim > axis]
        free = [entry for entry in entries if not _names((entry,)) & _names(tuple(spec))]
        spec.append(next((entry for entry in free if _names((entry,))), None))

    def laid_out(a: jax.Array) -> jax.Array:
        layout = NamedSharding(meshes[0], PartitionSpec(*spec[: a.ndim]))
        return a if jax.typeof(a).sharding.spec == layout.spec else jax.sharding.reshard(a, layout)

    return tuple(map(laid_out, arrays))


def _run_alike(run: Callable[[Any], Any], arrays: Any) -> Any:
    return run(*of_one_type(arrays))


def zeros_beside(like: Any, beside: Any) -> Any:
    """Zeros of these shapes and dtypes, for loops that carry the arrays ``beside``.

    Inside of the caller's `jax.shard_map`, the types of arrays say along which axes they vary, and
    a loop's carry must keep its type.
    """
    anywhere = frozenset().union(*map(_varying, jax.tree.leaves(beside)))
    return jax.tree.map(lambda a: _vary(jnp.zeros(a.shape, a.dtype), anywhere), like)


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(axes - _varying(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def product_sharding(x: jax.Array, dy: jax.Array) -> NamedSharding | None:
    """The layout of ``x^T dy`` summed over all leading axes, which Explicit axes want stated.

    Each of its two axes as the operand has it.
    """
    mesh = _mesh_of(x)
    if not _axes(mesh, AxisType.Explicit):
        return None
    first, second = (jax.typeof(operand).sharding.spec[-1] for operand in (x, dy))
    return NamedSharding(
        mesh, PartitionSpec(None if _names((first,)) & _names((second,)) else first, second)
    )


def _mesh_of(x: jax.Array) -> AbstractMesh:
    """The mesh that an array is laid out on, if it is known; else an empty one."""
    ambient = jax.sharding.get_abstract_mesh()
    return jax.typeof(x).sharding.mesh if ambient.empty else ambient


def _axes(mesh: AbstractMesh, kind: AxisType) -> frozenset[str]:
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return frozenset(name for name, of in types if of == kind)


def _rows(xs: jax.Array, mesh: AbstractMesh, batch_axes: int) -> tuple[Any, ...]:
    """The mesh axes that the batch axes of ``xs [T, *batch, ...]`` are spread over: a spec."""
    rows = tuple(jax.typeof(xs).sharding.spec[1 : 1 + batch_axes])
    if (
        batch_axes > 0
        and not _names(rows)
        and DATA_AXIS in _axes(mesh, AxisType.Auto)
        and isinstance(xs.shape[1], int)
        and xs.shape[1] % mesh.shape[DATA_AXIS] == 0
    ):
        rows = (DATA_AXIS, *rows[1:])
    return rows


def _varying(x: jax.Array) -> frozenset[str]:
    """The Manual axes along which devices hold different values."""
    return jax.typeof(x).manual_axis_type.varying


def _names(entries: tuple[Any, ...]) -> frozenset[str]:
    """The axes of the mesh in entries of a `PartitionSpec`: each a name, several, or None."""
    return frozenset(
        name
        for entry in entries
        if entry is not None
        for name in ((entry,) if isinstance(entry, str) else entry)
    )


def _specs(axes: Any, entries: tuple[Any, ...]) -> Any:
    """The entries at each of these positions; nothing is spread where it is None."""
    return jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, *entries),
        axes,
        is_leaf=lambda axis: axis is None,
    )
