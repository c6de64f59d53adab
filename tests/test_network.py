"""Networks are compositions of cells: against a composition that is written out here."""

import dataclasses
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.problems import assert_same, random_tree
from support.programs import collectives

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM, LayerState, StackState
from jaxrnn.parallel import make_mesh, replicate, shard_rows

# the cell of a user's step, whose adjoint is derived
STEPPED_GRU = jaxrnn.cell_from_step(GRU.step, init=GRU.init, initial_state=GRU.initial_state)
PROJECTED_LSTM = jaxrnn.projected(LSTM, 2)
# not with_dtypes: it rounds to fewer bits, in another order than what is written out here
CELLS = [
    ELMAN,
    LSTM,
    GRU,
    STEPPED_GRU,
    jaxrnn.elman("relu"),
    jaxrnn.leaky(leak=0.2),
    jaxrnn.PEEPHOLE_LSTM,
    jaxrnn.SLSTM,
    jaxrnn.LAYER_NORM_GRU,
    jaxrnn.RESET_BEFORE_GRU,
    jaxrnn.MGU,
    PROJECTED_LSTM,
    jaxrnn.recurrent_dropout(LSTM, 0.5),
    jaxrnn.zoneout(GRU, h=0.3),
    jaxrnn.clipped(LSTM, 0.3),
]
# bytes, in the place of a policy
BUDGET = 200_000


@dataclasses.dataclass(frozen=True)
class Part:
    """One layer of a combination; ``dropouts`` are rates and masks, the outermost first."""

    cell: jaxrnn.Cell
    hidden: int
    bidirectional: bool
    merge: str
    residual: bool
    learned: bool
    dropouts: tuple = ()


@dataclasses.dataclass(frozen=True)
class Combination:
    parts: tuple
    T: int
    batch: tuple
    size: int
    masks: str
    resets: bool
    detach: bool
    given_state: bool
    policy: str | int | None
    dtype: str
    devices: int
    seed: int
    keyed: bool = True

    def __str__(self):
        layers = "+".join(
            f"{p.cell.name}{p.hidden}{'b' * p.bidirectional}{p.merge[0]}{'r' * p.residual}"
            f"{'l' * p.learned}{'d' * len(p.dropouts)}"
            for p in self.parts
        )
        options = ("resets", "detach", "given_state", "keyed")
        flags = [name for name in options if getattr(self, name)]
        rest = "-".join([self.masks, *flags, str(self.policy)])
        return f"{self.seed}:{layers}-{self.batch}-{rest}-{self.dtype}-{self.devices}"


def combination(seed):
    """A random network and call; every choice is independent of the others."""
    draw = random.Random(seed)
    size = width = draw.choice([2, 3, 4])
    parts = []
    for n in range(draw.choice([1, 2, 2, 3])):
        # one after the other at the bottom, so that a few seeds hold every cell
        cell = draw.choice(CELLS) if n else CELLS[seed % len(CELLS)]
        bidirectional, merge = (
            draw.random() < 0.5,
            draw.choice(["concat", "sum", "mean", "multiply"]),
        )
        residual = draw.random() < 0.3
        hidden = draw.choice([2, 3, 5])
        times = 2 if bidirectional and merge == "concat" else 1
        if cell is PROJECTED_LSTM:
            # its outputs are two, whatever its units are
            residual = residual and width == 2 * times
        elif residual and width % times == 0:
            hidden = width // times
        else:
            residual = False
        rates = [(draw.choice([0.2, 0.5]), draw.choice(["step", "sequence"]))]
        parts.append(
            Part(
                cell=cell,
                hidden=hidden,
                bidirectional=bidirectional,
                merge=merge,
                residual=residual,
                learned=draw.random() < 0.3,
                dropouts=tuple(rates * (draw.random() < 0.4)),
            )
        )
        width = times * (2 if cell is PROJECTED_LSTM else hidden)
    devices = draw.choice([1, 1, 1, 4])
    return Combination(
        parts=tuple(parts),
        T=draw.choice([1, 6, 21]),
        batch=(8,) if devices > 1 else draw.choice([(), (3,), (2, 2)]),
        size=size,
        masks=draw.choice(["all", "lengths", "mask"]),
        resets=draw.random() < 0.5,
        detach=draw.random() < 0.3,
        given_state=draw.random() < 0.4,
        policy=draw.choice([None, "gates", "states", "carries", BUDGET]),
        dtype=draw.choice(["float64", "float64", "float64", "float32"]),
        devices=devices,
        seed=seed,
        keyed=draw.random() < 0.8,
    )


