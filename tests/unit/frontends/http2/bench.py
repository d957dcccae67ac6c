"""The HTTP/2 lane on a loop whose clock the test moves, and two clients of it.

:class:`Wire` sends frames as they are told, right or wrong, and reads what comes back with
``hyperframe``. :class:`Peer` is the ``h2`` library: an independent implementation that accepts
nothing but valid HTTP/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from headrace.frontends.exchange import Exchange
from headrace.frontends.grpc.call import Call, Method
from headrace.frontends.http1 import Connection
from headrace.frontends.http2 import frames
from headrace.frontends.http2.connection import Http2Connection
from headrace.frontends.lane import Lane
from headrace.limits import Http2Limits, HttpLimits
from headrace.telemetry.snapshot import HttpCounters
from tests.unit.frontends.lane_bench import FakeTransport, ManualLoop

GET = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")]
POST = [(":method", "POST"), *GET[1:]]
GRPC = [
    *(POST[0], POST[1], POST[2], (":path", "/t.T/Echo")),
    *(("content-type", "application/grpc"), ("te", "trailers")),
]

END_STREAM, END_HEADERS = frames.END_STREAM, frames.END_HEADERS


def grpc_fields(path: str = "/t.T/Echo", *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [(n, path if n == ":path" else v) for n, v in GRPC] + list(more)


def message(data: bytes, *, compressed: bool = False) -> bytes:
    """As gRPC frames it."""
    return bytes((compressed,)) + len(data).to_bytes(4, "big") + data


def block(fields: Iterable[tuple[str, str]], encoder: hpack.Encoder | None = None) -> bytes:
    """Without the dynamic table, so that blocks can be sent in any order and number."""
    if encoder is not None:
        return encoder.encode(list(fields))
    return b"".join(
        b"\0" + _string(name.encode()) + _string(value.encode()) for name, value in fields
    )


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    parts = [127]
    size -= 127
    while size >= 128:
        parts.append(size & 127 | 128)
        size >>= 7
    return bytes([*parts, size]) + text


def headers(
    stream_id: int, fields: Iterable[tuple[str, str]] = GET, flags: int = END_HEADERS
) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, block(fields))


def request(stream_id: int, fields: Iterable[tuple[str, str]] = GET) -> bytes:
    return headers(stream_id, fields, END_HEADERS | END_STREAM)


def data(stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream_id, payload)


def window(stream_id: int, increment: int) -> bytes:
    return frames.window_update(stream_id, increment)


def rst(stream_id: int, code: int = 8) -> bytes:
    return frames.rst_stream(stream_id, code)


def ping(payload: bytes = b"12345678", flags: int = 0, stream_id: int = 0) -> bytes:
    return frames.frame(frames.PING, flags, stream_id, payload)


HELLO = frames.PREFACE + frames.settings({})


class Echo:
    """A stream that answers each message at once."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def message(self, data: bytes) -> None:
        self.call.send(data)

    def half_closed(self) -> None:
        self.call.end()


class Http2Bench:
    """A lane whose handlers remember what they were given; ``reply`` and ``answer`` answer it."""

    def __init__(
        self,
        *,
        limits: dict[str, Any] | None = None,
        http2: dict[str, Any] | None = None,
        reply: Callable[[Exchange], None] | None = None,
        answer: Callable[[Call, bytes], None] | None = None,
        loop: Any = None,
    ) -> None:
        self.loop = loop or ManualLoop()
        self.counters = HttpCounters()
        self.exchanges: list[Exchange] = []
        self.calls: list[tuple[Call, bytes]] = []
        self.streams: list[Any] = []
        self.reply = reply
        self.answer = answer
        self.streaming: Callable[[Call], Any] = Echo
        self.lane = Lane(
            self._handle,
            limits=HttpLimits(**(limits or {})),
            http2_limits=Http2Limits(**(http2 or {})),
            counters=self.counters,
            loop=self.loop,
        )
        self.lane.grpc = {
            b"/t.T/Echo": Method(unary=self._unary),
            b"/t.T/Stream": Method(streaming=self._stream),
        }
        self.log: Any = None
        self.lane.http2 = lambda: Http2Connection(self.lane, self.log)

    def _handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.reply is not None:
            self.reply(exchange)

    def _unary(self, call: Call, data: bytes) -> None:
        self.calls.append((call, data))
        if self.answer is not None:
            self.answer(call, data)

    def _stream(self, call: Call) -> Any:
        incoming = self.streaming(call)
        self.streams.append(incoming)
        return incoming

    def settle(self) -> None:
        self.loop.run_ready()

    def advance(self, seconds: float) -> None:
        self.loop.advance(seconds)

    def connect(self, *, http1: bool = False) -> FakeTransport:
        transport = FakeTransport(self.loop)
        protocol: Any = Connection(self.lane) if http1 else Http2Connection(self.lane, self.log)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        self.settle()
        return transport

    def wire(self, *, hello: bytes = HELLO) -> Wire:
        wire = Wire(self, self.connect())
        wire.send(hello)
        wire.frames()
        return wire


