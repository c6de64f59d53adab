"""The library with a device of JAX's for each core, and the rows of the batch spread over them.

A product of one step is often too small for XLA to spread it over cores, and the next step waits
for it. Rows do not wait for each other.
"""

import functools
from collections.abc import Mapping

import jax

import jaxrnn
from experiments.benchmarks.cases import CELLS, Arrays, Case
from experiments.benchmarks.contenders import jaxrnn as ours
from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender, NotComparedError, Program
from experiments.common.machine import cores

# before JAX looks for its devices
jax.config.update("jax_num_cpu_devices", cores() or 1)


def network(cell: str, I: int, H: int) -> Network:
    mesh = jaxrnn.parallel.make_mesh()
    return ours.network(jaxrnn.unroll, cell, I, H)._replace(
        replicate=functools.partial(jaxrnn.parallel.replicate, mesh=mesh),
        spread=functools.partial(jaxrnn.parallel.shard_rows, mesh=mesh, axes=1),
    )


def programs_of(case: Case, arrays: Arrays) -> Mapping[str, Program]:
    if case.B % jax.device_count():
        raise NotComparedError(f"{jax.device_count()} devices cannot share {case.B} rows evenly")
    return programs(network, case, arrays)


def begin(platform: str) -> str | None:
    if platform != "cpu":
        return "for CPUs"
    return None if jax.device_count() > 1 else "needs several cores"


CONTENDER = Contender(
    how=(
        'jaxrnn.unroll with its defaults after jax.config.update("jax_num_cpu_devices", cores), '
        "with jaxrnn.parallel.replicate of the weights and shard_rows of the sequences"
    ),
    programs=programs_of,
    not_compared={"stream": "one row"},
    begin=begin,
    cells=tuple(CELLS),
)
