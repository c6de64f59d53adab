"""Transforms of cells in any order: autodiff of what they make, or one sentence that refuses it."""

import random

import jax
import jax.numpy as jnp
import pytest
from support.catalogue import CATALOGUE
from support.problems import assert_rule_equals_autodiff, assert_same, make_problem

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM

PLAIN = [entry.cell for entry in CATALOGUE.values() if " " not in entry.cell.name]
I, H = 3, 4
SHAPES = {
    "as it is": lambda cell: cell,
    "projected": lambda cell: jaxrnn.projected(cell, 3),
    "in heads": lambda cell: jaxrnn.heads(cell, 2),
}
AROUND = {
    "dropout": lambda cell: jaxrnn.recurrent_dropout(cell, 0.4),
    "zoneout of h": lambda cell: jaxrnn.zoneout(cell, h=0.3),
    "zoneout of both": lambda cell: jaxrnn.zoneout(cell, h=0.2, c=0.4),
    "clipped": lambda cell: jaxrnn.clipped(cell, 0.3),
    "adjoint by value": lambda cell: jaxrnn.clip_adjoint(cell, value=0.3),
    "adjoint by norm": lambda cell: jaxrnn.clip_adjoint(cell, norm=0.5),
    "dtypes": lambda cell: jaxrnn.with_dtypes(cell, compute=jnp.float64, carry=jnp.float64),
}


def makes_sense(cell, shape, around):
    """Whether the state has what is asked for; told from the cell, not from what happens."""
    fields = cell.expects(jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H))).state
    if shape == "projected" and cell.name in UNIT_BY_UNIT:
        return False
    # SLSTM's c is relative to its m
    plain = hasattr(fields, "c") and not hasattr(fields, "m")
    return plain or not {"zoneout of both", "clipped"} & set(around)


# cells that read h beside their products
UNIT_BY_UNIT = {"GRU", "LAYER_NORM_GRU", "RESET_BEFORE_GRU", "MGU"}


def composition(seed):
    draw = random.Random(seed)
    cell, shape = draw.choice(PLAIN), draw.choice(list(SHAPES))
    around = [draw.choice(list(AROUND)) for _ in range(draw.choice([1, 2, 2, 3]))]
    return cell, shape, around


def composed(cell, shape, around):
    cell = SHAPES[shape](cell)
    for each in around:
        cell = AROUND[each](cell)
    return cell


def described(seed):
    cell, shape, around = composition(seed)
    return "-".join([f"{seed}:{cell.name}", shape, *around])


