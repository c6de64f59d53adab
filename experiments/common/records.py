"""What a run leaves in its folder, written so that a kill at any moment does no harm."""

import hashlib
import json
import os
import platform
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrnn
from experiments.common.errors import InputError


def prepare_folder(folder: Path) -> Path:
    """Make the output folder and return it, with a leading ``~`` replaced by the home folder.

    InputError where it cannot be made or written.
    """
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    # expanduser raises RuntimeError for an unknown user
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--out must name a folder that can be made and written; got {folder}: "
            f"{getattr(error, 'strerror', None) or error}. Choose another --out."
        ) from error
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: readers see the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def append_rows(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Append one JSON object a line."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path, last_step: int) -> list[dict[str, float]]:
    """Cut a metrics file back to the steps 1..``last_step`` and return their rows.

    A killed run may have written rows past its last checkpoint, the last one cut short: the resumed
    run writes those steps again.

    Args:
        path: the file, a JSON object with a "step" a line; need not exist where ``last_step`` is 0.
        last_step: the step of the checkpoint that the run continues from.

    Raises:
        InputError: the file does not hold the steps 1..``last_step``, each once and in order; or
            what would be cut off is no run's rows; or the file cannot be read.
    """
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the metrics file {path}: {getattr(error, 'strerror', None) or error}. "
            f"Move it away, or choose another --out."
        ) from error
    kept = lines[:last_step]
    try:
        rows = [json.loads(line) for line in kept]
        steps = [row["step"] for row in rows]
    except (ValueError, KeyError, TypeError):
        steps = []
    if steps != list(range(1, last_step + 1)):
        raise InputError(
            f"{path} must hold the steps 1..{last_step}, each once, up to the checkpoint beside "
            f"it; it was changed. Remove {path.parent} to start over, or choose another --out."
        )
    for line in lines[last_step:]:
        if not _is_row(line):
            raise InputError(
                f"{path} would be overwritten, but is not of a run: every line must be a JSON "
                f'object with an integer "step"; got {textwrap.shorten(line, 60)!r}. '
                f"Move the file away, or choose another --out."
            )
    write_atomically(path, "".join(kept).encode())
    return rows


def _is_row(line: str) -> bool:
    """Whether `append_rows` wrote the line, even if a kill cut it short."""
    if not line.endswith("\n"):
        start = '{"step": '
        return line.startswith(start) or start.startswith(line)
    try:
        return isinstance(json.loads(line)["step"], int)
    except (ValueError, KeyError, TypeError):
        return False


def sha256_of_arrays(tree: Any) -> str:
    """SHA-256 over the bytes of all leaves, in the order of `jax.tree.leaves`."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    return {"python": platform.python_version(), "jaxrnn": jaxrnn.__version__, **packages}
