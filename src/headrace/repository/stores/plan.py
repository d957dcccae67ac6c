"""Which files make a model and a version, and what is no longer wanted. No I/O.

A *target* is what is put in its place in one go: ``MODEL/VERSION``, or ``MODEL`` for a model
without versions. The files beside the versions (``config.pbtxt``) are the model's *own*.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from headrace.errors import StoreError
from headrace.repository.folders import check_name, is_ignored
from headrace.repository.formats import FORMAT_OF
from headrace.repository.model_toml import FILE_NAME as MODEL_TOML
from headrace.repository.stores.base import MAX_FILES, NOT_FOUND, UNSAFE, RemoteFile
from headrace.repository.stores.names import check_distinct, check_path, is_left_out
from headrace.repository.stores.spec import StoreSpec
from headrace.repository.triton import CONFIG_PBTXT
from headrace.repository.versions import VERSION_FOLDER


class Entry(msgspec.Struct, frozen=True):
    """A file of the store, and where it belongs: ``MODEL/…``, with slashes."""

    path: str
    remote: RemoteFile


class Model(msgspec.Struct, frozen=True):
    """What the store has of a model.

    Attributes:
        own: all its files where it has no versions; else those beside them.
        versions: version -> files.
    """

    name: str
    own: tuple[Entry, ...]
    versions: dict[str, tuple[Entry, ...]]

    def targets(self) -> dict[str, tuple[Entry, ...]]:
        """Target -> files, the newest version first; without the own files of a versioned one."""
        if not self.versions:
            return {self.name: self.own}
        newest_first = sorted(self.versions, key=int, reverse=True)
        return {f"{self.name}/{version}": self.versions[version] for version in newest_first}

    def files(self) -> tuple[Entry, ...]:
        """All of them."""
        return (*self.own, *(entry for files in self.versions.values() for entry in files))


class Plan(msgspec.Struct, frozen=True):
    """What there should be.

    Attributes:
        models: by name.
        skipped: files of the store that belong to no model.
    """

    models: dict[str, Model]
    skipped: tuple[str, ...]

    def files(self) -> dict[str, Entry]:
        """Path -> file, of all models."""
        return {entry.path: entry for model in self.models.values() for entry in model.files()}


def make_plan(files: Iterable[RemoteFile], spec: StoreSpec) -> Plan:
    """Sorts what a store lists.

    Raises:
        StoreError: a name is unsafe, two cannot be told apart, there are too many, or there is
            no model. An empty store is no reason to remove everything.
    """
    files = list(files)
    if len(files) > MAX_FILES:
        raise StoreError(f"{spec.label} holds more than {MAX_FILES:,} files")
    for file in files:
        check_path(file.path, spec.label)
    check_distinct((file.path for file in files), spec.label)
    inside = _place_in_model(files, spec)
    entries: list[Entry] = []
    skipped: list[str] = []
    for file in files:
        parts = file.path.split("/")
        if is_left_out(parts, within_model=bool(inside)) or not (inside or len(parts) > 1):
            skipped.append(file.path)
        else:
            entries.append(Entry(inside + file.path, file))
    if not entries:
        raise StoreError(
            f"{spec.label} holds no models",
            code=NOT_FOUND,
            hint="what is here stays; a store holds MODEL/VERSION/FILE, or MODEL/FILE",
        )
    by_model: dict[str, list[Entry]] = {}
    for entry in entries:
        by_model.setdefault(entry.path.partition("/")[0], []).append(entry)
    models = {name: _model(name, found) for name, found in sorted(by_model.items())}
    return Plan(models=models, skipped=tuple(skipped))


def version_of(path: str) -> str:
    """The version folder that a file lies in, "" where it lies in none."""
    parts = path.split("/")
    return parts[1] if len(parts) > 2 and VERSION_FOLDER.fullmatch(parts[1]) else ""


def gone_targets(here: Iterable[str], plan: Plan) -> list[str]:
    """Targets that ``here`` (paths of files) has and the plan has not, whole models first."""
    gone: dict[str, None] = {}
    versions: dict[str, None] = {}
    for path in here:
        name, version = path.partition("/")[0], version_of(path)
        model = plan.models.get(name)
        if model is None:
            gone[name] = None
        elif model.versions and version and version not in model.versions:
            versions[f"{name}/{version}"] = None
    return [*gone, *versions]


def is_in(path: str, target: str) -> bool:
    """Whether a file belongs to a target or a model."""
    return path.startswith(target + "/")


def _place_in_model(files: Iterable[RemoteFile], spec: StoreSpec) -> str:
    """``MODEL/`` (with a version for a single file) where the store is one model, else ""."""
    if not any(_shows_a_model(file.path) for file in files):
        return ""
    name = spec.model_name
    if is_ignored(name):
        raise StoreError(f"{spec.label}: {name!r} cannot be the name of a model", code=UNSAFE)
    check_name(name, Path(name))
    return f"{name}/1/" if spec.kind == "file" else f"{name}/"


def _shows_a_model(path: str) -> bool:
    """As ``repository/scanner.py`` tells a model's folder from a repository."""
    first, slash, _ = path.partition("/")
    if slash:
        return VERSION_FOLDER.fullmatch(first) is not None
    suffix = PurePosixPath(first).suffix.lower()
    return first in (CONFIG_PBTXT, MODEL_TOML) or suffix in (*FORMAT_OF, ".safetensors")


def _model(name: str, entries: Iterable[Entry]) -> Model:
    own: list[Entry] = []
    versions: dict[str, list[Entry]] = {}
    for entry in entries:
        version = version_of(entry.path)
        (versions.setdefault(version, []) if version else own).append(entry)
    return Model(name, tuple(own), {number: tuple(files) for number, files in versions.items()})
