"""``provenance.json``: where the files of a model's folder came from, and their digests."""

from __future__ import annotations

import email.parser
import re
from pathlib import Path

import msgspec

from headrace.digests import sha256_of
from headrace.errors import PullError
from headrace.repository.archives import Archive, read_text

FILE_NAME = "provenance.json"

MAX_BYTES = 16 * 1024 * 1024

_LICENCE_CLASSIFIER = re.compile(r"License :: (?:OSI Approved :: )?(.+)")


class ArchiveRecord(msgspec.Struct, frozen=True):
    """What was downloaded: the registry's name for it, bytes, SHA-256."""

    name: str
    size: int
    sha256: str


class FileRecord(msgspec.Struct, frozen=True):
    """One file: its path in the folder, its name in the archive, bytes, SHA-256."""

    path: str
    member: str
    size: int
    sha256: str


class Provenance(msgspec.Struct, frozen=True):
    """The whole of ``provenance.json``.

    Attributes:
        source: what was asked for, without credentials (``pypi:NAME==VERSION`` ...).
        version: of the package, "" for a file or an address.
        requested: the patterns that chose the files; empty where nobody said.
        license: as the package declares it, "" where it does not. The weights may have one
            of their own.
        pulled_at: UTC, ISO 8601.
        headrace: the version that wrote this.
    """

    source: str
    version: str
    requested: tuple[str, ...]
    archive: ArchiveRecord
    files: tuple[FileRecord, ...]
    license: str
    pulled_at: str
    headrace: str


def read_provenance(folder: Path) -> Provenance | None:
    """What the folder says of itself, None where it says nothing.

    Raises:
        PullError: the file is there and cannot be understood.
    """
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
        return msgspec.json.decode(content, type=Provenance)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PullError(f"{path} cannot be understood: {error}") from None


def changed_file(folder: Path, provenance: Provenance) -> str:
    """The first file that is not as it was pulled, "" where all are."""
    for record in provenance.files:
        path = folder / record.path
        try:
            same = path.stat().st_size == record.size and sha256_of(path) == record.sha256
        except OSError:
            same = False
        if not same:
            return record.path
    return ""


def declared_licence(archive: Archive) -> str:
    """What a wheel's METADATA or an npm package.json declares, "" where neither does.

    METADATA: https://packaging.python.org/en/latest/specifications/core-metadata/.
    """
    for member in archive.members:
        folder, _, name = member.rpartition("/")
        if name == "METADATA" and folder.endswith(".dist-info") and "/" not in folder:
            return _wheel_licence(read_text(archive, member))
        if member == "package/package.json":
            return _npm_licence(read_text(archive, member))
    return ""


def _wheel_licence(metadata: str) -> str:
    headers = email.parser.HeaderParser().parsestr(metadata)
    expression = str(headers.get("License-Expression", "")).strip()
    classified = [
        match[1]
        for value in headers.get_all("Classifier", [])
        if (match := _LICENCE_CLASSIFIER.fullmatch(str(value).strip()))
    ]
    # License is free text, and sometimes the whole text of a licence.
    free = str(headers.get("License", "")).strip().partition("\n")[0][:200]
    return expression or free or ", ".join(classified)


def _npm_licence(text: str) -> str:
    class _Package(msgspec.Struct):
        license: str = ""

    try:
        return msgspec.json.decode(text, type=_Package).license
    except msgspec.DecodeError:
        return ""
