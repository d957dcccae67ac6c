"""Makes a folder mirror a store: look, make room, fetch, verify, land, take away.

In this order, so that whatever goes wrong leaves a folder that can be served: a version lands
when all of it is here and verified, and what the store no longer has goes last.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.errors import StoreError
from headrace.repository.stores.base import (
    NO_ROOM,
    STOPPED,
    UNREACHABLE,
    Patience,
    Progress,
    RemoteFile,
    Stop,
    Store,
)
from headrace.repository.stores.fetch import Fetcher
from headrace.repository.stores.placing import assemble, place_file, place_folder, refuse_links
from headrace.repository.stores.plan import (
    Entry,
    Model,
    Plan,
    gone_targets,
    is_in,
    make_plan,
    version_of,
)
from headrace.repository.stores.s3 import S3Store
from headrace.repository.stores.spec import StoreSpec
from headrace.repository.stores.web import WebStore
from headrace.repository.stores.workshop import Note, Workshop, workshop

RESERVE_BYTES = 64 * 1024 * 1024
"""Left free on the disk: a full one is everybody's problem, and logs need some too."""

_FOR_ALL = (UNREACHABLE, STOPPED, NO_ROOM)
"""Codes that end a sync; any other refuses one version."""


class Refused(msgspec.Struct, frozen=True):
    """A model or version that did not land; what was there before still is."""

    target: str
    error: StoreError


class SyncResult(msgspec.Struct, frozen=True):
    """What a sync did.

    Attributes:
        folder: the mirror, to be served.
        landed: ``MODEL/VERSION``, ``MODEL``, or the path of a model's own file, as they came.
        removed: the same, of what the store no longer has.
        refused: what did not land, each with its reason.
        fetched_files: how many files were downloaded.
        fetched_bytes: how many bytes; what an earlier sync had of them already is not counted.
        size_only: files of which the store says nothing but their size.
        skipped: files of the store that belong to no model.
    """

    folder: Path
    landed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    fetched_files: int = 0
    fetched_bytes: int = 0
    size_only: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def _say_nothing(line: str) -> None:
    del line


def _go_on() -> bool:
    return False


def open_store(spec: StoreSpec, redirect_hosts: Sequence[str] = ()) -> Store:
    """The store of a spec; nothing is asked yet.

    Raises:
        MissingExtra: it needs a package that is not installed.
        StoreError: it cannot be what the environment says.
    """
    return S3Store(spec) if spec.kind == "s3" else WebStore(spec, redirect_hosts=redirect_hosts)


def sync(
    spec: StoreSpec,
    folder: Path,
    *,
    max_bytes: int,
    redirect_hosts: Sequence[str] = (),
    progress: Progress = _say_nothing,
    stop: Stop = _go_on,
    patience: Patience | None = None,
) -> SyncResult:
    """Makes ``folder`` mirror a store. Blocks; two at once take turns, in any processes.

    Args:
        spec: the store.
        folder: not there, empty, or the mirror of this store.
        max_bytes: the most that may be in ``folder``, old and new versions together.
        redirect_hosts: that a web server may redirect to, beside itself.
        progress: is told, in a line each, what is being done.
        stop: says whether to give up; the next sync goes on where this one was.
        patience: how often to try again what may work later.

    Returns:
        What was done. Versions that were refused are in it, and do not keep others from landing.

    Raises:
        MissingExtra: ``spec`` is a bucket and boto3 is not installed.
        StoreError: the store is not reachable, denies, holds unsafe names or no models; there
            is no room; or every model was refused and nothing is there. What was visible in
            ``folder`` still is, and can be served.
    """
    store = open_store(spec, redirect_hosts)
    fetcher = Fetcher(store, patience=patience or Patience(), progress=progress, stop=stop)
    with workshop(folder, spec.label, progress, stop) as shop:
        plan = make_plan(fetcher.list(), spec)
        result = _Sync(shop, plan, fetcher, progress).run(spec.label, max_bytes)
        if result.refused and not shop.files:
            raise result.refused[0].error
        return result


