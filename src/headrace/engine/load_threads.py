"""Loading threads: each load has a thread of its own, and so much time and no more.

A thread that is in a library cannot be ended from outside. One that is late is asked to end by
what can be interrupted in it, and abandoned: its load has failed, its place is free for the next
model, and what it still brings is thrown away. Daemon threads, so that none of them can keep the
process from ending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from headrace.errors import ModelLoadError
from headrace.limits import LOAD_TIMEOUT_S, TRIAL_TIMEOUT_S
from headrace.runtimes.ending import Ending, current

_LOG = logging.getLogger("headrace.engine")

ABANDONED_MAX = 8
"""Threads that were abandoned and have not ended. Each may keep a core and the memory of a model,
so with more of them nothing further is loaded."""

ASK_AGAIN_S = 0.5
"""A load is many steps, and interrupting ends one of them: so it is done until all is over."""

T = TypeVar("T")


class LoadTimeouts(NamedTuple):
    """``server.load_timeout_s`` and ``server.trial_timeout_s``."""

    load_s: float = LOAD_TIMEOUT_S
    trial_s: float = TRIAL_TIMEOUT_S


LOAD_TIMEOUTS = LoadTimeouts()
"""The defaults."""


class LoadThreads:
    """Runs loads. Use from the event loop.

    Args:
        timeout_s: how long one may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._abandoned = 0
        self._lock = threading.Lock()

    async def run(self, model: str, work: Callable[[], T], discard: Callable[[T], None]) -> T:
        """Calls ``work`` in a thread.

        Args:
            model: its name, for errors.
            work: loads it.
            discard: is given what ``work`` returns too late, in that thread.

        Raises:
            ModelLoadError: it was not over in time (``load_timeout``), or too many others never
                ended (``loads_hang``).
        """
        if self._abandoned >= ABANDONED_MAX:
            raise ModelLoadError(
                f"model '{model}' is not loaded: {self._abandoned} earlier loads exceeded "
                "server.load_timeout_s and have not ended",
                code="loads_hang",
                hint="restart the server without the models that cannot be loaded",
                model=model,
            )
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # cancelling a waiter does not stop a thread
        ending = Ending()
        thread = threading.Thread(
            target=_carry_out, args=(work, future, ending), name=f"headrace-load-{model}"
        )
        thread.daemon = True
        thread.start()
        waiting = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait({waiting}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            self._abandon(thread, ending, future, discard)
            raise
        if done:
            return waiting.result()
        waiting.add_done_callback(lambda late: late.cancelled() or late.exception())
        self._abandon(thread, ending, future, discard)
        raise ModelLoadError(
            f"model '{model}' did not load within server.load_timeout_s = {self._timeout_s:g}",
            code="load_timeout",
            hint="raise server.load_timeout_s if it needs longer",
            model=model,
        )

    def _abandon(
        self,
        thread: threading.Thread,
        ending: Ending,
        future: Future[T],
        discard: Callable[[T], None],
    ) -> None:
        with self._lock:
            self._abandoned += 1

        def see_it_end() -> None:
            ending.end()
            while not _joined(thread):
                ending.end()
            with self._lock:
                self._abandoned -= 1
            if future.exception() is None:
                try:
                    discard(future.result())
                except Exception:  # noqa: BLE001 # a runtime's; the thread ends all the same
                    _LOG.exception("what %s loaded too late cannot be unloaded", thread.name)

        threading.Thread(target=see_it_end, name=f"{thread.name}-end", daemon=True).start()


def _joined(thread: threading.Thread) -> bool:
    thread.join(ASK_AGAIN_S)
    return not thread.is_alive()


def _carry_out(work: Callable[[], T], future: Future[T], ending: Ending) -> None:
    current.set(ending)
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 # whoever waits for it is told
        future.set_exception(error)
    else:
        future.set_result(result)
