"""Flow control both ways: what may be sent is sent, what may not waits, nothing is lost."""

from __future__ import annotations

import asyncio

from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame, WindowUpdateFrame

from headrace.frontends.http2 import frames
from headrace.frontends.http2.frames import PREFACE, settings
from tests.unit.frontends.http2.bench import (
    GET,
    POST,
    Http2Bench,
    Peer,
    data,
    grpc_fields,
    headers,
    message,
    request,
    window,
)


def hello(**values: int) -> bytes:
    return PREFACE + settings({getattr(frames, name): value for name, value in values.items()})


def sizes(wire) -> list[tuple[int, int]]:
    return [(f.stream_id, len(f.data)) for f in wire.frames() if isinstance(f, DataFrame)]


def answering(body: bytes) -> Http2Bench:
    return Http2Bench(reply=lambda exchange: exchange.respond_json(body))


def test_an_answer_waits_for_the_streams_window() -> None:
    wire = answering(b"x" * 100).wire(hello=hello(INITIAL_WINDOW_SIZE=30))
    wire.send(request(1))
    assert sizes(wire) == [(1, 30)]
    wire.send(window(1, 1), window(1, 9))
    assert sizes(wire) == [(1, 1), (1, 9)]
    wire.send(window(1, 1000))
    assert sizes(wire) == [(1, 60)]
    assert not wire.machine.streams
    assert wire.machine.unsent_bytes == 0


def test_an_answer_waits_for_the_connections_window() -> None:
    wire = answering(b"x" * 60_000).wire(hello=hello(INITIAL_WINDOW_SIZE=2**20))
    wire.send(request(1), request(3))
    assert sum(size for _, size in sizes(wire)) == 65_535
    wire.send(window(0, 60_000))
    assert sum(size for _, size in sizes(wire)) == 120_000 - 65_535
    assert not wire.machine.streams


def test_streams_that_wait_take_turns() -> None:
    wire = answering(b"x" * 60_000).wire(hello=hello(INITIAL_WINDOW_SIZE=0))
    wire.send(request(1), request(3), request(5))
    assert not sizes(wire)
    wire.send(settings({frames.INITIAL_WINDOW_SIZE: 100_000}))
    found = sizes(wire)
    assert [stream for stream, _ in found[:3]] == [1, 3, 5]
    assert sum(size for _, size in found) == 65_535
    assert max(size for _, size in found) <= 16_384


def test_a_smaller_initial_window_can_make_a_window_negative() -> None:
    """RFC 9113 section 6.9.2."""
    wire = answering(b"x" * 100).wire(hello=hello(INITIAL_WINDOW_SIZE=40))
    wire.send(request(1))
    assert sizes(wire) == [(1, 40)]
    wire.send(settings({frames.INITIAL_WINDOW_SIZE: 10}))  # 30 below nothing
    wire.send(window(1, 30))
    assert sizes(wire) == []
    wire.send(window(1, 1))
    assert sizes(wire) == [(1, 1)]


def test_an_empty_body_needs_no_window() -> None:
    wire = answering(b"").wire(hello=hello(INITIAL_WINDOW_SIZE=0))
    wire.send(request(1))
    assert sizes(wire) == [(1, 0)]
    assert not wire.machine.streams


def test_trailers_come_after_what_waits() -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))
    wire = bench.wire(hello=hello(INITIAL_WINDOW_SIZE=8))
    wire.send(headers(1, grpc_fields()), data(1, message(b"x" * 15), 1))
    assert [type(f) for f in wire.frames()] == [HeadersFrame, DataFrame]
    wire.send(window(1, 100))
    assert [type(f) for f in wire.frames()] == [DataFrame, HeadersFrame]


def test_frames_are_as_large_as_the_client_takes_them() -> None:
    wire = answering(b"x" * 40_000).wire(
        hello=hello(INITIAL_WINDOW_SIZE=2**20, MAX_FRAME_SIZE=30_000)
    )
    wire.send(request(1))
    assert sizes(wire) == [(1, 30_000), (1, 10_000)]


def test_a_reset_stream_gives_its_memory_back() -> None:
    wire = answering(b"x" * 100).wire(hello=hello(INITIAL_WINDOW_SIZE=1))
    wire.send(request(1))
    assert wire.machine.unsent_bytes == 99
    wire.send(frames.rst_stream(1, 8))
    assert wire.machine.unsent_bytes == 0
    wire.send(window(0, 10))
    assert sizes(wire) == [(1, 1)]


def test_what_arrives_is_credited() -> None:
    bench = Http2Bench(http2={"stream_window_bytes": 65_535, "connection_window_bytes": 100_000})
    wire = bench.wire()
    wire.send(headers(1, POST))
    for _ in range(40):
        wire.send(data(1, b"x" * 10_000))
    updates = [f for f in wire.frames() if isinstance(f, WindowUpdateFrame)]
    given = dict.fromkeys((0, 1), 0)
    for update in updates:
        given[update.stream_id] += update.window_increment
    assert given[1] >= 400_000 - 65_535
    assert given[0] >= 400_000 - 100_000
    assert wire.machine.buffered_bytes == 400_000


