"""The check of handwritten gradients accepts the right ones, and says where a wrong one errs."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cells import (
    MASKED_ELMAN,
    MGU,
    RATE,
    MGUGates,
    MGUParams,
    rate_example,
    rate_gain,
)
from test_mutants import CELL_MUTANTS, ENGINE_MUTANTS, fresh, with_factors, with_gradients

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM, ElmanState
from jaxrnn.cells.cell import Drawn, Expects, Forms
from jaxrnn.plan import chunk_length
from jaxrnn.products import bias_gradient, input_gradient, weight_gradient
from jaxrnn.testing import cells, check_cell, check_sequence_gradients, relative_differences
from jaxrnn.testing.cases import CASES, SMALL, draw, template_of

ELMAN_INPUTS = ["params.w_ih", "params.w_hh", "params.b", "xs", "initial_state.h"]
LSTM_INPUTS = [*ELMAN_INPUTS, "initial_state.c"]
GRU_INPUTS = ["params.w_ih", "params.w_hh", "params.b", "params.b_hn", "xs", "initial_state.h"]
MGU_INPUTS = [*(f"params.{name}" for name in MGUParams._fields), "xs", "initial_state.h"]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """A mutant shares its programs, the reference's above all, with the cell that it is made of."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def make_consts(key, batch_shape, input_size, hidden_size, dtype):
    mask = jax.random.uniform(key, (*batch_shape, hidden_size), dtype)
    return {"mask": mask, "name": 7}


def refusal(cell, **options):
    with pytest.raises(AssertionError) as caught:
        check_cell(cell, **options)
    return str(caught.value)


def told(message):
    """The leaves that a message calls wrong, each with the step at which it says it begins."""
    lines = re.findall(r"^  (\S+): (?:first at step (\d+) .*)?largest difference", message, re.M)
    return {path: int(step) if step else None for path, step in lines}


def from_step(begin, *paths, **others):
    """What `told` should tell: these paths from this step on."""
    return {**dict.fromkeys(paths, begin), **others}


@pytest.mark.parametrize("cell", [LSTM, MGU], ids=lambda cell: cell.name)
def test_a_right_cell_is_accepted(cell, monkeypatch):
    """In one case and to second order: the next test, which is slow, has all of them."""
    monkeypatch.setattr(cells, "CASES", CASES[:1])
    assert check_cell(cell) is None


@pytest.mark.slow
@pytest.mark.parametrize("cell", [ELMAN, LSTM, GRU, MGU], ids=lambda cell: cell.name)
def test_a_right_cell_is_accepted_in_every_case(cell):
    assert check_cell(cell) is None


def test_the_cases_cover_every_kind_of_sequence():
    ragged = {c.residuals for c in CASES if c.T % max(chunk_length(c.T, c.residuals), 1)}
    assert ragged == {"gates", "states", "carries"}
    assert {0, 1} < {case.T for case in CASES}
    assert {(), (0,), (2, 3, 4)} < {case.batch for case in CASES}
    assert any(case.H > 8 and math.prod(case.batch) > 5 for case in CASES)
    for option in ("lengths", "mask", "resets", "detach", "reverse", "key"):
        assert {getattr(case, option) for case in CASES} == {False, True}
    assert {case.reset_state for case in CASES if case.resets} == {None, "rows", "one"}
    with_holes = [case for case in (*CASES, SMALL) if case.mask]
    assert {case.reverse for case in with_holes} == {False, True}
    assert all(case.resets and case.reset_state and case.detach for case in with_holes)


def test_a_cell_with_consts_is_accepted():
    check_cell(MASKED_ELMAN, make_consts=make_consts, seed=1)


def test_a_cell_with_all_that_the_contract_has_is_accepted():
    check_cell(RATE, example=rate_example(), make_consts=rate_gain)


def test_float64_is_used_whatever_the_flags_say(monkeypatch):
    """Also in what was traced before: float32 would miss the tolerance a million times."""
    monkeypatch.setattr(cells, "CASES", CASES[:1])
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        params = ELMAN.init(jax.random.key(0), 3, 7)
        jax.grad(lambda xs: jaxrnn.unroll(ELMAN, params, xs)[1].sum())(jnp.ones((5, 2, 3)))
        check_cell(ELMAN)
        assert jnp.ones(1).dtype == jnp.float32


