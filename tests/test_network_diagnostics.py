"""The diagnostics of a network are those of its layers, with the gradients that reach each one."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from support.problems import assert_same, random_tree
from support.user_cells import NOISY_RATE

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM, LayerParams, LayerState, StackParams, StackState, diagnostics

T, B, I = 7, 3, 3
LENGTHS = np.array([7, 0, 4])
NETWORK = jaxrnn.stack(
    jaxrnn.layer(LSTM, 4, bidirectional=True, merge="multiply", learned_initial_state=True),
    jaxrnn.layer(ELMAN, 4, residual=True),
    dropout=0.5,
    input_dropout=0.3,
)
CALLS = [(0, "forward"), (0, "backward"), (1, "forward")]
NAMES = [f"layer {n}, {way}: {('LSTM', 'ELMAN')[n]}" for n, way in CALLS]


def loss(final_state, hs):
    """The loss of each row ``[B]``, with another gradient for every state and output."""
    of_states = (jnp.sum(jnp.sin(leaf), axis=-1) for leaf in jax.tree.leaves(final_state))
    return sum(of_states) + jnp.sum(jnp.cos(hs) * hs, axis=(0, -1))


def total_loss(final_state, hs):
    return jnp.sum(loss(final_state, hs))


class Problem(NamedTuple):
    network: jaxrnn.Network
    params: StackParams
    xs: jax.Array
    options: dict

    def outputs(self, params, xs, state=None):
        return jaxrnn.reference(self.network).apply(params, xs, state, **self.options)

    def watched(self, name, *state, **own):
        call = functools.partial(getattr(diagnostics, name), self.network, self.params, self.xs)
        return call(None, None, *state, loss=total_loss, **own, **self.options)


def params_of(network, size=I):
    """No bias and no learned state at zero."""
    params = network.init(jax.random.key(0), size, dtype=jnp.float64)
    return jax.tree.map(lambda a, b: a + 0.3 * b, params, random_tree(params))


@functools.cache
def problem():
    resets = np.random.default_rng(0).random((T, B)) < 0.3
    xs = random_tree(jax.ShapeDtypeStruct((T, B, I), jnp.float64), 1)
    options = {"lengths": LENGTHS, "resets": resets, "key": jax.random.key(3)}
    return Problem(NETWORK, params_of(NETWORK), xs, options)


def state_of(p):
    return random_tree(p.network.initial_state(p.params, (B,)), 2)


@pytest.mark.parametrize("given", [False, True])
def test_backpropagate_is_autodiff_of_the_whole_network(given):
    p = problem()
    state = state_of(p) if given else None
    found = p.watched("backpropagate", state)

    def of_inputs(params, xs, state):
        return total_loss(*p.outputs(params, xs, state))

    expected = jax.jit(jax.grad(of_inputs, argnums=(0, 1, 2)))(p.params, p.xs, state)
    assert_same((found.params, found.xs), expected[:2])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
    if given:
        assert_same(found.initial_state, expected[2])
    assert found.consts is None


def unroll_with(each, cell, params, xs, state, *, reverse, lengths, resets, reset_state=None, **_):
    """A plain loop whose every step reads params of its own, ``each [T, ...]``."""
    reset = cell.initial_state(params, (B,)) if reset_state is None else reset_state
    reset = jax.tree.map(lambda r, s: jnp.broadcast_to(r, s.shape), reset, state)

    def where(mask, a, b):
        return jax.tree.map(lambda x, y: jnp.where(mask[:, None], x, y), a, b)

    def step(state, at):
        params, x, valid, cut = at
        after, h = cell.step(params, state if reverse else where(cut, reset, state), x)
        after = where(cut, reset, after) if reverse else after
        return where(valid, after, state), jnp.where(valid[:, None], h, 0)

    valid = np.arange(T)[:, None] < lengths
    return jax.lax.scan(step, state, (each, xs, valid, resets), reverse=reverse)


def test_step_contributions_are_the_gradients_of_params_used_at_one_step_alone():
    p = problem()
    found = p.watched("step_contributions", window=(0, T))

    def of_steps(every):
        """All layers with the params of every step."""
        each = iter(every)
        network = p.network._replace(unroll=lambda *a, **o: unroll_with(next(each), *a, **o))
        return total_loss(*network.apply(p.params, p.xs, **p.options))

    every = [getattr(p.params.layers[n], way) for n, way in CALLS]
    every = [jax.tree.map(lambda leaf: jnp.stack([leaf] * T), params) for params in every]
    terms = jax.jit(jax.grad(of_steps))(every)
    for (n, way), expected in zip(CALLS, terms, strict=True):
        norms, shares, gradients = (getattr(tree.layers[n], way) for tree in found)
        assert_same(gradients, expected)
        flat = jax.tree.map(lambda leaf: leaf.reshape(T, -1), expected)
        assert_same(norms, jax.tree.map(lambda leaf: np.linalg.norm(leaf, axis=1), flat))
        whole = jax.tree.map(lambda leaf: leaf.sum(0), flat)
        assert_same(shares, jax.tree.map(lambda t, g: t @ g / (g @ g), flat, whole))
        assert_same(
            jax.tree.map(lambda leaf: leaf.sum(), shares),
            jax.tree.map(lambda leaf: np.ones(()), whole),
        )
    # no step adds to a learned initial state
    for leaf in jax.tree.leaves([tree.layers[0].initial_state for tree in found]):
        assert len(leaf) == T
        assert not np.any(leaf)
    assert found.norms.layers[1].initial_state is None


def test_example_gradient_norms_are_those_of_every_row_alone():
    p = problem()
    found = p.watched("example_gradient_norms")

    def of_row(row):
        return jax.grad(lambda params: row @ loss(*p.outputs(params, p.xs)))(p.params)

    rows = jax.jit(jax.vmap(of_row))(jnp.eye(B))
    norms = jax.tree.map(lambda leaf: np.linalg.norm(leaf.reshape(B, -1), axis=1), rows)
    assert_same(found.params, norms)
    assert_same(found.total, np.sqrt(sum(leaf**2 for leaf in jax.tree.leaves(norms))))
    # a row without a step still has its learned initial state as its final one
    assert found.total[1] > 0
    assert not np.any(found.params.layers[1].forward.w_ih[1])


def test_a_network_is_truncated_in_all_of_its_layers():
    k, network = 2, jaxrnn.stack(jaxrnn.layer(GRU, 3), jaxrnn.layer(ELMAN, 3))
    p = problem()._replace(network=network, params=params_of(network), options={"lengths": LENGTHS})
    found = p.watched("truncation_bias", k=k)
    windows = np.zeros((T, B), bool)
    for b, length in enumerate(LENGTHS):
        windows[range(length % k or k, length, k), b] = True

    def gradient(detach):
        def of_params(params):
            return total_loss(*network.apply(params, p.xs, detach=detach, **p.options))

        return jax.grad(of_params)(p.params)

    def norm(leaf):
        return np.linalg.norm(np.ravel(leaf))

    truncated, exact = gradient(windows), gradient(None)
    error = jax.tree.map(lambda a, b: norm(a - b) / norm(b), truncated, exact)
    cosine = jax.tree.map(lambda a, b: np.vdot(a, b) / norm(a) / norm(b), truncated, exact)
    assert_same(found, diagnostics.TruncationBias(error, cosine))
    # cotangents from above that are not truncated would give others
    alone = [
        call.diagnosed(diagnostics.truncation_bias, k=k).relative_error.cell.w_hh
        for call in diagnostics.networks.watch(
            network, p.params, p.xs, None, None, None, {"loss": total_loss, **p.options}
        ).calls
    ]
    of_layers = [layer.forward.w_hh for layer in found.relative_error.layers]
    assert abs(alone[0] - of_layers[0]) > 1e-3
    assert_same(alone[1], of_layers[1])


DIAGNOSTICS = {
    "backpropagate": {},
    "step_contributions": {"window": (1, 3), "from_end": True},
    "horizon": {"fraction": 0.9},
    "example_gradient_norms": {},
    "gradient_flow": {"probes": 3},
    "truncation_bias": {"k": 2},
}


def test_a_network_of_one_layer_is_its_cell():
    """With every option, and the same results in the network's containers."""
    network = jaxrnn.layer(ELMAN, 4)
    params, p = params_of(network), problem()
    draws = np.random.default_rng(1).random((2, T, B))
    options = {"mask": draws[0] < 0.7, "detach": draws[1] < 0.4, "resets": p.options["resets"]}
    state = state_of(p._replace(network=network, params=params))
    (of_cell,), (own_state,) = params.layers, state.layers

    def only(tree):
        """A result without the containers."""
        containers = (StackParams, StackState, LayerParams, LayerState)
        if isinstance(tree, containers):
            (tree,) = tree.layers if isinstance(tree, containers[:2]) else tree[:1]
            return only(tree)
        records = (diagnostics.Gradients, diagnostics.StepContributions)
        records += (diagnostics.ExampleGradientNorms, diagnostics.GradientFlow)
        records += (diagnostics.TruncationBias,)
        return type(tree)(*map(only, tree)) if isinstance(tree, records) else tree

    for name, own in DIAGNOSTICS.items():
        diagnostic = functools.partial(getattr(diagnostics, name), **own, **options)
        found = diagnostic(
            network, params, p.xs, None, None, state,
            loss=lambda final, hs: jnp.sum(final.layers[0].forward.h ** 2) + jnp.sum(hs**3),
        )  # fmt: skip
        expected = diagnostic(
            ELMAN, of_cell.forward, p.xs, None, None, own_state.forward,
            loss=lambda final, hs: jnp.sum(final.h**2) + jnp.sum(hs**3),
        )  # fmt: skip
        assert_same(only(found), expected)


