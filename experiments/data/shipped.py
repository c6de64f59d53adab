"""Read and rebuild the small data files that ship beside this module, see README.md."""

import hashlib
import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.common.errors import InputError


def read(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """Return the arrays of the shipped file ``path`` by name.

    Raises:
        InputError: the file is missing, or its SHA-256 is not ``sha256``.
    """
    remedy = (
        f"Restore it with `git checkout -- experiments/data/{path.name}`, or rebuild it with "
        f"`python -m experiments.data.{path.stem}`."
    )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the data file {path}: {error.strerror}. {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"the data file {path} is damaged or altered: expected SHA-256 {sha256}, "
            f"found {found}. {remedy}"
        )
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write ``arrays`` to ``path``, and return the SHA-256 of the file."""
    # np.savez_compressed uses zlib, whose output differs between its implementations. The output of
    # bzip2 does not, so the file has the same bytes everywhere and its hash can be checked.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(path: Path, sha256: str, rebuild: Callable[[], str]) -> None:
    """Rebuild a shipped file and say whether it is the one that the loader expects."""
    try:
        found = rebuild()
    except InputError as error:
        sys.exit(f"error: {error}")
    if found != sha256:
        sys.exit(f"error: built {path} with SHA-256 {found}, but the loader expects {sha256}")
    print(f"built {path}, SHA-256 {found}")
