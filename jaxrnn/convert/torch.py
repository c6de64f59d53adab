"""`torch.nn.RNN`, `LSTM`, `GRU` and their cell classes as networks, and back.

Their modules compute the same functions with other layouts (the formulas are those of PyTorch's
documentation of each module):

    theirs                                        ours
    weight_ih_l{n}  [G H, I], product W x         w_ih [I, G H], product x w: the transpose
    weight_hh_l{n}  [G H, H]                      w_hh [H, G H]: the transpose
    gates           LSTM i f g o, GRU r z n       the same order
    bias_ih_l{n}, bias_hh_l{n}  [G H] each        b = their sum, but for the GRU's candidate:
                                                  n = tanh(x w + b_n + r * (h w + b_hn)), so that
                                                  b_n is bias_ih's and b_hn is bias_hh's third
    ..._reverse                                   the backward direction, outputs side by side

A network is written with both biases, for a module with ``bias=True``: ours as ``bias_ih``, zeros
as ``bias_hh`` where one would do.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import ELMAN, GRU, LSTM, Cell, ElmanParams, GRUParams, LSTMParams
from jaxrnn.checks import describe
from jaxrnn.layers import LayerParams
from jaxrnn.network import Network, StackParams, layer, stack

__all__ = ["from_torch", "to_torch"]

_CELLS = {1: ELMAN, 3: GRU, 4: LSTM}
_KEY = re.compile(r"(weight|bias)_(ih|hh)(?:_l(\d+))?(_reverse)?")


class _Direction(NamedTuple):
    """The arrays of one direction of a layer, in their layout."""

    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias_ih: np.ndarray | None
    bias_hh: np.ndarray | None


def from_torch(
    state_dict: Mapping[str, Any],
    prefix: str = "",
    *,
    nonlinearity: str = "tanh",
    dropout: float = 0.0,
) -> tuple[Network, StackParams]:
    """The network and its params of a recurrent module's ``state_dict``.

    Args:
        state_dict: of `torch.nn.RNN`, `LSTM`, `GRU`, any number of layers, in one direction or
            both, with or without biases; or of `RNNCell`, `LSTMCell`, `GRUCell`. Its values are
            tensors on the CPU or arrays.
        prefix: the part of the keys before the module's own, such as ``"encoder.rnn."``; keys
            without it are not read.
        nonlinearity: of `torch.nn.RNN`, which its weights do not tell: ``"tanh"``.
        dropout: between the layers, which the weights do not tell either.

    Raises:
        TypeError: a value that is no array.
        ValueError: keys or shapes that no such module has; another nonlinearity.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.convert import from_torch
        >>> shapes = dict(weight_ih_l0=(20, 3), weight_hh_l0=(20, 5), bias_ih_l0=20, bias_hh_l0=20)
        >>> network, params = from_torch({key: np.ones(shape) for key, shape in shapes.items()})
        >>> network, params.layers[0].forward.w_ih.shape
        (<jaxrnn.Network LSTM 5>, (3, 20))
    """
    if nonlinearity != "tanh":
        raise ValueError(f"`nonlinearity` must be 'tanh'; got {nonlinearity!r}")
    directions = _directions(state_dict, prefix)
    count = 1 + max(n for n, _ in directions)
    bidirectional = any(reverse for _, reverse in directions)
    layers, made = [], []
    for n in range(count):
        params = []
        for reverse in (False, True)[: 1 + bidirectional]:
            if (n, reverse) not in directions:
                raise ValueError(
                    f"`state_dict` must have weights of layer {n}"
                    f"{' in reverse' * reverse}, as of other layers; got {sorted(state_dict)}"
                )
            cell, own = _params(n, directions[n, reverse])
            params.append(own)
        layers.append(layer(cell, params[0].w_hh.shape[0], bidirectional=bidirectional))
        made.append(LayerParams(params[0], params[1] if bidirectional else None, None))
    return stack(*layers, dropout=dropout), StackParams(tuple(made))


def to_torch(network: Network, params: StackParams, prefix: str = "") -> dict[str, np.ndarray]:
    """The ``state_dict`` of `torch.nn.RNN`, `LSTM` or `GRU` with these params, as arrays.

    Load it with ``module.load_state_dict({key: torch.from_numpy(a) for key, a in ...})`` into a
    module of the same sizes, with ``bias=True``.

    Raises:
        TypeError: another network or params.
        ValueError: a network that no such module is: layers of different cells, sizes or
            directions, another merge, residual layers, learned initial states, other cells.
    """
    if not isinstance(network, Network):
        raise TypeError(f"`network` must be a jaxrnn.Network; got {describe(network)}")
    first = network.layers[0]
    for n, each in enumerate(network.layers):
        same = (each.cell, each.hidden_size, each.bidirectional) == (
            *(first.cell, first.hidden_size, first.bidirectional),
        )
        merged = not each.bidirectional or each.merge == "concat"
        if not same or not merged or each.residual or each.learned_initial_state:
            raise ValueError(
                f"`network` must be what one torch module can be: layers of one cell, size and "
                f"direction, outputs side by side, neither residual nor with a learned initial "
                f"state; layer {n} is {each}"
            )
        # how its params are drawn does not matter
        if not any(each.cell._replace(init=known.init) == known for known in _CELLS.values()):
            raise ValueError(f"`network` must have ELMAN, LSTM or GRU cells; got {each.cell.name}")
    found = {}
    for n, of_layer in enumerate(network.checked(params)):
        for suffix, own in (("", of_layer.forward), ("_reverse", of_layer.backward)):
            if own is not None:
                arrays = _theirs(jax.device_get(own))
                for name, value in arrays._asdict().items():
                    found[f"{prefix}{name}_l{n}{suffix}"] = value
    return found


def _directions(state_dict: Mapping[str, Any], prefix: str) -> dict[tuple[int, bool], _Direction]:
    """The arrays by layer and whether they are of the reverse direction."""
    arrays: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
    for key, value in state_dict.items():
        if not key.startswith(prefix):
            continue
        match = _KEY.fullmatch(key[len(prefix) :])
        if not match:
            hint = " (projections of an LSTM, `proj_size`)" if "weight_hr" in key else ""
            raise ValueError(
                f"`state_dict` must have keys such as '{prefix}weight_ih_l0' behind the prefix "
                f"{prefix!r}; got {key!r}{hint}"
            )
        kind, of, n, reverse = match.groups()
        arrays.setdefault((int(n or 0), bool(reverse)), {})[f"{kind}_{of}"] = _array(key, value)
    if not arrays:
        raise ValueError(
            f"`state_dict` must have keys such as '{prefix}weight_ih_l0'; got {sorted(state_dict)}"
        )
    found = {}
    for (n, reverse), named in arrays.items():
        missing = {"weight_ih", "weight_hh"} - set(named)
        if missing or ("bias_ih" in named) != ("bias_hh" in named):
            raise ValueError(
                f"`state_dict` must have both weights, and both biases or none, of layer {n}; "
                f"got {sorted(named)}"
            )
        found[n, reverse] = _Direction(
            **{name: named.get(name) for name in _Direction._fields}  # type: ignore[arg-type]
        )
    return found


def _array(key: str, value: Any) -> np.ndarray:
    try:
        found = np.asarray(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(
            f"`state_dict[{key!r}]` must be an array, or a tensor on the CPU without a gradient "
            f"and of a dtype that numpy has: tensor.detach().cpu().float(); got {describe(value)}"
        ) from error
    if found.dtype.kind != "f":
        raise TypeError(f"`state_dict[{key!r}]` must be floating; got {found.dtype}")
    return found


def _params(n: int, arrays: _Direction) -> tuple[Cell, Any]:
    """The cell of the weights, known by the number of its gates, and its params."""
    w_ih, w_hh, b_ih, b_hh = arrays
    rows, H = w_hh.shape if w_hh.ndim == 2 else (0, 1)
    gates, rest = divmod(rows, H)
    shapes = {name: None if a is None else a.shape for name, a in arrays._asdict().items()}
    if rest or gates not in _CELLS or w_ih.ndim != 2 or w_ih.shape[0] != rows:
        transposed = rows and not H % rows and H // rows in _CELLS
        raise ValueError(
            f"`state_dict` must have weight_ih [G H, I] and weight_hh [G H, H] in layer {n}, with "
            f"G of 1 (RNN), 3 (GRU) or 4 (LSTM); got {shapes}"
            + "; they look transposed"
            * bool(transposed)
        )
    b_ih = np.zeros(rows, w_ih.dtype) if b_ih is None else b_ih
    b_hh = np.zeros(rows, w_ih.dtype) if b_hh is None else b_hh
    if b_ih.shape != (rows,) or b_hh.shape != (rows,):
        raise ValueError(f"`state_dict` must have biases [{rows}] in layer {n}; got {shapes}")
    weights = dict(w_ih=jnp.asarray(w_ih.T), w_hh=jnp.asarray(w_hh.T))
    if gates == 3:
        # the candidate's recurrent bias stands inside of the reset
        b = b_ih + np.concatenate([b_hh[: 2 * H], np.zeros_like(b_hh[2 * H :])])
        return GRU, GRUParams(**weights, b=jnp.asarray(b), b_hn=jnp.asarray(b_hh[2 * H :]))
    record = LSTMParams if gates == 4 else ElmanParams
    return _CELLS[gates], record(**weights, b=jnp.asarray(b_ih + b_hh))


def _theirs(params: Any) -> _Direction:
    bias_hh = np.zeros_like(params.b)
    if isinstance(params, GRUParams):
        bias_hh[-len(params.b_hn) :] = params.b_hn
    # a copy: torch takes no array that is stored from right to left
    weight_ih, weight_hh = (np.ascontiguousarray(w.T) for w in (params.w_ih, params.w_hh))
    return _Direction(weight_ih, weight_hh, np.array(params.b), bias_hh)
