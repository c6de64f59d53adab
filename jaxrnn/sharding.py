"""Rows over devices: each device runs the engine on its own rows of the batch.

Rows do not depend on each other. So inside `jax.shard_map`, over the axes of the mesh that the rows
are spread over, the program of each device is that of a single one: no collective in any loop, and
no layout to state. The params are what all rows share, and the transposition of handing them out is
one sum over devices per weight, after all loops. Left to itself, the compiler sums each chunk's
gradients over devices before it adds them up.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

__all__ = ["DATA_AXIS", "over_rows", "product_sharding"]

DATA_AXIS = "data"
"""The axis of a mesh that rows are spread over, where the types of arrays do not tell (Auto)."""


def over_rows(
    run: Callable[..., Any],
    xs: jax.Array,
    h: jax.Array,
    *,
    in_axes: tuple[int | None, ...],
    out_axes: Any,
    apart: bool,
) -> Callable[..., Any]:
    """``run``, with each device at work on its own rows; the same values however they are spread.

    On a mesh with Explicit axes, the rows are spread as the type of ``xs`` says, and what comes
    back is too. On one with Auto axes, where types do not tell, over `DATA_AXIS` where the first
    axis of the batch is divisible by its size; what lies elsewhere is moved before the loops.
    Everything else, such as an axis that the hidden units are spread over, is the compiler's.

    Args:
        run: a function of arrays that treats every row alike, and on its own.
        xs: ``[T, ..., I]``, of those rows.
        h: ``[..., H]``, laid out on ``H`` as the results shall be.
        in_axes: for each argument the position of its first batch axis, None if it has no rows.
        out_axes: the same for what ``run`` returns, as a prefix of it; the last axis is ``H``.
        apart: whether the rows can be taken apart; else all is the compiler's.
    """
    mesh = _mesh_of(xs)
    explicit = _axes(mesh, AxisType.Explicit)
    rows = _rows(xs, mesh)
    names = _names(rows)
    manual = _axes(mesh, AxisType.Manual)
    if manual:
        run = _of_one_type(run)
    elif names and apart:
        # the axes are Auto at this point, or made so by auto_axes below, which sets the mesh
        known = explicit or not jax.sharding.get_abstract_mesh().empty
        run = jax.shard_map(
            run,
            mesh=None if known else mesh,
            in_specs=_specs(in_axes, rows),
            out_specs=_specs(out_axes, rows),
            axis_names=names,
            # the check would ask of a cell of one's own to declare its constants as varying
            check_vma=False,
        )
    if not explicit:
        return run
    hidden = jax.typeof(h).sharding.spec[-1]
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        _specs(out_axes, (*rows, None if names & _names((hidden,)) else hidden)),
        is_leaf=lambda spec: isinstance(spec, PartitionSpec),
    )
    return jax.sharding.auto_axes(run, axes=tuple(explicit), out_sharding=shardings)


def _of_one_type(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, inside a `jax.shard_map` of the caller's, of arguments that differ by device alike.

    A rule's cotangents must be typed as its arguments are, and those of the params differ by device
    as soon as the rows do. Transposed, it is the sum over devices.
    """

    def alike(*arguments: Any) -> Any:
        anywhere = frozenset().union(*map(_varying, jax.tree.leaves(arguments)))
        return run(
            *jax.tree.map(
                lambda leaf: lax.pcast(leaf, tuple(anywhere - _varying(leaf)), to="varying"),
                arguments,
            )
        )

    return alike


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
    """The mesh that an array is laid out on, as far as is known; else an empty one."""
    ambient = jax.sharding.get_abstract_mesh()
    return jax.typeof(x).sharding.mesh if ambient.empty else ambient


def _axes(mesh: AbstractMesh, kind: AxisType) -> frozenset[str]:
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return frozenset(name for name, of in types if of == kind)


def _rows(xs: jax.Array, mesh: AbstractMesh) -> tuple[Any, ...]:
    """What each batch axis of ``xs [T, ..., I]`` is spread over, as in a `PartitionSpec`."""
    batch_axes = xs.ndim - 2
    rows = tuple(jax.typeof(xs).sharding.spec[1:-1])
    if (
        batch_axes > 0
        and not _names(rows)
        and DATA_AXIS in _axes(mesh, AxisType.Auto)
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
