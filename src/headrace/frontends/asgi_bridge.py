"""Everything that is not hot: hands an exchange of the fast lane to an ASGI application.

ASGI 3, HTTP connection scope. The body is already complete, so there is one
``http.request`` message; an answer sent in one piece gets a length, others are chunked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from headrace.errors import HeadraceError
from headrace.frontends.exchange import Exchange, head_of

_LOG = logging.getLogger("headrace.http")

PEER = "headrace.peer"
"""Where the scope has the :class:`Peer`."""

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class LateApplication:
    """An application that is imported and built when it is first needed, by any thread."""

    def __init__(self, build: Callable[[], Application]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._app: Application | None = None

    def get(self) -> Application:
        """The application; the first call takes as long as its imports."""
        with self._lock:
            if self._app is None:
                self._app = self._build()
            return self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await self.get()(scope, receive, send)


class AsgiBridge:
    """Runs one task per exchange; cancelled when the client leaves.

    In one turn of the event loop one of them begins: they take longer than inference requests, and
    a connection may have many of them under way.
    """

    def __init__(self, app: Application, *, scheme: str = "http") -> None:
        self._app = app
        self._scheme = scheme
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[int, Exchange] = {}  # by a number, in the order in which they came
        self._number = 0
        self._began = False  # one, in this turn

    def handle(self, exchange: Exchange) -> None:
        """Answers the exchange through the application, later."""
        if self._began:
            self._number += 1
            self._waiting[self._number] = exchange
            exchange.cancel = partial(self._waiting.pop, self._number, None)
            return
        self._began = True
        self._begin(exchange)
        asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._began = False
        if self._waiting:
            self.handle(self._waiting.pop(next(iter(self._waiting))))

    def _begin(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._run(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.cancel = task.cancel

    async def _run(self, exchange: Exchange) -> None:
        call = _Call(exchange)
        try:
            await self._app(self._scope(exchange), call.receive, call.send)
            call.returned()
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            if not isinstance(error, HeadraceError):
                _LOG.exception("the application failed")
            call.fail(error)

    def _scope(self, exchange: Exchange) -> dict[str, Any]:
        head = exchange.head
        path, _, query = head.target.partition(b"?")
        peer = exchange.connection.peer()
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.0" if head.http_1_0 else "1.1",
            "method": head.method.decode("ascii", "replace"),
            "scheme": self._scheme,
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value.rstrip(b" \t")) for name, value in head.raw_headers],
            "client": peer.remote,
            "server": peer.local,
            PEER: peer,
        }


class _Call:
    """The two callables of one ASGI call."""

    __slots__ = ("_begun", "_code", "_ended", "_exchange", "_fields", "_received")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._received = False
        self._code = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._begun = False
        self._ended = asyncio.Event()

    async def receive(self) -> Message:
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self._exchange.body, "more_body": False}
        # There is nothing more to say until the answer is out. If the client leaves before,
        # this task is cancelled.
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._code = message["status"]
            self._fields = list(message.get("headers", ()))
            return
        body = bytes(message.get("body", b""))
        more = message.get("more_body", False)
        self._write(body, last=not more)
        if more:
            await self._exchange.connection.writable()

    def returned(self) -> None:
        """The application is done: so must the answer be."""
        if not self._ended.is_set():
            _LOG.error("the application returned without a whole answer")
            self.fail(RuntimeError("no answer"))

    def fail(self, error: BaseException) -> None:
        """An error before the answer began is an answer; after it the answer is cut off."""
        if not self._begun:
            self._exchange.cancel = None
            self._exchange.respond_error(error)
        elif not self._ended.is_set():
            self._exchange.connection.abort()

    def _write(self, body: bytes, *, last: bool) -> None:
        exchange = self._exchange
        to_head = exchange.head.method == b"HEAD"
        if not self._begun:
            self._begun = True
            self._begin(len(body) if last else None, to_head=to_head)
        if last:
            self._ended.set()
            exchange.cancel = None
        exchange.connection.send(exchange, b"" if to_head else body, last=last)

    def _begin(self, length: int | None, *, to_head: bool) -> None:
        """``length`` None: not known, because the body comes in pieces."""
        exchange = self._exchange
        fields = []
        for name, value in self._fields:
            key = name.lower()
            if key == b"content-length" and to_head:
                length = int(value)  # of what GET would be answered
            if key not in (b"content-length", b"transfer-encoding", b"connection"):
                fields.append((name, value))
        chunked = length is None and not exchange.head.http_1_0
        exchange.chunked = chunked and not to_head
        if length is None and not chunked:
            exchange.keep_alive = False  # the end of the connection is the end of the body
        exchange.connection.begin(exchange, self._code, head_of(fields, length, chunked=chunked))