class _Sync:
    """One run; what is known of each file while it lasts."""

    def __init__(self, shop: Workshop, plan: Plan, fetcher: Fetcher, progress: Progress) -> None:
        self._shop = shop
        self._plan = plan
        self._fetcher = fetcher
        self._progress = progress
        self._here: dict[str, Note] = {}
        self._wanted: dict[str, RemoteFile] = {}
        self._sources: dict[str, tuple[Path, str]] = {}
        self._refused: dict[str, StoreError] = {}
        self._landed: list[str] = []
        self._removed: list[str] = []
        self._bytes = 0

    def run(self, label: str, max_bytes: int) -> SyncResult:
        """All of it."""
        for path, entry in self._plan.files().items():
            self._look(path, entry)
        self._make_room(label, max_bytes)
        for model in self._plan.models.values():
            self._fetch(model)
            self._land(model)
        self._remove_gone()
        return SyncResult(
            folder=self._shop.folder,
            landed=tuple(self._landed),
            removed=tuple(self._removed),
            refused=tuple(Refused(target, error) for target, error in self._refused.items()),
            fetched_files=len(self._sources),
            fetched_bytes=self._bytes,
            size_only=tuple(path for path in self._sources if not self._wanted[path].has_digest),
            skipped=self._plan.skipped,
        )

    def _look(self, path: str, entry: Entry) -> None:
        """Is it here, or what exactly must be fetched?"""
        note = self._shop.here(path, entry.remote)
        if note is None:
            try:
                described = self._fetcher.describe(entry.remote)
            except StoreError as error:
                self._refuse(self._target(path), error)
                return
            note = self._shop.here(path, described)
            if note is None:
                self._wanted[path] = described
                return
        self._here[path] = note

    def _target(self, path: str) -> str:
        """The target that a file belongs to; the model's name for a model's own files."""
        name, version = path.partition("/")[0], version_of(path)
        return f"{name}/{version}" if version else name

    def _refuse(self, target: str, error: StoreError) -> None:
        if error.code in _FOR_ALL:
            raise error
        self._refused.setdefault(target, error)

    def _make_room(self, label: str, max_bytes: int) -> None:
        """Removes what the store no longer has, the oldest first, if that is what it takes."""
        shop = self._shop
        for path in list(self._wanted):
            if {self._target(path), path.partition("/")[0]} & self._refused.keys():
                del self._wanted[path]  # it would not land
        parts = {path: shop.part(path, file) for path, file in self._wanted.items()}
        in_parts = shop.keep_parts(parts.values())
        needed = sum(file.size for file in self._wanted.values()) - in_parts
        if needed <= 0:
            return
        here = sum(note.size for note in shop.files.values()) + in_parts
        free = shutil.disk_usage(shop.folder).free - RESERVE_BYTES
        short = needed - min(max_bytes - here, free)
        gone = sorted(gone_targets(shop.files, self._plan), key=self._age)
        if short > sum(map(self._size, gone)):
            raise self._no_room(label, needed, here, max_bytes, free)
        for target in gone:
            if short <= 0:
                break
            short -= self._size(target)
            self._progress(f"removing {target} to make room")
            self._remove(target)

    def _no_room(self, label: str, needed: int, here: int, max_bytes: int, free: int) -> StoreError:
        sizes: dict[str, int] = {}
        for path, file in self._wanted.items():
            target = self._target(path)
            sizes[target] = sizes.get(target, 0) + file.size
        largest = sorted(sizes.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{target} {size:,}" for target, size in largest[:8])
        more = f" and {len(largest) - 8} more" if len(largest) > 8 else ""
        limit = (
            f"{max_bytes:,} are allowed, {here:,} are here"
            if max_bytes - here <= free
            else f"the disk has {max(free, 0):,} to spare"
        )
        return StoreError(
            f"{label}: {needed:,} bytes to fetch do not fit: {limit}",
            code=NO_ROOM,
            hint=f"what is here stays; to fetch, in bytes: {listed}{more}",
            needed_bytes=needed,
            here_bytes=here,
            max_bytes=max_bytes,
            free_bytes=free,
            sizes=sizes,
        )

    def _age(self, target: str) -> int:
        return max(note.mtime_ns for path, note in self._shop.files.items() if is_in(path, target))

    def _size(self, target: str) -> int:
        return sum(note.size for path, note in self._shop.files.items() if is_in(path, target))

    def _fetch(self, model: Model) -> None:
        """Downloads what is wanted of it, version by version, out of sight."""
        for target, entries in {model.name: model.own, **model.targets()}.items():
            for entry in entries:
                if target in self._refused or model.name in self._refused:
                    break
                file = self._wanted.get(entry.path)
                if file is None:
                    continue
                part = self._shop.part(entry.path, file)
                there = part.stat().st_size if part.exists() else 0
                try:
                    sha256 = self._fetcher.fetch(file, part)
                except StoreError as error:
                    self._refuse(target, error)
                    continue
                self._sources[entry.path] = part, sha256
                self._bytes += file.size - min(there, file.size)

    def _land(self, model: Model) -> None:
        """Puts in place what is complete.

        A model whose own files were refused stays as it was: they say how its versions are
        to be served.
        """
        if model.name in self._refused:
            return
        complete = {
            target: entries
            for target, entries in model.targets().items()
            if target not in self._refused
        }
        if not complete:
            return
        was_versioned = any(
            version_of(path) for path in self._shop.files if is_in(path, model.name)
        )
        there = (self._shop.folder / model.name).exists()
        if there and model.versions and was_versioned:
            for target, entries in complete.items():
                self._land_folder(target, entries)
            self._land_own(model)
        elif not there or len(complete) == len(model.targets()):
            own = model.own if model.versions else ()
            self._land_folder(
                model.name, (*own, *(entry for files in complete.values() for entry in files))
            )

    def _land_folder(self, target: str, entries: tuple[Entry, ...]) -> None:
        shop = self._shop
        paths = {entry.path for entry in entries}
        noted = {path for path in shop.files if is_in(path, target)}
        notes = {path: self._here[path] for path in paths if path in self._here}
        if notes.keys() == paths == noted | paths:  # complete, and nothing in it that was removed
            if any(shop.files.get(path) != note for path, note in notes.items()):
                shop.remember(target, notes)  # recognised by its digests, or under a new tag
            return
        refuse_links(shop.folder, target)
        staged = shop.staged()
        assemble(staged, {path[len(target) + 1 :]: self._source(path) for path in paths})
        place_folder(staged, shop.folder / target, shop.aside(target))
        shop.remember(target, {entry.path: self._noted(entry) for entry in entries})
        self._forget_parts(paths)
        self._landed.append(target)
        self._progress(f"{target} is here")

    def _land_own(self, model: Model) -> None:
        """The files beside the versions, one by one, after the versions they may speak of."""
        shop = self._shop
        for entry in model.own:
            path = entry.path
            if path in self._here:
                notes = {path: self._here[path]}
                if shop.files.get(path) != notes[path]:
                    shop.remember(model.name, notes, only=(path,))
                continue
            refuse_links(shop.folder, path)
            staged = shop.staged()
            assemble(staged, {"file": self._source(path)})
            place_file(staged / "file", shop.folder / path)
            shop.remember(model.name, {path: self._noted(entry)}, only=(path,))
            self._forget_parts({path})
            self._landed.append(path)

    def _source(self, path: str) -> Path:
        return self._sources[path][0] if path in self._sources else self._shop.folder / path

    def _noted(self, entry: Entry) -> Note:
        if entry.path in self._here:
            return self._here[entry.path]
        sha256 = self._sources[entry.path][1]
        return self._shop.look(entry.path, sha256, self._wanted[entry.path].tag)

    def _forget_parts(self, paths: set[str]) -> None:
        for path in paths & self._sources.keys():
            self._sources[path][0].unlink(missing_ok=True)

    def _remove_gone(self) -> None:
        """What the store has no more, but for models of which something new was refused."""
        doubtful = {target.partition("/")[0] for target in self._refused}
        for target in gone_targets(self._shop.files, self._plan):
            if target.partition("/")[0] not in doubtful:
                self._progress(f"removing {target}: the store no longer has it")
                self._remove(target)
        wanted = self._plan.files()
        for path in list(self._shop.files):
            name = path.partition("/")[0]
            if path not in wanted and name not in doubtful and not version_of(path):
                refuse_links(self._shop.folder, path)
                (self._shop.folder / path).unlink(missing_ok=True)
                self._shop.remember(name, {}, only=(path,))
                self._removed.append(path)

    def _remove(self, target: str) -> None:
        refuse_links(self._shop.folder, target)
        self._shop.remove(target)
        self._removed.append(target)
