"""gRPC on the lane: framing, metadata, compression, status, cancellation."""

from __future__ import annotations

import gc
import gzip
import zlib
from urllib.parse import unquote

import pytest

from headrace.errors import InvalidRequest, ModelNotFound, Overloaded, PayloadTooLarge
from tests.unit.frontends.http2.bench import (
    END_STREAM,
    GRPC,
    HELLO,
    Http2Bench,
    Peer,
    data,
    grpc_fields,
    headers,
    message,
    request,
    rst,
)

INVALID, DEADLINE, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = (
    *(3, 4, 5, 8, 12, 13, 14),
)


def echoing(**options) -> Peer:
    return Peer(Http2Bench(answer=lambda call, data: call.finish(data), **options))


# -- a unary call ---------------------------------------------------------------------------


def test_a_unary_call() -> None:
    peer = echoing()
    answer = peer.call(grpc_fields(), message(b"hello"))
    assert answer.fields == {":status": "200", "content-type": "application/grpc"}
    assert answer.messages == [b"hello"]
    assert answer.trailers == {"grpc-status": "0"}
    assert answer.ended
    assert answer.reset is None
    (call, sent) = peer.bench.calls[0]
    assert (sent, call.closed, call.cancel, call.timeout_ns) == (b"hello", True, None, 0)
    assert call.arrived_ns > 0
    assert peer.bench.counters.responses[2] == 1


def test_an_answer_leaves_in_one_write() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    writes: list[bytes] = []
    write = wire.transport.write
    wire.transport.write = lambda data: (writes.append(data), write(data))
    for n in (1, 3, 5):
        wire.send(headers(n, grpc_fields()) + data(n, message(b"x"), END_STREAM))
    assert not writes
    for call, sent in bench.calls:
        call.finish(sent)
    bench.settle()
    assert len(writes) == 1
    assert len(wire.frames()) == 9


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_a_message_cut_anywhere(step: int) -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))
    wire = bench.wire()
    sent = message(bytes(range(40)))
    wire.send(headers(1, grpc_fields()))
    for start in range(0, len(sent), step):
        wire.send(data(1, sent[start : start + step]))
    wire.send(data(1, b"", END_STREAM))
    assert bench.calls[0][1] == bytes(range(40))
    assert wire.machine.buffered_bytes == 0
    assert not wire.machine.streams


def test_a_megabyte_in_single_bytes_costs_no_million_objects() -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))
    wire = bench.wire()
    wire.send(headers(1, grpc_fields()), data(1, message(b"x" * 100_000)[:5]))
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(99):
        wire.send(data(1, b"x") * 1000)
    assert len(gc.get_objects()) - before < 5_000
    assert len(wire.machine.streams[1]._parts) < 2_000
    wire.send(data(1, b"x" * 1000, END_STREAM))
    assert len(bench.calls[0][1]) == 100_000


def test_an_empty_message() -> None:
    assert echoing().call(grpc_fields(), message(b"")).messages == [b""]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", UNIMPLEMENTED),
        (message(b"1") + message(b"2"), UNIMPLEMENTED),
        (message(b"12345")[:7], INVALID),
        (message(b"")[:3], INVALID),
        (b"\x02\0\0\0\0", INVALID),
        (message(b"x", compressed=True), INVALID),
    ],
    ids=["no message", "two", "half", "half a prefix", "a flag of 2", "no encoding"],
)
def test_bodies_that_are_no_message(body: bytes, status: int) -> None:
    peer = echoing()
    stream = peer.start(grpc_fields())
    peer.send(stream, body, end=True)
    peer.exchange()
    answer = peer.answer(stream)
    assert answer.grpc_status == status
    assert answer.ended
    assert not peer.bench.calls
    assert peer.call(grpc_fields(), message(b"next")).messages == [b"next"]
    assert peer.bench.loop.errors == []