# of 5 steps, so that backpropagation visits step 4 first. A wrong carry leaves step 4 right; the
# initial state is judged by the adjoint of the state before each step, which step 4 makes
LIBRARY_MUTANTS = {
    "elman_no_carry": from_step(3, *ELMAN_INPUTS[:-1], **{"initial_state.h": 4}),
    "elman_dx_sign": from_step(4, "xs"),
    "lstm_no_dc_carry": from_step(3, *LSTM_INPUTS[:-1], **{"initial_state.c": 4}),
    "lstm_c_for_c_before": from_step(4, *LSTM_INPUTS[:-1], **{"initial_state.c": 3}),
    "gru_direct_path_dropped": from_step(3, *GRU_INPUTS[:-1], **{"initial_state.h": 4}),
    "gru_transposed_w_hh": from_step(3, *GRU_INPUTS[:-1], **{"initial_state.h": 4}),
    "gru_dw_hh_from_the_input_side": from_step(4, "params.w_hh"),
    "elman_bias_gradient_is_a_mean": {"gradients.params.b": None},
    "lstm_dw_hh_of_the_state_one_step_too_early": {"gradients.params.w_hh": None},
    "gru_dx_in_the_wrong_order_of_time": {"gradients.xs": 0},
}


@pytest.mark.parametrize("name", LIBRARY_MUTANTS)
def test_a_mutant_of_a_library_cell_is_located(name):
    message = refusal(CELL_MUTANTS[name])
    assert told(message) == LIBRARY_MUTANTS[name], message


def mgu_pull(reset_to_gate=1, direct=1, kept=1, gate=1):
    """MGU's adjoint step with its terms weighed: dk in da_f; dh', dk and da_f in dh."""

    def pull(params, dstate, factors, consts):
        da_n = dstate.h * factors.n
        dk = input_gradient(da_n, params.u_n)
        da_f = dstate.h * factors.f + reset_to_gate * dk * factors.k
        dh = direct * dstate.h * (1 - factors.keep) + kept * dk * factors.keep
        dh = dh + gate * input_gradient(da_f, params.u_f)
        return dstate._replace(h=dh), MGUGates(f=da_f, n=da_n)

    return MGU._replace(pull=pull)


def wrong_sums(params, xs, before, after, gates, deltas, consts):
    """MGU's sums, each from the wrong side or of the wrong size."""
    dparams = MGUParams(
        w_f=weight_gradient(xs, deltas.n),
        u_f=-weight_gradient(before.h, deltas.f),
        b_f=bias_gradient(deltas.n),
        w_n=weight_gradient(xs, deltas.f),
        u_n=weight_gradient(before.h, deltas.n),
        b_n=2 * bias_gradient(deltas.n),
    )
    return dparams, input_gradient(deltas.f, params.w_f), None


GATE, CANDIDATE = ("params.w_f", "params.u_f", "params.b_f"), MGU_INPUTS[3:6]
CARRY = from_step(3, *MGU_INPUTS[:-1], **{"initial_state.h": 4})
MGU_MUTANTS = {
    "candidate_without_the_gate": (
        with_factors(MGU, lambda f, b, a, g: f._replace(n=1 - g.n**2)),
        from_step(4, *MGU_INPUTS),
    ),
    "candidate_without_its_slope": (
        with_factors(MGU, lambda f, b, a, g: f._replace(n=g.f)),
        from_step(4, *MGU_INPUTS),
    ),
    "gate_reads_the_new_state": (
        with_factors(MGU, lambda f, b, a, g: f._replace(f=(g.n - a.h) * g.f * (1 - g.f))),
        from_step(4, *GATE, "xs", "initial_state.h", **from_step(3, *CANDIDATE)),
    ),
    "gate_sign": (
        with_factors(MGU, lambda f, b, a, g: f._replace(f=-f.f)),
        from_step(4, *GATE, "xs", "initial_state.h", **from_step(3, *CANDIDATE)),
    ),
    "gate_without_its_slope": (
        with_factors(MGU, lambda f, b, a, g: f._replace(f=g.n - b.h)),
        from_step(4, *GATE, "xs", "initial_state.h", **from_step(3, *CANDIDATE)),
    ),
    "kept_without_the_slope_of_the_gate": (
        with_factors(MGU, lambda f, b, a, g: f._replace(k=b.h)),
        from_step(4, *GATE, "xs", "initial_state.h", **from_step(3, *CANDIDATE)),
    ),
    "kept_does_not_reach_the_gate": (
        mgu_pull(reset_to_gate=0),
        from_step(4, *GATE, "xs", "initial_state.h", **from_step(3, *CANDIDATE)),
    ),
    "no_direct_path": (mgu_pull(direct=0), CARRY),
    "kept_does_not_reach_the_state": (mgu_pull(kept=0), CARRY),
    "gate_does_not_reach_the_state": (mgu_pull(gate=0), CARRY),
    # compared one by one: no one of them hides another, and the recursion is right
    "every_sum": (MGU._replace(gradients=wrong_sums), from_step(4, *MGU_INPUTS[:-1])),
}


