"""Built models on disk: complete or absent, checked before use, built by one process at a time.

::

    <folder>/<key>/manifest.json       the name, size, time and SHA-256 of each file
    <folder>/<key>/model.onnx ...
    <folder>/<key>.lock                held while <key> is built
    <folder>/.<key>.<process>.<time>/  being built; renamed to <key> when it is complete
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from headrace.repository.digests import sha256_of, write_atomically

MANIFEST = "manifest.json"


class _File(msgspec.Struct):
    size: int
    mtime_ns: int
    sha256: str


class GraphCache:
    """Entries are folders named by a key that stands for everything they were made of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """The complete folder of ``key``; ``build`` is given an empty one where there is none.

        A second process waits for the first one's result. An entry whose files are not what
        its manifest says is thrown away and built again.

        Raises:
            OSError: the cache cannot be written. Whatever ``build`` raises; nothing is left.
        """
        entry = self._folder / key
        if _is_sound(entry):
            return entry
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / f"{key}.lock"):
            if not _is_sound(entry):
                self._build(entry, build)
        return entry

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        for left in (entry, *self._folder.glob(f".{entry.name}.*")):  # crashed while building
            shutil.rmtree(left, ignore_errors=True)
        making = self._folder / f".{entry.name}.{os.getpid()}.{time.time_ns():x}"
        making.mkdir()
        try:
            build(making)
            files = {file.name: _describe(file) for file in sorted(making.iterdir())}
            write_atomically(making / MANIFEST, msgspec.json.encode(files))
            making.rename(entry)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _describe(path: Path) -> _File:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a manifest must not survive a power cut that its files did not
    info = path.stat()
    return _File(info.st_size, info.st_mtime_ns, sha256_of(path))


def _is_sound(entry: Path) -> bool:
    """Size and time as they were written; where only the time differs, the content decides."""
    try:
        manifest = msgspec.json.decode((entry / MANIFEST).read_bytes(), type=dict[str, _File])
        for name, noted in manifest.items():
            info = (entry / name).stat()
            if info.st_size != noted.size:
                return False
            if info.st_mtime_ns != noted.mtime_ns and sha256_of(entry / name) != noted.sha256:
                return False
    except (OSError, msgspec.DecodeError):
        return False
    return bool(manifest)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The kernel gives the lock back when the process ends, however it ends."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
