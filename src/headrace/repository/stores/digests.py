"""What of a file's content is known beforehand, and does it hold.

Best is a SHA-256. S3 keeps one only where the uploader asked for it, but mostly the ETag is an
MD5: of the content, or, after an upload in parts, of the MD5 of each part, with the number of
parts behind a dash. That protects from accidents, not from whoever can write to the bucket;
so does the SHA-256 that the bucket itself keeps. Against those a ``SHA256SUMS`` helps whose
digest was given.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from headrace.repository.stores.base import CHUNK_BYTES, RemoteFile


class Mismatch(msgspec.Struct, frozen=True):
    """What a digest was to be, and what it is."""

    algorithm: str
    expected: str
    got: str


class Digests:
    """Digests of a content as it comes in.

    Args:
        file: says which of them are needed; SHA-256 is always made.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.reset()

    def reset(self) -> None:
        """As if nothing had come."""
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._parts: list[bytes] = []
        self._in_part = 0

    def update(self, chunk: bytes) -> None:
        """The next bytes."""
        self.size += len(chunk)
        self._sha256.update(chunk)
        if not self._file.md5:
            return
        part_bytes = self._file.part_bytes
        if not part_bytes:
            self._md5.update(chunk)
            return
        while chunk:
            now, chunk = self._split(chunk, part_bytes)
            self._md5.update(now)
            self._in_part += len(now)
            if self._in_part == part_bytes:
                self._end_part()

    def read(self, path: Path) -> None:
        """Everything in a file. Raises OSError."""
        with path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                self.update(chunk)

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._sha256.hexdigest()

    def mismatch(self) -> Mismatch | None:
        """What is not as the store said, now that all bytes are in."""
        file = self._file
        if self.size != file.size:
            return Mismatch("size", str(file.size), str(self.size))
        if file.sha256 and self.sha256 != file.sha256:
            return Mismatch("SHA-256", file.sha256, self.sha256)
        if file.md5 and (md5 := self._final_md5()) != file.md5:
            return Mismatch("MD5", file.md5, md5)
        return None

    def _split(self, chunk: bytes, part_bytes: int) -> tuple[bytes, bytes]:
        end = part_bytes - self._in_part
        return (chunk, b"") if len(chunk) <= end else (chunk[:end], chunk[end:])

    def _end_part(self) -> None:
        self._parts.append(self._md5.digest())
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._in_part = 0

    def _final_md5(self) -> str:
        if not self._file.part_bytes:
            return self._md5.hexdigest()
        parts = [*self._parts, self._md5.digest()] if self._in_part else self._parts
        whole = hashlib.md5(b"".join(parts), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(parts)}"


def holds(path: Path, file: RemoteFile) -> str:
    """The SHA-256 of a file here if it is known to be ``file``, else "".

    Raises:
        OSError: it cannot be read.
    """
    if not file.has_digest or path.stat().st_size != file.size:
        return ""
    digests = Digests(file)
    digests.read(path)
    return "" if digests.mismatch() else digests.sha256
