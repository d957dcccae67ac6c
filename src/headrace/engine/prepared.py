"""Requests that a task turns into items before they are queued."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace.engine import endings
from headrace.engine.inflight import Part, Ticket
from headrace.engine.preprocess import Outcome, Preprocessor
from headrace.errors import HeadraceError
from headrace.tasks.base import Item


class Preparation:
    """The intake of models with a task.

    Args:
        admit: queues a ticket whose arrays or parts are set.
        fail: ends a ticket with an error.
        answer: ends a ticket of which nothing is to be run.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threads: int,
        *,
        admit: Callable[[Ticket], None],
        fail: Callable[[Ticket, str, HeadraceError], None],
        answer: Callable[[Ticket], None],
    ) -> None:
        self._admit = admit
        self._fail = fail
        self._answer = answer
        self._preprocessor = Preprocessor(loop, threads, self._on_prepared)

    def take(self, ticket: Ticket) -> None:
        """Prepares it on a thread, then queues it.

        Raises:
            Overloaded: as many as may wait are being prepared already.
        """
        served = ticket.served
        if served.preparing >= served.config.queue.max_queue_size:
            raise endings.too_many_prepared(served)
        served.preparing += 1
        self._preprocessor.add(ticket)

    def close(self) -> None:
        """Ends the threads."""
        self._preprocessor.close()

    def _on_prepared(self, outcomes: list[Outcome]) -> None:
        for ticket, outcome in outcomes:
            ticket.served.preparing -= 1
            if ticket.done:
                continue
            if isinstance(outcome, HeadraceError):
                self._fail(ticket, "reject", outcome)
            else:
                ticket.tokens = outcome.tokens
                self._admit_items(ticket, outcome.items)

    def _admit_items(self, ticket: Ticket, items: Sequence[Item]) -> None:
        if len(items) == 1:
            item = items[0]
            ticket.arrays, ticket.rows, ticket.length = item.arrays, item.rows, item.length
        else:
            ticket.parts = [Part(ticket, item.arrays, item.rows, item.length) for item in items]
            ticket.left = len(items)
            ticket.rows = sum(item.rows for item in items)
        if items:
            self._admit(ticket)
        else:
            self._answer(ticket)