def test_many_messages_in_one_frame() -> None:
    peer = echoing()
    sent = [b"", b"a", b"bc" * 300, b"d"]
    stream = peer.start(grpc_fields("/t.T/Stream"))
    peer.send(stream, b"".join(map(message, sent)), end=True)
    peer.exchange()
    answer = peer.answer(stream)
    assert answer.messages == sent
    assert answer.trailers == {"grpc-status": "0"}


def test_a_stream_ends_without_a_message() -> None:
    answer = echoing().call(grpc_fields("/t.T/Stream"))
    assert (answer.fields["grpc-status"], answer.trailers) == ("0", {})


def test_a_stream_in_the_middle_of_a_message() -> None:
    answer = echoing().call(grpc_fields("/t.T/Stream"), message(b"one") + message(b"two")[:6])
    assert answer.messages == [b"one"]
    assert answer.grpc_status == INVALID


def test_a_unary_method_may_answer_with_a_stream() -> None:
    def answer(call, data: bytes) -> None:
        for part in (b"1", b"2", b"3"):
            call.send(part)
        call.end(trailers=[(b"x-y", b"z"), (b"x-bin", b"\0\xff")])

    got = Peer(Http2Bench(answer=answer)).call(grpc_fields(), message(b""))
    assert got.messages == [b"1", b"2", b"3"]
    assert got.trailers == {"grpc-status": "0", "x-y": "z", "x-bin": "AP8"}


def test_a_method_that_ends_before_the_client_does() -> None:
    """RFC 9113 section 8.1: the client is told to stop, without an error."""
    bench = Http2Bench()

    class Enough:
        def __init__(self, call) -> None:
            self.call = call

        def message(self, data: bytes) -> None:
            self.call.send(b"enough")
            self.call.end()

        def half_closed(self) -> None:
            raise AssertionError

    bench.streaming = Enough
    peer = Peer(bench)
    stream = peer.start(grpc_fields("/t.T/Stream"))
    peer.send(stream, message(b"1") + message(b"2"))
    peer.exchange()
    answer = peer.answer(stream)
    assert answer.messages == [b"enough"]
    assert (answer.grpc_status, answer.reset) == (0, 0)


# -- what a call says ------------------------------------------------------------------------


def called(*more: tuple[str, str]):
    peer = echoing()
    answer = peer.call(grpc_fields("/t.T/Echo", *more), message(b"x"))
    return answer, peer.bench.calls[0][0] if peer.bench.calls else None


def test_metadata() -> None:
    _, call = called(("x-y", "z"), ("x-y", "again"), ("user-agent", "me"), ("k-bin", "AAEC,/w=="))
    assert call is not None
    assert list(call.metadata) == [
        (b"x-y", b"z"),
        (b"x-y", b"again"),
        (b"user-agent", b"me"),
        (b"k-bin", b"\0\1\2"),
        (b"k-bin", b"\xff"),
    ]


@pytest.mark.parametrize(
    ("value", "timeout_ns"),
    [
        *(("1H", 3600 * 10**9), ("2M", 120 * 10**9), ("3S", 3 * 10**9), ("4m", 4_000_000)),
        *(("5u", 5000), ("6n", 6), ("0n", 1), ("99999999H", 99_999_999 * 3600 * 10**9)),
    ],
)
def test_grpc_timeout(value: str, timeout_ns: int) -> None:
    _, call = called(("grpc-timeout", value))
    assert call is not None
    assert call.timeout_ns == timeout_ns


@pytest.mark.parametrize(
    "value", ["", "1", "S", "1s", "-1S", "1.5S", "123456789S", "1 S", "\N{FULLWIDTH DIGIT ONE}S"]
)
def test_grpc_timeouts_that_are_none(value: str) -> None:
    answer, call = called(("grpc-timeout", value))
    assert call is None
    assert answer.grpc_status == INVALID
    assert "grpc-timeout" in answer.fields["grpc-message"]


