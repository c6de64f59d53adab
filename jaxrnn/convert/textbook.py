"""The dictionaries of `jaxrnn.textbook` as parameters of the engine, and back.

The textbook multiplies from the left, ``W @ x`` with features first; the engine from the right,
``x @ w`` with features last. So a weight of the one is the transpose of the other's, and so is
every array of data: with ``.T``, which reverses all axes, ``x (n_x, m, T_x)`` is ``xs [T, B, I]``
and ``a0 (n_a, m)`` is ``h [B, H]``, and the same again leads back.

The engine holds the LSTM's gates side by side in the order i, f, g, o. In the dictionary of the
document "Recurrent Neural Network" they are ``Wi, Wf, Wc, Wo``, whose first columns multiply the
hidden state and whose last multiply the input.

All converters are linear in the parameters, so gradients convert with them too. What the engine
found is given the textbook's names by the chain rule,

    _, pull = jax.vjp(rnn_from_textbook, parameters)
    (dparameters,) = pull((dparams, dhead))      # dparameters["Wax"] is the textbook's "dWax"

and a dictionary of the textbook's gradients, without the ``d`` of its keys, is converted as it is:
``rnn_from_textbook({"Wax": gradients["dWax"], ...})``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import ElmanParams, LSTMParams
from jaxrnn.checks import concrete, describe, floating, matching_arrays
from jaxrnn.readout import AffineParams
from jaxrnn.textbook import LSTM_PARAMETERS, NET_PARAMETERS, RNN_PARAMETERS, STEP_PARAMETERS
from jaxrnn.textbook.checks import parameters_of

__all__ = [
    "lstm_from_textbook",
    "lstm_to_textbook",
    "net_from_textbook",
    "net_to_textbook",
    "rnn_from_textbook",
    "rnn_to_textbook",
    "step_from_textbook",
    "step_to_textbook",
]

# the engine's order i, f, g, o in the names of each notation
LSTM_GATES = ("i", "f", "c", "o")
STEP_GATES = ("i", "f", "g", "o")


def rnn_from_textbook(parameters: dict[str, Any]) -> tuple[ElmanParams, AffineParams]:
    """``Wax Waa Wya ba by`` as the parameters of `jaxrnn.ELMAN` and of its head.

    Raises:
        TypeError, ValueError: naming the entry that has a wrong type, dtype, key or shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.convert.textbook import rnn_from_textbook
        >>> shapes = {"Wax": (4, 3), "Waa": (4, 4), "Wya": (2, 4), "ba": (4, 1), "by": (2, 1)}
        >>> params, head = rnn_from_textbook({key: jnp.ones(shapes[key]) for key in shapes})
        >>> params.w_ih.shape, head.w.shape
        ((3, 4), (4, 2))
    """
    p, _ = parameters_of(parameters, RNN_PARAMETERS)
    params = ElmanParams(w_ih=p["Wax"].T, w_hh=p["Waa"].T, b=p["ba"][:, 0])
    return params, AffineParams(w=p["Wya"].T, b=p["by"][:, 0])


def rnn_to_textbook(params: ElmanParams, head: AffineParams) -> dict[str, jax.Array]:
    """The inverse of `rnn_from_textbook`.

    Raises:
        TypeError: params of another cell or dtype.
        ValueError: shapes that do not fit.
    """
    params = _recurrent(params, ElmanParams, gates=1)
    head = _head(head, params)
    return {
        "Wax": params.w_ih.T,
        "Waa": params.w_hh.T,
        "Wya": head.w.T,
        "ba": params.b[:, None],
        "by": head.b[:, None],
    }


def lstm_from_textbook(parameters: dict[str, Any]) -> tuple[LSTMParams, AffineParams]:
    """``Wf bf Wi bi Wc bc Wo bo Wy by`` as the parameters of `jaxrnn.LSTM` and of its head.

    Raises:
        TypeError, ValueError: naming the entry that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, LSTM_PARAMETERS)
    n_a = fixed.sizes["n_a"]
    params = LSTMParams(
        w_ih=jnp.concatenate([p[f"W{gate}"][:, n_a:].T for gate in LSTM_GATES], axis=1),
        w_hh=jnp.concatenate([p[f"W{gate}"][:, :n_a].T for gate in LSTM_GATES], axis=1),
        b=jnp.concatenate([p[f"b{gate}"][:, 0] for gate in LSTM_GATES]),
    )
    return params, AffineParams(w=p["Wy"].T, b=p["by"][:, 0])


def lstm_to_textbook(params: LSTMParams, head: AffineParams) -> dict[str, jax.Array]:
    """The inverse of `lstm_from_textbook`.

    Raises:
        TypeError: params of another cell or dtype.
        ValueError: shapes that do not fit.
    """
    params = _recurrent(params, LSTMParams, gates=4)
    head = _head(head, params)
    blocks = {
        gate: {
            f"W{gate}": jnp.concatenate([w_hh.T, w_ih.T], axis=1),
            f"b{gate}": b[:, None],
        }
        for gate, w_ih, w_hh, b in zip(LSTM_GATES, *_blocks(params), strict=True)
    }
    gates = {key: value for gate in ("f", "i", "c", "o") for key, value in blocks[gate].items()}
    return {**gates, "Wy": head.w.T, "by": head.b[:, None]}


