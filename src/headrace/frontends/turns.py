"""The rest of what one connection has sent, kept for another turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURN_REQUESTS = 128
"""Requests of one connection that are taken in one turn of the loop: some 10 ms of the smallest,
after which other connections have their turn."""

SLICE_REQUESTS = 4
"""What a slice without a request counts as: a body in chunks of one byte costs as much."""


class Turns:
    """``data`` from ``position`` on waits. ``left``: requests that this turn may still take."""

    __slots__ = ("_scheduled", "data", "left", "position")

    def __init__(self) -> None:
        self._scheduled = False
        self.data = b""
        self.position = 0
        self.left = TURN_REQUESTS

    def add(self, data: bytes) -> None:
        """More has come behind what waits."""
        self.data = self.data[self.position :] + data
        self.position = 0

    def keep(self, data: bytes, position: int) -> None:
        """The same bytes, with an offset: they are not copied for every turn."""
        self.data, self.position = data, position

    def take(self) -> bytes:
        """Begins a turn with what waits, from ``position`` on."""
        self._scheduled = False
        self.left = TURN_REQUESTS
        data, self.data = self.data, b""
        return data

    def unscheduled(self) -> None:
        """A turn in which nothing could be taken is over."""
        self._scheduled = False

    def schedule(self, loop: asyncio.AbstractEventLoop, go_on: Callable[[], None]) -> None:
        """Calls ``go_on`` in the next turn of the loop, once."""
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(go_on)
