"""The contract between a cell and the engine: the pure functions that make a cell.

Shapes, here and everywhere: ``T`` time, ``B`` batch (``...`` in the signatures: any number of
leading batch axes, none included), ``I`` input, ``H`` hidden, ``O`` output, ``K`` the steps of one
chunk of time, ``G`` the number of gate blocks in a weight. Sequences are time-major. The adjoint
of a quantity ``q`` is ``dq``, the gradient of the loss with respect to it; ``da`` is the adjoint
of a pre-activation.

Glossary.

- adjoint: the gradient of the loss with respect to a quantity, along every path.
- after: the state that a step makes. before: the state that a step reads, cut where it is cut.
- carry: the state, or its adjoint, between two steps.
- chunk: K consecutive steps that the backward pass works on at once.
- consts: arrays that a cell reads at every step, the same at each.
- cotangent: the part of an adjoint that a reader outside of the recursion sends.
- cut: the carry is replaced by the reset state before a step reads it.
- deltas: adjoints of a step's pre-activations, or whatever the sums over time are made of.
- drawn: random arrays that `Cell.draw` makes of a key.
- factors: the local derivatives of a step, which its adjoint multiplies by.
- gates: what a step computes beside the state and its adjoint needs again.
- inputs: what `Cell.project` makes of the steps' ``xs``.
- output: ``h``, what a step emits; a field of the state, or `Cell.output` of it.
- pull: one step of the adjoint recursion, from after to before.
- residuals: arrays kept from the forward to the backward pass.
- row: one entry of the batch.
- slopes: derivatives of the activations, as a share of the steepest.
- start: the state before the first step. reset state: the state that a reset returns to.
- stop: the step reads the carry, and no gradient leaves it towards earlier steps.
- valid: the step happens; elsewhere the state is held, nothing is read, and the output is zero.

The engine (`jaxrnn.bptt`) owns time, masks, chunks and memory; the cell owns its equations. Two
pieces run inside the loops over time: `advance` forwards and `pull` backwards. All others run in
bulk, on the ``K`` steps of a chunk at once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxrnn.checks import batch_shape_of

__all__ = [
    "Cell",
    "Consts",
    "Drawn",
    "Expects",
    "Forms",
    "Params",
    "Same",
    "State",
    "documentation",
    "drawn_of",
    "zero_state",
]

Params: TypeAlias = Any
"""A pytree of weights, the cell's own type."""

State: TypeAlias = Any
"""A pytree of arrays ``[..., *]``, the cell's own type; its field ``h``, if any, is the output."""

Consts: TypeAlias = Any
"""A pytree of arrays that the cell reads at every step, or None."""


class Expects(NamedTuple):
    """Shapes and dtypes: pytrees of `jax.ShapeDtypeStruct` without time and batch axes.

    ``params`` may be None where the cell takes any. A leaf of ``x`` may be an int
    instead, the rank of one input whose sizes and dtype are free; one int stands for all leaves.
    """

    params: Params
    x: Any
    state: State


class Drawn(NamedTuple):
    """An argument of the caller's, and the arrays that the cell drew beside it, None without a key.

    The pieces of a cell with `Cell.draw` get this in the place of ``xs``, ``x`` and ``consts``.
    """

    given: Any
    drawn: Any


def drawn_of(value: Any) -> Drawn:
    """``value`` as `Drawn`: a user's step passes its ``x`` and ``consts`` bare."""
    return value if isinstance(value, Drawn) else Drawn(value, None)


class Same(NamedTuple):
    """A factor that is the same at every step, such as a weight: it is not stacked over time."""

    value: Any


# not frozen: update_wrapper sets names
@dataclasses.dataclass(unsafe_hash=True)
class Forms:
    """A piece written twice: as ``default``, and as the loops for GPUs run it in fewer kernels.

    Both return the same for the same arguments. It is called like the piece.
    """

    default: Callable[..., Any]
    gpu: Callable[..., Any]

    def __post_init__(self) -> None:
        # `help` shows the piece, and errors name it; annotations could not be pickled
        functools.update_wrapper(self, self.default, ("__module__", "__name__", "__doc__"), ())

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.default(*arguments, **named)


class _OwnDocumentation:
    """``cell.__doc__`` is the cell's, ``Cell.__doc__`` the class's: `help` shows the right one."""

    def __init__(self, of_the_class: str) -> None:
        self.of_the_class = of_the_class

    def __get__(self, cell: "Cell | None", owner: type) -> str:
        return self.of_the_class if cell is None or cell.doc is None else cell.doc


