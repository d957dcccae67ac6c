"""Inflates compressed bodies and messages on threads, a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

_AT_ONCE = 4
"""Each may hold as many bytes as the largest body before they are counted, so their number is
bounded. More threads are not faster on few cores, and take cores from the models on many."""

Work = Callable[[], Any]
Done = Callable[[asyncio.Future[Any]], object]


class Inflater:
    """Runs work in order of arrival, ``_AT_ONCE`` pieces at a time. On the event loop.

    The next piece begins when the result of one before it has been taken, not when a thread is
    free: results that wait for a busy event loop are held as well.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running = 0
        self._waiting: deque[tuple[Work, Done]] = deque()

    def start(self, work: Work, done: Done) -> None:
        """Calls ``work`` on a thread, and ``done`` on the loop afterwards."""
        if self._running < _AT_ONCE:
            self._begin(work, done)
        else:
            self._waiting.append((work, done))

    def _begin(self, work: Work, done: Done) -> None:
        self._running += 1
        self._loop.run_in_executor(None, work).add_done_callback(partial(self._ended, done))

    def _ended(self, done: Done, future: asyncio.Future[Any]) -> None:
        self._running -= 1
        try:
            done(future)
        finally:
            if self._waiting:
                self._begin(*self._waiting.popleft())