@pytest.mark.parametrize(("mutant", "where"), MGU_MUTANTS.values(), ids=MGU_MUTANTS)
def test_a_fault_in_any_term_of_an_adjoint_of_ones_own_is_located(mutant, where):
    message = refusal(mutant)
    assert told(message) == where, message


def test_the_gradient_of_consts_is_located():
    def gradients(*args):
        dparams, dxs, dconsts = MASKED_ELMAN.gradients(*args)
        return dparams, dxs, {**dconsts, "mask": 2 * dconsts["mask"]}

    mutant = MASKED_ELMAN._replace(gradients=gradients)
    assert told(refusal(mutant, make_consts=make_consts)) == {"consts['mask']": 4}


def test_the_message_tells_case_cotangents_step_and_size():
    """The bias gradient of the library, twice: off by exactly what it should be."""
    message = refusal(CELL_MUTANTS["lstm_bias_gradient_twice"])
    first, second, third = message.splitlines()
    assert first == "LSTM: wrong gradient of params.b"
    assert second == ("  T=5, batch=(6,), I=9, H=11, residuals='states', cotangents on all outputs")
    pattern = (
        r"  params.b: first at step 4 \(5 of 5 differ\); largest difference (\S+), 1.00e\+00 of "
        r"the largest entry, at \[\d+\]: rule (\S+), autodiff (\S+)"
    )
    difference, rule, autodiff = map(float, re.fullmatch(pattern, third).groups())
    np.testing.assert_allclose(rule, 2 * autodiff, rtol=1e-12)
    np.testing.assert_allclose(difference, abs(autodiff), rtol=1e-2)
    other_numbers = refusal(CELL_MUTANTS["lstm_bias_gradient_twice"], seed=1)
    assert other_numbers != message
    assert told(other_numbers) == {"params.b": 4}


@pytest.fixture
def masked_case_only(monkeypatch):
    """The first of the cases that have masks, to save the time that the others take."""
    case = CASES[1]
    assert case.lengths
    assert case.resets
    assert case.detach
    monkeypatch.setattr(cells, "CASES", (case,))
    return draw(template_of(ELMAN, None, None, 0), case).options


def test_a_fault_after_resets_alone_is_located_at_the_last_of_them(masked_case_only):
    """Backpropagation comes to the last reset first; w_hh and the start have no part in it."""

    def wrong(factors, before, after, gates):
        return jnp.where(before.h == 0, 2 * factors, factors)

    message = refusal(with_factors(ELMAN, wrong))
    assert "T=37, batch=(3,), I=2, H=5, lengths, resets, detach, residuals='gates'" in message
    resets, lengths = masked_case_only["resets"], masked_case_only["lengths"]
    last = np.max(np.nonzero(resets & (np.arange(37)[:, None] < lengths))[0])
    assert told(message) == from_step(last, "params.w_ih", "params.b", "xs"), message


def test_a_fault_that_only_one_output_shows_is_caught(monkeypatch):
    """The cotangent of final_state.c, dropped by the engine: it enters at the last step."""
    ENGINE_MUTANTS["dc_of_the_final_state_dropped"](monkeypatch)
    steps = told(refusal(fresh(LSTM)))
    assert steps["params.w_ih"] == steps["xs"] == 4


@pytest.mark.parametrize(
    "name",
    [
        "resets_do_not_stop_the_adjoint",
        "padding_does_not_hold_the_adjoint",
        "detach_dropped",
    ],
)
@pytest.mark.usefixtures("masked_case_only")
def test_a_wrong_mask_is_caught_where_there_are_masks(name, monkeypatch):
    ENGINE_MUTANTS[name](monkeypatch)
    message = refusal(fresh(GRU))
    assert "wrong gradient" in message
    assert "lengths, resets, detach" in message
    assert None not in told(message).values()


@pytest.mark.parametrize(
    "name", ["gradient_of_the_reset_state_dropped", "adjoint_reset_where_masked"]
)
def test_a_wrong_mask_is_located_in_reverse(name, monkeypatch):
    """One case has holes in its mask, a reset state per row, and runs in reverse."""
    monkeypatch.setattr(cells, "CASES", CASES[2:3])
    ENGINE_MUTANTS[name](monkeypatch)
    message = refusal(fresh(ELMAN))
    assert "mask, resets, detach, reverse, reset_state='rows', residuals='carries'" in message
    assert "reset_state.h" in told(message) or "initial_state.h" in told(message)


