"""The open loop: requests leave when they are due, whatever happened to earlier ones.

The sender never waits for an answer. Where no connection is free another is opened, up to
``max_outstanding``; beyond that the request fails with that reason instead of being sent
late. Latency counts from the moment a request was due.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque

from headrace.client.arrivals import Schedule
from headrace.client.connection import FREE, ConnectFailed, Connection
from headrace.client.drivers import Bounds, Driver, Watch
from headrace.client.payloads import Payloads
from headrace.client.samples import NO_STATUS, Reason
from headrace.client.target import Target
from headrace.client.timer import make_timer

_PREOPENED = 32
"""Connections opened before the start, so that the first requests do not pay for them."""

_BURST = 64
"""Requests sent in one turn of the event loop; after them answers are read, even if the
sender is behind."""

_LEAD_NS = 10_000_000
"""From the end of the preparations to the moment 0 of the schedule."""


class OpenLoop(Driver):
    """See the module."""

    def __init__(
        self,
        target: Target,
        payloads: Payloads,
        bounds: Bounds,
        schedule: Schedule,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(target, payloads, bounds, watch)
        self._offsets = array("q", schedule.offsets_ns.tobytes())
        self._next = 0
        self._start_ns = 0
        self._idle: list[Connection] = []
        self._in_flight: dict[int, Connection] = {}  # in the order of sending
        self._waiting: deque[int] = deque()  # due, and waiting for a connection to open
        self._connecting = 0
        self._timer = make_timer(self._loop, self._send_due)
        self._too_many = Reason(
            NO_STATUS, f"not sent: {bounds.max_outstanding} outstanding (--max-outstanding)"
        )

    async def _open(self) -> None:
        count = min(_PREOPENED, self._bounds.max_outstanding, len(self._offsets))
        opened = await asyncio.gather(
            *(self._connect(self._make) for _ in range(count)), return_exceptions=True
        )
        self._idle += [connection for connection in opened if isinstance(connection, Connection)]
        for failure in opened:
            if isinstance(failure, BaseException):
                raise failure

    def _begin(self) -> None:
        self._start_ns = self.samples.started_ns = self._clock() + _LEAD_NS
        self._timer.set_at(self._start_ns)

    def _connections(self) -> list[Connection]:
        return [*self._idle, *self._in_flight.values()]

    async def _end(self) -> None:
        self._timer.close()
        await super()._end()

    def _make(self) -> Connection:
        return self._payloads.connection(self)

    def _send_due(self) -> None:
        if self._finished.done():
            return
        for _ in range(_BURST):
            if self._next == len(self._offsets):
                self._finish_if_done()
                return
            due_ns = self._start_ns + self._offsets[self._next]
            now_ns = self._clock()
            if due_ns > now_ns:
                self._timer.set_at(due_ns)
                return
            self._next += 1
            self._dispatch(self.samples.take(due_ns, now_ns), now_ns)
        self._loop.call_soon(self._send_due)

    def _dispatch(self, index: int, now_ns: int) -> None:
        if self.samples.outstanding > self._bounds.max_outstanding:
            self.samples.fail(index, now_ns, self._too_many)
            return
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                self._send(connection, index)
                return
        self._waiting.append(index)
        self._open_for_waiting()

    def _send(self, connection: Connection, index: int) -> None:
        self._in_flight[index] = connection
        self.samples.sent += 1
        connection.send(self._payloads.request(index), index)

    def _open_for_waiting(self) -> None:
        while self._connecting < len(self._waiting):
            self._connecting += 1
            self._spawn(self._open_one())

    async def _open_one(self) -> None:
        try:
            connection = await self._connect(self._make)
        except ConnectFailed as failure:
            if self._waiting:
                reason = Reason(NO_STATUS, str(failure))
                self.samples.fail(self._waiting.popleft(), self._clock(), reason)
        else:
            self._free(connection)
        finally:
            self._connecting -= 1
        self._finish_if_done()

    def _free(self, connection: Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection) -> None:
        """An answer is complete (called by the connection)."""
        now_ns, index = self._clock(), connection.tag
        connection.tag = FREE
        del self._in_flight[index]
        reason = self._judge(connection)
        if reason is None:
            self.samples.succeed(index, now_ns)
        else:
            self.samples.fail(index, now_ns, reason)
        if connection.reusable:
            self._free(connection)
        else:
            connection.close()
            self._open_for_waiting()
        self._finish_if_done()

    def lost(self, connection: Connection, tag: int, reason: str) -> None:
        """A connection broke (called by the connection)."""
        if tag == FREE:
            if connection in self._idle:
                self._idle.remove(connection)
            return
        del self._in_flight[tag]
        self.samples.fail(tag, self._clock(), Reason(NO_STATUS, reason))
        self._finish_if_done()

    def _expire(self, now_ns: int) -> None:
        oldest_ns, due_ns = now_ns - self._timeout_ns, self.samples.due_ns
        while self._in_flight:
            index = next(iter(self._in_flight))
            if due_ns[index] > oldest_ns:
                break
            self._in_flight.pop(index).close()
            self.samples.fail(index, now_ns, self._timed_out)
        while self._waiting and due_ns[self._waiting[0]] <= oldest_ns:
            self.samples.fail(self._waiting.popleft(), now_ns, self._timed_out)
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._next == len(self._offsets) and not self.samples.outstanding:
            self._finish()
