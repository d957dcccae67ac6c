"""Which handler answers: inference by the routes here, everything else the ASGI application."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from headrace.engine.lobby import Lobby
from headrace.errors import HeadraceError, ModelAbsent
from headrace.frontends import openai
from headrace.frontends.asgi_bridge import AsgiBridge
from headrace.frontends.codecs import json_guard
from headrace.frontends.exchange import Exchange
from headrace.frontends.generate import GenerateRoute
from headrace.frontends.openai import EmbeddingsRoute
from headrace.frontends.slices import INLINE_BYTES, Slices
from headrace.frontends.status import openai_error_body, v2_body, v2_error_body
from headrace.frontends.v1_predict import PredictRoute
from headrace.frontends.v2_infer import InferRoute
from headrace.limits import HttpLimits

_LOG = logging.getLogger("headrace.http")

_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


SCRAPED = frozenset({b"/metrics", b"/healthz", b"/v2/health/live", b"/v2/health/ready"})
"""What the metrics port answers."""


class Router:
    """The fast lane's handler."""

    def __init__(
        self,
        infer: InferRoute,
        embeddings: EmbeddingsRoute,
        predict: PredictRoute,
        generate: GenerateRoute,
        rest: AsgiBridge,
        *,
        lobby: Callable[[], Lobby | None] = lambda: None,
        max_values: int = HttpLimits().max_values,
        slices: Slices | None = None,
    ) -> None:
        self._infer = infer
        self._embeddings = embeddings
        self._predict = predict
        self._generate = generate
        self._rest = rest
        self._lobby = lobby
        self._max_values = max_values
        self._slices = slices or Slices()

    def handle(self, exchange: Exchange) -> None:
        """Answers the exchange, now or later.

        Raises:
            HeadraceError: the lane answers with it.
        """
        route = exchange.head.route
        try:
            if route is not None:  # an inference request whose head has been here before
                self._infer.handle(exchange, route[0], route[1])
            else:
                self._first(exchange)
        except ModelAbsent as absent:
            self._wait(exchange, absent)

    def _first(self, exchange: Exchange) -> None:
        """Finds the route of a head that was not here before, or that has none to remember."""
        head = exchange.head
        if not head.target.startswith(b"/"):
            head.target = _origin_form(head.target)
        if head.method == b"POST":
            head.route = self._infer.match(head.target)
            if head.route is not None:
                self._infer.handle(exchange, *head.route)
                return
        if len(exchange.body) > INLINE_BYTES:
            self._count(exchange)
        else:
            self._others(exchange)

    def _count(self, exchange: Exchange) -> None:
        """Counts the values of a large body before any route makes objects of them."""

        def counted(_: None) -> None:
            exchange.cancel = None
            try:
                self._others(exchange)
            except ModelAbsent as absent:
                self._wait(exchange, absent)

        def failed(error: Exception) -> None:
            exchange.cancel = None
            if not isinstance(error, HeadraceError):
                _LOG.error("a handler failed", exc_info=error)
            exchange.respond_error(error, _error_body_of(exchange))

        steps = json_guard.check_values(exchange.body, self._max_values)
        exchange.cancel = self._slices.run(steps, counted, failed)

    def _others(self, exchange: Exchange) -> None:
        """Hands on what is no V2 inference."""
        head = exchange.head
        if head.method == b"POST":
            if _is_openai(exchange):
                self._embeddings.handle(exchange)
                return
            generated = self._generate.match(head.target)
            if generated is not None:
                self._generate.handle(exchange, generated)
                return
            model = self._predict.match(head.target)
            if model is not None:
                self._predict.handle(exchange, model)
                return
        self._rest.handle(exchange)

    def _wait(self, exchange: Exchange, absent: ModelAbsent) -> None:
        """The model is not in memory: the whole exchange comes again when it is."""
        lobby = self._lobby()
        if lobby is None:
            raise absent
        body_of = _error_body_of(exchange)

        def refuse(error: BaseException) -> None:
            exchange.cancel = None
            exchange.respond_error(error, body_of)

        def again() -> None:
            exchange.cancel = None
            try:
                self.handle(exchange)
            except HeadraceError as error:
                refuse(error)
            except Exception as error:  # noqa: BLE001 - one request must not end the others
                _LOG.exception("a handler failed")
                refuse(error)

        try:
            exchange.cancel = lobby.wait(absent, again, refuse)
        except HeadraceError as error:
            refuse(error)


class ScrapeRouter:
    """The handler of the metrics port: metrics and health, and nothing that a model does."""

    def __init__(self, rest: AsgiBridge) -> None:
        self._rest = rest

    def handle(self, exchange: Exchange) -> None:
        """Compares bytes, so that no other way to write a path reaches another route."""
        head = exchange.head
        if not head.target.startswith(b"/"):
            head.target = _origin_form(head.target)
        path = head.target.partition(b"?")[0]
        if path in SCRAPED:
            self._rest.handle(exchange)
            return
        text = f"there is no route {path.decode('latin-1')} on the metrics port"
        routes = ", ".join(sorted(found.decode() for found in SCRAPED))
        body = v2_body(text, "route_not_found", hint=f"the routes are {routes}")
        exchange.respond(404, body)


def _is_openai(exchange: Exchange) -> bool:
    return exchange.head.target.partition(b"?")[0] == openai.TARGET


def _error_body_of(exchange: Exchange) -> Callable[[BaseException], bytes]:
    return openai_error_body if _is_openai(exchange) else v2_error_body


def _origin_form(target: bytes) -> bytes:
    """RFC 9112 section 3.2.2: a server must accept ``http://host/path?query`` too.

    The authority ends at the first ``/``, ``?`` or ``#`` (RFC 3986 section 3.2).
    """
    absolute = _AUTHORITY.match(target)
    rest = target if absolute is None else target[absolute.end() :]
    # "*" and the like become paths where nothing answers.
    return rest if rest.startswith(b"/") else b"/" + rest