SEEDS = [
    pytest.param(seed, marks=[] if seed < 30 else pytest.mark.slow, id=described(seed))
    for seed in range(300)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_composition_is_autodiff_of_its_step_or_refused(seed):
    cell, shape, around = composition(seed)

    def problem():
        made = composed(cell, shape, around)
        key = None if made.draw is None or seed % 4 == 0 else jax.random.key(seed)
        options = {"lengths": seed % 2 == 0, "resets": seed % 3 == 0, "reverse": seed % 5 == 0}
        return make_problem(made, 5, (2,), I, H, key=key, seed=seed, **options)

    if not makes_sense(cell, shape, around):
        with pytest.raises(ValueError, match="must"):
            problem().outputs()
        return
    assert_rule_equals_autodiff(problem(), residuals=[None, "gates", "carries"][seed % 3])


def test_the_compositions_drawn_hold_every_transform_and_both_outcomes():
    drawn = [composition(seed) for seed in range(30)]
    assert {shape for _, shape, _ in drawn} == set(SHAPES)
    assert {each for *_, around in drawn for each in around} == set(AROUND)
    assert {makes_sense(*each) for each in drawn} == {True, False}
    assert {cell.name for cell, _, _ in drawn} >= {"ELMAN", "LSTM", "GRU"}


def test_the_same_arguments_make_the_same_cell():
    for make in (*SHAPES.values(), *AROUND.values()):
        assert make(LSTM) == make(LSTM)
        assert hash(make(LSTM)) == hash(make(LSTM))
    names = [AROUND[each](SHAPES["projected"](LSTM)).name for each in AROUND]
    assert len(set(names)) == len(AROUND)
    assert names[0] == "LSTM projected to 3 with recurrent dropout 0.4"


def test_a_mask_of_dropout_is_the_same_at_every_step_and_of_zoneout_another():
    params = GRU.init(jax.random.key(0), I, H, dtype=jnp.float64)
    dropped, zoned = jaxrnn.recurrent_dropout(GRU, 0.5), jaxrnn.zoneout(GRU, h=0.5)
    (mask, _), (none, _) = dropped.draw(jax.random.key(1), params, 7, (2,))
    assert mask.shape == (2, H)
    assert none is None
    _, (kept, _) = zoned.draw(jax.random.key(1), params, 7, (2,))
    assert kept["h"].shape == (7, 2, H)
    assert kept["h"].dtype == bool
    assert (kept["h"][1:] != kept["h"][:-1]).any()


def test_a_unit_that_zoneout_keeps_is_the_unit_of_the_step_before():
    cell = jaxrnn.zoneout(GRU, h=0.5)
    params = cell.init(jax.random.key(0), I, H, dtype=jnp.float64)
    key, xs = jax.random.key(3), jnp.ones((6, 2, I))
    _, hs = jaxrnn.unroll(cell, params, xs, key=key)
    _, (kept, _) = cell.draw(key, params, 6, (2,))
    before = jnp.concatenate([jnp.zeros((1, 2, H)), hs[:-1]])
    assert_same(jnp.where(kept["h"], hs - before, 0), jnp.zeros_like(hs), 0)
    assert (hs != before)[~kept["h"]].all()


def test_dropout_leaves_what_is_read_beside_the_products():
    """The GRU's update gate at 1 keeps the state, whatever is dropped from the products."""
    cell = jaxrnn.recurrent_dropout(GRU, 0.9)
    params = cell.init(jax.random.key(0), I, H, dtype=jnp.float64, update_bias=100.0)
    state = jaxrnn.GRUState(h=jnp.arange(1.0, 1 + H))
    final, _ = jaxrnn.unroll(cell, params, jnp.ones((50, I)), state, key=jax.random.key(0))
    assert_same(final, state)


def test_a_large_limit_changes_nothing():
    problem = make_problem(LSTM, 6, (2,), I, H, lengths=True)
    for cell in (
        jaxrnn.clipped(LSTM, 1e6),
        jaxrnn.clip_adjoint(LSTM, value=1e6),
        jaxrnn.clip_adjoint(LSTM, norm=1e6),
        jaxrnn.heads(LSTM, 1),
    ):
        params = problem.params
        if "heads" in cell.name:
            params = params._replace(w_hh=params.w_hh.reshape(1, H, 4, H))

        def gradient(cell, params):
            def loss(xs):
                return jnp.sum(problem._replace(cell=cell, params=params, xs=xs).outputs()[1] ** 2)

            return jax.grad(loss)(problem.xs)

        assert_same(gradient(cell, params), gradient(LSTM, problem.params))


def test_a_clipped_adjoint_does_not_explode():
    """Of a recurrence that grows tenfold at every step, the gradient stays below the limit."""
    cell = jaxrnn.clip_adjoint(ELMAN, norm=1.0)
    params = ELMAN.init(jax.random.key(0), 1, H, dtype=jnp.float64)
    params = params._replace(w_hh=10 * jnp.eye(H))
    state = jaxrnn.ElmanState(h=jnp.zeros(H))

    def loss(state, cell):
        return jnp.sum(jaxrnn.unroll(cell, params, 1e-9 * jnp.ones((5, 1)), state)[0].h)

    free, limited = (jax.grad(loss)(state, each) for each in (ELMAN, cell))
    assert jnp.linalg.norm(free.h) > 1e4
    assert jnp.linalg.norm(limited.h) <= 1 + 1e-12
    direction = free.h / jnp.linalg.norm(free.h)
    assert_same(limited.h, direction, 1e-6)


BAD = {
    "no cell": (lambda: jaxrnn.zoneout("LSTM", h=0.1), TypeError, "`cell` must be a jaxrnn.Cell"),
    "rate": (lambda: jaxrnn.recurrent_dropout(LSTM, 1.0), ValueError, "`rate` must be in 0..1"),
    "no rate": (lambda: jaxrnn.zoneout(LSTM), ValueError, "`h` or `c` must be above 0"),
    "limit": (lambda: jaxrnn.clipped(LSTM, 0), ValueError, "`limit` must be above 0"),
    "two limits": (
        lambda: jaxrnn.clip_adjoint(LSTM, value=1.0, norm=1.0),
        ValueError,
        "`value` or `norm` must be given, one of the two",
    ),
    "dtype": (
        lambda: jaxrnn.with_dtypes(LSTM, compute=jnp.int32),
        TypeError,
        "`compute` must be a floating dtype",
    ),
    "twice in heads": (
        lambda: jaxrnn.heads(jaxrnn.heads(LSTM, 2), 2),
        ValueError,
        "neither heads already nor a projection",
    ),
    "projected in heads": (
        lambda: jaxrnn.heads(jaxrnn.projected(LSTM, 2), 2),
        ValueError,
        "neither heads already nor a projection",
    ),
    "projected GRU": (
        lambda: jaxrnn.projected(GRU, 2),
        ValueError,
        "GRU reads it unit by unit too",
    ),
    "projected dropout": (
        lambda: jaxrnn.projected(jaxrnn.recurrent_dropout(LSTM, 0.5), 2),
        ValueError,
        "project first",
    ),
    "sizes of heads": (
        lambda: jaxrnn.heads(LSTM, 3).init(jax.random.key(0), 2, 4),
        ValueError,
        "`hidden_size` must be a multiple of 3",
    ),
    "size of a projection": (
        lambda: jaxrnn.projected(LSTM, 5).init(jax.random.key(0), 2, 4),
        ValueError,
        "`hidden_size` must be at least 5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_transform_that_makes_no_sense_is_refused_in_one_sentence(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
