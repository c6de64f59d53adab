"""Networks against PyTorch itself, on the same weights: values, final states and gradients."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxrnn
from jaxrnn.convert import from_torch, to_torch

README = Path(__file__).parent.parent.parent / "README.md"
T, B, I, H = 7, 4, 3, 5
PROJECTION = 2


@dataclasses.dataclass(frozen=True)
class Kind:
    """A module of torch, its options, and the cell that it computes."""

    module: type
    cell: jaxrnn.Cell
    options: dict = dataclasses.field(default_factory=dict)

    def make(self, **more):
        torch.manual_seed(0)
        return self.module(I, H, 2, **self.options, **more)


KINDS = {
    "RNN": Kind(torch.nn.RNN, jaxrnn.ELMAN),
    "RNN relu": Kind(torch.nn.RNN, jaxrnn.elman("relu"), {"nonlinearity": "relu"}),
    "LSTM": Kind(torch.nn.LSTM, jaxrnn.LSTM),
    "LSTM projected": Kind(
        torch.nn.LSTM, jaxrnn.projected(jaxrnn.LSTM, PROJECTION), {"proj_size": PROJECTION}
    ),
    "GRU": Kind(torch.nn.GRU, jaxrnn.GRU),
}


def as_tensors(arrays):
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", KINDS)
def test_values_and_gradients_are_those_of_the_module(name, bidirectional, bias):
    kind = KINDS[name]
    module = kind.make(bidirectional=bidirectional, bias=bias).double()
    xs = np.random.default_rng(0).normal(size=(T, B, I))
    theirs = torch.tensor(xs, requires_grad=True)
    hs, final = module(theirs)
    (hs**2).sum().backward()

    with jax.enable_x64(True):
        nonlinearity = kind.options.get("nonlinearity", "tanh")
        network, params = from_torch(module.state_dict(), nonlinearity=nonlinearity)
        assert [each.cell for each in network.layers] == [kind.cell] * 2

        def loss(params, xs):
            return jnp.sum(network.apply(params, xs)[1] ** 2)

        dparams, dxs = jax.grad(loss, argnums=(0, 1))(params, jnp.asarray(xs))
        state, ours = network.apply(params, jnp.asarray(xs))
        np.testing.assert_allclose(ours, hs.detach(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(dxs, theirs.grad, rtol=0, atol=1e-11)
        rows = [each for of_layer in state.layers for each in of_layer if each is not None]
        fields = zip("hc", final, strict=True) if name.startswith("LSTM") else [("h", final)]
        for field, wanted in fields:
            found = np.stack([getattr(each, field) for each in rows])
            np.testing.assert_allclose(found, wanted.detach(), rtol=0, atol=1e-12)
        # gradients convert as params do, but for the bias that stands twice
        gradients = to_torch(network, dparams)
        for key, found in gradients.items():
            if "bias" not in key or (bias and ("bias_hh" not in key or name == "GRU")):
                wanted = module.get_parameter(key).grad.numpy()
                part = slice(2 * H, None) if "bias_hh" in key else slice(None)
                np.testing.assert_allclose(found[part], wanted[part], rtol=0, atol=1e-10)
        assert bias or {key for key in gradients if "bias" not in key} == {*module.state_dict()}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", KINDS)
def test_a_module_loads_what_is_written_for_it(name, bidirectional):
    kind = KINDS[name]
    network = jaxrnn.stack(
        *(jaxrnn.layer(kind.cell, H, bidirectional=bidirectional) for _ in range(2))
    )
    params = network.init(jax.random.key(0), I)
    module = kind.make(bidirectional=bidirectional)
    module.load_state_dict(as_tensors(to_torch(network, params)))
    xs = np.random.default_rng(0).normal(size=(T, B, I)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(xs))[0]
    np.testing.assert_allclose(network.apply(params, xs)[1], expected, rtol=0, atol=1e-6)


CELL_CLASSES = {
    "RNN": torch.nn.RNNCell,
    "RNN relu": torch.nn.RNNCell,
    "LSTM": torch.nn.LSTMCell,
    "GRU": torch.nn.GRUCell,
}


@pytest.mark.parametrize("name", CELL_CLASSES)
def test_a_cell_class_loads_what_is_written_for_it(name):
    kind = KINDS[name]
    network = jaxrnn.layer(kind.cell, H)
    params = network.init(jax.random.key(0), I)
    module = CELL_CLASSES[name](I, H, **kind.options)
    module.load_state_dict(as_tensors(to_torch(network, params, cell_class=True)))
    x = np.random.default_rng(0).normal(size=(B, I)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(x))
    _, h = network.step(params, network.initial_state(params, (B,)), x)
    expected = expected[0] if name == "LSTM" else expected
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-6)


def test_a_bfloat16_module_loads_what_is_written_for_it_bit_by_bit():
    """By the recipe of `to_torch`: torch does not know NumPy's bfloat16."""
    network = jaxrnn.stack(*(jaxrnn.layer(jaxrnn.GRU, H) for _ in range(2)))
    params = network.init(jax.random.key(0), I, dtype=jnp.bfloat16)
    module = KINDS["GRU"].make().bfloat16()
    arrays = to_torch(network, params)
    with pytest.raises(TypeError):
        as_tensors(arrays)
    module.load_state_dict(as_tensors({key: a.astype("float32") for key, a in arrays.items()}))
    for key, tensor in module.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        np.testing.assert_array_equal(tensor.float(), arrays[key].astype("float32"))


def test_the_classifier_of_the_readme_is_that_of_a_torch_user():
    """Embedding with padding, two layers in both directions, lengths, dropout off, and a head."""
    code = re.search(r"```python\n([^`]*init_embedding.*?)```", README.read_text(), re.DOTALL)
    ours = {}
    exec(code[1], ours)
    params, tokens, lengths = (ours[name] for name in ("params", "tokens", "lengths"))

    embedding = torch.nn.Embedding(100, 8, padding_idx=0)
    lstm = torch.nn.LSTM(8, 16, 2, bidirectional=True, dropout=0.3)
    head = torch.nn.Linear(32, 5)

    def tensor(a):
        return torch.from_numpy(np.array(a))

    arrays = to_torch(ours["network"], params["network"])
    lstm.load_state_dict({key: tensor(array) for key, array in arrays.items()})
    embedding.load_state_dict({"weight": tensor(params["embedding"].table)})
    head.load_state_dict({"weight": tensor(params["head"].w.T), "bias": tensor(params["head"].b)})
    lstm.eval()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        embedding(tensor(tokens)), tensor(lengths), enforce_sorted=False
    )
    _, (h, _) = lstm(packed)
    logits = head(torch.cat([h[-2], h[-1]], dim=-1))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 4]))
    found = ours["loss"](params, tokens, lengths, jnp.array([1, 4]))
    np.testing.assert_allclose(found, expected.detach(), rtol=0, atol=1e-6)
    xs = jaxrnn.embed(params["embedding"], jnp.asarray(tokens), padding=0)
    final, _ = ours["network"].apply(params["network"], xs, lengths=jnp.asarray(lengths))
    for direction, theirs in zip(final.layers[-1], h[-2:], strict=True):
        np.testing.assert_allclose(direction.h, theirs.detach(), rtol=0, atol=1e-6)
