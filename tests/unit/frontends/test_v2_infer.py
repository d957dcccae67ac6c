"""The route of an inference through the real engine: what is left when it is over."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from headrace.config import ModelConfig
from headrace.engine.engine import Engine
from headrace.engine.served import Profile, ServedModel
from headrace.frontends.v2_infer import InferRoute
from headrace.testing.fakes import FakeModel
from headrace.types import ModelMetadata
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


def left_over() -> list[object]:
    """What only the garbage collector can free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
