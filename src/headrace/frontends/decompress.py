"""Request bodies with a Content-Encoding, within a limit: 800 bytes can claim to be 500 MB."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from headrace.frontends.byte_account import UNCOUNTED_BYTES
from headrace.frontends.exchange import Exchange
from headrace.frontends.lane import Lane
from headrace.frontends.refusals import (
    BAD_ENCODING,
    BODY_TOO_LARGE,
    COMPRESSED_TOO_MUCH,
    Refusal,
    malformed,
)
from headrace.limits import MIB, HttpLimits

_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""As zlib wants them: 15 for its own format (what RFC 9110 calls deflate), +16 for gzip."""

_RATIO_FREE_BYTES = 1 * MIB
"""A body of zeros may be this large at any ratio: so much costs nothing."""

_MEMBERS_MAX = 64
"""gzip members in one body; splitting a body into millions of empty ones is an attack."""


def decompress(
    body: bytes,
    encoding: bytes,
    max_bytes: int,
    max_ratio: int = HttpLimits().max_compression_ratio,
) -> bytes | Refusal:
    """The body without its encoding, or why not. Never holds more than ``max_bytes`` + 1.

    Several gzip members one after another are one body (RFC 1952 section 2.2). Beyond the first MiB
    the result has at most ``max_ratio`` bytes for each byte of ``body``.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    window_bits = _WINDOW_BITS.get(name)
    if window_bits is None:
        return BAD_ENCODING
    parts: list[bytes] = []
    by_ratio = _RATIO_FREE_BYTES + max_ratio * len(body)
    left = min(max_bytes, by_ratio)
    too_large = BODY_TOO_LARGE if max_bytes <= by_ratio else COMPRESSED_TOO_MUCH
    data = body
    try:
        for _ in range(_MEMBERS_MAX):
            member = zlib.decompressobj(window_bits)
            part = member.decompress(data, left + 1)
            if len(part) > left:
                return too_large
            parts.append(part)
            left -= len(part)
            if not member.eof:
                return malformed(f"the {name.decode()} body is cut short")
            data = member.unused_data
            if not data:
                return b"".join(parts)
            if window_bits != _WINDOW_BITS[b"gzip"]:
                return malformed("bytes follow the deflate body")
        return malformed(f"the body has more than {_MEMBERS_MAX} gzip members")
    except zlib.error as error:
        return malformed(f"the body is not {name.decode()}: {error}")


def decompress_later(lane: Lane, exchange: Exchange, handle: Callable[[Exchange], None]) -> None:
    """Hands the exchange on with its body decompressed, or answers why not.

    Off the loop, because a megabyte of gzip is milliseconds of work.
    """

    def work() -> bytes | Refusal:
        encoding = exchange.head.headers[b"content-encoding"]
        limits = lane.limits
        return decompress(
            exchange.body, encoding, limits.max_body_bytes, limits.max_compression_ratio
        )

    def finished(done: asyncio.Future[bytes | Refusal]) -> None:
        if exchange.connection.closed or done.cancelled():
            return
        error = done.exception()
        if error is not None:
            exchange.respond_error(error)
            return
        outcome = done.result()
        if isinstance(outcome, bytes):
            size = len(outcome)
            if size > UNCOUNTED_BYTES and not exchange.hold(size):
                exchange.body = b""
                exchange.respond_error(exchange.connection.share.full())
                return
            exchange.body = outcome
            handle(exchange)
        else:
            if outcome.limit:
                lane.counters.reject(outcome.limit)
            exchange.respond(outcome.status, outcome.body(lane.limits))

    lane.inflater.start(work, finished)
