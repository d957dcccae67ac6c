"""Looking into folders that somebody else fills: names, half-finished copies, links."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from headrace.errors import ConfigError, ModelLoadError

MAX_NAME_LENGTH = 255
"""Bytes in UTF-8 that file systems allow; a model's name is mostly a folder's."""


def is_ignored(name: str) -> bool:
    """Hidden, private or half-copied: names that tools give to what is not ready yet."""
    return name.startswith((".", "_")) or name.endswith((".tmp", ".part"))


MIRROR_MARK = ".headrace-store"
"""Folder in a mirror of a store; see ``repository.stores``."""


def is_mirrored(path: Path) -> bool:
    """Whether ``path`` lies in the mirror of a store: somebody else wrote what is there."""
    folders = {*path.absolute().parents, *path.resolve().parents, path.absolute()}
    return any((folder / MIRROR_MARK).is_dir() for folder in folders)


def list_folder(folder: Path) -> list[Path]:
    """What is in ``folder``, by name, without what :func:`is_ignored`.

    Raises:
        ModelLoadError: the folder cannot be read.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not is_ignored(entry.name))
    except OSError as error:
        raise ModelLoadError(
            f"cannot read {folder}: {error.strerror}",
            hint="check that the user that runs the server may read it",
            path=str(folder),
        ) from None


Mark = tuple[tuple[str, str, int, int, int], ...]
"""Folder, name, time, size and inode of files: changes when they do, contents are not read."""


def mark_of(folder: Path, limit: int) -> Mark:
    """Of the first ``limit`` files below a folder, and of links to folders, as they are now."""
    marks: list[tuple[str, str, int, int, int]] = []
    for root, folders, files in os.walk(folder):
        # What running a model leaves behind is no change of it.
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        links = [each for each in folders if (Path(root) / each).is_symlink()]
        for file in sorted([*files, *links]):  # a linked folder is not walked into
            try:
                status = (Path(root) / file).stat()
            except OSError:
                continue  # gone since, or a link to nothing
            marks.append((root, file, status.st_mtime_ns, status.st_size, status.st_ino))
            if len(marks) >= limit:
                return tuple(marks)
    return tuple(marks)


def require_inside(path: Path, root: Path) -> None:
    """Refuses a path that a symbolic link takes out of ``root``.

    Raises:
        ModelLoadError: it leaves ``root``, leads nowhere, or cannot be followed.
    """
    try:
        inside = path.resolve(strict=True).is_relative_to(root.resolve(strict=True))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a loop of links"
        raise ModelLoadError(f"cannot read {path}: {reason}", path=str(path)) from None
    if not inside:
        raise ModelLoadError(
            f"{path} is a symbolic link that leaves {root}",
            hint="copy what it points to, for example with: cp -rL FOLDER NEW_FOLDER",
            path=str(path),
        )


def refuse_links_out(entries: Iterable[Path], root: Path) -> None:
    """Refuses a folder with a symbolic link out of ``root`` anywhere in ``entries``.

    Raises:
        ModelLoadError: as :func:`require_inside`.
    """
    for entry in entries:
        if entry.is_symlink():
            require_inside(entry, root)


def check_name(name: str, path: Path) -> str:
    """Returns ``name`` where it can be a model's name, in URLs, metrics and files.

    Raises:
        ConfigError: empty, too long, not printable, with a slash, or with outer spaces.
    """
    fine = (
        len(name) > 0
        and name.isprintable()  # lone surrogates are not, so it can be encoded
        and len(name.encode()) <= MAX_NAME_LENGTH
        and not set(name) & set("/\\")
        and name == name.strip()
        and name not in (".", "..")
    )
    if not fine:
        raise ConfigError(
            f"{name!r} (from {path}) cannot be the name of a model",
            hint="printable characters without slashes; rename it, or give a name with --name",
        )
    return name


def some_names(paths: Iterable[Path], limit: int = 8) -> str:
    """The names of ``paths`` for an error message; folders end with a slash."""
    names = [path.name + "/" if path.is_dir() else path.name for path in paths]
    if not names:
        return "nothing"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
