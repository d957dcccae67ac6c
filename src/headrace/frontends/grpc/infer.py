"""``ModelInfer`` and ``ModelStreamInfer``: the hot path of gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

import msgspec

from headrace import protos
from headrace.clock import MonotonicClock
from headrace.engine.endings import shutting_down
from headrace.engine.engine import Engine
from headrace.engine.inflight import Ticket
from headrace.engine.lobby import Waiting
from headrace.errors import HeadraceError, ModelAbsent, Overloaded, detached
from headrace.frontends import status
from headrace.frontends.answer_size import check_bytes
from headrace.frontends.byte_account import UNCOUNTED_BYTES
from headrace.frontends.codecs import v2_parameters as codec
from headrace.frontends.codecs.v2_proto import RequestDecoder, ResponseEncoder, varint
from headrace.frontends.grpc.call import Call, Incoming, LongCalls
from headrace.frontends.shared_memory import RequestMemory, SharedMemory
from headrace.frontends.wishes import heed, name_caller
from headrace.limits import HttpLimits
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse

_LOG = logging.getLogger("headrace.grpc")

_now_ns = MonotonicClock.now_ns

MAX_STREAM_REQUESTS = 256
"""Under way on one stream; above it the client gets no more credit until some are answered."""

UNREAD_BYTES = 1 << 20
"""Of answers; while a stream has more of them waiting, it is not read from."""

MAX_UNREAD_BYTES = 64 << 20
"""Of the answers of a decoupled model, which gives as many as it likes, to a client that does not
read them: above it the call ends. As much as ``Http2Limits.max_unsent_bytes``."""

DIALECT = b"headrace-dialect"
"""Metadata that chooses what ``ModelStreamInfer`` answers with, which no server can detect:
``mlserver`` for bare ``ModelInferResponse`` messages; Triton's form otherwise."""

_EMPTY_FINAL = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"