def network_of(parts):
    """The same by the library: each layer on its own, stacked one after the other."""
    network = None
    for p in parts:
        options = dict(bidirectional=True, merge=p.merge) if p.bidirectional else {}
        made = jaxrnn.layer(
            p.cell, p.hidden, residual=p.residual, learned_initial_state=p.learned, **options
        )
        rate, mask = p.dropouts[0] if p.dropouts else (0.0, "step")
        if network is None:
            network = jaxrnn.stack(made, input_dropout=rate, dropout_mask=mask)
        else:
            network = jaxrnn.stack(network, made, dropout=rate, dropout_mask=mask)
    return network


def composed(parts, params, xs, state, key, *, lengths, mask, resets, detach):
    """The network written out: every layer by `jaxrnn.unroll_reference`."""
    T, batch = xs.shape[0], xs.shape[1:-1]
    valid = jnp.ones((T, *batch), bool) if mask is None else mask
    if lengths is not None:
        t = jnp.arange(T).reshape(T, *[1] * len(batch))
        valid = jnp.broadcast_to(t, valid.shape) < jnp.broadcast_to(lengths, valid.shape)
    finals, states = [], []
    for n, (part, p) in enumerate(zip(parts, params.layers, strict=True)):
        if key is not None:
            keys = jax.random.split(jax.random.fold_in(key, n), 3)
        for k, (rate, kind) in enumerate(part.dropouts if key is not None else ()):
            shape = xs.shape if kind == "step" else (1, *xs.shape[1:])
            kept_share = jnp.float32(1 - rate)
            kept = jax.random.bernoulli(jax.random.fold_in(keys[0], k), kept_share, shape)
            xs = xs * jnp.broadcast_to(kept.astype(xs.dtype) / (1 - rate), xs.shape)
        found = []
        for name, reverse in (("forward", False), ("backward", True)):
            if name == "backward" and not part.bidirectional:
                continue
            own = getattr(p, name)
            fresh = part.cell.initial_state(own, batch)
            if part.learned:
                learned = getattr(p.initial_state, name)
                fresh = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), learned, fresh)
            start = fresh if state is None else getattr(state.layers[n], name)
            options = dict(
                lengths=lengths, mask=mask, resets=resets, detach=detach, reverse=reverse
            )
            if resets is not None:
                options["reset_state"] = fresh
            if part.cell.draw is not None and key is not None:
                options["key"] = keys[1 + reverse]
            found.append(
                jaxrnn.unroll_reference(part.cell, own, xs, start, return_states=True, **options)
            )
        hs = found[0][1]
        if part.bidirectional:
            a, b = hs, found[1][1]
            hs = {
                "concat": lambda a, b: jnp.concatenate([a, b], -1),
                "sum": lambda a, b: a + b,
                "mean": lambda a, b: 0.5 * (a + b),
                "multiply": lambda a, b: a * b,
            }[part.merge](a, b)
        if part.residual:
            hs = jnp.where(valid[..., None], xs + hs, 0)
        finals.append(LayerState(found[0][0], found[1][0] if part.bidirectional else None))
        states.append(LayerState(found[0][2], found[1][2] if part.bidirectional else None))
        xs = hs
    return StackState(tuple(finals)), xs, StackState(tuple(states))


