"""The memory budget of a network, divided among its layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.call import bytes_of_call, validate
from jaxrnn.checks import size
from jaxrnn.layers import MERGES, Layer, LayerParams, require_dtype
from jaxrnn.memory import bytes_of
from jaxrnn.sequence import unroll_reference

__all__ = ["layer_budgets"]


def layer_budgets(
    network: Sequence[Layer],
    layers: Sequence[LayerParams],
    xs: Any,
    masks: Any,
    key: Any,
    budget: int | None,
) -> list[int | None]:
    """The budget of each direction, by layer: the least, and a share of what is left.

    First comes what the network holds beside its cells: masks of dropout and the inputs that they
    leave, merged outputs, and the gradient of every layer's outputs.
    """
    if budget is None:
        return [None] * len(layers)
    budget = size("memory_budget", budget)
    if not all(isinstance(axis, int) for leaf in jax.tree.leaves(xs) for axis in jnp.shape(leaf)):
        raise ValueError(
            "`memory_budget` must be None for symbolic sizes, whose bytes are unknown: choose "
            f"`residuals`; got {budget}"
        )
    ranges: list[tuple[int, int]] = []
    beside = 0

    def sizes(layers: Any, xs: Any, masks: Any) -> None:
        nonlocal beside
        for n, (each, of_layer) in enumerate(zip(network, layers, strict=True)):
            require_dtype(n, network, of_layer, xs)
            if key is not None:
                entries = sum(leaf.size for leaf in jax.tree.leaves(xs))
                # the dropped inputs and their gradient; of every entry 32 random bits, and the mask
                beside += len(each.dropouts) * (2 * bytes_of(xs) + 5 * entries)
            ranges.append(bytes_of_call(validate(each.cell, of_layer.forward, xs, None, masks)))
            h = unroll_reference(each.cell, of_layer.forward, xs, **masks)[1]
            hs = MERGES[each.merge](h, h) if each.bidirectional else h
            beside += bytes_of(hs) * (1 + (each.bidirectional or each.residual))
            xs = hs

    jax.eval_shape(sizes, layers, xs, {name: m for name, m in masks.items() if m is not None})
    directions = [1 + each.bidirectional for each in network]
    least, fastest = (
        sum(count * own[end] for count, own in zip(directions, ranges, strict=True))
        for end in (0, 1)
    )
    if budget < beside + least:
        raise ValueError(
            f"`memory_budget` must be at least {beside + least} bytes for this network and these "
            f"inputs, {beside} of them beside its cells; got {budget}"
        )
    left = budget - beside - least
    if left >= fastest - least:
        return [None] * len(layers)
    return [low + left * (high - low) // (fastest - least) for low, high in ranges]
