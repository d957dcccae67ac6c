"""How SIGTERM and Ctrl-C end a server process, from its first moment to its last."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_LOG = logging.getLogger("headrace.server")


class StopRequested(SystemExit):
    """SIGTERM arrived before the event loop handles signals; nothing has been accepted yet.

    A SystemExit, because that passes through an event loop and every ``except Exception``.
    """


def run_until_stopped(run: Callable[[], int]) -> int:
    """Calls ``run`` and returns its exit status. For the main thread.

    SIGTERM raises :class:`StopRequested` in it until :class:`StopSignals` takes over: repositories
    are scanned, stores are fetched and models are opened before there is an event loop. That ends
    the process with status 0, because threads may be loading models, and the interpreter would wait
    for them.
    """
    signal.signal(signal.SIGTERM, _raise_stop)
    try:
        return run()
    except StopRequested:
        _LOG.info("stopping: nothing had been served yet")
        end_process(0)


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

    def restore(self) -> None:
        """Both signals end the process again."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _LOG.info("stopping: finishing what is under way")
        self._stop()


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    raise StopRequested(0)
