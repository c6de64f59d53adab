"""What training may see of the Japanese Vowels: nothing here reads the test set."""

from typing import NamedTuple

import numpy as np

from experiments.data import japanese_vowels
from experiments.data.japanese_vowels import Utterances


class TrainingData(NamedTuple):
    """All that training sees, standardised with the mean and deviation [12] of ``train``."""

    train: Utterances
    held_out: Utterances | None
    mean: np.ndarray
    deviation: np.ndarray


def prepare_training(holdout: int) -> TrainingData:
    """Hold out the last utterances of each speaker, and standardise the channels."""
    recordings = japanese_vowels.load("train")
    place = np.arange(len(recordings.labels)) % japanese_vowels.TRAINING_UTTERANCES
    kept = place < japanese_vowels.TRAINING_UTTERANCES - holdout
    train = select(recordings, kept)
    valid = np.arange(len(train.xs))[:, None] < train.lengths
    mean, deviation = train.xs[valid].mean(axis=0), train.xs[valid].std(axis=0)
    held_out = standardise(select(recordings, ~kept), mean, deviation) if holdout else None
    return TrainingData(standardise(train, mean, deviation), held_out, mean, deviation)


def select(utterances: Utterances, which: np.ndarray) -> Utterances:
    """Take some of the utterances, by index or mask."""
    xs, lengths, labels = utterances
    return Utterances(xs[:, which], lengths[which], labels[which])


def standardise(utterances: Utterances, mean: np.ndarray, deviation: np.ndarray) -> Utterances:
    """Shift and scale each channel (in the padding too, which nothing reads)."""
    return utterances._replace(xs=(utterances.xs - mean) / deviation)
