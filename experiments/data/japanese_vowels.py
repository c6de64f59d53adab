"""Japanese Vowels: which of nine speakers said /ae/? (UCI; Kudo, Toyama, Shimbo 1999).

Speaker identification from a spoken vowel, not speech recognition: all utterances say the same.
One utterance is a sequence of 7 to 29 frames of 12 LPC cepstrum coefficients. 30 utterances of each
speaker are for training; 370 others, recorded on other occasions, are for testing.

The recordings ship with the repository, see README.md beside this file. To build the shipped file
again from its source (downloads 6 MB):

    python -m experiments.data.japanese_vowels
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.data import shipped
from experiments.data.fetch import fetch
from experiments.data.manifest import AEON

SPEAKERS = 9
CHANNELS = 12
# of each speaker
TRAINING_UTTERANCES = 30
# from the description of the data: a frame is 25.6 ms long, and the next one starts 6.4 ms later
FRAME_SHIFT_MS = 6.4
PATH = Path(__file__).with_suffix(".npz")
SHA256 = "3b7ecfdafe5ae9279d86454483f39abbd7c672406a9a4ad6ca09bd641dd42c76"

# the arrays of each split: the frames of all utterances, one after the other, [sum of lengths, 12],
# and for each utterance its number of frames and its label [N]
_FIELDS = ("frames", "lengths", "labels")
_MEMBER = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"


class Utterances(NamedTuple):
    """N utterances, time-major and padded with zeros: numpy arrays, or JAX's within its functions.

    xs [T, N, 12] float32, lengths [N] int32 in 1..T, labels [N] int32 in 0..8 (speaker minus one).
    """

    xs: Any
    lengths: Any
    labels: Any


def load(split: Literal["train", "test"], path: Path = PATH) -> Utterances:
    """Read one split of the shipped file; T is the longest utterance of that split.

    Speakers stand in order, and each speaker's utterances in the order of the source.

    Args:
        split: "train" (270 utterances, 30 of each speaker) or "test" (370, 24 to 88 of each).
        path: the shipped file.

    Returns:
        The utterances; xs [T, N, 12], lengths [N], labels [N].

    Raises:
        InputError: the file is missing, or its SHA-256 is not the one of the shipped file.
    """
    arrays = shipped.read(path, SHA256)
    frames, lengths, labels = (arrays[f"{split}_{field}"] for field in _FIELDS)
    return Utterances(_pad(frames, lengths), lengths, labels)


def _pad(frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    valid = np.arange(lengths.max()) < lengths[:, None]
    batch_major = np.zeros((*valid.shape, CHANNELS), frames.dtype)
    batch_major[valid] = frames
    return np.ascontiguousarray(batch_major.swapaxes(0, 1))


def _parse(text: str) -> dict[str, np.ndarray]:
    """Read a .ts file: after `@data` a line per utterance, 12 channels and the speaker, by ":"."""
    _, _, data = text.partition("@data\n")
    utterances, labels = [], []
    for line in data.splitlines():
        *channels, speaker = line.split(":")
        values = [np.array(channel.split(","), np.float32) for channel in channels]
        utterances.append(np.stack(values, axis=-1))
        labels.append(int(speaker) - 1)
    frames = np.concatenate(utterances)
    lengths = np.array([len(utterance) for utterance in utterances], np.int32)
    return dict(zip(_FIELDS, (frames, lengths, np.array(labels, np.int32)), strict=True))


def rebuild(path: Path = PATH) -> str:
    """Fetch the source, write the shipped file anew, and return its SHA-256."""
    fetched = fetch(AEON)
    sources = [fetched[_MEMBER.format(split)] for split in ("TRAIN", "TEST")]
    arrays = {
        f"{split}_{field}": array
        for split, source in zip(("train", "test"), sources, strict=True)
        for field, array in _parse(source.read_text()).items()
    }
    return shipped.write(path, arrays)


if __name__ == "__main__":
    shipped.main(PATH, SHA256, rebuild)
