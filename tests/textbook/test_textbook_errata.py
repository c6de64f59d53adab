"""One test per row of the errata in jaxrnn/textbook/README.md: what the document says is not so.

A formula is evaluated as the document prints it, and differs from autodiff (or fits no shape) where
the textbook's agrees; a statement about caches, names or cases is held against what the textbook's
functions do.
"""

import equations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from notations import SPECS, by_formulas, compiled, forward, make, random_sizes, solved
from support.problems import assert_same
from worked_examples import (
    lstm_loop,
    sigmoid,
    softmax,
    step_terms,
)

from jaxrnn import textbook

EQUATIONS = equations.read().equations


def shows(wrong, ours, auto):
    """The textbook's value is autodiff's, and what the document says is far from it."""
    assert_same(jnp.asarray(ours), jnp.asarray(auto))
    assert differs(wrong, auto)


def differs(wrong, right):
    wrong, right = np.asarray(wrong), np.asarray(right)
    return wrong.shape != right.shape or np.max(np.abs(wrong - right)) > 1e-2 * np.max(
        np.abs(right)
    )


# "LSTM - Derivation of Back propagation through time"


def test_the_hidden_weights_of_input_gate_and_candidate_are_whi_and_whg(step):
    named_so = {{"whi": "whj", "whg": "wg"}.get(key, key): value for key, value in step.p.items()}
    with pytest.raises(ValueError, match=r"missing 'whi', 'whg' and unknown 'wg', 'whj'"):
        textbook.step_forward(step.x_t, step.h_prev, step.c_prev, named_so)


def test_the_candidate_is_no_part_of_the_input_gate(step):
    gates = np.stack([step.cache.i, step.cache.f, step.cache.o])
    assert np.all((gates > 0) & (gates < 1))
    assert np.any(step.cache.g < 0)
    # two gradients, and neither is that of what the document calls the input gate's output, g * i
    shows(step.dc, step.cell["di"], step.cell_auto["di"])
    shows(step.dc, step.cell["dg"], step.cell_auto["dg"])


def test_the_state_before_is_one_step_back(step):
    h, c, t = step.out["a"], step.out["c"], 2

    def output(h_prev):
        return textbook.step_forward(step.x[..., t], h_prev, c[..., t - 1], step.p)[0]

    assert_same(output(h[..., t - 1]), jnp.asarray(h[..., t]))
    assert differs(output(h[..., t - 2]), h[..., t])


def test_the_input_is_that_of_the_step(step):
    # x without a time is the whole sequence, which is no input of a step
    with pytest.raises(ValueError, match=r"`x_t` must have shape"):
        textbook.step_forward(step.x, step.h_prev, step.c_prev, step.p)
    for t in range(1, step.T):
        h_t, _, cache = textbook.step_forward(step.x[..., t], step.h_prev, step.c_prev, step.p)
        assert differs(h_t, step.out["a"][..., 0])
        assert differs(cache.i, sigmoid(step.z["i"]))
    assert_same(step.h_t, jnp.asarray(step.out["a"][..., 0]))


def test_a_product_with_a_weight_is_not_entry_by_entry(step):
    with pytest.raises(ValueError, match="broadcast"):
        step.p["wxg"] * step.x_t
    assert_same(step.cache.g, jnp.asarray(np.tanh(step.z["g"])))


def test_the_input_gate_reads_its_own_argument(step):
    assert_same(step.cache.i, jnp.asarray(sigmoid(step.z["i"])))
    assert all(differs(sigmoid(step.z[gate]), step.cache.i) for gate in "gfo")


def test_a_name_is_spelt_as_it_was_defined(step):
    defined = {f"Z{gate}": step.z[gate] for gate in "gfo"}
    defined |= {f"{gate}_gate_out": None for gate in ("Input", "Forget", "Out")}
    read = {"zO", "zo", "zg", "zf", "input_gate_out", "forget_gate_out", "out_gate_out"}
    assert not read & defined.keys()
    # by its letter alone, each argument is the one that its gate reads, and no other is
    for gate, squash in {"g": np.tanh, "f": sigmoid, "o": sigmoid}.items():
        assert_same(getattr(step.cache, gate), jnp.asarray(squash(defined[f"Z{gate}"])))
        others = [squash(step.z[other]) for other in "igfo" if other != gate]
        assert all(differs(other, getattr(step.cache, gate)) for other in others)


