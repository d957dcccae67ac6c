"""The fast lane on a loop whose clock the test moves, with a transport made of lists.

Everything is synchronous: what a test has called has happened, and nothing else.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from headrace.frontends.exchange import Exchange
from headrace.frontends.http1 import Connection
from headrace.frontends.lane import Lane
from headrace.limits import HttpLimits
from headrace.telemetry.snapshot import HttpCounters

HOST = b"Host: a\r\n"


class ManualLoop(asyncio.AbstractEventLoop):
    """The few things that the lane asks of a loop. Work for the executor is done at once."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.errors: list[dict[str, Any]] = []

    def time(self) -> float:
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def call_soon(self, callback, *args, context=None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def run_in_executor(self, executor, func, *args) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def run_ready(self) -> None:
        """Everything that call_soon was given, and what that leads to."""
        while self._ready:
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def advance(self, seconds: float) -> None:
        """Moves the clock; timers go off in order, each at its time."""
        self.run_ready()
        end_s = self._now_s + seconds
        while self._timers and self._timers[0][0] <= end_s:
            self._now_s, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                handle._run()
            self.run_ready()
        self._now_s = end_s


class FakeTransport(asyncio.Transport):
    """Remembers what was written. ``stall()`` makes the client stop reading."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, tls: bool = False) -> None:
        super().__init__()
        self._loop = loop
        self._tls = tls
        self._protocol: Any = None
        self._stalled = False
        self._paused = False
        self._inbox: deque[bytes] = deque()
        self.written = b""
        self.unread_bytes = 0
        self.reading = True
        self.eof_sent = False
        self.closing = False
        self.aborted = False
        self.lost = False

    def set_protocol(self, protocol) -> None:
        self._protocol = protocol

    def get_extra_info(self, name, default=None):
        known = {"peername": ("192.0.2.1", 5000), "sslcontext": True if self._tls else None}
        return known.get(name, default)

    def write(self, data) -> None:
        assert not self.closing, "written after the end"
        assert not self.eof_sent, "written after the end"
        self.written += data
        if self._stalled:
            self.unread_bytes += len(data)
            if self.unread_bytes > 65_536 and not self._paused:
                self._paused = True
                self._protocol.pause_writing()

    def stall(self) -> None:
        self._stalled = True

    def client_reads(self, count: int) -> None:
        self.unread_bytes = max(0, self.unread_bytes - count)
        if self._paused and self.unread_bytes <= 16_384:
            self._paused = False
            self._protocol.resume_writing()
        if self.closing and not self.unread_bytes:
            self._lose()

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def can_write_eof(self) -> bool:
        return not self._tls

    def write_eof(self) -> None:
        assert not self.closing
        self.eof_sent = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        assert not self.closing
        self.reading = True
        self._loop.call_soon(self._pump)

    def receive(self, data: bytes) -> None:
        """One read; waits while reading is paused."""
        self._inbox.append(data)
        self._pump()

    def _pump(self) -> None:
        while self._inbox and self.reading and not self.lost:
            self._protocol.data_received(self._inbox.popleft())

    def close(self) -> None:
        self.closing = True
        if not self.unread_bytes:
            self._lose()

    def abort(self) -> None:
        self.aborted = self.closing = True
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self._protocol.connection_lost, None)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


@dataclass
class Client:
    """One connection and the other end of it."""

    bench: Bench
    transport: FakeTransport
    connection: Connection
    seen: int = 0

    def send(self, data: bytes, *, step: int = 0) -> None:
        """``step``: at most so many bytes at a time."""
        for start in range(0, len(data), step or len(data) or 1):
            self.transport.receive(data[start : start + (step or len(data))])
            self.bench.settle()

    def eof(self) -> None:
        if not self.connection.eof_received():
            self.transport.close()
        self.bench.settle()

    def leave(self) -> None:
        self.transport.abort()
        self.bench.settle()

    def answers(self, *, head: bool = False) -> list[Answer]:
        """Everything answered since the last call. ``head``: to HEAD, which has no bodies."""
        data = self.transport.written[self.seen :]
        self.seen = len(self.transport.written)
        return list(split_answers(data, head=head))

    def answer(self, *, head: bool = False) -> Answer:
        (only,) = self.answers(head=head)
        return only

    @property
    def over(self) -> bool:
        """We say no more: closed, or half closed and lingering."""
        return self.transport.closing or self.transport.eof_sent


def split_answers(data: bytes, *, head: bool = False) -> Iterator[Answer]:
    """Answers one after another; fails on bytes that are none."""
    while data:
        top, found, rest = data.partition(b"\r\n\r\n")
        assert found, data
        first, *lines = top.decode("latin-1").split("\r\n")
        status = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Za-z -]+", first)
        assert status, first
        headers = dict(line.split(": ", 1) for line in lines)
        length = 0 if head else int(headers.get("content-length", "0"))
        if headers.get("transfer-encoding") == "chunked" and not head:
            body, length = _unchunk(rest)
        else:
            body = rest[:length]
            assert len(body) == length, "cut short"
        taken = len(top) + 4 + length
        yield Answer(int(status[1]), headers, body, data[:taken])
        data = data[taken:]


def _unchunk(data: bytes) -> tuple[bytes, int]:
    body, position = b"", 0
    while True:
        line, found, _ = data[position:].partition(b"\r\n")
        assert found
        size = int(line, 16)
        position += len(line) + 2
        body += data[position : position + size]
        position += size
        assert data[position : position + 2] == b"\r\n"
        position += 2
        if not size:
            return body, position


@dataclass
class Bench:
    """A lane whose handler remembers exchanges; answers at once where ``reply`` is set.

    ``loop``: a real one, for tests that wait.
    """

    limits: dict[str, Any] = field(default_factory=dict)
    reply: Callable[[Exchange], None] | None = None
    loop: Any = field(default_factory=ManualLoop)

    def __post_init__(self) -> None:
        self.counters = HttpCounters()
        self.exchanges: list[Exchange] = []
        self.lane = Lane(
            self._handle, limits=HttpLimits(**self.limits), counters=self.counters, loop=self.loop
        )

    def _handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.reply is not None:
            self.reply(exchange)

    def settle(self) -> None:
        if isinstance(self.loop, ManualLoop):
            self.loop.run_ready()

    def connect(self, *, tls: bool = False) -> Client:
        transport = FakeTransport(self.loop, tls=tls)
        connection = Connection(self.lane)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self.settle()
        return Client(self, transport, connection)

    def bodies(self) -> list[bytes]:
        return [exchange.body for exchange in self.exchanges]


def echo(exchange: Exchange) -> None:
    """Answers with the body that came."""
    exchange.respond_json(exchange.body)


def post(body: bytes = b"{}", fields: bytes = b"", target: bytes = b"/x") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
        target,
        HOST,
        fields,
        len(body),
        body,
    )


def chunked(*chunks: bytes, trailer: bytes = b"", fields: bytes = b"") -> bytes:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST /x HTTP/1.1\r\n%b%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (
        HOST,
        fields,
        parts,
        trailer,
    )
