"""What a cell is: the pure functions that it hands to the engine.

Shapes, here and everywhere: ``T`` time, ``B`` batch (``...`` in the signatures: any number of
leading batch axes, none included), ``I`` input, ``H`` hidden, ``O`` output, ``K`` the steps of one
chunk of time, ``G`` the number of gate blocks in a weight. Sequences are time-major. The adjoint
of a quantity ``q`` is ``dq``, the gradient of the loss with respect to it; ``da`` is the adjoint
of a pre-activation.

The engine (`jaxrnn.bptt`) owns time, masks, chunks and memory; the cell owns its equations. Of its
pieces, two run inside the loops over time and hold one product with ``w_hh`` each: `advance`
forwards and `pull` backwards. All others run in bulk, over the ``K`` steps of a chunk at once, and
every piece must therefore accept leading axes of any number (`contract`: any beside that of time).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Cell", "Consts", "Params", "State"]

Params: TypeAlias = Any
"""A NamedTuple of weights, the cell's own type."""

State: TypeAlias = Any
"""A NamedTuple of arrays ``[..., H]``, the cell's own type; its field ``h`` is the output."""

Consts: TypeAlias = Any
"""A pytree of arrays that the cell reads at every step, or None."""


class Cell(NamedTuple):
    """A recurrent cell as a hashable record of pure functions.

    For users:

    - ``init(key, input_size, hidden_size, *, dtype=float32) -> params``
    - ``initial_state(params, batch_shape=()) -> state``, zeros
    - ``step(params, state, x, consts=None) -> (state, h)``, in the order of `jax.lax.scan`

    For the engine, in the order in which it calls them:

    - ``sizes(params) -> (I, H)``, read off the weights
    - ``project(params, xs, consts) -> inputs``: what needs no state, in bulk. A bias may as well be
      added in `advance`, where it is fused with what else is elementwise.
    - ``advance(params, state, inputs, consts) -> (state, gates)``: one step of the recursion, and
      what its adjoint needs beside the states. Called in the loop on one step, and in bulk on the
      saved previous states of a whole chunk when the gates were not kept.
    - ``linearize(params, before, after, gates, consts) -> factors``: the local derivatives of
      each step, elementwise, in bulk, from the states before and after it
    - ``arrange(factors) -> factors``, or None for the factors as they are: in bulk, the layout in
      which `pull` reads them fastest. `pull` takes either.
    - ``pull(params, dstate, factors, consts) -> (dstate_before, deltas)``: one step of the adjoint
      recursion. Linear in ``dstate``, the whole adjoint of the state after the step; the deltas
      are the adjoints of the pre-activations.
    - ``contract(params, xs, before, gates, deltas, consts) -> (dparams, dxs, dconsts)``: the sums
      over time and batch that the deltas give, one product each, in bulk. ``dparams`` and
      ``dconsts`` are summed in `jaxrnn.products.accumulation_dtype`; ``dconsts`` has the structure
      of ``consts`` with None for every leaf that is not floating.

    For diagnostics, or None:

    - ``slopes(after, gates) -> slopes``: a NamedTuple with, for every activation by name, its
      derivative ``[..., H]`` as a share of its steepest: ``4 i (1 - i)`` of a sigmoid,
      ``1 - g^2`` of a tanh

    Every field must be hashable, and functions may close over hashable constants only; arrays come
    through params, state or consts. ``init`` also tells what params to expect: it is called
    abstractly at other sizes, with ``dtype=`` by name, and the ranks of what it returns must not
    depend on the sizes. What `advance`, `pull` and `contract` return is checked against the state,
    the params and the inputs while tracing; whether it is right, `jaxrnn.testing.check_cell` tells.
    A cell that reads ``consts`` says so with ``takes_consts=True``, any other refuses them.
    """

    name: str
    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[..., tuple[State, Any]]
    sizes: Callable[[Params], tuple[int, int]]
    project: Callable[[Params, Any, Consts], Any]
    advance: Callable[[Params, State, Any, Consts], tuple[State, Any]]
    linearize: Callable[[Params, State, State, Any, Consts], Any]
    pull: Callable[[Params, State, Any, Consts], tuple[State, Any]]
    contract: Callable[[Params, Any, State, Any, Any, Consts], tuple[Params, Any, Consts]]
    takes_consts: bool = False
    arrange: Callable[[Any], Any] | None = None
    slopes: Callable[[State, Any], Any] | None = None