def problem_of(c):
    rng = np.random.default_rng(c.seed)
    dtype = jnp.dtype(c.dtype)
    network = network_of(c.parts)
    params = network.init(jax.random.key(c.seed), c.size, dtype=dtype)
    # no bias and no learned state at zero
    params = jax.tree.map(lambda a: a + 0.1 * jnp.asarray(rng.normal(size=a.shape), dtype), params)
    xs = jnp.asarray(rng.normal(size=(c.T, *c.batch, c.size)), dtype)
    state = None
    if c.given_state:
        like = network.initial_state(params, c.batch)
        state = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), like)
    masks = dict(lengths=None, mask=None, resets=None, detach=None)
    if c.masks == "lengths":
        masks["lengths"] = jnp.asarray(rng.integers(0, c.T + 1, size=c.batch))
    if c.masks == "mask":
        masks["mask"] = jnp.asarray(rng.random((c.T, *c.batch)) < 0.7)
    for name in ("resets", "detach"):
        if getattr(c, name):
            masks[name] = jnp.asarray(rng.random((c.T, *c.batch)) < 0.3)
    return network, params, xs, state, masks


def assert_network_is_the_composition(c, network=None):
    made, params, xs, state, masks = problem_of(c)
    network, key = network or made, jax.random.key(c.seed + 1) if c.keyed else None
    policy = {"memory_budget" if c.policy == BUDGET else "residuals": c.policy}

    def ours(params, xs, state, masks):
        return network.apply(params, xs, state, key=key, return_states=True, **policy, **masks)

    def written_out(params, xs, state, masks):
        return composed(c.parts, params, xs, state, key, **masks)

    def both(f):
        def run(params, xs, state, masks):
            outputs, pull = jax.vjp(lambda *inputs: f(*inputs, masks), params, xs, state)
            return outputs, pull(random_tree(outputs, seed=c.seed))

        return run

    expected = jax.jit(both(written_out))(params, xs, state, masks)
    if c.devices > 1:
        mesh = make_mesh(jax.devices()[: c.devices])
        xs = shard_rows(xs, mesh, 1)
    found = jax.jit(both(ours))(params, xs, state, masks)
    assert_same(found, expected, 1e-12 if c.dtype == "float64" else 2e-5)


