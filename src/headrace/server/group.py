"""One worker's membership in a group of processes that share a port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.server.link import Seat, SupervisorLink
from headrace.server.peers import KeptSnapshot, collect, read_snapshot, serve_snapshot
from headrace.telemetry.snapshot import counters_only, encode, merge

_PEER_TIMEOUT_S = 1.0
"""A sibling that does not answer a scrape within this is read from its snapshot file."""


def _counters(snapshot: bytes) -> bytes:
    """What runs in a dead process ended with it; what it counted did not."""
    return counters_only([snapshot])


class Group:
    """Says that this worker is ready, adds up the siblings' counters, follows the supervisor."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.link = SupervisorLink(seat)
        predecessor = read_snapshot(seat.snapshot_path) if seat.generation else None
        self._inherited = [] if predecessor is None else [_counters(predecessor)]
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._kept: KeptSnapshot | None = None

    async def join(self, snapshot: Callable[[], bytes]) -> None:
        """Answers siblings with ``snapshot`` and tells the supervisor that we are ready."""

        def with_inheritance() -> bytes:
            return encode(merge([snapshot(), *self._inherited]))

        self._kept = KeptSnapshot(self.seat.snapshot_path, with_inheritance)
        self._server = await serve_snapshot(self.seat.socket_path, self._kept.take)
        self._tasks.append(asyncio.create_task(self._kept.keep()))
        self.link.ready()
        if self.seat.beat_s:
            self._tasks.append(asyncio.create_task(self._beat(self.seat.beat_s)))

    async def _beat(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            self.link.alive()

    def follow(self, on_orphaned: Callable[[], None]) -> None:
        """Calls ``on_orphaned`` when the supervisor is gone: nobody would ever stop us."""

        async def follow() -> None:
            await self.link.follow()
            on_orphaned()

        self._tasks.append(asyncio.create_task(follow()))

    async def snapshots(self, own: bytes) -> list[bytes]:
        """Everybody's counters; ``own`` are this worker's if it has not joined yet."""
        siblings = [path for path in self.seat.peer_paths if path != self.seat.socket_path]
        mine = [own, *self._inherited] if self._kept is None else [await self._kept.take()]
        return [*mine, *await collect(siblings, _PEER_TIMEOUT_S, of_the_dead=_counters)]

    async def leave(self) -> None:
        """Keeps a last snapshot. The line stays open: there may be a failure to tell."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
