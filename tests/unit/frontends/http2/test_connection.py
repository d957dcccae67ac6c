"""One connection: which protocol it speaks, how it ends, what is logged and counted."""

from __future__ import annotations

from typing import Any

import pytest
from hyperframe.frame import GoAwayFrame

from headrace.frontends.http1 import Connection
from headrace.frontends.http2.connection import Http2Connection
from tests.unit.frontends.http2.bench import (
    END_STREAM,
    GET,
    HELLO,
    POST,
    Http2Bench,
    Peer,
    Wire,
    data,
    grpc_fields,
    headers,
    message,
    ping,
    request,
    rst,
    window,
)
from tests.unit.frontends.lane_bench import post


def sniffing(bench: Http2Bench) -> Wire:
    return Wire(bench, bench.connect(http1=True))


def test_prior_knowledge_is_seen_by_its_preface() -> None:
    bench = Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body))
    peer = Peer(bench, http1=True)
    assert isinstance(peer.transport._protocol, Http2Connection)
    assert peer.call(POST, b"x").body == b"x"
    assert bench.counters.connections == 1
    assert bench.counters.connections_open == 1
    peer.transport.abort()
    bench.settle()
    assert bench.counters.connections_open == 0


@pytest.mark.parametrize("step", [1, 2, 5, 23, 24, 25])
def test_a_preface_in_pieces(step: int) -> None:
    bench = Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body))
    wire = sniffing(bench)
    sent = HELLO + request(1)
    for start in range(0, len(sent), step):
        wire.send(sent[start : start + step])
    assert bench.exchanges[0].head.target == b"/x"
    assert bench.counters.received_bytes == len(sent)


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_http1_is_http1(step: int) -> None:
    bench = Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body))
    wire = sniffing(bench)
    sent = post(b"1") + post(b"2")
    for start in range(0, len(sent), step):
        wire.send(sent[start : start + step])
    assert isinstance(wire.connection, Connection)
    assert [e.body for e in bench.exchanges] == [b"1", b"2"]
    assert wire.transport.written.count(b"HTTP/1.1 200 OK") == 2


def test_the_preface_is_only_looked_for_at_the_beginning() -> None:
    bench = Http2Bench(reply=lambda exchange: exchange.respond_json(exchange.body))
    sniffing(bench).send(post(b"1"))  # its head is known from now on
    wire = sniffing(bench)
    wire.send(post(b"1"), HELLO)
    assert isinstance(wire.connection, Connection)
    assert b"HTTP/1.1 505" in wire.transport.written


def test_a_preface_that_never_ends() -> None:
    bench = Http2Bench(limits={"header_timeout_s": 4.0})
    wire = sniffing(bench)
    wire.send(b"PRI * HTTP/2.0\r\n\r\n")
    bench.advance(3.5)
    assert not wire.transport.closing
    bench.advance(3)
    assert b"HTTP/1.1 408" in wire.transport.written
    assert bench.counters.rejected == {"header_timeout_s": 1}


def test_a_preface_that_turns_out_to_be_none() -> None:
    bench = Http2Bench()
    wire = sniffing(bench)
    wire.send(b"PRI * HTTP/2.0\r\n\r\nNO\r\n")
    assert b"HTTP/1.1 505" in wire.transport.written


def test_a_lane_without_http2_refuses_it() -> None:
    bench = Http2Bench()
    bench.lane.http2 = None
    wire = sniffing(bench)
    wire.send(HELLO)
    assert b"HTTP/1.1 505" in wire.transport.written


# -- the end -------------------------------------------------------------------------------------


def test_draining_ends_idle_connections_and_lets_the_others_finish() -> None:
    bench = Http2Bench()
    idle, busy = bench.wire(), bench.wire()
    busy.send(request(1))
    bench.lane.draining = True
    for connection in tuple(bench.lane.connections):
        connection.close_if_idle()
    bench.settle()
    assert idle.goaway().error_code == 0
    assert idle.transport.eof_sent
    goaway = busy.goaway()
    assert (goaway.error_code, goaway.last_stream_id) == (0, 1)
    busy.send(request(3))
    assert len(bench.exchanges) == 1, "the client knows that it was not taken"
    bench.exchanges[0].respond_json(b"{}")
    bench.settle()
    assert busy.frames()[-1].stream_id == 1
    assert busy.transport.eof_sent
    busy.send(window(0, 5))
    assert not busy.transport.closing, "unread bytes would reset it, and the answer be lost"
    bench.advance(2.5)
    assert busy.transport.closing


