"""The only place where a payload waits.

What the core knows by one ``request_id`` is a :class:`Part`: the rows that must stay
together in a batch. A :class:`Ticket` is a whole request from ``submit`` to its one answer.
Most requests are one part, and then the ticket is that part itself, because every object
on the path of a request is paid for; a request whose task made several items of it (ten
texts) has a part for each, so that each can find the batch where it fits best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError, detached
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse

Arrays = Sequence[np.ndarray | None]


class Reply(Protocol):
    """Where the one answer goes. Exactly one of the two is called, once, on the event loop."""

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """The request succeeded; ``record`` has every stamp up to ``finished``."""
        ...

    def fail(self, error: HeadraceError) -> None:
        """The request ended in any other way."""
        ...


class StreamReply(Reply, Protocol):
    """Where several answers go. ``complete`` has the last one, whose outputs may be empty."""

    def part(self, response: InferenceResponse) -> None:
        """One more answer, and not the last."""
        ...


class Canceller(Protocol):
    """The side of the engine that a ticket needs."""

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants the answer any more."""
        ...


class Part(msgspec.Struct, eq=False):
    """Rows of a request that stay together: what is queued, batched and run.

    ``arrays``, ``rows`` and ``length`` are as in ``tasks.base.Item``. ``result`` is set when
    its batch is back. ``whole`` is the request it is a part of.
    """

    whole: Ticket
    arrays: Arrays
    rows: int
    length: int
    request_id: int = 0
    result: Sequence[np.ndarray] | None = None


class Ticket(RequestRecord, gc=True, eq=False, kw_only=True):
    """One request inside the engine. Its own only part, unless ``parts`` says otherwise.

    It is the record that instruments are told of as well: one object less for each request,
    and a stamp is one assignment.
    """

    engine: Canceller
    served: ServedModel
    request: InferenceRequest
    reply: Reply
    arrays: Arrays = ()
    length: int = 0
    request_id: int = 0
    result: Sequence[np.ndarray] | None = None
    parts: Sequence[Part] = ()
    left: int = 1  # parts without a result yet
    answers: int = 0  # given so far, where there may be several
    answered_ns: int = 0  # when the last of them was
    done: bool = False
    kept: Any = None  # a ``response_cache.Kept``, where the answer is one
    on_end: Callable[[Ticket], None] | None = None
    """Called once, whichever way the request ends, before its reply is."""

    def all_parts(self) -> Sequence[Member]:
        """Every part; itself where there is only one."""
        return self.parts or (self,)

    def cancel(self) -> None:
        """Nobody wants the answer any more; see ``Engine.cancel``."""
        self.engine.cancel(self)

    def when_ended(self, then: Callable[[Ticket], None]) -> None:
        """Calls ``then`` too, after what is called already; see ``on_end``."""
        first = self.on_end
        if first is None:
            self.on_end = then
            return

        def both(ticket: Ticket) -> None:
            first(ticket)
            then(ticket)

        self.on_end = both

    def never_ran(self, now_ns: int) -> None:
        """There was nothing to run, which took no time."""
        self.admitted_ns = self.batched_ns = self.started_ns = now_ns
        self.executed_ns = self.finished_ns = now_ns


def size_bytes(arrays: Arrays) -> int:
    """Of the tensors as they lie in memory; of BYTES only the references."""
    return sum([array.nbytes for array in arrays if array is not None])


Member = Part | Ticket
"""What a batch is made of."""


def whole_of(part: Member) -> Ticket:
    """The request that a part belongs to; a ticket without parts is its own."""
    return part if isinstance(part, Ticket) else part.whole


class FutureReply:
    """A reply that somebody awaits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[InferenceResponse] = loop.create_future()

    def complete(self, response: InferenceResponse, _record: RequestRecord) -> None:
        """Wakes who awaits."""
        if not self.future.done():
            self.future.set_result(response)

    def fail(self, error: HeadraceError) -> None:
        """Raises where it is awaited."""
        if not self.future.done():
            self.future.set_exception(detached(error))
