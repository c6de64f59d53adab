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
    weight_hr_l{n}  [P, H] of proj_size P         w_hr [H, P] of `jaxrnn.projected`: the transpose;
                                                  weight_hh is [G H, P]

A network is written with both biases, for a module with ``bias=True``: ours as ``bias_ih``, and as
``bias_hh`` zeros, but for the GRU's third block, which is b_hn.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import (
    ELMAN,
    GRU,
    LSTM,
    Cell,
    ElmanParams,
    Expects,
    GRUParams,
    LSTMParams,
    ProjectedParams,
    elman,
    projected,
)
from jaxrnn.checks import describe
from jaxrnn.layers import Layer, LayerParams
from jaxrnn.network import Network, StackParams, layer, stack

__all__ = ["from_torch", "to_torch"]

_CELLS = {1: ELMAN, 3: GRU, 4: LSTM}
_KEY = re.compile(r"(weight|bias)_(ih|hh|hr)(?:_l(\d+))?(_reverse)?")


class _Direction(NamedTuple):
    """The arrays of one direction of a layer, in their layout."""

    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias_ih: np.ndarray | None
    bias_hh: np.ndarray | None
    weight_hr: np.ndarray | None


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
            both, with or without biases, with or without ``proj_size``; or of `RNNCell`,
            `LSTMCell`, `GRUCell`. Its values are tensors on the CPU or arrays. Their dtype is kept
            if JAX has it: float64 needs ``jax_enable_x64``.
        prefix: the part of the keys before the module's own, such as ``"encoder.rnn."``; keys
            without it, and those of other modules behind it, are not read.
        nonlinearity: of `torch.nn.RNN`, ``"tanh"`` or ``"relu"``; a state_dict does not tell.
        dropout: between the layers; a state_dict does not tell.

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
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"`nonlinearity` must be 'tanh' or 'relu'; got {nonlinearity!r}")
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "`state_dict` must be a mapping from names to arrays, module.state_dict(); got "
            f"{type(state_dict).__name__}"
        )
    directions = _directions(state_dict, prefix)
    for (n, _), arrays in directions.items():
        _check_shapes(n, arrays)
    _check_together(directions)
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
            cell, H, own = _params(n, directions[n, reverse], nonlinearity)
            params.append(own)
        layers.append(layer(cell, H, bidirectional=bidirectional))
        made.append(LayerParams(params[0], params[1] if bidirectional else None, None))
    between = dropout if len(layers) > 1 else 0.0
    return stack(*layers, dropout=between), StackParams(tuple(made))


def to_torch(
    network: Network, params: StackParams, prefix: str = "", *, cell_class: bool = False
) -> dict[str, np.ndarray]:
    """The ``state_dict`` of `torch.nn.RNN`, `LSTM` or `GRU` with these params, as arrays.

    Load it with ``module.load_state_dict({key: torch.from_numpy(a) for key, a in ...})`` into a
    module of the same sizes, with ``bias=True``. PyTorch does not know NumPy's bfloat16: such
    arrays need ``torch.from_numpy(a.astype("float32"))``, which a bfloat16 module loads unchanged.

    Args:
        network: of ELMAN, ``elman("relu")``, LSTM, GRU or projected LSTM cells, or of cells that
            compute the same without a key, such as ``recurrent_dropout(LSTM, 0.2)``.
        params: of the network.
        prefix: put before every key, such as ``"encoder.rnn."``.
        cell_class: write the keys of `RNNCell`, `LSTMCell` or `GRUCell`, without ``_l0``. The
            network must be one layer that runs forwards, without a projection.

    Raises:
        TypeError: another network or params.
        ValueError: a network that no such module is: layers of different cells, sizes or
            directions, another merge, residual layers, learned initial states, other cells.
    """
    if not isinstance(network, Network):
        raise TypeError(f"`network` must be a jaxrnn.Network; got {describe(network)}")
    first = network.layers[0]
    for n, each in enumerate(network.layers):
        same = (each.hidden_size, each.bidirectional) == (first.hidden_size, first.bidirectional)
        merged = not each.bidirectional or each.merge == "concat"
        if not same or not merged or each.residual or each.learned_initial_state:
            raise ValueError(_refused(n, each))
    layers = network.checked(params)
    modules = set()
    for n, (each, of_layer) in enumerate(zip(network.layers, layers, strict=True)):
        for own in of_layer[: 1 + each.bidirectional]:
            module = _torch_cell(each.cell, own)
            modules.add(module)
            if module is None:
                raise ValueError(
                    "`network` must have ELMAN, elman('relu'), LSTM, GRU or projected LSTM cells, "
                    f"or cells that compute the same without a key; got {each.cell.name}"
                )
            if len(modules) > 1:
                raise ValueError(_refused(n, each))
    projects = isinstance(layers[0].forward, ProjectedParams)
    if cell_class and (len(layers) > 1 or first.bidirectional or projects):
        raise ValueError(
            "`cell_class` must be False unless the network is one layer that runs forwards, "
            f"without a projection; got {network!r}"
        )
    found = {}
    for n, of_layer in enumerate(layers):
        for suffix, own in (("", of_layer.forward), ("_reverse", of_layer.backward)):
            if own is not None:
                arrays = _theirs(jax.device_get(own))
                for name, value in arrays._asdict().items():
                    if value is not None:
                        found[prefix + name + ("" if cell_class else f"_l{n}{suffix}")] = value
    return found


