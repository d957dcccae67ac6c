"""Equal requests, answered from memory.

Law: what is answered from here is byte for byte what the model answered to an equal request:
same model in memory, same inputs (datatypes, shapes, bytes), same outputs asked for, same
parameters. Triton's cache leaves parameters out of its key; a model can see them, so here they
count. Only a model's success is kept, for as long as the model's ``ttl`` says, and for the tenant
that asked, unless the model shares. Bounded by bytes (``cache_store``). Where there is a second,
shared place (``shared_cache``) it is asked before the model, and told after it.

Requests that are equal to one under way wait for its answer instead of running too. If it has
none to give, the first of them takes its place and the others wait for that one. Two in a row that
fail by themselves are believed: the rest get the same error, and not a failure each in turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from headrace.engine import endings
from headrace.engine.cache_store import CacheStore
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.outcomes import Outcomes
from headrace.engine.served import Intake, ServedModel
from headrace.engine.shared_cache import SharedTier
from headrace.errors import HeadraceError, ModelError, RequestError
from headrace.telemetry.instruments import RequestRecord
from headrace.types import DYNAMIC, InferenceRequest, InferenceResponse, Tensor, TensorSpec

_LOG = logging.getLogger("headrace.engine")

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


_FAILURES_BELIEVED = 2


class Kept(msgspec.Struct, eq=False):
    """An answer of a ticket that is kept: for whoever can say it again more cheaply."""

    cache: ResponseCache
    key: bytes
    response: InferenceResponse
    served: ServedModel
    rows: int

    def again(self, arrived_ns: int) -> bool:
        """Whether it still counts; then it was given once more, to a request that arrived then."""
        return self.cache.given_again(self, arrived_ns)


class _Flight(msgspec.Struct, eq=False):
    """One request that runs, and those that wait for its answer.

    ``failures``: leaders in a row that ended with an error of their own; ``error`` the last one's.
    """

    started_ns: int
    lookup_ns: int
    followers: deque[Ticket]
    landed: bool = False
    leader: Ticket | None = None
    failures: int = 0
    error: HeadraceError | None = None


class ResponseCache:
    """One for an engine. On the event loop.

    Args:
        max_bytes: of all entries together; one that alone is larger is not kept.
        shared: a second place for answers; None: there is none.
        answer: ends a ticket with a response.
        fail: ends a ticket with an error.
        outcomes: told of every look-up.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        answer: Callable[[Ticket, InferenceResponse], None],
        fail: Callable[[Ticket, str, HeadraceError], None],
        outcomes: Outcomes,
        shared: SharedTier | None = None,
    ) -> None:
        self.store: CacheStore[InferenceResponse] = CacheStore(max_bytes)
        self._shared = shared
        self._loop = loop
        self._now_ns = now_ns
        self._answer = answer
        self._fail = fail
        self._outcomes = outcomes
        self._given: list[tuple[Kept, int, int]] = []
        self._flights: dict[bytes, _Flight] = {}

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
        self.store.forget(served.number)

    def _take(self, ticket: Ticket, then: Intake) -> None:
        started_ns = self._now_ns()
        key = key_of(ticket)
        kept = self.store.get(key, started_ns)
        if kept is not None:
            self._loop.call_soon(self._hit, ticket, key, kept, started_ns)
            return
        flight = self._flights.get(key)
        if flight is not None and len(flight.followers) < FOLLOWERS_MAX:
            self._follow(ticket, flight)
            return
        taken_ns = self._now_ns() - started_ns
        if flight is None:
            flight = _Flight(started_ns, taken_ns, deque())
            try:
                if self._shared is None or not ticket.served.fingerprint:
                    self._lead(ticket, key, flight, then)
                else:
                    self._look_further(ticket, key, flight, then, self._shared)
            except HeadraceError:
                self._close(key, flight)  # nobody follows yet: that takes another submission
                raise
        else:
            self._looked_up(ticket, taken_ns, hit=False)
            then(ticket)

    def _hit(self, ticket: Ticket, key: bytes, kept: InferenceResponse, started_ns: int) -> None:
        if ticket.done:
            return
        served = ticket.served
        self._looked_up(ticket, self._now_ns() - started_ns, hit=True)
        ticket.kept = Kept(self, key, kept, served, ticket.rows)
        response = InferenceResponse(
            served.name,
            served.version,
            ticket.request.id,
            list(kept.outputs),
            kept.parameters,
            kept.usage,
        )
        self._answer(ticket, response)

    def given_again(self, kept: Kept, arrived_ns: int) -> bool:
        """See :meth:`Kept.again`."""
        now_ns = self._now_ns()
        if not self._outcomes.counts_only or self.store.get(kept.key, now_ns) is not kept.response:
            return False
        if not self._given:
            self._loop.call_soon(self._count_given)
        self._given.append((kept, arrived_ns, now_ns))
        return True

    def _count_given(self) -> None:
        """All of one turn of the loop together."""
        given, self._given = self._given, []
        for kept, arrived_ns, now_ns in given:
            served = kept.served
            self._outcomes.cache_looked_up(
                served.name, served.version, hit=True, ns=0, rows=kept.rows
            )
            stamps = (arrived_ns, *[now_ns] * 8)
            record = RequestRecord(served.name, served.version, kept.rows, 0, *stamps)
            self._outcomes.completed((record,))

    def _looked_up(self, ticket: Ticket, taken_ns: int, *, hit: bool) -> None:
        self._outcomes.cache_looked_up(
            ticket.model, ticket.version, hit=hit, ns=taken_ns, rows=ticket.rows
        )

    # -- equal requests at one time -------------------------------------------------------

    def _lead(
        self,
        ticket: Ticket,
        key: bytes,
        flight: _Flight,
        then: Intake,
        begin: Intake | None = None,
    ) -> None:
        """Runs it; ``begin`` first, if given, which sees to it that ``then`` is called."""
        self._flights[key] = flight
        flight.leader = ticket
        ticket.reply = _Leader(self, key, flight, ticket.reply)

        def ended(leader: Ticket) -> None:
            # Called before the reply is; whether there was an answer is known a turn later.
            self._loop.call_soon(self._lost, leader, key, flight, then)

        ticket.when_ended(ended)
        (begin or then)(ticket)

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
        kept = self._keep(key, ticket.served, response, began_ns)
        if self._shared is not None and ticket.served.fingerprint:
            ttl_ns = ticket.served.config.cache.ttl_ns
            self._shared.put(shared_key(ticket), kept, ttl_ns)
        self._looked_up(ticket, flight.lookup_ns + self._now_ns() - began_ns, hit=False)
        for follower in flight.followers:
            self._loop.call_soon(self._hit, follower, key, kept, flight.started_ns)

    def _keep(
        self, key: bytes, served: ServedModel, response: InferenceResponse, now_ns: int
    ) -> InferenceResponse:
        cache = served.config.cache
        kept = _copy_of(response)
        size_bytes = _ENTRY_BYTES + sum(_size_bytes(tensor.data) for tensor in kept.outputs)
        if not cache.max_entry_bytes or size_bytes <= cache.max_entry_bytes:
            expires_ns = now_ns + cache.ttl_ns if cache.ttl_ns else 0
            self.store.put(
                key,
                kept,
                size_bytes,
                group=served.number,
                expires_ns=expires_ns,
                now_ns=now_ns,
            )
        return kept

    def _lost(self, leader: Ticket, key: bytes, flight: _Flight, then: Intake) -> None:
        """The leader ended; if without an answer, the first that waits takes its place."""
        if flight.landed or flight.leader is not leader:
            return
        self._looked_up(leader, flight.lookup_ns, hit=False)
        # These are about what was asked; that somebody left, or ran out of time, is not.
        failed = isinstance(flight.error, ModelError | RequestError)
        flight.failures = flight.failures + 1 if failed else 0
        error, flight.error = flight.error, None
        while flight.followers:
            ticket = flight.followers.popleft()
            if ticket.done:
                continue
            if flight.failures >= _FAILURES_BELIEVED and error is not None:
                self._looked_up(ticket, flight.lookup_ns, hit=False)
                self._fail(ticket, "fail", error)
                continue
            try:
                self._lead(ticket, key, flight, then)
            except HeadraceError as refused:
                self._fail(ticket, "reject", refused)
                continue
            return
        self._close(key, flight)

    # -- the shared place -----------------------------------------------------------------

    def _look_further(
        self, ticket: Ticket, key: bytes, flight: _Flight, then: Intake, shared: SharedTier
    ) -> None:
        """Asks the shared place before the model; equal requests wait for what it says."""
        self._lead(ticket, key, flight, then, _nothing_yet)
        self._loop.create_task(self._asked(ticket, key, flight, then, shared)).add_done_callback(
            _raised
        )

    async def _asked(
        self, ticket: Ticket, key: bytes, flight: _Flight, then: Intake, shared: SharedTier
    ) -> None:
        found = await shared.get(shared_key(ticket), partial(_could_answer, ticket))
        if ticket.done:
            return
        if found is None:
            try:
                then(ticket)
            except HeadraceError as error:
                self._fail(ticket, "reject", error)
            return
        self._close(key, flight)
        kept = self._keep(key, ticket.served, found, self._now_ns())
        ticket.reply = ticket.reply.inner if isinstance(ticket.reply, _Leader) else ticket.reply
        self._hit(ticket, key, kept, flight.started_ns)
        for follower in flight.followers:
            self._hit(follower, key, kept, flight.started_ns)

    def _close(self, key: bytes, flight: _Flight) -> None:
        flight.landed = True
        if self._flights.get(key) is flight:
            del self._flights[key]


