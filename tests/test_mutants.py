"""Wrong rules are rejected: each adjoint broken on purpose fails what the right ones pass."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import pytest
from support.cells import MASKED_ELMAN
from support.problems import (
    assert_rule_equals_autodiff,
    assert_same,
    make_problem,
    random_tree,
    vjp,
)

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM, bptt, call, loops, pieces, readout
from jaxrnn.cells.gru import GRUDeltas
from jaxrnn.loops import XLA_LOOPS
from jaxrnn.plan import TUNING
from jaxrnn.products import bias_gradient, input_gradient, weight_gradient


def with_factors(cell, change):
    """The cell whose local derivatives are changed by ``change(factors, before, after, gates)``."""

    def linearize(params, inputs, before, after, gates, consts):
        factors = cell.linearize(params, inputs, before, after, gates, consts)
        return change(factors, before, after, gates)

    return cell._replace(linearize=linearize)


def with_pull(cell, change):
    """The cell whose adjoint step is changed by ``change(dbefore, deltas, params, dstate)``."""

    def pull(params, dstate, factors, consts):
        return change(*cell.pull(params, dstate, factors, consts), params, dstate)

    return cell._replace(pull=pull)


def with_sum(cell, name, change):
    """The cell whose gradient of one parameter is ``change(gradient, xs, before, deltas)``."""
    return with_gradients(
        cell,
        lambda dp, dx, x, b, d: (dp._replace(**{name: change(getattr(dp, name), x, b, d)}), dx),
    )


def shifted(before):
    """The state one step too early."""
    return jnp.concatenate([before.h[:1], before.h[:-1]])


def with_gradients(cell, change):
    """The cell whose sums are changed by ``change(dparams, dxs, xs, before, deltas)``."""

    def gradients(params, xs, before, after, gates, deltas, consts):
        dparams, dxs, _ = cell.gradients(params, xs, before, after, gates, deltas, consts)
        return *change(dparams, dxs, xs, before, deltas), None

    return cell._replace(gradients=gradients)


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
    "elman_dx_sign": with_gradients(ELMAN, lambda dp, dx, x, b, d: (dp, -dx)),
    "elman_bias_gradient_is_a_mean": with_gradients(
        ELMAN, lambda dp, dx, x, b, d: (dp._replace(b=dp.b / d.shape[0]), dx)
    ),
    "elman_bias_gradient_of_the_last_step": with_gradients(
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
    "gru_dx_in_the_wrong_order_of_time": with_gradients(
        GRU, lambda dp, dx, x, b, d: (dp, dx[::-1])
    ),
    "gru_recurrent_bias_from_the_wrong_side": with_gradients(
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
        xs, inputs, _, after, gates = restore_chunk(*args)
        return xs, inputs, after, after, gates

    return wrong


def without_cotangent(change):
    """The rule that loses a cotangent before the loop starts."""

    def mutate(backward):
        def wrong(cell, plan, residuals, cotangents):
            return backward(cell, plan, residuals, change(cotangents))

        return wrong

    return mutate


def without_gradient(change):
    """The rule that loses a gradient after the loop."""

    def mutate(backward):
        return lambda *args: change(backward(*args))

    return mutate


def shifted_by_one(cuts_in_reverse):
    """Each reset handed to the step that is next in time, though it may be masked."""

    def wrong(resets, valid):
        after = jnp.concatenate([resets if valid is None else resets & valid, resets[:1] & False])
        return after[1:], after[0]

    return wrong


def dhs_of_masked_steps_read(back):
    return lambda factors, steps, dhs, dstates: back(factors, steps, dhs, dstates)._replace(dhs=dhs)


def after_for_before(gradients):
    return lambda bound, xs, before, after, *rest: gradients(bound, xs, after, after, *rest)


def patched(module, name, mutate):
    """The mutant that changes a function of the engine."""

    def apply(monkeypatch):
        monkeypatch.setattr(module, name, mutate(getattr(module, name)))

    return apply


def with_loops(**changes):
    """The mutant whose loops are changed by ``name=change(loop)``."""

    def apply(monkeypatch):
        wrong = {name: change(getattr(XLA_LOOPS, name)) for name, change in changes.items()}
        column = TUNING["cpu"]._replace(loops=XLA_LOOPS._replace(**wrong))
        monkeypatch.setitem(TUNING, "cpu", column)

    return apply


def rewritten(old, new):
    """The loop of a module in which a piece of code, which it has once, is replaced by another."""

    def change(loop):
        source = inspect.getsource(loops)
        assert source.count(old) == 1, f"the loops have not {old!r} once: adapt the mutant"
        module = types.ModuleType(loops.__name__)
        exec(source.replace(old, new), vars(module))
        (name,) = (name for name, right in XLA_LOOPS._asdict().items() if right is loop)
        return getattr(module.XLA_LOOPS, name)

    return change


def without_masks(**masks):
    """The adjoint recursion that does not know these masks."""

    def change(pull):
        def wrong(bound, dleaving, dreset, back, K, **options):
            return pull(bound, dleaving, dreset, back._replace(**masks), K, **options)

        return wrong

    return change


def with_pulled(change):
    """The adjoint recursion whose results are changed by ``change(pulled, dreset)``."""

    def mutate(pull):
        def wrong(bound, dleaving, dreset, back, K, **options):
            return change(pull(bound, dleaving, dreset, back, K, **options), dreset)

        return wrong

    return mutate


ENGINE_MUTANTS = {
    "states_not_shifted": patched(bptt, "_restore_chunk", states_not_shifted),
    "after_for_before_in_the_sums": patched(pieces, "gradients", after_for_before),
    "carry_not_passed_on": with_loops(
        pull=with_pulled(lambda p, dreset: p._replace(dentering=zeros(p.dentering)))
    ),
    "resets_do_not_stop_the_adjoint": with_loops(pull=without_masks(cut=None)),
    "padding_does_not_hold_the_adjoint": with_loops(pull=without_masks(valid=None)),
    "detach_dropped": with_loops(pull=without_masks(stop=None)),
    "dc_of_the_final_state_dropped": patched(
        bptt,
        "_backward",
        without_cotangent(
            lambda d: d._replace(final_state=d.final_state._replace(c=zeros(d.final_state.c)))
        ),
    ),
    "dhs_dropped": patched(
        bptt, "_backward", without_cotangent(lambda d: d._replace(hs=zeros(d.hs)))
    ),
    "dstates_dropped": patched(
        bptt, "_backward", without_cotangent(lambda d: d._replace(states=None))
    ),
    "dhs_of_masked_steps_read": patched(bptt, "_back", dhs_of_masked_steps_read),
    "gradient_of_the_reset_state_dropped": with_loops(
        pull=with_pulled(lambda p, dreset: p._replace(dreset=dreset))
    ),
    "gradient_of_the_reset_state_taken_where_masked": with_loops(
        pull=rewritten(
            "zero_unless(at.cut, zero_unless(at.valid, dbefore))", "zero_unless(at.cut, dbefore)"
        )
    ),
    "gradient_of_the_reset_state_cut_where_detached": with_loops(
        pull=rewritten(
            "zero_unless(at.cut, zero_unless(at.valid, dbefore))",
            "zero_unless(at.cut, zero_unless(at.valid, zero_where(at.stop, dbefore)))",
        )
    ),
    "carried_adjoint_lost_where_masked": with_loops(
        pull=rewritten(
            "zero_where(at.cut, dbefore)), dafter)",
            "zero_where(at.cut, dbefore)), zero_unless(at.valid, dafter))",
        )
    ),
    "deltas_lost_where_cut": with_loops(
        pull=rewritten(
            "zero_unless(at.valid, deltas)", "zero_where(at.cut, zero_unless(at.valid, deltas))"
        )
    ),
    "deltas_kept_where_masked": with_loops(
        pull=rewritten("zero_unless(at.valid, deltas)", "deltas")
    ),
    "detached_where_masked": with_loops(
        pull=rewritten(
            "select(at.valid, zero_where(at.stop, zero_where(at.cut, dbefore)), dafter)",
            "zero_where(at.stop, select(at.valid, zero_where(at.cut, dbefore), dafter))",
        )
    ),
    "adjoint_reset_where_masked": with_loops(
        pull=rewritten(
            "select(at.valid, zero_where(at.stop, zero_where(at.cut, dbefore)), dafter)",
            "zero_where(at.cut, select(at.valid, zero_where(at.stop, dbefore), dafter))",
        )
    ),
    "state_reset_where_masked": with_loops(
        advance=rewritten("select(at.valid, after, carry)", "select(at.valid, after, before)")
    ),
}
EVERYTHING = dict(mask=True, resets=True, reset_state="rows", detach=True)


def fresh(cell):
    """A cell that differs in any field is another cell: nothing compiled before is used again."""
    return cell._replace(step=lambda *args: cell.step(*args))


@functools.cache
def masked(reverse):
    """An LSTM's problem with every mask, and what autodiff says of it."""
    problem = make_problem(LSTM, T=6, batch=(3,), reverse=reverse, **EVERYTHING)
    return problem, vjp(problem, jaxrnn.unroll_reference, return_states=True)


