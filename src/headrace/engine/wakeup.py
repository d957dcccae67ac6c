"""The one timer of an engine: nothing is polled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.core.events import NEVER_NS


class Wakeup:
    """Calls ``due`` once when the time that was asked for has come. On the event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, now_ns: Callable[[], int], due: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._now_ns = now_ns
        self._due = due
        self._timer: asyncio.TimerHandle | None = None
        self._at_ns = NEVER_NS

    def at(self, wakeup_ns: int | None) -> None:
        """Not later than then; an earlier call that was asked for stays."""
        if wakeup_ns is None or wakeup_ns >= self._at_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at_ns = wakeup_ns
        delay_s = max(0.0, (wakeup_ns - self._now_ns()) / 1e9)
        self._timer = self._loop.call_later(delay_s, self._fire)

    def cancel(self) -> None:
        """Never any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer, self._at_ns = None, NEVER_NS
        self._due()
