"""The library itself."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

import jaxrnn
from experiments.benchmarks.cases import CELLS
from experiments.benchmarks.contenders.adapter import Network, programs
from experiments.benchmarks.contenders.contender import Contender
from experiments.common.cells import cell_of


def network(unroll: Callable[..., Any], name: str, I: int, H: int) -> Network:
    """A cell of jaxrnn under one of its two ways of going through time."""
    cell = cell_of(name, H)
    like = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H))
    options = {} if cell.draw is None else {"key": jax.random.key(0)}
    return Network(
        params=functools.partial(_filled, like),
        unroll=lambda params, xs: unroll(cell, params, xs, **options)[1],
        step=cell.step,
        stream_step=jaxrnn.make_stream_step(cell),
        state=lambda **fields: _filled(cell.expects(like).state, fields),
        fields=lambda returned: returned[0]._asdict(),
    )


def _filled(record: Any, arrays: Mapping[str, Any]) -> Any:
    """A record, and those within it, with the arrays of the names of its fields."""
    return jax.tree.map_with_path(lambda path, _: arrays[path[-1].name], record)


CONTENDER = Contender(
    how="jaxrnn.unroll with its defaults; streaming: make_stream_step(cell)",
    programs=functools.partial(programs, functools.partial(network, jaxrnn.unroll)),
    cells=tuple(CELLS),
)
