"""Every limit: just below it nothing happens, above it the fault that its name stands for."""

from __future__ import annotations

import pytest
from hyperframe.frame import GoAwayFrame

from headrace.frontends.http2 import frames
from headrace.frontends.http2.frames import PREFACE, frame, settings
from tests.unit.frontends.http2.bench import (
    END_HEADERS,
    END_STREAM,
    GET,
    HELLO,
    POST,
    Http2Bench,
    Peer,
    Wire,
    block,
    data,
    grpc_fields,
    headers,
    message,
    ping,
    request,
    rst,
    window,
)

CALM, REFUSED = 0xB, 0x7


def calmed(wire: Wire, limit: str) -> None:
    assert wire.goaway().error_code == CALM
    assert wire.bench.counters.rejected == {limit: 1}
    assert wire.transport.eof_sent


def lives(wire: Wire) -> bool:
    return not any(isinstance(f, GoAwayFrame) for f in wire.frames())


def test_streams_above_the_limit_are_refused_and_no_others() -> None:
    bench = Http2Bench(http2={"max_concurrent_streams": 3})
    wire = bench.wire()
    wire.send(*[request(n) for n in (1, 3, 5, 7)])
    assert wire.resets() == {7: REFUSED}
    assert bench.counters.rejected == {"max_concurrent_streams": 1}
    bench.exchanges[0].respond_json(b"{}")
    wire.send(request(9))
    assert len(bench.exchanges) == 4
    wire.send(data(7, b"x"))
    assert lives(wire), "it may not know yet"


def test_rapid_reset() -> None:
    """CVE-2023-44487."""
    wire = Http2Bench(http2={"max_resets": 50}).wire()
    for n in range(1, 101, 2):
        wire.send(request(n) + rst(n))
    assert lives(wire)
    wire.send(request(101) + rst(101))
    calmed(wire, "max_resets")


def test_a_client_that_cancels_half_of_what_it_asks_is_no_attacker() -> None:
    bench = Http2Bench(http2={"max_resets": 50})
    wire = bench.wire()
    for n in range(1, 2001, 4):
        wire.send(request(n) + request(n + 2) + rst(n))
        bench.exchanges[-1].respond_json(b"{}")
    assert lives(wire)


def test_streams_that_we_must_reset_count_too() -> None:
    """CVE-2025-8671: the client provokes the resets."""
    wire = Http2Bench(http2={"max_resets": 50}).wire()
    for n in range(1, 101, 2):
        wire.send(request(n) + window(n, 0))
    assert lives(wire)
    wire.send(request(101) + window(101, 0))
    calmed(wire, "max_resets")


@pytest.mark.parametrize(
    "flood",
    [
        ping(),
        ping(flags=frames.ACK),
        settings({}),
        settings({frames.INITIAL_WINDOW_SIZE: 70_000}),
        frame(frames.PRIORITY, 0, 3, b"\0\0\0\1\0"),
        window(0, 1),
        window(1, 1),
        data(1),
        frame(0xEE, 0, 0, b""),
        data(1, b"\x02\0\0", frames.PADDED),
        frame(frames.SETTINGS, frames.ACK, 0),
    ],
    ids=[
        *("PING", "PING ACK", "SETTINGS", "windows by SETTINGS", "PRIORITY", "connection window"),
        *("stream window", "empty DATA", "unknown", "padding only", "SETTINGS ACK"),
    ],
)
def test_floods_of_frames_that_do_nothing(flood: bytes) -> None:
    wire = Http2Bench(http2={"max_control_frames": 100}).wire()
    wire.send(headers(1, POST))
    wire.send(flood * 99)
    assert lives(wire)
    wire.send(flood * 20)
    calmed(wire, "max_control_frames")


def test_traffic_earns_its_control_frames() -> None:
    """As a client that measures the round trip with every answer and credits byte by byte."""
    bench = Http2Bench(http2={"max_control_frames": 20}, reply=lambda e: e.respond_json(b"{}"))
    wire = bench.wire()
    for n in range(1, 2001, 2):
        wire.send(request(n) + ping() + window(0, 2) + window(n, 2))
    assert lives(wire)


def test_a_client_that_credits_every_frame_of_a_long_answer() -> None:
    bench = Http2Bench(
        http2={"max_control_frames": 20}, reply=lambda e: e.respond_json(b"x" * 3_000_000)
    )
    peer = Peer(bench)
    assert len(peer.call(GET).body) == 3_000_000


