"""The digests a person expects, and the ones that are found."""

from __future__ import annotations

import hashlib
import re
from typing import IO

from headrace.errors import PullError

CHUNK_BYTES = 1024 * 1024

_HEX = re.compile(r"[0-9a-f]{64}")


def copy_hashed(source: IO[bytes], target: IO[bytes], *, limit: int) -> tuple[int, str]:
    """Copies a stream and returns its size in bytes and its digest.

    Raises:
        PullError: there is more than ``limit`` bytes in it.
    """
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK_BYTES):
        size += len(chunk)
        if size > limit:
            raise PullError(f"a file is larger than the {limit:,} bytes it claims")
        digest.update(chunk)
        target.write(chunk)
    return size, digest.hexdigest()


class Expected:
    """The digests a person gave: of the archive, and of files in it.

    Attributes:
        archive: of what is downloaded, "" where none was given.
        files: path or file name -> digest.

    Raises:
        PullError: one is not ``HEX`` or ``FILE=HEX``, or two of them disagree.
    """

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.archive = ""
        self.files: dict[str, str] = {}
        for text in texts:
            name, equals, digits = text.rpartition("=")
            digest = digits.strip().lower().removeprefix("sha256:")
            if not _HEX.fullmatch(digest) or (equals and not name):
                raise PullError(
                    f"--sha256 {text!r} is not a SHA-256 digest",
                    hint="64 hexadecimal digits for the download, or FILE=DIGITS for a file in it",
                )
            known = self.files.get(name) if name else self.archive
            if known and known != digest:
                raise PullError(f"two different digests are given for {name or 'the download'}")
            if name:
                self.files[name] = digest
            else:
                self.archive = digest

    def check_archive(self, name: str, got: str) -> None:
        """Compares the digest of the download.

        Raises:
            PullError: it is another one.
        """
        if self.archive and self.archive != got:
            raise PullError(
                f"{name} has SHA-256 {got}, expected {self.archive}",
                hint="do not use it: it is not the file the digest was made for (the digest of a "
                "file inside it is given as --sha256 FILE=HEX)",
            )

    def check_files(self, digests: dict[str, str]) -> None:
        """Compares the digests of unpacked files, path -> digest.

        Raises:
            PullError: one differs, is not there, or its name fits several.
        """
        for name, digest in self.files.items():
            fits = [path for path in digests if path == name or path.endswith("/" + name)]
            if len(fits) != 1:
                which = ", ".join(fits) or "none"
                raise PullError(
                    f"--sha256 {name}=… fits {len(fits)} files ({which})",
                    hint=f"unpacked are: {', '.join(digests)}",
                )
            if digests[fits[0]] != digest:
                raise PullError(
                    f"{fits[0]} has SHA-256 {digests[fits[0]]}, expected {digest}",
                    hint="do not use it: it is not the file the digest was made for",
                )
