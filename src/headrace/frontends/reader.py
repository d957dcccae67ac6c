"""Bytes to requests: llhttp finds the pieces, here they are put together. No I/O, no clock.

What one read brings is bounded by the transport (256 KiB with uvloop), so limits are looked
at when a head is complete and after every read, not at every piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import httptools

from headrace.frontends import refusals
from headrace.frontends.byte_account import STEP_BYTES, UNCOUNTED_BYTES, Share
from headrace.frontends.exchange import head_of
from headrace.frontends.heads import Head, may_be_remembered, read_head
from headrace.frontends.refusals import Refusal
from headrace.limits import HttpLimits

IDLE, IN_HEAD, IN_BODY = range(3)
"""Where a reader is: between two requests, or in one."""

_PIECES_MAX = 1024
"""Pieces of a body kept one by one; a megabyte sent as single bytes must not become a million
objects."""


_SLICE_BYTES = 2048
"""The parser cannot be stopped between two requests, so what may hold several is given to it in
slices, of a hundred requests at most."""


class _Refused(Exception):
    """Leaves the parser from inside one of its callbacks."""


class RequestReader:
    """One connection's requests, one after another.

    Args:
        limits: for heads and bodies.
        accept: called with every complete request, from inside :meth:`feed`.
        remember: called with the bytes of a head that need not be parsed again.
        share: of the process's memory; what a body takes of it is in ``held_bytes``, and whoever
            accepts the body has to give it back.

    ``state`` is where it is. ``stage`` grows whenever a request begins or its body does:
    each has a timeout of its own. ``expects`` is the value of the Expect header of a request
    whose body has not begun.
    """

    def __init__(
        self,
        limits: HttpLimits,
        accept: Callable[[Head, bytes], object],
        remember: Callable[[bytes, Head], None],
        share: Share,
    ) -> None:
        self.state = IDLE
        self.held_bytes = 0
        self._share = share
        self.stage = 0
        self.raw_head = b""
        """The bytes of the next head, if it may be remembered: set by the caller."""
        self._limits = limits
        self._accept = accept
        self._remember = remember
        self._parser: Any = httptools.HttpRequestParser(self)
        self._refusal: Refusal | None = None
        self._read_bytes = 0  # of this read
        self._idle_bytes = 0  # read since the head began, or since the last of the body
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._pieces: list[bytes] = []  # the end of the body, not joined yet
        self._body_bytes = 0

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a word before it sends the body."""
        head = self._head
        return (
            self.state is IN_BODY
            and not self._body_bytes
            and head is not None
            and b"expect" in head.headers
            and not head.http_1_0
        )

    @property
    def slice_bytes(self) -> int:
        """How many bytes to feed at once: the rest of a body of known length, or a slice."""
        head = self._head
        if self.state is not IN_BODY or head is None:
            return _SLICE_BYTES
        return max(_SLICE_BYTES, head.length - self._body_bytes)

    @property
    def is_head_request(self) -> bool:
        """Whether the request that is being read has a request line with the method HEAD."""
        return (
            self.state is not IDLE and bool(self._target) and self._parser.get_method() == b"HEAD"
        )

    def close(self) -> None:
        """Nothing is read any more. Without this the parser, the reader and whoever takes its
        requests would keep one another alive.
        """
        self.state = IDLE
        self._parser = None
        self._accept = _ignore
        self._body.clear()
        self._pieces.clear()
        self._share.give(self.held_bytes)
        self.held_bytes = 0

    def feed(self, data: bytes) -> Refusal | None:
        """Reads on; what is wrong, if something is. Then nothing more may be fed."""
        parser = self._parser
        while True:
            self._read_bytes = len(data)
            if self.state is not IDLE:
                self._idle_bytes += len(data)
            try:
                parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
                parser = self._parser
                continue
            except httptools.HttpParserCallbackError:
                if self._refusal is None:
                    raise
                return self._refusal
            except httptools.HttpParserError as error:
                return self._malformed(error)
            if self.state is not IDLE and self._idle_bytes > self._limits.max_header_bytes:
                in_head = self.state is IN_HEAD
                return refusals.HEAD_TOO_LARGE if in_head else refusals.TRAILER_TOO_LARGE
            return None

    def _without_upgrade(self, rest: bytes) -> bytes:
        """What to parse instead of a request that asks for another protocol.

        RFC 9110 section 7.8: the wish may be ignored, and then the request is as any other.
        llhttp stops at the end of its head, so it gets the head again, without the wish.
        """
        parser = self._parser
        if parser.get_method() == b"CONNECT":
            return b""  # what follows is not HTTP, and the connection will be closed
        request_line = b"%b %b HTTP/%b\r\n" % (
            parser.get_method(),
            self._target,
            parser.get_http_version().encode(),
        )
        fields = [field for field in self._fields if field[0].lower() != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self.state = IDLE
        self.raw_head = b""
        return b"%b%b\r\n%b" % (request_line, head_of(fields, None), rest)

    def _malformed(self, error: Exception) -> Refusal:
        if self._target == b"*" and self._parser.get_method() == b"PRI":
            return refusals.BAD_VERSION  # the preface of HTTP/2
        return refusals.malformed(str(error))

    # -- httptools: called while feed_data runs -------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self.state = IN_HEAD
        self.stage += 1
        self._idle_bytes = 0
        self._target = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One complete header field, or one of a chunked body's trailer."""
        # RFC 9110 section 6.5.1: a trailer may be dropped, and must not be merged.
        if self.state is IN_HEAD:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """All headers are here: do they make a request, and may its body come?"""
        parser, limits, fields = self._parser, self._limits, self._fields
        stays = parser.should_keep_alive()
        method = parser.get_method()
        if parser.should_upgrade():
            if method != b"CONNECT":
                return  # comes again, see _without_upgrade
            stays = False
        if len(fields) > limits.max_headers:
            self._abandon(refusals.TOO_MANY_HEADERS)
        # What came in one small read is no large head.
        if self._idle_bytes or self._read_bytes > limits.max_header_bytes:
            size = sum(len(name) + len(value) + 4 for name, value in fields)
            if size + len(self._target) > limits.max_header_bytes:
                self._abandon(refusals.HEAD_TOO_LARGE)
        head = read_head(method, self._target, fields, parser.get_http_version(), stays=stays)
        if not isinstance(head, Head):
            self._abandon(head)
        if head.length > limits.max_body_bytes:
            self._abandon(refusals.BODY_TOO_LARGE)
        if head.length > UNCOUNTED_BYTES and not self._share.fits(head.length):
            self._abandon(refusals.MEMORY_FULL)
        self._head = head
        self._body_bytes = 0
        self.state = IN_BODY
        self.stage += 1

    def on_body(self, body: bytes) -> None:
        """A piece of the body, chunks already taken apart."""
        self._idle_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._abandon(refusals.BODY_TOO_LARGE)
        if self._body_bytes > UNCOUNTED_BYTES and self._body_bytes > self.held_bytes:
            self._hold()
        pieces = self._pieces
        pieces.append(body)
        if len(pieces) == _PIECES_MAX:
            self._body.append(b"".join(pieces))
            pieces.clear()

    def on_message_complete(self) -> None:
        """A whole request."""
        if self.state is IN_HEAD:
            return  # it asks for another protocol, see _without_upgrade
        self.state = IDLE
        head = self._head
        assert head is not None
        if b"transfer-encoding" in head.headers and not self._parser.should_keep_alive():
            head.keep_alive = head.plain = False  # the trailer may say so, too
        if self.raw_head:
            if may_be_remembered(self.raw_head, head):
                self._remember(self.raw_head, head)
            self.raw_head = b""
        pieces = self._pieces
        if self._body:
            pieces[:0] = self._body
            self._body.clear()
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._accept(head, body)

    def _hold(self) -> None:
        """Takes the bytes that have arrived, and some ahead of those that are announced."""
        assert self._head is not None
        announced = max(self._head.length, self._body_bytes)
        size = min(announced, self._body_bytes + STEP_BYTES) - self.held_bytes
        if not self._share.take(size):
            self._abandon(refusals.MEMORY_FULL)
        self.held_bytes += size

    def _abandon(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise _Refused


def _ignore(_head: Head, _body: bytes) -> None:
    pass
