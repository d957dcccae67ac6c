"""Artefacts on disk: complete or absent, checked before use, built by one process at a time.

::

    <folder>/<key>/manifest.json       the name, size, times and SHA-256 of each file
    <folder>/<key>/model.onnx ...
    <folder>/<key>.lock                held while <key> is built
    <folder>/.<key>.<process>.<time>/  being built, or on its way out

A manifest's own time says when its entry was last used; a shared lock on it says that the
entry is in use. Locks are the kernel's: they go with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from headrace.digests import sha256_of, write_atomically
from headrace.errors import ConfigError

MANIFEST = "manifest.json"

MAX_MANIFEST_BYTES = 1024 * 1024
"""A few thousand files; entries have one to three."""

PRIVATE = 0o700
"""Mode of the cache folder: what is in it decides what is run, and it holds models."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class _File(msgspec.Struct):
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


class ArtifactCache:
    """Entries are folders named by a key that stands for everything they were made of.

    Args:
        max_bytes: after each build the entries that were used least recently go, until the
            others fit. One that is in use or being built stays, and so does the newest.
            None: no bound.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def find(self, key: str) -> Path | None:
        """The folder of ``key`` if it is there, complete and what its manifest says."""
        entry = self._folder / key
        if not _is_sound(entry):
            return None
        try:
            os.utime(entry / MANIFEST)
        except OSError:
            pass  # baked into an image that cannot be written: nothing is ever removed there
        return entry

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """The complete folder of ``key``; ``build`` is given an empty one where there is none.

        A second process waits for the first one's result. An entry whose files are not what
        its manifest says is thrown away and built again.

        Raises:
            OSError: the cache cannot be written. Whatever ``build`` raises; nothing is left.
        """
        found = self.find(key)
        if found is not None:
            return found
        entry = self._folder / key
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._lock_of(key)):
            if not _is_sound(entry):
                self._build(entry, build)
        self._trim(newest=entry)
        return entry

    def discard(self, key: str) -> None:
        """Removes an entry that turned out to be no good. Never raises for the disk's sake."""
        try:
            with _locked(self._lock_of(key)):
                self._remove(self._folder / key)
        except OSError:
            pass

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        for left in (entry, *self._folder.glob(f".{entry.name}.*")):  # crashed while building
            shutil.rmtree(left, ignore_errors=True)
        making = self._aside(entry)
        making.mkdir()
        try:
            build(making)
            files = {file.name: _describe(file) for file in sorted(making.iterdir())}
            write_atomically(making / MANIFEST, msgspec.json.encode(files))
            making.rename(entry)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _trim(self, newest: Path) -> None:
        if self._max_bytes is None:
            return
        entries = sorted(_entries(self._folder))
        room = self._max_bytes - sum(size for _, size, _ in entries)
        for _, size, entry in entries:
            if room >= 0:
                break
            if entry != newest and self._retire(entry):
                room += size

    def _retire(self, entry: Path) -> bool:
        """Removes an entry that nobody uses and nobody builds; whether it did."""
        try:
            with (
                _locked(self._lock_of(entry.name), wait=False),
                _locked(entry / MANIFEST, wait=False),
            ):
                self._remove(entry)
        except OSError:  # in use, or another process was quicker
            return False
        return True

    def _remove(self, entry: Path) -> None:
        aside = self._aside(entry)
        entry.rename(aside)  # in one step, so that nobody finds a half of it
        shutil.rmtree(aside, ignore_errors=True)

    def _lock_of(self, key: str) -> Path:
        return self._folder / f"{key}.lock"

    def _aside(self, entry: Path) -> Path:
        return self._folder / f".{entry.name}.{os.getpid()}.{time.time_ns():x}"


def private_folder(folder: Path) -> None:
    """Makes ``folder`` one that only this user can write: mode 0700 where it is ours.

    It may belong to root instead, as in an image, if no other user can write it. A folder that
    cannot be made or changed is left as it is: the next start is slower, no more.

    Raises:
        ConfigError: it, or something in it, belongs to another user; or others can write it.
    """
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        info = folder.stat()
    except OSError:
        return
    if info.st_uid not in {os.geteuid(), 0}:
        raise _not_private(folder, f"belongs to another user (uid {info.st_uid})")
    writable = info.st_mode & _OTHERS_WRITE
    if info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) != PRIVATE:
        try:
            folder.chmod(PRIVATE)
        except OSError:  # read-only: nobody writes there
            writable = 0
    elif writable:
        raise _not_private(folder, "can be written by other users")
    if writable:  # until now, so what is there need not be ours
        for path in folder.rglob("*"):
            if path.lstat().st_uid not in {os.geteuid(), 0}:
                raise _not_private(folder, f"holds files of another user, such as {path.name}")


def _not_private(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the cache folder {folder} {why}, who could replace the models that are served",
        hint="set cache_dir to a folder of the server's own user, or remove this one",
        field="cache_dir",
    )


def hold(entry: Path) -> BinaryIO:
    """Keeps an entry from being removed for want of room, until what is returned is closed.

    Raises:
        OSError: it is gone.
    """
    file = (entry / MANIFEST).open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    except BaseException:
        file.close()
        raise
    return file


def _entries(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Last use, bytes and path of each complete entry."""
    for manifest in folder.glob(f"[!.]*/{MANIFEST}"):
        try:
            used_ns = manifest.stat().st_mtime_ns
            size = sum(file.stat().st_size for file in manifest.parent.iterdir())
        except OSError:  # another process removes it
            continue
        yield used_ns, size, manifest.parent


def _describe(path: Path) -> _File:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a manifest must not survive a power cut that its files did not
    return _File(*_marks(path.lstat()), sha256_of(path))


def _marks(info: os.stat_result) -> tuple[int, int, int, int]:
    """What differs after every change: no program can set the time of change (ctime) back."""
    return info.st_size, info.st_ino, info.st_mtime_ns, info.st_ctime_ns


def _is_sound(entry: Path) -> bool:
    """Just the files that were written, unchanged; where their marks differ, by their content.

    Copied into an image they have other marks, and are hashed at each start.
    """
    try:
        with (entry / MANIFEST).open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        manifest = msgspec.json.decode(content[:MAX_MANIFEST_BYTES], type=dict[str, _File])
        if {file.name for file in entry.iterdir()} != {MANIFEST, *manifest}:
            return False  # a library may look into the folder for more than we name
        for name, noted in manifest.items():
            info = (entry / name).lstat()
            if not stat.S_ISREG(info.st_mode) or info.st_size != noted.size:
                return False
            noted_marks = (noted.size, noted.inode, noted.mtime_ns, noted.ctime_ns)
            if _marks(info) != noted_marks and sha256_of(entry / name) != noted.sha256:
                return False
    except (OSError, ValueError, msgspec.DecodeError):  # ValueError: it is not even text
        return False
    return bool(manifest)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Raises OSError: the file cannot be opened; or, unless ``wait``, somebody has the lock."""
    with path.open("rb" if path.name == MANIFEST else "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