def test_the_output_is_not_the_output_gate(step):
    assert_same(step.h_t, jnp.asarray(step.o * np.tanh(step.c)))
    assert differs(step.h_t, step.cache.o)


def test_flattened_powers_and_indices_read_as_other_formulas(step):
    shows(step.E_delta * step.o * (1 - np.tanh(2 * step.c)), step.cell["dc"], step.cell_auto["dc"])
    shows(step.dc * (step.c - 1), step.cell["df"], step.cell_auto["df"])


def test_the_sign_of_the_error(step):
    auto = jax.grad(lambda h: textbook.squared_error(step.y_t, h)[0])(step.h_t)
    shows(step.y_t - step.h_t, step.E_delta, auto)


def test_the_factor_of_the_squared_error(step):
    mean = jax.grad(lambda h: jnp.mean((h - step.y_t) ** 2))(step.h_t)
    assert differs(step.E_delta, mean)
    assert_same(jnp.asarray(2 * step.E_delta / step.E_delta.size), mean)


def test_the_prediction_is_no_function_of_the_input_alone(step):
    last = step.T - 1

    def prediction(inputs):
        return jnp.sum(forward("step", inputs)[0]["a"][..., last])

    gradients = compiled(jax.grad(prediction), step.problem.inputs)
    assert all(np.any(gradients["x"][..., t]) for t in range(step.T))
    assert np.any(gradients["h0"])
    assert np.any(gradients["c0"])
    # the same input after another past
    h, c, x = step.out["a"], step.out["c"], step.x[..., last]
    alone = textbook.step_forward(x, 0 * step.h_prev, 0 * step.c_prev, step.p)[0]
    after_all = textbook.step_forward(x, h[..., last - 1], c[..., last - 1], step.p)[0]
    assert_same(after_all, jnp.asarray(h[..., last]))
    assert differs(alone, after_all)


def test_the_output_is_read_by_the_next_step_too(step):
    each, _, nudges = step_terms()
    whole = each["do"][0] / np.tanh(step.out["c"][..., 0])
    shows(step.out["a"][..., 0] - step.y[..., 0], whole, nudges["h"][0])


def test_the_cell_state_is_read_by_the_next_step_too(step):
    each, _, nudges = step_terms()
    through_h = nudges["h"][0] * step.o * (1 - np.tanh(step.c) ** 2)
    shows(through_h, each["dc"][0], through_h + nudges["c"][0])


def test_the_input_gates_gradient_is_not_a_factor_of_itself(step):
    shows(step.cell["di"] * step.g, step.cell["di"], step.cell_auto["di"])


def test_the_forget_gates_gradient_holds_the_error_once_and_is_by_f(step):
    def cell_state(f):
        return step.c_prev * f + step.g * step.i

    _, dct_df = jax.jvp(cell_state, (jnp.asarray(step.f),), (jnp.ones_like(step.f),))
    assert_same(jnp.asarray(step.c_prev), dct_df)
    assert_same(jnp.asarray(step.dc * dct_df), step.cell_auto["df"])
    # E_delta once more, as the line begins
    shows(step.E_delta * step.dc * dct_df, step.cell["df"], step.cell_auto["df"])


def test_the_gradient_of_the_cell_state_before_is_not_that_of_the_cell_state(step):
    # two quantities under one name: the second is right for the state before, not for this one
    shows(step.dc * step.f, step.cell["dc"], step.cell_auto["dc"])
    shows(step.dc, step.cell["dc_prev"], step.cell_auto["dc_prev"])


def test_the_gradient_of_the_cell_state_before_holds_the_error_once(step):
    shows(step.E_delta * step.dc * step.f, step.cell["dc_prev"], step.cell_auto["dc_prev"])


def test_the_cell_state_before_is_also_read_through_the_output_before(step):
    each, _, nudges = step_terms()
    c, h = step.out["c"][..., 0], step.out["a"][..., 0]
    through_h = nudges["h"][0] * (h / np.tanh(c)) * (1 - np.tanh(c) ** 2)
    shows(each["dc_prev"][1], each["dc"][0], through_h + nudges["c"][0])


