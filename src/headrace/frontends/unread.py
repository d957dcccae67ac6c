"""What a client has not read yet of the answers on one connection."""

from __future__ import annotations

import asyncio

from headrace.frontends.byte_account import Share


class UnreadAnswers:
    """Answers that wait in the transport. ``counted_bytes`` of them are taken of the share.

    ``paused``: the transport has more than it wants, and producers should wait.
    """

    __slots__ = ("_resumed", "_seen_bytes", "_share", "_transport", "counted_bytes", "paused")

    def __init__(self, share: Share) -> None:
        self._share = share
        self._transport: asyncio.Transport | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._seen_bytes = 0
        self.counted_bytes = 0
        self.paused = False

    def begin(self, transport: asyncio.Transport) -> None:
        """The connection is open."""
        self._transport = transport

    def pause(self, resumed: asyncio.Future[None]) -> None:
        """The transport is full. ``resumed`` is what :meth:`writable` waits for."""
        self._resumed, self.paused = resumed, True
        self.count()

    def resume(self) -> None:
        """The client has read nearly all, or has left."""
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed, self.paused = None, False
        self._share.give(self.counted_bytes)
        self.counted_bytes = 0

    async def writable(self) -> None:
        """Waits while it is paused."""
        if self._resumed is not None:
            await self._resumed

    def count(self) -> None:
        """Takes what there is more now than when it was last counted, room or not."""
        waiting_bytes = self._waiting_bytes()
        if waiting_bytes > self.counted_bytes:
            self._share.spend(waiting_bytes - self.counted_bytes)
            self.counted_bytes = waiting_bytes

    def look(self) -> None:
        """Remembers how much there is, for :meth:`is_shrinking`."""
        self._seen_bytes = self._waiting_bytes()

    def is_shrinking(self) -> bool:
        """Whether the client has read something since the last look."""
        return self._waiting_bytes() < self._seen_bytes

    def _waiting_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()
