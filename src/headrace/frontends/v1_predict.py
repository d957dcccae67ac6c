"""``POST /v1/models/{model}:predict``: rows as JSON objects, through the engine."""

from __future__ import annotations

import logging
import re
from typing import Any, Protocol, cast
from urllib.parse import unquote

from headrace.clock import MonotonicClock
from headrace.engine.engine import Engine
from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError
from headrace.frontends import answer_size
from headrace.frontends.codecs import v1_json
from headrace.frontends.exchange import Exchange
from headrace.frontends.wishes import heed
from headrace.limits import HttpLimits
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns
_PATH = re.compile(rb"/v1/models/([^/?]+):predict(?:\?.*)?\Z", re.DOTALL)


class Records(Protocol):
    """A task with its own idea of a row, such as a table with column names."""

    def from_records(self, records: list[Any]) -> list[Tensor]:
        """Rows -> the task's public inputs."""
        ...

    def to_records(self, outputs: list[Tensor]) -> list[dict[str, Any]]:
        """The task's public outputs -> rows."""
        ...


class PredictRoute:
    """Answers ``:predict`` for every model."""

    def __init__(self, engine: Engine, limits: HttpLimits = HttpLimits()) -> None:  # noqa: B008 - frozen
        self._engine = engine
        self._limits = limits

    @staticmethod
    def match(target: bytes) -> str | None:
        """The model's name, or None where the target is another route."""
        parsed = _PATH.match(target)
        return None if parsed is None else unquote(parsed[1].decode("latin-1"))

    def handle(self, exchange: Exchange, model: str) -> None:
        """Decodes, submits, and answers when the engine has.

        Raises:
            HeadraceError: known at once.
        """
        served = self._engine.catalog.resolve(model)
        instances = v1_json.decode_instances(exchange.body)
        records = _records(served)
        if records is not None:
            inputs = records.from_records(instances)
        else:
            inputs = v1_json.tensors_of(instances, served.metadata.inputs)
        request = InferenceRequest(model, inputs, served.version)
        request.arrived_ns = exchange.arrived_ns
        request.decoded_ns = _now_ns()
        heed(request, exchange.head.headers)
        answer_size.check_values(request, served, self._limits)
        reply = _PredictReply(exchange, served, self._limits)
        exchange.submitted(self._engine.submit(request, reply))


class _PredictReply:
    """Turns the engine's answer into predictions."""

    __slots__ = ("_exchange", "_limits", "_served")

    def __init__(self, exchange: Exchange, served: ServedModel, limits: HttpLimits) -> None:
        self._exchange = exchange
        self._served = served
        self._limits = limits

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        self._exchange.cancel = None
        records = _records(self._served)
        try:
            values = sum(tensor.data.size for tensor in response.outputs)
            answer_size.check_sent(values, self._limits)
            if records is not None:
                body = v1_json.encode_records(records.to_records(response.outputs))
            else:
                body = v1_json.encode_predictions(response.outputs)
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            if not isinstance(error, HeadraceError):
                _LOG.error("an answer could not be encoded", exc_info=error)
            self._exchange.respond_error(error)
            return
        record.encoded_ns = _now_ns()
        self._exchange.respond_json(body)
        record.written_ns = _now_ns()

    def fail(self, error: HeadraceError) -> None:
        self._exchange.cancel = None
        self._exchange.respond_error(error)


def _records(served: ServedModel) -> Records | None:
    """The task, if it has rows of its own."""
    has_rows = hasattr(served.task, "from_records") and hasattr(served.task, "to_records")
    return cast("Records", served.task) if has_rows else None