def small():
    network = jaxrnn.stack(jaxrnn.layer(ELMAN, 4), jaxrnn.layer(ELMAN, 4))
    return problem()._replace(network=network, params=params_of(network), options={})


def test_a_loss_is_its_gradients_at_the_outputs():
    p = small()
    by_loss = p.watched("backpropagate")
    dfinal, dhs = jax.grad(lambda outputs: total_loss(*outputs))(p.outputs(p.params, p.xs))
    call = functools.partial(diagnostics.backpropagate, p.network)
    assert_same(call(p.params, p.xs, dhs, dfinal), by_loss)
    only_hs = call(p.params, p.xs, dhs)
    assert_same(only_hs, call(p.params, p.xs, dhs, jax.tree.map(jnp.zeros_like, dfinal)))
    # under jit, too
    jitted = jax.jit(lambda params, xs: call(params, xs, loss=total_loss))(p.params, p.xs)
    assert_same(jitted, by_loss)


def test_every_diagnostic_can_be_traced():
    """With arrays of unknown values, in 16 bits: measures are in the dtype of sums."""
    p = problem()
    params, xs = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (p.params, p.xs))
    for name, own in DIAGNOSTICS.items():
        diagnostic = functools.partial(getattr(diagnostics, name), NETWORK, **own)
        found = jax.eval_shape(
            lambda params, xs, options, run=diagnostic: run(
                params, xs, loss=lambda _, hs: jnp.sum(hs), **options
            ),
            params,
            xs,
            p.options,
        )
        measured = {leaf.dtype for leaf in jax.tree.leaves(found)} - {jnp.dtype(jnp.int32)}
        assert measured <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
        by_layer = [each for each in found if isinstance(each, (StackParams, StackState))]
        assert by_layer or isinstance(found, StackParams)


