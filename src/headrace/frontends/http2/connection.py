"""An HTTP/2 connection: the machine on a transport, with the lane's limits and timeouts.

All that is answered in one turn of the loop leaves in one write.

Timeouts are looked at by the lane's sweep, once a second: :meth:`Http2Connection.timed_out` is
called whenever something may have to be looked at, and decides. So nothing on the path of a
request sets a timer or a deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from headrace.frontends.access_log import log_request, shown
from headrace.frontends.byte_account import Share
from headrace.frontends.http2 import frames
from headrace.frontends.http2.faults import CANCEL, NO_ERROR, ConnectionFault
from headrace.frontends.http2.fields import Fields
from headrace.frontends.http2.grpc_head import GrpcMeaning, grpc_meaning
from headrace.frontends.http2.grpc_stream import GrpcStream
from headrace.frontends.http2.http_stream import HttpStream, http_meaning
from headrace.frontends.http2.machine import Machine
from headrace.frontends.http2.streams import Sender, Stream
from headrace.frontends.lane import NEVER, Lane
from headrace.frontends.peer import Peer, peer_of

_JOIN_BYTES = 262_144
"""To copy more into one piece costs more than to give the socket many."""

_ARE_YOU_THERE = b"headrace"
"""Eight bytes that a PING carries."""


class Http2Connection(asyncio.Protocol):
    """One client connection. All methods run on the event loop.

    Args:
        lane: what all connections of the process share; ``lane.grpc`` answers gRPC calls.
        log: one line for every request, where there is an access log.
    """

    def __init__(self, lane: Lane, log: logging.Logger | None = None) -> None:
        self._lane = lane
        self._log = log
        self._counters = lane.counters
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.machine = Machine(lane.http2_limits, lane.limits, lane.counters, self)
        self.share = self.machine.share = Share(lane.account, self.peer)
        self._unread_bytes = 0  # of the share: what waits in the transport
        self.deadline_s = NEVER
        self._ending = False  # nothing is read any more
        self._closed = False
        self._lingering = False  # when it ends
        self._reading = True
        self._turn_scheduled = False
        self._heard = True  # something, since the last look
        self._heard_s = 0.0
        self._idle_since_s = 0.0
        self._opened_count = -1  # when last looked at
        self._head_since_s = 0.0
        self._head: object = None  # what was awaited when last looked at
        self._unsent_bytes = 0
        self._sent_s = 0.0
        self._ends: Peer | None = None  # once it was asked for

    # -- asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client that is known to speak HTTP/2 is here."""
        refusal = self._lane.opened(self)
        self._begin(cast("asyncio.Transport", transport))
        if refusal is not None:
            self.close_if_idle()

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Goes on with a connection whose first bytes turned out to be HTTP/2."""
        transport.set_protocol(self)
        self._begin(transport)
        self.data_received(data)

    def _begin(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.share.spend_on(transport)
        if self._log is not None:
            peer = shown(transport.get_extra_info("peername"))
            self.machine.log = partial(log_request, self._log, peer)
        self._heard_s = self._idle_since_s = self._lane.now_s
        self.deadline_s = self._lane.now_s
        self.machine.start()

    def data_received(self, data: bytes) -> None:
        """Bytes of frames."""
        if self._ending:
            return
        self.machine.turn.count(len(data))
        self._heard = True
        machine = self.machine
        machine.awake = True  # what is answered meanwhile leaves with the rest
        machine.receive(data)
        self._flush()
        if machine.behind:
            self._set_reading()

    def schedule_turn(self) -> None:
        """Others are served before this connection goes on."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._lane.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn_scheduled = False
        machine = self.machine
        if self._ending or machine.held:  # see ``resume_writing``
            return
        self._heard = True
        machine.awake = True
        machine.go_on()
        self._flush()
        self._set_reading()

    def _set_reading(self) -> None:
        """Nothing is read while the client does not read, or has sent more than a turn takes."""
        machine = self.machine
        reading = self._ending or not (machine.held or machine.behind)
        if reading is not self._reading and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more, not even window updates: it is leaving."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """Whatever the client was waiting for is cancelled."""
        self._closed = self._ending = True
        self._lane.closed(self)
        machine = self.machine
        machine.close()
        self.share.close()
        machine.out.clear()
        machine.host = _NOBODY  # or the two would hold one another
        machine.log = None

    def pause_writing(self) -> None:
        """The client does not read: nothing more is taken in from it until it does."""
        self.machine.hold(held=True)
        self._set_reading()
        self._unread_bytes = self._transport.get_write_buffer_size()
        self.share.spend(self._unread_bytes)
        self._unsent_bytes = 0
        self._sent_s = 0.0
        self.deadline_s = self._lane.now_s

    def resume_writing(self) -> None:
        """The client reads again."""
        self.share.give(self._unread_bytes)
        self._unread_bytes = 0
        machine = self.machine
        machine.hold(held=False)
        self._set_reading()
        if machine.behind or machine.postponed:
            self.schedule_turn()

    # -- the machine's host ----------------------------------------------------------------------

    def open_stream(self, machine: Sender, stream_id: int, request: Fields) -> Stream:
        """gRPC by its content type (the protocol's own rule), everything else is HTTP."""
        lane = self._lane
        note = request.note
        if note is None:
            limits = lane.limits
            note = grpc_meaning(request, lane.grpc)
            if note is None:
                note = http_meaning(request, limits.max_headers, limits.max_header_bytes)
            if not isinstance(note, GrpcMeaning) or note.method is not None:
                request.note = note  # an unknown method may be known in a moment, at start-up
        if isinstance(note, GrpcMeaning):
            return GrpcStream(machine, stream_id, note)
        return HttpStream(machine, stream_id, cast("Any", note), lane)

    def schedule_flush(self) -> None:
        """Writes at the end of this turn of the loop."""
        self._lane.loop.call_soon(self._flush)

    def future(self) -> asyncio.Future[None]:
        """Of the lane's loop."""
        return self._lane.loop.create_future()

    def offload(
        self, work: Callable[[], Any], done: Callable[[asyncio.Future[Any]], object]
    ) -> None:
        """Does ``work`` on a thread."""
        self._lane.inflater.start(work, done)

    def peer(self) -> Peer:
        """See ``Connected``."""
        if self._ends is None:
            self._ends = peer_of(self._transport)
        return self._ends

    def emptied(self) -> None:
        """The connection is idle now, or ends with the next write."""
        machine = self.machine
        self.deadline_s = self._lane.now_s
        if machine.draining:
            self._lingering = True  # or a WINDOW_UPDATE under way could cost the last answer
            self._wake()

    def _wake(self) -> None:
        machine = self.machine
        if not machine.awake:
            machine.awake = True
            self.schedule_flush()

    def _flush(self) -> None:
        machine = self.machine
        machine.awake = False
        if self._closed:
            return
        out = machine.out
        if out and not self._transport.is_closing() and not self._ending:
            self.deadline_s = self._lane.now_s
            size = sum(map(len, out))
            self._counters.sent_bytes += size
            if size < _JOIN_BYTES:
                data = out[0] if len(out) == 1 else b"".join(out)
                out.clear()
                self._transport.write(data)
            else:
                pieces = out.copy()
                out.clear()
                self._transport.writelines(pieces)
        if machine.failed or (machine.draining and not machine.streams):
            self._close(linger=machine.failed or self._lingering)

    # -- the connection's own life ---------------------------------------------------------------

    def announce_end(self) -> None:
        """RFC 9113 section 6.8: the client shall open no stream; those on their way are taken."""
        machine = self.machine
        if not (machine.draining or machine.failed):
            machine.out.append(frames.goaway(frames.MAX_STREAM_ID, NO_ERROR))
            self._wake()

    def close_if_idle(self) -> None:
        """No further request, and the end after the last answer."""
        self._lingering = self._lane.draining
        self.machine.drain()

    def abort(self) -> None:
        """Closes at once, whatever is under way."""
        self._transport.abort()

    def timed_out(self) -> None:
        """``deadline_s`` has passed: what must have happened by now?"""
        lane, machine = self._lane, self.machine
        now_s = lane.now_s
        machine.relax()
        if self._heard:
            self._heard = False
            self._heard_s = now_s
        self.deadline_s = now_s  # the next sweep looks again
        if machine.held or self._transport.is_closing():
            self._look_at_writing(now_s)
        elif self._ending:
            self.deadline_s = NEVER  # it lingers
        elif not machine.settled or machine.block is not None:
            self._look_at_head(now_s)
        elif machine.streams:
            self._look_at_streams(now_s)
        else:
            self._look_at_idleness(now_s)

    def _look_at_writing(self, now_s: float) -> None:
        """The client must read some of what it was sent, before long."""
        unsent_bytes = self._transport.get_write_buffer_size()
        if not self._sent_s or unsent_bytes < self._unsent_bytes:
            self._sent_s = now_s
        elif now_s - self._sent_s >= self._lane.limits.write_timeout_s:
            self._counters.reject("write_timeout_s")
            self._transport.abort()
        self._unsent_bytes = unsent_bytes

    def _look_at_head(self, now_s: float) -> None:
        """The preface, or a header block that comes in pieces."""
        head = self.machine.block
        if not self._head_since_s or head is not self._head:
            self._head, self._head_since_s = head, now_s
        elif now_s - self._head_since_s >= self._lane.limits.header_timeout_s:
            self._counters.reject("header_timeout_s")
            self.machine.fail(ConnectionFault(NO_ERROR, "the headers did not arrive in time"))

    def _look_at_streams(self, now_s: float) -> None:
        machine, limits, reject = self.machine, self._lane.limits, self._counters.reject
        for stream in tuple(machine.streams.values()):
            if stream.pending is not None:
                if not stream.moved_s or stream.sent_pending != stream.moves:
                    stream.moved_s, stream.moves = now_s, stream.sent_pending
                elif now_s - stream.moved_s >= limits.write_timeout_s:
                    reject("write_timeout_s")
                    machine.reset(stream, CANCEL)
            elif not stream.remote_closed and not stream.may_be_quiet():
                if not stream.seen_s:
                    stream.seen_s = now_s
                elif now_s - stream.seen_s >= limits.body_timeout_s:
                    stream.timed_out()
        quiet_s = now_s - self._heard_s
        if quiet_s >= 2 * limits.idle_timeout_s:
            reject("idle_timeout_s")
            self._transport.abort()
        elif limits.idle_timeout_s <= quiet_s < limits.idle_timeout_s + 2 * self._lane.sweep_s:
            # Streams may be silent for hours; is anybody there at all?
            machine.out.append(frames.frame(frames.PING, 0, 0, _ARE_YOU_THERE))
            self._flush()

    def _look_at_idleness(self, now_s: float) -> None:
        """Without a request, whatever else it sends."""
        if self._opened_count != self.machine.opened_count:
            self._opened_count = self.machine.opened_count
            self._idle_since_s = now_s
        rest_s = self._idle_since_s + self._lane.limits.idle_timeout_s - now_s
        if rest_s <= 0:
            self.machine.drain()
        else:
            self.deadline_s = now_s + rest_s

    def _close(self, *, linger: bool) -> None:
        """Nothing more will come; what was written is still sent."""
        transport = self._transport
        if self._ending or transport.is_closing():
            return
        self._ending = True
        self._unsent_bytes, self._sent_s = 0, 0.0
        self.deadline_s = self._lane.now_s
        if not linger:
            transport.close()
            return
        self.machine.held = False
        self._set_reading()
        if transport.can_write_eof():
            transport.write_eof()
        self._lane.loop.call_later(self._lane.linger_s, self._lingered)

    def _lingered(self) -> None:
        self.deadline_s = self._lane.now_s  # what was written must be read, before long
        self._transport.close()


class _Nobody:
    """Stands where a connection was."""

    def open_stream(self, *_: object) -> Stream:
        raise AssertionError

    def schedule_flush(self) -> None:
        pass

    def schedule_turn(self) -> None:
        pass

    def future(self) -> asyncio.Future[None]:
        raise AssertionError

    def offload(self, *_: object) -> None:
        pass

    def peer(self) -> Peer:
        return Peer()

    def emptied(self) -> None:
        pass


_NOBODY = _Nobody()
