"""Reading the programs that JAX traces: shared by the tests of structure."""

import jax


def jaxprs_of(equation):
    for value in equation.params.values():
        for leaf in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield inner


def equations(jaxpr):
    """Every equation, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_of(equation):
            yield from equations(inner)
