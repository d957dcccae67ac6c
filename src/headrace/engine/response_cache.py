"""Equal requests, answered from memory.

Law: what is answered from here is byte for byte what the model answered to an equal request:
same model in memory, same inputs (datatypes, shapes, bytes), same outputs asked for, same
parameters. Triton's cache leaves parameters out of its key; a model can see them, so here they
count. Only a model's success is kept. Bounded by bytes, least recently used first to go.

Requests that are equal to one under way wait for its answer instead of running too. If it has
none to give (it failed, was cancelled, ran out of time), each of them runs by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import numpy as np

from headrace.engine import endings
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.served import Intake, ServedModel
from headrace.errors import HeadraceError
from headrace.telemetry.instruments import Instrument, RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor

FOLLOWERS_MAX = 1024
"""Requests that wait for one equal one; more run by themselves, as if there were no cache."""

_HOW_NOT_WHAT = frozenset(
    {"binary_data_output", "priority", "timeout", "triton_enable_empty_final_response"}
)
"""Parameters of the protocol: they say when and in which form to answer."""

_ENTRY_BYTES = 512
"""What an entry costs beside its arrays: keys, structs, the headers of arrays."""

_BYTES_ELEMENT = 33
"""What Python needs for a ``bytes`` beside its content."""


class _Entry(msgspec.Struct, frozen=True):
    response: InferenceResponse
    size_bytes: int
    model: int


class _Flight(msgspec.Struct, eq=False):
    """One request that runs, and those that wait for its answer."""

    started_ns: int
    lookup_ns: int
    followers: list[Ticket]
    landed: bool = False


class ResponseCache:
    """One for an engine. On the event loop.

    Args:
        max_bytes: of all entries together; one that alone is larger is not kept.
        answer: ends a ticket with a response.
        fail: ends a ticket with an error.
        instrument: told of every look-up.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        answer: Callable[[Ticket, InferenceResponse], None],
        fail: Callable[[Ticket, str, HeadraceError], None],
        instrument: Instrument,
    ) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._loop = loop
        self._now_ns = now_ns
        self._answer = answer
        self._fail = fail
        self._instrument = instrument
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def before(self, then: Intake) -> Intake:
        """The intake that answers from memory what it can and hands the rest to ``then``."""

        def take(ticket: Ticket) -> None:
            if ticket.request.sequence_id:
                then(ticket)
            else:
                self._take(ticket, then)

        return take

    def forget(self, served: ServedModel) -> None:
        """Its model is gone."""
        gone = [key for key, entry in self._entries.items() if entry.model == served.number]
        for key in gone:
            self._remove(key)

    def _take(self, ticket: Ticket, then: Intake) -> None:
        started_ns = self._now_ns()
        key = key_of(ticket)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self._loop.call_soon(self._hit, ticket, entry.response, started_ns)
            return
        flight = self._flights.get(key)
        if flight is not None and len(flight.followers) < FOLLOWERS_MAX:
            self._follow(ticket, flight)
            return
        taken_ns = self._now_ns() - started_ns
        if flight is None:
            self._lead(ticket, key, _Flight(started_ns, taken_ns, []), then)
        else:
            self._looked_up(ticket, taken_ns, hit=False)
            then(ticket)

    def _hit(self, ticket: Ticket, kept: InferenceResponse, started_ns: int) -> None:
        if ticket.done:
            return
        served = ticket.served
        self._looked_up(ticket, self._now_ns() - started_ns, hit=True)
        response = InferenceResponse(
            served.name,
            served.version,
            ticket.request.id,
            list(kept.outputs),
            kept.parameters,
            kept.usage,
        )
        self._answer(ticket, response)

    def _looked_up(self, ticket: Ticket, taken_ns: int, *, hit: bool) -> None:
        self._instrument.cache_looked_up(
            ticket.model, ticket.version, hit=hit, ns=taken_ns, rows=ticket.rows
        )

    # -- equal requests at one time -------------------------------------------------------

    def _lead(self, ticket: Ticket, key: bytes, flight: _Flight, then: Intake) -> None:
        self._flights[key] = flight
        ticket.reply = _Leader(self, key, flight, ticket.reply)

        def ended(leader: Ticket) -> None:
            # Called before the reply is; whether there was an answer is known a turn later.
            self._loop.call_soon(self._lost, leader, key, flight, then)

        ticket.when_ended(ended)
        try:
            then(ticket)
        except HeadraceError:
            self._close(key, flight)  # nobody follows yet: that takes another submission
            raise

    def _follow(self, ticket: Ticket, flight: _Flight) -> None:
        now_ns = self._now_ns()
        arrived_ns = ticket.arrived_ns or now_ns
        timeout_ns = ticket.request.timeout_ns or ticket.served.timeout_ns
        left_s = max(0.0, (arrived_ns + timeout_ns - now_ns) / 1e9)
        timer = self._loop.call_later(left_s, self._expire, ticket, timeout_ns)
        ticket.when_ended(lambda _: timer.cancel())
        flight.followers.append(ticket)

    def _expire(self, ticket: Ticket, waited_ns: int) -> None:
        error = endings.expired(ticket, waited_ns=waited_ns, running=True)
        self._fail(ticket, "expire", error)

    def landed(
        self, key: bytes, flight: _Flight, ticket: Ticket, response: InferenceResponse
    ) -> None:
        """The leader has its answer: keep it, and give it to those that wait."""
        began_ns = self._now_ns()
        self._close(key, flight)
        kept = _copy_of(response)
        size_bytes = _ENTRY_BYTES + sum(_size_bytes(tensor.data) for tensor in kept.outputs)
        if size_bytes <= self.max_bytes:
            self._entries[key] = _Entry(kept, size_bytes, ticket.served.number)
            self.size_bytes += size_bytes
            while self.size_bytes > self.max_bytes:
                self._remove(next(iter(self._entries)))
        self._looked_up(ticket, flight.lookup_ns + self._now_ns() - began_ns, hit=False)
        for follower in flight.followers:
            self._loop.call_soon(self._hit, follower, kept, flight.started_ns)

    def _lost(self, leader: Ticket, key: bytes, flight: _Flight, then: Intake) -> None:
        """The leader ended; if without an answer, everybody runs by itself."""
        if flight.landed:
            return
        self._close(key, flight)
        self._looked_up(leader, flight.lookup_ns, hit=False)
        for ticket in flight.followers:
            if ticket.done:
                continue
            self._looked_up(ticket, flight.lookup_ns, hit=False)
            try:
                then(ticket)
            except HeadraceError as error:
                self._fail(ticket, "reject", error)

    def _close(self, key: bytes, flight: _Flight) -> None:
        flight.landed = True
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _remove(self, key: bytes) -> None:
        self.size_bytes -= self._entries.pop(key).size_bytes


