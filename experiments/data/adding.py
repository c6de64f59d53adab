"""The adding problem: two numbers of a long sequence are marked; what is their sum?

Every step holds a value drawn uniformly from [0, 1) and a marker, which is 1 at one step of the
first half and at one of the second, and 0 elsewhere. The target is the sum of both marked values.

Whoever ignores the input and always predicts the mean, 1, has a mean squared error of 1/6, the
variance of the sum. To do better, a network has to carry a value over many steps.

Reference: S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997, experiment 4; in the
variant of M. Arjovsky, A. Shah and Y. Bengio, "Unitary evolution recurrent neural networks", 2016,
section 4.2: values from [0, 1) instead of [-1, 1], one marker in each half, all sequences of one
length.
"""

from typing import Any, NamedTuple

import numpy as np

CHANNELS = 2
MEAN = 1.0


class Sequences(NamedTuple):
    """N sequences, time-major: xs [T, N, 2] and targets [N, 1], float32.

    ``lengths`` is None: all have T steps. Numpy arrays, or JAX's within its functions.
    """

    xs: Any
    lengths: None
    targets: Any


def draw(generator: np.random.Generator, length: int, count: int) -> Sequences:
    """Draw ``count`` sequences of ``length`` steps, which must be at least 2."""
    values = generator.random((length, count), np.float32)
    first = generator.integers(0, length // 2, count)
    second = generator.integers(length // 2, length, count)
    t = np.arange(length)[:, None]
    marked = ((t == first) | (t == second)).astype(np.float32)
    targets = np.sum(values * marked, axis=0)[:, None]
    return Sequences(np.stack([values, marked], axis=-1), None, targets)
