"""What the numbers depend on beside the code: the machine, the packages, the source."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.common import records

_PEERS = ("flax", "dm-haiku", "equinox", "keras", "torch")
_ACCELERATORS = (
    *("jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)


def describe(jax_platform: str, device: str) -> dict[str, Any]:
    """The machine and how it was used; nothing that names it."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "jax_platform": jax_platform,
        "device": device,
    }


def cores() -> int | None:
    """The cores that this process may use, where the system tells it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _processor() -> str:
    """The processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def versions() -> dict[str, str]:
    """Versions of the packages that are measured and installed."""
    found = records.versions()
    for name in (*_PEERS, *_ACCELERATORS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def source(module: str) -> dict[str, Any]:
    """When and by what command, and the commit; whether the files differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain")
    return {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": None if changes is None else bool(changes),
    }


def words() -> str:
    """The processor and its cores, for a sentence."""
    return f"{cores()} cores of {_processor()}"
