"""grpcio's asyncio server as a transport of the same methods: ``--grpc-server grpcio``.

For those who rely on an option that only it has; it costs several times the CPU of our own lane
for a small request (``python -m benchmarks grpc_lane``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from headrace.clock import MonotonicClock
from headrace.config import ServerConfig
from headrace.errors import AddressInUse, HeadraceError, MissingExtra, Overloaded, detached
from headrace.frontends import status
from headrace.frontends.byte_account import ByteAccount, Share
from headrace.frontends.grpc.call import Incoming, Metadata, Method, Methods
from headrace.frontends.peer import Peer, peer_of_grpcio

_LOG = logging.getLogger("headrace.grpc")

_now_ns = MonotonicClock.now_ns

_END = None

_WRITABLE_BYTES = 65_536
"""A call that has less waiting may be given more."""


class GrpcioServer:
    """Listens on ``server.grpc_port``.

    Raises:
        MissingExtra: grpcio is not installed.
    """

    def __init__(self, methods: Methods, server: ServerConfig, account: ByteAccount) -> None:
        try:
            import grpc  # noqa: PLC0415 - an extra
            import grpc.aio  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtra("--grpc-server grpcio", extra="grpc", package="grpcio") from error
        self._grpc: Any = grpc
        limit = server.http2.max_message_bytes
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", server.http2.max_concurrent_streams),
                ("grpc.so_reuseport", int(server.workers > 1)),
            ]
        )
        handler = _Handler(grpc, methods, _Listener(server.grpc_port, account))
        self._server.add_generic_rpc_handlers((handler,))
        self._config = server

    async def start(self) -> None:
        """Listens.

        Raises:
            AddressInUse: another process does.
        """
        server = self._config
        host = f"[{server.host}]" if ":" in server.host else server.host
        address = f"{host}:{server.grpc_port}"
        try:
            if server.tls is None:
                self._server.add_insecure_port(address)
            else:
                files = (Path(server.tls.key), Path(server.tls.certificate))
                key, chain = await asyncio.to_thread(lambda: [f.read_bytes() for f in files])
                self._server.add_secure_port(
                    address, self._grpc.ssl_server_credentials([(key, chain)])
                )
        except RuntimeError as error:
            raise AddressInUse(
                f"port {server.grpc_port} of {server.host} cannot be listened on: {error}",
                hint="choose another with --grpc-port",
            ) from error
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Takes no further call, and ends those under way after ``grace_s``."""
        await self._server.stop(grace_s)


class _Listener(NamedTuple):
    """Where calls arrive, and the account that they take bytes from."""

    port: int | None
    account: ByteAccount


class _Handler:
    """grpcio's generic handler: a method for every path of the table. Bytes in, bytes out."""

    def __init__(self, grpc: Any, methods: Methods, listener: _Listener) -> None:
        self._grpc = grpc
        self._methods = methods
        self._listener = listener

    def service(self, details: Any) -> Any:
        """The handler of one call, None for a path that is not known."""
        method = self._methods.get(details.method.encode())
        if method is None:
            return None
        if method.streaming is not None:
            return self._grpc.stream_stream_rpc_method_handler(_streaming(method, self._listener))
        if details.method.endswith("/Watch"):
            handler = _unary_stream(method, self._listener)
            return self._grpc.unary_stream_rpc_method_handler(handler)
        return self._grpc.unary_unary_rpc_method_handler(_unary(method, self._listener))


