"""Putting a folder in its place whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import PullError


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A private folder beside ``target``, gone afterwards whatever happens.

    Beside it, because only within one file system is a rename atomic. Its name begins with a
    dot, so a repository that is being scanned does not see it. Folders above ``target`` that
    had to be made are taken away again where nothing came to stay.

    Raises:
        PullError: the place cannot be written to, or the disk is full: also for such errors
            in the body.
    """
    made: list[Path] = []
    try:
        parent = target.parent
        for folder in [*reversed(parent.parents), parent]:
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.pull-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise PullError(
            f"cannot write {target}: {error.strerror or error}{where}",
            hint="nothing was left behind; make room, or choose another --out",
        ) from None
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # something came to stay
                folder.rmdir()


def land(folder: Path, target: Path, *, replace: bool) -> None:
    """Moves ``folder`` to ``target``, durably: afterwards a power cut takes nothing back.

    Args:
        folder: on the same file system.
        target: not there, empty, or (with ``replace``) a folder to be replaced.
        replace: whether what is there goes. For one moment between two renames there is
            neither; if the second fails the old folder is put back.

    Raises:
        OSError: the disk refuses; ``target`` is as it was.
    """
    make_durable(folder)
    old = folder.with_name("replaced")
    moved = replace and target.exists()
    if moved:
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        if moved:
            old.rename(target)
        raise
    sync_path(target.parent)


def make_durable(folder: Path) -> None:
    """Everything in it is on the disk afterwards, its own entry aside. Raises OSError."""
    for path in folder.rglob("*"):
        sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """The file's content, or the folder's list of names, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
