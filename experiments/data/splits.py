"""Split samples into training, validation and test sets.

Every choice is made on the validation set. The test set is read once.
"""

from typing import NamedTuple

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold


class Split(NamedTuple):
    """Sorted indices [n] int64 of the samples of each set. No sample is in two sets."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def _rotate(parts: list[np.ndarray]) -> list[Split]:
    splits = []
    for n, test in enumerate(parts):
        validation = parts[(n + 1) % len(parts)]
        train = np.setdiff1d(np.arange(sum(map(len, parts))), np.concatenate([validation, test]))
        splits.append(Split(train, validation, test))
    return splits


def stratified_folds(labels: np.ndarray, count: int = 10, seed: int = 0) -> list[Split]:
    """Return ``count`` splits of N samples with ``labels [N]``; each label is spread evenly.

    Every sample is in one test set. The validation set of a split is the test set of the next one.
    """
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    return _rotate([test for _, test in splitter.split(labels, labels)])


def folds(samples: int, count: int = 10, seed: int = 0) -> list[Split]:
    """Return ``count`` splits of N = ``samples`` samples without labels."""
    splitter = KFold(count, shuffle=True, random_state=seed)
    return _rotate([test for _, test in splitter.split(np.arange(samples))])


def by_group(groups: np.ndarray, validation: float, test: float, seed: int = 0) -> Split:
    """Split N samples by ``groups [N]``: all samples of a group are in the same set.

    ``validation`` and ``test`` are the shares of samples in these sets, up to the size of a group.
    """
    _, members = np.unique(groups, return_inverse=True)
    sizes = np.bincount(members)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # the share of all samples that stands before each group in the shuffled order
    before = np.empty(len(sizes))
    before[order] = (np.cumsum(sizes[order]) - sizes[order]) / len(members)
    place = before[members]
    bounds = [(test + validation, 1.0), (test, test + validation), (0.0, test)]
    return Split(*(np.flatnonzero((low <= place) & (place < high)) for low, high in bounds))
