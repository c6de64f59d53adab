"""One test per equation of the textbook, named after its id in EQUATIONS.md.

Each evaluates the right side in numpy, from the forward pass, and compares it with the textbook's
function and, where it is a gradient, with autodiff.
"""

import jax
import jax.numpy as jnp
import numpy as np
from support.problems import assert_same
from worked_examples import (
    lstm_loop,
    sigmoid,
    softmax,
    step_terms,
)

from jaxrnn import textbook


def agree(expected, *others):
    for other in others:
        assert_same(jnp.asarray(other), jnp.asarray(expected))


def test_rnn_1_hidden_state(rnn):
    agree(np.tanh(rnn.u), rnn.a_next, rnn.out["a"][..., 0])


def test_rnn_2_prediction(rnn):
    agree(
        softmax(rnn.p["Wya"] @ np.tanh(rnn.u) + rnn.p["by"]), rnn.yt_pred, rnn.out["y_pred"][..., 0]
    )


def test_rnn_3_slope_of_tanh(rnn):
    _, pull = jax.vjp(jnp.tanh, jnp.asarray(rnn.u[:, :1]))
    agree(1 - np.tanh(rnn.u[:, :1]) ** 2, rnn.unit["dba"], *pull(jnp.ones_like(rnn.u[:, :1])))


def test_rnn_4_gradient_of_the_argument_of_tanh(rnn):
    _, pull = jax.vjp(jnp.tanh, jnp.asarray(rnn.u[:, :1]))
    agree(rnn.dtanh[:, :1], rnn.first["dba"], *pull(jnp.asarray(rnn.da_next[:, :1])))


def test_rnn_5_dwax(rnn):
    agree(rnn.dtanh @ rnn.xt.T, rnn.cell["dWax"], rnn.cell_auto["dWax"])


def test_rnn_6_dwaa(rnn):
    agree(rnn.dtanh @ rnn.a_prev.T, rnn.cell["dWaa"], rnn.cell_auto["dWaa"])


def test_rnn_7_dba(rnn):
    agree(rnn.dtanh.sum(1, keepdims=True), rnn.cell["dba"], rnn.cell_auto["dba"])


def test_rnn_8_dxt(rnn):
    agree(rnn.p["Wax"].T @ rnn.dtanh, rnn.cell["dxt"], rnn.cell_auto["dxt"])


def test_rnn_9_da_prev(rnn):
    agree(rnn.p["Waa"].T @ rnn.dtanh, rnn.cell["da_prev"], rnn.cell_auto["da_prev"])


def test_rnn_10_what_returns_from_the_next_step(rnn):
    agree(rnn.da0, rnn.ours["da0"], rnn.auto["da0"])
    agree(np.einsum("ax,amt->xmt", rnn.p["Wax"], rnn.dtanhs), rnn.ours["dx"], rnn.auto["dx"])


def test_rnn_11_sums_over_time(rnn):
    agree(np.einsum("amt,xmt->ax", rnn.dtanhs, rnn.x), rnn.ours["dWax"], rnn.auto["dWax"])
    agree(np.einsum("amt,bmt->ab", rnn.dtanhs, rnn.before), rnn.ours["dWaa"], rnn.auto["dWaa"])
    agree(rnn.dtanhs.sum((1, 2))[:, None], rnn.ours["dba"], rnn.auto["dba"])


def check_error(s):
    agree(-np.sum(s.y * np.log(s.out["y_pred"])), textbook.cross_entropy(s.y, s.out["y_pred"]))


def check_logit_gradient(s, head_backward):
    """At one example and one step, where the bias of the prediction has the gradient of z."""
    y, y_pred, a = (q[:, :1, :1] for q in (s.y, s.out["y_pred"], s.out["a"]))
    # weights that sum to neither 0 nor 1
    y = y + 0.5
    _, pull = jax.vjp(
        lambda z: textbook.cross_entropy(y, jax.nn.softmax(z, axis=0)), jnp.log(jnp.asarray(y_pred))
    )
    (auto,) = pull(jnp.ones(()))
    agree(y_pred * y.sum(0, keepdims=True) - y, auto)
    agree(auto[..., 0], head_backward(y, y_pred, a, s.p)["dby"])