def test_a_client_that_credits_every_message_of_a_stream() -> None:
    peer = Peer(Http2Bench(http2={"max_control_frames": 20}))
    stream = peer.start(grpc_fields("/t.T/Stream"))
    for _ in range(10):
        peer.send(stream, message(b"token") * 50)
        peer.exchange()
    assert len(peer.answer(stream).messages) == 500


def test_a_window_opened_byte_by_byte() -> None:
    bench = Http2Bench(
        http2={"max_control_frames": 100}, reply=lambda e: e.respond_json(b"x" * 3000)
    )
    wire = bench.wire(hello=PREFACE + settings({frames.INITIAL_WINDOW_SIZE: 0}))
    wire.send(request(1))
    wire.send(window(1, 1) * 99)
    assert lives(wire)
    wire.send(window(1, 1) * 20)
    calmed(wire, "max_control_frames")


def test_a_slow_trickle_of_pings_is_no_flood() -> None:
    bench = Http2Bench(http2={"max_control_frames": 20})
    wire = bench.wire()
    wire.send(headers(1, grpc_fields("/t.T/Stream")))
    for _ in range(200):
        wire.send(ping())
        bench.advance(1)
    assert lives(wire)


def test_continuation_flood() -> None:
    """CVE-2024-27316 and its kin: a block that never ends."""
    wire = Http2Bench(http2={"max_continuations": 10}).wire()
    wire.send(headers(1, flags=0))
    wire.send(frame(frames.CONTINUATION, 0, 1) * 10)
    assert lives(wire)
    wire.send(frame(frames.CONTINUATION, 0, 1))
    calmed(wire, "max_continuations")


def test_a_block_in_pieces_is_a_request() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    whole = block([*GET, ("x", "y" * 5000)])
    wire.send(frame(frames.HEADERS, END_STREAM, 1, whole[:10]))
    wire.send(frame(frames.CONTINUATION, 0, 1, whole[10:4000]))
    wire.send(frame(frames.CONTINUATION, END_HEADERS, 1, whole[4000:]))
    assert bench.exchanges[0].head.headers[b"x"] == b"y" * 5000


def test_a_block_larger_than_a_header_list_can_be() -> None:
    wire = Http2Bench(http2={"max_header_list_bytes": 4096}).wire()
    wire.send(headers(1, flags=0))
    wire.send(frame(frames.CONTINUATION, 0, 1, b"\0" * 4096))
    calmed(wire, "max_header_list_bytes")


def test_an_hpack_bomb() -> None:
    wire = Http2Bench().wire()
    wire.send(
        frame(
            frames.HEADERS,
            END_HEADERS | END_STREAM,
            1,
            block(GET) + b"\x40\x01x\x7f\xa1\x1d" + b"y" * 3872,
        )
    )
    assert lives(wire)
    wire.send(frame(frames.HEADERS, END_HEADERS | END_STREAM, 3, block(GET) + b"\xbe" * 16_000))
    calmed(wire, "max_header_list_bytes")


def test_what_is_incomplete_is_bounded() -> None:
    bench = Http2Bench(http2={"max_buffered_bytes": 100_000})
    wire = bench.wire()
    for n in (1, 3, 5):
        wire.send(headers(n, POST))
    for n in (1, 3, 5):
        wire.send(data(n, b"x" * 30_000))
    assert lives(wire)
    wire.send(data(3, b"x" * 15_000))
    assert wire.resets() == {3: CALM}
    assert bench.counters.rejected == {"max_buffered_bytes": 1}
    assert wire.machine.buffered_bytes == 60_000
    wire.send(data(1, b"", END_STREAM), data(5, b"", END_STREAM))
    assert [len(e.body) for e in bench.exchanges] == [30_000, 30_000]
    assert wire.machine.buffered_bytes == 0


