"""``POST /v1/embeddings`` on the fast lane; errors in the OpenAI API's shape."""

from __future__ import annotations

import logging

import numpy as np

from headrace.clock import MonotonicClock
from headrace.engine.engine import Engine
from headrace.errors import HeadraceError, ModelAbsent, ModelNotFound
from headrace.frontends.codecs import openai as codec
from headrace.frontends.exchange import Exchange
from headrace.frontends.openapi import EMBEDDING
from headrace.frontends.status import openai_error_body
from headrace.frontends.wishes import heed
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor

_LOG = logging.getLogger("headrace.http")

_now_ns = MonotonicClock.now_ns

TARGET = b"/v1/embeddings"


class EmbeddingsRoute:
    """Answers through the engine, for models whose task is text embedding."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handle(self, exchange: Exchange) -> None:
        """Decodes, submits, and answers when the engine has."""
        try:
            self._submit(exchange)
        except ModelAbsent:
            raise  # it waits for the model
        except HeadraceError as error:
            exchange.respond_error(error, openai_error_body)

    def _submit(self, exchange: Exchange) -> None:
        asked = codec.decode_embeddings(exchange.body)
        served = self._engine.catalog.resolve(asked.model)
        if served.task is None or served.task.kind != EMBEDDING:
            raise ModelNotFound(
                f"model '{asked.model}' has no OpenAI endpoint: it does not embed texts",
                hint=f"use POST /v2/models/{asked.model}/infer",
                model=asked.model,
                param="model",
            )
        codec.check_dimensions(asked, served.metadata.outputs[0].shape[-1])
        texts = np.empty(len(asked.texts), dtype=object)
        texts[:] = [text.encode() for text in asked.texts]
        tensor = Tensor(served.metadata.inputs[0].name, "BYTES", texts.shape, texts)
        request = InferenceRequest(asked.model, [tensor])
        request.arrived_ns = exchange.arrived_ns
        request.decoded_ns = _now_ns()
        heed(request, exchange.head.headers)
        exchange.submitted(self._engine.submit(request, _EmbeddingsReply(exchange, asked)))


class _EmbeddingsReply:
    """Turns the engine's answer into bytes."""

    __slots__ = ("_asked", "_exchange")

    def __init__(
        self,
        exchange: Exchange,
        asked: codec.EmbeddingsRequest,
    ) -> None:
        self._exchange = exchange
        self._asked = asked

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        self._exchange.cancel = None
        try:
            body = codec.encode_embeddings(
                self._asked.model,
                response.outputs[0].data,
                encoding=self._asked.encoding,
                tokens=record.tokens,
            )
        except Exception as error:  # noqa: BLE001 - or the client would wait for ever
            if not isinstance(error, HeadraceError):
                _LOG.error("an answer could not be encoded", exc_info=error)
            self._exchange.respond_error(error, openai_error_body)
            return
        record.encoded_ns = _now_ns()
        if self._exchange.hold_answer(len(body)):
            self._exchange.respond_json(body)
        else:
            full = self._exchange.connection.share.full()
            self._exchange.respond_error(full, openai_error_body)
        record.written_ns = _now_ns()

    def fail(self, error: HeadraceError) -> None:
        self._exchange.cancel = None
        self._exchange.respond_error(error, openai_error_body)
