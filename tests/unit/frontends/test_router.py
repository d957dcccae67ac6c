"""Which request goes where."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.frontends.exchange import Exchange
from headrace.frontends.generate import GenerateRoute
from headrace.frontends.router import Router
from headrace.frontends.v1_predict import PredictRoute
from headrace.frontends.v2_infer import InferRoute
from tests.unit.frontends.lane_bench import HOST, Bench, post


class Routes:
    """Stand where the handlers are, and write down who was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        routes = self

        class Infer:
            match = staticmethod(InferRoute.match)

            def handle(self, exchange: Exchange, model: str, version: str) -> None:
                routes.note(exchange, "infer", model, version)

        class Predict:
            match = staticmethod(PredictRoute.match)

            def handle(self, exchange: Exchange, model: str) -> None:
                routes.note(exchange, "predict", model)

        class Generate:
            match = staticmethod(GenerateRoute.match)

            def handle(self, exchange: Exchange, target: tuple[str, str, bool]) -> None:
                routes.note(exchange, "generate", *target)

        class Embeddings:
            def handle(self, exchange: Exchange) -> None:
                routes.note(exchange, "embeddings")

        class Rest:
            def handle(self, exchange: Exchange) -> None:
                routes.note(exchange, "rest", exchange.head.target)

        self.router = Router(  # type: ignore[arg-type]
            Infer(), Embeddings(), Predict(), Generate(), Rest()
        )

    def note(self, exchange: Exchange, *call: Any) -> None:
        self.calls.append(call)
        exchange.respond_json(b"{}")

    def of(self, *requests: bytes) -> list[tuple[Any, ...]]:
        client = Bench({}, self.router.handle).connect()
        for request in requests:
            client.send(request)
        return self.calls


@pytest.fixture
def routes() -> Routes:
    return Routes()


@pytest.mark.parametrize(
    ("target", "call"),
    [
        (b"/v2/models/m/infer", ("infer", "m", "")),
        (b"/v2/models/m/versions/3/infer", ("infer", "m", "3")),
        (b"/v2/models/m/infer/", ("infer", "m", "")),
        (b"/v2/models/m/infer?a=b/c", ("infer", "m", "")),
        (b"/v2/models/a%20b%2Fc/infer", ("infer", "a b/c", "")),
        (b"/v2/models/%C3%A9/infer", ("infer", "é", "")),
        (b"/v2/models/%ff/infer", ("infer", "\ufffd", "")),
        (b"/v1/embeddings", ("embeddings",)),
        (b"/v1/embeddings?x", ("embeddings",)),
        (b"/v1/models/m:predict", ("predict", "m")),
        (b"/v2/models/m/generate", ("generate", "m", "", False)),
        (b"/v2/models/m/versions/2/generate_stream?x", ("generate", "m", "2", True)),
        (b"/v2/models/m/generate_streams", ("rest", b"/v2/models/m/generate_streams")),
        (b"/v2/models/m/infer/x", ("rest", b"/v2/models/m/infer/x")),
        (b"/v2/models//infer", ("rest", b"/v2/models//infer")),
        (b"/v2/models/m/versions//infer", ("rest", b"/v2/models/m/versions//infer")),
        (b"/x/v2/models/m/infer", ("rest", b"/x/v2/models/m/infer")),
        (b"/", ("rest", b"/")),
        (b"*", ("rest", b"/*")),
        (b"http://h/v2/models/m/infer?q", ("infer", "m", "")),
        (b"https://user@h:80/a?b", ("rest", b"/a?b")),
        (b"http://h", ("rest", b"/")),
        (b"http://h?x=/v2/models/m/infer", ("rest", b"/?x=/v2/models/m/infer")),
        (b"//v2/models/m/infer", ("rest", b"//v2/models/m/infer")),
    ],
)
def test_a_post_goes(routes: Routes, target: bytes, call: tuple[Any, ...]) -> None:
    """Twice, because the second time its head is remembered."""
    assert routes.of(post(target=target), post(target=target)) == [call, call]


@pytest.mark.parametrize("target", [b"/v2/models/m/infer", b"/v1/embeddings"])
def test_only_post_is_inference(routes: Routes, target: bytes) -> None:
    get = b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    assert routes.of(get, get) == [("rest", target)] * 2