def test_rnn_12_error(rnn):
    check_error(rnn)


def test_rnn_13_gradient_of_the_logits(rnn):
    check_logit_gradient(rnn, textbook.rnn_head_backward)


def test_rnn_14_dwya(rnn):
    dWya = np.einsum("ymt,amt->ya", rnn.z_adjoint, rnn.out["a"])
    agree(dWya, rnn.ours["dWya"], rnn.auto["dWya"])


def test_rnn_15_dby(rnn):
    agree(rnn.z_adjoint.sum((1, 2))[:, None], rnn.ours["dby"], rnn.auto["dby"])


def test_rnn_16_da(rnn):
    da = np.einsum("ya,ymt->amt", rnn.p["Wya"], rnn.z_adjoint)
    head = textbook.rnn_head_backward(rnn.y, rnn.out["y_pred"], rnn.out["a"], rnn.p)
    auto = jax.grad(lambda a: textbook.cross_entropy(
        rnn.y, jax.nn.softmax(jnp.tensordot(rnn.p["Wya"], a, 1) + rnn.p["by"][..., None], axis=0)
    ))(jnp.asarray(rnn.out["a"]))  # fmt: skip
    agree(da, head["da"], auto)


def test_lstm_1_forget_gate(lstm):
    agree(sigmoid(lstm.z["f"]), lstm.cache.ft)


def test_lstm_2_candidate(lstm):
    agree(np.tanh(lstm.z["c"]), lstm.cache.cct)


def test_lstm_3_update_gate(lstm):
    agree(sigmoid(lstm.z["i"]), lstm.cache.it)


def test_lstm_4_cell_state(lstm):
    agree(lstm.ft * lstm.c_prev + lstm.it * lstm.cct, lstm.c_next, lstm.out["c"][..., 0])


def test_lstm_5_output_gate(lstm):
    agree(sigmoid(lstm.z["o"]), lstm.cache.ot)


def test_lstm_6_hidden_state(lstm):
    agree(lstm.ot * np.tanh(lstm.c), lstm.a_next, lstm.out["a"][..., 0])


def test_lstm_7_prediction(lstm):
    expected = softmax(lstm.p["Wy"] @ (lstm.ot * np.tanh(lstm.c)) + lstm.p["by"])
    agree(expected, lstm.yt_pred, lstm.out["y_pred"][..., 0])


def check_gate(lstm, gate):
    agree(lstm.dz[gate][:, :1], lstm.first[f"db{gate}"], lstm.dz_auto[gate][:, :1])


def test_lstm_8_gradient_of_the_argument_of_the_output_gate(lstm):
    check_gate(lstm, "o")


def test_lstm_9_gradient_of_the_cell_state(lstm):
    def read(c):
        return jnp.asarray(lstm.ot) * jnp.tanh(c), c

    _, pull = jax.vjp(read, jnp.asarray(lstm.c))
    auto = pull((jnp.asarray(lstm.da_next), jnp.asarray(lstm.dc_next)))
    # dc_prev is dc times the forget gate
    agree(lstm.dc, lstm.cell["dc_prev"] / lstm.ft, *auto)


def test_lstm_10_gradient_of_the_argument_of_the_candidate(lstm):
    check_gate(lstm, "c")


def test_lstm_11_gradient_of_the_argument_of_the_update_gate(lstm):
    check_gate(lstm, "i")


def test_lstm_12_gradient_of_the_argument_of_the_forget_gate(lstm):
    check_gate(lstm, "f")


def check_weight(lstm, gate):
    key = f"dW{gate}"
    agree(lstm.dz[gate] @ lstm.concat.T, lstm.cell[key], lstm.cell_auto[key])


def test_lstm_13_dwf(lstm):
    check_weight(lstm, "f")


def test_lstm_14_dwi(lstm):
    check_weight(lstm, "i")


