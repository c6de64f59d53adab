"""The plain recurrence, a `lax.scan` that JAX differentiates: what one would write by hand."""

import functools

import jaxrnn
from experiments.benchmarks.cases import CELLS
from experiments.benchmarks.contenders.adapter import programs
from experiments.benchmarks.contenders.contender import Contender
from experiments.benchmarks.contenders.jaxrnn import network

CONTENDER = Contender(
    how="a plain lax.scan of cell.step, differentiated by JAX",
    programs=functools.partial(programs, functools.partial(network, jaxrnn.unroll_reference)),
    not_compared={"stream": "the same call as jaxrnn's"},
    cells=tuple(CELLS),
)
