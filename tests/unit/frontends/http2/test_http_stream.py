"""Ordinary HTTP over HTTP/2: the same requests, answers, limits and errors as over HTTP/1.1."""

from __future__ import annotations

import gzip
import json

import pytest

from headrace.errors import InvalidRequest, Overloaded
from headrace.frontends.asgi_bridge import AsgiBridge
from headrace.frontends.exchange import Exchange
from tests.unit.frontends.http2.bench import (
    GET,
    POST,
    Http2Bench,
    Peer,
    data,
    headers,
    request,
    rst,
)


def echoing(**options) -> Peer:
    return Peer(Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body), **options))


def test_a_request_arrives_as_it_was_sent() -> None:
    peer = echoing()
    fields = [
        (":method", "PUT"),
        (":scheme", "http"),
        (":authority", "h:80"),
        (":path", "/a/b?c=d"),
    ]
    peer.call([*fields, ("x-y", "z")], b"abc")
    (exchange,) = peer.bench.exchanges
    head = exchange.head
    assert (head.method, head.target, exchange.body) == (b"PUT", b"/a/b?c=d", b"abc")
    assert head.headers == {b"host": b"h:80", b"x-y": b"z"}
    assert exchange.arrived_ns > 0


def test_the_answer_says_what_rfc_9110_wants() -> None:
    answer = echoing().call(POST, b'{"a":1}')
    assert answer.body == b'{"a":1}'
    assert answer.fields[":status"] == "200"
    assert answer.fields["content-type"] == "application/json"
    assert answer.fields["content-length"] == "7"
    assert answer.fields["date"].endswith(" GMT")
    assert answer.fields["cache-control"] == "no-store"
    assert answer.fields["x-content-type-options"] == "nosniff"
    assert answer.ended


def test_a_length_that_is_right() -> None:
    assert echoing().call([*POST, ("content-length", "3")], b"abc").body == b"abc"


def test_a_body_in_many_frames_and_trailers() -> None:
    bench = Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body))
    wire = bench.wire()
    wire.send(headers(1, POST), *[data(1, b"%d" % n) for n in range(10)], request(1, [("t", "x")]))
    (exchange,) = bench.exchanges
    assert exchange.body == b"0123456789"
    assert b"t" not in exchange.head.headers
    assert wire.machine.buffered_bytes == 0


def test_head_has_no_body() -> None:
    peer = echoing()
    peer.bench.reply = lambda exchange: exchange.respond(200, b"12345")
    answer = peer.call([(":method", "HEAD"), *GET[1:]])
    assert (answer.fields["content-length"], answer.body, answer.ended) == ("5", b"", True)


def test_expect_is_answered_before_the_body() -> None:
    peer = echoing()
    stream = peer.start([*POST, ("expect", "100-continue")])
    peer.exchange()
    assert peer.answer(stream).informed == ["100"]
    peer.send(stream, b"abc", end=True)
    peer.exchange()
    assert peer.answer(stream).body == b"abc"


def test_a_compressed_body() -> None:
    fields = [*POST, ("content-encoding", "gzip")]
    assert echoing().call(fields, gzip.compress(b"plain" * 100)).body == b"plain" * 100


@pytest.mark.parametrize(
    ("fields", "body", "status", "code"),
    [
        ([*POST, ("content-encoding", "br")], b"x", 415, "unknown_encoding"),
        ([*POST, ("content-encoding", "gzip")], b"x", 400, "malformed_http"),
        (
            [*POST, ("content-encoding", "gzip")],
            gzip.compress(b"x" * 5000),
            413,
            "payload_too_large",
        ),
        (POST, b"x" * 1001, 413, "payload_too_large"),
        ([*POST, ("content-length", "1001")], b"", 413, "payload_too_large"),
        ([*GET, *[(f"x-{n}", "y") for n in range(12)]], b"", 431, "too_many_headers"),
        ([*GET, ("x", "y" * 3000)], b"", 431, "headers_too_large"),
        ([GET[0], GET[1], GET[3]], b"", 400, "malformed_http"),
        ([*GET, ("expect", "more")], b"", 417, "unknown_expectation"),
        ([GET[0], GET[1], (":authority", "a/b"), GET[3]], b"", 400, "malformed_http"),
    ],
    ids=[
        *("encoding", "no gzip", "inflated", "body", "length", "headers", "header", "host"),
        *("expect", "bad host"),
    ],
)
def test_what_is_refused(fields, body: bytes, status: int, code: str) -> None:
    limits = {"max_body_bytes": 1000, "max_headers": 10, "max_header_bytes": 2048}
    peer = echoing(limits=limits)
    announced = ("content-length", "1001") in fields
    stream = peer.start(fields, end=not body and not announced)
    if body:
        peer.send(stream, body, end=True)
    peer.exchange()
    answer = peer.answer(stream)
    assert (answer.status, json.loads(answer.body)["code"]) == (status, code)
    assert answer.ended
    assert not peer.bench.exchanges
    assert peer.call(POST, b"next").body == b"next"


