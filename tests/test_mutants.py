"""Wrong rules are rejected: each adjoint broken on purpose fails what the right ones pass."""

import functools

import jax
import jax.numpy as jnp
import pytest
from support.problems import assert_same, make_problem, random_tree, vjp

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM, bptt, readout
from jaxrnn.cells.gru import GRUDeltas
from jaxrnn.products import bias_gradient, input_gradient, weight_gradient


def with_factors(cell, change):
    """The cell whose local derivatives are changed by ``change(factors, before, after, gates)``."""

    def linearize(params, before, after, gates, consts):
        return change(cell.linearize(params, before, after, gates, consts), before, after, gates)

    return cell._replace(linearize=linearize)


def with_pull(cell, change):
    """The cell whose adjoint step is changed by ``change(dbefore, deltas, params, dstate)``."""

    def pull(params, dstate, factors, consts):
        return change(*cell.pull(params, dstate, factors, consts), params, dstate)

    return cell._replace(pull=pull)


def with_sum(cell, name, change):
    """The cell whose gradient of one parameter is ``change(gradient, xs, before, deltas)``."""
    return with_contract(
        cell,
        lambda dp, dx, x, b, d: (dp._replace(**{name: change(getattr(dp, name), x, b, d)}), dx),
    )


def shifted(before):
    """The state one step too early."""
    return jnp.concatenate([before.h[:1], before.h[:-1]])


def with_contract(cell, change):
    """The cell whose sums are changed by ``change(dparams, dxs, xs, before, deltas)``."""

    def contract(params, xs, before, gates, deltas, consts):
        dparams, dxs, _ = cell.contract(params, xs, before, gates, deltas, consts)
        return *change(dparams, dxs, xs, before, deltas), None

    return cell._replace(contract=contract)


def no_carry(dbefore, deltas, params, dstate):
    return jax.tree.map(jnp.zeros_like, dbefore), deltas


