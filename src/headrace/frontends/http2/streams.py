"""What an HTTP/2 connection sends, and its streams: answers within two windows, in turns.

Flow control (RFC 9113 section 5.2): DATA leaves while the connection's and the stream's window
allow it. What does not fit waits in its stream (``pending``); as soon as there is room the
streams that wait take turns, a frame each.
"""

from __future__ import annotations

import asyncio
from collections import deque

from headrace.frontends.byte_account import STEP_BYTES, UNCOUNTED_BYTES, ByteAccount, Share
from headrace.frontends.http2 import frames
from headrace.frontends.http2.faults import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    NO_ERROR,
    ConnectionFault,
    StreamFault,
)
from headrace.frontends.http2.floods import FloodGuard
from headrace.frontends.http2.host import Host, RequestLog
from headrace.frontends.turns import Turn
from headrace.limits import Http2Limits, HttpLimits
from headrace.telemetry.snapshot import HttpCounters

_UNLIMITED_BYTES = 1 << 60

_MAX_FRAME = 65_536
"""Of ours, where the client takes more: larger ones would keep others waiting for nothing."""

_WRITABLE_BYTES = 65_536
"""A stream that has less waiting may be given more."""

_USEFUL_BYTES = 1024
"""A frame that the client's window made smaller is of no use."""

TURN_UNITS = 256
"""What one connection is served in one turn of the loop, unless its time ends before; then other
connections have their turn. Ordinary reads have less. A frame is one unit."""

MESSAGE_UNITS = 2
"""A message that shares its frame with others is a request, and a unary one takes two frames."""

_FORGOTTEN_MAX = 1024
"""Streams remembered after we ended them first: what the client sent before it knew is ignored."""