def scaled_where(condition):
    """The mutant whose slope of tanh is twice too large where ``condition(slope, state)`` holds."""

    def change(slope, before, after, gates):
        return jnp.where(condition(slope, after), 2 * slope, slope)

    return with_factors(ELMAN, change)


def rows(slope):
    """The batch shape of all steps."""
    return slope.shape[1:-1]


RARE_FAULTS = {
    "float32": scaled_where(lambda slope, after: slope.dtype == jnp.float32),
    "bfloat16": scaled_where(lambda slope, after: slope.dtype == jnp.bfloat16),
    "large": scaled_where(lambda slope, after: slope.shape[-1] > 7),
    "five_rows": scaled_where(lambda slope, after: math.prod(rows(slope)) >= 5),
    "one_row": scaled_where(lambda slope, after: rows(slope) == (1,) and slope.shape[-1] > 1),
    "three_batch_axes": scaled_where(lambda slope, after: len(rows(slope)) == 3),
    "saturated": scaled_where(lambda slope, after: jnp.abs(after.h) > 0.999),
}


@pytest.mark.parametrize("mutant", RARE_FAULTS.values(), ids=RARE_FAULTS)
def test_a_fault_in_few_bits_at_some_sizes_or_in_the_tails_is_caught(mutant):
    message = refusal(mutant)
    # second derivatives compare the gradients as values
    assert re.match(r"ELMAN: wrong (value of the )?gradient of ", message), message


def test_the_message_tells_where_only_few_bits_are_wrong():
    message = refusal(RARE_FAULTS["bfloat16"])
    assert "large inputs, bfloat16 against float64, cotangents on all outputs" in message
    assert told(message)["xs"] is not None


def piece(cell, name, change):
    """The cell with a piece whose returned value is changed."""
    right = getattr(cell, name)
    return cell._replace(**{name: lambda *args, **options: change(right(*args, **options))})


def stopped(tree):
    return jax.tree.map(jax.lax.stop_gradient, tree)


def without_the_carry(params, dstate, factors, consts):
    dbefore, da = LSTM.pull.gpu(params, dstate, factors, consts)
    return dbefore._replace(c=0 * dbefore.c), da


def with_cotangent_one(params, dstate, slope, consts):
    return ELMAN.pull(params, dstate._replace(h=jnp.ones_like(dstate.h)), slope, consts)


def clipped(params, dstate, slope, consts):
    return ELMAN.pull(params, dstate._replace(h=jnp.clip(dstate.h, -1, 1)), slope, consts)


def with_slopes(slope):
    return ELMAN._replace(slopes=lambda after, gates: after._replace(h=slope(after.h)))


def numbered(state):
    """A start that is another one for every row."""
    h = state.h
    return state._replace(h=h + jnp.arange(h.size, dtype=h.dtype).reshape(h.shape))


def expects_like(params):
    """Whatever comes is taken for params."""
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    x, h = (jax.ShapeDtypeStruct((n,), params.b.dtype) for n in params.w_ih.shape[-2:])
    return Expects(params=like, x=x, state=ElmanState(h=h))


def mixed(state):
    """Each row with the one before it, in part: not the same in another order."""
    return state._replace(h=state.h + jnp.roll(state.h, 1, axis=0) / 2)


def cast_state(state):
    return state._replace(h=state.h.astype(jnp.promote_types(state.h.dtype, jnp.float32)))


