"""The closed loop: each caller sends its next query when the last one was answered.

A server that slows down slows its callers down with it, so latencies of this loop say what
one of N waiting callers sees and nothing about callers that do not wait. The report says
so. A query is one request, or ``fanout`` requests at once on as many connections (the
multi-stream scenario with a model that takes one row); its latency is that of the slowest.
"""

from __future__ import annotations

import asyncio

from headrace.client.connection import FREE, ConnectFailed, Connection
from headrace.client.drivers import Bounds, Driver, Watch
from headrace.client.payloads import Payloads
from headrace.client.samples import NO_STATUS, Reason
from headrace.client.spec import MAX_REQUESTS
from headrace.client.target import Target

_RECONNECT_PAUSE_S = 0.05
"""Before a caller that could not connect tries again: a dead server is not hammered."""

_MAX_CONNECT_FAILURES = 100
"""In a row, over all callers; then the server is gone and the run ends."""


class ClosedLoop(Driver):
    """See the module."""

    def __init__(
        self, target: Target, payloads: Payloads, bounds: Bounds, watch: Watch | None = None
    ) -> None:
        super().__init__(target, payloads, bounds, watch)
        self._callers = [_Caller(self, bounds.fanout) for _ in range(bounds.connections)]
        self._limit = min(bounds.requests or MAX_REQUESTS, MAX_REQUESTS)
        self._end_ns = 0
        self._active = 0
        self._connect_failures = 0

    async def _open(self) -> None:
        opened = await asyncio.gather(
            *(caller.open() for caller in self._callers), return_exceptions=True
        )
        for failure in opened:
            if failure is not None:
                raise failure

    def _begin(self) -> None:
        now_ns = self.samples.started_ns = self._clock()
        seconds = self._bounds.duration_s
        self._end_ns = now_ns + int(seconds * 1e9) if seconds is not None else (1 << 63) - 1
        self._active = len(self._callers)
        for caller in self._callers:
            caller.next()

    def _connections(self) -> list[Connection]:
        return [connection for caller in self._callers for connection in caller.connections]

    def _expire(self, now_ns: int) -> None:
        oldest_ns = now_ns - self._timeout_ns
        for caller in self._callers:
            if caller.busy and self.samples.due_ns[caller.index] <= oldest_ns:
                caller.give_up(self._timed_out)

    # what callers ask of their loop

    def take(self) -> int | None:
        """The index of the next query; None when there is none, and the caller is done."""
        now_ns = self._clock()
        over = self._finished.done() or now_ns >= self._end_ns
        if over or len(self.samples) >= self._limit:
            self._active -= 1
            if not self._active:
                self._finish()
            return None
        return self.samples.take(now_ns, now_ns)

    def now_ns(self) -> int:
        """The clock of the samples."""
        return self._clock()

    def settle(self, index: int, now_ns: int, reason: Reason | None) -> None:
        """The query has ended."""
        if reason is None:
            self.samples.succeed(index, now_ns)
        else:
            self.samples.fail(index, now_ns, reason)

    def judge(self, connection: Connection) -> Reason | None:
        """None for a good answer."""
        return self._judge(connection)

    def request(self, number: int) -> bytes:
        """The bytes of a request."""
        return self._payloads.request(number)

    async def connect(self, caller: _Caller) -> Connection:
        """A new connection for a caller.

        Raises:
            ConnectFailed: there is none to be had.
        """
        try:
            connection = await self._connect(lambda: self._payloads.connection(caller))
        except ConnectFailed as failure:
            self._connect_failures += 1
            if self._connect_failures >= _MAX_CONNECT_FAILURES and self.samples.started_ns:
                self.gave_up = f"the server went away ({failure})"
                self._finish()
            raise
        self._connect_failures = 0
        return connection

    def repair(self, caller: _Caller) -> None:
        """Opens what a caller lost, then lets it go on."""
        self._spawn(caller.reconnect())


class _Caller:
    """One waiting caller and its connections; the listener of all of them."""

    def __init__(self, loop: ClosedLoop, fanout: int) -> None:
        self.connections: list[Connection] = []
        self.index = -1
        self._loop = loop
        self._fanout = fanout
        self._left = 0
        self._reason: Reason | None = None

    @property
    def busy(self) -> bool:
        """Whether some of the query's requests are unanswered."""
        return self._left > 0

    async def open(self) -> None:
        """Opens all that are missing; raises ``ConnectFailed``."""
        while len(self.connections) < self._fanout:
            self.connections.append(await self._loop.connect(self))

    def next(self) -> None:
        """Sends the next query, if there is one."""
        self.connections = [each for each in self.connections if not each.closed]
        if len(self.connections) < self._fanout:
            self._loop.repair(self)
            return
        index = self._loop.take()
        if index is None:
            return
        self.index, self._left, self._reason = index, self._fanout, None
        self._loop.samples.sent += 1
        for position, connection in enumerate(self.connections):
            connection.send(self._loop.request(index * self._fanout + position), index)

    async def reconnect(self) -> None:
        """Opens what is missing; every vain attempt is a failed query."""
        while True:
            try:
                await self.open()
            except ConnectFailed as failure:
                index = self._loop.take()
                if index is None:
                    return
                self._loop.settle(index, self._loop.now_ns(), Reason(NO_STATUS, str(failure)))
                await asyncio.sleep(_RECONNECT_PAUSE_S)
            else:
                self.next()
                return

    def give_up(self, reason: Reason) -> None:
        """Fails the query under way; connections that have not answered are closed."""
        for connection in tuple(self.connections):
            if connection.tag != FREE:
                connection.close()
                self.connections.remove(connection)
        self._left = 1
        self._one_ended(self._loop.now_ns(), reason)

    def answered(self, connection: Connection) -> None:
        """One answer of the query is complete (called by the connection)."""
        now_ns = self._loop.now_ns()  # before the answer is looked at, which takes time
        connection.tag = FREE
        reason = self._loop.judge(connection)
        if not connection.reusable:
            connection.close()
            self.connections.remove(connection)
        self._one_ended(now_ns, reason)

    def lost(self, connection: Connection, tag: int, reason: str) -> None:
        """A connection broke (called by the connection)."""
        if connection in self.connections:
            self.connections.remove(connection)
        if tag != FREE:
            self._one_ended(self._loop.now_ns(), Reason(NO_STATUS, reason))

    def _one_ended(self, now_ns: int, reason: Reason | None) -> None:
        self._reason = self._reason or reason
        self._left -= 1
        if self._left == 0:
            self._loop.settle(self.index, now_ns, self._reason)
            self.next()