class Stream:
    """One request and its answer. Subclasses say what is done with a request.

    ``remote_closed``: the client has sent all of it. ``closed``: it is over, or the last of the
    answer waits for a window. ``begun``: the head of the answer is out. ``body_left`` is what is
    still to come of a Content-Length, -1 where none was given.
    """

    # Defaults of the class: a stream that lives for one small request never sets most of them.
    remote_closed = False
    closed = False
    begun = False
    paused = False
    body_left = -1
    buffered_bytes = 0
    taken_bytes = 0
    """Of the connection's share, for what is buffered."""

    held_bytes = 0
    """The same, for what is under way: see ``hold``."""

    pending: deque[memoryview] | None = None
    pending_bytes = 0
    tail: bytes | None = None
    """The trailers' block, to be sent after what is pending; b"": END_STREAM on the last DATA."""

    seen_s = 0.0
    """When the connection's sweep first saw it."""

    moved_s = 0.0
    """When the sweep last saw that something pending had been sent."""

    moves = 0
    """Bytes sent of what was pending, as the sweep last saw it: see ``sent_pending``."""

    sent_pending = 0

    waiter: asyncio.Future[None] | None = None

    def __init__(self, machine: Sender, stream_id: int) -> None:
        self.machine = machine
        self.id = stream_id
        self.send_window = machine.initial_window
        self.receive_window = machine.limits.stream_window_bytes

    def opened(self, *, ended: bool) -> None:
        """The head is here; ``ended``: it is the whole request."""

    def received(self, data: bytes, ended: bool) -> None:
        """A piece of the body, perhaps empty; ``ended``: the last one.

        Raises:
            StreamFault: the stream is to be reset.
        """

    def go_on(self) -> None:
        """Takes what was held back for another turn of the loop, see ``Sender.postpone``.

        Raises:
            StreamFault: the stream is to be reset.
        """

    def over(self) -> None:
        """The answer is complete or nobody waits for it: hold on to nothing."""

    def abandoned(self) -> None:
        """The client left, or the stream was reset: stop what is done for it."""

    def timed_out(self) -> None:
        """The request did not arrive in time."""
        self.machine.counters.reject("body_timeout_s")
        self.machine.reset(self, CANCEL)

    def may_be_quiet(self) -> bool:
        """Whether the client may take as long as it likes with what it sends."""
        return False

    async def writable(self) -> None:
        """Waits while the client reads more slowly than we write, on this stream or at all."""
        while not self.closed and (self.machine.held or self.pending_bytes > _WRITABLE_BYTES):
            if self.waiter is None:
                self.waiter = self.machine.host.future()
            await self.waiter

    def no_room(self) -> None:
        """The server's memory has no room for the rest of the request: refuses it."""

    def hold(self, size: int) -> bool:
        """Takes ``size`` bytes of the connection's share until the end; False: no room."""
        if self.closed:
            return True
        if not self.machine.share.take(size):
            return False
        self.held_bytes += size
        return True

    def give(self, size: int) -> None:
        """Gives back what was taken by :meth:`hold`, or a part of it."""
        size = min(size, self.held_bytes)
        self.held_bytes -= size
        self.machine.share.give(size)

    def wake(self) -> None:
        """Whoever waits to write may look again."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Sender(FloodGuard):
    """The sending half. ``out`` is what is to be written, in order.

    ``held``: the socket does not take more; what can wait, waits. ``unsent_bytes`` waits in all
    streams together.
    """

    def __init__(
        self, limits: Http2Limits, http_limits: HttpLimits, counters: HttpCounters, host: Host
    ) -> None:
        super().__init__(limits)
        self.http_limits = http_limits
        self.counters = counters
        self.host = host
        self.share = Share(ByteAccount(_UNLIMITED_BYTES), host.peer)
        """Of the process's memory; the connection sets it."""

        self.out: list[bytes | memoryview] = []
        self.awake = False  # somebody will write ``out`` in this turn of the loop
        self.streams: dict[int, Stream] = {}
        self.initial_window = frames.DEFAULT_WINDOW
        self.send_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.MIN_MAX_FRAME_SIZE
        self.held = False
        self.unsent_bytes = 0
        self.buffered_bytes = 0
        self.log: RequestLog | None = None
        self.head_prefix = b""
        """What the next header block must begin with, see ``fields.NO_TABLE``."""

        self.turn = Turn(TURN_UNITS, counters)
        """Of the loop: frames and messages that may still be handled in it."""

        self.postponed: dict[int, Stream] = {}
        """Streams that go on in the next turn."""

        self._ready: dict[int, Stream] = {}  # have something to send and a window
        self.forgotten: dict[int, None] = {}

    # -- answers -------------------------------------------------------------------------------

    def send_head(self, stream: Stream, block: bytes, *, last: bool = False) -> None:
        """The header block of an answer, or of its trailers if nothing is pending."""
        self.out.append(self._head_frames(stream.id, block, last=last))
        if last:
            self._finished(stream)
        if not self.awake:
            self._wake()

    def send_data(self, stream: Stream, payload: bytes, *, last: bool = False) -> None:
        """Some of the body, the last of it perhaps."""
        size = len(payload)
        if stream.pending is None and (not size or self.fits(stream, size)):
            self.send_window -= size
            stream.send_window -= size
            self.useful += 1
            self.out.append(frames.head(size << 8, 1 if last else 0, stream.id) + payload)
            if last:
                self._finished(stream)
        else:
            self._wait(stream, payload)
            if last:
                stream.tail = b""
                stream.closed = True
            self.pump()
        if not self.awake:
            self._wake()

    def send_message(self, stream: Stream, prefix: bytes, message: bytes) -> None:
        """A prefix and what it is of, as one piece of the body; a large one is not copied."""
        if len(message) < self.max_frame:
            self.send_data(stream, prefix + message)
            return
        first = self.max_frame - len(prefix)
        self._wait(stream, prefix + message[:first])
        self._wait(stream, memoryview(message)[first:])
        self.pump()

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """The header block that ends the stream, after all that waits."""
        if stream.pending is None:
            self.send_head(stream, block, last=True)
        else:
            stream.tail = block
            stream.closed = True

    def fits(self, stream: Stream, size: int) -> bool:
        """Whether a message of this size may leave at once, in one frame."""
        return (
            size <= self.send_window
            and size <= stream.send_window
            and size <= self.max_frame
            and not self.held
        )

    def reset(self, stream: Stream, code: int) -> None:
        """Ends a stream at once, whatever was still to be sent."""
        if self.streams.pop(stream.id, None) is None:
            return
        self.out.append(frames.rst_stream(stream.id, code))
        self.forget(stream.id)
        self.drop(stream)
        if not self.awake:
            self._wake()
        if not self.streams:
            self.host.emptied()

    def drop(self, stream: Stream) -> None:
        """A stream that is over before its answer is."""
        self._release(stream)
        finished = stream.closed and stream.tail is not None
        stream.closed = True
        stream.wake()
        if not finished:
            stream.abandoned()
        stream.over()

    def forget(self, stream_id: int) -> None:
        """We ended the stream before the client did."""
        forgotten = self.forgotten
        forgotten[stream_id] = None
        if len(forgotten) > _FORGOTTEN_MAX:
            del forgotten[next(iter(forgotten))]

    # -- windows -------------------------------------------------------------------------------

    def widen_stream(self, stream: Stream, increment: int) -> bool:
        """False if the window is above the limit then."""
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            return False
        if stream.pending is not None:
            self._ready[stream.id] = stream
            self.pump()
        return True

    def change_initial_window(self, size: int) -> None:
        """Section 6.9.2: every open stream's window changes by the difference, perhaps below 0.

        Raises:
            ConnectionFault: one is above the limit then.
        """
        difference = size - self.initial_window
        self.initial_window = size
        self.turn.left -= len(self.streams) // 16
        for stream in self.streams.values():
            stream.send_window += difference
            if stream.send_window > frames.MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "a window above 2^31-1")
            if stream.pending is not None:
                self._ready[stream.id] = stream

    def hold(self, *, held: bool) -> None:
        """The socket takes no more, or does again."""
        self.held = held
        if not held:
            self.pump()
            for stream in tuple(self.streams.values()):
                if stream.waiter is not None and stream.pending_bytes <= _WRITABLE_BYTES:
                    stream.wake()

    def pump(self) -> None:
        """Sends what the windows allow now, a frame of each stream in turn."""
        ready = self._ready
        while ready and self.send_window > 0 and not self.held:
            for stream in tuple(ready.values()):
                if self.send_window <= 0:
                    break
                self._send_piece(stream)
        if self.out and not self.awake:
            self._wake()

    def _send_piece(self, stream: Stream) -> None:
        pending = stream.pending
        room = min(self.send_window, stream.send_window, self.max_frame)
        if not pending or room <= 0:
            del self._ready[stream.id]  # its next WINDOW_UPDATE puts it back
            return
        piece = pending[0]
        size = len(piece)
        if size <= room:
            pending.popleft()
            self.useful += 1
        else:
            if room >= _USEFUL_BYTES:  # a client that opens its window byte by byte plays games
                self.useful += 1
            pending[0] = piece[room:]
            piece, size = piece[:room], room
        self.send_window -= size
        stream.send_window -= size
        stream.pending_bytes -= size
        stream.sent_pending += size
        self.share.give(size)
        self.unsent_bytes -= size
        tail = stream.tail
        last = not pending and tail == b""
        self.out.append(frames.head(size << 8, 1 if last else 0, stream.id))
        self.out.append(piece)
        if not pending:
            stream.pending = None
            del self._ready[stream.id]
            if tail is not None:
                if tail:
                    self.out.append(self._head_frames(stream.id, tail, last=True))
                self._finished(stream)
                return
        if stream.waiter is not None and stream.pending_bytes <= _WRITABLE_BYTES:
            stream.wake()

    # -- what the client may send --------------------------------------------------------------

    def credit(self, stream: Stream) -> None:
        """Lets the client go on sending on a stream."""
        used = self.limits.stream_window_bytes - stream.receive_window
        if used > 0 and not stream.remote_closed and not stream.closed:
            stream.receive_window += used
            self.out.append(frames.window_update(stream.id, used))
            if not self.awake:
                self._wake()

    def keep(self, stream: Stream, size: int) -> None:
        """A stream keeps so many more bytes of what is not complete, or is refused.

        Raises:
            StreamFault: all streams together keep too much.
        """
        stream.buffered_bytes += size
        self.buffered_bytes += size
        if self.buffered_bytes > self.limits.max_buffered_bytes:
            raise StreamFault(
                ENHANCE_YOUR_CALM, "too much is incomplete", limit="max_buffered_bytes"
            )
        buffered_bytes = stream.buffered_bytes
        if buffered_bytes > UNCOUNTED_BYTES and buffered_bytes > stream.taken_bytes:
            more = buffered_bytes + STEP_BYTES - stream.taken_bytes
            if self.share.take(more):
                stream.taken_bytes += more
            else:
                stream.no_room()

    def give_back(self, stream: Stream, size: int = -1) -> None:
        """It keeps so many bytes less; by default, nothing any more."""
        if size < 0:
            size = stream.buffered_bytes
        self.buffered_bytes -= size
        stream.buffered_bytes -= size
        if stream.taken_bytes and stream.buffered_bytes <= UNCOUNTED_BYTES:
            self.share.give(stream.taken_bytes)
            stream.taken_bytes = 0

    def postpone(self, stream: Stream) -> None:
        """The stream has more than this turn of the loop may take: others come first."""
        self.postponed[stream.id] = stream
        self.host.schedule_turn()

    # -- helpers -------------------------------------------------------------------------------

    def _head_frames(self, stream_id: int, block: bytes, *, last: bool) -> bytes:
        if self.head_prefix:
            block = self.head_prefix + block
            self.head_prefix = b""
        flags = frames.END_STREAM if last else 0
        limit = self.max_frame
        if len(block) <= limit:
            return frames.frame(frames.HEADERS, flags | frames.END_HEADERS, stream_id, block)
        parts = [frames.frame(frames.HEADERS, flags, stream_id, block[:limit])]
        for start in range(limit, len(block), limit):
            piece = block[start : start + limit]
            ends = frames.END_HEADERS if start + limit >= len(block) else 0
            parts.append(frames.frame(frames.CONTINUATION, ends, stream_id, piece))
        return b"".join(parts)

    def _wait(self, stream: Stream, payload: bytes | memoryview) -> None:
        if stream.pending is None:
            stream.pending = deque()
            stream.moved_s = 0.0  # the sweep has not seen it wait
        if payload:
            stream.pending.append(memoryview(payload))  # cut into frames without copying the rest
            stream.pending_bytes += len(payload)
            self.unsent_bytes += len(payload)
            self.share.spend(len(payload))
        if stream.send_window > 0:
            self._ready[stream.id] = stream

    def _release(self, stream: Stream) -> None:
        """What the stream holds of the connection's memory."""
        self.unsent_bytes -= stream.pending_bytes
        self.share.give(stream.pending_bytes + stream.taken_bytes + stream.held_bytes)
        stream.taken_bytes = stream.held_bytes = 0
        stream.pending_bytes = 0
        stream.pending = None
        self._ready.pop(stream.id, None)
        self.buffered_bytes -= stream.buffered_bytes
        stream.buffered_bytes = 0

    def _finished(self, stream: Stream) -> None:
        """The last frame of the answer is in ``out``."""
        if self.streams.pop(stream.id, None) is None:
            return
        if not stream.remote_closed:
            # RFC 9113 section 8.1: the rest of the request is not needed.
            self.out.append(frames.rst_stream(stream.id, NO_ERROR))
            self.forget(stream.id)
        self._release(stream)
        stream.closed = True
        stream.wake()
        stream.over()
        if not self.streams:
            self.host.emptied()

    def _wake(self) -> None:
        self.awake = True
        self.host.schedule_flush()
