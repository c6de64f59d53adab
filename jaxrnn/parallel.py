"""Training on several devices, in one process or in several: each device has its own rows.

The params are the same everywhere, the rows of the batch are spread over the axis `DATA_AXIS` of a
mesh. Each device runs `jaxrnn.unroll` on its own rows without waiting for the others; per training
step, the gradient of each weight is summed over devices once, after all loops over time. The loss
function sees the whole batch and stays as it is: a mean is the mean over all rows.

`jaxrnn.unroll` does so wherever its arguments are laid out like this, under any `jax.jit`; the
functions here lay them out, and make a training step that keeps them there. With several processes,
each calls `jax.distributed.initialize` before anything else, and then runs the same program on rows
of its own.

The cores of a CPU are devices after this line, which must come before anything else that JAX does:

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))

Then `make_mesh` has all cores that the process may use, and each core runs the loops over time of
its own rows. Where there is no `os.sched_getaffinity`, `os.cpu_count()` counts the cores.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrnn import training
from jaxrnn.checks import describe
from jaxrnn.sharding import DATA_AXIS
from jaxrnn.training import Optimizer, TrainState, TrainStep

__all__ = ["DATA_AXIS", "make_mesh", "make_train_step", "replicate", "shard_rows"]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis `DATA_AXIS`: all devices of all processes, or those given.

    Its axis is of type Auto, so that any loss function works as it is. A mesh with Explicit axes,
    what `jax.make_mesh` makes, serves all functions here too, if the loss function can handle it.

    Raises:
        ValueError: no devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError(f"`devices` must be None or at least one jax.Device; got {devices}")
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array, params or a `jaxrnn.TrainState` say, whole on each device of the mesh.

    With several processes, each must hold the same values: a state drawn from the same key.
    """
    everywhere = NamedSharding(_data_mesh(mesh), PartitionSpec())
    # a copy: a donated buffer must not be the caller's
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=everywhere)(tree)


def shard_rows(tree: Any, mesh: Mesh, axes: Any = 0) -> Any:
    """The arrays of a batch, or of a state carried from segment to segment, spread by rows.

    Args:
        tree: a pytree of arrays. With several processes, each passes its own rows, as many as the
            others, and the batch is made of all of them, in the order of the mesh.
        mesh: with an axis `DATA_AXIS`, which must divide the rows.
        axes: where the rows are: an axis for all arrays, or a prefix of the pytree with an axis for
            each, as ``in_axes`` of `jax.vmap`: for ``(xs, lengths, labels)`` it is ``(1, 0, 0)``.
            None: not spread, but whole on each device.

    Raises:
        TypeError: axes that are neither; a mesh that is none.
        ValueError: axes that do not fit the tree; rows that cannot be spread evenly.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> mesh = jaxrnn.parallel.make_mesh()
        >>> batch = jnp.ones((7, 32, 3)), jnp.full(32, 7)
        >>> xs, lengths = jaxrnn.parallel.shard_rows(batch, mesh, (1, 0))
        >>> xs.shape, tuple(xs.sharding.spec), tuple(lengths.sharding.spec)
        ((7, 32, 3), (None, 'data'), ('data',))
    """
    devices = _data_mesh(mesh).local_mesh.shape[DATA_AXIS]

    def shard(path: Any, leaf: Any, axis: int | None) -> jax.Array:
        name = "tree" + jax.tree_util.keystr(path)
        if axis is None:
            return jax.make_array_from_process_local_data(
                NamedSharding(mesh, PartitionSpec()), leaf
            )
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"`axes` must have an int or None for `{name}`; got {axis!r}")
        shape = np.shape(leaf)
        if not 0 <= axis < len(shape) or shape[axis] % devices:
            raise ValueError(
                f"`{name}` must have rows on axis {axis}, as `axes` says, of a number that "
                f"{devices} devices divide; got shape {shape}"
            )
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))
        return jax.make_array_from_process_local_data(sharding, leaf)

    try:
        each = jax.tree.broadcast(axes, tree, is_leaf=lambda axis: axis is None)
    except ValueError as error:
        raise ValueError(
            f"`axes` must be an int, None, or a prefix of `tree` with these; got {axes!r} "
            f"for {describe(tree)}"
        ) from error
    return jax.tree_util.tree_map_with_path(shard, tree, each)


def make_train_step(
    loss_fn: Callable[..., Any],
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    has_aux: bool = False,
    donate: bool = True,
    compiler_options: dict[str, Any] | Literal["auto"] | None = None,
) -> TrainStep:
    """`jaxrnn.make_train_step` on all devices of a mesh: same arguments, values, and metrics.

    The state is the same on each device before and after; `replicate` puts it there.
    The batch comes from `shard_rows`. To evaluate with the params elsewhere, `jax.device_get` them.

    Args:
        loss_fn: ``(params, batch, key) -> loss`` or ``(loss, aux)``, of the whole batch.
        optimizer: any optax optimizer, or `optax.MultiSteps`.
        mesh: with an axis `DATA_AXIS`.
        has_aux: whether ``loss_fn`` returns a dict of arrays to report, too. Those with rows, such
            as a state for the next segment, stay spread over the devices; scalars are on each.
        donate: whether the buffers of the state passed in are reused for the state returned.
        compiler_options: None, those of `jax.jit`, or ``"auto"``, for the devices of the mesh.

    Raises:
        TypeError: a mesh that is none; and as `jaxrnn.make_train_step`.
        ValueError: a mesh without that axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> mesh, optimizer = jaxrnn.parallel.make_mesh(), optax.sgd(0.1)
        >>> def loss_fn(params, xs, key):
        ...     return jnp.mean(jaxrnn.unroll(jaxrnn.GRU, params, xs)[1] ** 2)
        >>> params = jaxrnn.GRU.init(jax.random.key(0), 3, 5)
        >>> state = jaxrnn.init_train_state(params, optimizer, jax.random.key(1))
        >>> state = jaxrnn.parallel.replicate(state, mesh)
        >>> train_step = jaxrnn.parallel.make_train_step(loss_fn, optimizer, mesh)
        >>> xs = jaxrnn.parallel.shard_rows(jnp.ones((7, 32, 3)), mesh, 1)
        >>> state, metrics = train_step(state, xs)
        >>> int(state.step), state.params.w_hh.sharding.is_fully_replicated
        (1, True)
    """
    everywhere = NamedSharding(_data_mesh(mesh), PartitionSpec())
    step = training.step_function(loss_fn, optimizer, has_aux=has_aux)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        # the types of what the loss makes of the batch need not say where it is laid out
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    return training.compiled(
        train_step,
        donate=donate,
        compiler_options=compiler_options,
        platform=mesh.devices.flat[0].platform,
        in_shardings=(everywhere, None),
        out_shardings=(everywhere, None),
    )


def _data_mesh(mesh: Mesh) -> Mesh:
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, from make_mesh; got {describe(mesh)}")
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"`mesh` must have an axis {DATA_AXIS!r}; got the axes {mesh.axis_names}")
    return mesh