class InferMethods:
    """The two methods over one engine.

    Args:
        engine: what answers.
        decoder: messages to requests.
        encoder: responses to messages.
        long_calls: where streams are entered.
        shared: the regions of shared memory that clients registered.
        limits: of answers.
    """

    def __init__(
        self,
        engine: Engine,
        decoder: RequestDecoder,
        encoder: ResponseEncoder,
        long_calls: LongCalls,
        *,
        shared: SharedMemory | None = None,
        limits: HttpLimits = HttpLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._decoder = decoder
        self._encoder = encoder
        self._long_calls = long_calls
        self._shared = shared or SharedMemory()
        make = protos.message("inference.ModelInferResponse")
        self._final = {flag: _final_field(make(), flag=flag) for flag in (False, True)}

    def infer(self, call: Call, message: bytes) -> None:
        """``ModelInfer``. Raises HeadraceError: known at once."""
        if len(message) > UNCOUNTED_BYTES and not call.hold(len(message)):
            raise call.full()
        shared = self.memory_of(call)
        request = self.request_of(call, message, call.arrived_ns, shared)
        reply = _Reply(call, request, self._encoder, shared)
        try:
            self.check_answer(request)
            reply.submitted(self._engine.submit(request, reply))
        except ModelAbsent as absent:
            call.cancel = Waiting(
                self._engine, absent, request, reply, then=reply.submitted_later
            ).cancel

    def stream(self, call: Call) -> Incoming:
        """``ModelStreamInfer``."""
        bare = any(name == DIALECT and value == b"mlserver" for name, value in call.metadata)
        stream = _Stream(self, self._engine, call, bare=bare)
        self._long_calls.add(stream)
        return stream

    def memory_of(self, call: Call) -> RequestMemory:
        """For one request of the call."""
        return RequestMemory(self._shared, call)

    def request_of(
        self,
        call: Call,
        message: bytes,
        arrived_ns: int,
        shared: codec.SharedMemory = codec.NO_SHARED_MEMORY,
    ) -> InferenceRequest:
        """A message as a request with its deadline: the call's, or an earlier one of its own."""
        request = self._decoder.decode(message, shared)
        request.arrived_ns = arrived_ns
        request.decoded_ns = _now_ns()
        if call.metadata:
            heed(request, dict(call.metadata))
        name_caller(request, call)
        if call.timeout_ns:
            left_ns = max(1, call.arrived_ns + call.timeout_ns - arrived_ns)
            if not 0 < request.timeout_ns < left_ns:
                request.timeout_ns = left_ns
        return request

    def check_answer(self, request: InferenceRequest) -> None:
        """Raises HeadraceError where the answer would be too large, or there is no such model."""
        served = self._engine.catalog.resolve(request.model_name, request.model_version)
        check_bytes(request, served, self._limits, binary=True)

    def part_of(
        self,
        response: InferenceResponse,
        request: InferenceRequest,
        shared: RequestMemory,
        *,
        final: bool,
    ) -> bytes:
        """One answer of a stream in Triton's form: a ``ModelStreamInferResponse``."""
        encoded = self._encoder.encode(response, request, self._final[final], shared)
        return b"".join((b"\x12", varint(len(encoded)), encoded))  # infer_response = 2

    def bare_part_of(
        self, response: InferenceResponse, request: InferenceRequest, shared: RequestMemory
    ) -> bytes:
        """The same in MLServer's: a ``ModelInferResponse``."""
        return self._encoder.encode(response, request, shared=shared)


def _final_field(message: Any, *, flag: bool) -> bytes:
    message.parameters[_FINAL].bool_param = flag
    encoded: bytes = message.SerializeToString()
    return encoded


class _Reply(msgspec.Struct, eq=False):
    """The one answer of a unary call."""

    call: Call
    request: InferenceRequest
    encoder: ResponseEncoder
    shared: RequestMemory
    answer_bytes: int = 0  # taken for the answer

    def submitted(self, ticket: Ticket) -> None:
        """Takes the bytes of the answer as far as they are known.

        Raises:
            Overloaded: there is no room; the request is cancelled.
        """
        call = self.call
        call.cancel = ticket.cancel
        if not ticket.done and not self.hold(ticket.rows * ticket.served.answer_row_bytes):
            call.cancel = None
            ticket.cancel()
            raise call.full()
        if self.shared.regions:
            self.shared.follow(ticket)

    def submitted_later(self, ticket: Ticket) -> None:
        """The same, where the model had to be loaded first."""
        try:
            self.submitted(ticket)
        except Overloaded as full:
            self.fail(full)

    def hold(self, size: int) -> bool:
        """Takes what an answer of ``size`` bytes needs beyond what was taken for it already."""
        if size <= UNCOUNTED_BYTES or size <= self.answer_bytes:
            return True
        if not self.call.hold(size - self.answer_bytes):
            return False
        self.answer_bytes = size
        return True

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        try:
            message = self.encoder.encode(response, self.request, shared=self.shared)
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            self.call.fail(_unsendable(error))
            return
        record.encoded_ns = _now_ns()
        if not self.hold(len(message)):
            self.call.fail(self.call.full())
            return
        self.call.finish(message)
        record.written_ns = _now_ns()

    def fail(self, error: HeadraceError) -> None:
        self.call.fail(error)


def _unsendable(error: Exception) -> Exception:
    if not isinstance(error, HeadraceError):
        _LOG.error("an answer could not be encoded", exc_info=error)
    return error


class _Stream:
    """One ``ModelStreamInfer``: requests as they come, answers as they are ready.

    Models with one answer to a request answer in the order of their requests, as from Triton:
    a client may have no other means to tell which is which. Decoupled models do not wait.
    """

    def __init__(self, methods: InferMethods, engine: Engine, call: Call, *, bare: bool) -> None:
        self._methods = methods
        self._engine = engine
        self._call = call
        self._bare = bare
        self._open: set[_StreamReply] = set()  # the engine has not answered them yet
        self._turns: deque[_StreamReply] = deque()  # the client has not got their answers yet
        self._full = False
        self._half_closed = False
        self._draining = False
        self._catching_up: asyncio.Task[None] | None = None
        call.cancel = self._cancel

    # -- what arrives ----------------------------------------------------------------------------

    def message(self, message: bytes) -> None:
        """One more request. What is wrong with it is its answer; the stream goes on."""
        shared = self._methods.memory_of(self._call)
        reply = _StreamReply(self, shared)
        self._turns.append(reply)
        try:
            if self._draining:
                raise shutting_down()
            self._hold(reply, len(message))
            request = self._methods.request_of(self._call, message, _now_ns(), shared)
            reply.request = request
            self._open.add(reply)
            self._submit(request, reply)
        except HeadraceError as error:
            reply.fail(error)
            if self._call.closed:
                return
        if self._is_full():
            self._full = True
            self._call.pause_reading()
        if self._call.pending_bytes > UNREAD_BYTES and self._catching_up is None:
            self._call.pause_reading()
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up())

    def _submit(self, request: InferenceRequest, reply: _StreamReply) -> None:
        def taken(ticket: Ticket) -> None:
            try:
                if not ticket.done:
                    self._hold_answer(reply, ticket.rows * ticket.served.answer_row_bytes)
            except Overloaded as full:
                ticket.cancel()
                reply.fail(full)
                return
            if reply.shared.regions:
                reply.shared.follow(ticket)
            if ticket.served.decoupled and reply in self._turns:
                reply.decoupled = True
                self._turns.remove(reply)
                self._advance()  # it may have had to be loaded, and those behind it waited for that

        try:
            self._methods.check_answer(request)
            ticket = reply.ticket = self._engine.submit(request, reply)
        except ModelAbsent as absent:
            reply.ticket = Waiting(self._engine, absent, request, reply, then=taken)
        else:
            taken(ticket)

    def _hold(self, reply: _StreamReply, size: int) -> None:
        """Takes the bytes of a request or of its answer until that is delivered.

        Raises:
            Overloaded: there is no room.
        """
        if size > UNCOUNTED_BYTES:
            if not self._call.hold(size):
                raise self._call.full()
            reply.held_bytes += size

    def _hold_answer(self, reply: _StreamReply, size: int) -> None:
        self._hold(reply, size - reply.answer_bytes)
        reply.answer_bytes = max(reply.answer_bytes, size)

    def _is_full(self) -> bool:
        return max(len(self._open), len(self._turns)) >= MAX_STREAM_REQUESTS

    async def _catch_up(self) -> None:
        """Takes nothing in while the client does not read what it was answered."""
        await self._call.writable()
        self._catching_up = None
        if not self._full:
            self._call.resume_reading()

    def half_closed(self) -> None:
        """The client sends no more: the call ends after the last answer."""
        self._half_closed = True
        self._end_if_done()

    def drain(self) -> None:
        """The server stops: the call ends after the last answer, whatever its client wants."""
        self._draining = True
        self._end_if_done()

    # -- answers ---------------------------------------------------------------------------------

    def encoded(
        self,
        response: InferenceResponse,
        request: InferenceRequest,
        shared: RequestMemory,
        *,
        final: bool,
    ) -> bytes | Exception:
        """One answer as a message, or why there can be none."""
        methods = self._methods
        try:
            if self._bare:
                return methods.bare_part_of(response, request, shared)
            return methods.part_of(response, request, shared, final=final)
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            return self.told(_unsendable(error), request)

    def waits(self, reply: _StreamReply, answer: bytes | Exception) -> bytes | Exception:
        """An answer that perhaps has to wait for its turn; an error if there is no room for it."""
        try:
            if isinstance(answer, bytes):
                self._hold_answer(reply, len(answer))
        except Overloaded as full:
            return self.told(full, reply.request)
        return answer

    def told(self, error: Exception, request: InferenceRequest | None) -> bytes | Exception:
        """The error as a message; the bare dialect has none: there it ends the call."""
        if self._bare:
            return detached(error)
        message = protos.message("inference.ModelStreamInferResponse")()
        message.error_message = status.grpc_text(detached(error))
        if request is not None:
            message.infer_response.id = request.id
        encoded: bytes = message.SerializeToString()
        return encoded

    def send(self, answer: bytes | Exception) -> None:
        """One answer, now."""
        call = self._call
        if call.pending_bytes > MAX_UNREAD_BYTES:
            answer = Overloaded(
                f"more than {MAX_UNREAD_BYTES} bytes of answers wait for the client to read them",
                code="unread_answers",
            )
        if isinstance(answer, Exception):
            self._cancel()
            call.fail(answer)
        else:
            call.send(answer)

    def ended(self, reply: _StreamReply) -> None:
        """A request has its last answer, which may have to wait for those before it."""
        reply.ticket = None  # or the two would hold one another
        self._open.discard(reply)
        if reply.decoupled:
            self._deliver(reply)
        self._advance()
        self._end_if_done()

    def _advance(self) -> None:
        """Sends what has its answer and its turn."""
        turns = self._turns
        while turns and turns[0].answer is not None:
            self._deliver(turns.popleft())
        if self._full and not self._is_full():
            self._full = False
            if self._catching_up is None:
                self._call.resume_reading()

    def _deliver(self, reply: _StreamReply) -> None:
        answer = reply.answer
        if reply.held_bytes:
            self._call.give(reply.held_bytes)  # what waits to be sent is counted by the transport
            reply.held_bytes = 0
        if answer:
            self.send(answer)

    def _end_if_done(self) -> None:
        if self._open or self._turns:
            return
        if self._half_closed:
            self._call.end()
        elif self._draining:
            self._call.fail(shutting_down())

    def _cancel(self) -> None:
        replies, self._open = self._open, set()
        self._turns.clear()
        for reply in replies:
            ticket, reply.ticket = reply.ticket, None
            if ticket is not None:
                ticket.cancel()


