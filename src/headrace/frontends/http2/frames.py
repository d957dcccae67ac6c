"""Frames as they stand on the wire (RFC 9113 sections 4 and 6)."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

DEFAULT_WINDOW = 65_535
DEFAULT_TABLE = 4096
MAX_STREAM_ID = 2**31 - 1
MAX_WINDOW = 2**31 - 1
MIN_MAX_FRAME_SIZE = 16_384
"""Every peer takes frames of this size."""

MAX_MAX_FRAME_SIZE = 2**24 - 1

HEAD_BYTES = 9

head = struct.Struct(">IBI").pack
"""``head(length << 8 | type, flags, stream_id)``: nine bytes in one call."""

read_head = struct.Struct(">IBI").unpack_from
"""The reverse, at an offset; the stream's number still has its reserved bit."""

_SETTING = struct.Struct(">HI")
_FRAME_AND_U32 = struct.Struct(">IBII").pack


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return head(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifiers and values; the length is a multiple of six."""
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return _FRAME_AND_U32(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _FRAME_AND_U32(4 << 8 | RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int, reason: bytes = b"") -> bytes:
    """A GOAWAY frame; ``reason`` is for people."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + reason)
