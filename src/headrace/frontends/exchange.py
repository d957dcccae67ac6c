"""One HTTP request and the one answer to it, as the fast lane hands it to a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from headrace.errors import detached
from headrace.frontends import status
from headrace.frontends.heads import Head
from headrace.frontends.peer import Peer

JSON_TYPE = b"application/json"

Headers = Iterable[tuple[bytes, bytes]]


class Answering(Protocol):
    """The side of a connection that an exchange needs."""

    closed: bool

    def finish_ok(self, exchange: Exchange, body: bytes) -> None:
        """Answers 200 with JSON."""
        ...

    def begin(self, exchange: Exchange, code: int, head: bytes) -> None:
        """Sends the head of an answer."""
        ...

    def send(self, exchange: Exchange, data: bytes, *, last: bool) -> None:
        """Sends bytes of the body; ``last`` ends the exchange."""
        ...

    def abort(self) -> None:
        """Cuts the connection off."""
        ...

    async def writable(self) -> None:
        """Waits until the client has read enough of what was sent."""
        ...

    def peer(self) -> Peer:
        """See ``Connected``."""
        ...


class Exchange(msgspec.Struct, eq=False):
    """A complete request. A handler answers it once, now or later, on the event loop.

    If the client leaves before the answer, ``cancel`` is called: set it to whatever must
    then stop.
    """

    connection: Answering
    head: Head
    body: bytes
    arrived_ns: int
    keep_alive: bool
    chunked: bool = False  # the answer's length is not known when it begins
    cancel: Callable[[], object] | None = None
    unsent: list[bytes] | None = None  # waits for the answers to earlier requests
    finished: bool = False

    def respond_json(self, body: bytes) -> None:
        """200 with JSON: the shortest way out."""
        self.connection.finish_ok(self, body)

    def respond(
        self, code: int, body: bytes, *, content_type: bytes = JSON_TYPE, headers: Headers = ()
    ) -> None:
        """A whole answer, with its length."""
        fields = [(b"content-type", content_type), *headers]
        self.connection.begin(self, code, head_of(fields, len(body)))
        self.connection.send(self, b"" if self.head.method == b"HEAD" else body, last=True)

    def respond_error(
        self,
        error: BaseException,
        body_of: Callable[[BaseException], bytes] = status.v2_error_body,
    ) -> None:
        """The error in a protocol's shape, with Retry-After where it may help."""
        error = detached(error)
        retry_after = status.retry_after_header(error)
        headers = [] if retry_after is None else [(b"retry-after", retry_after.encode())]
        self.respond(status.http_status(error), body_of(error), headers=headers)


Handler = Callable[[Exchange], None]
"""Answers an exchange, now or later. May raise HeadraceError for an answer in V2's shape."""


def head_of(fields: Headers, length: int | None, *, chunked: bool = False) -> bytes:
    """Header fields as they stand on the wire.

    Without a ``length`` the body is ``chunked``, or (HTTP/1.0) ends with the connection.
    """
    lines = [b"%b: %b\r\n" % field for field in fields]
    if length is not None:
        lines.append(b"content-length: %d\r\n" % length)
    elif chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    return b"".join(lines)
