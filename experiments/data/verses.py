"""Verses of the Bible in English and Spanish, for translation (World English Bible, Reina-Valera).

Both texts come as modules of SWORD, one slot per verse of a canon. The two canons number their
slots differently, so verses are paired by chapter and number. Chapters are marked in the texts.

Of 31,076 pairs, three kinds are dropped, and 30,158 remain:

- where the texts give a chapter different numbers of verses: that chapter and the next one, because
  the boundary between them lies elsewhere (Jonah 1:17 is Jonah 2:1 in Spanish)
- pairs of which one text is more than twice as long as the other: one holds more than the verse
- pairs that repeat an earlier one

A few verses are still paired with their neighbours, in Judges 14 and 1 Chronicles 21 for example.
The Strong's numbers of the words cannot tell, because in many Psalms the Spanish module has those
of a neighbour.

Split by chapter:

    splits.by_group(np.array([verse.chapter for verse in found]), validation=0.05, test=0.05)

The Gospels, and Kings and Chronicles, tell the same events in similar words. Such a verse may stand
in the test set and its parallel in the training set.

Source: eBible.org, public domain, in the Debian packages sword-text-web and sword-text-sparv. Only
a system with apt-get can fetch them.
"""

import html
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from experiments.data.fetch import fetch
from experiments.data.manifest import SWORD_ENGLISH, SWORD_SPANISH, Package

Chapters: TypeAlias = dict[str, list[str]]
"""The verses of each chapter by its name, as "Gen.1", an empty string where one is missing."""


class Verse(NamedTuple):
    """A verse in two languages; the chapter is named as "Gen.1", verses count from 1."""

    chapter: str
    number: int
    english: str
    spanish: str


def slots(blocks: bytes, places: bytes, texts: bytes) -> list[tuple[int, str]]:
    """Read the format zText of SWORD: the block and the marked text of each slot.

    Args:
        blocks: per block, its offset and size in ``texts``, and its size when it is decompressed.
        places: per slot, its block, and the offset and size of its text in that block.
        texts: the blocks, compressed by zlib. A block holds a book.
    """
    books = [
        zlib.decompress(texts[start : start + size]) if size else b""
        for start, size, _ in struct.iter_unpack("<III", blocks)
    ]
    return [
        (block, books[block][start : start + size].decode() if size else "")
        for block, start, size in struct.iter_unpack("<IIH", places)
    ]


def plain(text: str) -> str:
    """Remove notes, titles and marks from a verse."""
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
    # these marks stand between words without a space, and so do words that follow one another
    text = re.sub(r"</?(div|l|lb|lg|milestone)\b[^>]*>|(?<=>)(?=<(w|transChange)\b)", " ", text)
    text = " ".join(html.unescape(re.sub("<[^>]*>", "", text)).split())
    return re.sub(r" ([,.;:?!’”)])", r"\1", text)


def chapters(found: Iterable[tuple[int, str]]) -> Chapters:
    """Gather the verses of each chapter from the slots; a slot with a mark starts a chapter."""
    gathered: Chapters = {}
    verses: list[str] = []
    book = None
    for block, text in found:
        if text and block != book:
            # the heading of a book belongs to no chapter, and no chapter has this list
            book, verses = block, []
        marks = re.findall(r'<chapter [^>]*osisID="([^"]+)"[^>]*sID=', text)
        if marks:
            verses = gathered[marks[-1]] = []
        else:
            verses.append(plain(text))
    for verses in gathered.values():
        while verses and not verses[-1]:
            verses.pop()
    return gathered


def pair(english: Chapters, spanish: Chapters) -> list[Verse]:
    """Pair the verses of the chapters that both texts have, and drop the doubtful pairs."""
    names = [name for name in spanish if name in english]
    differ = [len(english[name]) != len(spanish[name]) for name in names]
    first: dict[tuple[str, str], Verse] = {}
    for name, here, before in zip(names, differ, [False, *differ], strict=False):
        if here or before:
            continue
        for number, texts in enumerate(zip(english[name], spanish[name], strict=True), 1):
            shorter, longer = sorted(map(len, texts))
            if shorter and longer <= 2 * shorter:
                first.setdefault(texts, Verse(name, number, *texts))
    return list(first.values())


def _load_module(package: Package) -> Chapters:
    # by extension and testament
    files = {Path(member).name: path.read_bytes() for member, path in fetch(package).items()}
    found: Chapters = {}
    for testament in ("ot", "nt"):
        parts = (files[f"{testament}.{extension}"] for extension in ("bzs", "bzv", "bzz"))
        found |= chapters(slots(*parts))
    return found


def load() -> list[Verse]:
    """Read both fetched modules and pair their verses."""
    return pair(_load_module(SWORD_ENGLISH), _load_module(SWORD_SPANISH))
