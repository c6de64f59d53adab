"""A cell against autodiff of its own step, from its pieces to its second derivatives."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells.cell import Cell, Consts, Params
from jaxrnn.checks import describe, require_hashable, size
from jaxrnn.sequence import unroll
from jaxrnn.testing.arrays import Arrays, Run, differentiated, floats, named, normal
from jaxrnn.testing.cases import (
    CASES,
    SMALL,
    Problem,
    both,
    draw,
    flat,
    in_dtype,
    inputs_of,
    template_of,
)
from jaxrnn.testing.compare import (
    Setup,
    compare,
    compare_derivatives,
    compare_runs,
    tolerance_of,
)
from jaxrnn.testing.first_steps import first_steps
from jaxrnn.testing.pieces import check_dtypes, check_expects, check_pieces

__all__ = ["check_cell"]


def check_cell(
    cell: Cell,
    *,
    example: tuple[Params, Any] | None = None,
    make_consts: Callable[..., Consts] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Check the handwritten adjoint of a cell against autodiff of its own `step`.

    Raises at the first failure of these, in this order:

    - ``expects`` says what the params and the initial state are, and refuses other params;
      ``recurrent``, if any, is a dict of square matrices;
    - float32 and bfloat16 go in, come out, and are what the gradients have, and no piece returns
      something else than `jaxrnn.Cell` says;
    - each piece does what the engine relies on: many steps at once give what they give one by one,
      ``step`` is ``project`` and ``advance`` (and ``output``), ``pull`` is linear, rows do not read
      each other, the same key draws the same arrays, and ``slopes``, if any, lie in 0..1;
    - `jaxrnn.unroll` has the values and gradients of `jaxrnn.unroll_reference`, for every floating
      leaf of params, inputs, initial state, reset state and consts and every output, in cases that
      cover no, one, few and many steps; no, one and three batch axes and no rows; sizes of 1 and
      above 8; lengths, masks with holes, resets, detached steps and both directions; all of
      ``residuals``; with a key and without;
    - the same holds where large inputs saturate the gates, in float64, and in float32 and bfloat16
      against float64;
    - the second derivatives agree as well.

    Takes about ten seconds on two cores, nearly all of it to compile, and one for most wrong
    cells. The values are drawn in float64 whatever JAX's flags say: params around half of what
    ``cell.init`` gives, so that no bias is zero and no state explodes, everything else from the
    standard normal distribution. Integers are 0 or 1.

    Args:
        cell: the `jaxrnn.Cell` to check.
        example: ``(params, x)``: params, taken as they are, and one input without time and batch
            axes, of which only shapes and dtypes are used. For a cell without ``init``, or one
            that cannot have all sizes from 1 to 11, or with several inputs whose sizes ``expects``
            leaves free.
        make_consts: for a cell that takes consts, ``(key, batch_shape, input_size, hidden_size,
            dtype) -> consts``, with floating leaves in that dtype. They must be the same for the
            same key.
        tolerance: the largest difference allowed in float64, relative to the gradient's largest
            entry; None for ``2**12 * eps``.
        seed: for everything that is drawn.

    Raises:
        AssertionError: the cell fails. The message says which gradients are wrong (such as
            ``params.w_hh``, ``xs``, ``initial_state.c``, ``consts['mask']``) in which case, for
            which cotangents, and by how much, and at which time step each begins to be: for a
            parameter by the share that every step has in its gradient, for the initial state by
            the adjoint of the state before every step.
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.testing import check_cell
        >>> def pull(params, dstate, slope, consts):  # without the slope of tanh
        ...     return jaxrnn.ELMAN.pull(params, dstate, 0 * slope + 1, consts)
        >>> try:
        ...     check_cell(jaxrnn.ELMAN._replace(name="MINE", pull=pull))
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        MINE: wrong gradient of params.w_ih, params.w_hh, params.b, xs, initial_state.h
    """
    _check_arguments(cell, example, make_consts)
    try:
        require_hashable(cell)
    except TypeError as error:
        raise AssertionError(f"{cell.name}: {error}") from error
    setup = Setup(
        title=f"{cell.name}: ",
        sides=("rule", "autodiff"),
        tolerance=tolerance_of(tolerance, jnp.float64),
        seed=size("seed", seed, least=0),
    )
    # first the checks that compile fast and tell much
    first = CASES[0]
    plan = [(check_expects, first), (check_dtypes, first._replace(key=True)), (check_pieces, first)]
    plan += [(_check_rule, case) for case in CASES]
    plan += [(_check_second_order, SMALL)]
    with jax.enable_x64(True):
        with _errors_of_the_cell(setup):
            template = template_of(cell, make_consts, example, setup.seed)
        for check, case in plan:
            this = setup._replace(setting=case.describe(template), reverse=case.reverse)
            with _errors_of_the_cell(this):
                problem = draw(template, case)
                if tolerance is None:
                    # a cell may compute in a dtype of its own
                    dtypes = {leaf.dtype for leaf in inputs_of(problem).values()}
                    this = this._replace(tolerance=tolerance_of(None, *dtypes))
                check(this, problem)