def test_a_client_that_ignores_the_streams_window_loses_the_stream() -> None:
    bench = Http2Bench(http2={"stream_window_bytes": 65_535})
    bench.streaming = Silent
    wire = bench.wire()
    wire.send(headers(1, grpc_fields("/t.T/Stream")))
    bench.streams[0].call.pause_reading()
    for _ in range(7):
        wire.send(data(1, message(b"x" * 9_995)))
    (reset,) = [f for f in wire.frames() if isinstance(f, RstStreamFrame)]
    assert reset.error_code == 3
    assert not wire.transport.closing


class Silent:
    def __init__(self, call) -> None:
        self.call = call
        self.got: list[bytes] = []
        self.ended = False

    def message(self, data: bytes) -> None:
        self.got.append(data)

    def half_closed(self) -> None:
        self.ended = True


def test_a_client_that_ignores_the_connections_window_loses_it() -> None:
    bench = Http2Bench(http2={"stream_window_bytes": 2**20, "connection_window_bytes": 65_535})
    wire = bench.wire()
    wire.machine._receive_low = 0  # as if we had not credited yet
    wire.send(headers(1, POST))
    for _ in range(5):
        wire.send(data(1, b"x" * 16_000))
    assert wire.goaway().error_code == 3


def test_a_paused_call_gets_no_credit_until_it_goes_on() -> None:
    bench = Http2Bench(http2={"stream_window_bytes": 65_535})
    bench.streaming = Silent
    wire = bench.wire()
    wire.send(headers(1, grpc_fields("/t.T/Stream")))
    (incoming,) = bench.streams
    incoming.call.pause_reading()
    for _ in range(6):
        wire.send(data(1, message(b"x" * 9_995)))
    assert not [f for f in wire.frames() if f.stream_id == 1]
    assert not incoming.got
    assert wire.machine.buffered_bytes == 60_000
    incoming.call.resume_reading()
    bench.settle()
    assert len(incoming.got) == 6
    assert wire.machine.buffered_bytes == 0
    (update,) = [f for f in wire.frames() if f.stream_id == 1]
    assert update.window_increment == 60_000


def test_padding_counts() -> None:
    bench = Http2Bench(http2={"stream_window_bytes": 65_535})
    wire = bench.wire()
    wire.send(headers(1, POST))
    for _ in range(4):
        wire.send(data(1, b"\xff" + b"x" * 9_000 + b"\0" * 255, frames.PADDED))
    updates = [f for f in wire.frames() if f.stream_id == 1]
    assert sum(u.window_increment for u in updates) == 4 * 9_256
    assert wire.machine.buffered_bytes == 4 * 9_000


def test_a_socket_that_is_full_holds_answers_back_and_reading() -> None:
    bench = answering(b"x" * 10_000)
    wire = bench.wire(hello=hello(INITIAL_WINDOW_SIZE=2**30) + window(0, 2**30))
    wire.transport.stall()
    for stream_id in range(1, 41, 2):
        wire.send(request(stream_id))
    assert not wire.transport.reading
    written = len(wire.transport.written)
    assert wire.transport.unread_bytes < 150_000
    for exchange in bench.exchanges:
        assert exchange.finished
    wire.transport.client_reads(10**9)
    wire.transport._stalled = False
    bench.settle()
    assert wire.transport.reading
    assert len(wire.transport.written) > written
    assert not wire.machine.streams
    assert len(bench.exchanges) == 20


async def test_writing_waits_for_the_client() -> None:
    loop = asyncio.get_running_loop()
    bench = Http2Bench(loop=loop)
    bench.settle = lambda: None
    written: list[int] = []

    class Flood:
        def __init__(self, call) -> None:
            self.call = call
            self.task = loop.create_task(self.run())

        async def run(self) -> None:
            for number in range(20):
                self.call.send(b"x" * 50_000)
                written.append(number)
                await self.call.writable()
            self.call.end()

        def message(self, data: bytes) -> None: ...

        def half_closed(self) -> None: ...

    bench.streaming = Flood
    wire = bench.wire(hello=hello(INITIAL_WINDOW_SIZE=100_000) + window(0, 10**8))
    wire.send(headers(1, grpc_fields("/t.T/Stream")))
    for _ in range(10):
        await asyncio.sleep(0)
    first = len(written)
    assert 2 <= first < 6
    for _ in range(40):
        wire.send(window(1, 50_000))
        for _ in range(4):
            await asyncio.sleep(0)
    await bench.streams[0].task
    assert len(written) == 20
    total = sum(len(f.data) for f in wire.frames() if isinstance(f, DataFrame))
    assert total == 20 * 50_005
    bench.lane.abort()


def test_large_bodies_both_ways_by_an_independent_client() -> None:
    bench = Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body))
    peer = Peer(bench)
    body = bytes(range(256)) * 20_000
    answer = peer.call(POST, body)
    assert answer.body == body
    assert answer.ended
    assert peer.call(GET).status == 200
