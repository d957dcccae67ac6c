"""Anything may arrive over HTTP/2, in any order. Laws of the lane under random frames:

1. Nothing raises; the connection lives, or a GOAWAY was the last thing said.
2. What is written is HTTP/2: whole frames, header blocks that decode, nothing on a stream after
   its end, never more DATA than the client's windows allow.
3. Memory stays within the named limits, and what streams keep adds up.
4. An independent client that keeps to the protocol gets every answer, whatever the order,
   the pieces and the windows.
"""

from __future__ import annotations

import random
from typing import Any

import hpack
import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.frontends.exchange import Exchange
from headrace.frontends.grpc.call import Call, Method
from headrace.frontends.http2 import frames
from headrace.frontends.http2.connection import Http2Connection
from headrace.frontends.lane import Lane
from headrace.limits import Http2Limits, HttpLimits
from headrace.telemetry.snapshot import HttpCounters
from tests.fuzzing import examples
from tests.unit.frontends.http2.bench import (
    GET,
    HELLO,
    POST,
    Echo,
    Http2Bench,
    Peer,
    block,
    grpc_fields,
    message,
    read_frames,
)
from tests.unit.frontends.lane_bench import ManualLoop

HTTP2 = Http2Limits(
    max_concurrent_streams=8,
    max_message_bytes=4096,
    stream_window_bytes=65_535,
    connection_window_bytes=100_000,
    max_buffered_bytes=20_000,
    max_header_list_bytes=2048,
    max_continuations=4,
    max_control_frames=500,
    max_resets=200,
    max_unsent_bytes=50_000,
)
HTTP = HttpLimits(max_body_bytes=8192, max_header_bytes=1024, max_headers=12)