def test_a_cell_that_draws_gets_the_key_of_its_layer_and_direction():
    network = jaxrnn.layer(NOISY_RATE, 3, bidirectional=True)
    weights = {"w": (3, 3), "u": (I, 3), "b": (3,)}
    like = {name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in weights.items()}
    params = StackParams((LayerParams(random_tree(like, 1), random_tree(like, 2), None),))
    p = problem()._replace(network=network, params=params)
    found = p.watched("backpropagate")
    # the initial state is made of the params
    expected = jax.jit(jax.grad(lambda params: total_loss(*p.outputs(params, p.xs))))(params)
    assert_same(found.params, expected)


def test_explain_tells_of_each_layer_what_the_diagnostics_found():
    p = problem()
    explained = p.watched("explain", windows=(3,), title="two layers")
    assert_same(explained.gradients, jax.device_get(p.watched("backpropagate")))
    parts = p.watched("step_contributions", from_end=True)
    assert_same(explained.contributions, jax.device_get(parts))
    assert_same(explained.horizons, jax.device_get(p.watched("horizon")))
    assert_same(explained.flow.states, jax.device_get(p.watched("gradient_flow").states))
    (bias,) = explained.biases.values()
    assert_same(bias, jax.device_get(p.watched("truncation_bias", k=3)))

    title, *blocks, end = explained.table.split("\n\n")
    assert title == "two layers"
    assert [block.split("\n")[0] for block in blocks] == NAMES
    for (n, way), block in zip(CALLS, blocks, strict=True):
        rows = {" ".join(line.split()[:2]): line for line in block.split("\n")}
        of_layer = explained.gradients.params.layers[n]
        reach, errors = explained.horizons.layers[n], bias.relative_error.layers[n]
        for name, gradient in getattr(of_layer, way)._asdict().items():
            shown = f"{name} {np.linalg.norm(gradient):.3g}"
            assert f"{getattr(getattr(reach, way), name)} of 7" in rows[shown]
            assert f"{getattr(getattr(errors, way), name):.1%}" in rows[shown]
        if n == 0:
            start = getattr(of_layer.initial_state, way)
            assert f"{np.linalg.norm(start.c):.3g}" in rows["initial c"]
            assert f"{getattr(errors.initial_state, way).c:.1%}" in rows["initial c"]
        assert "spectral radius" in block
    assert end.endswith("every number is finite")