OTHER_FAULTS = {
    "project_in_bulk": (
        piece(ELMAN, "project", lambda inputs: inputs[::-1]),
        ["ELMAN: wrong value of project", "many steps at once", "first at step 0 (4 of 5"],
    ),
    "linearize_of_one_step": (
        piece(ELMAN, "linearize", lambda f: f.at[3:4].multiply(2)),
        ["ELMAN: wrong value of linearize", "many steps at once", "first at step 3 (1 of 5"],
    ),
    "step_is_not_advance": (
        piece(ELMAN, "step", lambda out: (out[0]._replace(h=2 * out[0].h), 2 * out[1])),
        ["ELMAN: wrong value of step.h", "the state that `advance` makes"],
    ),
    "output_is_not_h": (
        piece(ELMAN, "step", lambda out: (out[0], 2 * out[1])),
        ["ELMAN: wrong value of output", "`step` must return the field h"],
    ),
    "initial_state_by_row": (
        piece(ELMAN, "initial_state", numbered),
        ["ELMAN: wrong value of initial_state.h", "every row of a batch"],
    ),
    "initial_state_of_float32": (
        piece(ELMAN, "initial_state", lambda s: s._replace(h=s.h.astype(jnp.float32))),
        ["ELMAN: wrong shape or dtype of state.h", "got float32[11], expected float64[11]"],
    ),
    "expects_swapped": (
        piece(ELMAN, "expects", lambda e: e._replace(x=e.state.h, state=ElmanState(h=e.x))),
        ["ELMAN: wrong shape or dtype of state.h", "got float64[11], expected float64[9]"],
    ),
    "expects_everything": (
        ELMAN._replace(expects=expects_like),
        ["ELMAN: `expects` must refuse params", "params.w_ih of shape (1, 9, 11)", "(9, 11) is"],
    ),
    "recurrent_blocks_side_by_side": (
        LSTM._replace(recurrent=lambda params: {"all": params.w_hh}),
        ["LSTM: `recurrent(params)` must return a dict of square matrices", "[11, 44]"],
    ),
    "rows_read_each_other": (
        ELMAN._replace(
            step=lambda p, s, x, c=None: ELMAN.step(p, mixed(s), x),
            advance=lambda p, s, i, c: ELMAN.advance(p, mixed(s), i, c),
        ),
        ["ELMAN: wrong value of rows[0].h, rows[1]", "rows must not read each other"],
    ),
    "arranged_otherwise": (
        LSTM._replace(arrange=lambda f: LSTM.arrange(f)._replace(c_c=f.c_h)),
        ["LSTM: wrong value of arrange[0].c", "from `linearize` and from `arrange`"],
    ),
    # no program on a CPU holds it: only the piece can tell
    "form_for_gpus_otherwise": (
        LSTM._replace(pull=Forms(LSTM.pull, gpu=without_the_carry)),
        ["LSTM: wrong value of pull.gpu[0].c", "the form for GPUs must give"],
    ),
    "right_for_a_cotangent_of_one": (
        ELMAN._replace(pull=with_cotangent_one),
        ["ELMAN: wrong value of pull[0].h, pull[1]", "linear in its adjoint"],
    ),
    "clipped_inside": (
        ELMAN._replace(pull=clipped),
        ["ELMAN: wrong value of pull[0].h, pull[1]", "linear in its adjoint"],
    ),
    "float32_inside": (
        piece(ELMAN, "advance", lambda out: (cast_state(out[0]), out[1])),
        ["ELMAN", "bfloat16", "float32"],
    ),
    "shape_of_a_gradient": (
        with_gradients(ELMAN, lambda dp, dx, x, b, d: (dp._replace(b=dp.b.sum()), dx)),
        ["ELMAN.gradients must return `dparams` as"],
    ),
    "shape_of_the_state": (
        piece(ELMAN, "pull", lambda out: (out[0]._replace(h=out[0].h[:1]), out[1])),
        ["ELMAN.pull must return `dbefore` as"],
    ),
    "init_without_dtype": (
        ELMAN._replace(init=lambda key, i, h: ELMAN.init(key, i, h)),
        ["ELMAN: `init` must be (key, input_size, hidden_size, *, dtype=", "TypeError"],
    ),
    "slopes_above_one": (
        with_slopes(lambda h: 1 + h**2),
        ["ELMAN: `slopes(after, gates)` must", "in 0..1; got h from 1", "share of its steepest"],
    ),
    "slopes_below_zero": (with_slopes(lambda h: -(h**2)), ["in 0..1; got h from -"]),
    "slopes_nan": (with_slopes(lambda h: h * jnp.nan), ["in 0..1; got h from nan"]),
    "slopes_of_another_shape": (
        with_slopes(lambda h: 1 - h[0] ** 2),
        ["got h float32[6, 11], for"],
    ),
    "slopes_of_another_dtype": (
        with_slopes(lambda h: (1 - h**2).astype(jnp.float32)),
        ["got h float32[5, 6, 11], for a state bfloat16[5, 6, 11]"],
    ),
    "slopes_in_a_dict": (
        ELMAN._replace(slopes=lambda after, gates: {"h": 1 - after.h**2}),
        ["must return a NamedTuple", "got dict"],
    ),
    "slopes_that_raise": (
        ELMAN._replace(slopes=lambda after, gates: gates.h),
        ["ELMAN: `slopes(after, gates)` must return", "it raised AttributeError: 'tuple'"],
    ),
    "not_hashable": (ELMAN._replace(doc=[]), ["ELMAN: `cell` must be hashable: every field"]),
}


@pytest.mark.parametrize(("cell", "said"), OTHER_FAULTS.values(), ids=OTHER_FAULTS)
def test_what_the_engine_relies_on_is_checked(cell, said):
    message = refusal(cell)
    for part in said:
        assert part in message, message