class Cell(NamedTuple):
    """A recurrent cell as a hashable record of pure functions.

    For users:

    - ``init(key, input_size, hidden_size, *, dtype=float32) -> params``, or None
    - ``initial_state(params, batch_shape=()) -> state``, the state before the first step, to which
      resets return; its gradient reaches the params that it reads
    - ``step(params, state, x, consts=None) -> (state, h)``, in the order of `jax.lax.scan`

    For the engine, in the order in which it calls them:

    - ``expects(params) -> Expects``: shapes and dtypes of params, one input and one state. It
      raises the cell's own error if ``params`` cannot be its params.
    - ``project(params, xs, consts) -> inputs``: all that needs no state, in bulk. A bias may as
      well be added in `advance`, where it is fused with the elementwise rest.
    - ``advance(params, before, inputs, consts) -> (after, gates)``: one step of the recursion, and
      what its adjoint needs beside the states. The engine maps it over time where it computes
      gates again.
    - ``output(params, after, gates, consts) -> h``, in bulk; None if ``h`` is ``after.h``
    - ``linearize(params, inputs, before, after, gates, consts) -> factors``: the local derivatives
      of each step, in bulk. A factor wrapped in `Same` is not stacked over time.
    - ``arrange(factors) -> factors``, or None for the factors as they are: in bulk, the layout in
      which `pull` reads them fastest. `pull` takes either.
    - ``pull(params, dafter, factors, consts) -> (dbefore, deltas)``: one step of the adjoint
      recursion, linear in ``dafter``. ``dafter`` is the whole adjoint of the state after the step,
      the output's included in its field ``h``; of a cell with ``output`` it is the pair
      ``(dafter, dh)``. The adjoint of a leaf that is not floating is None. It may be `Forms`.
    - ``gradients(params, xs, before, after, gates, deltas, consts) -> (dparams, dxs, dconsts)``:
      the sums over time and batch that the deltas give, one product each, in bulk. ``dparams`` and
      ``dconsts`` are summed in `jaxrnn.dtypes.accumulation_dtype`; ``dxs`` and ``dconsts`` have
      the structure of ``xs`` and ``consts`` with None for every leaf that is not floating.

    Of a step that is not valid, ``xs`` and ``before`` are zeros, the deltas are zeros, and all else
    is finite and of no meaning.

    If the cell reads arrays beside these:

    - ``consts_rows(consts)``: which leaves of ``consts`` start with the batch axes, as a prefix of
      its pytree with True or False, like ``in_axes`` of `jax.vmap`. A cell that reads no consts
      leaves it None and refuses them.
    - ``draw(key, params, T, batch_shape) -> (consts, steps)``: random arrays, drawn once per call;
      leaves of ``steps`` are ``[T, *batch_shape, ...]``. `Drawn` carries them to the pieces beside
      the caller's ``consts`` and ``xs``: ``consts_rows`` is asked about a `Drawn` too. No gradient
      reaches what is drawn; ``dxs`` and ``dconsts`` are those of what was given.

    For diagnostics, or None:

    - ``slopes(after, gates) -> slopes``: a NamedTuple with, for every activation by name, its
      derivative ``[..., H]`` as a share of its steepest: ``4 i (1 - i)`` of a sigmoid,
      ``1 - g^2`` of a tanh
    - ``recurrent(params) -> {name: matrix [H, H]}``: the blocks through which a state reaches the
      next one, by gate

    ``linear`` is False for a cell whose `pull` is not linear in ``dafter``, because it limits the
    adjoint: diagnostics that push other vectors through it refuse the cell. Its `advance` has the
    same limit as the rule of a `jax.custom_vjp`, for autodiff of `step`; the engine takes the
    values alone.

    ``needs_consts`` is True for a cell that has no step without ``consts`` from the caller: a layer
    of a network, which has none, refuses it.

    ``doc`` is what `help` shows of the cell: its equations, params and state.

    Every field must be hashable, and functions may close over hashable constants only; arrays come
    through params, state, xs or consts. The shapes and dtypes that a piece returns are checked
    while tracing; whether the values are right, `jaxrnn.testing.check_cell` tells.
    """

    name: str
    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[..., tuple[State, Any]]
    expects: Callable[[Params], Expects]
    project: Callable[[Params, Any, Consts], Any]
    advance: Callable[[Params, State, Any, Consts], tuple[State, Any]]
    linearize: Callable[[Params, Any, State, State, Any, Consts], Any]
    pull: Callable[[Params, Any, Any, Consts], tuple[State, Any]]
    gradients: Callable[[Params, Any, State, State, Any, Any, Consts], tuple[Params, Any, Consts]]
    output: Callable[[Params, State, Any, Consts], Any] | None = None
    arrange: Callable[[Any], Any] | None = None
    consts_rows: Callable[[Consts], Any] | None = None
    draw: Callable[[Any, Params, int, tuple[int, ...]], tuple[Any, Any]] | None = None
    slopes: Callable[[State, Any], Any] | None = None
    recurrent: Callable[[Params], dict[str, Any]] | None = None
    linear: bool = True
    needs_consts: bool = False
    doc: str | None = None

    def __repr__(self) -> str:
        return f"<jaxrnn.Cell {self.name}>"

    def __call__(self, *_: Any, **__: Any) -> None:
        raise TypeError(
            f"a cell is a record of functions, not a layer to call: {self.name}.init(key, "
            f"input_size, hidden_size) makes params, jaxrnn.unroll(jaxrnn.{self.name}, params, xs) "
            "runs them over time"
        )


# NamedTuple's metaclass keeps no descriptor named __doc__ from the body
Cell.__doc__ = _OwnDocumentation(Cell.__doc__)  # type: ignore[assignment,arg-type]


def zero_state(expects: Expects, batch_shape: tuple[int, ...]) -> State:
    """The state of zeros of rows of that batch shape, each leaf an array of its own."""
    # two leaves that share an array could not be donated
    batch_shape = batch_shape_of(batch_shape)
    return jax.tree.map(lambda a: jnp.zeros((*batch_shape, *a.shape), a.dtype), expects.state)


def documentation(equations: str | None, *records: type) -> str:
    """`Cell.doc` of a cell whose module has these equations and these records."""
    return "\n\n".join([(equations or "").strip(), *(str(record.__doc__) for record in records)])