def test_explain_draws_a_row_for_each_layer_and_direction():
    p = problem()
    figure = Figure(figsize=(11, 9), layout="constrained")
    explained = p.watched("explain", windows=(), figure=figure)
    assert explained.figure is figure
    assert figure.get_suptitle() == "network of 2 layers: 7 steps, 3 rows, 3 inputs, 4 outputs"
    rows = np.reshape(figure.axes[: 4 * 4], (4, 4))[1:]
    assert [row[0].get_title(loc="left") for row in rows] == NAMES
    for (n, way), (shares, states, _, saturated) in zip(CALLS, rows, strict=True):
        # learned initial states, to which no step adds, are not among these
        assert [label.get_text() for label in shares.get_yticklabels()] == ["w_ih", "w_hh", "b"]
        (image,) = shares.get_images()
        norms = np.stack(getattr(explained.contributions.norms.layers[n], way))
        expected = np.clip(norms / norms.sum(1, keepdims=True), 1e-4, 1)
        np.testing.assert_allclose(image.get_array(), expected)
        assert len(states.get_lines()) == (2, 1)[n]
        assert len(saturated.get_lines()) == (4, 1)[n]
        # the last step to be processed is at the right, or at the left
        limits = (-6.5, 0.5) if way == "forward" else (-0.5, 6.5)
        assert {axes.get_xlim() for axes in (shares, states, saturated)} == {limits}
    # layers are compared on one scale
    assert len({row[1].get_ylim() for row in rows}) == 1
    assert figure.get_supxlabel() == (
        "valid step, counted from each row's last; backward: valid step, counted from each "
        "row's first"
    )


def test_explain_says_in_which_layer_a_number_is_not_finite_first():
    p = small()
    spoilt = p._replace(xs=p.xs.at[3, 2, 0].set(np.nan)).watched("explain", windows=())
    first, second = spoilt.table.split("\n\n")[1:3]
    assert "NOT FINITE from step 3, row 2: began in xs" in first
    assert "NOT FINITE from step 3, row 2: began in xs" in second
    assert spoilt.table.endswith("NOT FINITE first in layer 0, forward: ELMAN")
    (first, second), key = p.params.layers, spoilt.flow.nonfinite.layers
    assert key[0].forward.step[2] == key[1].forward.step[2] == 3
    top = np.finfo(np.float64).max
    huge = jax.tree.map(lambda leaf: leaf + top, second)
    exploded = p._replace(params=StackParams((first, huge))).watched("explain", windows=())
    assert exploded.table.endswith("NOT FINITE first in layer 1, forward: ELMAN")


BAD = {
    "reverse": ({"reverse": True}, TypeError, "`reverse` is an option of a cell: in a network,"),
    "consts": ({"consts": {}}, TypeError, "`consts` is an option of a cell: the layers"),
    "reset_state": ({"reset_state": None}, TypeError, "`reset_state` is an option of a cell"),
    "unknown": (
        {"lenghts": LENGTHS},
        TypeError,
        "unknown argument `lenghts`: the options of a network are lengths, mask, resets, detach",
    ),
    "two losses": ({"dhs": np.ones((T, B, 4))}, ValueError, "`loss` takes the place of `dhs`"),
    "no loss": ({"loss": None}, ValueError, "`dhs` and `dfinal` are both None"),
    "state": ({"initial_state": ()}, TypeError, "`initial_state` must be a jaxrnn.StackState"),
    "dfinal": (
        {"loss": None, "dfinal": ()},
        TypeError,
        r"must be StackState\(layers=tuple\(LayerState\(forward=ElmanState\(h=float64\[3, 4\]",
    ),
    "lengths": ({"lengths": LENGTHS + 1}, ValueError, "`lengths` must lie in 0..T=7"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_network_does_not_take_is_said_in_one_sentence(name):
    options, error, said = BAD[name]
    p = small()
    arguments = {"cell": p.network, "params": p.params, "xs": p.xs, "loss": total_loss}
    with pytest.raises(error, match=said):
        diagnostics.horizon(**{**arguments, **options})


def test_own_arguments_are_checked_as_for_a_cell():
    p = small()
    with pytest.raises(ValueError, match=r"`k` must be in 1..T=7, the steps of `xs`; got 8"):
        p.watched("truncation_bias", k=8)
    with pytest.raises(ValueError, match="`fraction` must be above 0"):
        p.watched("horizon", fraction=0)
    with pytest.raises(TypeError, match="`windows` must be a tuple of ints"):
        p.watched("explain", windows=3)
    with pytest.raises(TypeError, match="`figure` must be a matplotlib Figure"):
        p.watched("explain", figure=3)
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda xs: p._replace(xs=xs).watched("explain"))(p.xs)
    with pytest.raises(ValueError, match="`lengths` must leave a step to explain"):
        p._replace(options={"lengths": 0 * LENGTHS}).watched("explain")
