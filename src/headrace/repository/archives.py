"""Opening archives that strangers made: zip (wheels) and tar (npm), files only.

An archive may name files outside the folder, links, devices, one file twice, two files that
a case-insensitive disk cannot tell apart, and gigabytes in a few bytes. Everything that
could be meant badly is refused with the name of the member; nothing is silently repaired.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, Self, cast

from headrace.errors import PullError
from headrace.repository.expected import copy_hashed

MAX_MEMBERS = 100_000
"""The largest wheels hold some ten thousand files."""

MAX_RATIO = 100
"""Unpacked bytes per packed byte. Weights hardly compress, JSON does some 10 times; deflate
can reach 1,032, which is what a bomb uses."""

RATIO_FLOOR_BYTES = 256 * 1024 * 1024
"""Below this the ratio does not matter: a small archive of a repetitive vocabulary."""

MAX_UNPACKED_BYTES = 64 * 1024**3

MAX_PATH_LENGTH = 1024

MAX_READ_BYTES = 16 * 1024 * 1024
"""The most that one read of an archive may ask for: tar's own headers name their size."""

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError,
    NotImplementedError, ValueError, OverflowError, RecursionError, lzma.LZMAError, struct.error,
)  # fmt: skip


class Archive(Protocol):
    """An opened archive.

    Attributes:
        name: for errors.
        packed_bytes: size of the archive itself.
        members: name -> bytes unpacked, of regular files only, in the archive's order.
        odd: name -> what it is, of members that are neither regular files nor folders.
    """

    name: str
    packed_bytes: int
    members: dict[str, int]
    odd: dict[str, str]

    def open(self, member: str) -> IO[bytes]:
        """The content of a member."""
        ...

    def close(self) -> None:
        """Gives the file back."""
        ...


def open_archive(path: Path, name: str) -> Archive | None:
    """Opens ``path`` as what ``name`` says it is; None where that is a single file.

    Raises:
        PullError: it is no such archive, is broken, or was made to do harm.
    """
    lower = name.lower()
    with _reading(name):
        if lower.endswith((".whl", ".zip")):
            return _Zip(path, name)
        if lower.endswith((".tar.gz", ".tgz", ".tar")):
            return _Tar(path, name, compressed=not lower.endswith(".tar"))
    return None


def read_text(archive: Archive, member: str, *, limit: int = 1024 * 1024) -> str:
    """A small text member; characters that are not UTF-8 are replaced.

    Raises:
        PullError: the archive is broken.
    """
    with _reading(archive.name), archive.open(member) as source:
        return source.read(limit).decode(errors="replace")


