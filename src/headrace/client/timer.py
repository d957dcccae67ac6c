"""A one-shot timer on the event loop that is exact to microseconds.

``loop.call_at`` rounds to milliseconds (uvloop's clock ticks in them, ``epoll_wait`` takes
them), which would add up to one to every latency of the open loop. Spinning would be exact
and take the core that the server may need. Linux has a third way, ``timerfd``
(timerfd_create(2)): the kernel's high-resolution timer as a file that becomes readable.
Elsewhere this falls back to ``loop.call_later`` and its milliseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

_CLOCK_MONOTONIC = 1  # the clock of time.monotonic_ns on Linux
_TFD_TIMER_ABSTIME = 1
_SECOND_NS = 1_000_000_000


class Timer(Protocol):
    """Calls back once, at or after a moment of ``time.monotonic_ns``."""

    def set_at(self, when_ns: int) -> None:
        """Replaces what was set before; a moment in the past fires at once."""
        ...

    def close(self) -> None:
        """Never fires again."""
        ...


def make_timer(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Timer:
    """The most exact timer this platform has."""
    if sys.platform == "linux":
        try:
            return _KernelTimer(loop, callback)
        except (OSError, AttributeError):  # no file descriptor left; a libc without it
            pass
    return _LoopTimer(loop, callback)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _KernelTimer:
    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._setting = _Setting()
        self._reference = ctypes.byref(self._setting)
        self._loop = loop
        self._callback = callback
        loop.add_reader(self._fd, self._fire)

    def set_at(self, when_ns: int) -> None:
        # An all-zero value disarms the timer, so the earliest moment is 1 ns after the start.
        value = self._setting.value
        value.seconds, value.nanoseconds = divmod(max(when_ns, 1), _SECOND_NS)
        if self._settime(self._fd, _TFD_TIMER_ABSTIME, self._reference, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fire(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew between the event and this call
            return
        self._callback()


class _LoopTimer:
    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def set_at(self, when_ns: int) -> None:
        self.close()
        delay_s = max(0, when_ns - time.monotonic_ns()) / _SECOND_NS
        self._handle = self._loop.call_later(delay_s, self._callback)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
