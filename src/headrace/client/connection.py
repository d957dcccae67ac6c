"""One HTTP/1.1 connection with at most one request under way, as lean as Python allows.

An ordinary client library spends hundreds of microseconds on a request, several times what
the servers measured here need, and would measure itself. This one writes bytes that were
made beforehand and lets llhttp (RFC 9112) find the end of the answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from headrace.client.target import Target

FREE = -1
"""``tag`` of a connection without a request."""

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""An answer larger than this breaks the connection; nothing benchmarked here comes near."""


class Listener(Protocol):
    """Whoever sends requests. Called on the event loop; one of the two for each ``send``."""

    def answered(self, connection: Connection) -> None:
        """``status``, ``header_length`` and ``body`` of the connection are set."""
        ...

    def lost(self, connection: Connection, tag: int, reason: str) -> None:
        """The connection is gone, and ``tag`` is the request it took along, or ``FREE``.

        Called at most once in a connection's life, and never after ``close``.
        """
        ...


class Connection(asyncio.Protocol):
    """See the module.

    Attributes:
        tag: whatever ``send`` was given, ``FREE`` between requests.
        status, body: of the answer, valid inside ``answered``.
        header_length: of the V2 binary extension (``Inference-Header-Content-Length``), or
            -1; only filled in by :class:`BinaryConnection`.
        reusable: the server keeps the connection open.
    """

    __slots__ = (
        "_chunks",
        "_listener",
        "_over",
        "_parser",
        "_size",
        "_transport",
        "body",
        "header_length",
        "reusable",
        "status",
        "tag",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._over = False
        self.tag = FREE
        self.status = 0
        self.header_length = -1
        self.body = b""
        self.reusable = True

    def send(self, request: bytes, tag: int) -> None:
        """Writes a whole request. The connection must be free and open."""
        assert self.tag == FREE, "one request at a time"
        assert self._transport is not None, "open before send"
        self.tag = tag
        self._transport.write(request)

    def close(self) -> None:
        """Ends it at once, silently: the listener hears nothing more of this connection."""
        self._over = True
        self.tag = FREE
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop has connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Some of the answer; calls ``answered`` before it returns if it was the last."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"malformed HTTP answer: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by the server, the network, or ourselves."""
        self._transport = None
        self._break(f"connection lost: {exc}" if exc else "connection closed by the server")

    def _break(self, reason: str) -> None:
        if not self._over:
            tag = self.tag
            self.close()
            self._listener.lost(self, tag, reason)

    # httptools

    def on_body(self, chunk: bytes) -> None:
        """llhttp: a piece of the body, already out of its chunked coding."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > MAX_ANSWER_BYTES:
            self._break(f"answer larger than {MAX_ANSWER_BYTES} bytes")

    def on_message_complete(self) -> None:
        """llhttp: the answer is complete."""
        chunks = self._chunks
        self.status = self._parser.get_status_code()
        if self.status < 200:  # 100 Continue and its like announce the answer
            return
        self.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._size = 0
        if self.tag == FREE:  # an answer nobody asked for: the next one would be taken for ours
            self._break("answer without a request")
            return
        self.reusable = self._parser.should_keep_alive()
        self._listener.answered(self)


class BinaryConnection(Connection):
    """Looks at headers too. Apart, because llhttp calls back for each header it is asked for."""

    __slots__ = ()

    def send(self, request: bytes, tag: int) -> None:
        """Writes a whole request; forgets the last answer's header."""
        self.header_length = -1
        super().send(request, tag)

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: one header field."""
        if name.lower() == b"inference-header-content-length" and value.isdigit():
            self.header_length = int(value)


class ConnectFailed(Exception):
    """No connection could be opened; the text says why."""


async def open_connection(
    target: Target, make: Callable[[], Connection], timeout_s: float
) -> Connection:
    """Connects to the address that was resolved when the target was made.

    Raises:
        ConnectFailed: refused, unreachable, no descriptor left, TLS failed, or too slow.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                make,
                target.address,
                target.port,
                family=target.family,
                ssl=target.tls,
                server_hostname=target.host if target.tls else None,
            )
    except TimeoutError as error:
        raise ConnectFailed(f"no connection within {timeout_s:g} s") from error
    except OSError as error:  # ssl.SSLError is one of these and has no errno of the system's
        known = error.errno in _SYSTEM_ERRORS and target.tls is None
        text = os.strerror(error.errno or 0) if known else str(error)
        raise ConnectFailed(f"cannot connect: {text}") from error
    if connection.closed:
        raise ConnectFailed("connection closed by the server as soon as it was open")
    return connection


_SYSTEM_ERRORS = frozenset(errno.errorcode)