SEEDS = [
    pytest.param(seed, marks=[] if seed < 30 else pytest.mark.slow, id=str(combination(seed)))
    for seed in range(300)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_is_the_composition_of_its_layers(seed):
    assert_network_is_the_composition(combination(seed))


def test_the_combinations_drawn_hold_every_choice():
    """Those of `make test` too: no choice is left to the slow ones."""
    drawn = [combination(seed) for seed in range(30)]
    parts = [part for c in drawn for part in c.parts]
    for choices, found in (
        (set(CELLS), {p.cell for p in parts}),
        ({True, False}, {p.bidirectional for p in parts}),
        ({"concat", "sum", "mean", "multiply"}, {p.merge for p in parts if p.bidirectional}),
        ({True, False}, {p.residual for p in parts}),
        ({True, False}, {p.learned for p in parts}),
        ({"step", "sequence"}, {mask for p in parts for _, mask in p.dropouts}),
        ({"all", "lengths", "mask"}, {c.masks for c in drawn}),
        ({True, False}, {c.resets for c in drawn}),
        ({True, False}, {c.detach for c in drawn}),
        ({True, False}, {c.given_state for c in drawn}),
        ({True, False}, {c.keyed for c in drawn}),
        ({None, "gates", "states", "carries", BUDGET}, {c.policy for c in drawn}),
        ({"float64", "float32"}, {c.dtype for c in drawn}),
        ({1, 4}, {c.devices for c in drawn}),
        ({1, 2, 3}, {len(c.parts) for c in drawn}),
    ):
        assert found == choices


ONE_LAYER = Combination(
    parts=(Part(GRU, 3, True, "concat", False, True),),
    T=5,
    batch=(3,),
    size=2,
    masks="lengths",
    resets=True,
    detach=False,
    given_state=False,
    policy=None,
    dtype="float64",
    devices=1,
    seed=0,
)


def backward_final_state_at_the_end(run):
    """The state after the last step in time, where a reversed layer has read one row."""

    def wrong(cell, params, xs, state, *, reverse, **options):
        final, hs, states = run(cell, params, xs, state, reverse=reverse, **options)
        return (jax.tree.map(lambda a: a[-1], states) if reverse else final), hs, states

    return wrong


def learned_state_without_gradient(run):
    def wrong(cell, params, xs, state, **options):
        return run(cell, params, xs, jax.lax.stop_gradient(state), **options)

    return wrong


def resets_to_zeros(run):
    def wrong(cell, params, xs, state, *, reset_state=None, **options):
        return run(cell, params, xs, state, **options)

    return wrong


def padding_read_in_reverse(run):
    def wrong(cell, params, xs, state, *, lengths, reverse, **options):
        return run(
            cell,
            params,
            xs,
            state,
            reverse=reverse,
            lengths=None if reverse else lengths,
            **options,
        )

    return wrong


@pytest.mark.parametrize(
    "fault",
    [
        backward_final_state_at_the_end,
        learned_state_without_gradient,
        resets_to_zeros,
        padding_read_in_reverse,
    ],
)
def test_a_wrong_network_is_rejected(fault):
    wrong = network_of(ONE_LAYER.parts)._replace(unroll=fault(jaxrnn.unroll))
    with pytest.raises(AssertionError):
        assert_network_is_the_composition(ONE_LAYER, wrong)


def test_a_mask_shared_between_layers_is_rejected(monkeypatch):
    part = Part(ELMAN, 4, False, "concat", False, False, ((0.5, "step"),))
    c = dataclasses.replace(ONE_LAYER, parts=(part, part), size=4)
    assert_network_is_the_composition(c)
    network = network_of(c.parts)

    class Shared(type(network)):
        """All layers draw from the key of the first."""

        def apply(self, *arguments, **options):
            with monkeypatch.context() as patch:
                patch.setattr(jax.random, "fold_in", lambda key, n: FOLD_IN(key, 0))
                return super().apply(*arguments, **options)

    with pytest.raises(AssertionError):
        assert_network_is_the_composition(c, Shared(*network))


FOLD_IN = jax.random.fold_in


def small_network():
    return jaxrnn.stack(
        jaxrnn.layer(LSTM, 4, learned_initial_state=True),
        jaxrnn.layer(GRU, 4, residual=True),
        jaxrnn.layer(ELMAN, 3),
        dropout=0.5,
    )


def test_a_stack_of_stacks_has_their_layers_and_each_gap_keeps_its_dropout():
    a, b, c = (jaxrnn.layer(cell, 4) for cell in (ELMAN, GRU, LSTM))
    inner = jaxrnn.stack(a, b, dropout=0.1, input_dropout=0.2)
    nested = jaxrnn.stack(inner, c, dropout=0.3, dropout_mask="sequence")
    assert [each.cell for each in nested.layers] == [ELMAN, GRU, LSTM]
    assert [each.dropouts for each in nested.layers] == [
        ((0.2, "step"),),
        ((0.1, "step"),),
        ((0.3, "sequence"),),
    ]
    both = jaxrnn.stack(a, inner, dropout=0.4)
    assert both.layers[1].dropouts == ((0.4, "step"), (0.2, "step"))
    assert nested == jaxrnn.stack(inner, c, dropout=0.3, dropout_mask="sequence")
    assert hash(nested) != hash(both)


def test_without_a_key_dropout_is_the_identity_and_with_one_a_mean_of_one():
    xs = jnp.ones((50, 40, 6))
    network = jaxrnn.stack(jaxrnn.layer(ELMAN, 6), input_dropout=0.25)
    dropped = jaxrnn.layers._dropped(network.layers[0].dropouts, jax.random.key(0), xs)
    assert set(np.unique(dropped)) == {0, 1 / 0.75}
    assert abs(jnp.mean(dropped) - 1) < 0.02
    params = network.init(jax.random.key(0), 6, dtype=jnp.float64)
    plain = jaxrnn.layer(ELMAN, 6).apply(params, xs)
    assert_same(network.apply(params, xs), plain, 0)


def test_a_mask_of_a_sequence_is_that_of_all_its_segments():
    network = jaxrnn.stack(jaxrnn.layer(GRU, 3), input_dropout=0.5, dropout_mask="sequence")
    params = network.init(jax.random.key(0), 2, dtype=jnp.float64)
    xs = random_tree(jax.ShapeDtypeStruct((6, 3, 2), jnp.float64))
    key = jax.random.key(4)
    whole = network.apply(params, xs, key=key)[1]
    state, first = network.apply(params, xs[:2], key=key)
    _, second = network.apply(params, xs[2:], state, key=key)
    assert_same(jnp.concatenate([first, second]), whole)


def test_a_key_drops_the_same_features_with_and_without_float64():
    cells = jaxrnn.zoneout(GRU, h=0.4), jaxrnn.recurrent_dropout(ELMAN, 0.5)
    network = jaxrnn.stack(*(jaxrnn.layer(cell, 5) for cell in cells), input_dropout=0.3)
    params = network.init(jax.random.key(0), 3)

    def run():
        return network.apply(params, jnp.ones((7, 4, 3), jnp.float32), key=jax.random.key(1))[1]

    exact = run()
    with jax.enable_x64(False):
        assert_same(run(), exact, 1e-6)


@pytest.mark.parametrize("key", [None, jax.random.key(1)], ids=["plain", "dropout"])
def test_a_budget_is_for_the_whole_network(key):
    """What XLA allocates for the training step: dropout and gradients between layers included."""
    network = jaxrnn.stack(
        jaxrnn.layer(LSTM, 16, bidirectional=True),
        jaxrnn.layer(GRU, 16),
        dropout=0.3,
        input_dropout=0.3,
    )
    like = jax.eval_shape(lambda: network.init(jax.random.key(0), 16))
    xs = jax.ShapeDtypeStruct((600, 4, 16), jnp.float32)

    def temporaries(budget):
        def loss(params, xs):
            return jnp.sum(network.apply(params, xs, memory_budget=budget, key=key)[1] ** 2)

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(like, xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    with pytest.raises(ValueError, match="for this network and these inputs") as caught:
        temporaries(1000)
    (least,) = re.findall(r"at least (\d+) bytes", str(caught.value))
    for budget in (int(least), 8_000_000):
        assert temporaries(budget) <= budget
    with pytest.raises(ValueError, match=f"at least {least} bytes"):
        temporaries(int(least) - 1)


def test_rows_on_several_devices_exchange_nothing_within_a_loop():
    """Dropout and two directions included; each weight's gradient is summed once."""
    network = jaxrnn.stack(
        jaxrnn.layer(GRU, 4, bidirectional=True), jaxrnn.layer(LSTM, 4), dropout=0.5
    )
    params = network.init(jax.random.key(0), 2, dtype=jnp.float64)
    mesh = make_mesh(jax.devices()[:4])
    xs = shard_rows(jnp.ones((9, 8, 2)), mesh, 1)
    params = replicate(params, mesh)
    gradient = jax.grad(lambda p, xs: jnp.sum(network.apply(p, xs, key=jax.random.key(1))[1]))
    found = collectives(jax.jit(gradient).lower(params, xs).compile())
    assert set(found) <= {(0, "all-reduce")}
    assert sum(found.values()) <= len(jax.tree.leaves(params))


@pytest.mark.parametrize("mask", ["step", "sequence"])
def test_dropout_on_explicit_axes_is_that_of_one_device(mask):
    network = jaxrnn.stack(jaxrnn.layer(GRU, 4), input_dropout=0.5, dropout_mask=mask)
    params = network.init(jax.random.key(0), 2, dtype=jnp.float64)
    xs = random_tree(jax.ShapeDtypeStruct((5, 8, 2), jnp.float64))
    gradient = jax.jit(
        jax.grad(lambda p, xs: jnp.sum(network.apply(p, xs, key=jax.random.key(1))[1] ** 2))
    )
    alone = gradient(params, xs)
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:4])
    spread = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "data")))
    with jax.set_mesh(mesh):
        assert_same(gradient(replicate(params, mesh), spread), alone)


