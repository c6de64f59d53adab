"""The errors that an experiment shows as one message, without a traceback."""

from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something outside the code is wrong and a person can put it right.

    An option, an output folder, a checkpoint or a data file. The message names it, says what was
    expected and what came, and what to do. On the command line: exit code 2.
    """


class CrossCheckError(RuntimeError):
    """The handwritten gradient differs from autodiff: nothing trained with it could be trusted.

    On the command line: exit code 1.
    """


class NumericalError(RuntimeError):
    """A loss or a gradient is of no use: not finite, or a gradient that is zero throughout.

    The options brought the run there, no wrong rule. On the command line: exit code 1.
    """


def require_option(config: Any, name: str, holds: bool, expected: str) -> None:
    """Raise InputError, which names the option and its value in ``config``, unless it holds."""
    if not holds:
        option = "--" + name.replace("_", "-")
        raise InputError(f"{option} must be {expected}; got {getattr(config, name)}")


def require_folder_name(config: Any) -> None:
    """Raise InputError unless ``config.out`` names a folder other than the current one."""
    expected = "the name of a folder other than the current one (which an empty name means)"
    require_option(config, "out", config.out != Path(), expected)
