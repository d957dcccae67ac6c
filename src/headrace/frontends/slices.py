"""Work on large bodies on the event loop, a slice of about 100 µs in each turn of it.

JSON and protobuf are parsed with the GIL held, so a thread would stall the loop just as long, and
a thread of many short steps makes the loop wait for the GIL after each of its system calls. Here
all connections that are ready are served between two slices, small requests are never queued behind
large ones, and all large ones make progress in turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from headrace.limits import KIB

_LOG = logging.getLogger("headrace.http")

INLINE_BYTES = 64 * KIB
"""Bodies up to this size are handled at once: half a millisecond of numbers, and few objects."""

SLICE_BYTES = 16 * KIB
"""Of JSON numbers in one slice; a hundred microseconds of work, ten times what a turn costs."""

SLICE_VALUES = 1024
"""Numbers that become JSON in one slice."""

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Yields after each slice; returns the result."""


def finished(steps: Steps[T]) -> T:
    """The result of all steps at once, for callers without an event loop."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


class Slices:
    """Runs steps on the running event loop, one of each in turn."""

    def __init__(self) -> None:
        self._works: deque[_Work] = deque()
        self._scheduled = False

    def run(
        self, steps: Steps[T], done: Callable[[T], None], failed: Callable[[Exception], None]
    ) -> Callable[[], None]:
        """Calls ``done`` with the result, or ``failed`` with what was raised, by the steps or by
        ``done``; later, and one of them once.

        Returns:
            What ends it early; then neither is called.
        """
        work = _Work(steps, done, failed)
        self._works.append(work)
        self._schedule()
        return work.cancel

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        work = self._works.popleft()
        try:
            if work.advance():
                self._works.append(work)
        finally:  # also where ``failed`` raises
            if self._works:
                self._schedule()


class _Work:
    __slots__ = ("_done", "_failed", "_steps")

    def __init__(
        self,
        steps: Steps[Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._steps: Steps[Any] | None = steps
        self._done: Callable[[Any], None] = done
        self._failed: Callable[[Exception], None] = failed

    def cancel(self) -> None:
        """Frees what the steps hold."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def advance(self) -> bool:
        """One step; whether there are more."""
        steps = self._steps
        if steps is None:
            return False
        try:
            next(steps)
        except StopIteration as stop:
            self._steps = None
            self._end(stop.value)
            return False
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            self._steps = None
            self._failed(error)
            return False
        return True

    def _end(self, result: Any) -> None:
        try:
            self._done(result)
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            self._failed(error)