def test_lstm_15_dwc(lstm):
    check_weight(lstm, "c")


def test_lstm_16_dwo(lstm):
    check_weight(lstm, "o")


def check_bias(lstm, gate):
    key = f"db{gate}"
    agree(lstm.dz[gate].sum(1, keepdims=True), lstm.cell[key], lstm.cell_auto[key])


def test_lstm_17_dbf(lstm):
    check_bias(lstm, "f")


def test_lstm_18_dbi(lstm):
    check_bias(lstm, "i")


def test_lstm_19_dbc(lstm):
    check_bias(lstm, "c")


def test_lstm_20_dbo(lstm):
    check_bias(lstm, "o")


def test_lstm_21_da_prev(lstm):
    n_a = len(lstm.a_prev)
    expected = sum(lstm.p[f"W{gate}"][:, :n_a].T @ lstm.dz[gate] for gate in "fico")
    agree(expected, lstm.cell["da_prev"], lstm.cell_auto["da_prev"])


def test_lstm_22_dc_prev(lstm):
    agree(lstm.dc * lstm.ft, lstm.cell["dc_prev"], lstm.cell_auto["dc_prev"])


def test_lstm_23_dxt(lstm):
    n_a = len(lstm.a_prev)
    expected = sum(lstm.p[f"W{gate}"][:, n_a:].T @ lstm.dz[gate] for gate in "fico")
    agree(expected, lstm.cell["dxt"], lstm.cell_auto["dxt"])


def test_lstm_24_what_returns_from_the_next_step(lstm):
    dx = np.stack([cell["dxt"] for cell in lstm_loop()], axis=-1)
    agree(dx, lstm.ours["dx"], lstm.auto["dx"])


def test_lstm_25_sums_over_time(lstm):
    for key in (f"d{kind}{gate}" for gate in "fico" for kind in "Wb"):
        agree(sum(cell[key] for cell in lstm_loop()), lstm.ours[key], lstm.auto[key])
    agree(lstm_loop()[0]["da_prev"], lstm.ours["da0"], lstm.auto["da0"])
    agree(lstm_loop()[0]["dc_prev"], lstm.ours["dc0"], lstm.auto["dc0"])


def test_lstm_26_error(lstm):
    check_error(lstm)


def test_lstm_27_gradient_of_the_logits(lstm):
    check_logit_gradient(lstm, textbook.lstm_head_backward)


def test_lstm_28_dwy(lstm):
    dWy = np.einsum("ymt,amt->ya", lstm.z_adjoint, lstm.out["a"])
    agree(dWy, lstm.ours["dWy"], lstm.auto["dWy"])


def test_lstm_29_dby(lstm):
    agree(lstm.z_adjoint.sum((1, 2))[:, None], lstm.ours["dby"], lstm.auto["dby"])


def test_lstm_30_da(lstm):
    da = np.einsum("ya,ymt->amt", lstm.p["Wy"], lstm.z_adjoint)
    head = textbook.lstm_head_backward(lstm.y, lstm.out["y_pred"], lstm.out["a"], lstm.p)
    auto = jax.grad(lambda a: textbook.cross_entropy(
        lstm.y, jax.nn.softmax(jnp.tensordot(lstm.p["Wy"], a, 1) + lstm.p["by"][..., None], axis=0)
    ))(jnp.asarray(lstm.out["a"]))  # fmt: skip
    agree(da, head["da"], auto)


def test_step_1_candidate(step):
    agree(np.tanh(step.z["g"]), step.cache.g)


def test_step_2_input_gate(step):
    agree(sigmoid(step.z["i"]), step.cache.i)


def test_step_3_input_gate_out(step):
    agree(step.g * step.i, step.c_t - step.c_prev * step.f)


def test_step_4_forget_gate(step):
    agree(sigmoid(step.z["f"]), step.cache.f)


def test_step_5_output_gate(step):
    agree(sigmoid(step.z["o"]), step.cache.o)


