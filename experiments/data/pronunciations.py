"""English words and their pronunciations: letters to phonemes (CMU Pronouncing Dictionary).

A word may have several pronunciations. All of them count as right.

The source has 126,052 words. Only words of a to z and the apostrophe are kept, 124,926, because
the others have marks that are not spoken (hyphens, and the periods of abbreviations). Digits at the
end of a vowel mark its stress. They are dropped by default, which leaves 39 phonemes; compare word
errors only with those of models that predict the same ones.

Split by word:

    splits.by_group(np.arange(len(words.spellings)), validation=0.05, test=0.05)

Forms of one word ("walk", "walks") may then stand in different sets, as in published splits.

Source: Carnegie Mellon University, 1993-2015, BSD-2-Clause; `cmudict.dict` of the package cmudict.
References: K. Rao et al., "Grapheme-to-phoneme conversion using long short-term memory recurrent
neural networks", 2015; K. Yao, G. Zweig, "Sequence-to-sequence neural net models for
grapheme-to-phoneme conversion", 2015.
"""

import re
from pathlib import Path
from typing import NamedTuple, TypeAlias

from experiments.data.fetch import fetch
from experiments.data.manifest import CMUDICT

LETTERS = "'abcdefghijklmnopqrstuvwxyz"

Pronunciation: TypeAlias = tuple[str, ...]
"""Phonemes in order, as "HH", "AH", "L", "OW"."""


class Words(NamedTuple):
    """N words, and the different pronunciations of each, the usual one first."""

    spellings: list[str]
    pronunciations: list[tuple[Pronunciation, ...]]


def parse(text: str, *, stress: bool = False) -> Words:
    """Read a line per pronunciation: a word, phonemes, and a comment after a hash sign.

    Further pronunciations of "word" have the word "word(2)" and so on.
    """
    # the inner dictionary is a set that keeps the order
    found: dict[str, dict[Pronunciation, None]] = {}
    for line in text.splitlines():
        word, *phonemes = line.split("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)
        if set(word) <= set(LETTERS):
            spoken = phonemes if stress else [phoneme.rstrip("012") for phoneme in phonemes]
            found.setdefault(word, {})[tuple(spoken)] = None
    return Words(list(found), [tuple(each) for each in found.values()])


def load(path: Path | None = None, *, stress: bool = False) -> Words:
    """Read the words from ``path``, by default the fetched file; keep the marks of ``stress``."""
    if path is None:
        (path,) = fetch(CMUDICT).values()
    return parse(path.read_text(encoding="utf-8"), stress=stress)


def phonemes(words: Words) -> tuple[str, ...]:
    """Return all phonemes that occur, sorted: 39 without stress."""
    return tuple(sorted({p for each in words.pronunciations for spoken in each for p in spoken}))