def test_networks_of_many_seeds_are_one_vmap():
    network = small_network()
    keys = jax.random.split(jax.random.key(0), 3)
    xs = random_tree(jax.ShapeDtypeStruct((5, 2, 2), jnp.float64))
    params = jax.vmap(lambda key: network.init(key, 2, dtype=jnp.float64))(keys)
    together = jax.vmap(lambda params: network.apply(params, xs)[1])(params)
    alone = [network.apply(jax.tree.map(lambda a, n=n: a[n], params), xs)[1] for n in range(3)]
    assert_same(together, jnp.stack(alone))


def test_a_network_is_exported_with_its_params():
    network = jaxrnn.layer(GRU, 3, bidirectional=True, learned_initial_state=True)
    params = network.init(jax.random.key(0), 2, dtype=jnp.float64)
    xs = random_tree(jax.ShapeDtypeStruct((5, 2, 2), jnp.float64))
    exported = jax.export.export(jax.jit(network.apply))(params, xs)
    restored = jax.export.deserialize(exported.serialize(vjp_order=1))
    assert_same(restored.call(params, xs), network.apply(params, xs))


def test_a_reference_has_forward_mode():
    network = small_network()
    params = network.init(jax.random.key(0), 2, dtype=jnp.float64)
    xs = random_tree(jax.ShapeDtypeStruct((5, 2, 2), jnp.float64))
    by_reference = jaxrnn.reference(network)
    _, tangent = jax.jvp(lambda xs: by_reference.apply(params, xs)[1], (xs,), (xs,))
    assert jnp.all(jnp.isfinite(tangent))
    assert_same(by_reference.apply(params, xs), network.apply(params, xs))


