"""The same bytes again: exactly when the same answer would be given, and counted as a hit."""

from __future__ import annotations

import asyncio

import pytest

from headrace.config import CacheConfig, ModelConfig
from headrace.engine.engine import Engine
from headrace.engine.served import Profile, ServedModel
from headrace.frontends import answered as module
from headrace.frontends.codecs import v2_json
from headrace.frontends.v2_infer import InferRoute
from headrace.telemetry.instruments import Instrument
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.prometheus import render
from headrace.testing.clock import ManualClock
from headrace.testing.fakes import FakeModel
from headrace.types import ModelMetadata
from tests.unit.frontends.lane_bench import Bench, post

BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'


class Server:
    def __init__(self, monkeypatch, **config) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics(version="test")
        self.engine = Engine(
            instances=1,
            preprocess_threads=1,
            response_cache_bytes=10**6,
            instrument=self.metrics,
            clock=self.clock,
        )
        self.config = {"response_cache": True} | config
        self.model, self.served = self.publish("1")
        route = InferRoute(self.engine)
        self.bench = Bench(loop=asyncio.get_running_loop())
        self.bench.lane.handler = lambda exchange: route.handle(exchange, "m", "")
        self.client = self.bench.connect()
        self.decoded = 0
        decode = v2_json.decode_request

        def counted(*args, **kwargs):
            self.decoded += 1
            return decode(*args, **kwargs)

        monkeypatch.setattr(v2_json, "decode_request", counted)

    def publish(self, version):
        model = FakeModel()
        served = ServedModel(
            metadata=ModelMetadata("m", (version,), "fake", model.inputs, model.outputs),
            version=version,
            loaded=model,
            task=None,
            runtime="fake",
            config=ModelConfig(**self.config),
        )
        self.engine.add_model(served, Profile(max_rows=8, inline_rows=8, batchable=True))
        return model, served

    async def ask(self, body=BODY, *headers: bytes):
        request = post(body)
        for header in headers:
            request = request.replace(b"\r\n", b"\r\n" + header + b"\r\n", 1)
        self.client.send(request)
        for _ in range(6):
            await asyncio.sleep(0)
        return self.client.answers()[-1]

    def close(self) -> None:
        self.bench.lane.abort()
        self.engine.close()

    def count(self, series: str) -> float:
        page = render([self.metrics.snapshot()]).decode()
        return float(
            next(line for line in page.splitlines() if line.startswith(series)).split()[-1]
        )


@pytest.fixture
async def make(monkeypatch):
    made = []

    def one(**config):
        made.append(Server(monkeypatch, **config))
        return made[-1]

    yield one
    for server in made:
        server.close()


async def test_the_third_time_nothing_is_decoded_and_all_is_counted(make):
    server = make()
    answers = [await server.ask() for _ in range(5)]

    assert {answer.body for answer in answers} == {answers[0].body}
    assert {answer.status for answer in answers} == {200}
    assert server.decoded == 2, "the first runs, the second is looked up and remembered"
    assert len(server.model.calls) == 1
    assert server.count('nv_cache_num_hits_per_model{model="m"') == 4
    assert server.count('headrace_requests_total{model="m",version="1",outcome="complete"') == 5


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY.replace(b"4]}", b"5]}"), ()),
        (BODY.replace(b"{", b'{"id": "7", ', 1), ()),
        (BODY, (b"x-tenant-id: a",)),
        (BODY, (b"x-slo-ms: 50",)),
    ],
)
async def test_what_is_not_quite_the_same_is_looked_at(make, body, headers):
    server = make()
    for _ in range(3):
        await server.ask()
    assert server.decoded == 2
    await server.ask(body, *headers)

    assert server.decoded == 3


async def test_not_when_its_time_is_over(make):
    server = make(cache=CacheConfig(ttl="10s"))
    for _ in range(3):
        await server.ask()
    server.clock.advance_ns(11 * 10**9)
    await server.ask()

    assert len(server.model.calls) == 2


async def test_not_when_another_version_answers(make):
    server = make()
    for _ in range(3):
        await server.ask()
    newer, _ = server.publish("2")
    answer = await server.ask()

    assert b'"model_version":"2"' in answer.body
    assert len(newer.calls) == 1


async def test_not_when_its_model_is_gone(make):
    server = make()
    for _ in range(3):
        await server.ask()
    server.engine.remove_model(server.served)

    assert (await server.ask()).status == 404 or (await server.ask()).status == 503


async def test_not_while_single_requests_are_looked_at(make):
    server = make()
    for _ in range(3):
        await server.ask()
    server.engine.watch_with(Instrument())
    await server.ask()
    assert server.decoded == 3
    server.engine.watch_with(server.metrics)
    await server.ask()
    assert server.decoded == 3, "and afterwards as before"


async def test_not_where_bytes_name_a_region_of_memory(make, monkeypatch):
    monkeypatch.setattr(module, "_ELSEWHERE", b"FP32")
    server = make()
    for _ in range(4):
        await server.ask()

    assert server.decoded == 4


async def test_it_is_bounded(make, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES_MAX", 2)
    server = make()
    bodies = [BODY.replace(b"4]}", b"%d]}" % number) for number in range(4)]
    for body in bodies:
        for _ in range(2):
            await server.ask(body)
    before = server.decoded
    await server.ask(bodies[3])
    assert server.decoded == before
    await server.ask(bodies[0])
    assert server.decoded == before + 1
