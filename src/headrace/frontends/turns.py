"""What one connection may do in one turn of the event loop, and what it has sent for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.clock import MonotonicClock
from headrace.telemetry.snapshot import HttpCounters

TURN_REQUESTS = 128
"""Of one HTTP/1.1 connection, taken in one turn of the loop, unless its time ends before."""

SLICE_REQUESTS = 4
"""What a slice without a request counts as: a body in chunks of one byte costs as much."""

TURN_NS = 500_000
"""About what four clients with a request each take."""

LONE_TURN_NS = 4_000_000
"""Where no other connection has sent anything since the last turn: larger batches cost less."""

_UNTIMED_UNITS = 4
"""Of a turn; for most reads the clock is not asked."""


class Turn:
    """Counts units of work and, after the first ones, time: units differ a hundredfold.

    Args:
        units: of a turn, at most.
        counters: of all connections.

    ``left`` is what is left of the units; who does the work subtracts it.
    """

    __slots__ = ("_counters", "_ends_ns", "_received_bytes", "_units", "left")

    def __init__(self, units: int, counters: HttpCounters) -> None:
        self._units = self.left = units
        self._counters = counters
        self._received_bytes = 0  # by all when a turn was over, and by this connection since then
        self._ends_ns = 0

    def begin(self) -> None:
        """A new turn."""
        self.left = self._units
        self._ends_ns = 0

    def count(self, size: int) -> None:
        """The connection has read so many bytes, which all of them count together."""
        self._counters.received_bytes += size
        self._received_bytes += size

    def is_over(self) -> bool:
        """Whether the rest has to wait. Never before the first unit of work."""
        if self.left > self._units - _UNTIMED_UNITS:
            return False
        now_ns, received_bytes = MonotonicClock.now_ns(), self._counters.received_bytes
        if not self._ends_ns:
            alone = received_bytes == self._received_bytes
            self._ends_ns = now_ns + (LONE_TURN_NS if alone else TURN_NS)
        if self.left > 0 and now_ns < self._ends_ns:
            return False
        self._received_bytes = received_bytes
        return True


class Turns(Turn):
    """``data`` from ``position`` on waits. The units are requests."""

    __slots__ = ("_scheduled", "data", "position")

    def __init__(self, counters: HttpCounters) -> None:
        super().__init__(TURN_REQUESTS, counters)
        self._scheduled = False
        self.data = b""
        self.position = 0

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
        self.begin()
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
