"""Requests whose answers come one after another, when the model likes.

In the core's eyes such a request is over when its batch is: the instance is free again. From
then on it is here that the request waits for its final answer, and for its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from headrace.engine import endings
from headrace.engine.inflight import Ticket
from headrace.engine.outcomes import Outcomes, response_of
from headrace.errors import HeadraceError
from headrace.runtimes.base import Emitted
from headrace.types import InferenceResponse

_LOG = logging.getLogger("headrace.engine")


class _Engine(Protocol):
    def answer(self, ticket: Ticket, response: InferenceResponse) -> None: ...

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None: ...


class Streams:
    """Passes answers on as they come. All but :meth:`emitted` on the event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: _Engine, outcomes: Outcomes
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._outcomes = outcomes

    def emitted(self, ticket: Ticket, answer: Emitted, final: bool) -> None:
        """From any thread: an answer of a model, or the end of its answers."""
        try:
            self._loop.call_soon_threadsafe(self._on_emitted, ticket, answer, final)
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
            cancel = getattr(ticket.served.loaded, "cancel", None)
            if cancel is not None:  # whoever is still at work on it may stop
                cancel(ticket.request_id)
            if cancel_first is not None:
                cancel_first(ticket)

        ticket.on_end = ended

    def _on_deadline(self, ticket: Ticket) -> None:
        waited_ns = int(self._loop.time() * 1e9) - ticket.arrived_ns
        self._engine.fail(
            ticket, "expire", endings.expired(ticket, waited_ns=waited_ns, running=True)
        )

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
