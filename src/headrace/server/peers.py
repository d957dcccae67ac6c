"""How workers know one another's counters: one snapshot each, asked for over a Unix socket.

Any worker may be the one that a scrape of ``/metrics`` reaches, so it asks all and adds up.
What a snapshot contains is the caller's business; here it is bytes.

A counter must never go back, or Prometheus takes it for a restart of everything. So every
worker also keeps its latest snapshot in a file: while its place is empty the siblings read
the file, and its successor starts from it. What a worker tells is in its file before it is
told; one that is killed takes with it only what nobody had seen.

Wire: connect, then read a 4-byte big-endian length and so many bytes, then the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024
"""Counters of tens of thousands of models fit; a length above it is not one of ours."""

SNAPSHOT_PERIOD_S = 1.0
"""Far below any scrape interval, and one small file a second costs nothing."""

_LENGTH = struct.Struct(">I")


class KeptSnapshot:
    """One worker's snapshot and the file that outlives the worker.

    Args:
        path: of the file.
        provider: the snapshot of this moment.
    """

    def __init__(self, path: Path, provider: Callable[[], bytes]) -> None:
        self._path = path
        self._provider = provider
        self._written: bytes | None = None
        self._turn = asyncio.Lock()

    async def take(self) -> bytes:
        """The snapshot of now, which is in the file when it is returned."""
        # Shielded, because a write that is cancelled goes on in its thread, and the next one
        # must not overtake it.
        return await asyncio.shield(asyncio.ensure_future(self._take()))

    async def keep(self, *, period_s: float = SNAPSHOT_PERIOD_S) -> None:
        """Writes the file whenever something changed, and once more when cancelled.

        Runs until cancelled; give it a task of its own and cancel it last.
        """
        try:
            while True:
                await self.take()
                await asyncio.sleep(period_s)
        finally:
            await self.take()

    async def _take(self) -> bytes:
        async with self._turn:
            snapshot = self._provider()
            if snapshot != self._written:
                # Off the loop, because a disk may stall.
                await asyncio.to_thread(write_snapshot, self._path, snapshot)
                self._written = snapshot
            return snapshot


async def serve_snapshot(path: Path, provider: Callable[[], Awaitable[bytes]]) -> asyncio.Server:
    """Answers every connection to ``path`` with ``provider()``, until the server is closed.

    A socket left behind by a predecessor is replaced.
    """

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        snapshot = await provider()
        writer.write(_LENGTH.pack(len(snapshot)) + snapshot)
        with contextlib.suppress(ConnectionError):  # the asker gave up
            await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - one directory entry, before serving begins
    return await asyncio.start_unix_server(answer, path)


async def collect(
    paths: Sequence[Path], timeout_s: float, *, of_the_dead: Callable[[bytes], bytes]
) -> list[bytes]:
    """The snapshots of all workers whose sockets are ``paths``, in that order.

    Args:
        paths: ``Seat.peer_paths``, or those of the siblings only.
        timeout_s: for each answer; all are asked at one time.
        of_the_dead: what still counts of the file of a worker that does not answer (see
            :func:`write_snapshot`).

    Returns:
        Nothing for a place that never had a worker.
    """
    found = await asyncio.gather(*(_snapshot_of(path, timeout_s, of_the_dead) for path in paths))
    return [snapshot for snapshot in found if snapshot is not None]


async def _snapshot_of(
    path: Path, timeout_s: float, of_the_dead: Callable[[bytes], bytes]
) -> bytes | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(path)
    except (OSError, EOFError):  # TimeoutError is an OSError; IncompleteReadError an EOFError
        kept = await asyncio.to_thread(read_snapshot, path.with_suffix(".snapshot"))
        return None if kept is None else of_the_dead(kept)


async def _ask(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_SNAPSHOT_BYTES:
            raise EOFError(f"{path} announced a snapshot of {length} bytes")
        return await reader.readexactly(length)
    finally:
        writer.close()


def write_snapshot(path: Path, snapshot: bytes) -> None:
    """Replaces the file as a whole: a reader sees the old content or the new, nothing between.

    Not synced to disk: the counters need not outlive the machine, only the worker.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(snapshot)
    beside.replace(path)


def read_snapshot(path: Path) -> bytes | None:
    """The latest snapshot of a place, or None where nobody has written one yet."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
