"""``POST /v2/models/{model}[/versions/{version}]/infer``: the hot path, without a framework."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from urllib.parse import unquote

import msgspec
import numpy as np

from headrace.clock import MonotonicClock
from headrace.engine.engine import Engine
from headrace.engine.inflight import Ticket
from headrace.engine.lobby import Waiting
from headrace.errors import HeadraceError, InvalidRequest, ModelAbsent, Overloaded
from headrace.frontends.answer_size import check_bytes, too_large
from headrace.frontends.answered import Answered, Name
from headrace.frontends.codecs import v2_binary, v2_json, v2_json_answer, v2_json_large
from headrace.frontends.exchange import JSON_TYPE, Exchange, head_of
from headrace.frontends.shared_memory import RequestMemory, SharedMemory
from headrace.frontends.slices import INLINE_BYTES, Slices, Steps
from headrace.frontends.wishes import SLO, TENANT, heed, name_caller
from headrace.limits import HttpLimits
from headrace.telemetry.instruments import RequestRecord
from headrace.types import DTYPE_OF, DYNAMIC, InferenceRequest, InferenceResponse, Tensor

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns

_PATH = re.compile(rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer/?(?:\?.*)?\Z", re.DOTALL)
_JSON_SIZE = b"inference-header-content-length"
_BINARY_TYPE = b"application/octet-stream"

_PARTS_SENT = 16
"""Parts of a large answer that go out together: a few hundred KiB."""

_OBJECT_WORDS = 6
"""A reference, and an object of bytes with its head: six words of eight bytes at least."""


class InferRoute:
    """Knows which targets are inference requests, and answers them through the engine."""

    def __init__(
        self,
        engine: Engine,
        shared: SharedMemory | None = None,
        limits: HttpLimits = HttpLimits(),  # noqa: B008 - frozen
        slices: Slices | None = None,
    ) -> None:
        self._engine = engine
        self._shared = shared or SharedMemory()
        self.answered = Answered(engine)
        self.limits = limits
        self.slices = slices or Slices()

    @staticmethod
    def match(target: bytes) -> tuple[str, str] | None:
        """Model name and version ("" for none) of a request target, or None."""
        parsed = _PATH.match(target)
        return None if parsed is None else (_text(parsed[1]), _text(parsed[2] or b""))

    def handle(self, exchange: Exchange, model: str, version: str) -> None:
        """Decodes, submits, and answers when the engine has.

        Raises:
            HeadraceError: known at once.
        """
        body, headers = exchange.body, exchange.head.headers
        size = headers.get(_JSON_SIZE)
        name = (model, version, headers.get(TENANT), body)
        json_size = None if size is None else _json_size(size)
        shared = RequestMemory(self._shared, exchange.connection)
        if (len(body) if json_size is None else json_size) > INLINE_BYTES:
            self._decode_later(exchange, name, json_size, shared)
            return
        if size is None and self.answered and headers.get(SLO) is None:
            answer = self.answered.find(name, exchange.arrived_ns)
            if answer is not None:
                exchange.respond_json(answer)
                return
        if json_size == 0:
            request = self._raw_request(body, model, version)
        else:
            request = v2_json.decode_request(
                body,
                model_name=model,
                model_version=version,
                json_size=json_size,
                shared=shared,
                limits=self.limits,
            )
        self._submit(self._reply(exchange, name, request, shared))

    def _submit(self, reply: _InferReply) -> None:
        """Raises HeadraceError where the answer would be too large, too."""
        model, version = reply.name[:2]
        check_bytes(reply.request, self._engine.catalog.resolve(model, version), self.limits)
        reply.submitted(self._engine.submit(reply.request, reply))

    def _reply(
        self, exchange: Exchange, name: Name, request: InferenceRequest, shared: RequestMemory
    ) -> _InferReply:
        """What answers."""
        request.arrived_ns = exchange.arrived_ns
        request.decoded_ns = _now_ns()
        heed(request, exchange.head.headers)
        name_caller(request, exchange.connection)
        if exchange.held_bytes and exchange.head.headers.get(_JSON_SIZE) is None:
            exchange.hold_tensors(_decoded_bytes(request))
        return _InferReply(exchange, request, shared, self, name)

    def _decode_later(
        self, exchange: Exchange, name: Name, json_size: int | None, shared: RequestMemory
    ) -> None:
        """Decodes and submits in slices, for a model that is there."""
        model, version = name[:2]
        self._engine.catalog.resolve(model, version)
        steps = v2_json_large.decode_steps(
            exchange.body,
            model_name=model,
            model_version=version,
            json_size=json_size,
            shared=shared,
            limits=self.limits,
        )

        def done(request: InferenceRequest) -> None:
            reply = self._reply(exchange, name, request, shared)
            try:
                self._submit(reply)
            except ModelAbsent as absent:  # it has left in the meantime
                exchange.cancel = Waiting(
                    self._engine, absent, request, reply, then=reply.submitted_later
                ).cancel

        exchange.cancel = self.slices.run(steps, done, partial(fail, exchange))

    def _raw_request(self, body: bytes, model: str, version: str) -> InferenceRequest:
        """The whole body is the one input (binary extension, "raw binary request")."""
        inputs = self._engine.catalog.metadata(model, version).inputs
        if len(inputs) != 1:
            raise InvalidRequest(
                f"Raw binary request must contain only 1 input, model '{model}' has {len(inputs)}",
                code="wrong_binary_header",
                hint="send a JSON header and its length in Inference-Header-Content-Length",
            )
        spec = inputs[0]
        open_axes = [axis for axis, size in enumerate(spec.shape) if size == DYNAMIC]
        if spec.datatype == "BYTES":
            shape = tuple(1 if size == DYNAMIC else size for size in spec.shape)
            data = np.empty(shape, dtype=object)
            data[...] = body
            return _one_input(model, version, Tensor(spec.name, "BYTES", shape, data))
        fixed = DTYPE_OF[spec.datatype].itemsize
        for size in spec.shape:
            fixed *= size if size != DYNAMIC else 1
        # One open dimension follows from the size; more than one cannot be told apart.
        rows = len(body) // fixed if fixed else 0
        shape = tuple(
            (rows if axis == open_axes[0] else 1) if size == DYNAMIC else size
            for axis, size in enumerate(spec.shape)
        )
        array = v2_binary.decode(
            body, 0, len(body), name=spec.name, datatype=spec.datatype, shape=shape
        )
        return _one_input(model, version, Tensor(spec.name, spec.datatype, shape, array))


class _InferReply(msgspec.Struct, eq=False):
    """Turns the engine's answer into bytes."""

    exchange: Exchange
    request: InferenceRequest
    shared: RequestMemory
    route: InferRoute
    name: Name

    def submitted(self, ticket: Ticket) -> None:
        """The request is in the engine. Raises Overloaded: there is no room for the answer."""
        self.exchange.submitted(ticket)
        if self.shared.regions:
            self.shared.follow(ticket)

    def submitted_later(self, ticket: Ticket) -> None:
        """The same, where the model had to be loaded first."""
        try:
            self.submitted(ticket)
        except Overloaded as full:
            self.fail(full)

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        exchange, route = self.exchange, self.route
        exchange.cancel = None
        try:
            if v2_json_answer.is_large(response.outputs):
                steps = v2_json_answer.encode_steps(
                    response, self.request, self.shared, route.limits.max_answer_bytes
                )
                exchange.cancel = route.slices.run(steps, self._send, partial(fail, exchange))
                return
            body, blobs = v2_json_answer.encode_response(response, self.request, self.shared)
            if len(body) > route.limits.max_answer_bytes:  # few texts, but long ones
                raise too_large(route.limits.max_answer_bytes)
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            fail(exchange, error)
            return
        record.encoded_ns = _now_ns()
        if blobs:
            exchange.respond(
                200,
                b"".join([body, *blobs]),
                content_type=_BINARY_TYPE,
                headers=((_JSON_SIZE, b"%d" % len(body)),),
            )
        else:
            exchange.respond_json(body)
            kept = record.kept if isinstance(record, Ticket) else None
            if (
                kept is not None
                and exchange.head.headers.get(_JSON_SIZE) is None
                and not self.shared.regions  # equal bytes ask about what is in them then
            ):
                route.answered.keep(self.name, kept, body)
        record.written_ns = _now_ns()

    def _send(self, answer: tuple[list[bytes], Sequence[bytes]]) -> None:
        exchange = self.exchange
        steps = _send_steps(exchange, *answer)
        exchange.cancel = self.route.slices.run(steps, lambda _: None, partial(_cut_off, exchange))

    def fail(self, error: HeadraceError) -> None:
        self.exchange.cancel = None
        self.exchange.respond_error(error)


