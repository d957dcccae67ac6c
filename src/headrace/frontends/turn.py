"""What one connection may do in one turn of the event loop, before others are served."""

from __future__ import annotations

from headrace.clock import MonotonicClock

TURN_NS = 500_000
"""About what four clients with a request each take. A turn of the loop costs a fiftieth of it."""

_UNTIMED_UNITS = 4
"""Of a turn; for most reads the clock is not asked."""


class Turn:
    """Counts units of work and, after the first ones, time: units differ a hundredfold.

    Args:
        units: of a turn, at most.

    ``left`` is what is left of them; who does the work subtracts it.
    """

    __slots__ = ("_ends_ns", "_units", "left")

    def __init__(self, units: int) -> None:
        self._units = self.left = units
        self._ends_ns = 0

    def begin(self) -> None:
        """A new turn."""
        self.left = self._units
        self._ends_ns = 0

    def is_over(self) -> bool:
        """Whether the rest has to wait. Never before the first unit of work."""
        if self.left > self._units - _UNTIMED_UNITS:
            return False
        now_ns = MonotonicClock.now_ns()
        if not self._ends_ns:
            self._ends_ns = now_ns + TURN_NS
        return self.left <= 0 or now_ns >= self._ends_ns