def test_errors_are_answered_in_the_v2_shape() -> None:
    def refuse(exchange: Exchange) -> None:
        raise InvalidRequest("no", hint="yes")

    peer = Peer(Http2Bench(reply=refuse))
    answer = peer.call(GET)
    assert (answer.status, json.loads(answer.body)["hint"]) == (400, "yes")


def test_retry_after_is_sent_with_an_overload() -> None:
    def refuse(exchange: Exchange) -> None:
        raise Overloaded("full", retry_after_ns=2_500_000_000)

    answer = Peer(Http2Bench(reply=refuse)).call(GET)
    assert (answer.status, answer.fields["retry-after"]) == (503, "3")


def test_a_handlers_mistake_is_a_500_that_tells_nothing() -> None:
    def fail(exchange: Exchange) -> None:
        raise KeyError("secret")

    answer = Peer(Http2Bench(reply=fail)).call(GET)
    assert answer.status == 500
    assert b"secret" not in answer.body


def test_answers_need_no_order() -> None:
    bench = Http2Bench()
    peer = Peer(bench)
    streams = [peer.start([*GET[:3], (":path", f"/{n}")], end=True) for n in range(5)]
    peer.exchange()
    for exchange in reversed(bench.exchanges):
        exchange.respond_json(exchange.head.target)
        peer.exchange()
    assert [peer.answer(s).body for s in streams] == [b"/%d" % n for n in range(5)]


@pytest.mark.parametrize("status", [204, 304, 404])
def test_every_status_is_one(status: int) -> None:
    peer = Peer(Http2Bench(reply=lambda exchange: exchange.respond(status, b"")))
    assert peer.call(GET).status == status


async def test_an_asgi_answer_in_pieces() -> None:
    import asyncio

    async def app(scope, receive, send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"X-Upper", b"case")]}
        )
        for part in (b"one ", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    bench = Http2Bench(loop=asyncio.get_running_loop())
    bench.settle = lambda: None
    bench.reply = AsgiBridge(app).handle
    peer = Peer(bench)
    stream = peer.start(GET, end=True)
    peer.exchange()
    for _ in range(6):
        await asyncio.sleep(0)
        peer.exchange()
    answer = peer.answer(stream)
    assert answer.body == b"one two three"
    assert answer.fields["x-upper"] == "case"
    assert "transfer-encoding" not in answer.fields
    assert answer.ended
    bench.lane.abort()


async def test_an_asgi_answer_that_fails_half_way_is_reset() -> None:
    import asyncio

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise InvalidRequest("no")

    bench = Http2Bench(loop=asyncio.get_running_loop())
    bench.settle = lambda: None
    bench.reply = AsgiBridge(app).handle
    peer = Peer(bench)
    stream = peer.start(GET, end=True)
    peer.exchange()
    for _ in range(4):
        await asyncio.sleep(0)
        peer.exchange()
    assert peer.answer(stream).reset == 2
    assert not peer.answer(stream).ended
    bench.lane.abort()


def test_a_reset_stream_is_not_answered() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(request(1), rst(1))
    bench.exchanges[0].respond_json(b"{}")
    bench.exchanges[0].connection.abort()
    bench.settle()
    assert not wire.frames()
