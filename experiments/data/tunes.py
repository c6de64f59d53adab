"""Folk tunes in abc notation: O'Neill's 1850 tunes and Ryan's Mammoth Collection.

A tune has a header (`M:` metre, `L:` unit length, `K:` key, and others) and a body, the notes.
Comments are dropped from both, and bodies that repeat an earlier one exactly: 3,068 tunes become
3,053.

Collections print the same tune under several names and with other rhythms and ornaments. A random
split would test on near copies of training tunes. `groups` finds them; split with

    splits.by_group(tunes.groups(found), validation=0.1, test=0.1)

Source: corpus folders `oneills1850` and `ryansMammoth` of the package music21. Its makers have the
permission of those who typed the tunes, so the tunes are fetched and never shipped.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

from experiments.data.fetch import fetch
from experiments.data.manifest import MUSIC21

# Eight pairs of tunes were read in each of four ranges of similarity. All of those from 0.02 to 0.1
# had a common strain; below 0.02, some share only a formula of the style.
SIMILARITY = 0.02
SHINGLE = 20


class Tune(NamedTuple):
    """The title, metre, unit length and key of the header, and the lines of the body."""

    title: str
    metre: str
    unit_length: str
    key: str
    body: str


def _default_unit_length(metre: str) -> str:
    """Return the unit length of the abc standard: 1/16 in metres below 3/4, else 1/8."""
    fraction = re.fullmatch(r"(\d+)/(\d+)", metre)
    short = fraction is not None and int(fraction[1]) / int(fraction[2]) < 0.75
    return "1/16" if short else "1/8"


def _parse_tune(text: str) -> Tune:
    # an empty line ends a tune, but a line that is only a comment does not
    lines = [re.sub("%.*", "", line).rstrip() for line in text.splitlines() if line[:1] != "%"]
    start = next(n for n, line in enumerate(lines) if line.startswith("K:")) + 1
    fields: dict[str, str] = {}
    for line in lines[:start]:
        fields.setdefault(line[:2], line[2:].strip())
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    metre = fields.get("M:", "")
    return Tune(
        title=fields.get("T:", ""),
        metre=metre,
        unit_length=fields.get("L:") or _default_unit_length(metre),
        key=fields["K:"],
        body="\n".join(lines[start:end]),
    )


def parse(text: str) -> list[Tune]:
    """Read the tunes of an abc file.

    A tune starts at a line `X:`, its body after the line `K:`. The body ends at an empty line.
    """
    return [_parse_tune(tune) for tune in re.split(r"^(?=X:)", text, flags=re.MULTILINE)[1:]]


def load(paths: Iterable[Path] | None = None) -> list[Tune]:
    """Read the tunes of ``paths``, by default all fetched files, without exact duplicates."""
    if paths is None:
        paths = fetch(MUSIC21).values()
    tunes = [tune for path in paths for tune in parse(path.read_text(encoding="utf-8"))]
    first: dict[str, Tune] = {}
    for tune in tunes:
        first.setdefault(tune.body, tune)
    return list(first.values())


def groups(tunes: list[Tune]) -> np.ndarray:
    """Return the group [N] int32 of each tune; near copies are in the same group.

    A tune is reduced to the letters of its notes, without octaves, accidentals, lengths, bars and
    ornaments. Two tunes are near copies if the Jaccard similarity of their sets of 20 letters in a
    row is at least `SIMILARITY`. A copy of a copy is in the same group.
    """
    letters = [re.sub(r'"[^"]*"|\{[^}]*\}|![^!]*!|[^A-Ga-g]', "", tune.body) for tune in tunes]
    shingles = CountVectorizer(analyzer="char", ngram_range=(SHINGLE, SHINGLE), binary=True)
    sets = shingles.fit_transform(letters)
    common = (sets @ sets.T).tocoo()
    sizes = np.asarray(sets.sum(axis=1)).ravel()
    similarity = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    near = similarity >= SIMILARITY
    pairs = (np.ones(near.sum()), (common.row[near], common.col[near]))
    _, found = connected_components(coo_array(pairs, shape=common.shape), directed=False)
    return found


def alphabet(tunes: list[Tune]) -> str:
    """Return all characters of the bodies, sorted."""
    return "".join(sorted(set("".join(tune.body for tune in tunes))))
