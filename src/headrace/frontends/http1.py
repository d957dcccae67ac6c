"""HTTP/1.1, the fast lane: bytes in, one :class:`Exchange` per request out to a handler.

httptools (llhttp) finds the pieces; it is fast because it checks little, so the rules that
keep requests apart are checked here: one Host, one Content-Length, never a length and
chunks, limits on everything (RFC 9112 sections 3.2, 6.1, 6.3; RFC 9110 section 10.1.1).

Answers leave in the order of the requests (pipelining); uvloop gathers what is written in
one turn of the loop into one system call.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections import deque
from typing import Any, cast

import httptools

from headrace.clock import MonotonicClock
from headrace.errors import HeadraceError
from headrace.frontends import refusals
from headrace.frontends.decompress import decompress
from headrace.frontends.exchange import Exchange, Head, head_of
from headrace.frontends.lane import NEVER, Lane
from headrace.frontends.refusals import Refusal

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns

_STATUS_LINE = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}

_HEAD_MAX_BYTES = 4096
"""Longer heads are not remembered."""

_MISSES_MAX = 32
"""After so many heads in a row that nobody had sent before, a connection's heads are taken for
unique (a trace id in each) and no longer remembered."""

_IDLE, _HEAD, _BODY = range(3)
"""Where the reading side of a connection is."""

_LINGER_S = 2.0
"""After a refusal the rest of what the client sends is read and dropped for so long: closing
with unread bytes would reset the connection and take the answer with it."""


_HEAD_END = b"\r\n\r\n"

_ONCE = {
    b"host": refusals.HOST_REPEATED,
    b"content-length": refusals.LENGTH_REPEATED,
    b"transfer-encoding": refusals.malformed("more than one Transfer-Encoding header"),
}
"""Fields that a second time make it unclear where the request goes or ends."""

_NOT_REMEMBERED = (b"transfer-encoding", b"expect", b"upgrade", b"content-encoding")

_NO_HEAD = Head(b"", b"", {}, [])
"""Of a request that never became one."""


class _Refused(Exception):
    """Leaves the parser from inside one of its callbacks."""


class Connection(asyncio.Protocol):
    """One client connection. All methods run on the event loop."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._limits = lane.limits
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._exchanges: deque[Exchange] = deque()
        self.closed = False
        self.deadline_s = NEVER
        self._refusal: Refusal | None = None
        self._lingering = False
        self._ending = False  # no further request is read; closes after the last answer
        self._state = _IDLE
        self._continued_head_bytes = 0
        self._head_bytes = 0
        self._target = b""
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._head: Head | None = None
        self._raw_head = b""  # the bytes of the head being parsed, if it may be remembered
        self._misses = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._reading = True
        self._resumed: asyncio.Future[None] | None = None  # set while the client reads too slowly

    # -- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        self._transport = cast("asyncio.Transport", transport)
        if self._lane.opened(self):
            self._set_deadline()
        else:
            self._refuse(refusals.TOO_MANY_CONNECTIONS)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client is gone: whatever it was waiting for is cancelled."""
        self.closed = True
        self._lane.closed(self)
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        exchanges = tuple(self._exchanges)
        self._exchanges.clear()
        for exchange in exchanges:
            if exchange.cancel is not None:
                exchange.cancel()
        self._parser = None  # it refers back to us

    def data_received(self, data: bytes) -> None:
        """Bytes of one request, of a part of it, or of several."""
        if self._ending:
            return
        lane = self._lane
        lane.counters.received_bytes += len(data)
        while self._state is _IDLE:
            # Between two requests: is this one whole, and is its head an old acquaintance?
            end = data.find(_HEAD_END) + 4
            head = lane.heads.get(data[:end])
            if head is None:
                if self._misses < _MISSES_MAX:
                    self._misses += 1
                    self._raw_head = data[:end]
                break
            self._misses = 0
            rest = len(data) - end - head.length
            if rest:
                if rest < 0:
                    break
                body = data[end : end + head.length]
                data = data[end + head.length :]
                if not self._accept(head, body):
                    return
                continue
            self._accept(head, data[end:])
            return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        if self._state is _HEAD:
            # Only heads that need more than one read are counted so; within a read every
            # header is counted by itself.
            self._continued_head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # RFC 9110 section 7.8: an upgrade may be ignored. What follows it is not HTTP.
            self._ending = True
            for exchange in self._exchanges:
                exchange.keep_alive = False
            self._after_answer()
        except httptools.HttpParserCallbackError:
            refusal = self._refusal
            if refusal is None:
                _LOG.exception("reading a request failed")
                self._transport.abort()
            else:
                self._refuse(refusal)
        except httptools.HttpParserError as error:
            self._refuse(refusals.malformed(str(error)))
        if self._state is _HEAD and self._continued_head_bytes > self._limits.max_header_bytes:
            self._refuse(refusals.HEAD_TOO_LARGE)

    def eof_received(self) -> bool:
        """The client sends no more, but may still read answers."""
        self._ending = True
        if self._state is not _IDLE and not self._exchanges:
            self._refuse(refusals.malformed("the connection ended in the middle of a request"))
        return bool(self._exchanges)

    def pause_writing(self) -> None:
        """The client does not read: stop producing, and do not wait for ever."""
        self._resumed = self._lane.loop.create_future()
        self._pause_reading()
        self.deadline_s = self._lane.now_s + self._limits.write_timeout_s

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None
        self._after_answer()

    # -- httptools: called while data_received feeds ----------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._state = _HEAD
        self._continued_head_bytes = self._head_bytes = 0
        self._target = b""
        self._raw_headers = []
        self._body = []
        self._body_bytes = 0
        self._set_deadline()

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One complete header field."""
        self._raw_headers.append((name, value))
        self._count_head(len(name) + len(value) + 4)
        if len(self._raw_headers) > self._limits.max_headers:
            self._abandon(refusals.TOO_MANY_HEADERS)

    def on_headers_complete(self) -> None:
        """All headers are here: the rules that keep one request apart from the next."""
        self._state = _BODY
        headers: dict[bytes, bytes] = {}
        for name, value in self._raw_headers:
            key = name.lower()
            if key in headers and key in _ONCE:
                self._abandon(_ONCE[key])
            headers[key] = value
        http_1_0 = self._parser.get_http_version() == "1.0"
        if b"host" not in headers and not http_1_0:
            self._abandon(refusals.HOST_MISSING)
        if b"content-length" in headers and b"transfer-encoding" in headers:
            self._abandon(refusals.LENGTH_AND_CHUNKED)
        head = Head(self._parser.get_method(), self._target, headers, self._raw_headers)
        head.http_1_0 = http_1_0
        head.keep_alive = self._parser.should_keep_alive()
        self._head = head
        if head.length > self._limits.max_body_bytes:
            self._abandon(refusals.BODY_TOO_LARGE)
        if b"expect" in headers:
            self._on_expect(head)
        self._set_deadline()

    def on_body(self, body: bytes) -> None:
        """A piece of the body, chunks already taken apart."""
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._abandon(refusals.BODY_TOO_LARGE)
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A whole request."""
        self._state = _IDLE
        head = self._head
        assert head is not None
        if self._raw_head:
            if _may_be_remembered(self._raw_head, head):
                self._lane.remember(self._raw_head, head)
            self._raw_head = b""
        body = self._body
        self._accept(head, body[0] if len(body) == 1 else b"".join(body))
        self._body = []

    def _accept(self, head: Head, body: bytes) -> bool:
        """Hands a request on; False if the connection takes no further one."""
        exchange = Exchange(self, head, body, _now_ns())
        exchanges = self._exchanges
        exchanges.append(exchange)
        self.deadline_s = NEVER
        if not head.keep_alive:
            self._ending = True
        if len(exchanges) >= self._limits.max_pipelined:
            self._pause_reading()
        if b"content-encoding" in head.headers:
            self._decompress(exchange)
        else:
            self._handle(exchange)
        return not self._ending

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_header_bytes:
            self._abandon(refusals.HEAD_TOO_LARGE)

    def _on_expect(self, head: Head) -> None:
        if head.headers[b"expect"].lower() != b"100-continue":
            self._abandon(refusals.BAD_EXPECTATION)
        # With earlier answers outstanding it would overtake them; the client then sends its
        # body anyway after a moment (RFC 9110 section 10.1.1).
        if not self._exchanges and not head.http_1_0:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _abandon(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise _Refused

    # -- requests --------------------------------------------------------------------------

    def _handle(self, exchange: Exchange) -> None:
        try:
            self._lane.handler(exchange)
        except HeadraceError as error:
            exchange.respond_error(error)
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            _LOG.exception("a handler failed")
            exchange.respond_error(error)

    def _decompress(self, exchange: Exchange) -> None:
        """Off the loop, because a megabyte of gzip is milliseconds of work."""
        loop = self._lane.loop
        future = loop.run_in_executor(
            None,
            decompress,
            exchange.body,
            exchange.head.headers[b"content-encoding"],
            self._limits.max_body_bytes,
        )

        def finished(done: asyncio.Future[bytes | Refusal]) -> None:
            outcome = done.result()
            if self.closed:
                return
            if isinstance(outcome, bytes):
                exchange.body = outcome
                self._handle(exchange)
            else:
                if outcome.limit:
                    self._lane.counters.reject(outcome.limit)
                exchange.respond(outcome.status, outcome.body())

        future.add_done_callback(finished)

    # -- answers ---------------------------------------------------------------------------

    def finish_ok(self, exchange: Exchange, body: bytes) -> None:
        """200 with JSON, in one piece; the common case has nothing to wait for."""
        exchanges = self._exchanges
        lane = self._lane
        if not exchanges:
            return  # the client is gone
        if exchanges[0] is exchange and exchange.keep_alive and not lane.draining:
            exchanges.popleft()
            data = b"".join((lane.ok_json_head, b"%d\r\n\r\n" % len(body), body))
            counters = lane.counters
            counters.sent_bytes += len(data)
            counters.responses[2] += 1
            self._transport.write(data)
            if exchanges or not self._reading or self._state is not _IDLE:
                self._flush()
            else:
                self.deadline_s = lane.idle_deadline_s
            return
        exchange.respond(200, body)

    def begin(self, exchange: Exchange, code: int, head: bytes) -> None:
        """The status line and headers of an answer."""
        lane = self._lane
        lane.counters.responses[code // 100] += 1
        if lane.draining:
            exchange.keep_alive = False
        connection = b""
        if not exchange.keep_alive:
            connection = b"connection: close\r\n"
        elif exchange.head.http_1_0:
            connection = b"connection: keep-alive\r\n"
        exchange.unsent = [_STATUS_LINE[code], lane.date_line, head, connection, b"\r\n"]

    def send(self, exchange: Exchange, data: bytes, *, last: bool) -> None:
        """Bytes of the body, in chunks if the exchange says so; ``last`` ends the answer."""
        unsent = exchange.unsent
        if unsent is None:
            unsent = exchange.unsent = []
        if exchange.chunked:
            if data:
                unsent += (b"%x\r\n" % len(data), data, b"\r\n")
            if last:
                unsent.append(b"0\r\n\r\n")
        elif data:
            unsent.append(data)
        exchange.finished = last
        if self._exchanges and self._exchanges[0] is exchange:
            self._flush()

    async def writable(self) -> None:
        """Waits while the client reads more slowly than we write."""
        if self._resumed is not None:
            await self._resumed

    def _flush(self) -> None:
        """Writes every answer whose turn it is."""
        exchanges = self._exchanges
        while exchanges:
            exchange = exchanges[0]
            if exchange.unsent:
                data = b"".join(exchange.unsent)
                exchange.unsent = None
                self._lane.counters.sent_bytes += len(data)
                self._transport.write(data)
            if not exchange.finished:
                return
            exchanges.popleft()
            if not exchange.keep_alive:
                self._close()
                return
        self._after_answer()

    def _after_answer(self) -> None:
        if self.closed or self._transport.is_closing():
            return
        if self._resumed is None and len(self._exchanges) < self._limits.max_pipelined:
            self._resume_reading()
        if not self._exchanges and (self._ending or (self._lane.draining and self._state is _IDLE)):
            self._close()
        else:
            self._set_deadline()

    # -- the connection's own life -----------------------------------------------------------

    def close_if_idle(self) -> None:
        """Closes unless a request is under way; then it closes after the answer."""
        if not self._exchanges and self._state is _IDLE:
            self._close()

    def abort(self) -> None:
        """Closes at once, whatever is under way."""
        self._transport.abort()

    def timed_out(self) -> None:
        """``deadline_s`` has passed."""
        if self._resumed is not None:
            self._lane.counters.reject("write_timeout_s")
            self._transport.abort()
        elif self._state is _HEAD:
            self._refuse(refusals.HEAD_TIMEOUT)
        elif self._state is _BODY:
            self._refuse(refusals.BODY_TIMEOUT)
        else:
            self._close()

    def _set_deadline(self) -> None:
        """What the client must do next, and by when; while it waits for us it has for ever."""
        if self._exchanges:
            if self._resumed is None:
                self.deadline_s = NEVER
        elif self._state is _IDLE:
            self.deadline_s = self._lane.idle_deadline_s
        elif self._state is _HEAD:
            self.deadline_s = self._lane.now_s + self._limits.header_timeout_s
        else:
            self.deadline_s = self._lane.now_s + self._limits.body_timeout_s

    def _refuse(self, refusal: Refusal) -> None:
        """Answers what is wrong, after the answers that are due, and closes."""
        self._ending = True
        self._state = _IDLE
        self._lingering = True
        self.deadline_s = NEVER
        if refusal.limit:
            self._lane.counters.reject(refusal.limit)
        exchange = Exchange(self, _NO_HEAD, b"", 0)
        exchange.keep_alive = False
        self._exchanges.append(exchange)
        body = refusal.body()
        fields = [(b"content-type", b"application/json")]
        if refusal.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            fields.append((b"retry-after", b"1"))
        self.begin(exchange, refusal.status, head_of(fields, len(body)))
        self.send(exchange, body, last=True)

    def _close(self) -> None:
        """Nothing more will come; what was written is still sent."""
        transport = self._transport
        if self.closed or transport.is_closing():
            return
        self._ending = True
        if self._lingering and transport.can_write_eof():
            transport.write_eof()
            self._resume_reading()
            self._lane.loop.call_later(_LINGER_S, transport.close)
        else:
            transport.close()

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()


def _may_be_remembered(raw: bytes, head: Head) -> bool:
    """Whether a later request with these very bytes can be taken without parsing them.

    ``raw`` ends at the first empty line. It is this head and nothing else if every line in
    it ends with CRLF: then no parser could have seen the head end any earlier.
    """
    return (
        len(raw) <= _HEAD_MAX_BYTES
        and raw.startswith(head.method)
        and raw.count(b"\n") == raw.count(b"\r\n") == len(head.raw_headers) + 2
        and head.keep_alive
        and not head.http_1_0
        and not any(name in head.headers for name in _NOT_REMEMBERED)
    )