def test_step_6_cell_state(step):
    agree(step.c_prev * step.f + step.g * step.i, step.c_t, step.cache.c, step.out["c"][..., 0])


def test_step_7_output(step):
    agree(step.o * np.tanh(step.c), step.h_t, step.out["a"][..., 0])


def test_step_8_squared_error(step):
    h_t = np.asarray(step.h_t)
    agree(0.5 * np.sum((h_t - step.y_t) ** 2), step.E)
    auto = jax.grad(lambda h: textbook.squared_error(step.y_t, h)[0])(step.h_t)
    agree(h_t - step.y_t, step.E_delta, auto)


def check_step(step, key, expected):
    agree(expected, step.cell[key], step.cell_auto[key])


def test_step_9_do(step):
    check_step(step, "do", step.E_delta * np.tanh(step.c))


def test_step_10_dc(step):
    check_step(step, "dc", step.dc)


def test_step_11_di(step):
    check_step(step, "di", step.dc * step.g)


def test_step_12_dg(step):
    check_step(step, "dg", step.dc * step.i)


def test_step_13_df(step):
    check_step(step, "df", step.dc * step.c_prev)


def test_step_14_dc_prev(step):
    check_step(step, "dc_prev", step.dc * step.f)


def test_step_15_dwxo(step):
    check_step(step, "dwxo", step.dz["o"] @ step.x_t.T)


def test_step_16_dwho(step):
    check_step(step, "dwho", step.dz["o"] @ step.h_prev.T)


def test_step_17_dbo(step):
    check_step(step, "dbo", step.dz["o"].sum(1, keepdims=True))


def test_step_18_dwxf(step):
    check_step(step, "dwxf", step.dz["f"] @ step.x_t.T)


def test_step_19_dwhf(step):
    check_step(step, "dwhf", step.dz["f"] @ step.h_prev.T)


def test_step_20_dbf(step):
    check_step(step, "dbf", step.dz["f"].sum(1, keepdims=True))


def test_step_21_dwxi(step):
    check_step(step, "dwxi", step.dz["i"] @ step.x_t.T)


def test_step_22_dwhi(step):
    check_step(step, "dwhi", step.dz["i"] @ step.h_prev.T)


def test_step_23_dbi(step):
    check_step(step, "dbi", step.dz["i"].sum(1, keepdims=True))


def test_step_24_dwxg(step):
    check_step(step, "dwxg", step.dz["g"] @ step.x_t.T)


def test_step_25_dwhg(step):
    check_step(step, "dwhg", step.dz["g"] @ step.h_prev.T)


def test_step_26_dbg(step):
    check_step(step, "dbg", step.dz["g"].sum(1, keepdims=True))


def test_step_27_dx(step):
    check_step(step, "dx", sum(step.p[f"wx{gate}"].T @ step.dz[gate] for gate in "ofig"))


def test_step_28_dh_prev(step):
    check_step(step, "dh_prev", sum(step.p[f"wh{gate}"].T @ step.dz[gate] for gate in "ofig"))


def test_step_29_what_returns_to_h_from_the_next_step(step):
    each, _, nudges = step_terms()
    E_delta = step.out["a"] - step.y
    for t in range(step.T):
        later = each["dh_prev"][t + 1] if t + 1 < step.T else 0
        # do is dE/dh_t times tanh(c_t)
        dh = each["do"][t] / np.tanh(step.out["c"][..., t])
        agree(E_delta[..., t] + later, dh, nudges["h"][t])


def test_step_30_what_returns_to_c_from_the_next_step(step):
    each, _, nudges = step_terms()
    for t in range(step.T):
        later = each["dc_prev"][t + 1] if t + 1 < step.T else 0
        c = step.out["c"][..., t]
        o = step.out["a"][..., t] / np.tanh(c)
        through_h = nudges["h"][t] * o * (1 - np.tanh(c) ** 2)
        agree(through_h + later, each["dc"][t])
        # the nudge of c_t comes after h_t was made, and so knows only what later steps read
        agree(later + np.zeros_like(c), nudges["c"][t])