def step_from_textbook(parameters: dict[str, Any]) -> LSTMParams:
    """The twelve ``wxi whi bi wxg whg bg wxf whf bf wxo who bo`` as parameters of `jaxrnn.LSTM`.

    Raises:
        TypeError, ValueError: naming the entry that has a wrong type, dtype, key or shape.
    """
    p, _ = parameters_of(parameters, STEP_PARAMETERS)
    return LSTMParams(
        w_ih=jnp.concatenate([p[f"wx{gate}"].T for gate in STEP_GATES], axis=1),
        w_hh=jnp.concatenate([p[f"wh{gate}"].T for gate in STEP_GATES], axis=1),
        b=jnp.concatenate([p[f"b{gate}"][:, 0] for gate in STEP_GATES]),
    )


def step_to_textbook(params: LSTMParams) -> dict[str, jax.Array]:
    """The inverse of `step_from_textbook`.

    Raises:
        TypeError: params of another cell or dtype.
        ValueError: shapes that do not fit.
    """
    blocks = zip(STEP_GATES, *_blocks(_recurrent(params, LSTMParams, gates=4)), strict=True)
    named = {
        key: value
        for gate, w_ih, w_hh, b in blocks
        for key, value in {f"wx{gate}": w_ih.T, f"wh{gate}": w_hh.T, f"b{gate}": b[:, None]}.items()
    }
    return {key: named[key] for key in STEP_PARAMETERS}


def net_from_textbook(parameters: dict[str, Any]) -> tuple[ElmanParams, AffineParams]:
    """``W_F W_R W_o`` as the parameters of `jaxrnn.ELMAN` and of its head, all biases zero.

    Raises:
        TypeError, ValueError: naming the entry that has a wrong type, dtype, key or shape.
    """
    p, fixed = parameters_of(parameters, NET_PARAMETERS)
    dtype = p["W_F"].dtype
    params = ElmanParams(p["W_F"].T, p["W_R"].T, jnp.zeros(fixed.sizes["n_o"], dtype))
    return params, AffineParams(p["W_o"].T, jnp.zeros(fixed.sizes["n_y"], dtype))


def net_to_textbook(params: ElmanParams, head: AffineParams) -> dict[str, jax.Array]:
    """The inverse of `net_from_textbook`, for a network without biases.

    A traced bias cannot be looked at and is dropped.

    Raises:
        TypeError: params of another cell or dtype.
        ValueError: shapes that do not fit; a concrete bias that is not zero.
    """
    params = _recurrent(params, ElmanParams, gates=1)
    head = _head(head, params)
    for name, bias in (("params.b", params.b), ("head.b", head.b)):
        values = concrete(bias)
        if values is not None and np.any(values != 0):
            raise ValueError(
                f"`{name}` must be zero: the notation of W_F, W_R, W_o has no bias; got {values}"
            )
    return {"W_F": params.w_ih.T, "W_R": params.w_hh.T, "W_o": head.w.T}


def _blocks(params: LSTMParams) -> list[list[jax.Array]]:
    """The gates' parts of ``w_ih``, ``w_hh`` and ``b``."""
    return [jnp.split(leaf, 4, axis=-1) for leaf in params]


def _recurrent(params: Any, kind: Any, *, gates: int) -> Any:
    """``params`` of that type, with shapes that fit each other."""
    params = _record("params", params, kind)
    if not (params.w_ih.ndim == params.w_hh.ndim == 2):
        raise ValueError(f"`params` must hold weights of two axes; got {describe(params)}")
    I, H = params.w_ih.shape[0], params.w_hh.shape[0]
    return _fitting("params", params, ((I, gates * H), (H, gates * H), (gates * H,)))


def _head(head: Any, params: Any) -> AffineParams:
    """``head`` as an affine head on the hidden states of ``params``."""
    head = _record("head", head, AffineParams)
    if head.w.ndim != 2:
        raise ValueError(f"`head.w` must be [H, O]; got shape {head.w.shape}")
    H, O = params.w_hh.shape[0], head.w.shape[1]
    return _fitting("head", head, ((H, O), (O,)), params.w_hh.dtype)


def _record(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {kind.__name__}; got {describe(value)}")
    return kind(*(floating(f"{name}.{f}", v) for f, v in zip(kind._fields, value, strict=True)))


def _fitting(name: str, value: Any, shapes: Any, dtype: Any = None) -> Any:
    """``value`` if its leaves have these shapes and one dtype, by default the first leaf's."""
    dtype = value[0].dtype if dtype is None else dtype
    like = type(value)(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    return matching_arrays(name, value, like)