def test_metadata_that_is_not_base64() -> None:
    answer, call = called(("x-bin", "!"))
    assert (call, answer.grpc_status) == (None, INVALID)


@pytest.mark.parametrize("path", ["/t.T/Nope", "/", "/t.T/Echo/", "/t.T/Echo?x=y"])
def test_unknown_methods(path: str) -> None:
    answer = echoing().call(grpc_fields(path), message(b"x"))
    assert answer.grpc_status == UNIMPLEMENTED
    assert "grpc-status" in answer.fields, "trailers only"
    assert answer.ended


@pytest.mark.parametrize(
    "kind", ["application/grpc+proto", "application/grpc;charset=utf-8", "application/grpc"]
)
def test_content_types_of_grpc(kind: str) -> None:
    fields = [(n, kind if n == "content-type" else v) for n, v in GRPC]
    assert echoing().call(fields, message(b"x")).messages == [b"x"]


@pytest.mark.parametrize(
    "kind", ["application/grpc-web", "application/json", "application/grpc+json"]
)
def test_other_content_types_are_ordinary_http(kind: str) -> None:
    fields = [(n, kind if n == "content-type" else v) for n, v in GRPC]
    peer = Peer(Http2Bench(reply=lambda exchange: exchange.respond(415, b"{}")))
    assert peer.call(fields, message(b"x")).status == 415


# -- compression -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("size", [10, 100_000])
def test_compressed_messages(encoding: str, squeeze, size: int) -> None:
    peer = echoing()
    plain = bytes(range(250)) * (size // 250 + 1)
    for sent in (message(squeeze(plain), compressed=True), message(plain)):
        answer = peer.call(grpc_fields("/t.T/Echo", ("grpc-encoding", encoding)), sent)
        assert answer.messages == [plain]


def test_compressed_messages_of_a_stream_keep_their_order() -> None:
    import random

    noise = random.Random(1).randbytes
    plain = [noise(9_000), b"a", noise(20_000), noise(10), noise(7_000)]
    sent = b"".join(
        message(gzip.compress(p), compressed=True) if n % 2 == 0 else message(p)
        for n, p in enumerate(plain)
    )
    fields = grpc_fields("/t.T/Stream", ("grpc-encoding", "gzip"))
    answer = echoing().call(fields, sent)
    assert answer.messages == plain
    assert answer.trailers == {"grpc-status": "0"}


def test_a_bomb_is_not_blown_up() -> None:
    peer = echoing(http2={"max_message_bytes": 100_000})
    bomb = gzip.compress(b"\0" * 50_000_000)
    answer = peer.call(
        grpc_fields("/t.T/Echo", ("grpc-encoding", "gzip")), message(bomb, compressed=True)
    )
    assert answer.grpc_status == EXHAUSTED
    assert peer.bench.counters.rejected == {"max_message_bytes": 1}


def test_bytes_that_are_not_what_they_say() -> None:
    answer = echoing().call(
        grpc_fields("/t.T/Echo", ("grpc-encoding", "gzip")), message(b"plain", compressed=True)
    )
    assert answer.grpc_status == INVALID


def test_an_unknown_encoding_is_told_which_are_known() -> None:
    answer = echoing().call(
        grpc_fields("/t.T/Echo", ("grpc-encoding", "br")), message(b"x", compressed=True)
    )
    assert answer.grpc_status == UNIMPLEMENTED
    assert answer.fields["grpc-accept-encoding"] == "identity,deflate,gzip"


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "counted"),
    [
        (InvalidRequest("no"), INVALID, 4),
        (ModelNotFound("no"), NOT_FOUND, 4),
        (PayloadTooLarge("no"), EXHAUSTED, 4),
        (Overloaded("no", retry_after_ns=10**9), UNAVAILABLE, 5),
        (KeyError("secret"), INTERNAL, 5),
    ],
)
def test_a_method_that_raises(error: Exception, status: int, counted: int) -> None:
    def refuse(call, data: bytes) -> None:
        raise error

    peer = Peer(Http2Bench(answer=refuse))
    answer = peer.call(grpc_fields(), message(b"x"))
    assert answer.grpc_status == status
    assert "secret" not in str(answer.fields)
    assert peer.bench.counters.responses[counted] == 1


