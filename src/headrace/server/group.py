"""One worker's membership in a group of processes that share a port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.server.link import Seat, SupervisorLink
from headrace.server.peers import collect, keep_snapshot, read_snapshot, serve_snapshot
from headrace.telemetry.snapshot import counters_only, encode, merge

_PEER_TIMEOUT_S = 1.0
"""A sibling that does not answer a scrape within this is read from its snapshot file."""


class Group:
    """Says that this worker is ready, adds up the siblings' counters, follows the supervisor."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self.link = SupervisorLink(seat)
        predecessor = read_snapshot(seat.snapshot_path) if seat.generation else None
        # What runs in a dead process ended with it; what it counted did not.
        self._inherited = [] if predecessor is None else [counters_only([predecessor])]
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._own: Callable[[], bytes] | None = None

    async def join(self, snapshot: Callable[[], bytes]) -> None:
        """Answers siblings with ``snapshot`` and tells the supervisor that we are ready."""
        self._own = snapshot
        provider = self._with_inheritance
        self._server = await serve_snapshot(self._seat.socket_path, provider)
        self._tasks.append(asyncio.create_task(keep_snapshot(self._seat.snapshot_path, provider)))
        self.link.ready()

    def follow(self, on_orphaned: Callable[[], None]) -> None:
        """Calls ``on_orphaned`` when the supervisor is gone: nobody would ever stop us."""

        async def follow() -> None:
            await self.link.follow()
            on_orphaned()

        self._tasks.append(asyncio.create_task(follow()))

    async def snapshots(self, own: bytes) -> list[bytes]:
        """Everybody's counters, with ``own`` for this worker."""
        siblings = [path for path in self._seat.peer_paths if path != self._seat.socket_path]
        return [own, *self._inherited, *await collect(siblings, _PEER_TIMEOUT_S)]

    async def leave(self) -> None:
        """Keeps a last snapshot and gives the line back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        self.link.close()

    def _with_inheritance(self) -> bytes:
        assert self._own is not None
        return encode(merge([self._own(), *self._inherited]))
