"""Named entities in 500 Japanese sentences of an encyclopaedia (hironsancorpus).

Each word has a tag: `B-` starts an entity, `I-` goes on with it, `O` is outside. The kinds are ART
(artefact), DAT (date), LOC, MON (money), ORG, PER (percentage), PSN (person) and TIM. Two entities
start with `I-` in the source and are left so.

One sentence repeats an earlier one and is dropped: 499 remain. Split them by sentence with
`splits.folds(len(sentences))`.

Source: Hironsan, 2016, MIT licence; in the source archive of hironsancorpus.
"""

from pathlib import Path
from typing import NamedTuple

from experiments.data.fetch import fetch
from experiments.data.manifest import HIRONSANCORPUS


class Sentence(NamedTuple):
    """Words (or characters), their parts of speech in Japanese, and their tags, as many of each."""

    words: tuple[str, ...]
    parts_of_speech: tuple[str, ...]
    tags: tuple[str, ...]


def parse(text: str) -> list[Sentence]:
    """Read a line per word, by tabs, with an empty line after each sentence.

    The word comes first, its part of speech third, and its tag last.
    """
    blocks = [block.splitlines() for block in text.split("\n\n") if block.strip()]
    rows = [[line.split("\t") for line in block] for block in blocks]
    sentences = (
        Sentence(*zip(*((row[0], row[2], row[-1]) for row in block), strict=True)) for block in rows
    )
    return list({sentence.words: sentence for sentence in sentences}.values())


def load(path: Path | None = None) -> list[Sentence]:
    """Read the sentences from ``path``, by default the fetched file."""
    if path is None:
        (path,) = fetch(HIRONSANCORPUS).values()
    return parse(path.read_text(encoding="utf-8"))


def by_character(sentence: Sentence) -> Sentence:
    """Give each character the part of speech of its word; only the first keeps a `B-`."""
    characters = [
        (character, part_of_speech, tag.replace("B-", "I-") if place else tag)
        for word, part_of_speech, tag in zip(*sentence, strict=True)
        for place, character in enumerate(word)
    ]
    return Sentence(*zip(*characters, strict=True))
