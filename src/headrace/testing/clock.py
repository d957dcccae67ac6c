"""A clock that stands still until it is told to move."""

from __future__ import annotations


class ManualClock:
    """A :class:`headrace.clock.Clock` for tests and simulations.

    It starts at one second, because 0 means "never happened" in the stamps of a request.
    """

    __slots__ = ("_now_ns",)

    def __init__(self, start_ns: int = 1_000_000_000) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Nanoseconds; moves only with :meth:`advance_ns`."""
        return self._now_ns

    def advance_ns(self, delta_ns: int) -> int:
        """Moves on by ``delta_ns`` and returns the new time.

        Raises:
            ValueError: ``delta_ns`` is negative; a monotonic clock never goes back.
        """
        if delta_ns < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-delta_ns} ns")
        self._now_ns += delta_ns
        return self._now_ns
