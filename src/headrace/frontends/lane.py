"""What all HTTP connections of a process share: limits, routes, counters, one slow timer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol

from headrace.frontends import refusals
from headrace.frontends.byte_account import ByteAccount, default_total_bytes
from headrace.frontends.exchange import Handler
from headrace.frontends.grpc.call import Methods
from headrace.frontends.heads import Head
from headrace.frontends.inflater import Inflater
from headrace.frontends.refusals import Refusal
from headrace.limits import Http2Limits, HttpLimits
from headrace.telemetry.snapshot import HttpCounters


class Connection(Protocol):
    """What the lane asks of a connection; ``http1.Connection`` is one."""

    deadline_s: float

    def timed_out(self) -> None:
        """``deadline_s`` has passed."""
        ...

    def announce_end(self) -> None:
        """Tells the client, if its protocol can, that it shall send no further request."""
        ...

    def close_if_idle(self) -> None:
        """Closes unless a request is under way."""
        ...

    def abort(self) -> None:
        """Closes at once."""
        ...


class Successor(Connection, Protocol):
    """A connection of another protocol, once the client's first bytes have said which."""

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Goes on with a connection, and what has been read of it."""
        ...


NEVER = float("inf")
_SWEEP_S = 1.0

_ALWAYS = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"
"""In every answer: an answer is for who asked, and is of the type it says."""
"""Timeouts are of tens of seconds, so one look a second at all connections does, where a
timer each would cost every request two heap operations. Shorter ones are looked at more
often, four times in the shortest."""

_LINGER_S = 2.0
"""After the last answer the rest of what the client sends is read and dropped for so long: closing
with unread bytes would reset the connection and take the answer with it."""

DRAIN_MOMENT_S = 0.5
"""While draining, what a connection without a request is given: first for a request that is on its
way to be taken, then, half closed, for one to be dropped without a reset."""

_HEADS_MAX = 1024
"""Heads remembered; clients of one kind differ in Content-Length only. At most 4 KiB each."""

_SPARE_CONNECTIONS = 256
"""Connections above the limit that are told so; any more are cut off without a word."""


class Lane:
    """The HTTP side of one server process. Made on a running event loop.

    ``grpc`` are the gRPC methods there are; ``http2`` makes what takes over a connection that
    begins as HTTP/2 does. Without it HTTP/2 is refused. ``account``: of the process.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: HttpLimits,
        counters: HttpCounters,
        http2_limits: Http2Limits = Http2Limits(),  # noqa: B008 - frozen
        account: ByteAccount | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = loop or asyncio.get_running_loop()
        self.handler = handler
        self.limits = limits
        self.http2_limits = http2_limits
        self.counters = counters
        self.account = account or ByteAccount(
            limits.max_memory_bytes or default_total_bytes(0, 1, limits.max_body_bytes)
        )
        self.inflater = Inflater(self.loop)
        self.grpc: Methods = {}
        self.http2: Callable[[], Successor] | None = None
        self.connections: set[Connection] = set()
        self.handshakes = 0  # of TLS, under way; no connections yet
        self.draining = False
        self._closing = False  # draining, and the moment for connections without a request is over
        self.linger_s = _LINGER_S
        timeouts_s = (
            limits.header_timeout_s,
            limits.body_timeout_s,
            limits.idle_timeout_s,
            limits.write_timeout_s,
        )
        self.sweep_s = min(_SWEEP_S, min(timeouts_s) / 4)
        self.now_s = NEVER
        """Coarse, for timeouts only: moved on with every sweep, to the time of the next one,
        so that a deadline may be late by two sweeps but is never early."""
        self.idle_deadline_s = NEVER
        self.heads: dict[bytes, Head] = {}
        """Heads seen before, by their bytes: equal bytes, equal meaning. A client repeats its
        head with every request, so parsing it again is the largest part of parsing."""
        self.date_line = b""
        self.ok_json_head = b""
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()
        self._refresh()

    def opened(self, connection: Connection) -> Refusal | None:
        """Counts a new connection; why it may not stay, if it may not and can be told."""
        if self._sweeper is None:
            self._refresh()
            self._sweeper = self.loop.call_later(self.sweep_s, self._sweep)
        counters = self.counters
        self.connections.add(connection)
        counters.connections_open += 1
        if self._closing:  # its handshake took so long
            return refusals.SHUTTING_DOWN
        over = len(self.connections) + self.handshakes - self.limits.max_connections
        if over > 0:
            if over > _SPARE_CONNECTIONS:
                counters.reject("max_connections")
                connection.abort()
            return refusals.TOO_MANY_CONNECTIONS
        counters.connections += 1
        return None

    def has_room_for_handshake(self) -> bool:
        """Whether a TLS connection may begin its handshake; it can be refused in words after it."""
        most = self.limits.max_connections + _SPARE_CONNECTIONS
        if self.draining or len(self.connections) + self.handshakes >= most:
            self.counters.reject("max_connections")
            return False
        return True

    def hand_over(self, connection: Connection, successor: Connection) -> None:
        """The same client, spoken to by somebody else from now on."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.connections.add(successor)

    def remember(self, raw: bytes, head: Head) -> None:
        """Keeps a head for the next request with the same bytes."""
        if len(self.heads) >= _HEADS_MAX:
            self.heads.clear()
        self.heads[raw] = head

    def closed(self, connection: Connection) -> None:
        """Forgets a connection."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.counters.connections_open -= 1
            if not self.connections:
                self._emptied.set()

    async def drain(self, timeout_s: float, then: Callable[[], object] = lambda: None) -> bool:
        """Lets connections finish their requests; False if some were left.

        Those without one have a moment, because one may be on its way. ``then`` is called when it
        has passed.
        """
        self.draining = True
        moment_s = self.linger_s = min(DRAIN_MOMENT_S, timeout_s / 4)
        for connection in tuple(self.connections):
            connection.announce_end()
        if await self._empty_within(moment_s):
            return True
        self._closing = True
        for connection in tuple(self.connections):
            connection.close_if_idle()
        then()
        return await self._empty_within(timeout_s - moment_s)

    async def _empty_within(self, timeout_s: float) -> bool:
        self._emptied.clear()
        if self.connections:
            try:
                await asyncio.wait_for(self._emptied.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def abort(self) -> None:
        """Closes every connection at once."""
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _refresh(self) -> None:
        self.now_s = self.loop.time() + self.sweep_s
        self.idle_deadline_s = self.now_s + self.limits.idle_timeout_s
        # RFC 9110 section 6.6.1: an origin server with a clock sends Date.
        date = formatdate(time.time(), usegmt=True).encode()
        self.date_line = b"date: " + date + b"\r\n" + _ALWAYS
        self.ok_json_head = (
            b"HTTP/1.1 200 OK\r\n"
            + self.date_line
            + b"content-type: application/json\r\ncontent-length: "
        )

    def _sweep(self) -> None:
        self._refresh()
        now_s = self.loop.time()
        for connection in [c for c in self.connections if c.deadline_s <= now_s]:
            connection.timed_out()
        self._sweeper = None
        if self.connections:
            self._sweeper = self.loop.call_later(self.sweep_s, self._sweep)