def rate_sums(change):
    """`RATE` with its gradients changed by ``change(dparams, dxs, dgain, used)``, by name."""

    def gradients(*args):
        names = ("params", "xs", "before", "after", "gates", "deltas", "consts")
        return change(*RATE.gradients(*args), dict(zip(names, args, strict=True)))

    return RATE._replace(gradients=gradients)


def without_noise(key, params, T, batch_shape):
    mask, noise = RATE.draw(key, params, T, batch_shape)
    return mask, noise + np.random.default_rng().normal()


RATE_FAULTS = {
    "before_for_after": (
        rate_sums(
            lambda dp, dx, dg, at: (
                dp._replace(w_out=weight_gradient(at["before"].r, at["deltas"][1])),
                dx,
                dg,
            )
        ),
        "RATE: wrong gradient of params.w_out\n",
    ),
    "mask_forgotten_in_a_sum": (
        rate_sums(
            lambda dp, dx, dg, at: (
                dp._replace(w_hh=weight_gradient(at["before"].r, at["deltas"][0])),
                dx,
                dg,
            )
        ),
        "key, residuals='gates', cotangents on all outputs\n  params.w_hh: first at step",
    ),
    "gradient_of_the_gain_dropped": (
        rate_sums(lambda dp, dx, dg, at: (dp, dx, 0 * dg)),
        "RATE: wrong gradient of consts\n",
    ),
    "output_does_not_reach_the_state": (
        piece(RATE, "pull", lambda out: out)._replace(
            pull=lambda p, adjoint, f, c: RATE.pull(p, (adjoint[0], 0 * adjoint[1]), f, c)
        ),
        "RATE: wrong gradient of params.w_ih",
    ),
    "another_output_in_bulk": (
        piece(RATE, "output", lambda h: h * len(h)),
        "RATE: wrong value of output",
    ),
    "gradient_of_an_integer": (
        piece(RATE, "pull", lambda out: (out[0]._replace(n=out[0].r[..., :1]), out[1])),
        "RATE.pull must return `dbefore` as RateState(r=float32[6, 4], n=NoneType None)",
    ),
    "noise_of_its_own": (RATE._replace(draw=without_noise), "RATE: wrong value of draw[1]"),
    "noise_without_time": (
        RATE._replace(draw=lambda *args: RATE.draw(*args)[::-1]),
        "RATE.draw must return arrays [T, *batch, ...] for each step, here (5, 6)",
    ),
    "drawn_mask_that_is_no_rows": (
        RATE._replace(consts_rows=lambda consts: Drawn(given=False, drawn=False)),
        "RATE: wrong value of rows[0].r, rows[1]",
    ),
    "gain_that_is_no_rows": (
        RATE._replace(consts_rows=lambda consts: Drawn(given=True, drawn=True)),
        "`consts` must start with the batch axes of `xs`, (6,); got shape (3,)",
    ),
    "step_for_drawn_arrays_only": (
        RATE._replace(step=lambda p, s, x, c: RATE.step(p, s, Drawn(x.given, x.drawn), c)),
        "RATE: `step` must take x and consts as they are, too, and not only in a `Drawn`: see "
        "`jaxrnn.cells.cell.drawn_of`; it raised AttributeError: 'RateInput' object has no",
    ),
}


@pytest.mark.parametrize(("cell", "said"), RATE_FAULTS.values(), ids=RATE_FAULTS)
def test_a_fault_in_an_extra_of_the_contract_is_caught(cell, said):
    message = refusal(cell, example=rate_example(), make_consts=rate_gain)
    assert said in message, message


def test_a_rule_that_cannot_be_differentiated_again_is_caught(monkeypatch):
    """Every number of the gradient is right, and the gradient of the gradient is not."""
    # its first derivatives need one case only, to save time
    monkeypatch.setattr(cells, "CASES", CASES[:1])
    message = refusal(piece(ELMAN, "linearize", stopped))
    assert message.startswith("ELMAN: wrong gradient of params.w_ih")
    assert "second order, cotangents on all outputs" in message