def test_the_slope_of_a_sigmoid_closes_before_the_next_factor(step):
    o, do = step.o, step.E_delta * np.tanh(step.c)
    as_printed = do * o * (1 - o * step.h_prev)
    assert differs(as_printed, do * o * (1 - o) * step.h_prev)
    shows(as_printed.sum(1), step.cell["dwho"], step.cell_auto["dwho"])


def test_the_bias_of_the_forget_gate_is_not_that_of_the_output_gate(step):
    dbf = step.dz["f"].sum(1, keepdims=True)
    assert_same(step.cell["dbf"], jnp.asarray(dbf))
    shows(dbf, step.cell["dbo"], step.cell_auto["dbo"])


def test_the_slope_of_tanh_has_a_minus(step):
    product = step.dc * step.i * np.tanh(step.z["g"]) ** 2
    shows(product @ step.x_t.T, step.cell["dwxg"], step.cell_auto["dwxg"])
    shows(product @ step.h_prev.T, step.cell["dwhg"], step.cell_auto["dwhg"])
    shows(product.sum(1, keepdims=True), step.cell["dbg"], step.cell_auto["dbg"])


@pytest.mark.parametrize("gate", list("ofig"))
def test_an_input_weights_gradient_is_an_outer_product(step, gate):
    with pytest.raises(ValueError, match="broadcast"):
        step.dz[gate] * step.x_t
    key = f"dwx{gate}"
    assert_same(step.cell[key], step.cell_auto[key])


@pytest.mark.parametrize("gate", list("ofig"))
def test_a_hidden_weights_gradient_is_an_outer_product(step, gate):
    key = f"dwh{gate}"
    shows(step.dz[gate] * step.h_prev, step.cell[key], step.cell_auto[key])


@pytest.mark.parametrize("gate", list("ofig"))
def test_a_biass_gradient_is_a_sum_over_the_batch(step, gate):
    key = f"db{gate}"
    shows(step.dz[gate], step.cell[key], step.cell_auto[key])


def test_there_is_a_gradient_of_the_input(step):
    assert_same(step.cell["dx"], step.cell_auto["dx"])
    assert_same(step.ours["dx"], step.auto["dx"])
    assert np.all(step.ours["dx"])


def test_there_is_a_gradient_of_the_output_before(step):
    assert_same(step.cell["dh_prev"], step.cell_auto["dh_prev"])
    assert_same(step.ours["dh0"], step.auto["dh0"])
    assert np.all(step.ours["dh0"])


def test_one_steps_gradient_is_not_the_gradient(step):
    for key in SPECS["step"]:
        shows(step.cell[f"d{key}"], step.ours[f"d{key}"], step.auto[f"d{key}"])


def test_one_steps_error_reaches_the_steps_before(step):
    """The error of the last step alone: the direct term holds h_{t-1} and c_{t-1} constant."""
    last = step.T - 1
    y = step.y[..., last]
    E_delta = np.zeros_like(step.y)
    E_delta[..., last] = step.out["a"][..., last] - y

    def error(inputs):
        return textbook.squared_error(y, forward("step", inputs)[0]["a"][..., last])[0]

    def run(inputs):
        _, caches = forward("step", inputs)
        direct = textbook.gradients_at_step(E_delta[..., last], textbook.cache_at(caches, last))
        whole = textbook.gradients_over_sequence(E_delta, caches)
        return direct, whole, jax.grad(error)(inputs)["parameters"]

    direct, whole, auto = compiled(run, step.problem.inputs)
    for key in auto:
        shows(direct[f"d{key}"], whole[f"d{key}"], auto[key])


# "Recurrent Neural Network": the network of tanh


def test_a_lowered_i_is_the_update_gate(lstm):
    assert_same(lstm.cache.it, jnp.asarray(sigmoid(lstm.z["i"])))
    assert_same(lstm.cell["dWi"], lstm.cell_auto["dWi"])
    # as an index: one entry of any other gate, one row of any other weight
    for i in range(len(lstm.a_prev)):
        assert all(differs(gate[i], lstm.cache.it) for gate in (lstm.ft, lstm.ot))
        assert all(differs(lstm.p[f"W{gate}"][i], lstm.p["Wi"]) for gate in "fco")


