"""Due times, tenants and bounds, from the request to the core and back to the caller."""

from __future__ import annotations

import asyncio

import pytest

from headrace.config import QueueConfig, SloConfig, TenantConfig
from headrace.core.events import LearntCost
from headrace.engine.engine import Engine
from headrace.engine.limits import costs_of
from headrace.engine.served import Profile
from headrace.engine.tenants import Tenants
from headrace.errors import DeadlineExceeded, Overloaded
from tests.unit.engine.conftest import Bench, ScriptedModel, request

MS = 1_000_000
SLOW = {0: LearntCost(((1.0, 1000.0 * MS), (8.0, 8000.0 * MS)))}  # a second for each row


def profile(**more) -> Profile:
    return Profile(**{"max_rows": 1, "batchable": True, "costs": SLOW} | more)


async def entered(model: ScriptedModel) -> None:
    await asyncio.to_thread(model.entered.acquire)


async def held(bench: Bench, **config):
    """A model that says it takes a second a row, with one request that runs."""
    model = ScriptedModel()
    model.may_run.clear()
    bench.serve(model, profile=profile(), **config)
    first = asyncio.create_task(bench.engine.infer(request([1, 2])))
    await entered(model)
    return model, first


async def test_who_would_be_late_is_told_so_at_once(bench):
    model, first = await held(bench, slo=SloConfig(p99="1.5s"))

    with pytest.raises(Overloaded, match=r"'m' has too much to do .* within 1500 ms") as caught:
        await bench.engine.infer(request([1, 2]))

    error = caught.value
    assert error.code == "deadline_unreachable"
    assert error.details["wanted_ms"] == 1500
    assert 1500 < error.details["predicted_ms"] < 3000
    assert error.retry_after_ns / MS == pytest.approx(error.details["retry_after_ms"], abs=1e-3)
    model.may_run.set()
    await first
    assert bench.watcher.ends == ["reject:deadline_unreachable", "complete"]


@pytest.mark.parametrize(
    ("said", "kind"),
    [({"slo_ns": 1500 * MS}, Overloaded), ({"timeout_ns": 1500 * MS}, DeadlineExceeded)],
)
async def test_a_requests_own_wish_counts_as_well(bench, said, kind):
    model, first = await held(bench)

    with pytest.raises(kind, match="within 1500 ms") as caught:
        await bench.engine.infer(request([1, 2], **said))
    assert caught.value.code == "deadline_unreachable"
    model.may_run.set()
    await first


async def test_an_answer_after_the_slo_is_given_all_the_same(bench):
    model, first = await held(bench, slo=SloConfig(p99="1ms"))
    await asyncio.sleep(0.002)
    model.may_run.set()

    assert (await first).outputs[0].data.tolist() == [[2, 4]]


async def test_an_slo_that_nothing_can_meet_runs_as_if_there_were_none(bench):
    model, first = await held(bench, slo=SloConfig(p99="1ms"))
    second = asyncio.create_task(bench.engine.infer(request([3, 4])))
    model.may_run.set()

    await asyncio.gather(first, second)
    assert bench.engine.statistics().models[1].hurried == 2


async def test_or_is_refused_where_it_is_strict(bench):
    bench.serve(ScriptedModel(), profile=profile(), slo=SloConfig(p99="1ms", strict=True))

    with pytest.raises(
        DeadlineExceeded, match=r"needs about 1000\S* ms .* SLO of 1 ms is strict"
    ) as caught:
        await bench.engine.infer(request([1, 2]))
    assert caught.value.code == "slo_unattainable"
    assert caught.value.details["predicted_ms"] == pytest.approx(1000, abs=1)


@pytest.mark.parametrize(
    ("bounds", "limit"),
    [
        ({"max_queue_rows": 1}, "max_queue_rows"),
        ({"max_queue_bytes": 15}, "max_queue_bytes"),
        ({"max_queue_size": 1}, "max_queue_size"),
    ],
)
async def test_a_full_queue_says_which_bound(bench, bounds, limit):
    model, first = await held(bench, queue=QueueConfig(**bounds))
    second = asyncio.create_task(bench.engine.infer(request([1, 2])))
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="waiting already") as caught:
        await bench.engine.infer(request([1, 2]))

    assert caught.value.details["limit"] == limit
    assert caught.value.details["allowed"] == bounds[limit]
    assert limit in caught.value.hint
    model.may_run.set()
    await asyncio.gather(first, second)


async def test_in_a_full_queue_a_better_level_takes_the_place_of_a_lower(bench):
    model, first = await held(bench, queue=QueueConfig(max_queue_size=1), priority_levels=2)
    low = asyncio.create_task(bench.engine.infer(request([1, 2], priority=2)))
    await asyncio.sleep(0)
    high = asyncio.create_task(bench.engine.infer(request([1, 2], priority=1)))

    with pytest.raises(Overloaded, match="gave its place in the full queue") as caught:
        await low
    assert caught.value.code == "shed"
    model.may_run.set()
    await asyncio.gather(first, high)


async def test_tenants_take_turns():
    engine = Engine(
        instances=1,
        preprocess_threads=1,
        tenants=Tenants({"a": TenantConfig(), "b": TenantConfig()}),
    )
    bench = Bench()
    bench.engine.close()
    bench.engine = engine
    model = ScriptedModel()
    model.may_run.clear()
    bench.serve(model, profile=profile(costs={}))
    asking = [asyncio.create_task(engine.infer(request([0, 0], tenant="a")))]
    await entered(model)
    asking += [
        asyncio.create_task(engine.infer(request([n, 0], tenant=name)))
        for n, name in enumerate("aaaabb", 1)
    ]
    await asyncio.sleep(0)
    model.may_run.set()
    await asyncio.gather(*asking)

    order = [int(batch[0][0][0]) for batch in model.batches]
    assert sorted(order) == list(range(7))
    assert order.index(5) <= 2, "b's first does not wait for all of a's"
    assert order.index(6) <= 4
    engine.close()


async def test_what_was_learnt_can_be_kept(bench):
    served = bench.serve(ScriptedModel(), profile=profile())
    for _ in range(20):
        await bench.engine.infer(request([1, 2]))

    (cost,) = costs_of(served, bench.engine.statistics()).values()
    assert cost.batches == 20
    assert cost.points[0][1] < 500 * MS, "it is quicker than was measured"