def transposed(dbefore, deltas, params, dstate):
    """w_hh for its transpose, block by block."""
    du = deltas.du if isinstance(deltas, GRUDeltas) else deltas
    blocks = jnp.split(params.w_hh, du.shape[-1] // dbefore.h.shape[-1], axis=1)
    wrong = jnp.concatenate([block.T for block in blocks], axis=1)
    right = input_gradient(du, params.w_hh)
    return dbefore._replace(h=dbefore.h - right + input_gradient(du, wrong)), deltas


CELL_MUTANTS = {
    "elman_no_carry": with_pull(ELMAN, no_carry),
    "elman_transposed_w_hh": with_pull(ELMAN, transposed),
    "elman_slope_without_square": with_factors(ELMAN, lambda f, b, a, g: 1 - a.h),
    "elman_slope_of_the_step_before": with_factors(ELMAN, lambda f, b, a, g: 1 - b.h * b.h),
    "elman_dx_sign": with_contract(ELMAN, lambda dp, dx, x, b, d: (dp, -dx)),
    "elman_bias_gradient_is_a_mean": with_contract(
        ELMAN, lambda dp, dx, x, b, d: (dp._replace(b=dp.b / d.shape[0]), dx)
    ),
    "elman_bias_gradient_of_the_last_step": with_contract(
        ELMAN, lambda dp, dx, x, b, d: (dp._replace(b=d[-1].sum(0)), dx)
    ),
    "lstm_no_carry": with_pull(LSTM, no_carry),
    "lstm_no_dc_carry": with_pull(
        LSTM, lambda db, d, p, ds: (db._replace(c=jnp.zeros_like(db.c)), d)
    ),
    "lstm_no_dh_carry": with_pull(
        LSTM, lambda db, d, p, ds: (db._replace(h=jnp.zeros_like(db.h)), d)
    ),
    "lstm_dc_not_through_the_forget_gate": with_pull(
        LSTM, lambda db, d, p, ds: (db._replace(c=ds.c), d)
    ),
    "lstm_transposed_w_hh": with_pull(LSTM, transposed),
    "lstm_c_for_c_before": with_factors(
        LSTM, lambda f, b, a, g: f._replace(f=a.c * g.f * (1 - g.f))
    ),
    "lstm_input_and_candidate_swapped": with_factors(
        LSTM, lambda f, b, a, g: f._replace(i=f.g, g=f.i)
    ),
    "lstm_candidate_slope_of_a_sigmoid": with_factors(
        LSTM, lambda f, b, a, g: f._replace(g=g.i * g.g * (1 - g.g))
    ),
    "lstm_output_gate_slope_dropped": with_factors(
        LSTM, lambda f, b, a, g: f._replace(o=jnp.tanh(a.c))
    ),
    "lstm_h_does_not_reach_c": with_factors(
        LSTM, lambda f, b, a, g: f._replace(c_h=jnp.zeros_like(f.c_h))
    ),
    "lstm_dw_ih_of_the_last_step": with_sum(
        LSTM, "w_ih", lambda g, x, b, d: weight_gradient(x[-1], d[-1])
    ),
    "lstm_dw_hh_of_the_state_one_step_too_early": with_sum(
        LSTM, "w_hh", lambda g, x, b, d: weight_gradient(shifted(b), d)
    ),
    "lstm_bias_gradient_twice": with_sum(LSTM, "b", lambda g, x, b, d: 2 * g),
    "gru_no_carry": with_pull(GRU, no_carry),
    "gru_transposed_w_hh": with_pull(GRU, transposed),
    "gru_direct_path_dropped": with_factors(
        GRU, lambda f, b, a, g: f._replace(h=jnp.zeros_like(f.h))
    ),
    "gru_reset_forgotten_in_the_candidate": with_factors(GRU, lambda f, b, a, g: f._replace(q=f.n)),
    "gru_update_gate_sign": with_factors(GRU, lambda f, b, a, g: f._replace(z=-f.z)),
    "gru_reset_gate_reads_h_for_q": with_factors(
        GRU, lambda f, b, a, g: f._replace(r=f.n * b.h * g.r * (1 - g.r))
    ),
    "gru_dw_ih_from_the_recurrent_side": with_sum(
        GRU, "w_ih", lambda g, x, b, d: weight_gradient(x, d.du)
    ),
    "gru_dw_hh_from_the_input_side": with_sum(
        GRU, "w_hh", lambda g, x, b, d: weight_gradient(b.h, d.da)
    ),
    "gru_bias_gradient_from_the_recurrent_side": with_sum(
        GRU, "b", lambda g, x, b, d: bias_gradient(d.du)
    ),
    "gru_dx_in_the_wrong_order_of_time": with_contract(GRU, lambda dp, dx, x, b, d: (dp, dx[::-1])),
    "gru_recurrent_bias_from_the_wrong_side": with_contract(
        GRU,
        lambda dp, dx, x, b, d: (
            dp._replace(b_hn=d.da.sum((0, 1))[-b.h.shape[-1] :]),
            dx,
        ),
    ),
}


@functools.cache
def right(name):
    """The problem and what autodiff says of it, once per cell: a mutant's values are right."""
    problem = make_problem(getattr(jaxrnn, name), T=5, batch=(3,), lengths=True, resets=True)
    return problem, vjp(problem, jaxrnn.unroll_reference, return_states=True)


def assert_accepted(cell):
    """The assertion of test_gradients, on a cell that may be a mutant."""
    problem, expected = right(cell.name)
    assert_same(vjp(problem._replace(cell=cell), jaxrnn.unroll, return_states=True), expected)


def test_the_right_rule_is_accepted(cell):
    assert_accepted(cell)


@pytest.mark.parametrize("mutant", CELL_MUTANTS.values(), ids=CELL_MUTANTS)
def test_a_wrong_adjoint_of_a_cell_is_rejected(mutant):
    with pytest.raises(AssertionError, match="relative difference"):
        assert_accepted(mutant)


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def states_not_shifted(restore_chunk):
    def wrong(*args):
        _, after, gates = restore_chunk(*args)
        return after, after, gates

    return wrong


def carry_not_passed_on(pull_chunk):
    def wrong(*args, **options):
        dentering, out = pull_chunk(*args, **options)
        return zeros(dentering), out

    return wrong


def with_chunk(**changes):
    """The adjoint recursion that does not know these masks."""

    def mutate(pull_chunk):
        def wrong(cell, plan, params, consts, dleaving, factors, chunk, *rest, **options):
            chunk = chunk._replace(**changes)
            return pull_chunk(
                cell, plan, params, consts, dleaving, factors, chunk, *rest, **options
            )

        return wrong

    return mutate


def without_cotangent(change):
    """The rule that loses a cotangent before the loop starts."""

    def mutate(backward):
        def wrong(cell, plan, residuals, cotangents, **options):
            return backward(cell, plan, residuals, change(cotangents), **options)

        return wrong

    return mutate


ENGINE_MUTANTS = {
    "states_not_shifted": ("_restore_chunk", states_not_shifted),
    "carry_not_passed_on": ("_pull_chunk", carry_not_passed_on),
    "resets_do_not_stop_the_adjoint": ("_pull_chunk", with_chunk(cut=None)),
    "padding_does_not_hold_the_adjoint": ("_pull_chunk", with_chunk(valid=None)),
    "dc_of_the_final_state_dropped": (
        "_backward",
        without_cotangent(
            lambda d: d._replace(final_state=d.final_state._replace(c=zeros(d.final_state.c)))
        ),
    ),
    "dhs_dropped": ("_backward", without_cotangent(lambda d: d._replace(hs=zeros(d.hs)))),
    "dstates_dropped": ("_backward", without_cotangent(lambda d: d._replace(states=None))),
}


@pytest.mark.parametrize(("name", "mutate"), ENGINE_MUTANTS.values(), ids=ENGINE_MUTANTS)
def test_a_wrong_engine_is_rejected(name, mutate, monkeypatch):
    monkeypatch.setattr(bptt, name, mutate(getattr(bptt, name)))
    # a cell that differs in any field is another cell: nothing compiled before is used again
    fresh = LSTM._replace(step=lambda *args: LSTM.step(*args))
    with pytest.raises(AssertionError, match="relative difference"):
        assert_accepted(fresh)


def plain_network(params, hs, labels, targets, mask):
    """Head and both losses as formulas, for JAX to differentiate."""
    ys = hs @ params.w + jnp.broadcast_to(params.b, (*hs.shape[:-1], params.b.size))
    log_p = jax.nn.log_softmax(ys)
    chosen = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    squares = jnp.sum((ys - targets) ** 2, axis=-1) / 2
    return jnp.sum(jnp.where(mask, 3 * squares - chosen, 0)) / jnp.sum(mask, dtype=ys.dtype)


def network(params, hs, labels, targets, mask):
    ys = readout._affine(params, hs)
    return readout._softmax_cross_entropy(ys, labels, mask) + 3 * readout._squared_error(
        ys, targets, mask
    )


READOUT_MUTANTS = {
    "dw_transposed_errors": ("_affine", lambda d: (d[0]._replace(w=-d[0].w), d[1])),
    "db_of_the_first_class": ("_affine", lambda d: (d[0]._replace(b=d[0].b.at[1:].set(0)), d[1])),
    "dh_dropped": ("_affine", lambda d: (d[0], zeros(d[1]))),
    "cross_entropy_sign": ("_softmax_cross_entropy", lambda d: (-d[0], None, None)),
    "cross_entropy_not_centred": ("_softmax_cross_entropy", lambda d: (d[0] + 0.1, None, None)),
    "squared_error_twice": ("_squared_error", lambda d: (2 * d[0], d[1], None)),
    "squared_error_target_sign": ("_squared_error", lambda d: (d[0], d[0], None)),
    "right": (None, None),
}


@pytest.mark.parametrize(("rule", "change"), READOUT_MUTANTS.values(), ids=READOUT_MUTANTS)
def test_a_wrong_rule_of_the_readout_is_rejected(rule, change, monkeypatch):
    if rule:
        primal = {
            "_affine": readout._affine.fun,
            "_softmax_cross_entropy": readout._mean_cross_entropy,
            "_squared_error": readout._mean_squared_error,
        }[rule]
        fwd, bwd = getattr(readout, f"{rule}_fwd"), getattr(readout, f"{rule}_bwd")
        mutant = jax.custom_vjp(primal)
        mutant.defvjp(fwd, lambda *args: change(bwd(*args)))
        monkeypatch.setattr(readout, rule, mutant)
    like = jaxrnn.init_affine(jax.random.key(0), 4, 3, dtype=jnp.float64)
    params, hs, targets = random_tree((like, jnp.zeros((5, 2, 4)), jnp.zeros((5, 2, 3))))
    labels = jnp.arange(10, dtype=jnp.int32).reshape(5, 2) % 3
    mask = jnp.arange(10).reshape(5, 2) < 7

    def gradients(loss):
        return jax.grad(lambda p, h, t: loss(p, h, labels, t, mask), argnums=(0, 1, 2))(
            params, hs, targets
        )

    expected = gradients(plain_network)
    if rule is None:
        assert_same(gradients(network), expected)
        return
    with pytest.raises(AssertionError, match="relative difference"):
        assert_same(gradients(network), expected)
