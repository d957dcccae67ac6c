"""The HTTP/2 lane under gRPC's own client: calls of every kind, sizes, cancellation, deadlines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import uvloop

from headrace.errors import InvalidRequest, Overloaded
from headrace.frontends.grpc.call import Call, Method
from headrace.frontends.http1 import Connection
from headrace.frontends.http2.connection import Http2Connection
from headrace.frontends.lane import Lane
from headrace.limits import Http2Limits, HttpLimits
from headrace.telemetry.snapshot import HttpCounters

WAIT_S = 30


class Bidi:
    """Answers each message at once, and ends when the client does."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def message(self, data: bytes) -> None:
        if data == b"fail":
            raise InvalidRequest("you said so")
        self.call.send(data)

    def half_closed(self) -> None:
        self.call.end(trailers=[(b"x-count", b"many")])


class Server:
    """A lane on a loop of its own, in a thread."""

    def __init__(self) -> None:
        self.port = 0
        self.cancelled = threading.Event()
        self.seen: list[tuple[tuple[tuple[bytes, bytes], ...], int]] = []
        self.held: list[Call] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=uvloop.run, args=(self._run(),))
        self._thread.start()
        assert self._started.wait(WAIT_S)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        limits = Http2Limits(max_message_bytes=20_000_000)
        self.counters = HttpCounters()
        lane = Lane(
            lambda exchange: exchange.respond_json(b"{}"),
            limits=HttpLimits(),
            http2_limits=limits,
            counters=self.counters,
        )
        lane.grpc = {
            b"/t.T/Echo": Method(unary=self._echo),
            b"/t.T/Hold": Method(unary=self._hold),
            b"/t.T/Fail": Method(unary=self._fail),
            b"/t.T/Count": Method(unary=self._count),
            b"/t.T/Bidi": Method(streaming=Bidi),
        }
        lane.http2 = lambda: Http2Connection(lane)
        server = await self.loop.create_server(lambda: Connection(lane), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        lane.abort()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)

    def _echo(self, call: Call, data: bytes) -> None:
        self.seen.append((tuple(call.metadata), call.timeout_ns))
        self.loop.call_soon(call.finish, data)

    def _hold(self, call: Call, data: bytes) -> None:
        self.held.append(call)
        call.cancel = self.cancelled.set

    def _fail(self, call: Call, data: bytes) -> None:
        raise Overloaded("full: ä", retry_after_ns=1)

    def _count(self, call: Call, data: bytes) -> None:
        async def run() -> None:
            for number in range(int(data)):
                call.send(b"%d" % number * 5000)
                await call.writable()
            call.end()

        self.task = self.loop.create_task(run())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        yield channel


def unary(channel: grpc.Channel, name: str = "Echo") -> Callable[..., Any]:
    return channel.unary_unary(f"/t.T/{name}")


@pytest.mark.parametrize("size", [0, 1, 150, 16_379, 16_380, 65_531, 70_000, 5_000_000])
def test_messages_of_every_size(channel: grpc.Channel, size: int) -> None:
    sent = bytes(range(256)) * (size // 256 + 1)
    assert unary(channel)(sent[:size], timeout=WAIT_S) == sent[:size]


def test_many_at_once(channel: grpc.Channel) -> None:
    call = unary(channel)
    futures = [call.future(b"%d" % n, timeout=WAIT_S) for n in range(2000)]
    assert [f.result() for f in futures] == [b"%d" % n for n in range(2000)]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_compression(channel: grpc.Channel, compression: grpc.Compression, size: int) -> None:
    sent = b"0123456789" * (size // 10)
    assert unary(channel)(sent, compression=compression, timeout=WAIT_S) == sent


def test_metadata_and_the_deadline_arrive(server: Server, channel: grpc.Channel) -> None:
    unary(channel)(b"", metadata=(("x-y", "z"), ("k-bin", b"\0\xff")), timeout=20)
    metadata, timeout_ns = server.seen[-1]
    assert {(b"x-y", b"z"), (b"k-bin", b"\0\xff")} <= set(metadata)
    assert 15e9 < timeout_ns <= 21e9


def test_errors_are_what_they_were(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Fail")(b"", timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "full: ä"
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Nope")(b"", timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_above_the_limit(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel)(b"x" * 20_000_001, timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unary(channel)(b"x", timeout=WAIT_S) == b"x"


def test_a_stream_both_ways(channel: grpc.Channel) -> None:
    sent = [b"", b"a", b"b" * 1_000_000, b"c"] * 3
    call = channel.stream_stream("/t.T/Bidi")(iter(sent), timeout=WAIT_S)
    assert list(call) == sent
    assert dict(call.trailing_metadata())["x-count"] == "many"


def test_a_stream_that_fails_half_way(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/t.T/Bidi")(iter([b"1", b"fail", b"2"]), timeout=WAIT_S)
    assert next(call) == b"1"
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_of_answers_to_a_slow_reader(channel: grpc.Channel) -> None:
    call = channel.unary_stream("/t.T/Count")(b"300", timeout=WAIT_S)
    assert list(call) == [b"%d" % n * 5000 for n in range(300)]


def test_cancelling_and_deadlines_cancel(server: Server, channel: grpc.Channel) -> None:
    hold = unary(channel, "Hold")
    server.cancelled.clear()
    future = hold.future(b"", timeout=WAIT_S)
    echo = unary(channel)
    while not server.held:
        echo(b"", timeout=WAIT_S)
    future.cancel()
    assert server.cancelled.wait(WAIT_S)
    server.cancelled.clear()
    with pytest.raises(grpc.RpcError) as caught:
        hold(b"", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.cancelled.wait(WAIT_S)
    assert all(call.closed and call.cancel is None for call in server.held)


def test_a_channel_that_closes_cancels(server: Server) -> None:
    server.cancelled.clear()
    server.held.clear()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        future = unary(channel, "Hold").future(b"", timeout=WAIT_S)
        echo = unary(channel)
        while not server.held:
            echo(b"", timeout=WAIT_S)
    assert server.cancelled.wait(WAIT_S)
    assert future.cancelled() or future.exception() is not None


async def test_the_asynchronous_client(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/t.T/Echo")
        answers = await asyncio.gather(*[call(b"%d" % n, timeout=WAIT_S) for n in range(200)])
        assert answers == [b"%d" % n for n in range(200)]