class Wire:
    """Sends frames as told."""

    def __init__(self, bench: Http2Bench, transport: FakeTransport) -> None:
        self.bench = bench
        self.transport = transport
        self.seen = 0
        self.decoder = hpack.Decoder()

    @property
    def connection(self) -> Any:
        return self.transport._protocol

    @property
    def machine(self) -> Any:
        return self.connection.machine

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.receive(piece)
            self.bench.settle()

    def frames(self) -> list[Frame]:
        """Everything written since the last call, as an independent parser reads it."""
        self.bench.settle()
        written = self.transport.written
        found, self.seen = read_frames(written, self.seen)
        assert self.seen == len(written), "half a frame"
        return found

    def fields(self, frame: Frame) -> dict[str, str]:
        assert isinstance(frame, HeadersFrame)
        return dict(self.decoder.decode(frame.data))

    def goaway(self) -> GoAwayFrame:
        (found,) = [f for f in self.frames() if isinstance(f, GoAwayFrame)]
        return found

    def resets(self) -> dict[int, int]:
        return {f.stream_id: f.error_code for f in self.frames() if isinstance(f, RstStreamFrame)}


def read_frames(data: bytes, position: int = 0) -> tuple[list[Frame], int]:
    """Whole frames, and where they end."""
    found = []
    while len(data) - position >= 9:
        frame, length = Frame.parse_frame_header(memoryview(data)[position : position + 9])
        if len(data) - position - 9 < length:
            break
        frame.parse_body(memoryview(data)[position + 9 : position + 9 + length])
        position += 9 + length
        found.append(frame)
    return found, position


class Peer:
    """The ``h2`` library at the other end. What it does not accept raises."""

    def __init__(self, bench: Http2Bench, *, http1: bool = False) -> None:
        self.bench = bench
        self.transport = bench.connect(http1=http1)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.seen = 0
        self.events: list[h2.events.Event] = []
        self.credit = True
        self.exchange()

    def exchange(self) -> list[h2.events.Event]:
        """Sends what is to be sent and reads what is there, until nothing more comes."""
        fresh: list[h2.events.Event] = []
        while True:
            sent = self.h2.data_to_send()
            if sent:
                self.transport.receive(sent)
            self.bench.settle()
            written = self.transport.written
            if self.seen == len(written) and not sent:
                break
            got = self.h2.receive_data(written[self.seen :])
            self.seen = len(written)
            fresh += got
            if self.credit:
                for event in got:
                    if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                        self._give(event)
        self.events += fresh
        return fresh

    def _give(self, event: h2.events.DataReceived) -> None:
        try:
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except h2.exceptions.StreamClosedError:
            pass

    def start(self, fields: Iterable[tuple[str, str]], *, end: bool = False) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, list(fields), end_stream=end)
        return stream_id

    def send(self, stream_id: int, payload: bytes, *, end: bool = False) -> None:
        """As much at a time as the windows allow."""
        while True:
            room = min(
                self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size
            )
            piece, payload = payload[:room], payload[room:]
            assert piece or not payload, "the window never opened"
            self.h2.send_data(stream_id, piece, end_stream=end and not payload)
            if not payload:
                return
            self.exchange()

    def call(self, fields: Iterable[tuple[str, str]], body: bytes = b"") -> Answer:
        """A whole request, and its answer."""
        stream_id = self.start(fields, end=not body)
        if body:
            self.send(stream_id, body, end=True)
        self.exchange()
        return self.answer(stream_id)

    def answer(self, stream_id: int) -> Answer:
        return Answer([e for e in self.events if getattr(e, "stream_id", None) == stream_id])


class Answer:
    """What came on one stream."""

    def __init__(self, events: list[h2.events.Event]) -> None:
        self.events = events
        self.fields: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        self.reset: int | None = None
        self.informed: list[str] = []
        for event in events:
            match event:
                case h2.events.ResponseReceived():
                    self.fields = dict(event.headers)
                case h2.events.InformationalResponseReceived():
                    self.informed.append(dict(event.headers)[":status"])
                case h2.events.TrailersReceived():
                    self.trailers = dict(event.headers)
                case h2.events.DataReceived():
                    self.body += event.data
                case h2.events.StreamEnded():
                    self.ended = True
                case h2.events.StreamReset():
                    self.reset = int(event.error_code)

    @property
    def status(self) -> int:
        return int(self.fields[":status"])

    @property
    def grpc_status(self) -> int:
        return int((self.trailers or self.fields)["grpc-status"])

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.body
        while rest:
            assert rest[0] == 0
            size = int.from_bytes(rest[1:5], "big")
            assert len(rest) >= 5 + size
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found