BAD = {
    "no cell": (lambda: jaxrnn.layer("LSTM", 3), TypeError, "`cell` must be a jaxrnn.Cell"),
    "no size": (lambda: jaxrnn.layer(LSTM, 0), ValueError, "`hidden_size` must be an int"),
    "merge": (lambda: jaxrnn.layer(LSTM, 3, merge="max"), ValueError, "`merge` must be one of"),
    "nothing stacked": (jaxrnn.stack, ValueError, "`networks` must be at least one"),
    "a cell stacked": (lambda: jaxrnn.stack(LSTM), TypeError, r"layer\(cell, hidden_size\)"),
    "rate": (
        lambda: jaxrnn.stack(*[jaxrnn.layer(LSTM, 3)] * 2, dropout=1.0),
        ValueError,
        "`dropout` must be in 0..1, 1 excluded; got 1.0",
    ),
    "mask": (
        lambda: jaxrnn.stack(jaxrnn.layer(LSTM, 3), dropout_mask="row"),
        ValueError,
        "`dropout_mask` must be 'step' or 'sequence'",
    ),
    "residual": (
        lambda: jaxrnn.layer(LSTM, 3, residual=True).init(jax.random.key(0), 2),
        ValueError,
        "as wide as its input; it makes 3 features of 2",
    ),
    "stream in both directions": (
        lambda: stepped(jaxrnn.layer(LSTM, 3, bidirectional=True)),
        ValueError,
        "layer 0 reads its sequence in both directions",
    ),
    "params of a cell": (
        lambda: jaxrnn.layer(LSTM, 3).apply(LSTM.init(jax.random.key(0), 2, 3), jnp.ones((4, 2))),
        TypeError,
        "`params` must be a jaxrnn.StackParams; got LSTMParams",
    ),
    "params of another network": (
        lambda: jaxrnn.layer(LSTM, 3, bidirectional=True).apply(
            jaxrnn.layer(LSTM, 3).init(jax.random.key(0), 2), jnp.ones((4, 2))
        ),
        ValueError,
        r"`params.layers\[0\].backward` must not be None",
    ),
    "merge of one direction": (
        lambda: jaxrnn.layer(LSTM, 3, merge="sum"),
        ValueError,
        "`merge` must be 'concat' for a layer of one direction",
    ),
    "a list": (
        lambda: jaxrnn.stack([jaxrnn.layer(LSTM, 3)]),
        TypeError,
        r"pass them one by one, stack\(\*layers\)",
    ),
    "dropout between one": (
        lambda: jaxrnn.stack(jaxrnn.layer(LSTM, 3), dropout=0.5),
        ValueError,
        "`dropout` stands between two networks",
    ),
    "half a reference": (
        lambda: jaxrnn.stack(jaxrnn.layer(LSTM, 3), jaxrnn.reference(jaxrnn.layer(LSTM, 3))),
        ValueError,
        "must all be differentiated alike",
    ),
    "half a state": (
        lambda: applied(jaxrnn.layer(LSTM, 3, bidirectional=True), half=True),
        ValueError,
        r"`initial_state.layers\[0\].backward` must not be None",
    ),
    "a number as the key": (
        lambda: applied(jaxrnn.layer(LSTM, 3), key=0),
        TypeError,
        "`key` must be one jax.random.key; got int 0",
    ),
    "no network": (lambda: jaxrnn.reference(LSTM), TypeError, "`network` must be a jaxrnn.Network"),
}


