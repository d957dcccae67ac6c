"""Tokenising and decoding, off the event loop.

Requests of one loop turn go to the threads in as few hops as there are threads, not in one
hop each: a hop costs about as much as tokenising a sentence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from headrace.engine.inflight import Ticket
from headrace.errors import HeadraceError, InferenceFailed, detached
from headrace.tasks.base import Prepared

_LOG = logging.getLogger("headrace.engine")

Outcome = tuple[Ticket, Prepared | HeadraceError]

_GONE = Prepared([])
"""For a request that ended (cancelled) before its turn came."""


class Preprocessor:
    """Runs ``Task.prepare`` for many tickets and reports all of a hop at once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threads: int,
        finished: Callable[[list[Outcome]], None],
    ) -> None:
        self._loop = loop
        self._threads = threads
        self._finished = finished
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="headrace-prepare")
        self._waiting: list[Ticket] = []
        self._scheduled = False

    def add(self, ticket: Ticket) -> None:
        """Prepares it soon; all that is added within one turn of the loop goes together."""
        self._waiting.append(ticket)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def close(self) -> None:
        """Ends the threads; what is under way is finished and dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self) -> None:
        self._scheduled = False
        waiting, self._waiting = self._waiting, []
        share = -(-len(waiting) // self._threads)
        for start in range(0, len(waiting), share):
            self._pool.submit(self._work, waiting[start : start + share])

    def _work(self, tickets: list[Ticket]) -> None:
        outcomes: list[Outcome] = [(t, _GONE if t.done else _prepare(t)) for t in tickets]
        try:
            self._loop.call_soon_threadsafe(self._finished, outcomes)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told


def _prepare(ticket: Ticket) -> Prepared | HeadraceError:
    task = ticket.served.task
    assert task is not None
    try:
        return task.prepare(ticket.request)
    except HeadraceError as error:
        return detached(error)
    except Exception as error:  # noqa: BLE001 - one odd input must not end the server
        _LOG.exception("task %s of model %s raised", task.kind, ticket.served.name)
        return InferenceFailed(
            f"preparing the input of model '{ticket.served.name}' failed: "
            f"{type(error).__name__}: {error}",
            model=ticket.served.name,
        )
