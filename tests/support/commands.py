"""The command line of the experiments in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def environment(cache, **more):
    """The environment variables of a process, without the tests' JAX flags.

    A smoke run spends its time on compiling: the processes share what they compile, in the folder
    ``cache``, and optimise little.
    """
    kept = {name: value for name, value in os.environ.items() if "JAX" not in name}
    return {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **more,
    }


def run(program, *arguments, env, cwd):
    """The finished process of ``python PROGRAM ARGUMENTS``."""
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=300,
        check=False,
    )
