"""Every term of an adjoint made wrong, one after the other, in one program.

A cell with *dials* multiplies every local derivative, every part of the adjoint that it hands back
and every sum by ``1 + dial``. With all dials at zero it is the cell; with one of them turned, a
gradient must be wrong, or nothing would notice if that term were.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.cells import Expects
from jaxrnn.dtypes import zero_sums


class Dialled(NamedTuple):
    """The params of the cell, and one number for each term of its adjoint."""

    params: Any
    dials: Any


def with_dials(cell, count):
    """``(cell, names)``: a cell of `Dialled` params, and the names of its terms.

    The names are complete once the cell's adjoint has been traced.
    """
    names: dict[str, int] = {}

    def turned(place, tree, dials):
        def turn(path, leaf):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            name = f"{place}{jax.tree_util.keystr(path)}"
            dial = dials[names.setdefault(name, len(names))]
            return leaf * (1 + dial).astype(leaf.dtype)

        assert len(names) <= count
        return jax.tree_util.tree_map_with_path(turn, tree)

    def of_params(piece):
        return lambda dialled, *arguments: piece(dialled.params, *arguments)

    def expects(dialled):
        inner = cell.expects(dialled.params)
        like = jax.ShapeDtypeStruct(dialled.dials.shape, dialled.dials.dtype)
        return Expects(params=Dialled(inner.params, like), x=inner.x, state=inner.state)

    def linearize(dialled, *arguments):
        factors = cell.linearize(dialled.params, *arguments)
        return turned("factors", factors, dialled.dials)

    def pull(dialled, *arguments):
        dbefore, deltas = cell.pull(dialled.params, *arguments)
        return turned("dbefore", dbefore, dialled.dials), deltas

    def gradients(dialled, *arguments):
        dparams, dxs, dconsts = cell.gradients(dialled.params, *arguments)
        dials = dialled.dials
        dparams, dxs = turned("dparams", dparams, dials), turned("dxs", dxs, dials)
        return Dialled(dparams, zero_sums(dials)), dxs, turned("dconsts", dconsts, dials)

    made = cell._replace(
        init=None,
        initial_state=of_params(cell.initial_state),
        step=of_params(cell.step),
        expects=expects,
        project=of_params(cell.project),
        advance=of_params(cell.advance),
        output=cell.output and of_params(cell.output),
        linearize=linearize,
        pull=pull,
        gradients=gradients,
        draw=cell.draw and (lambda key, dialled, *rest: cell.draw(key, dialled.params, *rest)),
        recurrent=None,
    )
    return made, names
