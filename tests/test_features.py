"""What a user of other frameworks asks for, row by row, in one network or call.

The other files test each property in depth; here stands that it is there at all. Second half: what
peers were seen to get wrong, on the same inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, random_tree
from support.programs import collectives, equations

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM, diagnostics
from jaxrnn.parallel import make_mesh, replicate, shard_rows

T, B, I, H = 6, 3, 2, 4
XS = random_tree(jax.ShapeDtypeStruct((T, B, I), jnp.float64), 1)


def params_of(network, dtype=jnp.float64):
    params = network.init(jax.random.key(0), I, dtype=dtype)
    return jax.tree.map(lambda a: a + 0.1 * a.astype(dtype) + 0.01, params)


def loss_of(network, **options):
    """A loss of every output, whose gradient is another one at each."""

    def loss(params, xs):
        final_state, hs = network.apply(params, xs, **options)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((final_state, hs)))

    return loss


def assert_exact(network, xs=XS, **options):
    """Values and gradients are those of autodiff."""
    params = params_of(network)
    run = (
        jax.jit(jax.value_and_grad(loss_of(each, **options), argnums=(0, 1)))(params, xs)
        for each in (network, jaxrnn.reference(network))
    )
    assert_same(*run)


KINDS = {
    "tanh and relu Elman": (ELMAN, jaxrnn.elman("relu")),
    "LSTM and both forms of the GRU": (LSTM, GRU, jaxrnn.RESET_BEFORE_GRU),
    "layer normalisation": (jaxrnn.LAYER_NORM_LSTM, jaxrnn.LAYER_NORM_GRU),
    "projection": (jaxrnn.projected(LSTM, 3), jaxrnn.projected(ELMAN, 3)),
    "peepholes": (jaxrnn.PEEPHOLE_LSTM,),
}


@pytest.mark.parametrize("kind", KINDS)
def test_cells_have_exact_gradients_in_a_stack(kind):
    assert_exact(jaxrnn.stack(*(jaxrnn.layer(cell, H) for cell in KINDS[kind])))


def test_layers_are_stacked_and_run_in_both_directions():
    assert_exact(
        jaxrnn.stack(
            jaxrnn.layer(GRU, 3, bidirectional=True),
            jaxrnn.layer(LSTM, 3, bidirectional=True, merge="sum"),
        )
    )


def test_initial_states_are_learned():
    network = jaxrnn.layer(GRU, H, learned_initial_state=True)
    assert_exact(network)
    gradient = jax.grad(loss_of(network))(params_of(network), XS)
    assert all(np.all(leaf) for leaf in gradient.layers[0].initial_state.forward)


@pytest.mark.parametrize("mask", ["step", "sequence"])
def test_dropout_stands_between_layers_anew_each_step_or_once_a_sequence(mask):
    layers = (jaxrnn.layer(GRU, H), jaxrnn.layer(ELMAN, H))
    network = jaxrnn.stack(*layers, dropout=0.5, dropout_mask=mask)
    assert_exact(network, key=jax.random.key(5))
    # none without a key, as in evaluation
    params = params_of(network)
    assert_same(network.apply(params, XS), jaxrnn.stack(*layers).apply(params, XS))


def test_dropout_and_zoneout_stand_in_the_recursion():
    cells = jaxrnn.recurrent_dropout(GRU, 0.5), jaxrnn.zoneout(LSTM, h=0.2, c=0.2)
    assert_exact(jaxrnn.stack(*(jaxrnn.layer(cell, H) for cell in cells)), key=jax.random.key(5))


def test_no_gradient_crosses_the_reset_of_an_episode():
    network = jaxrnn.stack(jaxrnn.layer(LSTM, H), jaxrnn.layer(GRU, H))
    resets = jnp.zeros((T, B), bool).at[3, 1].set(True)

    def last(xs):
        return jnp.sum(network.apply(params_of(network), xs, resets=resets)[1][-1])

    dxs = jax.grad(last)(XS)
    assert not np.any(dxs[:3, 1])
    assert np.all(dxs[3:, 1])
    assert np.all(dxs[:, 0])


def test_every_hidden_and_cell_state_of_every_layer_is_returned():
    network = jaxrnn.stack(jaxrnn.layer(LSTM, H), jaxrnn.layer(GRU, H, bidirectional=True))
    final, _, states = network.apply(params_of(network), XS, return_states=True)
    lstm, gru = states.layers
    assert lstm.forward.c.shape == lstm.forward.h.shape == (T, B, H)
    assert gru.backward.h.shape == (T, B, H)
    assert_same(lstm.forward.c[-1], final.layers[0].forward.c)
    # the backward direction ends at the first step
    assert_same(gru.backward.h[0], final.layers[1].backward.h)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_params_products_and_state_have_dtypes_of_their_own(dtype):
    cell = jaxrnn.with_dtypes(LSTM, compute=jnp.bfloat16, carry=jnp.float32)
    params, xs = cell.init(jax.random.key(0), I, H, dtype=dtype), XS.astype(dtype)

    def loss(params, xs):
        final_state, hs = jaxrnn.unroll(cell, params, xs)
        return jnp.sum(hs), (final_state, hs)

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    gradients, outputs = run(params, xs)
    for tree, expected in ((gradients, dtype), (outputs, jnp.float32)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(expected)}
    products = {
        tuple(array.aval.dtype.name for array in (*equation.invars, *equation.outvars))
        for equation in equations(jax.make_jaxpr(run)(params, xs).jaxpr)
        if equation.primitive.name == "dot_general"
    }
    # besides sums over time, whose operands are those of the platform
    assert {each for each in products if each[-1] != "float32"} == {("bfloat16",) * 3}


@pytest.mark.parametrize(
    "choice",
    [{"residuals": r} for r in ("gates", "states", "carries")] + [{"memory_budget": 20_000}],
)
def test_memory_is_chosen_by_a_policy_or_by_a_number_of_bytes(choice):
    assert_exact(jaxrnn.stack(jaxrnn.layer(LSTM, H), jaxrnn.layer(GRU, H)), **choice)


def test_a_network_has_second_derivatives():
    network = jaxrnn.stack(jaxrnn.layer(GRU, 3, bidirectional=True))
    params = params_of(network)

    def penalised(each):
        def penalty(params):
            gradient = jax.grad(loss_of(each), argnums=1)(params, XS)
            return jnp.sum(gradient**2)

        return jax.jit(jax.value_and_grad(penalty))(params)

    assert_same(penalised(network), penalised(jaxrnn.reference(network)))


def test_a_network_has_forward_mode_through_its_reference():
    network = jaxrnn.layer(GRU, H)
    loss, params = loss_of(network), params_of(network)
    direction = random_tree(params, 3)
    _, slope = jax.jvp(lambda p: loss_of(jaxrnn.reference(network))(p, XS), (params,), (direction,))
    dots = jax.tree.map(jnp.vdot, jax.grad(loss)(params, XS), direction)
    assert_same(slope, sum(jax.tree.leaves(dots)))


@pytest.mark.parametrize("over", [(0, None), (None, 0), (0, 0)], ids=["params", "xs", "both"])
def test_vmap_goes_over_params_and_inputs(over):
    network = jaxrnn.layer(LSTM, H)
    inputs = params_of(network), XS
    args = [
        jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), a) if axis == 0 else a
        for a, axis in zip(inputs, over, strict=True)
    ]
    gradient = jax.jit(jax.grad(loss_of(network), argnums=(0, 1)))
    found = jax.vmap(gradient, in_axes=over)(*args)
    for n in range(2):
        alone = gradient(*(
            jax.tree.map(lambda leaf, n=n: (1 + n) * leaf, a) if axis == 0 else a
            for a, axis in zip(inputs, over, strict=True)
        ))  # fmt: skip
        assert_same(jax.tree.map(lambda leaf, n=n: leaf[n], found), alone)


@pytest.mark.parametrize(("k2", "k1"), [(2, 2), (4, 2)], ids=["k1 = k2", "k1 < k2"])
def test_truncated_bptt_carries_the_state_from_window_to_window(k2, k1):
    """The forward values are those of the whole sequence; the gradient stops at each window."""
    network = jaxrnn.layer(LSTM, H)
    params, state = params_of(network), None
    outputs = []
    for xs in jaxrnn.windows(XS, k2, stride=k1):
        start = network.initial_state(params, (B,)) if state is None else state
        # steps before the sequence hold zeros: they do not happen
        mask = jnp.any(xs != 0, axis=-1)
        _, hs, states = network.apply(params, xs, start, mask=mask, return_states=True)
        state = jax.tree.map(lambda leaf: leaf[k1 - 1], states)
        outputs.append(hs[-k1:])
    assert_same(jnp.concatenate(outputs), network.apply(params, XS)[1])


def test_the_gradient_is_clipped_within_the_recursion():
    assert_exact(jaxrnn.layer(jaxrnn.clip_adjoint(LSTM, norm=0.1), H))


def test_the_gradient_of_every_step_and_layer_is_reported():
    network = jaxrnn.stack(jaxrnn.layer(LSTM, H), jaxrnn.layer(GRU, H))
    params = params_of(network)
    found = diagnostics.backpropagate(
        network, params, XS, loss=lambda _, hs: jnp.sum(jnp.sin(hs[-1]))
    )
    above = jax.grad(lambda hs: jnp.sum(jnp.sin(hs[-1])))(network.apply(params, XS)[1])
    # the last output is the last state of the last layer
    assert_same(found.states.layers[1].forward.h[-1], above[-1])
    assert np.all(found.states.layers[0].forward.c[:-1])


def test_one_exchange_between_devices_a_training_step_whatever_its_length():
    network = jaxrnn.layer(LSTM, H)
    mesh = make_mesh(jax.devices()[:2])
    params = replicate(params_of(network), mesh)

    def exchanges(steps):
        xs = shard_rows(jnp.ones((steps, 4, I)), mesh, 1)
        return collectives(jax.jit(jax.grad(loss_of(network))).lower(params, xs).compile())

    assert exchanges(7) == exchanges(70)


# seen in peers: a NaN in the padding reaches the gradient; a row of length 0 returns the last
# state; a length above T is taken silently; no steps are an error


@pytest.fixture(scope="module")
def classifier():
    """A network in both directions, and its weights."""
    network = jaxrnn.layer(LSTM, H, bidirectional=True)
    return network, params_of(network)


LENGTHS = jnp.array([T, 0, 2])


def test_a_nan_in_the_padding_reaches_neither_value_nor_gradient(classifier):
    network, params = classifier
    run = jax.jit(jax.value_and_grad(loss_of(network, lengths=LENGTHS), argnums=(0, 1)))
    padding = ~jaxrnn.valid_steps(LENGTHS, T)
    value, (dparams, dxs) = run(params, jnp.where(padding[..., None], jnp.nan, XS))
    assert_same((value, (dparams, dxs)), run(params, jnp.where(padding[..., None], 7.0, XS)))
    assert not np.any(dxs[padding])


def test_a_row_of_length_zero_returns_its_initial_state(classifier):
    network, params = classifier
    state = random_tree(network.initial_state(params, (B,)), 2)
    final_state, hs = network.apply(params, XS, state, lengths=LENGTHS)
    for final, initial in zip(*map(jax.tree.leaves, (final_state, state)), strict=True):
        np.testing.assert_array_equal(final[1], initial[1])
        assert np.all(final[0] != initial[0])
    assert not np.any(hs[:, 1])


def test_a_length_above_the_number_of_steps_is_refused(classifier):
    network, params = classifier
    with pytest.raises(ValueError, match=r"`lengths`.*6"):
        network.apply(params, XS, lengths=jnp.array([1, 2, T + 1]))


def test_no_steps_return_the_initial_state_with_its_gradient(classifier):
    network, params = classifier
    state = random_tree(network.initial_state(params, (B,)), 2)
    final_state, hs = network.apply(params, XS[:0], state)
    assert hs.shape == (0, B, 2 * H)
    assert_same(final_state, state)
    dstate = jax.grad(
        lambda state: network.apply(params, XS[:0], state)[0].layers[0].forward.c[0, 0]
    )
    assert dstate(state).layers[0].forward.c[0, 0] == 1
