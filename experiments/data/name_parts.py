"""Parts of names of people and companies: a label per word (probablepeople).

The source has 4,281 strings, 2,898 of people and 1,383 of companies. Many repeat an earlier one:
2,880 different strings remain. A string that is labelled in several ways, such as a single word
that is a given name or a surname, keeps its most frequent labels, the first of equals.

Split by string:

    splits.by_group(np.arange(len(names)), validation=0.1, test=0.1)

Source: F. Gregg, C. Deng et al., 2014, MIT licence; in the source archive of probablepeople.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.data.fetch import fetch
from experiments.data.manifest import PROBABLEPEOPLE


class Name(NamedTuple):
    """The words of a name with their punctuation, and as many labels."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


def parse(text: str) -> list[Name]:
    """Read a collection of elements `Name`, which hold an element per word, named as its label."""
    names = ElementTree.fromstring(text)
    return [
        Name(tuple(word.text or "" for word in name), tuple(word.tag for word in name))
        for name in names
    ]


def unique(names: Iterable[Name]) -> list[Name]:
    """Keep each string once, with its most frequent labels."""
    labels: dict[tuple[str, ...], Counter[tuple[str, ...]]] = defaultdict(Counter)
    for name in names:
        labels[name.words][name.labels] += 1
    # of equal counts, `most_common` keeps the first
    return [Name(words, counts.most_common(1)[0][0]) for words, counts in labels.items()]


def load(paths: Iterable[Path] | None = None) -> list[Name]:
    """Read the names of ``paths``, by default both fetched files, without repeated strings."""
    if paths is None:
        paths = fetch(PROBABLEPEOPLE).values()
    return unique(name for path in paths for name in parse(path.read_text(encoding="utf-8")))
