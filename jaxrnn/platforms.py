"""Where a program runs, and the compiler's options that are worth setting there."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.checks import describe

__all__ = ["compiler_options", "target_platform"]

# options that help together or not at all, by platform; the names are XLA's own and may go
_WORTH_SETTING: dict[str, list[dict[str, Any]]] = {
    "gpu": [
        # one command buffer (CUDA graph) for all steps of all loops, in place of one per step:
        # the host starts it once. With WHILE alone, every iteration is still started by the host
        {
            "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
            "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
            "xla_gpu_command_buffer_unroll_loops": True,
        },
    ],
}


def target_platform() -> str:
    """The platform that a call is traced for: of the mesh in context, or of the default device.

    A program that is compiled ahead of time for a device that is not there names it by
    `jax.sharding.use_abstract_mesh` with a `jax.sharding.AbstractDevice`.
    """
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    device = jax.sharding.get_abstract_mesh().abstract_device or chosen
    return getattr(device, "platform", device) or jax.default_backend()


def compiler_options(platform: str | None = None) -> dict[str, Any]:
    """Options for ``jax.jit(f, compiler_options=...)`` that are worth setting for a training step.

    Options that this version of JAX refuses are left out; each is tried once, which takes a tenth
    of a second. JAX takes options at the outermost `jax.jit` alone, so that `jaxrnn.unroll` cannot
    set them. They do not change the values that are computed. On a GPU, all launches of a training
    step become one; nobody has timed it yet.

    Args:
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``; None for that of the default device.

    Returns:
        A new dict, empty where no option is known to be worth it.

    Raises:
        TypeError: a platform that is no string.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.compiler_options("cpu")
        {}
    """
    if platform is not None and not isinstance(platform, str):
        raise TypeError(f"`platform` must be None or a string; got {describe(platform)}")
    return dict(_accepted("gpu" if platform in ("cuda", "rocm") else platform or target_platform()))


@functools.cache
def _accepted(platform: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for together in _WORTH_SETTING.get(platform, []):
        if all(_takes({name: value}) for name, value in together.items()):
            found |= together
    return found


def _takes(options: dict[str, Any]) -> bool:
    """Whether XLA knows the option and the value, for whichever platform it is meant."""
    try:
        # only compiling tells
        jax.jit(lambda x: x, compiler_options=options).lower(jnp.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