def _nothing_yet(_ticket: Ticket) -> None:
    """The request waits for the shared place."""


def _raised(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _LOG.error("the shared cache", exc_info=task.exception())


class _Leader:
    """The reply of a request whose answer others may want."""

    def __init__(self, cache: ResponseCache, key: bytes, flight: _Flight, reply: Reply) -> None:
        self._cache = cache
        self._key = key
        self._flight = flight
        self.inner = reply

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """Keeps the answer and passes it on."""
        assert isinstance(record, Ticket)
        self._cache.landed(self._key, self._flight, record, response)
        self.inner.complete(response, record)

    def fail(self, error: HeadraceError) -> None:
        """Passes it on; who follows is seen to when the ticket has ended."""
        self._flight.error = error
        self.inner.fail(error)


def key_of(ticket: Ticket) -> bytes:
    """Names everything that decides the answer, in 32 bytes, in this process."""
    return _digest(ticket, ticket.served.number)


def shared_key(ticket: Ticket) -> bytes:
    """The same for other processes: the model by its name, version and content."""
    served = ticket.served
    return _digest(ticket, (served.name, served.version, served.fingerprint))


def scope_of(ticket: Ticket) -> str:
    """Everything but the inputs and the model that decides the answer, and whose it is."""
    request = ticket.request
    tenant = "" if ticket.served.config.cache.shared_between_tenants else request.tenant
    return repr((tenant, _wanted(request), _parameters(request)))


def _digest(ticket: Ticket, model: object) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    digest.update(repr((model, scope_of(ticket))).encode())
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


def _could_answer(ticket: Ticket, response: InferenceResponse) -> bool:
    """Whether the model could answer this: what another process kept is not taken on trust."""
    served = ticket.served
    if (response.model_name, response.model_version) != (served.name, served.version):
        return False
    specs = {spec.name: spec for spec in served.metadata.outputs}
    wanted = _wanted(ticket.request) or [(name, 0) for name in specs]
    if sorted(tensor.name for tensor in response.outputs) != sorted(name for name, _ in wanted):
        return False
    classes = dict(wanted)
    rows = ticket.rows if served.rows_sent else None
    return all(
        tensor.datatype == "BYTES"
        if classes[tensor.name]
        else tensor.name in specs and _is_of(tensor, specs[tensor.name], rows)
        for tensor in response.outputs
    )


def _is_of(tensor: Tensor, spec: TensorSpec, rows: int | None) -> bool:
    shape = tuple(tensor.shape)
    return (
        tensor.datatype == spec.datatype
        and len(shape) == len(spec.shape)
        and all(said in {DYNAMIC, size} for said, size in zip(spec.shape, shape, strict=True))
        and (rows is None or shape[:1] == (rows,))
    )


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
