"""What one connection may do in one turn of the event loop, before others are served."""

from __future__ import annotations

from headrace.clock import MonotonicClock
from headrace.telemetry.snapshot import HttpCounters

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
        counters: of all connections; a connection tells :meth:`count` what it adds to their
            ``received_bytes``.

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
        """The connection has read so many bytes itself."""
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