def unpack(archive: Archive, wanted: Mapping[str, str], folder: Path) -> dict[str, tuple[int, str]]:
    """Writes members below ``folder`` and returns path -> (bytes, SHA-256).

    Args:
        archive: as opened.
        wanted: name of a member -> relative path below ``folder``.
        folder: an empty folder.

    Raises:
        PullError: two of the paths collide, all is far larger than the archive, a member is
            not as long as it claims, or the archive is broken.
        OSError: the disk refuses.
    """
    _refuse_collisions(wanted.values())
    _refuse_bombs(archive, sum(archive.members[name] for name in wanted))
    written: dict[str, tuple[int, str]] = {}
    for name, size in archive.members.items():
        if name not in wanted:
            continue
        target = folder / wanted[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        with _reading(archive.name), archive.open(name) as source, target.open("xb") as file:
            got, digest = copy_hashed(source, file, limit=size)
        if got != size:
            raise PullError(f"{archive.name}: {name} is {got:,} bytes, but claims {size:,}")
        written[wanted[name]] = (got, digest)
    return written


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Translates what broken archives raise in the libraries that read them."""
    try:
        yield
    except _BROKEN as error:
        raise _broken(name, error) from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise  # the disk's
        raise _broken(name, error) from None  # a zip that points before its own beginning


def _broken(name: str, error: Exception) -> PullError:
    return PullError(
        f"{name} is broken, or is not the kind of archive its name says: {error}",
        hint="fetch it again; compare its digest with the publisher's",
    )


def safe_name(name: str) -> str:
    """A member's name as a relative path with forward slashes.

    Raises:
        PullError: it is absolute, leaves its folder, or is made of characters that have no
            business in a file name.
    """
    path = name.removeprefix("./")
    parts = path.split("/")
    harmless = (
        0 < len(path) <= MAX_PATH_LENGTH
        and path.isprintable()
        and "\\" not in path
        and not (len(path) > 1 and path[1] == ":")  # C:name
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )
    if not harmless:
        raise PullError(
            f"the archive has a member with the unsafe name {name[:200]!r}",
            hint="nothing was unpacked; an archive like this was made to do harm, or by a broken "
            "tool",
        )
    return path


def _refuse_collisions(paths: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        folded = _folded(path)
        if folded in seen:
            raise PullError(
                f"{seen[folded]!r} and {path!r} would be one file",
                hint="say which one with --file",
            )
        seen[folded] = path
    for folded, path in seen.items():
        for parent in PurePosixPath(folded).parents:
            if str(parent) in seen:
                raise PullError(f"{seen[str(parent)]!r} is a file and the folder of {path!r}")


def _folded(path: str) -> str:
    """What a disk that ignores case and composition sees."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _refuse_bombs(archive: Archive, unpacked: int) -> None:
    allowed = max(RATIO_FLOOR_BYTES, MAX_RATIO * archive.packed_bytes)
    if unpacked > min(allowed, MAX_UNPACKED_BYTES):
        raise PullError(
            f"{archive.name} has {archive.packed_bytes:,} bytes and claims to hold {unpacked:,}",
            hint=f"more than {MAX_RATIO} times its size is taken for a decompression bomb",
        )


def _add_member(archive: Archive, name: str, size: int) -> None:
    if name in archive.members or name in archive.odd:
        raise PullError(f"{archive.name} has two members called {name!r}")
    archive.members[name] = size
    if len(archive.members) > MAX_MEMBERS:
        raise PullError(f"{archive.name} has more than {MAX_MEMBERS:,} members")


class _Zip:
    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.packed_bytes = path.stat().st_size
        self.members: dict[str, int] = {}
        self.odd: dict[str, str] = {}
        self._zip = zipfile.ZipFile(path)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        try:
            for info in self._zip.infolist():
                self._take(info)
        except BaseException:
            self._zip.close()
            raise

    def open(self, member: str) -> IO[bytes]:
        return self._zip.open(self._infos[member])

    def close(self) -> None:
        self._zip.close()

    def _take(self, info: zipfile.ZipInfo) -> None:
        # zipfile cuts names at a zero byte; another reader may not.
        name = safe_name(info.orig_filename.removesuffix("/"))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            return
        if kind not in (0, stat.S_IFREG):
            self.odd[name] = "a symbolic link" if stat.S_ISLNK(kind) else "not a regular file"
        elif info.flag_bits & 1:
            self.odd[name] = "encrypted"
        else:
            _add_member(self, name, info.file_size)
            self._infos[name] = info


class _Tar:
    def __init__(self, path: Path, name: str, *, compressed: bool) -> None:
        self.name = name
        self.packed_bytes = path.stat().st_size
        self.members: dict[str, int] = {}
        self.odd: dict[str, str] = {}
        plain = path.open("rb")
        self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if compressed else plain
        self._plain = plain
        self._infos: dict[str, tarfile.TarInfo] = {}
        try:
            limit = max(RATIO_FLOOR_BYTES, MAX_RATIO * self.packed_bytes)
            bounded = cast("IO[bytes]", _Bounded(self._file, min(limit, MAX_UNPACKED_BYTES), name))
            self._tar = tarfile.TarFile(fileobj=bounded, tarinfo=_Header)
            for info in self._tar:
                self._take(info)
        except BaseException:
            plain.close()
            raise

    def open(self, member: str) -> IO[bytes]:
        content = self._tar.extractfile(self._infos[member])
        assert content is not None, "only regular files are kept"
        return content

    def close(self) -> None:
        self._tar.close()
        self._file.close()
        self._plain.close()

    def _take(self, info: tarfile.TarInfo) -> None:
        if info.size < 0:  # also by way of an extended header, which _Header does not see
            raise tarfile.ReadError("a member with a negative size")
        if info.isdir() and info.name in (".", "./", ""):
            return
        name = safe_name(info.name.removesuffix("/"))
        if info.isdir():
            return
        if not info.isreg() or info.issparse():
            kind = "a link" if info.issym() or info.islnk() else "not a regular file"
            self.odd[name] = kind
        else:
            _add_member(self, name, info.size)
            self._infos[name] = info


class _Header(tarfile.TarInfo):
    """Refuses negative sizes, which send older Pythons in circles (CVE-2025-8194)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError("a header with a negative size")
        return header


class _Bounded:
    """A readable file that ends a bomb: in all, and in what one header may ask for.

    ``tarfile`` reads extended headers whole, whatever size they claim, and skips over
    members by seeking, which unpacks them.
    """

    def __init__(self, file: IO[bytes], limit: int, name: str) -> None:
        self._file = file
        self._limit = limit
        self._name = name

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_READ_BYTES:
            raise PullError(f"{self._name} has a header of {size:,} bytes")
        self._check(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._limit + MAX_READ_BYTES:
            raise PullError(
                f"{self._name} unpacks to more than {self._limit:,} bytes",
                hint=f"more than {MAX_RATIO} times its size is taken for a decompression bomb",
            )
