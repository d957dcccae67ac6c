"""What the header fields of a gRPC call say, and the bytes of its answers' header blocks.

Source: gRPC over HTTP2 (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import quote_from_bytes

import msgspec

from headrace.errors import HeadraceError, InvalidRequest, Unsupported, detached
from headrace.frontends.grpc.call import Metadata, Method, Methods
from headrace.frontends.http2.fields import Fields, literal, status_block

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_NS = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}

_ENCODINGS = {b"identity": b"", b"": b"", b"gzip": b"gzip", b"deflate": b"deflate"}

_RESERVED = frozenset({b"te", b"content-type", b"content-length", b"host"})
"""Of the transport; every other field is metadata, but those that begin with ``grpc-``."""

_CONTENT_TYPES = (b"application/grpc", b"application/grpc+proto")

_TEXT_MAX_BYTES = 4096
"""Of a status text: what is longer would not fit into every client's header list."""

_PRINTABLE = bytes(range(0x20, 0x7F)).replace(b"%", b"")

ANSWER = status_block(200) + literal(b"content-type", b"application/grpc")
ACCEPTS = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
OK = literal(b"grpc-status", b"0")


class GrpcMeaning(msgspec.Struct, eq=False):
    """``error`` is why the call cannot be taken, or None. ``encoding`` is "" for identity,
    ``authority`` that of ``:authority`` or, without it, of ``host``."""

    path: bytes
    method: Method | None
    authority: bytes = b""
    metadata: Metadata = ()
    timeout_ns: int = 0
    encoding: bytes = b""
    error: HeadraceError | None = None


def grpc_meaning(fields: Fields, methods: Methods) -> GrpcMeaning | None:
    """None: it is no gRPC, but ordinary HTTP."""
    content_type = next((value for name, value in fields.headers if name == b"content-type"), b"")
    if content_type.partition(b";")[0].rstrip() not in _CONTENT_TYPES or fields.method != b"POST":
        return None
    authority = fields.authority or b",".join(v for name, v in fields.headers if name == b"host")
    meaning = GrpcMeaning(fields.path, methods.get(fields.path), authority)
    try:
        _read(fields, meaning)
        if meaning.method is None:
            raise Unsupported(
                f"unknown method {fields.path.decode('latin-1')}", code="unknown_method"
            )
    except HeadraceError as error:
        meaning.error = detached(error)
    return meaning


def _read(fields: Fields, meaning: GrpcMeaning) -> None:
    metadata: list[tuple[bytes, bytes]] = []
    for name, value in fields.headers:
        if name == b"grpc-timeout":
            meaning.timeout_ns = _timeout_ns(value)
        elif name == b"grpc-encoding":
            encoding = _ENCODINGS.get(value)
            if encoding is None:
                raise Unsupported(
                    f"the message encoding {value.decode('latin-1')!r} is not known here",
                    code="unknown_encoding",
                    hint="send identity, gzip or deflate",
                )
            meaning.encoding = encoding
        elif name.endswith(b"-bin"):
            metadata += [(name, _from_base64(name, part)) for part in value.split(b",")]
        elif name not in _RESERVED and not name.startswith(b"grpc-"):
            metadata.append((name, value))
    meaning.metadata = tuple(metadata)


def _timeout_ns(value: bytes) -> int:
    matched = _TIMEOUT.fullmatch(value)
    if matched is None:
        raise InvalidRequest(f"grpc-timeout is {value.decode('latin-1')!r}", code="malformed_grpc")
    return max(1, int(matched[1]) * _UNIT_NS[matched[2]])


def _from_base64(name: bytes, value: bytes) -> bytes:
    value = value.strip()
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        raise InvalidRequest(
            f"the metadata {name.decode('latin-1')} is not base64", code="malformed_grpc"
        ) from None


def status_fields(code: int, text: str, trailers: Metadata) -> bytes:
    """The block of the trailers: ``grpc-status``, ``grpc-message``, and what the service adds."""
    parts = [literal(b"grpc-status", b"%d" % code)]
    if text:
        told = text.encode("utf-8", "replace")[:_TEXT_MAX_BYTES]
        parts.append(literal(b"grpc-message", quote_from_bytes(told, _PRINTABLE).encode()))
    for name, value in trailers:
        shown = base64.b64encode(value).rstrip(b"=") if name.endswith(b"-bin") else value
        parts.append(literal(name, shown))
    return b"".join(parts)