class _Leader:
    """The reply of a request whose answer others may want."""

    def __init__(self, cache: ResponseCache, key: bytes, flight: _Flight, reply: Reply) -> None:
        self._cache = cache
        self._key = key
        self._flight = flight
        self._reply = reply

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """Keeps the answer and passes it on."""
        assert isinstance(record, Ticket)
        self._cache.landed(self._key, self._flight, record, response)
        self._reply.complete(response, record)

    def fail(self, error: HeadraceError) -> None:
        """Passes it on; who follows is seen to when the ticket has ended."""
        self._reply.fail(error)


def key_of(ticket: Ticket) -> bytes:
    """Names everything that decides the answer, in 32 bytes."""
    served, request = ticket.served, ticket.request
    digest = hashlib.blake2b(digest_size=32)
    digest.update(repr((served.number, _wanted(request), _parameters(request))).encode())
    for array in ticket.arrays:
        if array is None:
            digest.update(b"-")
        elif array.dtype.kind == "O":
            digest.update(repr(array.shape).encode())
            for element in array.flat:
                digest.update(len(element).to_bytes(8, "little"))
                digest.update(element)
        else:
            digest.update(repr((array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _wanted(request: InferenceRequest) -> list[tuple[str, int]] | None:
    if request.outputs is None:
        return None
    return [(output.name, output.classification) for output in request.outputs]


def _parameters(request: InferenceRequest) -> list[tuple[str, str]]:
    said = request.parameters or {}
    return sorted((name, repr(said[name])) for name in said.keys() - _HOW_NOT_WHAT)


def _copy_of(response: InferenceResponse) -> InferenceResponse:
    """With memory of its own: an answer is often a view of a batch, all of which would stay."""
    outputs = [
        Tensor(tensor.name, tensor.datatype, tensor.shape, np.array(tensor.data, order="C"))
        for tensor in response.outputs
    ]
    return InferenceResponse(
        response.model_name,
        response.model_version,
        "",
        outputs,
        response.parameters,
        response.usage,
    )


def _size_bytes(array: np.ndarray) -> int:
    size = array.nbytes
    if array.dtype.kind == "O":
        size += sum(_BYTES_ELEMENT + len(element) for element in array.flat)
    return size
