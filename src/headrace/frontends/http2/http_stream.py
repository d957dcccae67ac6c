"""An ordinary HTTP request on an HTTP/2 stream: an ``Exchange`` like one of the HTTP/1.1 lane."""

from __future__ import annotations

import http
import logging

import msgspec

from headrace.clock import MonotonicClock
from headrace.errors import HeadraceError
from headrace.frontends import refusals
from headrace.frontends.access_log import CLIENT_LEFT
from headrace.frontends.byte_account import UNCOUNTED_BYTES, Share
from headrace.frontends.decompress import decompress_later
from headrace.frontends.exchange import Exchange
from headrace.frontends.heads import Head, read_head
from headrace.frontends.http2.blocks import Pieces
from headrace.frontends.http2.faults import INTERNAL_ERROR, PROTOCOL_ERROR, StreamFault
from headrace.frontends.http2.fields import Fields, literal, status_block
from headrace.frontends.http2.streams import Sender, Stream
from headrace.frontends.lane import Lane
from headrace.frontends.peer import Peer
from headrace.frontends.refusals import Refusal

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns

_OF_HTTP1 = frozenset({b"connection", b"transfer-encoding", b"keep-alive", b"upgrade"})
_CONTINUE = status_block(100)


class HttpMeaning(msgspec.Struct, eq=False):
    """A head as HTTP/1.1 would have it, or why it is none."""

    head: Head
    refusal: Refusal | None = None


def http_meaning(fields: Fields, max_headers: int, max_bytes: int) -> HttpMeaning:
    """What the lane's handler is shown.

    Raises:
        StreamFault: the Host field says something else than ``:authority`` (RFC 9113 section
            8.3.1).
    """
    raw = list(fields.headers)
    hosts = [value for name, value in raw if name == b"host"]
    if fields.authority:
        if any(host != fields.authority for host in hosts):
            raise StreamFault(PROTOCOL_ERROR, "Host is not :authority")
        if not hosts:
            raw.insert(0, (b"host", fields.authority))
    cookies = [value for name, value in raw if name == b"cookie"]
    if len(cookies) > 1:  # section 8.2.3
        raw = [field for field in raw if field[0] != b"cookie"]
        raw.append((b"cookie", b"; ".join(cookies)))
    size = sum(len(name) + len(value) + 4 for name, value in raw) + len(fields.path)
    refusal = None
    if len(raw) > max_headers:
        refusal = refusals.TOO_MANY_HEADERS
    elif size > max_bytes:
        refusal = refusals.HEAD_TOO_LARGE
    else:
        head = read_head(fields.method, fields.path, raw, "1.1", stays=True)
        if isinstance(head, Head):
            return HttpMeaning(head)
        refusal = head
    return HttpMeaning(Head(fields.method, fields.path, {}, []), refusal)


