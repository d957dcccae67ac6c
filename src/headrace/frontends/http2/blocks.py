"""Parts of frames that need a look of their own: padding, settings, blocks in several frames."""

from __future__ import annotations

from headrace.frontends.http2 import frames
from headrace.frontends.http2.faults import (
    FLOW_CONTROL_ERROR,
    PROTOCOL_ERROR,
    ConnectionFault,
)

_PIECES_MAX = 1024
"""Pieces kept one by one: a megabyte sent as single bytes must not become a million objects."""


class Pieces:
    """Bytes that arrive in pieces. However small those are, every byte is copied twice at most."""

    __slots__ = ("_joined", "_parts", "size")

    def __init__(self) -> None:
        self.size = 0
        self._joined = 0  # so many at the front are a join of many
        self._parts: list[bytes] = []

    def __len__(self) -> int:
        """The number of objects kept."""
        return len(self._parts)

    def add(self, piece: bytes) -> None:
        """The next one."""
        parts = self._parts
        parts.append(piece)
        self.size += len(piece)
        if len(parts) - self._joined >= _PIECES_MAX:
            parts[self._joined :] = [b"".join(parts[self._joined :])]
            self._joined += 1

    def whole(self) -> bytes:
        """All of them."""
        return b"".join(self._parts)


class Block:
    """A header block that comes in several frames."""

    def __init__(self, stream_id: int, first: bytes, *, ended: bool) -> None:
        self.stream_id = stream_id
        self.ended = ended
        self.size = len(first)
        self.pieces = 0
        self._parts = [first]

    def add(self, payload: bytes) -> None:
        """The payload of a CONTINUATION."""
        self.pieces += 1
        self.size += len(payload)
        self._parts.append(payload)

    def whole(self) -> bytes:
        """All that has come."""
        return b"".join(self._parts)


def check_setting(identifier: int, value: int) -> None:
    """The bounds of RFC 9113 section 6.5.2.

    Raises:
        ConnectionFault: the value is out of them.
    """
    if identifier == frames.INITIAL_WINDOW_SIZE:
        if value > frames.MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "an initial window above 2^31-1")
    elif identifier == frames.MAX_FRAME_SIZE:
        if not frames.MIN_MAX_FRAME_SIZE <= value <= frames.MAX_MAX_FRAME_SIZE:
            raise ConnectionFault(PROTOCOL_ERROR, "a maximum frame size out of bounds")
    elif identifier == frames.ENABLE_PUSH and value > 1:
        raise ConnectionFault(PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")


def unpadded(payload: bytes) -> bytes:
    """RFC 9113 section 6.1: the first byte says how many at the end are padding.

    Raises:
        ConnectionFault: more than there are.
    """
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
