"""What the fast lane answers when a request does not even become one.

Each names the limit or rule that was broken; the connection is closed afterwards, because
where one request ends and the next begins is no longer certain.
"""

from __future__ import annotations

import msgspec

from headrace.frontends.status import v2_body
from headrace.limits import HttpLimits


class Refusal(msgspec.Struct, frozen=True):
    """``limit`` is the name of the field of ``config.HttpLimits``, "" for a protocol rule."""

    status: int
    code: str
    message: str
    hint: str = ""
    limit: str = ""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Of the answer, beside those that every answer has."""
        return ((b"retry-after", b"1"),) if self.status == 503 else ()

    def body(self, limits: HttpLimits) -> bytes:
        """The answer in the V2 protocol's error shape, with what would have been allowed."""
        details = None
        if self.limit:
            details = {"limit": self.limit, "allowed": getattr(limits, self.limit)}
        return v2_body(self.message, self.code, hint=self.hint, details=details)


def malformed(reason: str) -> Refusal:
    """The bytes are no HTTP/1.1 (RFC 9112)."""
    return Refusal(400, "malformed_http", f"malformed HTTP request: {reason}")


HOST_MISSING = malformed("an HTTP/1.1 request needs a Host header")
HOST_REPEATED = malformed("more than one Host header")
LENGTH_REPEATED = malformed("more than one Content-Length header")
LENGTH_AND_CHUNKED = malformed("both Content-Length and Transfer-Encoding")
HOST_MALFORMED = malformed("the Host header holds what no host name or port can")
LENGTH_MALFORMED = malformed("Content-Length must be a number of bytes")
CHUNKED_IN_1_0 = malformed("HTTP/1.0 has no Transfer-Encoding")
BAD_VERSION = Refusal(
    505,
    "unknown_version",
    "a request line may say HTTP/1.1 or HTTP/1.0",
    "HTTP/2 begins with a preface of its own (prior knowledge), or over TLS with ALPN",
)
UNKNOWN_CODING = Refusal(
    501,
    "unknown_transfer_coding",
    "the only Transfer-Encoding known here is chunked",
    "compress the body and say so in Content-Encoding",
)

HEAD_TOO_LARGE = Refusal(
    431,
    "headers_too_large",
    "the request line and headers are larger than this server takes",
    "send fewer or shorter headers, or raise max_header_bytes",
    "max_header_bytes",
)
TOO_MANY_HEADERS = Refusal(
    431,
    "too_many_headers",
    "the request has more header fields than this server takes",
    "send fewer headers, or raise max_headers",
    "max_headers",
)
BODY_TOO_LARGE = Refusal(
    413,
    "payload_too_large",
    "the request body is larger than this server takes",
    "send smaller batches, or raise max_body_bytes",
    "max_body_bytes",
)
COMPRESSED_TOO_MUCH = Refusal(
    413,
    "compression_ratio",
    "the compressed data expands more than this server takes",
    "send it without compression, or raise max_compression_ratio",
    "max_compression_ratio",
)
HEAD_TIMEOUT = Refusal(
    408,
    "header_timeout",
    "the headers did not arrive in time",
    "send them at once, or raise header_timeout_s",
    "header_timeout_s",
)
BODY_TIMEOUT = Refusal(
    408,
    "body_timeout",
    "the body did not arrive in time",
    "send it faster, send less, or raise body_timeout_s",
    "body_timeout_s",
)
BAD_EXPECTATION = Refusal(
    417, "unknown_expectation", "the only expectation known here is 100-continue"
)
BAD_ENCODING = Refusal(
    415,
    "unknown_encoding",
    "the Content-Encoding is not known here",
    "send gzip, deflate or identity",
)
TRAILER_TOO_LARGE = Refusal(
    431,
    "trailer_too_large",
    "the chunked body's extensions or trailer fields are larger than this server takes",
    "send data in the chunks, or raise max_header_bytes",
    "max_header_bytes",
)
MEMORY_FULL = Refusal(
    503,
    "memory_full",
    "the requests and answers in this server's memory leave no room for this one",
    "retry later, send smaller requests, or raise max_memory_bytes",
    "max_memory_bytes",
)
SHUTTING_DOWN = Refusal(
    503, "shutting_down", "the server is shutting down", "connect again: another may answer"
)
TOO_MANY_CONNECTIONS = Refusal(
    503,
    "too_many_connections",
    "this server has as many connections as it takes",
    "use fewer connections, or raise max_connections",
    "max_connections",
)