def test_step_31_sums_over_time(step):
    each, copies, _ = step_terms()
    for key in step.p:
        # the terms one by one, then their sum
        agree(copies[key], each[f"d{key}"])
        agree(copies[key].sum(0), step.ours[f"d{key}"], step.auto[f"d{key}"])


def jacobian(net, t, k, example):
    """∂o_t/∂o_k of one example, factor by factor."""
    J = np.eye(len(net.o))
    for j in range(t, k, -1):
        J = J @ np.diag(1 - net.o[:, example, j] ** 2) @ net.p["W_R"]
    return J


def test_net_1_hidden_state(net):
    for t in range(net.T):
        u = net.p["W_F"] @ net.x[..., t] + net.p["W_R"] @ net.o_prev[..., t]
        agree(np.tanh(u), net.o[..., t])


def test_net_2_prediction(net):
    agree(softmax(np.einsum("yo,omt->ymt", net.p["W_o"], net.o)), net.y_hat)


def test_net_3_error_is_a_sum_over_time_steps(net):
    E, terms = textbook.net_error(net.y, net.y_hat)
    expected = -np.sum(net.y * np.log(net.y_hat), axis=(0, 1))
    agree(expected, terms)
    agree(expected.sum(), E)


def test_net_4_dw_o(net):
    each = np.einsum("ymt,omt->tyo", net.dz, net.o)
    agree(each, net.terms["dW_o"])
    agree(each.sum(0), net.ours["dW_o"], net.auto["dW_o"])


def test_net_5_gradient_of_a_step_by_its_own_hidden_state(net):
    def own_errors(o):
        z = jnp.einsum("yo,omt->ymt", jnp.asarray(net.p["W_o"]), o)
        return textbook.net_error(net.y, jax.nn.softmax(z, axis=0))[0]

    auto = jax.grad(own_errors)(jnp.asarray(net.o))
    # the path from a step to itself is one slope of tanh away from it
    direct = np.stack([net.paths[t, t] for t in range(net.T)], axis=-1)
    agree(net.do, direct / (1 - net.o**2), auto)


def test_net_6_path_between_two_hidden_states(net):
    t, k, m = net.T - 1, 0, 0

    def later(o_k):
        for j in range(k + 1, t + 1):
            o_k = jnp.tanh(net.p["W_F"] @ net.x[:, m, j] + net.p["W_R"] @ o_k)
        return o_k

    agree(jacobian(net, t, k, m), jax.jacrev(later)(jnp.asarray(net.o[:, m, k])))


def test_net_7_path_of_an_error_to_an_earlier_step(net):
    expected = np.zeros_like(net.paths)
    for t in range(net.T):
        for k in range(t + 1):
            for m in range(net.o.shape[1]):
                pulled = jacobian(net, t, k, m).T @ net.do[:, m, t]
                expected[t, k, :, m] = (1 - net.o[:, m, k] ** 2) * pulled
    agree(expected, net.paths)


def test_the_sums_of_the_paths_follow_each_other(net):
    """The recursion of `net_backward`: p_k from p_{k+1}."""
    summed = net.paths.sum(0)
    for k in range(net.T):
        later = net.p["W_R"].T @ summed[k + 1] if k + 1 < net.T else 0
        agree((1 - net.o[..., k] ** 2) * (net.do[..., k] + later), summed[k])


def test_net_8_dw_f(net):
    each = np.einsum("tkom,imk->tkoi", net.paths, net.x)
    agree(each, net.terms["dW_F"])
    agree(each.sum((0, 1)), net.ours["dW_F"], net.auto["dW_F"])


def test_net_9_dw_r(net):
    each = np.einsum("tkom,imk->tkoi", net.paths, net.o_prev)
    agree(each, net.terms["dW_R"])
    agree(each.sum((0, 1)), net.ours["dW_R"], net.auto["dW_R"])


def test_net_10_dx(net):
    expected = np.einsum("oi,tkom->imk", net.p["W_F"], net.paths)
    agree(expected, net.ours["dx"], net.auto["dx"])
