"""gRPC for a model that is not in memory: it is loaded, and the answers keep their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.config import ModelConfig
from headrace.engine.lobby import Lobby
from headrace.engine.served import Profile, ServedModel
from headrace.errors import ModelLoadError
from headrace.lifetimes import ResidencyConfig
from tests.unit.frontends.grpc.bench import (
    Bench,
    FakeCall,
    count,
    double,
    parts_of,
    values_of,
)

BARE = (b"headrace-dialect", b"mlserver")


class Lazy(Bench):
    """``double`` and ``count`` are absent until the test lets them in."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load = asyncio.Event()
        self.broken = False
        self._away: dict[str, ServedModel] = {}
        self.lobby = self.engine.lobby = Lobby(
            self._bring, lambda *_: ResidencyConfig(), lambda *_: 0
        )

    def take_away(self, name: str) -> None:
        catalog = self.engine.catalog
        self._away[name] = catalog.resolve(name)
        catalog.withdraw(self._away[name])
        catalog.set_absent(name, "1")

    async def _bring(self, name: str, version: str) -> None:
        await self.may_load.wait()
        if self.broken:
            raise ModelLoadError("it is broken")
        self.engine.catalog.publish(self._away[name])


@pytest.fixture
async def bench() -> AsyncIterator[Lazy]:
    bench = Lazy()
    yield bench
    bench.engine.close()


async def until(holds) -> None:
    for _ in range(30_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


async def test_a_unary_call_is_answered_after_the_load(bench: Lazy) -> None:
    bench.take_away("double")
    call = FakeCall()
    bench.methods.infer(call, double(1, 2, 3, 4).SerializeToString())
    assert bench.lobby.waiting("double") == 1
    bench.may_load.set()
    await call.until_over()
    assert call.code == 0
    assert values_of(call.sent[0]) == [2, 4, 6, 8]


async def test_a_unary_call_is_told_that_the_load_failed(bench: Lazy) -> None:
    bench.take_away("double")
    bench.broken = True
    bench.may_load.set()
    call = await bench.infer(double(1, 2, 3, 4))
    assert call.code == 14  # UNAVAILABLE
    assert "could not be loaded: it is broken" in call.text


async def test_a_caller_that_leaves_waits_no_longer(bench: Lazy) -> None:
    bench.take_away("double")
    call = FakeCall()
    bench.methods.infer(call, double(1, 2, 3, 4).SerializeToString())
    call.leave()
    assert bench.lobby.waiting("double") == 0
    bench.may_load.set()
    await until(lambda: bench.engine.catalog.is_ready("double"))
    assert bench.double.calls == []


async def test_a_stream_keeps_the_order_where_the_first_waits(bench: Lazy) -> None:
    first = ServedModel(
        metadata=bench.engine.catalog.metadata("double"),
        version="1",
        loaded=bench.double,
        task=None,
        runtime="fake",
        config=ModelConfig(),
    )
    first.name = "first"
    bench.engine.add_model(first, Profile(max_rows=8, batchable=True))
    bench.take_away("first")
    call, incoming = bench.stream()
    waits = double(1, 2, 3, 4, id="a")
    waits.model_name = "first"
    incoming.message(waits.SerializeToString())
    incoming.message(double(5, 6, 7, 8, id="b").SerializeToString())
    incoming.half_closed()
    await until(lambda: bench.engine.catalog.resolve("double").health.answered)
    assert call.sent == []
    bench.may_load.set()
    await call.until_over()
    assert [part.infer_response.id for part in parts_of(call)] == ["a", "b"]


async def test_a_stream_whose_client_leaves_waits_no_longer(bench: Lazy) -> None:
    bench.take_away("double")
    call, incoming = bench.stream()
    for _ in range(3):
        incoming.message(double(1, 2, 3, 4).SerializeToString())
    assert bench.lobby.waiting("double") == 3
    call.leave()
    assert bench.lobby.waiting("double") == 0


async def test_a_failed_load_is_one_answer_of_the_stream(bench: Lazy) -> None:
    bench.take_away("double")
    bench.broken = True
    bench.may_load.set()
    call, incoming = bench.stream()
    incoming.message(double(1, 2, 3, 4, id="a").SerializeToString())
    await call.until_sent(1)
    assert not call.closed
    incoming.half_closed()
    await call.until_over()
    (part,) = parts_of(call)
    assert "could not be loaded: it is broken" in part.error_message
    assert part.infer_response.id == "a"


@pytest.mark.parametrize("bare", [False, True])
async def test_a_decoupled_model_holds_nobody_up_once_it_is_there(bench: Lazy, bare: bool) -> None:
    """Until then nobody knows that it is decoupled, so what came after it waits."""
    bench.take_away("count")
    bench.count.hold = True
    call, incoming = bench.stream(*([BARE] if bare else []))
    incoming.message(count(0, id="a").SerializeToString())
    incoming.message(double(1, 2, 3, 4, id="b").SerializeToString())
    await until(lambda: bench.engine.catalog.resolve("double").health.answered)
    assert call.sent == []
    bench.may_load.set()
    await call.until_sent(1)  # although the decoupled model has not ended its answers
    await until(lambda: bench.count.held)
    ((emit, key),) = bench.count.held
    emit(key, None, True)
    incoming.half_closed()
    await call.until_over()
    assert len(call.sent) == 1
