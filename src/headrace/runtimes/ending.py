"""How a load that takes too long is ended: what runs in it has said how it can be.

Most libraries cannot be interrupted from Python, so this is not certain. A load that does not end
keeps its thread; see ``engine/load_threads.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar


class Ending:
    """Of one load.

    Attributes:
        ended: it has been asked to end; what was measured since means nothing.
    """

    def __init__(self) -> None:
        self.ended = False
        self._ways: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def add(self, way: Callable[[], None]) -> None:
        """``way`` ends something that is under way; it may be called again, and must not wait."""
        with self._lock:
            self._ways.append(way)

    def end(self) -> None:
        """Ends what is under way now. What begins later has to be ended by a further call."""
        self.ended = True
        with self._lock:
            ways = tuple(self._ways)
        for way in ways:
            way()


current: ContextVar[Ending | None] = ContextVar("headrace-load", default=None)
"""That of the load which this thread carries out; None: it carries out none."""


def on_end(way: Callable[[], None]) -> None:
    """:meth:`Ending.add` for the load that this thread carries out, if it does."""
    ending = current.get()
    if ending is not None:
        ending.add(way)


def was_ended() -> bool:
    """Whether the load that this thread carries out was asked to end."""
    ending = current.get()
    return ending is not None and ending.ended
