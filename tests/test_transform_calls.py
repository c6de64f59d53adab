"""Calls of transforms: equal arguments make one cell, `help` describes it, the rest is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.problems import assert_same, make_problem, vjp

import jaxrnn
from jaxrnn import ELMAN, GRU, LSTM
from jaxrnn.cells import transforms

SAME = {
    "projected": [
        lambda: jaxrnn.projected(LSTM, 4),
        lambda: jaxrnn.projected(LSTM, projection_size=4),
        lambda: jaxrnn.projected(cell=LSTM, projection_size=np.int32(4)),
    ],
    "heads": [
        lambda: jaxrnn.heads(LSTM, 2),
        lambda: jaxrnn.heads(LSTM, count=2),
        lambda: jaxrnn.heads(cell=LSTM, count=np.int64(2)),
    ],
    "recurrent_dropout": [
        lambda: jaxrnn.recurrent_dropout(LSTM, 0.5),
        lambda: jaxrnn.recurrent_dropout(LSTM, rate=0.5),
        lambda: jaxrnn.recurrent_dropout(LSTM, np.float32(0.5)),
    ],
    "zoneout": [
        lambda: jaxrnn.zoneout(LSTM, h=0.5),
        lambda: jaxrnn.zoneout(LSTM, h=0.5, c=0.0),
        lambda: jaxrnn.zoneout(LSTM, c=0, h=np.float32(0.5)),
    ],
    "clipped": [
        lambda: jaxrnn.clipped(LSTM, 1),
        lambda: jaxrnn.clipped(LSTM, limit=1.0),
        lambda: jaxrnn.clipped(LSTM, np.float32(1)),
    ],
    "clip_adjoint": [
        lambda: jaxrnn.clip_adjoint(LSTM, norm=1.0),
        lambda: jaxrnn.clip_adjoint(LSTM, value=None, norm=1),
        lambda: jaxrnn.clip_adjoint(cell=LSTM, norm=np.float64(1)),
    ],
    "with_dtypes": [
        lambda: jaxrnn.with_dtypes(LSTM, compute="bfloat16"),
        lambda: jaxrnn.with_dtypes(LSTM, compute=jnp.bfloat16, carry="float32"),
        lambda: jaxrnn.with_dtypes(LSTM, compute=jnp.dtype("bfloat16"), carry=np.float32),
    ],
}


def test_every_transform_is_here():
    functions = set(transforms.__all__) - {"ProjectedParams"}
    assert set(SAME) == set(DESCRIBED) == functions


@pytest.mark.parametrize("name", SAME)
def test_equal_arguments_make_the_same_cell_and_so_the_same_program(name):
    first, *others = (call() for call in SAME[name])
    for other in others:
        assert other is first
        assert hash(other) == hash(first)
    assert SAME[name][0]() is first


def test_other_arguments_make_another_cell():
    cells = [calls[0]() for calls in SAME.values()]
    cells += [
        jaxrnn.clip_adjoint(LSTM, value=1.0),
        jaxrnn.zoneout(LSTM, c=0.5),
        jaxrnn.heads(GRU, 2),
    ]
    assert len(set(cells)) == len({cell.name for cell in cells}) == len(cells)


DESCRIBED = {
    "projected": ("LSTM projected to 4", "h_t = m_t W_hr", "``w_hr [H, P]``"),
    "heads": ("LSTM in 2 heads", "w_hh [N, H/N, G, H/N]"),
    "recurrent_dropout": ("LSTM with recurrent dropout 0.5", "u_t = (m * h_{t-1}) W_hh"),
    "zoneout": ("LSTM with zoneout h 0.5", "h_t = k_t * h_{t-1} + (1 - k_t) * h'_t"),
    "clipped": ("LSTM clipped to 1", "dc'_t = dc_t where |c'_t| < limit, else 0"),
    "clip_adjoint": ("LSTM with its adjoint clipped to norm 1", "min(1, norm / |ds'|)"),
    "with_dtypes": ("LSTM in bfloat16 with a state of float32", "rounded to ``compute``"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_help_of_a_cell_is_of_the_transform_and_then_of_the_inner_cell(name):
    cell = SAME[name][0]()
    made, *said = DESCRIBED[name]
    own, inner = cell.__doc__.split("\n\nLSTM:\n\n")
    assert own.startswith(f"{made}.\n\nThe cell ")
    assert cell.name == made
    for words in said:
        assert words in own
    assert "Args:" not in own
    assert inner == LSTM.__doc__
    assert SAME[name][0]().__doc__ != getattr(jaxrnn, name).__doc__


def test_the_help_of_a_cell_of_several_transforms_has_all_of_them():
    text = jaxrnn.zoneout(jaxrnn.projected(LSTM, 4), h=0.1).__doc__
    at = [text.index(each) for each in ("h_t = k_t", "LSTM projected to 4:", "W_hr", LSTM.__doc__)]
    assert at == sorted(at)
    # a cell of the user's own may have none
    assert jaxrnn.clipped(LSTM._replace(doc=None), 1.0).__doc__.startswith("LSTM clipped to 1.")


def test_one_head_is_the_cell_as_before():
    cell, problem = jaxrnn.heads(LSTM, 1), make_problem(LSTM, 6, (2,), 3, 4, lengths=True)
    w_hh = problem.params.w_hh.reshape(1, 4, 4, 4)
    one_head = problem._replace(cell=cell, params=problem.params._replace(w_hh=w_hh))
    outputs, (dparams, *rest) = vjp(one_head, jaxrnn.unroll)
    dparams = dparams._replace(w_hh=dparams.w_hh.reshape(4, 16))
    assert_same((outputs, (dparams, *rest)), vjp(problem, jaxrnn.unroll))


NO_INIT = LSTM._replace(name="MINE", init=None)
DENSE = (
    r"`cell` must have a dense recurrent weight `w_hh` as a field of its params to be {}, "
    r"neither heads already nor a projection; got {}$"
)
NUMBER = "must be a number, known before tracing; got"
INT = "must be an int of at least 1, known before tracing; got"
BAD = {
    "no cell": (lambda: jaxrnn.zoneout("LSTM", h=0.1), TypeError, "`cell` must be a jaxrnn.Cell"),
    "a list": (lambda: jaxrnn.projected([1], 4), TypeError, "`cell` must be a jaxrnn.Cell"),
    "a cell of arrays": (
        lambda: jaxrnn.clipped(LSTM._replace(init=np.ones(3)), 1.0),
        TypeError,
        "`cell` must be hashable",
    ),
    "rate": (lambda: jaxrnn.recurrent_dropout(LSTM, 1.0), ValueError, "`rate` must be in 0..1"),
    "array": (lambda: jaxrnn.recurrent_dropout(LSTM, jnp.ones(())), TypeError, f"`rate` {NUMBER}"),
    "rate that is a flag": (lambda: jaxrnn.zoneout(LSTM, h=False), TypeError, f"`h` {NUMBER}"),
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
    "heads of heads": (
        lambda: jaxrnn.heads(jaxrnn.heads(LSTM, 2), 2),
        ValueError,
        DENSE.format("split into heads", "LSTM in 2 heads"),
    ),
    "heads of a projection": (
        lambda: jaxrnn.heads(jaxrnn.projected(LSTM, 2), 2),
        ValueError,
        DENSE.format("split into heads", "LSTM projected to 2"),
    ),
    "projection of heads": (
        lambda: jaxrnn.projected(jaxrnn.heads(LSTM, 4), 4),
        ValueError,
        DENSE.format("projected", "LSTM in 4 heads"),
    ),
    "projection of one head": (
        lambda: jaxrnn.projected(jaxrnn.heads(LSTM, 1), 4),
        ValueError,
        DENSE.format("projected", "LSTM in 1 heads"),
    ),
    "projection of a projection": (
        lambda: jaxrnn.projected(jaxrnn.projected(LSTM, 4), 2),
        ValueError,
        DENSE.format("projected", "LSTM projected to 4"),
    ),
    "projected GRU": (
        lambda: jaxrnn.projected(GRU, 2),
        ValueError,
        "GRU reads it unit by unit too",
    ),
    "projected state that is missing": (
        lambda: jaxrnn.projected(jaxrnn.clipped(ELMAN, 1.0), 2),
        ValueError,
        "`cell` must have a cell state `c` to be clipped; the state of ELMAN has h",
    ),
    "projected dropout": (
        lambda: jaxrnn.projected(jaxrnn.recurrent_dropout(LSTM, 0.5), 2),
        ValueError,
        "project first",
    ),
    "projected mask": (
        lambda: jaxrnn.projected(jaxrnn.leaky(masked=True), 2),
        ValueError,
        "`cell` must take no consts to be projected",
    ),
    "projection without init": (
        lambda: jaxrnn.projected(NO_INIT, 2),
        TypeError,
        "`cell` must have `init` to be projected, .* MINE has none$",
    ),
    "heads without init": (
        lambda: jaxrnn.heads(NO_INIT, 2),
        TypeError,
        "`cell` must have `init` to be split into heads, .* MINE has none$",
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


def test_an_argument_of_another_type_is_refused_beside_an_equal_one():
    for transform in (jaxrnn.projected, jaxrnn.heads):
        transform(LSTM, 1)
        for wrong in (True, 1.0):
            with pytest.raises(TypeError, match=INT):
                transform(LSTM, wrong)
    jaxrnn.clipped(LSTM, 1.0)
    with pytest.raises(TypeError, match=NUMBER):
        jaxrnn.clipped(LSTM, True)
    jaxrnn.clip_adjoint(LSTM, norm=1.0)
    with pytest.raises(TypeError, match=NUMBER):
        jaxrnn.clip_adjoint(LSTM, norm=True)
