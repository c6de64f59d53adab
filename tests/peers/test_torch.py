"""Networks against PyTorch itself, on the same weights: values, final states and gradients."""

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
MODULES = {"RNN": torch.nn.RNN, "LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", MODULES)
def test_values_and_gradients_are_those_of_the_module(kind, bidirectional, bias):
    torch.manual_seed(0)
    module = MODULES[kind](I, H, 2, bidirectional=bidirectional, bias=bias).double()
    xs = np.random.default_rng(0).normal(size=(T, B, I))
    theirs = torch.tensor(xs, requires_grad=True)
    hs, final = module(theirs)
    (hs**2).sum().backward()

    with jax.enable_x64(True):
        network, params = from_torch(module.state_dict())

        def loss(params, xs):
            return jnp.sum(network.apply(params, xs)[1] ** 2)

        dparams, dxs = jax.grad(loss, argnums=(0, 1))(params, jnp.asarray(xs))
        state, ours = network.apply(params, jnp.asarray(xs))
        np.testing.assert_allclose(ours, hs.detach(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(dxs, theirs.grad, rtol=0, atol=1e-11)
        h = final[0] if kind == "LSTM" else final
        rows = [leaf.h for each in state.layers for leaf in each if leaf is not None]
        np.testing.assert_allclose(np.stack(rows), h.detach(), rtol=0, atol=1e-12)
        # gradients convert as params do, but for the bias that stands twice
        for key, found in to_torch(network, dparams).items():
            if bias and ("bias_hh" not in key or kind == "GRU"):
                wanted = module.get_parameter(key).grad.numpy()
                part = slice(2 * H, None) if "bias_hh" in key else slice(None)
                np.testing.assert_allclose(found[part], wanted[part], rtol=0, atol=1e-10)


def test_a_relu_network_and_a_projected_one_are_those_of_the_module():
    torch.manual_seed(0)
    relu = torch.nn.RNN(I, H, 2, nonlinearity="relu").double()
    smaller = torch.nn.LSTM(I, H, 2, bidirectional=True, proj_size=2).double()
    xs = np.random.default_rng(0).normal(size=(T, B, I))
    with jax.enable_x64(True):
        for module, options in ((relu, {"nonlinearity": "relu"}), (smaller, {})):
            theirs = torch.tensor(xs, requires_grad=True)
            hs, _ = module(theirs)
            (hs**2).sum().backward()
            network, params = from_torch(module.state_dict(), **options)

            def loss(xs, network=network, params=params):
                return jnp.sum(network.apply(params, xs)[1] ** 2)

            found = network.apply(params, jnp.asarray(xs))[1]
            np.testing.assert_allclose(found, hs.detach(), rtol=0, atol=1e-12)
            dxs = jax.grad(loss)(jnp.asarray(xs))
            np.testing.assert_allclose(dxs, theirs.grad, rtol=0, atol=1e-10)
            again = to_torch(network, params)
            assert {key: a.shape for key, a in again.items()} == {
                key: tuple(a.shape) for key, a in module.state_dict().items()
            }


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_loads_what_is_written_for_it(kind):
    cell = {"RNN": jaxrnn.ELMAN, "LSTM": jaxrnn.LSTM, "GRU": jaxrnn.GRU}[kind]
    network = jaxrnn.stack(*(jaxrnn.layer(cell, H, bidirectional=True) for _ in range(2)))
    params = network.init(jax.random.key(0), I)
    module = MODULES[kind](I, H, 2, bidirectional=True)
    arrays = to_torch(network, params)
    module.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    xs = np.random.default_rng(0).normal(size=(T, B, I)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(xs))[0]
    np.testing.assert_allclose(network.apply(params, xs)[1], expected, rtol=0, atol=1e-6)


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