def test_the_slope_of_tanh_is_taken_at_its_argument(rnn):
    slope = jax.vmap(jax.grad(jnp.tanh))
    u, xt = rnn.u[:, 0], rnn.xt[:, 0]
    shows(1 - np.tanh(xt) ** 2, rnn.unit["dba"][:, 0], slope(jnp.asarray(u)))


def test_the_gradient_that_comes_in_is_da_next(rnn):
    # the other names that the cell has for a gradient of a state, in place of da_nezt
    slope = 1 - np.tanh(rnn.u) ** 2
    for other in (rnn.cell["da_prev"], rnn.dtanh):
        shows((other * slope).sum(1, keepdims=True), rnn.cell["dba"], rnn.cell_auto["dba"])
    assert_same(jnp.asarray(rnn.da_next * slope @ rnn.xt.T), rnn.cell_auto["dWax"])


def test_dtanh_is_the_gradient_of_tanhs_argument(rnn):
    _, pull = jax.vjp(jnp.tanh, jnp.asarray(rnn.u))
    # with respect to the value of tanh, the gradient is da_next itself
    shows(rnn.da_next, rnn.dtanh, *pull(jnp.asarray(rnn.da_next)))


def test_the_gradient_of_a_sequence_is_a_sum_over_time(rnn):
    for t in range(rnn.T):
        dtanh = rnn.dtanhs[..., t]
        shows(dtanh @ rnn.x[..., t].T, rnn.ours["dWax"], rnn.auto["dWax"])
        shows(dtanh @ rnn.before[..., t].T, rnn.ours["dWaa"], rnn.auto["dWaa"])
        shows(dtanh.sum(1, keepdims=True), rnn.ours["dba"], rnn.auto["dba"])


def test_da_next_holds_what_returns_from_the_next_step(rnn):
    alone = rnn.da * (1 - rnn.out["a"] ** 2)
    shows(np.einsum("ax,amt->xmt", rnn.p["Wax"], alone), rnn.ours["dx"], rnn.auto["dx"])


def test_the_gradient_of_a_cells_input_is_called_dxt(rnn):
    assert list(rnn.cell) == ["dxt", "da_prev", "dWax", "dWaa", "dba"]
    gradients = textbook.rnn_backward(
        rnn.out["a"], textbook.rnn_forward(rnn.x, rnn.a_prev, rnn.p)[2]
    )
    assert list(gradients) == ["dx", "da0", "dWax", "dWaa", "dba"]


def test_the_cache_of_a_cell_is_a_tuple(rnn):
    _, _, cache = textbook.rnn_cell_forward(rnn.xt, rnn.a_prev, rnn.p)
    assert isinstance(cache, tuple)
    assert not isinstance(cache, dict)
    assert cache._fields == ("a_next", "a_prev", "xt", "parameters")


def test_what_is_computed_beside_a_weights_gradient_is_by_another_quantity(rnn):
    shows(rnn.cell["dWax"], rnn.cell["dxt"], rnn.cell_auto["dxt"])
    shows(rnn.cell["dWaa"].sum(1, keepdims=True), rnn.cell["da_prev"], rnn.cell_auto["da_prev"])
    added_up = np.repeat(np.sum(rnn.ours["dx"], axis=-1, keepdims=True), rnn.T, axis=-1)
    shows(added_up, rnn.ours["dx"], rnn.auto["dx"])


def test_the_prediction_of_the_rnn_has_gradients(rnn):
    for key in ("dWya", "dby"):
        assert key not in rnn.cell
        shows(np.zeros_like(rnn.ours[key]), rnn.ours[key], rnn.auto[key])


def test_the_upstream_gradient_comes_from_a_loss(rnn):
    def error(a):
        z = jnp.einsum("ya,amt->ymt", jnp.asarray(rnn.p["Wya"]), a) + rnn.p["by"][..., None]
        return textbook.cross_entropy(rnn.y, jax.nn.softmax(z, axis=0))

    head = textbook.rnn_head_backward(rnn.y, rnn.out["y_pred"], rnn.out["a"], rnn.p)
    assert_same(head["da"], jax.grad(error)(jnp.asarray(rnn.out["a"])))


def test_the_slope_follows_from_a_next(rnn):
    jaxpr = jax.make_jaxpr(textbook.rnn_cell_backward)(
        rnn.da_next, textbook.rnn_cell_forward(rnn.xt, rnn.a_prev, rnn.p)[2]
    )
    assert "tanh" not in str(jaxpr)
    assert_same(rnn.cell, {key: rnn.cell_auto[key] for key in rnn.cell})


