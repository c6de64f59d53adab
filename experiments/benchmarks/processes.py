"""The workers, seen from their parent: started, asked, and stopped whatever happens."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, NamedTuple

# a compilation may take a minute; a worker that takes ten for one answer hangs
ANSWER_SECONDS = 600.0
_EXIT_SECONDS = 10.0


class WorkerError(RuntimeError):
    """A worker died, hung, or could not do what it was asked for. The message says which."""


class Worker(NamedTuple):
    """A process of its own, the pipe to it, and what it printed."""

    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]


@contextlib.contextmanager
def worker(module: str, **environment: str) -> Iterator[Worker]:
    """Start a worker for the contender in ``module``, and end it with the block.

    Args:
        module: where ``CONTENDER`` is defined.
        **environment: variables on top of `_environment`.
    """
    ours, theirs = Pipe()
    with ours, tempfile.TemporaryFile() as log:
        with theirs:
            pipe = theirs.fileno()
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.benchmarks.worker", module, str(pipe)],
                env=_environment() | environment,
                pass_fds=[pipe],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # an interrupt at the terminal is for the parent, which then ends the workers
                start_new_session=True,
            )
        try:
            yield Worker(process, ours, log)
        finally:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """What the workers see: libraries as they come, but for what many processes on one GPU need."""
    # flags of XLA and JAX that were set for something else would change what is measured
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "JAX_PLATFORMS" or not name.startswith(("JAX_", "XLA_"))
    }
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "KERAS_BACKEND": "jax",
        # no settings of the user's, and none left in the home folder
        "KERAS_HOME": os.devnull,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def ask(worker: Worker, *request: Any, seconds: float = ANSWER_SECONDS) -> Any:
    """Send a request and wait for its answer."""
    try:
        worker.connection.send(request)
        if not worker.connection.poll(seconds):
            # a late answer would be taken for that to the next request
            worker.process.kill()
            raise WorkerError(f"no answer within {seconds:.0f} s")
        kind, value = worker.connection.recv()
    except (EOFError, OSError) as error:
        raise WorkerError(_end_of(worker)) from error
    if kind == "error":
        raise WorkerError(value)
    return value


def _end_of(worker: Worker) -> str:
    """How a worker ended, and the last that it said."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(_EXIT_SECONDS)
    worker.log.seek(0)
    lines = worker.log.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"its process ended with exit code {worker.process.returncode}: {last}"
