"""Where an experiment runs: on one device, on several, or in several processes.

With a mesh of None, the one device that JAX takes by itself, nothing is laid out.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import jaxrnn
from experiments.common.errors import InputError


class Placement(NamedTuple):
    """Devices of each process, and, with several processes, which one this is.

    ``coordinator`` is the address HOST:PORT at which the first process waits for the others.
    """

    devices: int
    coordinator: str | None
    num_processes: int
    process_id: int


# the fewest rows for which a device of one core was seen to gain. Two devices beside one, in
# `spoken_vowels`, on two cores of an AMD EPYC: the least time of a step is 0.66 to 0.81 for the
# LSTM, 1.0 for the GRU, 1.1 to 1.4 for the Elman network. Where other programs use the cores too,
# the median of an LSTM's step is 1.1
ROWS_PER_CORE = 32


def one_per_core(rows: int) -> int:
    """How many devices to make of the cores of a CPU, so that ``rows`` are spread equally.

    1 where JAX has an accelerator. Before anything else of JAX, like `start`, for one process.
    """
    available = getattr(os, "sched_getaffinity", None)
    cores = len(available(0)) if available else os.cpu_count() or 1
    most = max(1, min(cores, rows // ROWS_PER_CORE))
    count = next(count for count in range(most, 0, -1) if rows % count == 0)
    if count == 1:
        return 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    there = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return count if count <= there else 1


def start(placement: Placement) -> Mesh | None:
    """Join the other processes, and return the mesh of all their devices; None for one device.

    Before anything else of JAX: it settles what devices there are.

    Raises:
        InputError: fewer devices than asked for; no process answered at the address.
    """
    wanted, coordinator, processes, process_id = placement
    if wanted == processes == 1:
        return None
    # on a CPU, devices are made on demand; where they are there already, they are counted below
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted)
    if processes > 1:
        try:
            jax.distributed.initialize(coordinator, processes, process_id)
        except RuntimeError as error:
            raise InputError(
                f"--coordinator must be an address that all {processes} processes reach, where "
                f"the first one can listen; got {coordinator}: {error}"
            ) from error
    found = jax.local_device_count()
    if found < wanted:
        raise InputError(f"--devices must be at most {found}, as many as there are; got {wanted}")
    each = [
        [device for device in jax.devices() if device.process_index == process][:wanted]
        for process in range(processes)
    ]
    return jaxrnn.parallel.make_mesh([device for devices in each for device in devices])


def make_train_step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation, mesh: Mesh | None
) -> Callable[[jaxrnn.TrainState, Any], tuple[jaxrnn.TrainState, dict[str, Any]]]:
    """The training step on that mesh."""
    if mesh is None:
        return jaxrnn.make_train_step(loss, optimizer)
    return jaxrnn.parallel.make_train_step(loss, optimizer, mesh)


def place_state(state: jaxrnn.TrainState, mesh: Mesh | None) -> jaxrnn.TrainState:
    """The state of the first process, which may have read it from a checkpoint, on all devices."""
    if mesh is None:
        return state
    numbers = multihost_utils.broadcast_one_to_all(
        state._replace(key=jax.random.key_data(state.key))
    )
    key = jax.random.wrap_key_data(jnp.asarray(numbers.key))
    return jaxrnn.parallel.replicate(numbers._replace(key=key), mesh)


def place_rows(batch: Any, mesh: Mesh | None, axes: Any) -> Any:
    """A batch that every process has drawn alike, spread over all devices by its rows.

    Args:
        batch: a pytree of arrays.
        mesh: from `start`.
        axes: where the rows are, as in `jaxrnn.parallel.shard_rows`, an axis for each array.
    """
    if mesh is None:
        return batch
    own = jax.tree.map(
        lambda leaf, axis: np.split(leaf, jax.process_count(), axis)[jax.process_index()],
        batch,
        axes,
    )
    return jaxrnn.parallel.shard_rows(own, mesh, axes)