def test_a_stream_that_crosses_the_first_goaway_is_answered() -> None:
    """RFC 9113 section 6.8: a GOAWAY without a limit, and the one with it a moment later."""
    bench = Http2Bench()
    wire = bench.wire()
    bench.lane.draining = True
    wire.connection.announce_end()
    bench.settle()
    assert wire.goaway().last_stream_id == 2**31 - 1
    wire.send(request(1))
    bench.exchanges[0].respond_json(b"{}")
    bench.settle()
    assert wire.frames()[-1].stream_id == 1
    wire.connection.close_if_idle()
    bench.settle()
    assert wire.goaway().last_stream_id == 1
    assert wire.transport.eof_sent


def test_a_call_that_ends_while_the_server_drains() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(headers(1, grpc_fields()), data(1, message(b"x"), END_STREAM))
    bench.lane.draining = True
    wire.connection.close_if_idle()
    call, sent = bench.calls[0]
    call.finish(sent)
    bench.settle()
    assert wire.frames()[-1].stream_id == 1
    assert wire.transport.eof_sent


def test_a_client_that_closes_its_half_has_left() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(request(1))
    cancelled: list[int] = []
    bench.exchanges[0].cancel = lambda: cancelled.append(1)
    if not wire.connection.eof_received():
        wire.transport.close()
    bench.settle()
    assert cancelled == [1]


def test_a_fault_is_told_before_the_connection_ends() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(data(1, b"x"))
    assert isinstance(wire.frames()[-1], GoAwayFrame)
    assert wire.transport.eof_sent
    assert not wire.transport.closing, (
        "what the client still sends is read, or it would see a reset"
    )
    wire.send(b"x" * 100_000)
    bench.advance(2.5)
    assert wire.transport.closing


def test_abort_ends_at_once() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(request(1))
    bench.lane.abort()
    bench.settle()
    assert wire.transport.aborted
    assert not bench.lane.connections


def test_too_many_connections_are_told_so() -> None:
    bench = Http2Bench(limits={"max_connections": 1})
    bench.wire()
    wire = bench.wire()
    assert wire.transport.closing


# -- counters and the access log ------------------------------------------------------------------


def test_bytes_are_counted() -> None:
    bench = Http2Bench(answer=lambda call, data: call.finish(data))
    wire = bench.wire()
    sent = headers(1, grpc_fields()) + data(1, message(b"x"), END_STREAM)
    wire.send(sent)
    assert bench.counters.received_bytes == len(HELLO) + len(sent)
    assert bench.counters.sent_bytes == len(wire.transport.written)


class Log:
    """Stands where the logger is."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, *, extra: dict[str, Any]) -> None:
        assert event == "request"
        fields = dict(extra["fields"])
        assert fields.pop("ms") >= 0
        assert fields.pop("peer") == "192.0.2.1:5000"
        self.lines.append(fields)


def test_every_request_is_logged_once() -> None:
    log = Log()
    bench = Http2Bench(
        reply=lambda exchange: exchange.respond(404, b"12345"),
        answer=lambda call, data: call.finish(data),
    )
    bench.log = log
    wire = sniffing(bench)
    wire.send(HELLO, request(1, [*GET[:3], (":path", "/a?b=c")]))
    wire.send(headers(3, grpc_fields()), data(3, message(b"abc"), END_STREAM))
    wire.send(headers(5, grpc_fields("/t.T/Nope")), rst(5))
    bench.reply = None
    wire.send(request(7), rst(7), ping())
    wire.send(headers(9, grpc_fields("/t.T/Stream")), rst(9))
    http = {"method": "GET", "target": "/a?b=c", "status": 404, "bytes": 5}
    call = {"method": "POST", "target": "/t.T/Echo", "status": 200, "bytes": 3, "grpc_status": 0}
    assert log.lines == [
        http,
        call,
        call | {"target": "/t.T/Nope", "bytes": 0, "grpc_status": 12},
        http | {"target": "/x", "status": 499, "bytes": 0},
        call | {"target": "/t.T/Stream", "bytes": 0, "grpc_status": 1},
    ]
