"""Books of the Canterbury corpus as bytes, for language models of characters.

The last tenth of a text is the test set, and the tenth before it is the validation set. Nothing is
dropped.

| name | text | bytes |
|---|---|---|
| plrabn12 | J. Milton, Paradise Lost | 481,861 |
| lcet10 | Proceedings of the Workshop on Electronic Texts, 1992 | 426,754 |
| alice29 | L. Carroll, Alice's Adventures in Wonderland | 152,089 |
| asyoulik | W. Shakespeare, As You Like It | 125,179 |

Source: R. Arnold, T. Bell, 1997; public domain; test data in the source archive of brotli.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.fetch import fetch
from experiments.data.manifest import BROTLI

NAMES = ("plrabn12", "lcet10", "alice29", "asyoulik")
SYMBOLS = 256


class Text(NamedTuple):
    """Three parts of a text in reading order, each a row of bytes [n] uint8."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(content: bytes) -> Text:
    """Cut a text at eight and at nine tenths."""
    symbols = np.frombuffer(content, np.uint8)
    tenth = len(symbols) // 10
    return Text(*np.split(symbols, [len(symbols) - 2 * tenth, len(symbols) - tenth]))


def load(name: str, path: Path | None = None) -> Text:
    """Read the text ``name`` of `NAMES` from ``path``, by default the fetched file."""
    if path is None:
        (path,) = (file for file in fetch(BROTLI).values() if file.stem == name)
    return split(path.read_bytes())
