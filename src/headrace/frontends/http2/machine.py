"""HTTP/2 of one connection without a socket: bytes in, bytes out, streams in between.

Law: whatever the bytes are, :meth:`Machine.receive` returns; afterwards the connection lives, or
``failed`` is True and a GOAWAY says why. Memory is bounded by ``config.Http2Limits``.

What a client may send is credited again as it arrives: at once for the connection, and for a
stream unless it is paused. Floods are told from use by what use there is: every request and
every frame with data earns its client a few frames of control, every stream that ends well
earns one that it may cancel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from headrace.frontends.http2 import frames
from headrace.frontends.http2.blocks import Block, check_setting, unpadded
from headrace.frontends.http2.faults import (
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    ConnectionFault,
    StreamFault,
    calm,
)
from headrace.frontends.http2.fields import NO_TABLE, HeaderDecoder, check_field
from headrace.frontends.http2.host import Host
from headrace.frontends.http2.streams import Sender, Stream
from headrace.limits import Http2Limits, HttpLimits
from headrace.telemetry.snapshot import HttpCounters

_LOG = logging.getLogger("headrace.http")

_MAX_FRAME = 65_536
"""Of a client's frames: four times the least, so that large tensors cost fewer of them."""


class Machine(Sender):
    """See the module."""

    def __init__(
        self, limits: Http2Limits, http_limits: HttpLimits, counters: HttpCounters, host: Host
    ) -> None:
        super().__init__(limits, http_limits, counters, host)
        self.failed = False
        self.draining = False
        self.last_id = 0
        self.settled = False
        """The client's first SETTINGS has come."""

        self.block: Block | None = None  # a header block whose end has not come

        self._decoder = HeaderDecoder(limits.max_header_list_bytes)
        self._remembered = self._decoder.remembered
        self._rest = b""
        self._position = 0  # in it
        self.behind = False
        """Whole frames wait for the next turn of the loop; until then nothing should be read."""

        self._prefaced = False
        self._receive_window = limits.connection_window_bytes
        self._receive_low = limits.connection_window_bytes // 2
        self._stream_low = limits.stream_window_bytes // 2
        self._settings_unacknowledged = 0

    def start(self) -> None:
        """Sends what a server says first (RFC 9113 section 3.4)."""
        limits = self.limits
        values = {
            frames.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
            frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            frames.MAX_FRAME_SIZE: _MAX_FRAME,
            frames.MAX_HEADER_LIST_SIZE: self.http_limits.max_header_bytes,
        }
        self.out.append(frames.settings(values))
        self._settings_unacknowledged += 1
        more = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        if more:
            self.out.append(frames.window_update(0, more))
        if not self.awake:
            self._wake()

    def receive(self, data: bytes) -> None:
        """Bytes as they came, cut anywhere. Never raises."""
        if self.failed:
            return
        if self._rest:
            data = self._rest[self._position :] + data
        if self.behind:
            self._rest, self._position = data, 0
            return
        self.turn.begin()
        self._guarded(self._read_from, data, 0)

    def go_on(self) -> None:
        """The next turn: the frames that wait, then the streams that do, each with its share."""
        self.turn.begin()
        if self.behind:
            self._guarded(self._read_from, self._rest, self._position)
        if self.postponed:
            self.turn.begin()
            self._guarded(self._go_on_with_streams)

    def _go_on_with_streams(self) -> None:
        postponed = self.postponed
        for _ in range(len(postponed)):
            if self.turn.is_over():
                break
            stream = postponed.pop(next(iter(postponed)))
            try:
                stream.go_on()  # one that has still more is the last then
            except StreamFault as fault:
                self._fail_stream(stream.id, fault)
        if postponed:
            self.host.schedule_turn()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except ConnectionFault as fault:
            self.fail(fault)
        except Exception:  # noqa: BLE001 - a mistake of ours must not reach the event loop
            _LOG.exception("reading HTTP/2 failed")
            self.fail(ConnectionFault(INTERNAL_ERROR, "internal error"))

    def _read_from(self, data: bytes, position: int) -> None:
        position = self._read(data, position)
        if self.failed:
            return
        if self.behind:  # the same bytes, with an offset: they are not copied for every turn
            self._rest, self._position = data, position
            self.host.schedule_turn()
        else:
            self._rest, self._position = data[position:], 0

    def fail(self, fault: ConnectionFault) -> None:
        """Ends the connection: a GOAWAY, and no stream is answered any more."""
        if self.failed:
            return
        if fault.limit:
            self.counters.reject(fault.limit)
        self.out.append(frames.goaway(self.last_id, fault.code, fault.reason.encode()[:200]))
        self.close()
        if not self.awake:
            self._wake()

    def close(self) -> None:
        """The connection is over: whoever waits for an answer has left."""
        self.failed = True
        self.behind = False
        self._rest = b""
        self.postponed.clear()
        self.block = None
        streams = tuple(self.streams.values())
        self.streams.clear()
        for stream in streams:
            self.drop(stream)

    def drain(self) -> None:
        """No further request is taken; those under way are answered."""
        if not self.draining and not self.failed:
            self.draining = True
            self.out.append(frames.goaway(self.last_id, NO_ERROR))
            if not self.awake:
                self._wake()

    # -- frames --------------------------------------------------------------------------------

    def _read(self, data: bytes, position: int) -> int:
        """Handles whole frames, as many as the turn allows; where the next one begins."""
        self.behind = False
        if not self._prefaced:
            if not data.startswith(frames.PREFACE):
                if frames.PREFACE.startswith(data):
                    return 0
                raise ConnectionFault(PROTOCOL_ERROR, "no HTTP/2 preface")
            self._prefaced = True
            position = len(frames.PREFACE)
        end = len(data)
        read_head = frames.read_head
        while end - position >= 9:
            word, flags, stream_id = read_head(data, position)
            length = word >> 8
            if length > _MAX_FRAME:
                raise ConnectionFault(FRAME_SIZE_ERROR, "a frame above SETTINGS_MAX_FRAME_SIZE")
            start = position + 9
            if start + length > end:
                break
            if self.turn.is_over():
                self.behind = True
                break
            self.turn.left -= 1
            position = start + length
            kind = word & 0xFF
            stream_id &= 0x7FFF_FFFF
            if self.block is not None or not self.settled:
                self._check_expected(kind, stream_id)
            try:
                if not kind:
                    self._on_data(flags, stream_id, data[start:position])
                elif kind <= frames.CONTINUATION:
                    _HANDLERS[kind](self, flags, stream_id, data[start:position])
                else:  # section 5.5: unknown types are ignored
                    self.count_control()
            except StreamFault as fault:
                self._fail_stream(stream_id, fault)
            if self.failed:
                break
        return position

    def _check_expected(self, kind: int, stream_id: int) -> None:
        block = self.block
        if block is not None and (kind != frames.CONTINUATION or stream_id != block.stream_id):
            raise ConnectionFault(PROTOCOL_ERROR, "a header block was interrupted")
        if not self.settled and kind != frames.SETTINGS:
            raise ConnectionFault(PROTOCOL_ERROR, "the first frame must be SETTINGS")

    def _fail_stream(self, stream_id: int, fault: StreamFault) -> None:
        if fault.limit:
            self.counters.reject(fault.limit)
        stream = self.streams.get(stream_id)
        if stream is not None:
            # One that we must reset costs what one that the client cancels does (MadeYouReset,
            # CVE-2025-8671).
            self.count_reset()
            self.reset(stream, fault.code)
        elif self._is_idle(stream_id):  # one that was never opened cannot be reset
            raise ConnectionFault(fault.code, fault.reason)
        else:
            self.forget(stream_id)
            self.out.append(frames.rst_stream(stream_id, fault.code))
            self.count_control()

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < self._receive_low:
            self._credit_connection()
        if flags & frames.PADDED:
            payload = unpadded(payload)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._data_for_nobody(stream_id)
            return
        if stream.remote_closed:
            raise StreamFault(STREAM_CLOSED, "DATA after the end of the stream")
        if size > stream.receive_window:
            raise StreamFault(FLOW_CONTROL_ERROR, "more than the stream's window")
        if payload:
            self.useful += 1
        if stream.body_left >= 0:
            self._count_body(stream, len(payload), flags)
        if flags & frames.END_STREAM:
            stream.remote_closed = True
            stream.received(payload, True)
            return
        if not payload:
            self.count_control()
        stream.receive_window -= size
        if stream.closed:
            return  # its answer does not depend on the rest
        stream.received(payload, False)
        if stream.receive_window < self._stream_low and not stream.paused:
            self.credit(stream)

    def _credit_connection(self) -> None:
        if self._receive_window < 0:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "more than the connection's window")
        total = self.limits.connection_window_bytes
        self.out.append(frames.window_update(0, total - self._receive_window))
        self._receive_window = total

    def _count_body(self, stream: Stream, size: int, flags: int) -> None:
        stream.body_left -= size
        if stream.body_left < 0 or (flags & frames.END_STREAM and stream.body_left):
            stream.body_left = -1
            raise StreamFault(PROTOCOL_ERROR, "Content-Length is not the length of the body")

    def _data_for_nobody(self, stream_id: int) -> None:
        """On a stream that is not open for it (section 5.1)."""
        if self._is_idle(stream_id):
            raise ConnectionFault(PROTOCOL_ERROR, "DATA on a stream that was never opened")
        self.count_control()
        if stream_id not in self.forgotten and not self.draining:
            raise StreamFault(STREAM_CLOSED, "DATA on a closed stream")

    def _is_idle(self, stream_id: int) -> bool:
        """Whether it was never opened (section 5.1.1); 0 is none, even ones would be ours."""
        if not stream_id & 1:
            return True
        return stream_id > self.last_id and not self.draining

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFault(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & frames.PADDED:
            payload = unpadded(payload)
        depends_on_itself = False
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            depends_on_itself = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF == stream_id
            payload = payload[5:]
        ended = flags & frames.END_STREAM != 0
        if not flags & frames.END_HEADERS:
            self.block = Block(stream_id, payload, ended=ended)
            return
        self._on_block(stream_id, payload, ended=ended)
        if depends_on_itself:  # only now: the decoder must see every block
            raise StreamFault(PROTOCOL_ERROR, "a stream that depends on itself")

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self.block
        if block is None:
            raise ConnectionFault(PROTOCOL_ERROR, "CONTINUATION of nothing")
        block.add(payload)
        if block.pieces > self.limits.max_continuations:
            raise calm("max_continuations", "CONTINUATION frames")
        if block.size > self.limits.max_header_list_bytes:
            raise calm("max_header_list_bytes", "bytes of header fields")
        if flags & frames.END_HEADERS:
            self.block = None
            self._on_block(stream_id, block.whole(), ended=block.ended)

    def _on_block(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, block, ended=ended)
            return
        if stream_id <= self.last_id:
            self._decoder.decode(block)
            if stream_id not in self.forgotten:
                raise ConnectionFault(STREAM_CLOSED, "HEADERS on a closed stream")
            self.count_control()
            return
        if self.draining:  # section 6.8: the client knows that it was not taken
            self._decoder.decode(block)
            self.count_control()
            return
        self.last_id = stream_id
        request = self._remembered.get(block)
        if request is None:
            request = self._decoder.request(block)
        self.useful += 1
        if ended and request.length > 0:
            raise StreamFault(PROTOCOL_ERROR, "Content-Length is not the length of the body")
        self._check_room()
        self.opened_count += 1
        stream = self.host.open_stream(self, stream_id, request)
        self.streams[stream_id] = stream
        if request.length >= 0:
            stream.body_left = request.length
        if ended:
            stream.remote_closed = True
        stream.opened(ended=ended)

    def _check_room(self) -> None:
        limits = self.limits
        if len(self.streams) >= limits.max_concurrent_streams:
            raise StreamFault(REFUSED_STREAM, "too many streams", limit="max_concurrent_streams")
        if self.unsent_bytes > limits.max_unsent_bytes:
            raise StreamFault(REFUSED_STREAM, "too much is unread", limit="max_unsent_bytes")

    def _on_trailers(self, stream: Stream, block: bytes, *, ended: bool) -> None:
        decoded = self._decoder.decode(block)
        if stream.remote_closed:
            raise StreamFault(STREAM_CLOSED, "HEADERS after the end of the stream")
        if not ended:
            raise StreamFault(PROTOCOL_ERROR, "trailers must end the stream")
        for name, value in decoded:
            check_field(name, value)
        if stream.body_left > 0:
            raise StreamFault(PROTOCOL_ERROR, "Content-Length is not the length of the body")
        stream.remote_closed = True
        stream.received(b"", True)

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        self.count_control()
        if not stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise StreamFault(FRAME_SIZE_ERROR, "PRIORITY has five bytes")
        if int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF == stream_id:
            raise StreamFault(PROTOCOL_ERROR, "a stream that depends on itself")

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        if self._is_idle(stream_id):
            raise ConnectionFault(PROTOCOL_ERROR, "RST_STREAM on a stream that was never opened")
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            self.count_control()
            return
        self.forget(stream_id)
        self.drop(stream)
        if not self.streams:
            self.host.emptied()
        self.count_reset()

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(FRAME_SIZE_ERROR, "an acknowledgement is empty")
            if not self.settled:
                raise ConnectionFault(PROTOCOL_ERROR, "the first SETTINGS is no acknowledgement")
            self._settings_unacknowledged -= 1
            if self._settings_unacknowledged < 0:
                self._settings_unacknowledged = 0
                self.count_control()
            return
        if len(payload) % 6:
            raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS has entries of six bytes")
        if self.settled:
            self.count_control()
        self.settled = True
        values: dict[int, int] = {}
        for identifier, value in frames.read_settings(payload):
            check_setting(identifier, value)
            values[identifier] = value  # the last one is what holds
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._apply(values)

    def _apply(self, values: dict[int, int]) -> None:
        size = values.get(frames.MAX_FRAME_SIZE)
        if size is not None:
            self.max_frame = min(size, _MAX_FRAME)
        if values.get(frames.HEADER_TABLE_SIZE, frames.DEFAULT_TABLE) < frames.DEFAULT_TABLE:
            self.head_prefix = NO_TABLE
        window = values.get(frames.INITIAL_WINDOW_SIZE)
        if window is not None:
            self.change_initial_window(window)
            self.pump()

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionFault(PROTOCOL_ERROR, "a client does not push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(FRAME_SIZE_ERROR, "PING has eight bytes")
        self.count_control()
        if not flags & frames.ACK:
            self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(FRAME_SIZE_ERROR, "GOAWAY has eight bytes at least")
        self.count_control()
        self.drain()  # what is under way is still answered
        if not self.streams:
            self.host.emptied()

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        self.count_control()
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not stream_id:
            if not increment:
                raise ConnectionFault(PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
            self.send_window += increment
            if self.send_window > frames.MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "a window above 2^31-1")
            self.pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionFault(PROTOCOL_ERROR, "WINDOW_UPDATE on a stream never opened")
            return  # section 6.9: it may have been on its way when the stream ended
        if not increment:
            raise StreamFault(PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
        if not self.widen_stream(stream, increment):
            raise StreamFault(FLOW_CONTROL_ERROR, "a window above 2^31-1")


_HANDLERS = (
    Machine._on_data,
    Machine._on_headers,
    Machine._on_priority,
    Machine._on_rst_stream,
    Machine._on_settings,
    Machine._on_push_promise,
    Machine._on_ping,
    Machine._on_goaway,
    Machine._on_window_update,
    Machine._on_continuation,
)
"""By type. Not bound: a machine that held its own methods could not be freed without a search."""
