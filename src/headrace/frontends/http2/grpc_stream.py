"""A gRPC call on an HTTP/2 stream: ``frontends.grpc.call.Call``, and the framing of messages.

Source: gRPC over HTTP2 (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable

from headrace.clock import MonotonicClock
from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    Unsupported,
    detached,
)
from headrace.frontends import status
from headrace.frontends.decompress import decompress
from headrace.frontends.grpc.call import Incoming, Metadata
from headrace.frontends.http2 import frames
from headrace.frontends.http2.blocks import Pieces
from headrace.frontends.http2.faults import StreamFault
from headrace.frontends.http2.grpc_head import ACCEPTS, ANSWER, OK, GrpcMeaning, status_fields
from headrace.frontends.http2.streams import MESSAGE_UNITS, Sender, Stream
from headrace.frontends.peer import Peer
from headrace.frontends.refusals import BODY_TOO_LARGE, Refusal

_LOG = logging.getLogger("headrace.grpc")

_now_ns = MonotonicClock.now_ns

_PREFIX_BYTES = 5
"""Before every message: a byte that says whether it is compressed, and four of length."""

_INLINE_INFLATE_BYTES = 4096
"""A larger compressed message is inflated on a thread; at most a thousandfold comes out."""

_CANCELLED = 1
_DEADLINE_EXCEEDED = 4

_ENDS = frames.END_HEADERS | frames.END_STREAM

# A whole unary answer is HEADERS, DATA with the message, HEADERS: what is around the message
# is packed in two calls.
_before = struct.Struct(f">5sI{len(ANSWER)}sIBIBI").pack
_BEFORE_HEAD = frames.head(len(ANSWER) << 8 | frames.HEADERS, frames.END_HEADERS, 0)[:5]
_after = struct.Struct(f">5sI{len(OK)}s").pack
_AFTER_HEAD = frames.head(len(OK) << 8 | frames.HEADERS, _ENDS, 0)[:5]


class GrpcStream(Stream):
    """A ``Call``. See the module and ``frontends.grpc.call``."""

    arrived_ns = 0
    cancel: Callable[[], object] | None = None
    _incoming: Incoming | None = None
    _message: bytes | None = None  # of a unary call, until the client half-closes
    _prefix = b""  # of the message that is coming
    _need = -1  # bytes of it still to come; -1: its prefix first
    _parts: Pieces | None = None
    _held: bytearray | None = None  # not looked at yet, see ``_collect``
    _packed: bytes | None = None  # a message that is inflated
    _inflating = False  # a message; what follows it is held
    _full = False  # the call takes no more messages for now
    _sent_bytes = 0

    def __init__(self, machine: Sender, stream_id: int, meaning: GrpcMeaning) -> None:
        self.machine = machine
        self.id = stream_id
        self.send_window = machine.initial_window
        self.receive_window = machine.limits.stream_window_bytes
        self._meaning = meaning
        self.metadata = meaning.metadata
        self.timeout_ns = meaning.timeout_ns

    @property
    def authority(self) -> str:
        """See ``Call``."""
        return self._meaning.authority.decode("latin-1")

    def peer(self) -> Peer:
        """See ``Call``."""
        return self.machine.host.peer()

    # -- what arrives ----------------------------------------------------------------------------

    def opened(self, *, ended: bool) -> None:
        """Begins a streaming call; a unary one begins with its message."""
        meaning = self._meaning
        if meaning.error is not None:
            self.fail(meaning.error)
            return
        method = meaning.method
        assert method is not None
        if method.streaming is not None:
            self.arrived_ns = _now_ns()
            try:
                self._incoming = method.streaming(self)
            except Exception as error:  # noqa: BLE001 - one call must not end the others
                self._raised(error)
                return
            if self.closed:
                self._incoming = None
        if ended:
            self.received(b"", True)

    def timed_out(self) -> None:
        """The message did not arrive in time."""
        self.machine.counters.reject("body_timeout_s")
        self.end(_DEADLINE_EXCEEDED, "the message did not arrive in time")

    def no_room(self) -> None:
        """See ``Stream``."""
        self.fail(self.machine.share.full())

    def full(self) -> Overloaded:
        """See ``Call``."""
        return self.machine.share.full()

    def may_be_quiet(self) -> bool:
        """A client's stream may be silent for as long as it likes."""
        return self._incoming is not None

    def received(self, data: bytes, ended: bool) -> None:
        """Bytes of messages, cut anywhere."""
        if self.closed:
            return
        if self.paused:
            if data:
                self._hold(data)
            if ended and not self._held and not self._inflating:
                self._half_closed()
            return
        size = len(data) - _PREFIX_BYTES
        if (  # nearly always: one message in one frame, uncompressed
            size >= 0
            and self._need < 0
            and not data[0]
            and int.from_bytes(data[1:5], "big") == size
            and not self._prefix
            and size <= self.machine.limits.max_message_bytes
        ):
            if ended and self._incoming is None and self._message is None:
                self._ask(data[_PREFIX_BYTES:])
                return
            self._arrived(data[_PREFIX_BYTES:], compressed=False)
        else:
            taken = self._collect(data)
            if taken < len(data) and not self.closed:
                self._hold(data[taken:])
        if ended and not self.closed and not self._held and not self._inflating:
            self._half_closed()

    def go_on(self) -> None:
        """See ``Stream``."""
        if not (self.closed or self._full or self._inflating):  # what ends that calls again
            self._go_on()

    def _go_on(self) -> None:
        held = self._held
        self.paused = False
        if held:
            with memoryview(held) as view:
                taken = self._collect(view)
            if self.closed:
                return
            del held[:taken]
            self.machine.give_back(self, taken)
            self.machine.postponed.pop(self.id, None)  # an answer just now may have asked for it
            self.paused = bool(held) or self._full or self._inflating
            if held:
                self._postpone()
                return
        if self.remote_closed:
            if not self._inflating:
                self._half_closed()
        elif not self.paused:
            self.machine.credit(self)

    def _hold(self, data: bytes) -> None:
        """Keeps what may not be looked at yet. The client gets no credit, so it is bounded."""
        self.paused = True
        if self._held is None:
            self._held = bytearray()
        first = not self._held
        self._held += data
        self.machine.keep(self, len(data))
        if first:
            self._postpone()

    def _postpone(self) -> None:
        if not (self._full or self._inflating):
            self.machine.postpone(self)

    def _collect(self, data: bytes | memoryview) -> int:
        """Takes messages; how many bytes of them. Those that are left have to wait: until the
        call has room, until a message is inflated, or until the next turn of the loop.
        """
        position, end = 0, len(data)
        try:
            while position < end and not (self.closed or self._full or self._inflating):
                if self.machine.turn.is_over():
                    break
                position = self._collect_one(data, position)
        except HeadraceError as error:
            self.fail(error)
        return position

    def _collect_one(self, data: bytes | memoryview, position: int) -> int:
        """One message, or as much of it as there is; where it ends."""
        if self._need < 0:
            begin, position = position, position + _PREFIX_BYTES - len(self._prefix)
            self._prefix += data[begin:position]
            if len(self._prefix) < _PREFIX_BYTES:
                return len(data)
            self._need = self._measure(self._prefix)
        piece = bytes(data[position : position + self._need])
        position += len(piece)
        if len(piece) < self._need:
            self._keep(piece)
            return position
        parts, self._parts = self._parts, None
        if parts is not None:
            self.machine.give_back(self, parts.size)
            parts.add(piece)
            piece = parts.whole()
        compressed = self._prefix[0] != 0
        self._need, self._prefix = -1, b""
        self.machine.turn.left -= MESSAGE_UNITS
        self._arrived(piece, compressed=compressed)
        return position

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._need -= len(piece)
        parts = self._parts
        if parts is None:
            parts = self._parts = Pieces()
        parts.add(piece)
        self.machine.keep(self, len(piece))

    def _measure(self, prefix: bytes) -> int:
        length = int.from_bytes(prefix[1:5], "big")
        if prefix[0] > 1:
            raise InvalidRequest("no gRPC message begins so", code="malformed_grpc")
        if prefix[0] and not self._meaning.encoding:
            raise InvalidRequest(
                "a message is compressed, and grpc-encoding does not say how",
                code="malformed_grpc",
            )
        if length > self.machine.limits.max_message_bytes:
            raise self._too_large(length)
        return length

    def _too_large(self, length: int) -> PayloadTooLarge:
        limit = self.machine.limits.max_message_bytes
        self.machine.counters.reject("max_message_bytes")
        return PayloadTooLarge(
            f"Received message larger than max ({length} vs. {limit})",
            hint="send smaller batches, or raise max_message_bytes",
            limit="max_message_bytes",
            allowed=limit,
        )

    def _arrived(self, message: bytes, *, compressed: bool) -> None:
        """One whole message, in its turn."""
        if not compressed:
            self._take(message)
        else:
            self._packed = message
            if len(message) <= _INLINE_INFLATE_BYTES:
                self._inflated(self._inflate())
            else:
                self._inflating = self.paused = True
                self.machine.keep(self, len(message))
                if not self.closed:
                    self.machine.host.offload(self._inflate, self._on_inflated)

    def _inflate(self) -> bytes | Refusal:
        """On a thread, perhaps."""
        packed = self._packed
        if packed is None:
            return b""  # the call is over
        return decompress(packed, self._meaning.encoding, self.machine.limits.max_message_bytes)

    def _on_inflated(self, done: asyncio.Future[bytes | Refusal]) -> None:
        if self.closed or done.cancelled():
            return
        self._inflating = False
        packed, self._packed = self._packed or b"", None
        self.machine.give_back(self, len(packed))
        try:
            self._inflated(done.result())
        except StreamFault as fault:
            self.machine.reset(self, fault.code)
        if not self.closed:
            self.machine.postpone(self)

    def _inflated(self, outcome: bytes | Refusal) -> None:
        if isinstance(outcome, bytes):
            self._take(outcome)
        elif outcome is BODY_TOO_LARGE:
            self.fail(self._too_large(self.machine.limits.max_message_bytes + 1))
        elif outcome.limit:
            self.machine.counters.reject(outcome.limit)
            allowed = getattr(self.machine.http_limits, outcome.limit)
            self.fail(
                PayloadTooLarge(
                    outcome.message,
                    code=outcome.code,
                    hint=outcome.hint,
                    limit=outcome.limit,
                    allowed=allowed,
                )
            )
        else:
            self.fail(InvalidRequest(outcome.message, code="malformed_grpc"))

    def _take(self, message: bytes) -> None:
        incoming = self._incoming
        if incoming is not None:
            try:
                incoming.message(message)
            except StreamFault:
                raise
            except Exception as error:  # noqa: BLE001 - one call must not end the others
                self._raised(error)
        elif self._message is None:
            self._message = message
            self.machine.keep(self, len(message))
        else:
            self.fail(Unsupported("a unary call has one message", code="malformed_grpc"))

    def _half_closed(self) -> None:
        if self._prefix:
            self.fail(InvalidRequest("the stream ended within a message", code="malformed_grpc"))
            return
        incoming = self._incoming
        if incoming is not None:
            try:
                incoming.half_closed()
            except Exception as error:  # noqa: BLE001 - one call must not end the others
                self._raised(error)
            return
        message, self._message = self._message, None
        self.machine.give_back(self)
        if message is None:
            self.fail(Unsupported("a unary call needs a message", code="malformed_grpc"))
        else:
            self._ask(message)

    def _ask(self, message: bytes) -> None:
        """The whole of a unary call."""
        self.arrived_ns = _now_ns()
        try:
            self._meaning.method.unary(self, message)  # type: ignore[union-attr, misc]
        except Exception as error:  # noqa: BLE001 - one call must not end the others
            self._raised(error)

    def _raised(self, error: Exception) -> None:
        if not isinstance(error, HeadraceError):
            _LOG.error("a gRPC method failed", exc_info=error)
        self.fail(error)

    def abandoned(self) -> None:
        """The client left, or cancelled."""
        cancel, self.cancel = self.cancel, None
        if cancel is not None:
            cancel()
        if self.machine.log is not None:
            self._logged(_CANCELLED)

    def over(self) -> None:
        """Nothing of the call is kept, and nothing keeps the call."""
        self.cancel = None
        self._incoming = None
        self._parts = None
        self._message = None
        self._held = None
        self._packed = None

    # -- the answer ------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """See ``Call``."""
        if self.closed:
            return
        machine = self.machine
        if not self.begun:
            self.begun = True
            machine.send_head(self, ANSWER + ACCEPTS)
        machine.send_message(self, b"\0" + len(message).to_bytes(4, "big"), message)
        self._sent_bytes += len(message)

    def finish(self, message: bytes) -> None:
        """See ``Call``."""
        if self.closed:
            return
        machine = self.machine
        if self.held_bytes:
            self.give(self.held_bytes)
        size = len(message) + _PREFIX_BYTES
        if (
            self.begun
            or not self.remote_closed
            or size > machine.send_window
            or size > self.send_window
            or size > machine.max_frame
            or machine.held
            or machine.head_prefix
        ):
            self.send(message)
            self.end()
            return
        machine.send_window -= size
        self.closed = True
        self.cancel = None
        stream_id = self.id
        machine.out.append(
            _before(
                *(_BEFORE_HEAD, stream_id, ANSWER),
                *(size << 8, 0, stream_id, 0, size - _PREFIX_BYTES),
            )
            + message
            + _after(_AFTER_HEAD, stream_id, OK)
        )
        machine.counters.responses[2] += 1
        streams = machine.streams
        del streams[stream_id]
        if not streams:
            machine.host.emptied()
        if not machine.awake:
            machine.awake = True
            machine.host.schedule_flush()
        if machine.log is not None:
            self._sent_bytes = len(message)
            self._logged(0)

    def end(self, code: int = 0, text: str = "", trailers: Metadata = ()) -> None:
        """See ``Call``."""
        self._end(code, text, trailers, 2 if not code else 4)

    def fail(self, error: BaseException) -> None:
        """See ``Call``."""
        code, text, trailers = status.grpc_answer(detached(error))
        self._end(code, text, trailers, status.http_status(error) // 100)

    def _end(self, code: int, text: str, trailers: Metadata, counted_as: int) -> None:
        if self.closed:
            return
        self.cancel = None
        machine = self.machine
        block = status_fields(code, text, trailers)
        if not self.begun:
            self.begun = True
            block = ANSWER + ACCEPTS + block
        machine.counters.responses[counted_as] += 1
        machine.send_trailers(self, block)
        if machine.log is not None:
            self._logged(code)

    def pause_reading(self) -> None:
        """See ``Call``."""
        self._full = self.paused = True

    def resume_reading(self) -> None:
        """See ``Call``."""
        if self._full:
            self._full = False
            if self._held or self._inflating:
                self._postpone()
            else:
                self.paused = False
                self.machine.credit(self)

    def _logged(self, code: int) -> None:
        log = self.machine.log
        assert log is not None
        log(b"POST", self._meaning.path, 200, self._sent_bytes, self.arrived_ns, grpc_status=code)
