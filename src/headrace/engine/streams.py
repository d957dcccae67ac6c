"""Requests whose answers come one after another, when the model likes.

In the core's eyes such a request is over when its batch is: the instance is free again. From
then on it is here that the request waits for its final answer, and for its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from headrace.engine import endings
from headrace.engine.inflight import Member, Ticket, whole_of
from headrace.engine.outcomes import Outcomes, response_of
from headrace.errors import HeadraceError
from headrace.runtimes.base import Emitted
from headrace.types import InferenceResponse

_LOG = logging.getLogger("headrace.engine")

MAX_UNSEEN = 256
"""Answers that threads have given and the event loop has not looked at. A model that gives them
faster than they can be sent is held up here, before they fill the memory."""

_PATIENCE_S = 1.0
"""How often a thread that is held up looks whether the loop is still there."""


class _Engine(Protocol):
    def answer(self, ticket: Ticket, response: InferenceResponse) -> None: ...

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None: ...


class Streams:
    """Passes answers on as they come. All but :meth:`emitted` on the event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: _Engine, outcomes: Outcomes
    ) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._room = threading.BoundedSemaphore(MAX_UNSEEN)
        self._engine = engine
        self._outcomes = outcomes

    def emitted(self, ticket: Ticket, answer: Emitted, final: bool) -> None:
        """From any thread: an answer of a model, or the end of its answers.

        A thread waits while there are too many that the loop has not looked at.
        """
        then = self._on_emitted
        if threading.get_ident() != self._thread:
            while not self._room.acquire(timeout=_PATIENCE_S):
                if self._loop.is_closed():
                    return
            then = self._on_admitted
        try:
            self._loop.call_soon_threadsafe(then, ticket, answer, final)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told

    def detach(self, ticket: Ticket) -> None:
        """Its batch is over; what is still to come is waited for until its deadline."""
        if ticket.done:
            return
        sequences = ticket.served.sequences
        if sequences is not None and sequences.again(ticket):
            return
        cancel_first = ticket.on_end
        left_s = (ticket.arrived_ns + _timeout_ns(ticket)) / 1e9 - self._loop.time()
        timer = self._loop.call_later(max(0.0, left_s), self._on_deadline, ticket)

        def ended(ticket: Ticket) -> None:
            timer.cancel()
            if cancel_first is not None:
                cancel_first(ticket)

        ticket.on_end = ended

    @staticmethod
    def stop(parts: Sequence[Member]) -> None:
        """These have ended before their model was through: whoever is at work on them may stop."""
        for part in parts:
            served = whole_of(part).served
            if served.takes_requests and part.request_id:
                cancel = getattr(served.loaded, "cancel", None)
                if cancel is not None:
                    cancel(part.request_id)

    def _on_deadline(self, ticket: Ticket) -> None:
        waited_ns = int(self._loop.time() * 1e9) - ticket.arrived_ns
        self._engine.fail(
            ticket, "expire", endings.expired(ticket, waited_ns=waited_ns, running=True)
        )

    def _on_admitted(self, ticket: Ticket, answer: Emitted, final: bool) -> None:
        self._room.release()
        self._on_emitted(ticket, answer, final)

    def _on_emitted(self, ticket: Ticket, answer: Emitted, final: bool) -> None:
        if ticket.done:
            return
        if isinstance(answer, HeadraceError):
            self._outcomes.answered(ticket, "fail")
            self._engine.fail(ticket, "fail", answer)
            return
        try:
            response = _response(ticket, answer)
        except Exception as error:  # noqa: BLE001 - one answer must not stop the others
            self._engine.fail(ticket, "fail", endings.unanswerable(ticket, error))
            return
        self._outcomes.answered(ticket, "success" if response.outputs else "empty")
        if final:
            self._engine.answer(ticket, response)
            return
        try:
            ticket.reply.part(response)  # type: ignore[attr-defined]  # checked by submit
        except Exception:  # noqa: BLE001 - one broken connection must not stop the others
            _LOG.exception("a reply could not be delivered")


def _timeout_ns(ticket: Ticket) -> int:
    return ticket.request.timeout_ns or ticket.served.timeout_ns


def _response(ticket: Ticket, answer: Sequence[np.ndarray | None] | None) -> InferenceResponse:
    if answer is None:
        served = ticket.served
        return InferenceResponse(served.name, served.version, ticket.request.id, [])
    ticket.result = answer  # type: ignore[assignment]
    return response_of(ticket)
