"""The account of bytes over HTTP/2: refusals, and that it is 0 whichever way streams end."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from tests.unit.frontends.http2.bench import (
    END_STREAM,
    POST,
    Http2Bench,
    Wire,
    data,
    grpc_fields,
    headers,
    message,
    rst,
    window,
)

BIG = 100_000
STEP = 16_000
UNAVAILABLE = "14"


def bench(total: int) -> Http2Bench:
    return Http2Bench(limits={"max_memory_bytes": total, "max_unsent_bytes": 2 * BIG})


def pieces(stream: int, payload: bytes) -> list[bytes]:
    return [data(stream, payload[at : at + STEP]) for at in range(0, len(payload), STEP)]


@pytest.mark.parametrize(("fields", "field"), [(grpc_fields(), "grpc-status"), (POST, ":status")])
def test_messages_held_one_byte_short_are_refused_when_half_is_used(
    fields: Any, field: str
) -> None:
    b = bench(7 * BIG)
    wire = b.wire()
    for stream in (1, 3, 5, 7):
        wire.send(headers(stream, fields), *pieces(stream, message(bytes(BIG))[:-1]))
        assert b.lane.account.used_bytes <= 7 * BIG // 2
    told = [wire.fields(f) for f in wire.frames() if type(f).__name__ == "HeadersFrame"]
    assert [each[field] for each in told] == [UNAVAILABLE if field != ":status" else "503"] * 2
    assert all(each["retry-after"] == "1" for each in told)
    assert b.lane.account.refused["peer"] == 2
    wire.transport.abort()
    b.settle()
    assert b.lane.account.used_bytes == 0


def test_an_answer_is_counted_until_the_client_takes_it() -> None:
    b = bench(1000 * BIG)
    b.answer = lambda call, _: call.finish(bytes(BIG))
    wire = b.wire()
    wire.send(headers(1, grpc_fields()), data(1, message(b"x"), END_STREAM))
    assert b.lane.account.used_bytes == BIG + 5 - 65_535
    wire.send(window(0, BIG), window(1, BIG))
    assert b.lane.account.used_bytes == 0


STEPS = st.sampled_from(
    (
        *("grpc", "grpc", "http", "stream", "part", "part", "rest", "rest", "gzip"),
        *("answer", "answer", "large", "error", "hold", "reset", "window", "time", "stall", "read"),
    )
)


class World:
    """One connection; one method for everything that can happen to its streams."""

    def __init__(self, total: int) -> None:
        self.bench = bench(total)
        self.wire: Wire = self.bench.wire()
        self.next = 1
        self.partial: dict[int, bytes] = {}

    def step(self, what: str, number: int) -> None:
        transport = self.wire.transport
        if transport.closing or transport.eof_sent:
            return
        open_ = list(self.partial) or [self.next]
        stream = open_[number % len(open_)]
        if what in ("grpc", "http", "stream", "gzip"):
            self.open(what)
        elif what in ("part", "rest") and stream in self.partial:
            left = self.partial[stream]
            cut = len(left) // 2 if what == "part" else len(left)
            self.wire.send(*pieces(stream, left[:cut]))
            self.partial[stream] = left[cut:]
            if what == "rest":
                del self.partial[stream]
                self.wire.send(data(stream, b"", END_STREAM))
        elif what in ("answer", "large", "error", "hold"):
            self.reply(what, number)
        elif what == "reset" and stream in self.partial:
            del self.partial[stream]
            self.wire.send(rst(stream))
        elif what == "window":
            self.wire.send(window(0, 5 * BIG))
            for each in list(self.wire.machine.streams):
                self.wire.send(window(each, BIG))
        elif what == "time":
            self.bench.advance(70.0)
        elif what == "stall":
            transport.stall()
        elif what == "read":
            transport.client_reads(100 * BIG)
        self.bench.settle()
        self.check()

    def open(self, what: str) -> None:
        stream, self.next = self.next, self.next + 2
        fields = grpc_fields("/t.T/Stream" if what == "stream" else "/t.T/Echo")
        payload = message(bytes(BIG))
        if what == "gzip":
            fields = grpc_fields("/t.T/Echo", ("grpc-encoding", "gzip"))
            payload = message(gzip.compress(bytes(BIG)) + bytes(0), compressed=True)
        self.partial[stream] = payload
        self.wire.send(headers(stream, POST if what == "http" else fields))

    def reply(self, what: str, number: int) -> None:
        calls = [call for call, _ in self.bench.calls if not call.closed]
        exchanges = [e for e in self.bench.exchanges if not e.connection.closed]
        waiting: list[Any] = calls + exchanges
        if not waiting:
            return
        one: Any = waiting[number % len(waiting)]
        if what == "hold":
            one.hold(BIG)
        elif one in exchanges:
            one.respond_json(bytes(BIG) if what == "large" else b"{}")
        elif what == "error":
            one.fail(InvalidRequest("no"))
        else:
            one.finish(bytes(BIG) if what == "large" else b"{}")

    def check(self) -> None:
        account = self.bench.lane.account
        share = self.wire.connection.share
        assert account.used_bytes == share.used_bytes >= 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=40), st.sampled_from((5, 20, 1000)))
def test_nothing_is_held_after_the_last_stream(steps: list[tuple[str, int]], bodies: int) -> None:
    world = World(bodies * BIG)
    for what, number in steps:
        world.step(what, number)
    for what in ("rest", "answer", "read", "window") * 60:
        world.step(what, 0)
    if not world.wire.machine.streams:
        assert world.bench.lane.account.used_bytes == 0
    world.wire.transport.abort()
    world.bench.settle()
    assert world.bench.lane.account.used_bytes == 0
