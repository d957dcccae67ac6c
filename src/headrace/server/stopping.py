"""How SIGTERM and Ctrl-C end a server process, from its first moment to its last."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_LOG = logging.getLogger("headrace.server")


END_GRACE_S = 5.0
"""What giving everything back may take on top of the draining; the supervisor of several workers
waits for 10 s."""


class StopRequested(SystemExit):
    """SIGTERM arrived before the event loop handles signals; nothing has been accepted yet.

    A SystemExit, because that passes through an event loop and every ``except Exception``.
    """


def run_until_stopped(run: Callable[[], int]) -> int:
    """Calls ``run`` and returns its exit status. For the main thread, once in a process.

    SIGTERM raises :class:`StopRequested` in it until :class:`StopSignals` takes over: repositories
    are scanned, stores are fetched and models are opened before there is an event loop. That ends
    the process with status 0, because threads may be loading models, and the interpreter would wait
    for them.
    """
    _LAST_RESORT.watch()
    signal.signal(signal.SIGTERM, _raise_stop)
    try:
        status = run()
    except StopRequested:
        _LOG.info("stopping: nothing had been served yet")
        end_process(0)
    # A thread that returns from a library while the interpreter ends aborts the process.
    if any(thread.name.startswith("headrace-load-") for thread in threading.enumerate()):
        end_process(status)
    return status


def end_within(seconds: float) -> None:
    """Sets how long this process may take from SIGTERM or Ctrl-C to its end; else it is ended."""
    _LAST_RESORT.after_s = seconds


def end_process(status: int) -> NoReturn:
    """Ends the process without waiting for its threads."""
    logging.shutdown()
    os._exit(status)


class StopSignals:
    """SIGTERM and the first Ctrl-C call ``stop``; the second Ctrl-C ends the process.

    Use from the event loop. ``restore`` when the server has ended.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        _LAST_RESORT.pass_on()

    def restore(self) -> None:
        """Both signals end the process again."""
        _LAST_RESORT.step_back()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _LOG.info("stopping: finishing what is under way")
        self._stop()


class _LastResort:
    """Ends a process that does not end by itself after a signal to stop.

    Handlers in Python run on the main thread alone, which may be in a library for good. So a
    thread of its own reads what the interpreter's C handler writes to the wake-up descriptor, and
    passes it on to the event loop. The timer is ``faulthandler``'s, which needs no interpreter
    lock and prints where every thread is.
    """

    def __init__(self) -> None:
        self.after_s = 60.0
        self._writer: socket.socket | None = None
        self._loop_fd = -1

    def watch(self) -> None:
        """Begins, or goes on where this process has served before. From the main thread."""
        if self._writer is None:
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            threading.Thread(
                target=self._read, args=(reader,), name="headrace-stopping", daemon=True
            ).start()
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def pass_on(self) -> None:
        """Comes before an event loop that has taken the wake-up descriptor for itself."""
        if self._writer is not None:
            own = self._writer.fileno()
            before = signal.set_wakeup_fd(own, warn_on_full_buffer=False)
            self._loop_fd = -1 if before == own else before

    def step_back(self) -> None:
        """Leaves the wake-up descriptor to the event loop again."""
        if self._loop_fd >= 0:
            signal.set_wakeup_fd(self._loop_fd, warn_on_full_buffer=False)
            self._loop_fd = -1

    def _read(self, reader: socket.socket) -> None:
        armed = False
        while numbers := reader.recv(64):
            if not armed and {signal.SIGTERM, signal.SIGINT} & set(numbers):
                armed = True
                faulthandler.dump_traceback_later(self.after_s, exit=True, file=2)
            if self._loop_fd >= 0:
                with contextlib.suppress(OSError):  # it is full: the loop is told already
                    os.write(self._loop_fd, numbers)


_LAST_RESORT = _LastResort()


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    raise StopRequested(0)
