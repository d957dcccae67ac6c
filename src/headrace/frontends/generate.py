"""``POST /v2/models/{model}[/versions/{version}]/generate`` and ``/generate_stream``.

The second answers with server-sent events, ``data: {...}`` and an empty line for each answer of
the model; an error is an event as well. There is no ``[DONE]``: the answer's end is the end.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from urllib.parse import unquote

from headrace.clock import MonotonicClock
from headrace.engine.engine import Engine
from headrace.errors import HeadraceError, InvalidRequest, Overloaded, detached
from headrace.frontends import answer_size
from headrace.frontends.codecs import generate
from headrace.frontends.exchange import Exchange, head_of
from headrace.frontends.status import v2_error_body
from headrace.frontends.wishes import heed, name_caller
from headrace.limits import HttpLimits
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceResponse

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns

_PATH = re.compile(
    rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/(generate|generate_stream)/?(?:\?.*)?\Z",
    re.DOTALL,
)

MAX_UNSENT_EVENTS = 4096
"""Answers that wait for a client that reads too slowly; a model can be faster than any client."""

MAX_UNSENT_BYTES = 64 << 20
"""Of these answers, as much as ``HttpLimits.max_unsent_bytes``."""

_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))

Target = tuple[str, str, bool]
"""Model, version ("" for none), and whether it is ``generate_stream``."""


class GenerateRoute:
    """Knows which targets these are, and answers them through the engine."""

    def __init__(self, engine: Engine, limits: HttpLimits = HttpLimits()) -> None:  # noqa: B008 - frozen
        self._engine = engine
        self._limits = limits

    @staticmethod
    def match(target: bytes) -> Target | None:
        """What a request target asks for, or None."""
        parsed = _PATH.match(target)
        if parsed is None:
            return None
        return _text(parsed[1]), _text(parsed[2] or b""), parsed[3] == b"generate_stream"

    def handle(self, exchange: Exchange, target: Target) -> None:
        """Decodes, submits, and answers when the engine has.

        Raises:
            HeadraceError: known at once.
        """
        model, version, streams = target
        metadata = self._engine.catalog.metadata(model, version)
        request = generate.decode_request(exchange.body, metadata, version)
        request.arrived_ns = exchange.arrived_ns
        request.decoded_ns = _now_ns()
        heed(request, exchange.head.headers)
        name_caller(request, exchange.connection)
        served = self._engine.catalog.resolve(model, version)
        answer_size.check_values(request, served, self._limits)
        kind = _Stream if streams else _One
        reply = kind(exchange, self._limits)
        exchange.submitted(self._engine.submit(request, reply))


def _encoded(response: InferenceResponse, limits: HttpLimits) -> bytes:
    answer_size.check_sent(sum(tensor.data.size for tensor in response.outputs), limits)
    return generate.encode_response(response)


class _One:
    """Exactly one answer."""

    def __init__(self, exchange: Exchange, limits: HttpLimits) -> None:
        self._exchange = exchange
        self._limits = limits
        self._answers: list[InferenceResponse] = []

    def part(self, response: InferenceResponse) -> None:
        """One of several, unless it stays the only one."""
        if len(self._answers) < 2:  # one too many is enough to know
            self._answers.append(response)

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """The last."""
        if response.outputs:
            self._answers.append(response)
        exchange = self._exchange
        exchange.cancel = None
        try:
            if len(self._answers) != 1:
                raise InvalidRequest(
                    "generate expects model to produce exactly 1 response, use generate stream for "
                    "model that generates various number of responses",
                    code="not_one_response",
                    hint="POST generate_stream",
                )
            body = _encoded(self._answers[0], self._limits)
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            if not isinstance(error, HeadraceError):
                _LOG.error("an answer could not be encoded", exc_info=error)
            exchange.respond_error(error)
            return
        record.encoded_ns = _now_ns()
        exchange.respond_json(body)
        record.written_ns = _now_ns()

    def fail(self, error: HeadraceError) -> None:
        """It ended in another way."""
        self._exchange.cancel = None
        self._exchange.respond_error(error)


class _Stream:
    """Any number of answers, as events. Those that cannot be sent yet wait, up to a limit."""

    def __init__(self, exchange: Exchange, limits: HttpLimits) -> None:
        self._exchange = exchange
        self._limits = limits
        self._begun = False
        self._ended = False
        self._events: deque[bytes] = deque()
        self._held_bytes = 0  # of these
        self._pump: asyncio.Task[None] | None = None

    def part(self, response: InferenceResponse) -> None:
        """One answer, and not the last."""
        self._add(self._event(response))

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """The last one, if it has anything to say."""
        self._exchange.cancel = None
        if response.outputs:
            self._add(self._event(response), last=True)
        else:
            self._add(b"", last=True)
        record.encoded_ns = record.written_ns = _now_ns()

    def fail(self, error: HeadraceError) -> None:
        """An error is an answer of its own before the stream has begun, and an event later."""
        exchange = self._exchange
        exchange.cancel = None
        if self._begun:
            self._add(b"data: " + v2_error_body(detached(error)) + b"\n\n", last=True)
        else:
            exchange.respond_error(error)

    def _event(self, response: InferenceResponse) -> bytes:
        try:
            body = _encoded(response, self._limits)
        except HeadraceError as error:
            body = v2_error_body(detached(error))
        return b"data: " + body + b"\n\n"

    def _add(self, event: bytes, *, last: bool = False) -> None:
        exchange = self._exchange
        if not self._begun:
            self._begin()
        full = False
        if event:
            self._events.append(event)
            full = len(self._events) > MAX_UNSENT_EVENTS or not self._hold(len(event))
        self._ended = self._ended or last
        if full and exchange.cancel is not None:
            cancel, exchange.cancel = exchange.cancel, None
            cancel()
            error = Overloaded(
                "the client reads more slowly than the model answers",
                code="slow_client",
                limit="MAX_UNSENT_EVENTS",
            )
            self._events.append(b"data: " + v2_error_body(error) + b"\n\n")
            self._ended = True
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._send())

    def _hold(self, size: int) -> bool:
        """Counts an event that waits; False if there are too many bytes of them."""
        if self._held_bytes + size > MAX_UNSENT_BYTES or not self._exchange.hold(size):
            return False
        self._held_bytes += size
        return True

    def _begin(self) -> None:
        self._begun = True
        exchange = self._exchange
        chunked = exchange.chunked = not exchange.head.http_1_0
        if not chunked:
            exchange.keep_alive = False  # the end of the connection is the end of the answer
        exchange.connection.begin(exchange, 200, head_of(_EVENTS, None, chunked=chunked))

    async def _send(self) -> None:
        exchange, events = self._exchange, self._events
        connection = exchange.connection
        while events and not connection.closed:
            await connection.writable()
            if connection.closed or not events:
                break
            data = b"".join(events)
            events.clear()
            exchange.give(self._held_bytes)
            self._held_bytes = 0
            if not self._ended:
                connection.send(self._exchange, data, last=False)
                continue
            self._ended = False
            connection.send(self._exchange, data, last=True)
        self._pump = None
        if self._ended and not connection.closed:
            self._ended = False
            connection.send(self._exchange, b"", last=True)


def _text(segment: bytes) -> str:
    return unquote(segment.decode("latin-1"), errors="replace")
