"""Where time comes from. The core never imports this: it is given ``now_ns``."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock. ``headrace.testing.ManualClock`` is the fake."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock (never the wall clock, which jumps)."""

    # Bound directly: a Python frame around the call would cost as much as the call.
    now_ns = staticmethod(time.monotonic_ns)
