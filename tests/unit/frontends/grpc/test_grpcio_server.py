"""grpcio's server as a transport: what it shows a service, and what its clients see of that."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from headrace.config import ServerConfig
from headrace.errors import AddressInUse, InvalidRequest, MissingExtra, Overloaded
from headrace.frontends.byte_account import ByteAccount
from headrace.frontends.grpc.call import Call, Method, Methods
from headrace.frontends.grpc.grpcio_server import GrpcioServer
from headrace.limits import Http2Limits

ACCOUNT = ByteAccount(1 << 30)

WAIT_S = 30

LARGE = 1_000_000


class Service:
    """Methods, and the calls they were given."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.methods: Methods = {
            b"/t.T/Echo": Method(unary=self._echo),
            b"/t.T/Later": Method(unary=self._later),
            b"/t.T/Hold": Method(unary=self._hold),
            b"/t.T/Refuse": Method(unary=self._refuse),
            b"/t.T/Break": Method(unary=self._break),
            b"/t.T/Watch": Method(unary=self._watch),
            b"/t.T/Bidi": Method(streaming=self._bidi),
        }

    def _echo(self, call: Call, message: bytes) -> None:
        self.calls.append(call)
        call.finish(message)

    def _later(self, call: Call, message: bytes) -> None:
        asyncio.get_running_loop().call_soon(call.finish, message)

    def _hold(self, call: Call, message: bytes) -> None:
        self.calls.append(call)
        call.cancel = self.cancelled.set

    def _refuse(self, call: Call, message: bytes) -> None:
        raise Overloaded("full: ä", retry_after_ns=1)

    def _break(self, call: Call, message: bytes) -> None:
        raise KeyError("inside")

    def _watch(self, call: Call, message: bytes) -> None:
        for number in range(3):
            call.send(b"%d" % number)
        call.end(trailers=[(b"x-count", b"three")])

    def _bidi(self, call: Call) -> Bidi:
        self.calls.append(call)
        return Bidi(call)


class Bidi:
    """Gives back what it gets; a few words are commands."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def message(self, message: bytes) -> None:
        if message == b"refuse":
            raise InvalidRequest("you said so")
        if message == b"break":
            raise KeyError("inside")
        if message == b"pause":
            self.call.pause_reading()
        self.call.send(message)

    def half_closed(self) -> None:
        self.call.end()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    limits = Http2Limits(max_message_bytes=2 * LARGE)
    server = GrpcioServer(service.methods, ServerConfig(grpc_port=port, http2=limits), ACCOUNT)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("method", ["Echo", "Later"])
@pytest.mark.parametrize("size", [0, 1, LARGE])
async def test_an_answer_now_or_later(channel: grpc.aio.Channel, method: str, size: int) -> None:
    assert await channel.unary_unary(f"/t.T/{method}")(b"x" * size, timeout=WAIT_S) == b"x" * size


async def test_metadata_and_the_deadline(channel: grpc.aio.Channel, service: Service) -> None:
    metadata = (("x-y", "z"), ("k-bin", b"\0\xff"))
    await channel.unary_unary("/t.T/Echo")(b"", metadata=metadata, timeout=20)
    await channel.unary_unary("/t.T/Echo")(b"")
    timed, untimed = service.calls
    assert {(b"x-y", b"z"), (b"k-bin", b"\0\xff")} <= set(timed.metadata)
    assert 10e9 < timed.timeout_ns <= 21e9
    assert untimed.timeout_ns == 0


async def test_errors(channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    error = await refused(channel.unary_unary("/t.T/Refuse")(b"", timeout=WAIT_S))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "full: ä")
    trailers = dict(error.trailing_metadata() or ())
    assert trailers["retry-after"] == "1"
    assert b'"error":"full: ' in trailers["headrace-error-bin"]
    error = await refused(channel.unary_unary("/t.T/Break")(b"", timeout=WAIT_S))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "inside" not in (error.details() or "")
    assert "inside" in caplog.text
    error = await refused(channel.unary_unary("/t.T/Nothing")(b"", timeout=WAIT_S))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    error = await refused(channel.unary_unary("/t.T/Echo")(b"x" * 3 * LARGE, timeout=WAIT_S))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_cancels(channel: grpc.aio.Channel, service: Service) -> None:
    call = channel.unary_unary("/t.T/Hold")(b"", timeout=WAIT_S)
    waiting = asyncio.ensure_future(call)
    while not service.calls:
        await channel.unary_unary("/t.T/Later")(b"", timeout=WAIT_S)
    call.cancel()
    await asyncio.wait_for(service.cancelled.wait(), WAIT_S)
    assert service.calls[0].closed
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_deadline_that_passes(channel: grpc.aio.Channel, service: Service) -> None:
    error = await refused(channel.unary_unary("/t.T/Hold")(b"", timeout=0.05))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(service.cancelled.wait(), WAIT_S)


async def test_a_stream_of_answers(channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream("/t.T/Watch")(b"", timeout=WAIT_S)
    assert [message async for message in call] == [b"0", b"1", b"2"]
    assert dict(await call.trailing_metadata())["x-count"] == "three"


async def test_a_stream_both_ways(channel: grpc.aio.Channel) -> None:
    sent = [b"", b"a", b"b" * LARGE, b"c"] * 3
    call = channel.stream_stream("/t.T/Bidi")(iter(sent), timeout=WAIT_S)
    assert [message async for message in call] == sent


@pytest.mark.parametrize(
    ("word", "code"),
    [(b"refuse", grpc.StatusCode.INVALID_ARGUMENT), (b"break", grpc.StatusCode.INTERNAL)],
)
async def test_a_stream_that_fails(
    channel: grpc.aio.Channel, word: bytes, code: grpc.StatusCode
) -> None:
    call = channel.stream_stream("/t.T/Bidi")(iter([b"1", word, b"2"]), timeout=WAIT_S)
    assert await call.read() == b"1"
    error = await refused(call.read())
    assert error.code() is code


async def test_a_stream_that_is_not_read(channel: grpc.aio.Channel, service: Service) -> None:
    call = channel.stream_stream("/t.T/Bidi")(timeout=WAIT_S)
    for word in (b"pause", b"more"):
        await call.write(word)
    assert await call.read() == b"pause"
    await channel.unary_unary("/t.T/Later")(b"", timeout=WAIT_S)  # the rest is there by now
    service.calls[0].resume_reading()
    assert await call.read() == b"more"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_client_that_does_not_read(channel: grpc.aio.Channel, service: Service) -> None:
    call = channel.stream_stream("/t.T/Bidi")(timeout=WAIT_S)
    await call.write(b"x")
    assert await call.read() == b"x"
    (ours,) = service.calls
    for _ in range(100):
        ours.send(b"y" * LARGE)
    assert ours.pending_bytes == 100 * LARGE
    waiting = asyncio.ensure_future(ours.writable())
    for number in range(100):
        assert number > 50 or not waiting.done()
        assert len(await call.read()) == LARGE
    await asyncio.wait_for(waiting, WAIT_S)
    assert ours.pending_bytes == 0
    for _ in range(100):
        ours.send(b"y" * LARGE)
    waiting = asyncio.ensure_future(ours.writable())
    call.cancel()
    await asyncio.wait_for(waiting, WAIT_S)
    assert ours.closed


async def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = GrpcioServer({}, ServerConfig(grpc_port=port), ACCOUNT)
        with pytest.raises(AddressInUse, match=str(port)):
            await server.start()


async def test_without_grpcio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtra, match="grpcio"):
        GrpcioServer({}, ServerConfig(grpc_port=1), ACCOUNT)
