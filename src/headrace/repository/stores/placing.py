"""Putting folders and files in their place whole, beside what is being served from there.

As ``repository/landing.py``, for folders that somebody may be looking at: the new one and the
old one change places in one step where the file system can do that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from headrace.errors import StoreError
from headrace.repository.landing import make_durable, sync_path
from headrace.repository.stores.base import UNSAFE

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def assemble(stage: Path, sources: Mapping[str, Path]) -> None:
    """Makes ``stage`` of files that stay where they are: links, or copies where there are none.

    Raises:
        OSError: the disk refuses.
    """
    stage.mkdir(parents=True)
    for relative, source in sources.items():
        target = stage / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, *_CANNOT):
                raise
            shutil.copy2(source, target)


def place_folder(staged: Path, target: Path, old: Path) -> None:
    """Puts ``staged`` at ``target``, durably.

    Args:
        staged: a folder on the same file system.
        target: there or not.
        old: a path that is free; what was at ``target`` is there, or at ``staged``, afterwards.
            Where the two cannot change places there is nothing at ``target`` for one moment,
            and a crash in it leaves the old folder here: see :func:`put_back`.

    Raises:
        OSError: the disk refuses; ``target`` is as it was.
    """
    make_durable(staged)
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        staged.rename(target)
    elif not exchange(staged, target):
        old.parent.mkdir(parents=True, exist_ok=True)
        target.rename(old)
        try:
            staged.rename(target)
        except OSError:
            old.rename(target)
            raise
    sync_path(target.parent)


def place_file(staged: Path, target: Path) -> None:
    """Puts one file at ``target``, in one step and durably. Raises OSError."""
    sync_path(staged)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(target)
    sync_path(target.parent)


def put_back(old: Path, target: Path) -> None:
    """After a crash between the two renames: the old folder is the one there is."""
    if not target.exists() and target.parent.is_dir():
        old.rename(target)


def exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one step; False where that cannot be done here.

    renameat2(2), which Linux has and the standard library has not.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


def refuse_links(folder: Path, path: str) -> None:
    """Refuses a place that a symbolic link takes out of ``folder``.

    Raises:
        StoreError: one of the folders on the way to ``path``, or itself, is a link.
    """
    here = folder
    for part in path.split("/"):
        here /= part
        if here.is_symlink():
            raise StoreError(
                f"{here} is a symbolic link",
                code=UNSAFE,
                hint="the folder of a store is its own; remove the link",
            )
