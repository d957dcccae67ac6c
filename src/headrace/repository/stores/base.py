"""What a store can do, and how much of it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

UNREACHABLE = "store_unreachable"
NOT_FOUND = "store_not_found"
DENIED = "store_denied"
CHANGED = "store_changed"
WRONG_DIGEST = "store_digest"
NO_ROOM = "store_no_room"
UNSAFE = "store_unsafe"
STOPPED = "store_stopped"

TIMEOUT_S = 30.0
"""Of silence, also while connecting. A download that makes progress may take what it needs."""

CHUNK_BYTES = 1024 * 1024

MAX_FILES = 100_000
"""As many as the largest archives may hold; each costs a look at the start."""

MAX_SUMS_BYTES = 32 * 1024 * 1024
"""``SHA256SUMS`` of MAX_FILES files with names of 250 characters."""

SUMS = "SHA256SUMS"


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a store.

    Attributes:
        path: relative to the store, with slashes; not to be trusted before ``names`` saw it.
        size: in bytes; -1 where only :meth:`Store.describe` knows.
        tag: changes with the content (an ETag); "" where only ``describe`` knows.
        sha256: in hexadecimal, "" where the store does not say.
        md5: in hexadecimal; of the content, or (with ``part_bytes``) as S3 makes it of the
            digests of the parts of an upload: ``HEX-PARTS``. "" where it is not known.
        part_bytes: how large those parts are; 0 for a content in one piece.
    """

    path: str
    size: int = -1
    tag: str = ""
    sha256: str = ""
    md5: str = ""
    part_bytes: int = 0

    @property
    def identity(self) -> str:
        """Differs between two contents of one path."""
        return self.sha256 or self.tag

    @property
    def has_digest(self) -> bool:
        """Whether content can be held against more than its size."""
        return bool(self.sha256 or self.md5)


class Body(msgspec.Struct, frozen=True):
    """The content of a file from ``offset`` on, which may be less than what was asked for."""

    offset: int
    chunks: Iterator[bytes]


class Store(Protocol):
    """A place with files. Every call blocks, and ends within TIMEOUT_S of silence.

    All raise :class:`~headrace.errors.StoreError`; with code UNREACHABLE trying again may help.
    """

    label: str

    def list(self) -> list[RemoteFile]:
        """Everything there is, by path, as far as it can be told in one go."""
        ...

    def describe(self, file: RemoteFile) -> RemoteFile:
        """The same file with its size, its tag, and all that is known of its content.

        Raises:
            StoreError: it is not there (any more), or does not say how large it is.
        """
        ...

    def open(self, file: RemoteFile, offset: int) -> AbstractContextManager[Body]:
        """Its content, from ``offset`` or from the beginning.

        Args:
            file: as :meth:`describe` gave it.
            offset: less than its size.

        Raises:
            StoreError: as above, also while reading; CHANGED where the store can tell that
                the content is not what was described.
        """
        ...


class Patience(msgspec.Struct, frozen=True):
    """How often to try again.

    Attributes:
        tries: in a row without a megabyte of progress.
        pauses_s: before the second try, the third ...; the last one repeats.
    """

    tries: int = 5
    pauses_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)

    def pause_s(self, failures: int) -> float:
        """Before trying again after so many failures in a row, from 1 on."""
        return self.pauses_s[min(failures, len(self.pauses_s)) - 1]


Progress = Callable[[str], None]
Stop = Callable[[], bool]
"""Whether to give up: asked before each megabyte and while waiting."""