@pytest.mark.parametrize(
    ("cell", "options", "error", "said"),
    [
        (jaxrnn.unroll, {}, TypeError, "`cell` must be a jaxrnn.Cell"),
        (MASKED_ELMAN, {}, TypeError, "`make_consts` must be .* MASKED_ELMAN takes consts"),
        (RATE, {}, TypeError, r"`example` must be \(params, x\), because RATE has no `init`"),
        (RATE, {"example": {}}, TypeError, r"`example` must be \(params, x\), x one input"),
        (ELMAN, {"make_consts": make_consts}, ValueError, "`make_consts` must be None: ELMAN"),
        (ELMAN, {"tolerance": "1e-9"}, TypeError, "`tolerance` must be a number"),
        (ELMAN, {"tolerance": -1.0}, ValueError, "`tolerance` must be finite"),
        (ELMAN, {"seed": 0.5}, TypeError, "`seed` must be an int"),
    ],
)
def test_arguments_of_check_cell(cell, options, error, said):
    with pytest.raises(error, match=said):
        check_cell(cell, **options)


def ema(xs, w, start, count=None):
    """h_t = w h_{t-1} + x_t, by a scan."""

    def step(h, x):
        h = w * h + x
        return h, h

    final, hs = jax.lax.scan(step, start, xs)
    return {"final": final, "hs": hs}


def custom_ema(change):
    """`ema` with a rule of its own, the gradients changed by ``change(dxs, dw, dstart)``."""

    @jax.custom_vjp
    def f(xs, w, start):
        return ema(xs, w, start)

    def fwd(xs, w, start):
        out = f(xs, w, start)
        return out, (w, jnp.concatenate([start[None], out["hs"][:-1]]))

    def bwd(residuals, d):
        w, before = residuals

        def step(dh, at):
            dy, h = at
            dh = dh + dy
            return w * dh, (dh, jnp.sum(dh * h))

        dstart, (dxs, dws) = jax.lax.scan(step, d["final"], (d["hs"], before), reverse=True)
        return change(dxs, jnp.sum(dws), dstart)

    f.defvjp(fwd, bwd)
    return lambda xs, w, start, count=None: f(xs, w, start)


EMA_ARGS = (np.arange(12, dtype=np.float32).reshape(6, 2) / 7, 0.5, np.ones(2, np.float32))


def difference(f, reference=ema, args=EMA_ARGS, **options):
    with pytest.raises(AssertionError) as caught:
        check_sequence_gradients(f, reference, args, **options)
    return str(caught.value)


def test_a_right_pair_is_accepted_to_second_order():
    """Whatever has no gradient is held fixed: integers, booleans, strings, keys, None."""
    fixed = {"n": 3, "flag": True, "name": "mean", "key": jax.random.key(0), "none": None}
    right = custom_ema(lambda *gradients: gradients)
    check_sequence_gradients(right, ema, (*EMA_ARGS, fixed), order=2)
    check_sequence_gradients(right, ema, EMA_ARGS, dtype=jnp.float32)


@pytest.mark.parametrize(("reverse", "step", "axis"), [(False, 3, 0), (True, 1, -2)])
def test_a_wrong_pair_is_located(reverse, step, axis):
    wrong = custom_ema(lambda dxs, dw, dstart: (dxs.at[1:4].multiply(1.5), dw, dstart))
    message = difference(
        wrong, names=("xs", "w", "start"), time_axis=(axis, None, None), reverse=reverse
    )
    assert message.startswith(
        "wrong gradient of xs\n  float64, cotangents on all outputs\n"
        f"  xs: first at step {step} (3 of 6 differ); largest difference "
    )
    assert re.search(r"5.00e-01 of the largest entry|at \[\d, \d\]: f \S+, reference \S+$", message)


def test_the_size_of_a_difference_is_told_where_nothing_or_little_is_expected():
    def sides(size):
        return (lambda x, y: (size + 1) * x + y), (lambda x, y: size * x + y)

    args = (np.float64(1.5), np.float64(1e6))
    zero = difference(*(lambda x, y, f=f: f(x, y) - y for f in sides(0.0)), args)
    assert "largest difference 1.50e+00, where all should be zero, at []: f 1.5, ref" in zero
    little = difference(*(lambda x, y, f=f: f(x, y) - y for f in sides(1e-3)), args)
    assert "1.50e+00, where no entry should be above 1.50e-03, at []" in little
    for message in (zero, little):
        assert "of the largest entry" not in message
        assert "inf" not in message


def test_leaves_are_named_by_position_and_path():
    wrong = custom_ema(lambda dxs, dw, dstart: (dxs, 2 * dw, -dstart))
    message = difference(lambda a, b: wrong(*a, **b), lambda a, b: ema(*a, **b),
                         (EMA_ARGS[:2], {"start": EMA_ARGS[2]}))  # fmt: skip
    assert told(message) == {"args[0][1]": None, "args[1]['start']": None}


