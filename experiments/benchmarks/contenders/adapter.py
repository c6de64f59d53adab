"""How every contender that runs on JAX is run, whatever it is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.cases import Arrays, Case
from experiments.benchmarks.contenders.contender import Program


class Network(NamedTuple):
    """A recurrent network of a JAX library as pure functions.

    Attributes:
        params: from jaxrnn's weights by name to the library's own parameters, by moving, negating
            or adding constants alone. Gradients come back through the transpose of this map.
        unroll: ``(params, xs) -> hs`` from a zero state.
        step: ``(params, state, x)`` to whatever the library returns; None where it has no such
            call.
        state: from jaxrnn's ``h`` and, for the LSTM, ``c``, by name, to the library's own state.
        fields: what `step` returned as ``{"h": h}``, with ``"c"`` for the LSTM.
        batch_major: ``xs`` and ``hs`` are ``[B, T, ...]`` in place of ``[T, B, ...]``.
        single_row: `step` takes one row without an axis for it.
        stream_step: a compiled `step`, where the library has one that is not ``jax.jit(step)``.
        replicate: puts the parameters onto all devices.
        spread: puts ``[T, B, ...]`` onto them, each with rows of its own.
    """

    params: Callable[[dict[str, jax.Array]], Any]
    unroll: Callable[[Any, jax.Array], jax.Array]
    step: Callable[[Any, Any, jax.Array], Any] | None
    state: Callable[..., Any]
    fields: Callable[[Any], dict[str, jax.Array]]
    batch_major: bool = False
    single_row: bool = False
    stream_step: Callable[[Any, Any, jax.Array], Any] | None = None
    replicate: Callable[[Any], Any] = lambda params: params
    spread: Callable[[jax.Array], jax.Array] = lambda sequence: sequence


def programs(
    network_of: Callable[[str, int, int], Network], case: Case, arrays: Arrays
) -> Mapping[str, Program]:
    """The operations of the network that ``network_of(cell, I, H)`` returns."""
    # the first compilation of a process also starts the compiler
    jax.jit(jnp.tanh)(1.0)
    network = network_of(case.cell, case.I, case.H)
    weights = {name: jnp.asarray(weight) for name, weight in arrays.weights.items()}
    params, to_canonical = jax.vjp(network.params, weights)
    if case.kind == "stream":
        return {"step": _step(network, params, arrays)}
    return _sequence(network, params, to_canonical, arrays)


def _sequence(
    network: Network, params: Any, to_canonical: Callable[[Any], Any], arrays: Arrays
) -> Mapping[str, Program]:
    def layout(a: Any) -> jax.Array:
        """From jaxrnn's layout to the network's, and back."""
        return jnp.swapaxes(a, 0, 1) if network.batch_major else jnp.asarray(a)

    # inputs are arguments: a compiler must not fold what a user's program could not
    xs, dhs = (network.spread(layout(arrays.inputs[name])) for name in ("xs", "dhs"))
    params = network.replicate(params)

    def training(params: Any, xs: jax.Array, dhs: jax.Array) -> Any:
        _, pull = jax.vjp(network.unroll, params, xs)
        return pull(dhs)

    def forward_outputs(hs: jax.Array) -> dict[str, np.ndarray]:
        return {"hs": np.asarray(layout(hs))}

    def training_outputs(gradients: tuple[Any, jax.Array]) -> dict[str, np.ndarray]:
        dparams, dxs = gradients
        (dweights,) = to_canonical(dparams)
        named = {f"d{name}": np.asarray(dweight) for name, dweight in dweights.items()}
        return named | {"dxs": np.asarray(layout(dxs))}

    return {
        "forward": _jitted(network.unroll, (params, xs), forward_outputs),
        "training": _jitted(training, (params, xs, dhs), training_outputs),
    }


def _step(network: Network, params: Any, arrays: Arrays) -> Program:
    rows = {name: jnp.asarray(row) for name, row in arrays.inputs.items()}
    if network.single_row:
        rows = {name: row[0] for name, row in rows.items()}
    x = rows.pop("x")
    assert network.step is not None

    def outputs(returned: Any) -> dict[str, np.ndarray]:
        fields = network.fields(returned)
        return {name: np.asarray(field).reshape(1, -1) for name, field in fields.items()}

    arguments = params, network.state(**rows), x
    program = _jitted(network.step, arguments, outputs)
    stream_step = network.stream_step
    if stream_step is None:
        return program
    return program._replace(run=lambda: jax.block_until_ready(stream_step(*arguments)))


def _jitted(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    canonical: Callable[[Any], dict[str, np.ndarray]],
) -> Program:
    jitted = jax.jit(function)

    def run() -> Any:
        return jax.block_until_ready(jitted(*arguments))

    def compile() -> Any:
        nonlocal jitted
        jax.clear_caches()
        # a new function: none that a cache could know
        jitted = jax.jit(lambda *arguments: function(*arguments))
        return jitted.lower(*arguments).compile()

    return Program(run, canonical, compile)
