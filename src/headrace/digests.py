"""SHA-256 of files, remembered by path, size and time of change.

Hashing 90 MB takes 60 ms, looking at the file a few microseconds; so a second start does not
hash. One small file for each hashed file: two processes never rewrite each other's notes.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

_SETTLED_NS = 2_000_000_000
"""A file changed so shortly before it was hashed could change again within the same tick of
the file system's clock, and look the same (git calls this "racily clean"); not remembered."""


class _Note(msgspec.Struct):
    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str


class DigestMemory:
    """Digests of files, kept in ``folder``; a folder that cannot be written only costs time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """The file's digest, in hexadecimal.

        Raises:
            OSError: the file cannot be read.
        """
        real = path.resolve()
        before = real.stat()
        note_path = self._folder / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
        seen = (str(real), before.st_size, before.st_mtime_ns, before.st_ino)
        try:
            note = msgspec.json.decode(note_path.read_bytes(), type=_Note)
            if (note.path, note.size, note.mtime_ns, note.inode) == seen:
                return note.sha256
        except (OSError, ValueError, msgspec.DecodeError):
            pass  # not there, or cut off by a crash: hash again
        digest = sha256_of(real)
        after = real.stat()
        same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if same and time.time_ns() - before.st_mtime_ns > _SETTLED_NS:
            try:
                write_atomically(note_path, msgspec.json.encode(_Note(*seen, digest)))
            except OSError:
                pass
        return digest


def sha256_of(path: Path) -> str:
    """Reads the whole file. Raises OSError where it cannot."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns():x}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_private(path: Path, mode: str) -> BinaryIO:
    """Opens it; where that makes the file, only this user can read it (0600). Raises OSError."""
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115 - the caller closes it
    return cast("BinaryIO", file)