def test_a_gradient_that_is_right_once_is_caught_at_second_order():
    wrong = custom_ema(lambda dxs, dw, dstart: (dxs, stopped(dw), dstart))
    check_sequence_gradients(wrong, ema, EMA_ARGS)
    assert "second order" in difference(wrong, order=2)


def test_values_shapes_and_nan_are_compared_too():
    def changed(change):
        return lambda *args: change(ema(*args))

    def at_step_2(out):
        return {**out, "hs": out["hs"].at[2].add(1)}

    assert difference(changed(at_step_2)).startswith("wrong value of output['hs']\n")
    shape = difference(changed(lambda out: {**out, "hs": out["hs"][1:]}))
    assert shape.startswith("wrong shape or dtype of output['hs']\n")
    assert "f float64[5, 2], reference float64[6, 2]" in shape
    missing = difference(changed(lambda out: {"hs": out["hs"]}))
    assert "f nothing, reference float64[2]" in missing
    count = difference(changed(lambda out: {**out, "n": 2}), changed(lambda out: {**out, "n": 3}))
    assert count.startswith("wrong value of output['n']\n")
    nan = custom_ema(lambda dxs, dw, dstart: (dxs, dw * jnp.nan, dstart))
    assert "f nan, reference" in difference(nan)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"f": 3}, TypeError, "`f` must be a function"),
        ({"reference": None}, TypeError, "`reference` must be a function"),
        ({"args": np.ones(3)}, TypeError, "`args` must be a tuple"),
        ({"args": (3, True)}, ValueError, "`args` must have a floating leaf"),
        ({"names": (1, 2, 3)}, TypeError, r"`names` must be strings; got \(1, 2, 3\)"),
        ({"names": ("xs",)}, ValueError, "`names` must have one entry for each"),
        ({"names": ("x", "x", "y")}, ValueError, "`names` must be all different"),
        ({"time_axis": (0,)}, ValueError, "`time_axis` must have one entry for each"),
        ({"time_axis": 0}, ValueError, r"`time_axis` must be an axis of args\[1\]"),
        ({"time_axis": (-3, None, None)}, ValueError, r"`time_axis` must be an axis of args\[0\]"),
        ({"time_axis": (0.5, None, None)}, TypeError, "`time_axis` must be an int"),
        ({"time_axis": True}, TypeError, "`time_axis` must have|`time_axis` must be an int"),
        ({"time_axis": "xs"}, TypeError, "`time_axis` must be an int"),
        ({"reverse": 1}, TypeError, "`reverse` must be True or False"),
        ({"order": 3}, ValueError, "`order` must be 1 or 2"),
        ({"dtype": jnp.int32}, TypeError, "`dtype` must be a floating dtype"),
        ({"tolerance": float("nan")}, ValueError, "`tolerance` must be finite"),
        ({"seed": -1}, ValueError, "`seed` must be an int"),
        ({"reference": lambda *args: 3, "f": lambda *args: 3}, ValueError, "`reference` must ret"),
    ],
)
def test_arguments_of_check_sequence_gradients(change, error, said):
    arguments = {"f": ema, "reference": ema, "args": EMA_ARGS, **change}
    with pytest.raises(error, match=said):
        check_sequence_gradients(**arguments)


def test_relative_differences_are_by_name_and_relative_to_the_largest_entry():
    actual = {"a": jnp.array([1.0, 5.0]), "b": (np.float32(0), 3)}
    expected = {"a": jnp.array([1.0, 4.0]), "b": (np.float32(0), 2)}
    found = relative_differences(actual, expected)
    assert found == {"a": 0.25, "b.0": 0.0, "b.1": 0.5}
    # of zeros there is no share
    assert relative_differences(np.full(2, 1e-3), np.zeros(2)) == {"": 1e-3}
    float0 = np.zeros(2, jax.dtypes.float0)
    assert relative_differences(float0, float0) == {"": 0.0}


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.array([1, np.nan]), np.array([1.0, 2])),
        (np.array([1.0, 2]), np.array([1, np.nan])),
        (np.array([np.nan]), np.array([np.nan])),
        (np.array([1.0, 2]), np.array([np.inf, 2])),
        (np.array([np.inf, 2]), np.array([np.inf, 2])),
        (np.ones(2), np.ones((2, 1))),
        (np.ones(1), None),
        (None, np.ones(1)),
    ],
    ids=str,
)
def test_relative_differences_never_pass_what_cannot_be_compared(actual, expected):
    wrong, right = sorted(
        relative_differences([actual, 1.0], [expected, 1.0]).values(), key=lambda d: d <= 1e300
    )
    assert not wrong <= 1e300
    assert right == 0