class HttpStream(Stream):
    """The ``Answering`` side of an exchange."""

    _exchange: Exchange | None = None
    _parts: Pieces | None = None
    _status = 0
    _sent_bytes = 0

    def __init__(self, machine: Sender, stream_id: int, meaning: HttpMeaning, lane: Lane) -> None:
        super().__init__(machine, stream_id)
        self._meaning = meaning
        self._head = meaning.head
        self._lane = lane

    # -- what arrives ----------------------------------------------------------------------------

    def opened(self, *, ended: bool) -> None:
        """Refuses what is too large before it comes."""
        head = self._head
        if self._meaning.refusal is not None:
            self._refuse(self._meaning.refusal)
        elif head.length > self._lane.limits.max_body_bytes:
            self._refuse(refusals.BODY_TOO_LARGE)
        elif head.length > UNCOUNTED_BYTES and not self.share.fits(head.length):
            self._refuse(refusals.MEMORY_FULL)
        elif ended:
            self._complete(b"")
        elif b"expect" in head.headers:
            self.machine.send_head(self, _CONTINUE)

    def received(self, data: bytes, ended: bool) -> None:
        """A piece of the body."""
        if self.closed or self._exchange is not None:
            return
        parts = self._parts
        if parts is None:
            if ended and len(data) <= self._lane.limits.max_body_bytes:
                self._complete(data)
                return
            parts = self._parts = Pieces()
        parts.add(data)
        if parts.size > self._lane.limits.max_body_bytes:
            self._refuse(refusals.BODY_TOO_LARGE)
            return
        if not ended:
            self.machine.keep(self, len(data))
            return
        self._parts = None
        self.machine.give_back(self)
        self._complete(parts.whole())

    def no_room(self) -> None:
        """See ``Stream``."""
        self._refuse(refusals.MEMORY_FULL)

    def timed_out(self) -> None:
        """The body did not arrive in time."""
        self._refuse(refusals.BODY_TIMEOUT)

    def _complete(self, body: bytes) -> None:
        exchange = self._exchange = Exchange(self, self._head, body, _now_ns(), True)
        if len(body) > UNCOUNTED_BYTES and not exchange.hold(len(body)):
            exchange.body = b""
            exchange.respond_error(self.share.full())
        elif self._head.encoded:
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

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.limit:
            self.machine.counters.reject(refusal.limit)
        self._parts = None
        self.machine.give_back(self)
        exchange = self._exchange = Exchange(self, self._head, b"", _now_ns(), True)
        unavailable = refusal.status == http.HTTPStatus.SERVICE_UNAVAILABLE
        headers = ((b"retry-after", b"1"),) if unavailable else ()
        exchange.respond(refusal.status, refusal.body(self._lane.limits), headers=headers)

    def abandoned(self) -> None:
        """The client left: whatever it was waiting for is cancelled."""
        exchange = self._exchange
        if exchange is not None:
            cancel, exchange.cancel = exchange.cancel, None
            if cancel is not None:
                cancel()
            exchange.body = b""  # it may wait for a thread
        self._logged(CLIENT_LEFT)

    def over(self) -> None:
        """The exchange and the stream hold one another no longer."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel = None
            exchange.release()
        self._parts = None

    # -- the answer (exchange.Answering) -----------------------------------------------------------

    def finish_ok(self, exchange: Exchange, body: bytes) -> None:
        """Answers 200 with JSON."""
        exchange.respond(200, body)

    def begin(self, _exchange: Exchange, code: int, head: bytes) -> None:
        """The header fields; ``head`` as HTTP/1.1 would have them."""
        if self.closed:
            return
        self._status = code
        lane = self._lane
        lane.counters.responses[code // 100] += 1
        parts = [status_block(code)]
        for line in (lane.date_line + head).split(b"\r\n"):
            name, colon, value = line.partition(b": ")
            if colon and (name := name.lower()) not in _OF_HTTP1:
                parts.append(literal(name, value))
        self.begun = True
        self.machine.send_head(self, b"".join(parts))

    def send(self, exchange: Exchange, data: bytes, *, last: bool) -> None:
        """Some of the body."""
        if self.closed:
            return
        self._sent_bytes += len(data)
        if last:
            exchange.release()  # what waits for a window is counted as it is sent
            exchange.finished = True
            exchange.cancel = None
            self._logged(self._status)
        elif not data:
            return
        self.machine.send_data(self, data, last=last)

    @property
    def share(self) -> Share:
        """See ``Answering``."""
        return self.machine.share

    def peer(self) -> Peer:
        """See ``Answering``."""
        return self.machine.host.peer()

    def abort(self) -> None:
        """Cuts the answer off."""
        self.machine.reset(self, INTERNAL_ERROR)

    def _logged(self, code: int) -> None:
        log = self.machine.log
        if log is not None:
            head, exchange = self._head, self._exchange
            arrived_ns = 0 if exchange is None else exchange.arrived_ns
            log(head.method, head.target, code, self._sent_bytes, arrived_ns)