def _check_arguments(cell: Any, example: Any, make_consts: Any) -> None:
    if not isinstance(cell, Cell):
        raise TypeError(f"`cell` must be a jaxrnn.Cell; got {describe(cell)}")
    if example is None and cell.init is None:
        raise TypeError(
            f"`example` must be (params, x), because {cell.name} has no `init`; got None"
        )
    if example is not None and not (isinstance(example, tuple) and len(example) == 2):
        raise TypeError(
            "`example` must be (params, x), x one input without time and batch axes; got "
            f"{describe(example)}"
        )
    if cell.consts_rows is None and make_consts is not None:
        raise ValueError(f"`make_consts` must be None: {cell.name} takes no consts")
    # a cell that draws has consts_rows for the arrays that it draws
    needed = cell.needs_consts or (cell.consts_rows is not None and cell.draw is None)
    if (needed or make_consts is not None) and not callable(make_consts):
        raise TypeError(
            "`make_consts` must be a function (key, batch_shape, input_size, hidden_size, dtype) "
            f"-> consts, because {cell.name} takes consts; got {describe(make_consts)}"
        )


def _check_rule(setup: Setup, problem: Problem) -> None:
    """Values and gradients of `unroll` against those of `unroll_reference`."""
    times, inputs = _times(problem), inputs_of(problem)
    locate = functools.partial(first_steps, setup, problem)
    runs = compare(setup, *both(problem), inputs, times, locate)
    if problem.case.tails:
        _check_tails(setup, problem, runs)


def _times(problem: Problem) -> dict[str, int]:
    """The leaves with a time axis."""
    _, xs, state, *_ = problem.args
    return dict.fromkeys(named(["xs", "hs", "states"], [xs, None, state]), 0) | {"hs": 0}


def _check_tails(setup: Setup, problem: Problem, runs: tuple[Run, Run]) -> None:
    """The same where gates saturate: in float64, and in fewer bits against float64."""
    params, xs, *rest = problem.args
    # a power of two, which rounds nothing: most gates of a cell with I = 9 are shut or open
    large = problem._replace(
        args=(params, jax.tree.map(lambda a: 8 * a if floats(a) else a, xs), *rest)
    )
    exact = inputs_of(large)

    def check(setup: Setup, these: Problem, run: Run, reference: Run, locate: bool) -> None:
        outputs, _ = jax.eval_shape(flat(unroll, these), inputs_of(these))
        drawn = normal(outputs, setup.seed)
        where = functools.partial(first_steps, setup, these) if locate else None
        compare_runs(
            setup, (run, reference), inputs_of(these), drawn, "all outputs", _times(these), where
        )

    setting = f"{setup.setting}, large inputs"
    check(setup._replace(setting=setting), large, *runs, locate=True)

    def in_float64(inputs: Arrays, cotangents: Arrays) -> tuple[Arrays, Arrays]:
        inputs = {path: leaf.astype(exact[path].dtype) for path, leaf in inputs.items()}
        # the cotangents of a cell with an output dtype of its own have that one in every run
        cotangents = {p: d.astype(like[p].dtype) for p, d in cotangents.items()}
        return runs[1](inputs, cotangents)

    like, _ = jax.eval_shape(flat(unroll, large), exact)
    for dtype in (jnp.float32, jnp.bfloat16):
        these = in_dtype(large, dtype)
        dtypes = {leaf.dtype for leaf in inputs_of(these).values()}
        this = setup._replace(
            setting=f"{setting}, {jnp.dtype(dtype)} against float64",
            tolerance=tolerance_of(None, *dtypes),
        )
        check(this, these, differentiated(flat(unroll, these)), in_float64, locate=False)


def _check_second_order(setup: Setup, problem: Problem) -> None:
    compare_derivatives(setup, *both(problem), inputs_of(problem))


@contextlib.contextmanager
def _errors_of_the_cell(setup: Setup) -> Iterator[None]:
    """The engine's or JAX's refusal of arguments that were made here is the cell's failure."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{setup.title}{error}\n  {setup.setting}") from error