def test_texts_are_percent_encoded() -> None:
    text = "100 % of ä\nline"
    peer = Peer(Http2Bench(answer=lambda call, data: call.end(INVALID, text)))
    answer = peer.call(grpc_fields(), message(b"x"))
    assert answer.fields["grpc-message"] == "100 %25 of %C3%A4%0Aline"
    assert unquote(answer.fields["grpc-message"]) == text


def test_an_error_after_messages_is_in_the_trailers() -> None:
    def answer(call, data: bytes) -> None:
        call.send(b"1")
        call.fail(InvalidRequest("no more"))

    got = Peer(Http2Bench(answer=answer)).call(grpc_fields(), message(b"x"))
    assert (got.messages, got.trailers["grpc-status"]) == ([b"1"], "3")


def test_what_is_ended_stays_ended() -> None:
    def answer(call, data: bytes) -> None:
        call.finish(b"1")
        call.finish(b"2")
        call.send(b"3")
        call.end(5)
        call.fail(KeyError())
        call.pause_reading()
        call.resume_reading()

    peer = Peer(Http2Bench(answer=answer))
    got = peer.call(grpc_fields(), message(b"x"))
    assert (got.messages, got.grpc_status, got.ended) == ([b"1"], 0, True)
    assert peer.call(grpc_fields(), message(b"x")).messages == [b"1"]


# -- the client leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "connection lost", "fault"])
def test_a_client_that_leaves_cancels(how: str) -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(headers(1, grpc_fields()), data(1, message(b"x"), END_STREAM))
    call, _ = bench.calls[0]
    cancelled: list[int] = []
    call.cancel = lambda: cancelled.append(1)
    match how:
        case "reset":
            wire.send(rst(1))
        case "connection lost":
            wire.transport.abort()
        case _:
            wire.send(data(0, b""))
    bench.settle()
    assert cancelled == [1]
    assert call.closed
    assert call.cancel is None
    sent = len(wire.transport.written)
    call.finish(b"late")
    call.end()
    bench.settle()
    assert len(wire.transport.written) == sent


def test_a_stream_that_is_cancelled_holds_nothing() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(headers(1, grpc_fields("/t.T/Stream")), data(1, message(b"x" * 50)[:30]))
    assert wire.machine.buffered_bytes == 25
    wire.send(rst(1))
    assert wire.machine.buffered_bytes == 0


def test_requests_are_freed_without_the_collector() -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))
    wire = bench.wire()

    def traffic(first: int) -> None:
        for n in range(first, first + 100, 4):
            wire.send(headers(n, grpc_fields()), data(n, message(b"x"), END_STREAM))
            wire.send(headers(n + 2, grpc_fields("/t.T/Stream")), data(n + 2, message(b"x"), 1))
        bench.calls.clear()
        bench.streams.clear()

    traffic(1)
    gc.collect()
    gc.disable()
    try:
        traffic(101)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_connections_are_freed_without_the_collector() -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))

    def visit() -> None:
        wire = bench.wire()
        wire.send(headers(1, grpc_fields()), data(1, message(b"x"), END_STREAM), request(3))
        wire.transport.abort()
        bench.settle()
        wire.transport._protocol = None
        bench.calls.clear()
        bench.exchanges.clear()

    visit()
    gc.collect()
    gc.disable()
    try:
        visit()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_preface_and_a_call_in_one_read() -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))
    wire = bench.wire(hello=b"")
    wire.send(HELLO + headers(1, grpc_fields()) + data(1, message(b"x"), END_STREAM))
    assert [f.stream_id for f in wire.frames()][-3:] == [1, 1, 1]
