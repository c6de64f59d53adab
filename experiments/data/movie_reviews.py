"""Sentences of film reviews: does a sentence praise or blame? (VADER's ground truth).

At least 20 people rated each sentence from -4 to 4. The label is the sign of their mean.

The source has 10,605 sentences. 37 with mean 0 are dropped because they have no sign. Sentences
that repeat an earlier one, in any case and spacing, are dropped: 2. 10,566 remain.

Source: C. Hutto, E. Gilbert, ICWSM 2014, with sentences of B. Pang, L. Lee, ACL 2004; MIT licence;
in the source archive of vaderSentiment. Split the sentences with `splits.stratified_folds`.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.fetch import fetch
from experiments.data.manifest import VADER_SENTIMENT


class Sentences(NamedTuple):
    """N sentences with labels [N] int32 (1 praise, 0 blame) and mean ratings [N] float32."""

    texts: list[str]
    labels: np.ndarray
    ratings: np.ndarray


def parse(text: str) -> Sentences:
    """Read a line per sentence, number, mean rating and sentence by tabs, without repeated ones."""
    first: dict[str, tuple[str, float]] = {}
    for line in text.splitlines():
        _, rating, sentence = line.split("\t")
        if float(rating) != 0:
            first.setdefault(" ".join(sentence.lower().split()), (sentence, float(rating)))
    texts, ratings = zip(*first.values(), strict=True)
    signs = np.array(ratings, np.float32)
    return Sentences(list(texts), (signs > 0).astype(np.int32), signs)


def load(path: Path | None = None) -> Sentences:
    """Read the sentences from ``path``, by default the fetched file."""
    if path is None:
        (path,) = fetch(VADER_SENTIMENT).values()
    return parse(path.read_text(encoding="utf-8"))


def tokenize(sentence: str) -> list[str]:
    """Split a sentence into words and punctuation marks, in lower case; "don't" is one word."""
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", sentence.lower())
