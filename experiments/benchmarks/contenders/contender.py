"""What a contender's module defines as ``CONTENDER``."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.cases import PLAIN, Arrays, Case


class NotComparedError(Exception):
    """A case that a contender is left out of. The message is the reason."""


class Program(NamedTuple):
    """One operation, ready to run.

    ``run()`` makes one call and returns its outputs once they are computed; ``canonical(outputs)``
    gives them in jaxrnn's names and layout. ``compile()`` traces, lowers and compiles anew and
    returns JAX's compiled program; None where nothing is compiled.
    """

    run: Callable[[], Any]
    canonical: Callable[[Any], dict[str, np.ndarray]]
    compile: Callable[[], Any] | None = None


def _everywhere(platform: str) -> None:
    del platform


class Contender(NamedTuple):
    """A contender.

    Attributes:
        how: which of its ways of running a recurrent network is measured.
        programs: the case's operations by name; or raises `NotComparedError`.
        not_compared: by cell, or kind of case, why it is left out: other equations, or none.
        cells: the names of those that it has.
        without: by cell, weights that its equations lack; it is compared with them at zero.
        begin: prepares for JAX's default platform; the reason where it cannot run there.
    """

    how: str
    programs: Callable[[Case, Arrays], Mapping[str, Program]]
    not_compared: Mapping[str, str] = MappingProxyType({})
    cells: tuple[str, ...] = tuple(PLAIN)
    without: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    begin: Callable[[str], str | None] = _everywhere