def test_answers_that_nobody_reads_are_bounded() -> None:
    """A window of nothing, and requests for more and more."""
    bench = Http2Bench(
        http2={"max_unsent_bytes": 10_000}, reply=lambda e: e.respond_json(b"x" * 6000)
    )
    wire = bench.wire(hello=PREFACE + settings({frames.INITIAL_WINDOW_SIZE: 0}))
    wire.send(*[request(n) for n in (1, 3, 5, 7)])
    assert wire.resets() == {5: REFUSED, 7: REFUSED}
    assert bench.counters.rejected == {"max_unsent_bytes": 2}
    wire.send(window(1, 6000))
    wire.send(request(9))
    assert len(bench.exchanges) == 3


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    bench = Http2Bench(
        limits={"write_timeout_s": 8.0}, reply=lambda exchange: exchange.respond_json(b"x" * 100)
    )
    wire = bench.wire(hello=PREFACE + settings({frames.INITIAL_WINDOW_SIZE: 10}))
    wire.send(request(1), request(3))
    for _ in range(10):
        bench.advance(4)
        wire.send(window(3, 5))  # this one is read, if slowly
    assert wire.resets() == {1: 8}
    assert list(wire.machine.streams) == [3]
    assert bench.counters.rejected == {"write_timeout_s": 1}


def test_a_socket_that_nobody_reads_is_cut_off() -> None:
    bench = Http2Bench(
        limits={"write_timeout_s": 8.0}, reply=lambda exchange: exchange.respond_json(b"x" * 60_000)
    )
    wire = bench.wire(hello=HELLO + window(0, 10**6))
    wire.transport.stall()
    wire.send(*[request(n) for n in range(1, 21, 2)])
    bench.advance(7)
    assert not wire.transport.aborted
    bench.advance(4)
    assert wire.transport.aborted
    assert bench.counters.rejected == {"write_timeout_s": 1}


@pytest.mark.parametrize("sent", [b"", b"PRI * H", PREFACE, HELLO + headers(1, flags=0)])
def test_a_head_that_does_not_come(sent: bytes) -> None:
    bench = Http2Bench(limits={"header_timeout_s": 4.0})
    wire = bench.wire(hello=sent)
    bench.advance(3.5)
    assert not wire.transport.eof_sent
    bench.advance(4)
    assert wire.transport.eof_sent
    assert bench.counters.rejected == {"header_timeout_s": 1}


def test_a_body_that_does_not_come() -> None:
    bench = Http2Bench(limits={"body_timeout_s": 4.0})
    peer = Peer(bench)
    web, call = peer.start(POST), peer.start(grpc_fields())
    peer.send(web, b"half")
    peer.send(call, message(b"whole")[:7])
    stream = peer.start(grpc_fields("/t.T/Stream"))
    peer.exchange()
    bench.advance(3)
    peer.exchange()
    assert not peer.answer(web).ended
    bench.advance(4)
    peer.exchange()
    assert peer.answer(web).status == 408
    assert peer.answer(call).grpc_status == 4
    assert not peer.answer(stream).ended, "a stream may be silent for as long as it likes"
    assert bench.counters.rejected == {"body_timeout_s": 2}


def test_an_idle_connection_is_told_to_go() -> None:
    bench = Http2Bench(limits={"idle_timeout_s": 20.0}, reply=lambda e: e.respond_json(b"{}"))
    wire = bench.wire()
    for n in range(1, 9, 2):
        wire.send(request(n))
        bench.advance(15)
    assert lives(wire)
    for _ in range(4):
        wire.send(ping())  # not a request
        bench.advance(5)
    assert wire.goaway().error_code == 0
    assert wire.transport.closing


def test_a_client_that_vanished_under_a_stream_is_noticed() -> None:
    bench = Http2Bench(limits={"idle_timeout_s": 20.0})
    wire = bench.wire()
    wire.send(headers(1, grpc_fields("/t.T/Stream")))
    bench.advance(25)
    asked = [f for f in wire.frames() if f.type == frames.PING]
    assert asked
    wire.send(ping(asked[0].opaque_data, frames.ACK))
    bench.advance(25)
    assert not wire.transport.aborted
    bench.advance(30)
    assert wire.transport.aborted
    assert bench.counters.rejected == {"idle_timeout_s": 1}


def test_a_message_above_the_limit_is_refused_before_it_comes() -> None:
    bench = Http2Bench(http2={"max_message_bytes": 1000})
    peer = Peer(bench)
    stream = peer.start(grpc_fields())
    peer.send(stream, b"\0\0\0\x03\xe9")
    peer.exchange()
    answer = peer.answer(stream)
    assert answer.grpc_status == 8
    assert "1001 vs. 1000" in (answer.trailers or answer.fields)["grpc-message"]
    assert answer.reset == 0
    assert bench.counters.rejected == {"max_message_bytes": 1}
