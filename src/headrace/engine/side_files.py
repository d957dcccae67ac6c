"""Files that lie beside a model: labels, made-up requests, first values of states."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from headrace.errors import ModelLoadError
from headrace.repository.base import ModelSource
from headrace.repository.folders import require_inside

_MAX_BYTES = 256 * 1024 * 1024
"""A file of labels or of a request's data; what is larger was not meant."""


def read_side_file(source: ModelSource, name: str) -> bytes:
    """What ``name``, a path within the model's folder, holds.

    Both layouts are understood: the file beside the model, and beside its version folders,
    where Triton has it. The version's own goes first.

    Raises:
        ModelLoadError: it is not there, cannot be read, is too large or leaves the folder.
    """
    path = _find(source, name)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _error(source, name, f"it is larger than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _error(source, name, error.strerror or str(error)) from None


def read_labels(source: ModelSource, name: str) -> tuple[str, ...]:
    """One label a line; line k is the name of class k.

    Raises:
        ModelLoadError: as :func:`read_side_file`; or it is not UTF-8.
    """
    try:
        return tuple(read_side_file(source, name).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise _error(source, name, "it is not UTF-8") from None


def _find(source: ModelSource, name: str) -> Path:
    relative = PurePosixPath(name)
    if not name or relative.is_absolute() or ".." in relative.parts:
        raise _error(source, name, "it is not a path within the model's folder")
    folders = [source.folder]
    if source.folder.name == source.version:
        folders.append(source.folder.parent)
    for folder in folders:
        path = folder / relative
        if path.is_file():
            require_inside(path, folder)
            return path
    raise _error(source, name, "there is no such file")


def _error(source: ModelSource, name: str, why: str) -> ModelLoadError:
    return ModelLoadError(
        f"unable to load model '{source.name}', failed to read '{name}': {why}",
        code="side_file",
        hint=f"the model's folder is {source.folder}",
        model=source.name,
    )
