"""Values and gradients on the device against the plain recurrence in float64 on the CPU."""

import functools
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.gpu_check.programs import CELLS, TOLERANCES, agreement, dtype_of, products

# several chunks of the backward pass, the last one shorter
T, B, I, H = 150, 5, 9, 16

_GENERATOR = np.random.default_rng(0)
_LENGTHS = np.array([150, 83, 0, 149, 1])
_MASK, _RESETS, _DETACH = (_GENERATOR.random((T, B)) < p for p in (0.8, 0.05, 0.05))
CASES: dict[str, dict[str, Any]] = {
    "all steps, gates kept": dict(residuals="gates"),
    "lengths, in reverse, states kept": dict(residuals="states", lengths=_LENGTHS, reverse=True),
    "mask, resets, detached steps, carries kept": dict(
        residuals="carries", mask=_MASK, resets=_RESETS, detach=_DETACH
    ),
    "resets, in reverse, as planned": dict(resets=_RESETS, reverse=True),
}


def checks(pool: Executor, *, small: bool) -> Iterator[dict[str, Any]]:
    """One line for each: which array differs most, and by how much.

    Every cell meets every case in float32, and one of them in each other precision; in miniature,
    one case in one precision.
    """
    wanted = []
    for n, cell in enumerate(CELLS):
        for k, case in enumerate(CASES):
            for m, precision in enumerate(TOLERANCES):
                turn = k == (n + m) % len(CASES)
                if turn and m == n % len(TOLERANCES) if small else turn or precision == "float32":
                    wanted.append((cell, case, precision))
    # compilations take most of the time, and do not need each other
    for (cell, case, precision), both in zip(wanted, pool.map(_check, wanted), strict=True):
        tolerance = TOLERANCES[precision]
        worst, difference, right = agreement(*both, tolerance)
        yield {
            "part": "values",
            "cell": cell,
            "case": case,
            "precision": precision,
            "worst": worst,
            "difference": float(f"{difference:.2g}"),
            "tolerance": tolerance,
            "status": "ok" if right else "WRONG",
        }


def _check(wanted: tuple[str, str, str]) -> tuple[Any, Any]:
    """Outputs and gradients on the device, and the right ones."""
    name, case, precision = wanted
    cell, dtype, masks = CELLS[name], dtype_of(precision), dict(CASES[case])
    residuals, reverse = masks.pop("residuals", None), masks.pop("reverse", False)
    masks = jax.tree.map(jnp.asarray, masks)
    params = cell.init(jax.random.key(0), I, H, dtype=dtype)
    # its zeros would leave their gradients unread
    state = jax.tree.map(lambda a: jnp.full(a.shape, 0.25, dtype), cell.initial_state(params, (B,)))
    generator = np.random.default_rng(1)
    xs, dhs = (jnp.asarray(generator.standard_normal((T, B, n)), dtype) for n in (I, H))
    arguments = params, xs, state, dhs

    def run(unroll: Any, arguments: Any, masks: Any, **static: Any) -> Any:
        params, xs, state, dhs = arguments

        def outputs(*inputs: Any) -> Any:
            return unroll(cell, *inputs, **masks, **static)

        (final, hs), pull = jax.vjp(outputs, params, xs, state)
        gradients = pull((jax.tree.map(jnp.ones_like, final), dhs))
        names = ("params", "xs", "initial_state")
        return {"final_state": final, "hs": hs, **dict(zip(names, gradients, strict=True))}

    def compiled(unroll: Any, **static: Any) -> Any:
        return jax.jit(functools.partial(run, unroll, reverse=reverse, **static))

    with products(precision):
        found = compiled(jaxrnn.unroll, residuals=residuals)(arguments, masks)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = jax.tree.map(lambda a: np.asarray(a).astype(np.float64), arguments)
        right = compiled(jaxrnn.unroll_reference)(exact, jax.tree.map(np.asarray, masks))
    return jax.device_get(found), jax.device_get(right)
