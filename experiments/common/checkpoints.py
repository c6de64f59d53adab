"""The training state on disk, by orbax-checkpoint: saved whole, checked when it is read.

A checkpoint holds the state and a note of where it comes from: which experiment, which options, and
the SHA-256 of the state. The note is what tells a damaged checkpoint and one of another run from
ours; orbax alone restores an altered array without a word.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import jaxrnn
from experiments.common.errors import InputError
from experiments.common.records import sha256_of_arrays


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """Open (and make) the folder that holds the last two checkpoints of a run.

    Use it as a context manager. What a killed save left behind is removed. InputError where the
    folder cannot be made or read.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        cleanup_tmp_directories=True,
        # the state is small; a save that has returned is on disk, and the next step may reuse
        # (donate) the buffers that were saved
        enable_async_checkpointing=False,
        # of several processes the first one saves, and must not wait for the others
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        ),
        create=False,
    )
    try:
        # orbax would notice a file of that name only later, with a traceback
        folder.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except OSError as error:
        raise InputError(
            f"{folder} must be a folder of checkpoints that can be read and written: "
            f"{error.strerror or error}. Move it away, or choose another --out."
        ) from error


def save(
    checkpoints: ocp.CheckpointManager, state: jaxrnn.TrainState, origin: Mapping[str, Any]
) -> None:
    """Write the state as the checkpoint of its step; ``origin`` is JSON and says whose it is."""
    packed = _pack(state)
    note = {"origin": origin, "sha256": sha256_of_arrays(packed)}
    checkpoints.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(packed), note=ocp.args.JsonSave(note)),
    )


def restore_latest(
    checkpoints: ocp.CheckpointManager,
    fresh: jaxrnn.TrainState,
    origin: Mapping[str, Any],
    *,
    run_folder: Path,
) -> jaxrnn.TrainState:
    """Return the state of the latest checkpoint, or ``fresh`` where there is none.

    Args:
        checkpoints: from `open_checkpoints`.
        fresh: the state of a new run, which gives the structure, shapes and dtypes.
        origin: must equal the ``origin`` that the checkpoint was saved with.
        run_folder: everything that the run has written, to remove by whoever starts over.

    Raises:
        InputError: the checkpoint is damaged or belongs to another run; it says what to remove.
    """
    step = checkpoints.latest_step()
    if step is None:
        return fresh
    folder = Path(checkpoints.directory) / str(step)
    try:
        note = checkpoints.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))
        found = note["note"]["origin"]
        # before the arrays are read: those of another run may not even have the same shapes
        if found == origin:
            packed = checkpoints.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_pack(fresh)))
            )["state"]
            if sha256_of_arrays(packed) != note["note"]["sha256"]:
                raise ValueError("the state does not have the SHA-256 that was noted with it")
            return _unpack(packed, fresh)
    # orbax and tensorstore raise many types for a missing, cut or altered file
    except Exception as error:
        reason = textwrap.shorten(str(error), 200)
        raise InputError(
            f"the checkpoint {folder} is damaged ({type(error).__name__}: {reason}). Remove "
            f"that folder to continue from the checkpoint before it, if there is one, or remove "
            f"{run_folder} to start over."
        ) from error
    raise InputError(
        f"the checkpoint {folder} is of another run: {_differences(found, origin)}. "
        f"Give the same options again, remove {run_folder} to start over, or choose another --out."
    )


# one array of bytes for the whole state: when one of many arrays cannot be read, orbax gives up the
# others, and tensorstore prints a traceback for each of them before our one message


def _pack(state: jaxrnn.TrainState) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return {"bytes": np.concatenate([np.ravel(leaf).view(np.uint8) for leaf in leaves])}


def _unpack(packed: dict[str, np.ndarray], like: jaxrnn.TrainState) -> jaxrnn.TrainState:
    leaves, structure = jax.tree.flatten(like._replace(key=jax.random.key_data(like.key)))
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = np.split(packed["bytes"], ends[:-1])
    arrays = [
        jax.numpy.asarray(part.view(leaf.dtype).reshape(leaf.shape))
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    state = jax.tree.unflatten(structure, arrays)
    return state._replace(key=jax.random.wrap_key_data(state.key))


def _differences(found: Any, expected: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return f"its origin is {found!r}"
    keys = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    return ", ".join(
        f"{key} is {found.get(key)!r} there and {expected.get(key)!r} here" for key in keys
    )
