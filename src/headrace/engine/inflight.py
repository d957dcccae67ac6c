"""The only place where a payload waits.

What the core knows by one ``request_id`` is a :class:`Part`: the rows that must stay
together in a batch. A :class:`Ticket` is a whole request from ``submit`` to its one answer.
Most requests are one part, and then the ticket is that part itself, because every object
on the path of a request is paid for; a request whose task made several items of it (ten
texts) has a part for each, so that each can find the batch where it fits best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError
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


class Part:
    """Rows that stay together: what is queued, batched and run.

    ``arrays``, ``rows`` and ``length`` are as in ``tasks.base.Item``. ``result`` is set when
    its batch is back. ``whole`` is the request it is a part of.
    """

    __slots__ = ("arrays", "length", "request_id", "result", "rows", "whole")

    def __init__(
        self, whole: Ticket | None, request_id: int, arrays: Arrays, rows: int, length: int
    ) -> None:
        self.whole = whole
        self.request_id = request_id
        self.arrays = arrays
        self.rows = rows
        self.length = length
        self.result: Sequence[np.ndarray] | None = None


class Ticket(Part):
    """One request inside the engine. Its own only part, unless ``parts`` says otherwise."""

    __slots__ = ("done", "left", "parts", "record", "reply", "request", "served", "tokens")

    def __init__(
        self,
        served: ServedModel,
        request: InferenceRequest,
        reply: Reply,
        record: RequestRecord,
    ) -> None:
        # Set one by one: a call of super().__init__ would cost a third of all this.
        self.whole = None
        self.request_id = 0
        self.arrays = ()
        self.rows = 1
        self.length = 0
        self.result = None
        self.served = served
        self.request = request
        self.reply = reply
        self.record = record
        self.parts: Sequence[Part] = ()
        self.left = 1  # parts without a result yet
        self.tokens = 0
        self.done = False

    def all_parts(self) -> Sequence[Part]:
        """Every part; itself where there is only one."""
        return self.parts or (self,)
