"""Where traces are written: JSON arrays, valid at any moment, off the event loop.

With a log frequency of 0 all traces of a file go into ``<file>``; with N, every N of them into
``<file>.0``, ``<file>.1`` and so on, as Triton does it. Several worker processes may write one
file: each addition is made under a lock of the file, and nothing that is there is lost.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from headrace.digests import open_private

_LOG = logging.getLogger("headrace.telemetry")

MAX_PENDING = 10_000
"""Traces on their way to a disk that stalls; one more is dropped, and the log says so once."""

MAX_FILES = 1000
"""Of one name with numbers. Callers set the log frequency, and 1 is a file for each trace."""

_Item = tuple[str, int, dict[str, Any]]


class TraceFiles:
    """A thread that writes; it starts with the first trace."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Item | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._held: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._broken: set[str] = set()
        self._dropping = False

    def add(self, file: str, log_frequency: int, trace: dict[str, Any]) -> None:
        """Writes it soon; never waits."""
        if self._queue.qsize() >= MAX_PENDING:
            if not self._dropping:
                self._dropping = True
                _LOG.warning("traces are dropped: writing %s does not keep up", file)
            return
        self._dropping = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="headrace-trace", daemon=True)
            self._thread.start()
        self._queue.put((file, log_frequency, trace))

    def flush(self, timeout_s: float = 0.0) -> bool:
        """Has what is collected written although it is not enough for a file.

        Returns:
            Whether that was done within ``timeout_s``.
        """
        if self._thread is None:
            return True
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout_s) if timeout_s else False

    def close(self) -> None:
        """Writes what is left, and ends the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=10.0)
            self._thread = None

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                self._write_held(least=1)
                item.set()
                continue
            file, frequency, trace = item
            self._held.setdefault((file, frequency), []).append(trace)
            if self._queue.empty() or len(self._held[file, frequency]) >= MAX_PENDING:
                self._write_held(least=0)
        self._write_held(least=1)

    def _write_held(self, *, least: int) -> None:
        """Writes full files; with ``least`` 1 also those that are not full."""
        for (file, frequency), traces in tuple(self._held.items()):
            size = frequency or len(traces)
            whole = len(traces) if least else len(traces) - len(traces) % size
            for start in range(0, whole, size):
                self._write(file, frequency, traces[start : min(start + size, whole)])
            del traces[:whole]
            if not traces:
                del self._held[file, frequency]

    def _write(self, file: str, frequency: int, traces: list[dict[str, Any]]) -> None:
        try:
            if frequency:
                write_numbered(file, traces)
            else:
                append(Path(file), traces)
            self._broken.discard(file)
        except OSError as error:
            if file not in self._broken:
                self._broken.add(file)
                _LOG.error("traces cannot be written to %s: %s", file, error)


def append(path: Path, traces: list[dict[str, Any]]) -> None:
    """Adds to the JSON array in ``path``; what is there and is no array is replaced."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 2))
        tail = stream.read()
        if end > 2 and tail == b"]\n":
            stream.seek(end - 2)
            stream.write(b",\n" + _lines(traces) + b"]\n")
        else:
            stream.seek(0)
            stream.truncate()
            stream.write(b"[" + _lines(traces) + b"]\n")


def write_numbered(file: str, traces: list[dict[str, Any]]) -> None:
    """The first of ``<file>.0``, ``<file>.1`` ... that is not there yet.

    Raises:
        OSError: there are MAX_FILES already, or it cannot be written.
    """
    for number in range(MAX_FILES):
        try:
            with open_private(Path(f"{file}.{number}"), "xb") as stream:
                stream.write(b"[" + _lines(traces) + b"]\n")
        except FileExistsError:
            continue
        return
    raise OSError(errno.EFBIG, f"there are {MAX_FILES:,} files; move them away to go on")


def _lines(traces: list[dict[str, Any]]) -> bytes:
    return b",\n".join([msgspec.json.encode(trace, enc_hook=str) for trace in traces])