def assert_engine_accepted(reverse):
    problem, expected = masked(reverse)
    assert_same(
        vjp(problem._replace(cell=fresh(LSTM)), jaxrnn.unroll, return_states=True), expected
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_right_engine_is_accepted(reverse):
    assert_engine_accepted(reverse)


@pytest.mark.parametrize("mutate", ENGINE_MUTANTS.values(), ids=ENGINE_MUTANTS)
def test_a_wrong_engine_is_rejected(mutate, monkeypatch):
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_engine_accepted(reverse=False)


def test_in_reverse_a_reset_that_reaches_a_masked_step_is_rejected(monkeypatch):
    patched(call, "_cuts_in_reverse", shifted_by_one)(monkeypatch)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_engine_accepted(reverse=True)


@pytest.mark.parametrize("dropped", [False, True], ids=["right", "dropped"])
def test_a_dropped_gradient_of_consts_is_rejected(dropped, monkeypatch):
    consts = {"mask": jnp.linspace(0.2, 0.9, 12).reshape(3, 4), "name": jnp.int32(7)}
    problem = make_problem(fresh(MASKED_ELMAN), T=4, consts=consts)
    if not dropped:
        assert_rule_equals_autodiff(problem)
        return
    drop = without_gradient(
        lambda d: d._replace(consts={**d.consts, "mask": zeros(consts["mask"])})
    )
    patched(bptt, "_backward", drop)(monkeypatch)
    with pytest.raises(AssertionError, match=r"mask.*relative difference"):
        assert_rule_equals_autodiff(problem)


def plain_network(params, hs, targets, weights, labels, mask):
    """Head and both losses as formulas, for JAX to differentiate."""
    ys = hs @ params.w + jnp.broadcast_to(params.b, (*hs.shape[:-1], params.b.size))
    log_p = jax.nn.log_softmax(ys)
    chosen = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    squares = jnp.sum((ys - targets) ** 2, axis=-1) / 2
    weights = jnp.where(mask, weights, 0)
    return jnp.sum((3 * squares - chosen) * weights) / jnp.sum(weights)


def network(params, hs, targets, weights, labels, mask):
    ys, weights = readout._affine(params, hs), jnp.where(mask, weights, 0)
    cross_entropies = readout._softmax_cross_entropy(ys, labels, mask)
    return readout._mean(cross_entropies + 3 * readout._squared_error(ys, targets, mask), weights)


READOUT_MUTANTS = {
    "dw_transposed_errors": ("_affine", lambda d: (d[0]._replace(w=-d[0].w), d[1])),
    "db_of_the_first_class": ("_affine", lambda d: (d[0]._replace(b=d[0].b.at[1:].set(0)), d[1])),
    "dh_dropped": ("_affine", lambda d: (d[0], zeros(d[1]))),
    "cross_entropy_sign": ("_softmax_cross_entropy", lambda d: (-d[0], None, None)),
    "cross_entropy_not_centred": ("_softmax_cross_entropy", lambda d: (d[0] + 0.1, None, None)),
    "squared_error_twice": ("_squared_error", lambda d: (2 * d[0], d[1], None)),
    "squared_error_target_sign": ("_squared_error", lambda d: (d[0], d[0], None)),
    "mean_over_all_positions": ("_mean", lambda d: (jnp.full_like(d[0], 1 / d[0].size), d[1])),
    "dweights_not_centred": ("_mean", lambda d: (d[0], d[1] - d[1].min())),
    "right": (None, None),
}


@pytest.mark.parametrize(("rule", "change"), READOUT_MUTANTS.values(), ids=READOUT_MUTANTS)
def test_a_wrong_rule_of_the_readout_is_rejected(rule, change, monkeypatch):
    if rule:
        primal = {
            "_affine": readout._affine.fun,
            "_softmax_cross_entropy": readout._cross_entropies,
            "_squared_error": readout._squared_errors,
            "_mean": readout._mean.fun,
        }[rule]
        fwd, bwd = getattr(readout, f"{rule}_fwd"), getattr(readout, f"{rule}_bwd")
        mutant = jax.custom_vjp(primal)
        mutant.defvjp(fwd, lambda *args: change(bwd(*args)))
        monkeypatch.setattr(readout, rule, mutant)
    like = jaxrnn.init_affine(jax.random.key(0), 4, 3, dtype=jnp.float64)
    params, hs, targets = random_tree((like, jnp.zeros((5, 2, 4)), jnp.zeros((5, 2, 3))))
    labels = jnp.arange(10, dtype=jnp.int32).reshape(5, 2) % 3
    weights = jnp.arange(1.0, 11).reshape(5, 2)
    mask = weights < 8

    def gradients(loss):
        return jax.grad(loss, argnums=(0, 1, 2, 3))(params, hs, targets, weights, labels, mask)

    expected = gradients(plain_network)
    if rule is None:
        assert_same(gradients(network), expected)
        return
    with pytest.raises(AssertionError, match="relative difference"):
        assert_same(gradients(network), expected)
