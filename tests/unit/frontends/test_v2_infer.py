"""The route of an inference through the real engine: what is left when it is over."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from headrace.config import ModelConfig
from headrace.engine.catalog import Catalog
from headrace.engine.engine import Engine
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.served import Profile, ServedModel
from headrace.errors import ModelAbsent
from headrace.frontends import v2_infer
from headrace.frontends.codecs import v2_json_answer
from headrace.frontends.v2_infer import InferRoute
from headrace.testing.fakes import FakeModel
from headrace.types import InferenceRequest, ModelMetadata
from tests.unit.frontends.lane_bench import Bench, Client, post

ASK = post(
    b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'
)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    engine = Engine(instances=1, preprocess_threads=1)
    model = FakeModel()
    served = ServedModel(
        metadata=ModelMetadata("m", ("1",), "fake", model.inputs, model.outputs),
        version="1",
        loaded=model,
        task=None,
        runtime="fake",
        config=ModelConfig(),
    )
    engine.add_model(served, Profile(max_rows=8, inline_rows=8, batchable=True))
    route = InferRoute(engine)
    bench = Bench(loop=asyncio.get_running_loop())
    bench.lane.handler = lambda exchange: route.handle(exchange, "m", "")
    yield bench.connect()
    bench.lane.abort()
    engine.close()


async def a_turn_or_two() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_an_answer_leaves_nothing_for_the_garbage_collector(client: Client) -> None:
    client.send(ASK)  # the first of a kind is remembered in places
    await a_turn_or_two()
    gc.collect()
    for _ in range(20):
        client.send(ASK * 3)
        await a_turn_or_two()

    assert gc.collect() == 0
    assert [answer.status for answer in client.answers()] == [200] * 61


async def test_a_client_that_leaves_takes_its_requests_along(client: Client) -> None:
    other = client.bench.connect()
    client.send(ASK)
    await a_turn_or_two()
    gc.collect()
    other.send(ASK * 3)
    other.connection.connection_lost(None)  # in this very turn: before any answer
    await a_turn_or_two()

    kinds = {type(garbage).__name__ for garbage in left_over()}
    assert not kinds & {"Ticket", "Exchange", "_InferReply", "InferenceRequest"}


async def test_the_trace_context_is_taken_along(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    submit = Engine.submit

    def watched(engine: Engine, request: InferenceRequest, reply: Reply) -> Ticket:
        seen.append(request.trace_context)
        return submit(engine, request, reply)

    monkeypatch.setattr(Engine, "submit", watched)
    client.send(ASK + ASK.replace(b"\r\n", b"\r\ntraceparent: 00-1-2-01\r\n", 1))
    await a_turn_or_two()

    assert seen == ["", "00-1-2-01"]


async def test_an_answer_that_cannot_be_encoded_is_told(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(v2_json_answer, "encode_response", broken)
    client.send(ASK)
    await a_turn_or_two()

    (answer,) = client.answers()
    assert answer.status == 500
    assert b"no such thing" not in answer.body
    assert "could not be encoded" in caplog.text


async def test_a_large_request_waits_for_a_model_that_left_while_it_was_parsed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ModelAbsent("not in memory", model="m", version="1")
    waited: list[object] = []
    resolve = Catalog.resolve

    def leaving(catalog: Catalog, name: str, version: str = "") -> ServedModel:
        monkeypatch.setattr(Catalog, "resolve", gone)
        return resolve(catalog, name, version)

    def gone(*_: object) -> ServedModel:
        raise absent

    class Waits:
        cancel = None

        def __init__(self, engine: Engine, absent: ModelAbsent, *_: object, **__: object) -> None:
            waited.append(absent)

    monkeypatch.setattr(v2_infer, "Waiting", Waits)
    monkeypatch.setattr(Catalog, "resolve", leaving)
    client.send(post(ASK.partition(b"\r\n\r\n")[2] + b" " * 70_000))
    for _ in range(10):
        await asyncio.sleep(0)

    assert waited == [absent]
    assert not client.answers()


def left_over() -> list[object]:
    """What only the garbage collector can free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
