"""``ModelInfer`` and ``ModelStreamInfer``: the hot path of gRPC."""

from __future__ import annotations

import msgspec

from headrace import protos
from headrace.clock import MonotonicClock
from headrace.engine.engine import Engine
from headrace.engine.inflight import Ticket
from headrace.errors import HeadraceError
from headrace.frontends import status
from headrace.frontends.codecs.v2_proto import RequestDecoder, ResponseEncoder, varint
from headrace.frontends.grpc.call import Call, Incoming
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse

_now_ns = MonotonicClock.now_ns

MAX_STREAM_REQUESTS = 256
"""Under way on one stream; above it the client gets no more credit until some are answered."""

DIALECT = b"headrace-dialect"
"""Metadata that chooses what ``ModelStreamInfer`` answers with, which no server can detect:
``mlserver`` for bare ``ModelInferResponse`` messages; Triton's form otherwise."""

_EMPTY_FINAL = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"


class InferMethods:
    """The two methods over one engine."""

    def __init__(self, engine: Engine, decoder: RequestDecoder, encoder: ResponseEncoder) -> None:
        self._engine = engine
        self.decoder = decoder
        self.encoder = encoder

    def infer(self, call: Call, message: bytes) -> None:
        """``ModelInfer``. Raises HeadraceError: known at once."""
        request = self.request_of(call, message, call.arrived_ns)
        ticket = self._engine.submit(request, _Reply(call, request, self.encoder))
        call.cancel = ticket.cancel

    def stream(self, call: Call) -> Incoming:
        """``ModelStreamInfer``."""
        bare = any(name == DIALECT and value == b"mlserver" for name, value in call.metadata)
        return _Stream(self, self._engine, call, bare=bare)

    def request_of(self, call: Call, message: bytes, arrived_ns: int) -> InferenceRequest:
        """A message as a request with its deadline: the call's, or an earlier one of its own."""
        request = self.decoder.decode(message)
        request.arrived_ns = arrived_ns
        request.decoded_ns = _now_ns()
        for name, value in call.metadata:
            if name == b"traceparent":
                request.trace_context = value.decode("latin-1")
        timeout_ns = call.timeout_ns
        if timeout_ns and not 0 < request.timeout_ns < timeout_ns:
            request.timeout_ns = timeout_ns
        return request


class _Reply(msgspec.Struct, eq=False):
    """The one answer of a unary call."""

    call: Call
    request: InferenceRequest
    encoder: ResponseEncoder

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        try:
            message = self.encoder.encode(response, self.request)
        except HeadraceError as error:
            self.call.fail(error)
            return
        record.encoded_ns = _now_ns()
        self.call.finish(message)
        record.written_ns = _now_ns()

    def fail(self, error: HeadraceError) -> None:
        self.call.fail(error)


class _Stream:
    """One ``ModelStreamInfer``: requests as they come, answers as they are ready."""

    def __init__(self, methods: InferMethods, engine: Engine, call: Call, *, bare: bool) -> None:
        self._methods = methods
        self._engine = engine
        self._call = call
        self._bare = bare
        self._tickets: set[Ticket] = set()
        self._half_closed = False
        call.cancel = self._cancel

    def message(self, message: bytes) -> None:
        """One more request. What is wrong with it is its answer; the stream goes on."""
        reply = _StreamReply(self)
        try:
            request = self._methods.request_of(self._call, message, _now_ns())
            reply.request = request
            reply.ticket = self._engine.submit(request, reply)
        except HeadraceError as error:
            reply.fail(error)
            return
        self._tickets.add(reply.ticket)
        if len(self._tickets) >= MAX_STREAM_REQUESTS:
            self._call.pause_reading()

    def half_closed(self) -> None:
        """The client sends no more: the call ends after the last answer."""
        self._half_closed = True
        self._end_if_done()

    def send(self, response: InferenceResponse, request: InferenceRequest) -> None:
        """One answer."""
        encoded = self._methods.encoder.encode(response, request)
        if not self._bare:
            encoded = b"".join((b"\x12", varint(len(encoded)), encoded))  # infer_response = 2
        self._call.send(encoded)

    def send_error(self, error: HeadraceError, request: InferenceRequest | None) -> None:
        """The error in an answer's place; the bare dialect has none, so there the call ends."""
        if self._bare:
            self._cancel()
            self._call.fail(error)
            return
        message = protos.message("inference.ModelStreamInferResponse")()
        message.error_message = status.grpc_answer(error)[1]
        if request is not None:
            message.infer_response.id = request.id
        self._call.send(message.SerializeToString())

    def ended(self, ticket: Ticket | None) -> None:
        """A request has had its last answer."""
        if ticket is not None:
            self._tickets.discard(ticket)
            if len(self._tickets) == MAX_STREAM_REQUESTS - 1:
                self._call.resume_reading()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._half_closed and not self._tickets:
            self._call.end()

    def _cancel(self) -> None:
        tickets, self._tickets = self._tickets, set()
        for ticket in tickets:
            ticket.cancel()


class _StreamReply:
    """The answers to one request of a stream: a ``StreamReply``."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.request: InferenceRequest | None = None
        self.ticket: Ticket | None = None

    def part(self, response: InferenceResponse) -> None:
        """One answer, and not the last."""
        assert self.request is not None
        response.parameters = {**(response.parameters or {}), _FINAL: False}
        self._stream.send(response, self.request)

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """The last one. If it is empty, only a client that asked for it is told."""
        request = self.request
        assert request is not None
        if response.outputs or (request.parameters or {}).get(_EMPTY_FINAL) is True:
            response.parameters = {**(response.parameters or {}), _FINAL: True}
            try:
                self._stream.send(response, request)
            except HeadraceError as error:
                self._stream.send_error(error, request)
        record.encoded_ns = record.written_ns = _now_ns()
        self._done()

    def fail(self, error: HeadraceError) -> None:
        """It ended in another way."""
        self._stream.send_error(error, self.request)
        self._done()

    def _done(self) -> None:
        ticket, self.ticket = self.ticket, None  # or ticket and reply would hold one another
        self._stream.ended(ticket)
