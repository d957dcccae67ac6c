"""What instruments are told of models that give any number of answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.engine.served import Profile
from headrace.errors import InferenceFailed
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.snapshot import merge
from headrace.telemetry.statistics import model_statistics

from .conftest import ScriptedModel, request


class Repeater(ScriptedModel):
    """Answers a row ``[n, _]`` n times, then tells the end; a row below 0 fails after one."""

    takes_requests = True
    decoupled = True
    may_run_inline = False

    def execute_requests(self, requests, emit) -> None:
        for each in requests:
            count = int(each.arrays[0][0, 0])
            for _ in range(abs(count)):
                emit(each.key, [each.arrays[0]], False)
            if count < 0:
                emit(each.key, InferenceFailed("enough"), True)
            else:
                emit(each.key, None, True)


class Stream:
    """Collects answers."""

    def __init__(self) -> None:
        self.parts = 0
        self.over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def part(self, response) -> None:
        self.parts += 1

    def complete(self, response, record) -> None:
        self.over.set_result(record)

    def fail(self, error) -> None:
        self.over.set_exception(error)


@pytest.fixture
def counted(bench):
    metrics = Metrics()
    bench.engine.watch_with(metrics)
    bench.serve(Repeater(), profile=Profile(max_rows=1, batchable=False))
    return lambda: model_statistics(*merge([metrics.snapshot()]).models)


async def test_answers_are_counted_by_their_place_and_the_request_once(bench, counted):
    for count in (2, 0):
        stream = Stream()
        bench.engine.submit(request([count, 0]), stream)
        record = await stream.over
        assert stream.parts == count
        stamps = [record.admitted_ns, record.batched_ns, record.started_ns, record.finished_ns]
        assert stamps == sorted(stamps)
        assert stamps[0] > 0

    body = counted()
    stats = body["inference_stats"]
    assert stats["success"]["count"] == stats["compute_infer"]["count"] == 2
    assert all(duration["ns"] >= 0 for duration in stats.values())
    responses = body["response_stats"]
    assert {place: each["success"]["count"] for place, each in responses.items()} == {
        "0": 1,
        "1": 1,
        "2": 0,
    }
    assert responses["0"]["empty_response"]["count"] == 1
    assert responses["2"]["empty_response"]["count"] == 1


async def test_an_error_among_the_answers(bench, counted):
    stream = Stream()
    bench.engine.submit(request([-1, 0]), stream)
    with pytest.raises(InferenceFailed):
        await stream.over
    body = counted()
    assert body["response_stats"]["0"]["success"]["count"] == 1
    assert body["response_stats"]["1"]["fail"]["count"] == 1
    assert body["inference_stats"]["fail"]["count"] == 1
    assert body["inference_stats"]["fail"]["ns"] > 0
