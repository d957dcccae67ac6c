"""What a peer can do wrong, and the code that RFC 9113 section 7 has for it."""

from __future__ import annotations

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB


class Fault(Exception):
    """``limit`` is the name of the field of ``config.Http2Limits`` that was exceeded, "" where
    a rule of the protocol was broken.
    """

    def __init__(self, code: int, reason: str, *, limit: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.limit = limit


class ConnectionFault(Fault):
    """Ends the connection with a GOAWAY."""


class StreamFault(Fault):
    """Ends one stream with a RST_STREAM; the others go on."""


def calm(limit: str, what: str) -> ConnectionFault:
    """More of something than a client has a use for."""
    return ConnectionFault(ENHANCE_YOUR_CALM, f"too many {what}", limit=limit)
