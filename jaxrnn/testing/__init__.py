"""Checking gradients that are written by hand: of a cell of your own, or of any function.

- `check_cell` holds a `jaxrnn.Cell` against autodiff of its own `step`.
- `check_sequence_gradients` holds one function against another.
- `relative_differences` measures how far two pytrees are apart, leaf by leaf.

The two checks raise at the first difference, and say which gradient is wrong, from which time step
on, and by how much. "First" follows backpropagation, which visits the last processed step first:
an error at a later visit may be the consequence. They run in float64, whatever JAX's flags say.
"""

from jaxrnn.testing.cells import check_cell
from jaxrnn.testing.compare import relative_differences
from jaxrnn.testing.gradients import check_sequence_gradients

__all__ = ["check_cell", "check_sequence_gradients", "relative_differences"]