class Pipe:
    """The least of a transport."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written.append(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self.closing = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        """What was read waits for another turn."""

    resume_reading = pause_reading

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


class Reader:
    """What an independent client makes of what we write, and the windows it gave."""

    def __init__(self) -> None:
        self.decoder = hpack.Decoder()
        self.window = 65_535
        self.initial = 65_535
        self.windows: dict[int, int] = {}
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        self.over = False
        self.farewell = False

    def sent(self, kind: int, stream_id: int, payload: bytes) -> None:
        """A frame of ours may have widened a window. Too much rather than too little."""
        if kind == frames.WINDOW_UPDATE and len(payload) == 4:
            increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
            if stream_id:
                self.windows[stream_id] = self.windows.get(stream_id, 0) + increment
            else:
                self.window += increment
        elif kind == frames.SETTINGS and len(payload) % 6 == 0:
            for name, value in frames.read_settings(payload):
                if name == frames.INITIAL_WINDOW_SIZE:
                    self.initial = max(self.initial, value)

    def read(self, data: bytes) -> int:
        found, end = read_frames(data)
        assert end == len(data), "half a frame"
        for frame in found:
            assert not self.over, "something after the GOAWAY"
            self._take(frame)
        return len(found)

    def _take(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        match frame:
            case GoAwayFrame():
                self.farewell = True
                self.over = frame.error_code != 0
            case HeadersFrame():
                fields = dict(self.decoder.decode(frame.data))
                assert stream_id not in self.ended
                assert (":status" in fields) != (stream_id in self.begun)
                if fields.get(":status") != "100":
                    self.begun.add(stream_id)
            case DataFrame():
                assert stream_id in self.begun
                assert stream_id not in self.ended
                size = frame.flow_controlled_length
                self.window -= size
                self.windows[stream_id] = self.windows.get(stream_id, 0) - size
                assert self.window >= 0
                assert self.windows[stream_id] + self.initial >= 0
            case RstStreamFrame():
                self.ended.add(stream_id)
        if "END_STREAM" in frame.flags:
            self.ended.add(stream_id)


class Target:
    """A connection under fire, with handlers that answer in every way there is."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.loop = ManualLoop()
        self.waiting: list[Any] = []
        self.lane = Lane(
            self.handle, limits=HTTP, http2_limits=HTTP2, counters=HttpCounters(), loop=self.loop
        )
        self.lane.grpc = {
            b"/t.T/Echo": Method(unary=self.call),
            b"/t.T/Stream": Method(streaming=Echo),
        }
        self.connect()

    def connect(self) -> None:
        self.waiting.clear()
        self.pipe = Pipe()
        self.reader = Reader()
        self.connection = Http2Connection(self.lane)
        self.connection.connection_made(self.pipe)  # type: ignore[arg-type]
        self.connection.data_received(HELLO)
        self.loop.run_ready()

    def handle(self, exchange: Exchange) -> None:
        self._soon(lambda: exchange.respond_json(b"x" * self.chance.choice((0, 10, 3000))))

    def call(self, call: Call, data: bytes) -> None:
        if self.chance.random() < 0.1:
            raise InvalidRequest("no")
        self._soon(lambda: call.finish(data))

    def _soon(self, answer: Any) -> None:
        if self.chance.random() < 0.5:
            answer()
        else:
            self.waiting.append(answer)

    def fire(self, sent: bytes) -> int:
        """How many frames came back."""
        self.connection.data_received(sent)
        while self.waiting and (len(self.waiting) > 5 or self.chance.random() < 0.3):
            self.waiting.pop(self.chance.randrange(len(self.waiting)))()
        self.loop.run_ready()
        data = b"".join(self.pipe.written)
        self.pipe.written.clear()
        count = self.reader.read(data)
        self.check()
        return count

    def check(self) -> None:
        machine = self.connection.machine
        assert not self.loop.errors, self.loop.errors
        assert machine.failed or not self.reader.over
        assert self.reader.farewell or not machine.failed
        streams = list(machine.streams.values())
        assert len(streams) <= HTTP2.max_concurrent_streams
        assert machine.buffered_bytes == sum(s.buffered_bytes for s in streams)
        assert machine.buffered_bytes <= HTTP2.max_buffered_bytes
        assert machine.unsent_bytes == sum(s.pending_bytes for s in streams)
        assert machine.unsent_bytes <= HTTP2.max_unsent_bytes + 8 * 4096
        assert len(machine._rest) <= 65_545
        assert len(machine._decoder.remembered) <= 64
        assert len(machine.forgotten) <= 1024
        assert not machine.out or self.pipe.closing

    def close(self) -> None:
        self.connection.connection_lost(None)
        for answer in self.waiting:
            answer()
        self.loop.run_ready()
        assert not self.lane.connections
        assert self.connection.machine.buffered_bytes == 0
        assert self.connection.machine.unsent_bytes == 0


BLOCKS = [
    block(GET),
    block(POST),
    block([*POST, ("content-length", "10")]),
    block([*POST, ("content-encoding", "gzip")]),
    block([*POST, ("expect", "100-continue")]),
    block(grpc_fields()),
    block(grpc_fields("/t.T/Stream")),
    block(grpc_fields("/t.T/Nope")),
    block(grpc_fields("/t.T/Echo", ("grpc-timeout", "1S"), ("grpc-encoding", "gzip"))),
    block(grpc_fields("/t.T/Stream", ("grpc-encoding", "deflate"))),
    hpack.Encoder().encode(GET),
    hpack.Encoder().encode([*GET, ("x-y", "z" * 40)]),
    b"\x82\x86\xbe\xbf",
    block([("t", "x")]),
    b"\x20" + block(GET),
    block([*GET, ("connection", "close")]),
]
BODIES = [b"", b"x", b"0123456789", message(b"hello"), message(b"")[:3], message(b"x" * 500)]
BODIES += [message(b"1") + message(b"2"), message(b"no gzip", compressed=True), b"\0\0\xff\xff\xff"]