def applied(network, half=False, **options):
    params = network.init(jax.random.key(0), 2)
    state = network.initial_state(params)
    if half:
        state = StackState((state.layers[0]._replace(backward=None),))
    return network.apply(params, jnp.ones((4, 2), jnp.float32), state, **options)


def stepped(network):
    params = network.init(jax.random.key(0), 2)
    return network.step(params, network.initial_state(params), jnp.ones(2))


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_said_in_one_sentence(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def applied_in_two_dtypes(**options):
    narrow = jaxrnn.with_dtypes(LSTM, compute="bfloat16", carry="bfloat16")
    return applied(jaxrnn.stack(jaxrnn.layer(narrow, 4), jaxrnn.layer(GRU, 3)), **options)


def stepped_in_two_dtypes():
    wide = jaxrnn.with_dtypes(LSTM, compute="float32", carry="float64")
    network = jaxrnn.stack(jaxrnn.layer(wide, 4), jaxrnn.layer(GRU, 3))
    params = network.init(jax.random.key(0), 2)
    return network.step(params, network.initial_state(params), jnp.ones(2, jnp.float32))


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (applied_in_two_dtypes, "bfloat16"),
        (lambda: applied_in_two_dtypes(memory_budget=BUDGET), "bfloat16"),
        (stepped_in_two_dtypes, "float64"),
    ],
    ids=["apply", "apply with a budget", "step"],
)
def test_an_error_of_two_dtypes_says_which_layer_and_what_to_do(call, dtype):
    message = (
        "layer 1, of GRU, reads the dtype of its params, float32, and layer 0, of LSTM in .*, puts "
        f"out {dtype}.*: give layer 0 .*carry=float32"
    )
    with pytest.raises(TypeError, match=message):
        call()


def test_layers_of_other_products_have_the_dtype_of_the_others_between_them():
    """As that error says: carry=float32, which is the default."""
    narrow = jaxrnn.with_dtypes(LSTM, compute="bfloat16")
    network = jaxrnn.stack(jaxrnn.layer(narrow, 4), jaxrnn.layer(GRU, 3))
    assert applied(network)[1].dtype == jnp.float32


def test_an_error_of_a_layer_says_which():
    network = small_network()
    params = network.init(jax.random.key(0), 2, dtype=jnp.float64)
    with pytest.raises(TypeError) as caught:
        network.apply(params, jnp.ones((5, 2, 2), jnp.float32))
    assert "in layer 0, of LSTM" in caught.value.__notes__
