"""Transforms: memoised functions from cell to cell, each with its own part of the adjoint.

- `projected`: a smaller hidden state. `heads`: a block-diagonal recurrence.
- `recurrent_dropout`, `zoneout`: noise on the recurrent path.
- `clipped`: a limited cell state. `clip_adjoint`: a limited adjoint.
- `with_dtypes`: products in few bits, the state in many.

They compose: ``zoneout(projected(LSTM, 64), c=0.1)``. Heads and projections go inside, next to the
cell that they shape. The same arguments make the same cell, so programs are compiled once.
"""

from jaxrnn.cells.transforms.clipping import clip_adjoint, clipped
from jaxrnn.cells.transforms.dropout import recurrent_dropout, zoneout
from jaxrnn.cells.transforms.heads import heads
from jaxrnn.cells.transforms.precision import with_dtypes
from jaxrnn.cells.transforms.projection import ProjectedParams, projected

__all__ = [
    "ProjectedParams",
    "clip_adjoint",
    "clipped",
    "heads",
    "projected",
    "recurrent_dropout",
    "with_dtypes",
    "zoneout",
]
