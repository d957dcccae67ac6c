"""What importing comes to, before anything is written; and writing it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from headrace.errors import ConfigError, ModelLoadError, PullError
from headrace.repository.archives import Archive, open_archive, unpack
from headrace.repository.folders import check_name, require_inside
from headrace.repository.model_toml import FILE_NAME as MODEL_TOML

SERVER_TOML = "headrace.toml"


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One model.

    Attributes:
        name: as it will be called.
        version: its version folder.
        source: the file or folder to copy; in ``archive`` where that is not None.
        archive: a zip file (``.mar``).
        target: the file's name in the version folder; "" copies a whole folder.
        settings: its ``model.toml``.
        notes: what could not be carried over, and why.
        obstacle: why it cannot be served, "" where it can.
        hint: what to do about that.
    """

    name: str
    version: str = "1"
    source: str = ""
    archive: Path | None = None
    target: str = ""
    settings: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    obstacle: str = ""
    hint: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found in one path.

    Attributes:
        kind: the server it was made for.
        root: where it was found; what is copied may not leave it, unless it was named there.
        models: in the order in which they were found.
        server: the ``headrace.toml``.
        notes: what concerns the server as a whole and could not be carried over.
        as_it_is: the command that serves it without any importing, "" where there is none.
    """

    kind: str
    root: Path
    models: tuple[ModelPlan, ...] = ()
    server: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    as_it_is: str = ""

    @property
    def servable(self) -> tuple[ModelPlan, ...]:
        """The models without an obstacle."""
        return tuple(model for model in self.models if not model.obstacle)


def write(plan: Plan, out: Path) -> None:
    """Makes the repository ``out``: ``<model>/<version>/<file>``, with what was said about them.

    Raises:
        ConfigError: ``out`` is there already and not empty.
        ModelLoadError: a file cannot be copied.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is there already, and not empty", hint="name a new folder with --out"
        )
    try:
        for model in plan.servable:
            _write_model(model, out / model.name)
        if plan.server:
            (out / SERVER_TOML).write_text(to_toml(plan.server))
    except OSError as error:
        raise ModelLoadError(
            f"cannot write {error.filename or out}: {error.strerror}", path=str(out)
        ) from None


def _write_model(model: ModelPlan, folder: Path) -> None:
    check_name(model.name, Path(model.source))
    version = folder / model.version
    version.mkdir(parents=True, exist_ok=True)
    if model.archive is not None:
        with opened(model.archive) as archive:
            unpack(archive, {model.source: model.target, **_weights_in(archive, model)}, version)
    elif model.target:
        shutil.copyfile(model.source, version / model.target)
        _copy_weights(Path(model.source), version)
    else:
        root = Path(model.source)
        for path in root.rglob("*"):
            require_inside(path, root)
        shutil.copytree(root, version, dirs_exist_ok=True)
    if model.settings:
        (folder / MODEL_TOML).write_text(to_toml(model.settings))


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """A zip or tar archive, for as long as it is needed.

    Raises:
        ModelLoadError: it is neither, or broken.
    """
    try:
        archive = open_archive(path, f"{path.name}.zip")  # which is what a .mar is
        if archive is None:
            raise ModelLoadError(f"{path} is not an archive", path=str(path))
        with closing(archive):
            yield archive
    except PullError as error:
        raise ModelLoadError(error.message, hint=error.hint, path=str(path)) from None


def _weights_in(archive: Archive, model: ModelPlan) -> dict[str, str]:
    stem = PurePosixPath(model.source).stem
    return {
        member: PurePosixPath(member).name
        for member in archive.members
        if PurePosixPath(member).name.startswith(f"{stem}.") and member != model.source
    }


def _copy_weights(source: Path, version: Path) -> None:
    """The files beside it that begin with its name (``model.onnx.data``, ``model.bin``)."""
    for path in sorted(source.parent.glob(f"{source.stem}*")):
        if path.is_file() and path != source and not path.is_symlink():
            shutil.copyfile(path, version / path.name)


def to_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML; nested tables become sections, empty ones nothing."""
    return "".join(_lines(table, ())).lstrip("\n")


def _lines(table: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in table.items() if key not in inner}
    if at and plain:
        yield f"\n[{'.'.join(map(_key, at))}]\n"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}\n"
    for key, value in inner.items():
        yield from _lines(value, (*at, key))


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)  # strings, numbers, true and false look the same in TOML