def without_steps(notation):
    problem = make(notation, {**random_sizes(0), "T": 0})
    _, gradients = compiled(by_formulas(notation, problem), problem.inputs)
    return gradients


@pytest.mark.parametrize("notation", ["rnn", "lstm"])
def test_a_sequence_without_steps_has_gradients(notation):
    gradients = without_steps(notation)
    assert gradients["dx"].shape[-1] == 0
    assert not any(np.any(gradient) for gradient in gradients.values())


@pytest.mark.parametrize("notation", ["rnn", "lstm"])
def test_buffers_do_not_change_the_dtype(notation):
    problem = make(notation, random_sizes(0), dtype=jnp.float32)
    returned = jax.eval_shape(by_formulas(notation, problem), problem.inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(returned)} == {jnp.dtype("float32")}
    assert (np.zeros(1) + np.ones(1, np.float32)).dtype == np.float64


def test_softmax_and_sigmoid_are_defined_and_safe(rnn, lstm):
    z = np.array([[1000.0], [0.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.all(np.isfinite(softmax(z)))
    p = {**rnn.p, "by": 1000 * np.eye(len(rnn.p["by"]), 1)}
    _, y_pred, _ = textbook.rnn_cell_forward(rnn.xt, rnn.a_prev, p)
    # over the features, one distribution per example
    assert_same(y_pred.sum(0), jnp.ones(rnn.xt.shape[1]))
    _, _, _, cache = textbook.lstm_cell_forward(
        lstm.xt, lstm.a_prev, lstm.c_prev, {**lstm.p, "bf": lstm.p["bf"] - 1000}
    )
    assert not np.any(cache.ft)


def test_da0_is_the_gradient_of_the_initial_state(rnn, lstm):
    shows(rnn.p["Waa"].T @ rnn.dtanhs[..., 1], rnn.ours["da0"], rnn.auto["da0"])
    second = lstm_loop()[1]["da_prev"]
    shows(second, lstm.ours["da0"], lstm.auto["da0"])
    # of the first activation: what reads it at its own step, and what returns from the second
    da = lstm.p["Wy"].T @ lstm.z_adjoint[..., 0] + lstm.da_next + second
    shows(da, lstm.ours["da0"], lstm.auto["da0"])


# what the lines of the document's LSTM cell backward define, in their order
COUNTS = {
    **dict.fromkeys(("a", "c", "c̃", "Γo", "Γi", "Γf"), 1),
    **{"dγo": 2, "dc": 2, "dc̃": 3, "dγi": 3, "dγf": 3},
    **{f"d{kind}{gate}": 1 for kind in "Wb" for gate in "fico"},
    **dict.fromkeys(("da_prev", "dc_prev", "dxt"), 1),
}
LINES = [name for name, count in COUNTS.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("first", "last", "ours", "meant"),
    [
        (7, 10, (8, 12), {"dγo", "dc", "dc̃", "dγi", "dγf"}),
        (11, 18, (13, 20), {f"d{kind}{gate}" for kind in "Wb" for gate in "fico"}),
        (19, 21, (21, 23), {"da_prev", "dc_prev", "dxt"}),
    ],
    ids=["gates", "parameters", "states"],
)
def test_the_numbers_of_equations_lead_elsewhere(first, last, ours, meant):
    assert not meant <= set(LINES[first - 1 : last])
    texts = [EQUATIONS[f"lstm-{i}"].text for i in range(ours[0], ours[1] + 1)]
    assert {text.partition(" = ")[0] for text in texts} == meant


# "Recurrent Neural Network": the LSTM


def test_the_candidate_is_passed_onto_the_cell_state(lstm):
    p = {**lstm.p, "bi": lstm.p["bi"] + 1000, "bf": lstm.p["bf"] - 1000}
    a, c, _, cache = textbook.lstm_cell_forward(lstm.xt, lstm.a_prev, lstm.c_prev, p)
    assert_same(c, cache.cct)
    assert differs(a, cache.cct)


def test_the_output_gate_decides_the_hidden_state(lstm):
    """Shut, it leaves nothing of the hidden state, and a prediction all the same."""
    p = {**lstm.p, "bo": lstm.p["bo"] - 1000}
    a, _, y_pred, _ = textbook.lstm_cell_forward(lstm.xt, lstm.a_prev, lstm.c_prev, p)
    assert not np.any(a)
    assert_same(y_pred, jnp.asarray(softmax(p["by"] + np.zeros_like(y_pred))))
    assert_same(lstm.yt_pred, jnp.asarray(softmax(lstm.p["Wy"] @ lstm.a_next + lstm.p["by"])))
    # of what the gate itself holds, the prediction would be another
    assert differs(softmax(lstm.p["Wy"] @ lstm.ot + lstm.p["by"]), lstm.yt_pred)


def test_the_hidden_state_determines_the_candidate_too(lstm):
    n_a = len(lstm.a_prev)
    three_gates = sum(lstm.p[f"W{gate}"][:, :n_a].T @ lstm.dz[gate] for gate in "fio")
    shows(three_gates, lstm.cell["da_prev"], lstm.cell_auto["da_prev"])


def test_the_prediction_is_not_the_target(lstm):
    y_pred, a = lstm.out["y_pred"], lstm.out["a"]
    as_target = textbook.lstm_head_backward(y_pred, y_pred, a, lstm.p)
    for key in ("dWy", "dby"):
        shows(as_target[key], lstm.ours[key], lstm.auto[key])
    p = {{"Wy": "Wya"}.get(key, key): value for key, value in lstm.p.items()}
    with pytest.raises(ValueError, match="missing 'Wy' and unknown 'Wya'"):
        textbook.lstm_forward(lstm.x, lstm.a_prev, p)


def test_the_cache_of_the_lstm_holds_the_gates(lstm):
    assert isinstance(lstm.cache, tuple)
    promised = ("a_next", "c_next", "a_prev", "c_prev", "xt", "parameters")
    assert set(lstm.cache._fields) - set(promised) == {"ft", "it", "cct", "ot"}
    for gate, held in {"f": lstm.cache.ft, "i": lstm.cache.it, "o": lstm.cache.ot}.items():
        assert_same(held, jnp.asarray(sigmoid(lstm.z[gate])))


def test_the_initial_cell_state_is_an_argument(lstm):
    x, p = lstm.x, lstm.p
    _, _, c, _ = textbook.lstm_forward(x, lstm.a_prev, p, c0=lstm.c_prev)
    assert_same(c, jnp.asarray(lstm.out["c"]))
    assert differs(textbook.lstm_forward(x, lstm.a_prev, p)[2], lstm.out["c"])


def test_the_initial_cell_state_has_a_gradient(lstm):
    assert_same(lstm.ours["dc0"], lstm.auto["dc0"])
    assert np.all(lstm.ours["dc0"])


def test_the_cell_states_returned_may_be_read(lstm):
    da = np.einsum("ya,ymt->amt", lstm.p["Wy"], lstm.z_adjoint) + np.asarray(lstm.problem.da)
    _, _, _, caches = textbook.lstm_forward(lstm.x, lstm.a_prev, lstm.p, c0=lstm.c_prev)
    unread = textbook.lstm_backward(da, caches)
    for key in unread:
        shows(unread[key], lstm.ours[key], lstm.auto[key])


def test_every_quantity_has_one_name_in_the_caches(lstm):
    _, _, _, caches = textbook.lstm_forward(lstm.x, lstm.a_prev, lstm.p, c0=lstm.c_prev)
    for t in range(lstm.T):
        # c<t> is c_next of step t and c_prev of step t+1; so for a
        assert_same(caches.c_next[t], jnp.asarray(lstm.out["c"][..., t]))
        assert_same(caches.a_next[t], jnp.asarray(lstm.out["a"][..., t]))
        assert_same(caches.xt[t], jnp.asarray(lstm.x[..., t]))
        if t:
            assert_same(caches.c_prev[t], jnp.asarray(lstm.out["c"][..., t - 1]))
            assert_same(caches.a_prev[t], jnp.asarray(lstm.out["a"][..., t - 1]))


def test_both_signs_are_the_product_by_entries(lstm):
    # the circle of the forward half, and the dotted circle of the backward half
    tanh_c = np.tanh(lstm.c)
    assert_same(lstm.a_next, jnp.asarray(lstm.ot * tanh_c))
    dot = lstm.da_next * tanh_c * lstm.ot * (1 - lstm.ot)
    assert_same(jnp.asarray(dot @ lstm.concat.T), lstm.cell_auto["dWo"])
    # read as a composition of maps the one fits no shape, read as an outer product the other
    with pytest.raises(ValueError, match="matmul"):
        lstm.ot @ tanh_c
    assert differs(np.kron(lstm.ot, tanh_c), lstm.a_next)


def test_gamma_is_the_argument_of_the_gate(lstm):
    by_the_gate = lstm.da_next * np.tanh(lstm.c)
    shows(by_the_gate[:, :1], lstm.first["dbo"], lstm.dz_auto["o"][:, :1])


def test_dc_next_leaves_out_the_path_through_the_hidden_state(lstm):
    """Read as the whole gradient of the cell state, that path would count twice."""
    twice = textbook.lstm_cell_backward(lstm.da_next, lstm.dc, lstm.cache)
    shows(twice["dc_prev"], lstm.cell["dc_prev"], lstm.cell_auto["dc_prev"])


def test_the_candidates_gradient_is_by_its_argument(lstm):
    by_the_value = lstm.dc * lstm.it
    shows(by_the_value[:, :1], lstm.first["dbc"], lstm.dz_auto["c"][:, :1])
    shows(by_the_value @ lstm.concat.T, lstm.cell["dWc"], lstm.cell_auto["dWc"])


@pytest.mark.parametrize("gate", ["i", "f"])
def test_gamma_zero_is_the_output_gate(lstm, gate):
    rest = {"i": lstm.cct * lstm.it * (1 - lstm.it), "f": lstm.c_prev * lstm.ft * (1 - lstm.ft)}

    def bias(gamma):
        dc = lstm.dc_next + lstm.da_next * gamma * (1 - np.tanh(lstm.c) ** 2)
        return (dc * rest[gate]).sum(1, keepdims=True)

    key = f"db{gate}"
    assert_same(jnp.asarray(bias(lstm.ot)), lstm.cell_auto[key])
    # no gate has the index zero; the other two are not meant
    for other in (lstm.ft, lstm.it):
        shows(bias(other), lstm.cell[key], lstm.cell_auto[key])


def test_a_raised_t_is_a_transpose_and_not_the_time(lstm):
    with pytest.raises(ValueError, match="matmul"):
        lstm.dz["f"] @ lstm.concat
    for gate in "fico":
        key = f"dW{gate}"
        assert_same(jnp.asarray(lstm.dz[gate] @ lstm.concat.T), lstm.cell_auto[key])
        assert_same(lstm.cell[key], lstm.cell_auto[key])


def test_the_lstms_gradient_of_a_sequence_is_a_sum_over_time(lstm):
    for key in (f"d{kind}{gate}" for gate in "fico" for kind in "Wb"):
        for cell in lstm_loop():
            shows(cell[key], lstm.ours[key], lstm.auto[key])


def stacked_rows(lstm):
    """The products with the whole weights: gradients of the concatenation."""
    return sum(lstm.p[f"W{gate}"].T @ lstm.dz[gate] for gate in "fico")


def test_da_prev_takes_the_columns_of_the_hidden_state(lstm):
    whole = stacked_rows(lstm)
    shows(whole, lstm.cell["da_prev"], lstm.cell_auto["da_prev"])
    assert_same(jnp.asarray(whole[: len(lstm.a_prev)]), lstm.cell_auto["da_prev"])


def test_dx_takes_the_columns_of_the_input(lstm):
    whole = stacked_rows(lstm)
    shows(whole, lstm.cell["dxt"], lstm.cell_auto["dxt"])
    assert_same(jnp.asarray(whole[len(lstm.a_prev) :]), lstm.cell_auto["dxt"])


def test_the_weight_of_the_update_gate_is_wi(lstm):
    assert "Wu" not in textbook.LSTM_PARAMETERS
    n_a = len(lstm.a_prev)
    known = sum(lstm.p[f"W{gate}"][:, n_a:].T @ lstm.dz[gate] for gate in "fco")
    shows(known, lstm.cell["dxt"], lstm.cell_auto["dxt"])


def test_dc_prev_is_of_one_step(lstm):
    assert lstm.cell["dc_prev"].shape == lstm.c_prev.shape
    assert lstm.c_prev.shape != lstm.out["c"].shape


def test_the_candidate_is_no_gate(lstm):
    gates = np.stack([lstm.cache.ft, lstm.cache.it, lstm.cache.ot])
    assert np.all((gates > 0) & (gates < 1))
    assert np.any(lstm.cache.cct < 0)


def test_the_prediction_of_the_lstm_has_gradients(lstm):
    for key in ("dWy", "dby"):
        assert key not in lstm.cell
        shows(np.zeros_like(lstm.ours[key]), lstm.ours[key], lstm.auto[key])


@pytest.mark.parametrize("notation", ["rnn", "lstm"])
def test_the_caches_of_the_steps_hold_the_input_already(notation):
    problem, _, (_, auto) = solved(notation, 4)

    def run(inputs):
        """The gradients from the caches alone, where x has no other place than the steps'."""
        caches = forward(notation, inputs)[1]
        by_steps = jnp.stack([textbook.cache_at(caches, t).xt for t in range(problem.sizes["T"])])
        return jnp.moveaxis(by_steps, 0, -1), by_formulas(notation, problem)(inputs)[1]

    x, gradients = compiled(run, problem.inputs)
    assert_same(x, problem.inputs["x"])
    assert_same(gradients, auto)
    caches = jax.eval_shape(lambda inputs: forward(notation, inputs)[1], problem.inputs)
    n_x, m, T = problem.inputs["x"].shape
    assert [leaf.shape for leaf in caches[:-1] if leaf.shape[1] == n_x] == [(T, n_x, m)]


# "Backpropagation Through Time - I"


def test_the_prediction_depends_on_w_o_too(net):
    def error(W_o):
        """E with every o_t held constant."""
        z = jnp.einsum("yo,omt->ymt", W_o, jnp.asarray(net.o))
        return textbook.net_error(net.y, jax.nn.softmax(z, axis=0))[0]

    auto = jax.grad(error)(jnp.asarray(net.p["W_o"]))
    shows(np.zeros_like(auto), net.ours["dW_o"], auto)
    assert_same(auto, net.auto["dW_o"])


def test_the_expression_through_o_t_is_the_gradient_of_w_f(net):
    through_o = sum(net.terms["dW_F"][t, t] for t in range(net.T))
    shows(through_o, net.ours["dW_o"], net.auto["dW_o"])
    assert through_o.shape == net.p["W_F"].shape

    def hidden(p):
        return jnp.sum(textbook.net_forward(net.x, p)[0])

    # the last factor, as printed and as it is meant
    by = compiled(jax.grad(hidden), net.p)
    assert not np.any(by["W_o"])
    assert np.all(by["W_F"])


def test_the_gradient_of_w_o_is_a_sum_over_time(net):
    for t in range(net.T):
        shows(net.terms["dW_o"][t], net.ours["dW_o"], net.auto["dW_o"])


def test_the_gradient_of_w_f_is_a_sum_over_time(net):
    for t in range(net.T):
        shows(net.terms["dW_F"][t, t], net.ours["dW_F"], net.auto["dW_F"])


def test_w_f_reaches_an_error_through_every_earlier_step(net):
    direct = sum(net.terms["dW_F"][t, t] for t in range(net.T))
    shows(direct, net.ours["dW_F"], net.auto["dW_F"])
    # even the error of one step: here of the last
    assert differs(net.terms["dW_F"][-1, -1], net.terms["dW_F"][-1].sum(0))


def test_w_r_has_a_gradient(net):
    assert_same(net.ours["dW_R"], net.auto["dW_R"])
    assert np.all(net.ours["dW_R"])


def test_the_errors_are_summed_or_the_gradients_not_both(net):
    # the gradient of the summed error, summed over the steps again
    both = net.T * np.asarray(net.ours["dW_o"])
    shows(both, net.terms["dW_o"].sum(0), net.auto["dW_o"])


def test_the_error_is_a_sum_over_all_time_steps(net):
    until = net.T - 2
    for key in ("dW_F", "dW_R", "dW_o"):
        part = net.terms[key][: until + 1]
        shows(part.sum(tuple(range(part.ndim - 2))), net.ours[key], net.auto[key])
