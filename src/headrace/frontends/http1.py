"""HTTP/1.1, the fast lane: bytes in, one :class:`Exchange` per request out to a handler.

``reader`` and ``heads`` say what a request is; here is what happens when: the order of answers,
which is that of the requests (pipelining), timeouts, back-pressure, the end of a connection (RFC
9112 section 9). uvloop gathers what is written in one turn of the loop into one system call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import cast

from headrace.clock import MonotonicClock
from headrace.errors import HeadraceError
from headrace.frontends import refusals
from headrace.frontends.byte_account import UNCOUNTED_BYTES, Share
from headrace.frontends.decompress import decompress_later
from headrace.frontends.exchange import Exchange
from headrace.frontends.heads import NO_HEAD, NO_HEAD_OF_HEAD, STATUS_LINE, Head
from headrace.frontends.http2.frames import PREFACE
from headrace.frontends.lane import NEVER, Lane
from headrace.frontends.peer import Peer, peer_of
from headrace.frontends.reader import IDLE, IN_BODY, IN_HEAD, RequestReader
from headrace.frontends.refusals import Refusal
from headrace.frontends.turns import SLICE_REQUESTS, Turns
from headrace.frontends.unread import UnreadAnswers

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns

_MISSES_MAX = 32
"""After so many heads in a row that nobody had sent before, a connection's heads are taken for
unique (a trace id in each) and no longer remembered."""

_HEAD_END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client connection. All methods run on the event loop."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._limits = lane.limits
        self.share = Share(lane.account, self.peer)
        self._reader = RequestReader(lane.limits, self._accept, lane.remember, self.share)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._exchanges: deque[Exchange] = deque()
        self._postponed: deque[Exchange] = deque()  # of these, those not handed on yet
        self._starting = False
        self.closed = False
        self.deadline_s = NEVER
        self._stage = 0  # of the reader, when the deadline was set
        self._lingering = False
        self._ending = False  # no further request is read; closes after the last answer
        self._preface: bytes | None = b""  # of HTTP/2, so far; None: this is HTTP/1
        self._misses = 0
        self._last_head: Head | None = None  # of those remembered, the one that came last here
        self._last_raw_head = b""
        self._turns = Turns(lane.counters)  # holds what waits for another turn, or for answers
        self._reading = True
        self._ends: Peer | None = None  # once it was asked for
        self._answers = UnreadAnswers(self.share)

    # -- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        self._transport = cast("asyncio.Transport", transport)
        self._answers.begin(self._transport)
        self.share.spend_on(transport)
        refusal = self._lane.opened(self)
        if refusal is None:
            self._set_deadline()
        elif not self._transport.is_closing():
            self._refuse(refusal)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client is gone: whatever it was waiting for is cancelled."""
        self.closed = True
        self._lane.closed(self)
        self._answers.resume()
        exchanges = tuple(self._exchanges)
        self._exchanges.clear()
        self._postponed.clear()
        self._turns.data = b""
        self._reader.close()
        self.share.close()
        for exchange in exchanges:
            exchange.body = b""  # it may wait for a thread
            if exchange.cancel is not None:
                exchange.cancel()
                exchange.cancel = None  # or the request and its answer would hold one another

    def data_received(self, data: bytes) -> None:
        """Bytes of one request, of a part of it, or of several."""
        if self._ending:
            return
        self._turns.count(len(data))
        if self._turns.data:
            self._turns.add(data)
            return
        self._turns.begin()
        self._read(data, 0)

    def _read(self, data: bytes, position: int) -> None:
        lane, reader, size = self._lane, self._reader, len(data)
        while reader.state is IDLE:
            # Between two requests: is this one whole, and has its head been parsed before?
            head = self._last_head
            if head is not None and data.startswith(self._last_raw_head, position):
                end = position + len(self._last_raw_head)
            else:
                end = data.find(_HEAD_END, position) + 4
                raw_head = data[position:end]
                head = lane.heads.get(raw_head)
                if head is None:
                    if self._misses < _MISSES_MAX:
                        self._misses += 1
                        reader.raw_head = raw_head
                    break
                self._last_head, self._last_raw_head = head, raw_head
            self._misses = 0
            next_one = end + head.length
            if next_one > size:
                break
            position = next_one
            if not self._accept(head, data[end:position]) or position == size:
                return
            if self._turns.is_over() or len(self._exchanges) >= self._limits.max_pipelined:
                self._wait_with(data, position)
                return
        self._parse(data, position)

    def _wait_with(self, data: bytes, position: int) -> None:
        """Keeps the rest of a read for another turn, or until some of its requests are answered."""
        self._turns.keep(data, position)
        self._pause_reading()
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        if len(self._exchanges) < self._limits.max_pipelined and not self._answers.paused:
            self._turns.schedule(self._lane.loop, self._go_on)

    def _go_on(self) -> None:
        if self._ending or self.closed or self._answers.paused:
            self._turns.unscheduled()
            return
        self._read(self._turns.take(), self._turns.position)
        if not (self._turns.data or self._ending):
            self._after_answer()

    def _feed(self, data: bytes, position: int) -> Refusal | None:
        """Gives the parser slices, as many as the turn allows; what is wrong with them, if any."""
        reader, size = self._reader, len(data)
        while position < size and not self._ending:
            if self._turns.is_over() or len(self._exchanges) >= self._limits.max_pipelined:
                self._wait_with(data, position)
                return None
            self._turns.left -= SLICE_REQUESTS
            begin, position = position, position + reader.slice_bytes
            if (refusal := reader.feed(data[begin:position])) is not None:
                return refusal
        return None

    def _parse(self, data: bytes, position: int) -> None:
        if self._preface is not None:
            data, position = self._sniff(data[position:]), 0
            if not data:
                return
        reader = self._reader
        try:
            refusal = self._feed(data, position)
        except Exception:  # noqa: BLE001 - a mistake of ours must not reach the event loop
            _LOG.exception("reading a request failed")
            self._transport.abort()
            return
        if self._ending:
            return  # RFC 9112 section 9.6: what follows "Connection: close" is not looked at
        if refusal is not None:
            self._refuse(refusal)
        elif reader.state is not IDLE and reader.stage != self._stage:
            self._stage = reader.stage
            # With earlier answers outstanding it would overtake them; the client then sends its
            # body anyway after a moment (RFC 9110 section 10.1.1).
            if reader.expects_continue and not self._exchanges:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._set_deadline()

    def _sniff(self, data: bytes) -> bytes:
        """The first bytes of a connection that are HTTP/1; b"" if they are, or may be, HTTP/2."""
        lane, preface = self._lane, PREFACE
        first = (self._preface or b"") + data
        begins = first.startswith(preface) or preface.startswith(first)
        if lane.http2 is None or not begins or self._last_head is not None:
            self._preface = None
            return first
        self._reader.raw_head = b""
        if len(first) < len(preface):
            self._preface = first
            self.deadline_s = lane.now_s + self._limits.header_timeout_s
            return b""
        self._ending = True
        self._reader.close()
        self.share.close()
        successor = lane.http2()
        lane.counters.received_bytes -= len(first)  # counted again
        lane.hand_over(self, successor)
        successor.take_over(self._transport, first)
        return b""

    def eof_received(self) -> bool:
        """The client sends no more, so it is leaving, and what it waited for is cancelled.

        One that has only closed its half looks the same; nginx, Go and uvicorn decide alike.
        """
        self._ending = True
        if (self._reader.state is not IDLE or self._preface) and not self._exchanges:
            self._refuse(refusals.malformed("the connection ended in the middle of a request"))
        return False  # the transport closes, once what was written is sent

    def pause_writing(self) -> None:
        """The client does not read: stop producing, and do not wait for ever."""
        self._answers.pause(self._lane.loop.create_future())
        self._pause_reading()
        self._watch_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._answers.resume()
        self._after_answer()

    def _accept(self, head: Head, body: bytes) -> bool:
        """Hands a request on; False if the connection takes no further one."""
        if self._ending:
            return False
        exchange = Exchange(self, head, body, _now_ns(), head.keep_alive)
        if self._reader.held_bytes:
            exchange.held_bytes, self._reader.held_bytes = self._reader.held_bytes, 0
        exchanges = self._exchanges
        exchanges.append(exchange)
        self._turns.left -= 1
        self.deadline_s = NEVER
        if not head.keep_alive:
            self._ending = True
        if len(exchanges) >= self._limits.max_pipelined:
            self._pause_reading()
        if len(body) > UNCOUNTED_BYTES and not exchange.held_bytes and not exchange.hold(len(body)):
            exchange.body = b""
            exchange.respond_error(self.share.full())
        elif (len(exchanges) > 1 or self._answers.counted_bytes) and self._has_enough():
            self._pause_reading()
            self._postponed.append(exchange)  # the rest of what was read
        else:
            self._start(exchange)
        return not self._ending

    # -- requests --------------------------------------------------------------------------

    def _has_enough(self) -> bool:
        """Whether a request that has been read has to wait for the answers to earlier ones."""
        full = self._postponed or len(self._exchanges) > self._limits.max_pipelined
        return bool(full) or self._owed_bytes() > self._limits.max_unsent_bytes

    def _owed_bytes(self) -> int:
        """Of answers that are expected, or that the client has not read."""
        return self._answers.counted_bytes + sum(
            [exchange.answer_bytes for exchange in self._exchanges]
        )

    def _start(self, exchange: Exchange) -> None:
        if exchange.head.encoded:
            decompress_later(self._lane, exchange, self._handle)
        else:
            self._handle(exchange)

    def _handle(self, exchange: Exchange) -> None:
        try:
            self._lane.handler(exchange)
        except HeadraceError as error:
            exchange.respond_error(error)
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            _LOG.exception("a handler failed")
            exchange.respond_error(error)

    # -- answers ---------------------------------------------------------------------------

    def finish_ok(self, exchange: Exchange, body: bytes) -> None:
        """200 with JSON, in one piece; the common case has nothing to wait for."""
        exchanges, lane = self._exchanges, self._lane
        if not exchanges:
            return  # the client is gone
        if exchanges[0] is exchange and exchange.head.plain and not lane.draining:
            exchanges.popleft()
            if exchange.held_bytes:
                exchange.release()
            data = b"".join((lane.ok_json_head, b"%d\r\n\r\n" % len(body), body))
            counters = lane.counters
            counters.sent_bytes += len(data)
            counters.responses[2] += 1
            self._transport.write(data)
            if self._answers.counted_bytes:
                self._answers.count()
            if exchanges or not self._reading or self._reader.state is not IDLE:
                self._flush()
            else:
                self.deadline_s = lane.idle_deadline_s
            return
        exchange.respond(200, body)

    def begin(self, exchange: Exchange, code: int, head: bytes) -> None:
        """The status line and headers of an answer."""
        lane = self._lane
        lane.counters.responses[code // 100] += 1
        if lane.draining and self._is_last(exchange):
            exchange.keep_alive = False
            self._ending = True
        connection = exchange.head.connection_line(keep_alive=exchange.keep_alive)
        exchange.unsent = [STATUS_LINE[code], lane.date_line, head, connection, b"\r\n"]

    def send(self, exchange: Exchange, data: bytes, *, last: bool) -> None:
        """Bytes of the body, in chunks if the exchange says so; ``last`` ends the answer."""
        unsent = exchange.unsent = exchange.unsent or []
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
        elif data and not (last and exchange.answer_bytes):  # a whole answer is counted already
            self._count_waiting(exchange, len(data))

    async def writable(self) -> None:
        """Waits while the client reads more slowly than we write."""
        if self._answers.paused:
            self._watch_writing()
            await self._answers.writable()

    def peer(self) -> Peer:
        """See ``Connected``."""
        if self._ends is None:
            self._ends = peer_of(self._transport)
        return self._ends

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
                if self._answers.counted_bytes:
                    self._answers.count()
            if not exchange.finished:
                if not self._reading:
                    self._after_answer()
                return
            exchanges.popleft()
            exchange.release()
            if not exchange.keep_alive:
                self._close()
                return
        self._after_answer()

    def _after_answer(self) -> None:
        if self.closed or self._transport.is_closing():
            return
        if self._postponed:
            self._start_postponed()
        full = self._postponed or len(self._exchanges) >= self._limits.max_pipelined
        if self._turns.data:
            self._schedule_turn()
        elif not (full or self._answers.paused):
            self._resume_reading()
        done = self._lane.draining and self._reader.state is IDLE and not self._turns.data
        if not self._exchanges and (self._ending or done):
            self._close()
        else:
            self._set_deadline()

    def _start_postponed(self) -> None:
        """Hands on what came after ``max_pipelined`` others, now that some are answered."""
        if self._starting:
            return  # an answer that needed no waiting: the loop below goes on
        self._starting = True
        postponed, exchanges, limits = self._postponed, self._exchanges, self._limits
        while postponed and len(exchanges) - len(postponed) < limits.max_pipelined:
            if self._owed_bytes() > limits.max_unsent_bytes:
                break
            self._start(postponed.popleft())
        self._starting = False

    def _is_last(self, exchange: Exchange) -> bool:
        """Whether nothing of a further request has come."""
        idle = self._reader.state is IDLE and not self._turns.data
        return idle and bool(self._exchanges) and self._exchanges[-1] is exchange

    # -- the connection's own life -----------------------------------------------------------

    def announce_end(self) -> None:
        """HTTP/1.1 can say it only in an answer."""

    def close_if_idle(self) -> None:
        """Closes unless a request is under way; then it closes after the answer."""
        if not self._exchanges and self._reader.state is IDLE and not self._turns.data:
            self._close()

    def abort(self) -> None:
        """Closes at once, whatever is under way."""
        self._transport.abort()

    def timed_out(self) -> None:
        """``deadline_s`` has passed."""
        if self._answers.paused or self._transport.is_closing():
            if self._answers.is_shrinking():
                self._watch_writing()  # it reads, if slowly
            else:
                self._lane.counters.reject("write_timeout_s")
                self.abort()
        elif self._reader.state is IN_HEAD or self._preface:
            self._refuse(refusals.HEAD_TIMEOUT)
        elif self._reader.state is IN_BODY:
            self._refuse(refusals.BODY_TIMEOUT)
        else:
            self._close()

    def _set_deadline(self) -> None:
        """What the client must do next, and by when; while it waits for us it has for ever."""
        if self._answers.paused:
            self._watch_writing()
        elif self._exchanges:
            self.deadline_s = NEVER
        elif self._reader.state is IDLE:
            self.deadline_s = self._lane.idle_deadline_s
        elif self._reader.state is IN_HEAD:
            self.deadline_s = self._lane.now_s + self._limits.header_timeout_s
        else:
            self.deadline_s = self._lane.now_s + self._limits.body_timeout_s

    def _count_waiting(self, exchange: Exchange, size: int) -> None:
        """Counts a piece of an answer that waits for its turn; too many end the connection."""
        self.share.spend(size)
        exchange.held_bytes += size
        exchange.answer_bytes += size
        if exchange.answer_bytes > self._limits.max_unsent_bytes:
            self._lane.counters.reject("max_unsent_bytes")
            self.abort()

    def _watch_writing(self) -> None:
        """The client must read some of what it was sent, before long."""
        self._answers.look()
        self.deadline_s = self._lane.now_s + self._limits.write_timeout_s

    def _refuse(self, refusal: Refusal) -> None:
        """Answers what is wrong, after the answers that are due, and closes."""
        head = NO_HEAD_OF_HEAD if self._reader.is_head_request else NO_HEAD
        self._ending = True
        self._reader.close()
        self._lingering = True
        self.deadline_s = NEVER
        if refusal.limit:
            self._lane.counters.reject(refusal.limit)
        exchange = Exchange(self, head, b"", 0, keep_alive=False)
        self._exchanges.append(exchange)
        exchange.respond(refusal.status, refusal.body(self._limits), headers=refusal.headers)

    def _close(self) -> None:
        """Nothing more will come; what was written is still sent."""
        transport = self._transport
        if self.closed or transport.is_closing():
            return
        self._ending = True
        self._watch_writing()
        if not (self._lingering or self._lane.draining):
            transport.close()
            return
        self._lingering = False
        if transport.can_write_eof():
            transport.write_eof()
        self._resume_reading()
        self._lane.loop.call_later(self._lane.linger_s, transport.close)

    def _pause_reading(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()