class _StreamReply:
    """The answers to one request of a stream: a ``StreamReply``.

    ``answer`` is the last of them: a message, b"" for none, or what ends the call.
    """

    def __init__(self, stream: _Stream, shared: RequestMemory) -> None:
        self._stream = stream
        self.shared = shared
        self.request: InferenceRequest | None = None
        self.ticket: Ticket | Waiting | None = None
        self.decoupled = False
        self.held_bytes = 0  # of the process's memory, for the request and its answer
        self.answer_bytes = 0  # of these, for the answer
        self.answer: bytes | Exception | None = None

    def part(self, response: InferenceResponse) -> None:
        """One answer, and not the last."""
        assert self.request is not None
        self._stream.send(self._stream.encoded(response, self.request, self.shared, final=False))

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """The last one. If a decoupled model's is empty, only who asked for it is told."""
        request = self.request
        assert request is not None
        wants_empty = not self.decoupled or (request.parameters or {}).get(_EMPTY_FINAL) is True
        if response.outputs or wants_empty:
            answer = self._stream.encoded(response, request, self.shared, final=True)
            self.answer = self._stream.waits(self, answer)
        else:
            self.answer = b""
        record.encoded_ns = record.written_ns = _now_ns()
        self._stream.ended(self)

    def fail(self, error: HeadraceError) -> None:
        """It ended in another way."""
        self.answer = self._stream.told(error, self.request)
        self._stream.ended(self)