class _Call:
    """``frontends.grpc.call.Call`` on a grpcio context."""

    authority = ""

    def __init__(self, context: Any, listener: _Listener) -> None:
        self._ends = (context.peer(), listener.port)
        self._peer: Peer | None = None
        self._share = Share(listener.account, self.peer)
        self.metadata: Metadata = [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in context.invocation_metadata()
        ]
        self.arrived_ns = _now_ns()
        left_s = context.time_remaining()
        self.timeout_ns = 0 if left_s is None else max(1, int(left_s * 1e9))
        self.closed = False
        self.pending_bytes = 0
        self.cancel: Callable[[], object] | None = None
        self.answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.code = 0
        self.text = ""
        self.trailers: Metadata = ()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._read = asyncio.Event()
        context.add_done_callback(self._abandoned)

    def peer(self) -> Peer:
        if self._peer is None:
            self._peer = peer_of_grpcio(*self._ends)
        return self._peer

    def send(self, message: bytes) -> None:
        if not self.closed:
            self.pending_bytes += len(message)
            self._share.spend(len(message))
            self.answers.put_nowait(message)

    def finish(self, message: bytes) -> None:
        self.send(message)
        self.end()

    def end(self, code: int = 0, text: str = "", trailers: Metadata = ()) -> None:
        if not self.closed:
            self.closed = True
            self.cancel = None
            self._read.set()
            self.code, self.text, self.trailers = code, text, trailers
            self.answers.put_nowait(_END)

    def fail(self, error: BaseException) -> None:
        self.end(*status.grpc_answer(detached(error)))

    def hold(self, size: int) -> bool:
        return self._share.take(size)

    def give(self, size: int) -> None:
        self._share.give(size)

    def full(self) -> Overloaded:
        return self._share.full()

    def pause_reading(self) -> None:
        self.may_read.clear()

    def resume_reading(self) -> None:
        self.may_read.set()

    async def writable(self) -> None:
        """grpcio takes one answer after the other, when the one before is on its way."""
        while not self.closed and self.pending_bytes > _WRITABLE_BYTES:
            self._read.clear()
            await self._read.wait()

    async def next(self) -> bytes | None:
        """The next answer, None after the last."""
        answer = await self.answers.get()
        if answer is not None:
            self.pending_bytes -= len(answer)
            self._share.give(len(answer))
        if self.pending_bytes <= _WRITABLE_BYTES or self.closed:
            self._read.set()
        return answer

    def _abandoned(self, _context: object) -> None:
        """The call is over: unless we ended it, its client has left."""
        self._share.close()
        if not self.closed:
            self.closed = True
            self._read.set()
            cancel, self.cancel = self.cancel, None
            if cancel is not None:
                cancel()

    async def tell(self, context: Any) -> None:
        """Status and trailers, after the last answer."""
        import grpc  # noqa: PLC0415 - an extra

        if self.trailers:
            context.set_trailing_metadata(
                tuple(
                    (name.decode(), value if name.endswith(b"-bin") else value.decode())
                    for name, value in self.trailers
                )
            )
        if self.code:
            codes = {code.value[0]: code for code in grpc.StatusCode}
            await context.abort(codes[self.code], self.text, context.trailing_metadata())


def _begin(call: _Call, method: Method, message: bytes) -> None:
    assert method.unary is not None
    try:
        method.unary(call, message)
    except Exception as error:  # noqa: BLE001 - one call must not end the others
        _raised(call, error)


def _raised(call: _Call, error: Exception) -> None:
    if not isinstance(error, HeadraceError):
        _LOG.error("a gRPC method failed", exc_info=error)
    call.fail(error)


def _unary(method: Method, listener: _Listener) -> Callable[[bytes, Any], Any]:
    async def answer(message: bytes, context: Any) -> bytes:
        call = _Call(context, listener)
        _begin(call, method, message)
        del message  # grpcio raises in ``tell``, and keeps what it raised with this frame
        found = await call.next()
        await call.tell(context)
        return found or b""

    return answer


def _unary_stream(
    method: Method, listener: _Listener
) -> Callable[[bytes, Any], AsyncIterator[bytes]]:
    async def answer(message: bytes, context: Any) -> AsyncIterator[bytes]:
        call = _Call(context, listener)
        _begin(call, method, message)
        del message
        while (found := await call.next()) is not _END:
            yield found
        await call.tell(context)

    return answer


def _streaming(method: Method, listener: _Listener) -> Callable[[Any, Any], AsyncIterator[bytes]]:
    async def answer(messages: Any, context: Any) -> AsyncIterator[bytes]:
        call = _Call(context, listener)
        assert method.streaming is not None
        incoming = method.streaming(call)
        reading = asyncio.ensure_future(_read(messages, incoming, call))
        context.add_done_callback(lambda _: reading.cancel())
        while (found := await call.next()) is not _END:
            yield found
        await call.tell(context)

    return answer


async def _read(messages: Any, incoming: Incoming, call: _Call) -> None:
    """Until the client half-closes, or leaves: then grpcio ends this with an error of its own."""
    try:
        async for message in messages:
            if not _given(incoming.message, call, message):
                return
            await call.may_read.wait()
    except Exception as error:  # noqa: BLE001 - grpcio has no common ancestor for them
        _LOG.debug("a stream cannot be read any more", exc_info=error)
        return
    _given(incoming.half_closed, call)


def _given(take: Callable[..., None], call: _Call, *message: bytes) -> bool:
    try:
        take(*message)
    except Exception as error:  # noqa: BLE001 - one call must not end the others
        _raised(call, error)
        return False
    return True