def _refused(n: int, layer: Layer) -> str:
    return (
        "`network` must be what one torch module can be: layers of one cell, size and direction, "
        "outputs side by side, neither residual nor with a learned initial state; layer "
        f"{n} is {layer}"
    )


def _directions(state_dict: Mapping[str, Any], prefix: str) -> dict[tuple[int, bool], _Direction]:
    """The arrays by layer and whether they are of the reverse direction."""
    arrays: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
    for key, value in state_dict.items():
        if not key.startswith(prefix):
            continue
        own = key[len(prefix) :]
        match = _KEY.fullmatch(own)
        if not match:
            # of another module
            if "." in own:
                continue
            raise ValueError(
                f"`state_dict` must have keys such as '{prefix}weight_ih_l0' behind the prefix "
                f"{prefix!r}; got {key!r}"
            )
        kind, of, n, reverse = match.groups()
        of_direction = arrays.setdefault((int(n or 0), bool(reverse)), {})
        if f"{kind}_{of}" in of_direction:
            raise ValueError(f"`state_dict` must have layer {n or 0} once; got {key!r} beside it")
        of_direction[f"{kind}_{of}"] = _array(key, value)
    if not arrays:
        ends = {key[: key.index("weight_ih")] for key in state_dict if "weight_ih" in key}
        raise ValueError(
            f"`state_dict` must have keys such as '{prefix}weight_ih_l0'; "
            + (
                f"there are some behind the prefixes {sorted(ends)}"
                if ends
                else f"got {sorted(state_dict)[:8]}"
            )
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
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(f"`state_dict[{key!r}]` must be floating; got {found.dtype}")
    return found


def _shapes(arrays: _Direction) -> dict[str, tuple[int, ...]]:
    return {name: a.shape for name, a in arrays._asdict().items() if a is not None}


def _fit(w_ih: tuple[int, ...], w_hh: tuple[int, ...], w_hr: tuple[int, ...] | None = None) -> bool:
    """Whether the weights of one direction can have these shapes."""
    if not len(w_ih) == len(w_hh) == len(w_hr or w_hh) == 2 or 0 in w_hh:
        return False
    rows, P = w_hh
    if w_hr is not None:
        return w_hr[0] == P and rows == w_ih[0] == 4 * w_hr[1]
    return rows == w_ih[0] and rows in [gates * P for gates in _CELLS]


def _check_shapes(n: int, arrays: _Direction) -> None:
    """The weights of one direction must fit each other."""
    found = _shapes(arrays)
    weights = {name: shape for name, shape in found.items() if name.startswith("weight")}
    if _fit(*weights.values()):
        return
    turned = ""
    # fewest first: the smallest set that would fit if it were transposed is the wrong one
    for names in (names for count in (1, 2, 3) for names in itertools.combinations(weights, count)):
        if _fit(*(s[::-1] if name in names else s for name, s in weights.items())):
            turned = f"; {' and '.join(names)} look{'s' * (len(names) == 1)} transposed"
            break
    raise ValueError(
        f"`state_dict` must have weight_ih [G H, I] and weight_hh [G H, H] in layer {n}, with G of "
        "1 (RNN), 3 (GRU) or 4 (LSTM), and weight_hh [4 H, P] with weight_hr [P, H] of a "
        f"projection; got {found}{turned}"
    )


def _check_together(directions: Mapping[tuple[int, bool], _Direction]) -> None:
    """All layers and directions must be those of one module."""
    bidirectional = any(reverse for _, reverse in directions)
    first = directions.get((0, False))
    if first is None:
        return
    for (n, reverse), arrays in directions.items():
        where = f"layer {n}{' in reverse' * reverse}"
        if arrays.weight_hh.shape != first.weight_hh.shape:
            raise ValueError(
                f"`state_dict` must have one weight_hh shape, that of layer 0, "
                f"{first.weight_hh.shape}; got {arrays.weight_hh.shape} in {where}"
            )
        if (arrays.bias_ih is None) != (first.bias_ih is None):
            raise ValueError(f"`state_dict` must have biases in all layers or in none; see {where}")
        if n:
            width = first.weight_hh.shape[1] * (1 + bidirectional)
            if arrays.weight_ih.shape[1] != width:
                raise ValueError(
                    f"`state_dict` must have weight_ih [G H, {width}] in {where}, which reads the "
                    f"outputs of the layer below; got {arrays.weight_ih.shape}"
                )


def _params(n: int, arrays: _Direction, nonlinearity: str) -> tuple[Cell, int, Any]:
    """The cell of the weights, known by the number of its gates, its units, and its params."""
    w_ih, w_hh, b_ih, b_hh, w_hr = arrays
    rows, P = w_hh.shape
    H = P if w_hr is None else w_hr.shape[1]
    gates = rows // H
    if gates != 1 and nonlinearity != "tanh":
        raise ValueError(
            f"`nonlinearity` must be 'tanh' for the weights of {_CELLS[gates].name}: only "
            f"torch.nn.RNN has another; got {nonlinearity!r}"
        )
    b_ih = np.zeros(rows, w_ih.dtype) if b_ih is None else b_ih
    b_hh = np.zeros(rows, w_ih.dtype) if b_hh is None else b_hh
    if b_ih.shape != (rows,) or b_hh.shape != (rows,):
        raise ValueError(
            f"`state_dict` must have biases [{rows}] in layer {n}; got {_shapes(arrays)}"
        )
    weights = dict(w_ih=jnp.asarray(w_ih.T), w_hh=jnp.asarray(w_hh.T))
    if gates == 3:
        # the candidate's recurrent bias stands inside of the reset
        b = b_ih + np.concatenate([b_hh[: 2 * H], np.zeros_like(b_hh[2 * H :])])
        return GRU, H, GRUParams(**weights, b=jnp.asarray(b), b_hn=jnp.asarray(b_hh[2 * H :]))
    b = jnp.asarray(b_ih + b_hh)
    if gates == 1:
        return elman(nonlinearity), H, ElmanParams(**weights, b=b)
    own = LSTMParams(**weights, b=b)
    if w_hr is None:
        return LSTM, H, own
    return projected(LSTM, P), H, ProjectedParams(own, jnp.asarray(w_hr.T))


def _torch_cell(cell: Cell, params: Any) -> Cell | None:
    """The cell of one of torch's modules whose step is the same program without a key, or None."""
    candidates = [ELMAN, elman("relu"), LSTM, GRU]
    if isinstance(params, ProjectedParams):
        candidates = [projected(LSTM, params.w_hr.shape[1])]
    expects = cell.expects(params)
    for each in candidates:
        try:
            fits = each.expects(params) == expects
        except (TypeError, ValueError):
            continue
        if fits and _program(each, params, expects) == _program(cell, params, expects):
            return each
    return None


def _program(cell: Cell, params: Any, expects: Expects) -> str:
    """The step of one row as text; a name or an initializer of the cell does not change it."""

    def step(params: Any, state: Any, x: Any) -> Any:
        return cell.advance(params, state, cell.project(params, x, None), None)[0]

    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    return jax.jit(step).lower(like, expects.state, expects.x).as_text()


def _theirs(params: Any) -> _Direction:
    weight_hr = None
    if isinstance(params, ProjectedParams):
        params, weight_hr = params.cell, np.ascontiguousarray(params.w_hr.T)
    bias_hh = np.zeros_like(params.b)
    if isinstance(params, GRUParams):
        bias_hh[-len(params.b_hn) :] = params.b_hn
    # a copy: torch takes no array with negative or Fortran strides
    weight_ih, weight_hh = (np.ascontiguousarray(w.T) for w in (params.w_ih, params.w_hh))
    return _Direction(weight_ih, weight_hh, np.array(params.b), bias_hh, weight_hr)
