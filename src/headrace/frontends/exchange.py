"""One HTTP request and the one answer to it, as the fast lane hands it to a handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from headrace.engine.inflight import Ticket
from headrace.errors import detached
from headrace.frontends import status
from headrace.frontends.byte_account import UNCOUNTED_BYTES, Share
from headrace.frontends.heads import Head
from headrace.frontends.peer import Peer

JSON_TYPE = b"application/json"

Headers = Iterable[tuple[bytes, bytes]]


class Answering(Protocol):
    """The side of a connection that an exchange needs."""

    closed: bool

    @property
    def share(self) -> Share:
        """Of the process's memory."""
        ...

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
    held_bytes: int = 0
    """Taken of the connection's share; given back when the answer has been handed to the
    transport, or when there will be none."""
    tensor_bytes: int = 0  # of these, for decoded tensors
    answer_bytes: int = 0  # and for the answer: as predicted, then as encoded

    def hold(self, size: int) -> bool:
        """Takes ``size`` more bytes of the connection's share; False if there is no room."""
        connection = self.connection
        if connection.closed:
            return True
        if not connection.share.take(size):
            return False
        self.held_bytes += size
        return True

    def hold_tensors(self, size: int) -> None:
        """Takes what the decoded tensors need beside the body.

        Raises:
            Overloaded: there is no room.
        """
        more = size - self.tensor_bytes  # decoded a second time if the model had to be loaded
        if more > 0:
            if not self.hold(more):
                raise self.connection.share.full()
            self.tensor_bytes = size

    def hold_answer(self, size: int) -> bool:
        """Takes what an answer of ``size`` bytes needs beyond what was taken for it already."""
        more = size - self.answer_bytes
        if size <= UNCOUNTED_BYTES or more <= 0:
            return True
        if not self.hold(more):
            return False
        self.answer_bytes = size
        return True

    def submitted(self, ticket: Ticket) -> None:
        """The request is in the engine: takes the bytes of the answer as far as they are known.

        Raises:
            Overloaded: there is no room; the request is cancelled.
        """
        self.cancel = ticket.cancel
        size = ticket.rows * ticket.served.answer_row_bytes
        if size > UNCOUNTED_BYTES and not ticket.done and not self.hold_answer(size):
            self.cancel = None
            ticket.cancel()
            raise self.connection.share.full()

    def give(self, size: int) -> None:
        """Gives back a part of what it holds."""
        size = min(size, self.held_bytes)
        self.held_bytes -= size
        self.connection.share.give(size)

    def release(self) -> None:
        """Gives back what it holds. The connection calls it, once the exchange is over."""
        self.give(self.held_bytes)
        self.tensor_bytes = self.answer_bytes = 0

    def respond_json(self, body: bytes) -> None:
        """200 with JSON: the shortest way out."""
        if len(body) > UNCOUNTED_BYTES and not self.hold_answer(len(body)):
            self.respond_error(self.connection.share.full())
        else:
            self.connection.finish_ok(self, body)

    def respond(
        self, code: int, body: bytes, *, content_type: bytes = JSON_TYPE, headers: Headers = ()
    ) -> None:
        """A whole answer, with its length; 503 if a successful one finds no room."""
        if code < 400 and not self.hold_answer(len(body)):
            self.respond_error(self.connection.share.full())
            return
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
