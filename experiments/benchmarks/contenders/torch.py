"""PyTorch's modules, on the CPU or, where JAX is on a GPU, on that."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.cases import Arrays, Case
from experiments.benchmarks.contenders.contender import Contender, Program

_LAYERS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
_CELLS = {"elman": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}


def begin(platform: str) -> str | None:
    if platform != "gpu":
        return None
    if not torch.cuda.is_available():
        return "this build of torch has no CUDA, and JAX runs on a GPU"
    torch.set_default_device("cuda")
    # products in float32 proper, as for all others
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return None


def programs(case: Case, arrays: Arrays) -> Mapping[str, Program]:
    sequence = case.kind == "sequence"
    module = (_LAYERS if sequence else _CELLS)[case.cell](case.I, case.H)
    _copy_weights(module, case, arrays.weights)
    inputs = {name: torch.tensor(array) for name, array in arrays.inputs.items()}
    return _sequence(module, case, inputs) if sequence else {"step": _step(module, inputs)}


def _copy_weights(module: Any, case: Case, weights: dict[str, np.ndarray]) -> None:
    # one of its two biases would do for all but the candidate of the GRU
    b_hh = np.zeros_like(weights["b"])
    if case.cell == "gru":
        b_hh[2 * case.H :] = weights["b_hn"]
    parameters = (weights["w_ih"].T, weights["w_hh"].T, weights["b"], b_hh)
    with torch.no_grad():
        for own, array in zip(module.parameters(), parameters, strict=True):
            own.copy_(torch.tensor(array))


def _sequence(module: Any, case: Case, inputs: dict[str, torch.Tensor]) -> Mapping[str, Program]:
    xs, dhs = inputs["xs"].requires_grad_(), inputs["dhs"]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return module(xs)[0]

    def training() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(module(xs)[0], (*module.parameters(), xs), dhs)

    def gradients(tensors: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
        dw_ih, dw_hh, db, db_hh, dxs = map(_numpy, tensors)
        named = {"dw_ih": dw_ih.T, "dw_hh": dw_hh.T, "db": db, "dxs": dxs}
        return named | ({"db_hn": db_hh[2 * case.H :]} if case.cell == "gru" else {})

    return {
        "forward": Program(_finished(forward), lambda hs: {"hs": _numpy(hs)}),
        "training": Program(_finished(training), gradients),
    }


def _step(module: Any, inputs: dict[str, torch.Tensor]) -> Program:
    x, *state = inputs.values()

    @torch.inference_mode()
    def step() -> Any:
        return module(x, tuple(state) if len(state) > 1 else state[0])

    def fields(returned: Any) -> dict[str, np.ndarray]:
        tensors = returned if isinstance(returned, tuple) else (returned,)
        return dict(zip(("h", "c"), map(_numpy, tensors), strict=False))

    return Program(_finished(step), fields)


def _finished(function: Callable[[], Any]) -> Callable[[], Any]:
    """Wait for the device, where there is something to wait for."""
    if not torch.cuda.is_available() or torch.get_default_device().type != "cuda":
        return function

    def run() -> Any:
        outputs = function()
        torch.cuda.synchronize()
        return outputs

    return run


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


CONTENDER = Contender(
    how="torch.nn.RNN, LSTM, GRU, eager; forward in inference_mode, training through "
    "autograd.grad; streaming: RNNCell, LSTMCell, GRUCell in inference_mode",
    programs=programs,
    begin=begin,
)
