"""Transforms of cells in any order: autodiff of what they make, or one sentence that refuses it."""

import functools
import random
import re

import jax
import jax.numpy as jnp
import pytest
from support.catalogue import CATALOGUE
from support.problems import assert_rule_equals_autodiff, make_problem, random_tree

import jaxrnn

PLAIN = [e.cell for e in CATALOGUE.values() if "transforms" not in e.cell.advance.__module__]
I, H = 3, 4
SHAPES = {
    "projected": lambda cell: jaxrnn.projected(cell, 3),
    "in heads": lambda cell: jaxrnn.heads(cell, 2),
}
OTHERS = {
    "dropout": lambda cell: jaxrnn.recurrent_dropout(cell, 0.4),
    "zoneout of h": lambda cell: jaxrnn.zoneout(cell, h=0.3),
    "zoneout of both": lambda cell: jaxrnn.zoneout(cell, h=0.2, c=0.4),
    "clipped": lambda cell: jaxrnn.clipped(cell, 0.3),
    "adjoint by value": lambda cell: jaxrnn.clip_adjoint(cell, value=0.3),
    "adjoint by norm": lambda cell: jaxrnn.clip_adjoint(cell, norm=0.5),
    "dtypes": lambda cell: jaxrnn.with_dtypes(cell, compute=jnp.float64, carry=jnp.float64),
}
TRANSFORMS = SHAPES | OTHERS

# cells that read h beside their products
UNIT_BY_UNIT = ("GRU", "LAYER_NORM_GRU", "RESET_BEFORE_GRU", "MGU", "LEAKY")

REFUSALS = {
    "draws": "`cell` must draw nothing to be projected, because it would draw for units that the "
    "projection does not have: project first, then add what .+ has",
    "consts": "`cell` must take no consts to be projected, because they may be for units that the "
    "projection does not have; .+ takes some",
    "shaped": "`cell` must have a dense recurrent weight `w_hh` as a field of its params to be "
    "(projected|split into heads), neither heads already nor a projection; got .+",
    "unit by unit": "`cell` must read `h` in its recurrent product alone to be projected; .+ "
    "reads it unit by unit too, and a projection has other units",
    "zoneout of both": "`c` must be 0: the state of .+ has no such field, only h",
    "clipped": "`cell` must have a cell state `c` to be clipped; the state of .+ has h",
    "relative": "`(zoneout|clipped)` must leave `c` of .+ alone: it is relative to the stabiliser "
    "`m` of its own step, so that neither a limit nor the state of another step fits it",
}


@functools.cache
def fields_of(cell):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), I, H))
    return cell.expects(params).state._fields


def refusals(cell, transforms):
    """The refusals of which one must come, told from the names alone; none for what is accepted."""
    fields, about_c = fields_of(cell), set()
    draws, shaped = cell.draw is not None, False
    for name in transforms:
        if name == "projected":
            if draws:
                return {"draws"}
            if "masked" in cell.name:
                return {"consts"}
        if name in SHAPES:
            if shaped:
                return {"shaped"}
            shaped = True
        if name == "projected":
            if about_c:
                return about_c
            if cell.name.split()[0] in UNIT_BY_UNIT:
                return {"unit by unit"}
        draws = draws or "dropout" in name or "zoneout" in name
        if name in ("zoneout of both", "clipped"):
            if "m" in fields:
                about_c.add("relative")
            elif "c" not in fields:
                about_c.add(name)
    return about_c


def composition(seed):
    """A cell and the names of transforms, the innermost first."""
    draw = random.Random(seed)
    while True:
        cell = draw.choice(PLAIN)
        names = [draw.choice(list(OTHERS)) for _ in range(draw.choice([1, 2, 2, 3]))]
        for _ in range(draw.choice([0, 1, 1, 1, 2])):
            names.insert(draw.randint(0, len(names)), draw.choice(list(SHAPES)))
        # fewer of those that are refused
        if not refusals(cell, names) or draw.random() < 0.3:
            return cell, names


def composed(cell, names):
    for each in names:
        cell = TRANSFORMS[each](cell)
    return cell


def described(seed):
    cell, names = composition(seed)
    return "-".join([f"{seed}:{cell.name}", *names])


FAST = 30
SEEDS = [
    pytest.param(seed, marks=[] if seed < FAST else pytest.mark.slow, id=described(seed))
    for seed in range(300)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_composition_is_autodiff_of_its_step_or_refused(seed):
    cell, names = composition(seed)

    def problem():
        made = composed(cell, names)
        key = None if made.draw is None or seed % 4 == 0 else jax.random.key(seed)
        options = {"lengths": seed % 2 == 0, "resets": seed % 3 == 0, "reverse": seed % 5 == 0}
        found = make_problem(made, 5, (2,), I, H, key=key, seed=seed, **options)
        if not made.needs_consts:
            return found
        # a mask
        return found._replace(consts=random_tree(found.params.w_hh, seed=seed + 5))

    expected = refusals(cell, names)
    if expected:
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            problem().outputs()
        known = [each for each, said in REFUSALS.items() if re.fullmatch(said, str(refused.value))]
        assert known, str(refused.value)
        assert set(known) <= expected
        return
    assert_rule_equals_autodiff(problem(), residuals=[None, "gates", "carries"][seed % 3])


def test_the_compositions_drawn_hold_every_cell_transform_order_and_outcome():
    drawn = [composition(seed) for seed in range(FAST)]
    assert {each for _, names in drawn for each in names} == set(TRANSFORMS)
    accepted = [(cell, names) for cell, names in drawn if not refusals(cell, names)]
    assert len(accepted) > FAST / 2
    # around and within others
    for shape in SHAPES:
        at = {names.index(shape) > 0 for _, names in accepted if shape in names}
        assert at == {True, False}, shape
    assert any("LEAKY" in cell.name and cell.needs_consts for cell, _ in accepted)
    assert any("relu" in cell.name for cell, _ in accepted)

    drawn = [composition(seed) for seed in range(len(SEEDS))]
    assert {cell.name for cell, _ in drawn} == {cell.name for cell in PLAIN}
    assert {each for one in drawn for each in refusals(*one)} == set(REFUSALS)