class Gunner:
    """Frames, most of which make sense at the moment."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.next_id = 1
        self.unfinished = 0

    def frame(self) -> tuple[int, int, bytes, bytes]:
        """Type, stream, payload, and all of it on the wire."""
        chance = self.chance
        roll = chance.random()
        stream_id = max(1, self.next_id - 2 * chance.randrange(1, 9))
        flags = chance.choice((0, 1, 4, 5, 5, 5))
        if self.unfinished and roll < 0.9:
            kind, payload, stream_id = frames.CONTINUATION, b"", self.unfinished
        elif roll < 0.3:
            kind, payload = frames.HEADERS, chance.choice(BLOCKS)
            stream_id = self.next_id
            self.next_id += 2
            flags |= 4 if chance.random() < 0.95 else 0
        elif roll < 0.64:
            kind, payload = frames.DATA, chance.choice(BODIES)
            flags &= 1
        elif roll < 0.78:
            size = chance.choice((1, 5, 999, 65_535))
            kind, payload = frames.WINDOW_UPDATE, size.to_bytes(4, "big")
            stream_id = chance.choice((0, stream_id))
        elif roll < 0.84:
            kind, payload = frames.RST_STREAM, b"\0\0\0\x08"
        elif roll < 0.89:
            kind, payload, flags, stream_id = frames.PING, b"12345678", flags & 1, 0
        elif roll < 0.94:
            kind, flags, stream_id = frames.SETTINGS, 0, 0
            payload = b"\0\4" + chance.choice((0, 10, 65_535, 70_000)).to_bytes(4, "big")
        elif roll < 0.97:
            kind, payload = frames.PRIORITY, b"\0\0\0\0\0"
        elif roll < 0.972:
            kind, payload, stream_id = frames.GOAWAY, b"\0" * 8, 0
        else:
            kind, payload = chance.randrange(12), chance.randbytes(chance.randrange(20))
            flags = chance.choice((0, 1, 4, 8, 0x20, 0x2D, chance.randrange(256)))
            stream_id = chance.choice((0, stream_id, self.next_id, 2))
        if kind in (frames.HEADERS, frames.CONTINUATION):
            self.unfinished = 0 if flags & frames.END_HEADERS else stream_id
        if chance.random() < 0.01 and payload:
            index = chance.randrange(len(payload))
            payload = payload[:index] + chance.randbytes(1) + payload[index + 1 :]
        return kind, stream_id, payload, frames.frame(kind, flags, stream_id, payload)


def bombard(seed: int, count: int) -> tuple[int, int, int]:
    """Frames sent, frames that came back, connections."""
    chance = random.Random(seed)
    target, gunner = Target(chance), Gunner(chance)
    sent = answered = 0
    connections = 1
    while sent < count:
        volley = []
        for _ in range(chance.randrange(1, 12)):
            kind, stream_id, payload, wire = gunner.frame()
            target.reader.sent(kind, stream_id, payload)
            volley.append(wire)
        data = b"".join(volley)
        if chance.random() < 0.02:
            data = data[: chance.randrange(len(data))] + chance.randbytes(3)
        sent += len(volley)
        cut = chance.randrange(len(data)) if chance.random() < 0.2 else 0
        if cut:
            answered += target.fire(data[:cut])
        answered += target.fire(data[cut:])
        if target.connection.machine.failed or target.pipe.closing or chance.random() < 0.002:
            target.close()
            target.connect()
            gunner.next_id, gunner.unfinished = 1, 0
            connections += 1
        elif chance.random() < 0.001:
            target.loop.advance(chance.choice((1, 30, 100)))
            target.fire(b"")
    target.close()
    return sent, answered, connections


@pytest.mark.parametrize("seed", range(3))
def test_random_frames(seed: int) -> None:
    sent, answered, connections = bombard(seed, 4_000)
    assert answered > sent / 20, "most of it is no nonsense"
    assert connections < sent / 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_random_frames(seed: int) -> None:
    sent, answered, _ = bombard(seed, examples(30_000))
    assert answered > sent / 20


@given(st.binary(max_size=300))
def test_random_bytes_after_the_preface(sent: bytes) -> None:
    target = Target(random.Random(0))
    target.fire(sent)
    target.close()


@given(st.integers(0, 2**32), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_short_volleys(seed: int, count: int) -> None:
    bombard(seed, count)


# -- an independent client that keeps to the protocol ----------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("web"), st.integers(0, 5000)),
        st.tuples(st.just("unary"), st.integers(0, 5000)),
        st.tuples(st.just("stream"), st.lists(st.integers(0, 3000), max_size=4)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("answer"), st.integers(0, 20)),
        st.tuples(st.just("ping"), st.none()),
        st.tuples(st.just("window"), st.sampled_from([0, 100, 65_535, 10**6])),
        st.tuples(st.just("frame"), st.sampled_from([16_384, 20_000, 2**24 - 1])),
        st.tuples(st.just("table"), st.sampled_from([0, 100, 4096, 10_000])),
        st.tuples(st.just("exchange"), st.none()),
    ),
    max_size=25,
)


class Client:
    """Does what the steps say, and knows what must come of it."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.bench = Http2Bench(reply=self._later, answer=self._call)
        self.peer = Peer(self.bench)
        self.expected: dict[int, list[bytes]] = {}

    def _later(self, exchange: Exchange) -> None:
        self.waiting.append(lambda: exchange.respond_json(exchange.body))

    def _call(self, call: Call, data: bytes) -> None:
        self.waiting.append(lambda: call.finish(data))

    def do(self, step: str, value: Any) -> None:
        h2 = self.peer.h2
        match step:
            case "web":
                self._request(POST, b"w" * value, [b"w" * value])
            case "unary":
                self._request(grpc_fields(), message(b"u" * value), [b"u" * value])
            case "stream":
                sent = [b"s" * size for size in value]
                self._request(grpc_fields("/t.T/Stream"), b"".join(map(message, sent)), sent)
            case "cancel" if value < len(self.expected):
                stream = list(self.expected)[value]
                if not self.peer.answer(stream).ended:
                    del self.expected[stream]
                    h2.reset_stream(stream)
            case "answer" if value < len(self.waiting):
                self.waiting.pop(value)()
            case "ping":
                h2.ping(b"12345678")
            case "window":
                self._setting(4, value)
            case "frame":
                self._setting(5, value)
            case "table":
                self._setting(1, value)
            case _:
                self.peer.exchange()

    def _setting(self, name: int, value: int) -> None:
        """One at a time: h2 takes the first acknowledgement for that of all of them."""
        self.peer.h2.update_settings({name: value})
        self.peer.exchange()

    def _request(self, fields: Any, body: bytes, expected: list[bytes]) -> None:
        stream = self.peer.start(fields)
        self.expected[stream] = expected
        self.peer.send(stream, body, end=True)

    def finish(self) -> None:
        self.peer.exchange()
        while self.waiting:
            self.waiting.pop()()
        self._setting(4, 2**20)
        for stream, expected in self.expected.items():
            answer = self.peer.answer(stream)
            assert answer.ended, (stream, answer.events)
            assert answer.reset is None
            assert answer.status == 200
            if "grpc-status" in answer.fields | answer.trailers:
                assert answer.grpc_status == 0
                assert answer.messages == expected
            else:
                assert [answer.body] == expected
        assert not self.peer.transport._protocol.machine.streams


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_a_client_that_keeps_to_the_protocol_gets_its_answers(steps: Any) -> None:
    client = Client()
    for step, value in steps:
        client.do(step, value)
    client.finish()


@pytest.mark.slow
@given(STEPS)
@settings(max_examples=examples(200), deadline=None)
def test_so_does_one_that_goes_on_for_longer(steps: Any) -> None:
    client = Client()
    for step, value in steps * 2:
        client.do(step, value)
    client.finish()
