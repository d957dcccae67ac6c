"""The folder that mirrors a store, and the dot-folder in it where the work is done.

::

    FOLDER/MODEL/VERSION/…            what is served
    FOLDER/.headrace-store/lock       held while somebody works here
                          /state.json what landed, and of which content it was
                          /parts/     downloads, also broken ones: the next sync goes on there
                          /stage/     versions that are put together; empty when nobody works
                          /old/       what was moved away for one moment

A repository that is scanned does not see names with a dot. Losing ``state.json`` costs time
only: what is here is then recognised by its digests.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from headrace.digests import write_atomically
from headrace.errors import StoreError
from headrace.repository.folders import MIRROR_MARK
from headrace.repository.stores.base import NO_ROOM, STOPPED, Progress, RemoteFile, Stop
from headrace.repository.stores.digests import holds
from headrace.repository.stores.placing import put_back
from headrace.repository.stores.plan import is_in

FOLDER_NAME = MIRROR_MARK

_LOOK_S = 0.1
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Note(msgspec.Struct, frozen=True):
    """A file that landed: how it looks here, and which content of the store it is."""

    size: int
    mtime_ns: int
    sha256: str
    tag: str


class State(msgspec.Struct):
    """What ``state.json`` holds: which store this is, and path -> note."""

    store: str
    files: dict[str, Note] = {}


class Workshop:
    """The folder, while it is ours alone.

    Args:
        folder: the mirror.
        label: of the store.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder = folder
        self.parts = folder / FOLDER_NAME / "parts"
        self.stage = folder / FOLDER_NAME / "stage"
        self.old = folder / FOLDER_NAME / "old"
        self._state_path = folder / FOLDER_NAME / "state.json"
        self._staged = 0
        self.state = self._read_state(label)

    @property
    def files(self) -> dict[str, Note]:
        """Path -> note, of everything that landed."""
        return self.state.files

    def tidy(self) -> None:
        """Ends what a crash interrupted."""
        for old in self.old.glob("models/*"):
            put_back(old, self.folder / old.name)
        for old in self.old.glob("versions/*/*"):
            put_back(old, self.folder / old.parent.name / old.name)
        shutil.rmtree(self.old, ignore_errors=True)
        shutil.rmtree(self.stage, ignore_errors=True)
        self.stage.mkdir()
        self.parts.mkdir(exist_ok=True)

    def here(self, path: str, remote: RemoteFile) -> Note | None:
        """The note of a file that is here with the content of the store; None: it must be fetched.

        As listed, a file is known by its note; as described, by its digests too.
        """
        local = self.folder / path
        try:
            status = local.lstat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        note = self.files.get(path)
        if note and (note.size, note.mtime_ns) == (status.st_size, status.st_mtime_ns):
            if remote.sha256:
                return note if note.sha256 == remote.sha256 else None
            if note.tag and (note.tag, note.size) == (remote.tag, remote.size):
                return note
        sha256 = holds(local, remote) if remote.size >= 0 else ""
        return Note(status.st_size, status.st_mtime_ns, sha256, remote.tag) if sha256 else None

    def part(self, path: str, remote: RemoteFile) -> Path:
        """Where a file is downloaded to: another place for each content."""
        words = "\0".join((path, remote.identity, str(remote.size)))
        return self.parts / f"{hashlib.sha256(words.encode()).hexdigest()[:40]}.part"

    def keep_parts(self, wanted: Iterable[Path]) -> int:
        """Removes all other parts; returns the bytes in those that stay."""
        keep = set(wanted)
        size = 0
        for part in self.parts.iterdir():
            if part in keep:
                size += part.stat().st_size
            else:
                part.unlink()
        return size

    def staged(self) -> Path:
        """A free path to put something together at, or away."""
        self._staged += 1
        return self.stage / str(self._staged)

    def aside(self, target: str) -> Path:
        """Where a folder is moved to for the moment of a replacement."""
        return self.old / ("versions" if "/" in target else "models") / target

    def look(self, path: str, sha256: str, tag: str) -> Note:
        """The note of a file that has just landed."""
        status = (self.folder / path).lstat()
        return Note(status.st_size, status.st_mtime_ns, sha256, tag)

    def remember(self, target: str, notes: dict[str, Note], *, only: Iterable[str] = ()) -> None:
        """Writes down what is at ``target`` now; with ``only``, of these files alone."""
        names = set(only)
        kept = {
            path: note
            for path, note in self.files.items()
            if (path not in names if names else not is_in(path, target))
        }
        self.state.files = dict(sorted((kept | notes).items()))
        write_atomically(self._state_path, msgspec.json.encode(self.state))

    def remove(self, target: str) -> None:
        """Takes a version or a model away: in one step, then its bytes. Raises OSError."""
        place = self.folder / target
        if place.exists() or place.is_symlink():
            away = self.staged()
            place.rename(away)
            shutil.rmtree(away, ignore_errors=True)
        self.remember(target, {})

    def _read_state(self, label: str) -> State:
        try:
            state = msgspec.json.decode(self._state_path.read_bytes(), type=State)
        except (OSError, msgspec.DecodeError):
            return State(store=label)  # new, or cut off by a crash
        if state.store != label:
            raise StoreError(
                f"{self.folder} mirrors another store, {state.store}",
                hint=f"choose another folder for {label}",
            )
        return state


@contextmanager
def workshop(folder: Path, label: str, progress: Progress, stop: Stop) -> Iterator[Workshop]:
    """Opens ``folder``, which is made where it is not there; others wait until we are done.

    Raises:
        StoreError: it is somebody else's folder, mirrors another store, cannot be written to, or
            the disk is full; also for such errors in the body. What was visible still is.
    """
    try:
        ours = folder / FOLDER_NAME
        # In this order: somebody else may be making it a mirror right now, and begins with ours.
        if folder.is_dir() and any(folder.iterdir()) and not ours.is_dir():
            raise StoreError(
                f"{folder} exists and is not the mirror of a store",
                hint="choose another folder, or move it away yourself",
            )
        ours.mkdir(parents=True, exist_ok=True)
        with _lock(ours / "lock", folder, progress, stop):
            opened = Workshop(folder, label)
            opened.tidy()
            try:
                yield opened
            except OSError as error:
                if error.errno in _FULL:
                    shutil.rmtree(opened.parts, ignore_errors=True)
                raise
            finally:
                shutil.rmtree(opened.stage, ignore_errors=True)
    except OSError as error:
        full = error.errno in _FULL
        raise StoreError(
            f"cannot write {folder}: {error.strerror or error}",
            code=NO_ROOM if full else "",
            hint="what was there is unharmed" + ("; make room and sync again" if full else ""),
        ) from None


@contextmanager
def _lock(path: Path, folder: Path, progress: Progress, stop: Stop) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress(f"waiting: somebody else fills {folder}")
                    told = True
            if stop():
                raise StoreError(f"{folder}: stopped while waiting for its lock", code=STOPPED)
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)
