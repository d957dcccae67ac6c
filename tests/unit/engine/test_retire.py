"""A version that leaves: refused at once, drained, unloaded only when nothing runs in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from headrace.engine.models import ModelManager
from headrace.errors import ModelNotReady

from .conftest import ScriptedModel, request


@pytest.fixture
def manager(bench, tmp_path: Path) -> ModelManager:
    return ModelManager(bench.engine, cache_dir=tmp_path, instrument=bench.watcher)


def state(bench, version: str = "1") -> tuple[str, str]:
    (found,) = [s for s in bench.engine.catalog.statuses() if s.version == version]
    return found.state, found.reason


async def test_what_was_admitted_is_answered_and_what_comes_later_is_refused(bench, manager):
    model = ScriptedModel()
    served = bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([1, 2])))
    await asyncio.to_thread(model.entered.acquire, timeout=30)
    waiting = [asyncio.create_task(bench.engine.infer(request([i, i]))) for i in range(3)]
    await asyncio.sleep(0)

    gone = manager.retire(served, drain_s=30)

    assert state(bench) == ("UNLOADING", "")
    with pytest.raises(ModelNotReady):
        await bench.engine.infer(request([1, 2]))
    assert not model.unloaded
    model.may_run.set()
    answers = await asyncio.gather(running, *waiting)
    assert [answer.outputs[0].data.tolist() for answer in answers][1:] == [
        [[2 * i, 2 * i]] for i in range(3)
    ]
    await gone
    assert model.unloaded
    assert state(bench) == ("UNAVAILABLE", "unloaded")


async def test_what_waits_for_too_long_is_refused_and_what_runs_is_waited_for(bench, manager):
    model = ScriptedModel()
    served = bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([1, 2])))
    await asyncio.to_thread(model.entered.acquire, timeout=30)
    waiting = asyncio.create_task(bench.engine.infer(request([3, 4])))
    await asyncio.sleep(0)

    gone = manager.retire(served, drain_s=0.01)

    with pytest.raises(ModelNotReady, match="unloaded while the request waited"):
        await waiting
    assert not model.unloaded
    model.may_run.set()
    assert (await running).outputs[0].data.tolist() == [[2, 4]]
    await gone
    assert model.unloaded


async def test_a_batch_whose_requests_have_all_left_is_waited_for(bench, manager):
    model = ScriptedModel()
    served = bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([1, 2])))
    await asyncio.to_thread(model.entered.acquire, timeout=30)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    gone = manager.retire(served, drain_s=30)
    await asyncio.sleep(0)

    assert not model.unloaded  # its thread is still inside
    model.may_run.set()
    await gone
    assert model.unloaded


async def test_a_version_that_was_replaced_leaves_its_place_to_the_new_one(bench, manager):
    old, new = ScriptedModel(), ScriptedModel()
    new.compute = lambda x: [x * 3]
    before = bench.serve(old)
    bench.serve(new)

    await manager.retire(before, drain_s=30)

    assert old.unloaded
    assert not new.unloaded
    assert state(bench) == ("READY", "")
    answer = await bench.engine.infer(request([1, 2]))
    assert np.array_equal(answer.outputs[0].data, [[3, 6]])


async def test_of_two_versions_the_other_one_answers(bench, manager):
    old, new = ScriptedModel(), ScriptedModel()
    bench.serve(old, version="1")
    newer = bench.serve(new, version="2")
    assert bench.engine.catalog.metadata("m").versions == ("1", "2")

    await manager.retire(newer, drain_s=30)

    await bench.engine.infer(request([1, 2]))
    assert len(old.batches) == 1
    assert bench.engine.catalog.metadata("m").versions == ("1",)


async def test_the_end_does_not_wait_for_who_is_leaving(bench, manager):
    model = ScriptedModel()
    served = bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([1, 2])))
    await asyncio.to_thread(model.entered.acquire, timeout=30)
    manager.retire(served, drain_s=30)

    await manager.close()

    assert model.unloaded
    model.may_run.set()
    await running