def _send_steps(exchange: Exchange, parts: list[bytes], blobs: Sequence[bytes]) -> Steps[None]:
    """200 with JSON and the binary tensors that follow it, without a copy of all of it."""
    size = sum(map(len, parts))
    fields = [(b"content-type", JSON_TYPE)]
    if blobs:
        fields = [(b"content-type", _BINARY_TYPE), (_JSON_SIZE, b"%d" % size)]
    head = head_of(fields, size + sum(map(len, blobs)))
    connection = exchange.connection
    connection.begin(exchange, 200, head)
    for start in range(0, len(parts), _PARTS_SENT):
        yield
        connection.send(exchange, b"".join(parts[start : start + _PARTS_SENT]), last=False)
    for blob in blobs:
        yield
        connection.send(exchange, blob, last=False)
    exchange.cancel = None
    connection.send(exchange, b"", last=True)


def _cut_off(exchange: Exchange, error: Exception) -> None:
    """The answer has begun, so it can only be cut off."""
    exchange.cancel = None
    _LOG.error("an answer could not be sent", exc_info=error)
    exchange.connection.abort()


def fail(exchange: Exchange, error: Exception) -> None:
    """Answers with the error; one that is not foreseen is written to the log."""
    exchange.cancel = None
    if not isinstance(error, HeadraceError):
        _LOG.error(
            "a request could not be decoded, or its answer could not be encoded", exc_info=error
        )
    exchange.respond_error(error)


def _decoded_bytes(request: InferenceRequest) -> int:
    """Of tensors that were made from JSON; an element of BYTES is an object of its own."""
    return sum(
        [
            tensor.data.nbytes * (_OBJECT_WORDS if tensor.datatype == "BYTES" else 1)
            for tensor in request.inputs
        ]
    )


def _one_input(model: str, version: str, tensor: Tensor) -> InferenceRequest:
    """Who sends raw bytes wants raw bytes back."""
    return InferenceRequest(model, [tensor], version, parameters={"binary_data_output": True})


def _json_size(value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        raise InvalidRequest(
            "Inference-Header-Content-Length must be a number of bytes, got "
            f"{value.decode('latin-1')!r}",
            code="wrong_binary_header",
        )
    return int(value)


def _text(segment: bytes) -> str:
    return unquote(segment.decode("latin-1"), errors="replace")
