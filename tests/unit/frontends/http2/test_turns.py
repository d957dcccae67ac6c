"""What one connection may take of one turn of the event loop."""

from __future__ import annotations

from itertools import pairwise

import pytest

from headrace.frontends import turns
from headrace.frontends.grpc.call import Call
from headrace.frontends.http2.streams import TURN_UNITS
from tests.unit.frontends.http2.bench import (
    END_STREAM,
    Http2Bench,
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
from tests.unit.frontends.http2.test_flow import Silent

MANY = 4 * TURN_UNITS


def stream(incoming: type = Silent) -> tuple[Http2Bench, Wire]:
    bench = Http2Bench(http2={"max_control_frames": 10_000})
    bench.streaming = incoming
    wire = bench.wire()
    wire.send(headers(1, grpc_fields("/t.T/Stream")))
    return bench, wire


def test_a_burst_of_empty_messages_takes_turns_with_others() -> None:
    bench, wire = stream()
    (incoming,) = bench.streams
    taken: list[int] = []

    def others() -> None:
        taken.append(len(incoming.got))
        if len(incoming.got) < MANY:
            bench.loop.call_soon(others)

    bench.loop.call_soon(others)
    wire.transport.receive(data(1, message(b"") * MANY, END_STREAM))
    assert len(incoming.got) <= TURN_UNITS
    assert not incoming.ended
    bench.settle()
    assert incoming.got == [b""] * MANY
    assert incoming.ended
    assert len(taken) >= 4
    assert max(after - before for before, after in pairwise(taken)) <= TURN_UNITS
    assert wire.machine.buffered_bytes == 0


@pytest.mark.parametrize(
    "burst",
    [
        b"".join(data(1, b"\0") for _ in range(MANY)),
        ping() * MANY,
        window(1, 1) * MANY,
        b"".join(request(n) + rst(n) for n in range(3, 3 + MANY, 2)),
    ],
    ids=["one byte each", "ping", "window", "requests that are cancelled"],
)
def test_a_burst_of_frames_takes_turns_with_others(burst: bytes) -> None:
    bench, wire = stream()
    wire.transport.receive(burst)
    assert wire.machine.behind
    assert not wire.transport.reading, "nothing more is read meanwhile"
    turns = 0
    while bench.loop._ready:
        bench.loop._ready.popleft()._run()
        turns += 1
    assert turns >= 3
    assert not wire.machine.behind
    assert wire.transport.reading
    assert not wire.machine.failed


class Full(Silent):
    """Has room for three messages."""

    def message(self, data: bytes) -> None:
        super().message(data)
        if len(self.got) % 3 == 0:
            self.call.pause_reading()


@pytest.mark.parametrize("text", [b"", b"x"], ids=["empty", "small"])
def test_a_call_that_is_full_is_given_no_more_messages(text: bytes) -> None:
    bench, wire = stream(Full)
    (incoming,) = bench.streams
    wire.send(data(1, message(text) * 8), data(1, message(text) * 2, END_STREAM))
    for count in (3, 6, 9):
        assert len(incoming.got) == count
        assert not incoming.ended
        incoming.call.resume_reading()
        bench.settle()
    assert incoming.got == [text] * 10
    assert incoming.ended
    assert wire.machine.buffered_bytes == 0


def test_streams_that_wait_take_turns() -> None:
    bench = Http2Bench()
    bench.streaming = Silent
    wire = bench.wire()
    for number in (1, 3, 5):
        wire.send(headers(number, grpc_fields("/t.T/Stream")))
    wire.transport.receive(b"".join(data(n, message(b"") * MANY) for n in (1, 3, 5)))
    seen = []
    while bench.loop._ready:
        bench.loop._ready.popleft()._run()
        seen.append([len(s.got) for s in bench.streams])
    assert any(all(0 < n < MANY for n in counts) for counts in seen), "side by side"
    assert seen[-1] == [MANY] * 3


def test_a_client_that_leaves_while_much_waits() -> None:
    bench, wire = stream()
    wire.transport.receive(data(1, message(b"") * MANY) + ping() * MANY)
    wire.transport.abort()
    bench.settle()
    assert len(bench.streams[0].got) < MANY
    assert wire.machine.buffered_bytes == 0


def test_answers_while_messages_wait_end_the_call_once() -> None:
    class Answers(Full):
        def __init__(self, call: Call) -> None:
            super().__init__(call)
            self.ends = 0

        def message(self, data: bytes) -> None:
            super().message(data)
            self.call.resume_reading()

        def half_closed(self) -> None:
            self.ends += 1

    bench, wire = stream(Answers)
    wire.send(data(1, message(b"") * MANY, END_STREAM))
    (incoming,) = bench.streams
    assert (len(incoming.got), incoming.ends) == (MANY, 1)


def test_a_turn_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONE_TURN_NS", 0)
    monkeypatch.setattr(turns, "TURN_NS", 0)
    bench, wire = stream()
    (incoming,) = bench.streams
    wire.transport.receive(data(1, message(b"") * MANY, END_STREAM))
    assert len(incoming.got) < 8
    bench.settle()
    assert incoming.got == [b""] * MANY
    assert incoming.ended
