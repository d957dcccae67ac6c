"""The head of a request, and the rules that keep one request apart from the next.

llhttp is fast because it checks little. What two parsers could read in two ways is refused
here: a second Host or length, a length beside chunks, an unknown transfer coding (RFC 9112
sections 3.2, 6.1, 6.3).
"""

from __future__ import annotations

import http

from headrace.frontends import refusals
from headrace.frontends.refusals import Refusal

MAX_REMEMBERED_BYTES = 4096
"""Longer heads are not remembered."""

_LENGTH_DIGITS = 20
"""Of the largest 64-bit number."""

_ONCE = {
    b"host": refusals.HOST_REPEATED,
    b"content-length": refusals.LENGTH_REPEATED,
    b"transfer-encoding": refusals.malformed("more than one Transfer-Encoding header"),
    b"content-encoding": refusals.malformed("more than one Content-Encoding header"),
    b"expect": refusals.malformed("more than one Expect header"),
    b"inference-header-content-length": refusals.malformed(
        "more than one Inference-Header-Content-Length header"
    ),
}
"""Fields that a second time make it unclear where the request goes, what it is or where it ends."""

_NOT_REMEMBERED = (b"transfer-encoding", b"expect", b"upgrade", b"content-encoding")

_HOST_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=%:[]"
"""What RFC 3986 section 3.2 allows in a host and port; RFC 9112 section 3.2 wants the rest
refused."""

STATUS_LINE = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}


class Head:
    """A request line and its headers. Shared between requests that repeat it: never changed.

    ``target`` is the raw request target; ``headers`` maps lower-case names to values (the
    last of a repeated field, without white space around it), ``raw_headers`` has all of them in
    order, as they came. ``length`` is the
    body's as announced (0 without a body; not known beforehand if chunked). ``plain``: the
    answer needs no Connection header, because this is HTTP/1.1 and the connection stays.
    ``encoded``: the body must be decompressed first.
    ``route`` is the router's note to itself.
    """

    __slots__ = (
        "encoded",
        "headers",
        "http_1_0",
        "keep_alive",
        "length",
        "method",
        "plain",
        "raw_headers",
        "route",
        "target",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: dict[bytes, bytes],
        raw_headers: list[tuple[bytes, bytes]],
        *,
        http_1_0: bool = False,
        keep_alive: bool = True,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.raw_headers = raw_headers
        self.encoded = b"content-encoding" in headers
        self.length = int(headers.get(b"content-length", b"0"))
        self.http_1_0 = http_1_0
        self.keep_alive = keep_alive
        self.plain = keep_alive and not http_1_0
        self.route: tuple[str, str] | None = None

    def connection_line(self, *, keep_alive: bool) -> bytes:
        """The answer's Connection header: b"" where the version says the same."""
        if not keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.http_1_0 else b""


NO_HEAD = Head(b"", b"", {}, [])
"""Of a request that never became one."""

NO_HEAD_OF_HEAD = Head(b"HEAD", b"", {}, [])


def read_head(
    method: bytes, target: bytes, fields: list[tuple[bytes, bytes]], version: str, *, stays: bool
) -> Head | Refusal:
    """The head that these pieces are, or why they are none.

    Args:
        method, target: of the request line.
        fields: names and values in order, as they came.
        version: ``"1.1"`` or what else the request line says.
        stays: whether the client wants to send more (RFC 9112 section 9.3).
    """
    headers = {name.lower(): value.rstrip(b" \t") for name, value in fields}
    if len(headers) < len(fields):
        names = [name.lower() for name, _ in fields]
        for name, refusal in _ONCE.items():
            if names.count(name) > 1:
                return refusal
    http_1_0 = version == "1.0"
    if version != "1.1" and not http_1_0:
        return refusals.BAD_VERSION
    host = headers.get(b"host")
    if host is None:
        if not http_1_0:
            return refusals.HOST_MISSING
    elif host.translate(None, _HOST_BYTES):
        return refusals.HOST_MALFORMED
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or len(length) > _LENGTH_DIGITS):
        # Python's int() would also take "+1" and "1_0".
        return refusals.LENGTH_MALFORMED
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if b"content-length" in headers:
            return refusals.LENGTH_AND_CHUNKED
        if http_1_0:
            return refusals.CHUNKED_IN_1_0
        if coding.lower() != b"chunked":
            return refusals.UNKNOWN_CODING
    expectation = headers.get(b"expect")
    # RFC 9110 section 10.1.1: from HTTP/1.0 it is to be ignored.
    if expectation is not None and not http_1_0 and expectation.lower() != b"100-continue":
        return refusals.BAD_EXPECTATION
    return Head(method, target, headers, fields, http_1_0=http_1_0, keep_alive=stays)


def may_be_remembered(raw: bytes, head: Head) -> bool:
    """Whether a later request with these very bytes can be taken without parsing them.

    ``raw`` ends at the first empty line. It is this head and nothing else if every line in
    it ends with CRLF: then no parser could have seen the head end any earlier.
    """
    return (
        len(raw) <= MAX_REMEMBERED_BYTES
        and raw.startswith(head.method)
        and raw.count(b"\n") == raw.count(b"\r\n") == len(head.raw_headers) + 2
        and head.plain
        and not any(name in head.headers for name in _NOT_REMEMBERED)
    )
