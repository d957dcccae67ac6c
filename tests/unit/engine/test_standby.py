"""A newcomer is watched, and what it replaced comes back at once when it does worse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from headrace.errors import HeadraceError, InvalidRequest
from headrace.lifetimes import RolloutConfig

from .conftest import Bench, ScriptedModel
from .house import House, broken, until

# Durations are real here, and those of a fake are noise: a busy machine stretches them many times.
ANY_SPEED = RolloutConfig(guard="8h", min_requests=10, shadow_warm_s=0, max_slowdown=1e9)
GUARDED = {"rollout": ANY_SPEED}
BRIEFLY = {"rollout": msgspec.structs.replace(ANY_SPEED, guard="20ms")}
GUARDED_BY_SPEED = {"rollout": msgspec.structs.replace(ANY_SPEED, max_slowdown=2.0)}
BOTH = pytest.mark.parametrize("version", ["1", "2"], ids=["loaded again", "a new version"])


@pytest.fixture
async def house(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    house = House(bench, tmp_path, monkeypatch)
    yield house
    await house.manager.close()


async def with_a_newcomer(
    house: House, version: str = "1", config: dict = GUARDED
) -> tuple[ScriptedModel, ScriptedModel]:
    """The one that answered ten requests, and the one that answers instead."""
    await house.manager.load(house.source(**config))
    await house.ask(times=10)
    old = house.models.pop(("m", "1"))
    assert await house.manager.replace([house.source(version=version, **config)], drain_s=30) == []
    assert house.manager.stands_by("m")
    return old, house.models["m", version]


@BOTH
async def test_what_was_replaced_stays_in_memory(house: House, version: str) -> None:
    old, new = await with_a_newcomer(house, version)
    assert not old.unloaded
    await house.ask()
    assert len(new.batches) == 1
    assert ("unload", f"version {version} is watched") in house.events()
    if version != "1":
        assert house.state(version="1") == ("UNLOADING", "version 2 is watched")
    assert house.state(version=version) == ("READY", "")


async def test_what_callers_do_wrong_is_neither_failed_nor_answered(house: House) -> None:
    _, new = await with_a_newcomer(house)
    new.compute = refusing
    for _ in range(10):
        await house.fail()
    new.compute = broken
    for _ in range(9):
        await house.fail()
    health = house.engine.catalog.resolve("m").health
    assert (health.answered, health.failed) == (0, 9)  # one more decides
    await house.fail()
    await until(lambda: not house.manager.stands_by("m"))
    reason = "10 of its first 10 requests failed, 0.0% of those of the version before it"
    assert ("recall", reason) in house.events()


def refusing(*_arrays: object) -> list:
    raise InvalidRequest("element 0 of input 'x' is not UTF-8")


@BOTH
async def test_a_newcomer_that_fails_is_taken_back(house: House, version: str) -> None:
    old, new = await with_a_newcomer(house, version)
    new.compute = broken
    asked = len(old.batches)
    for _ in range(10):
        await house.fail()

    await until(lambda: not house.manager.stands_by("m"))
    await house.ask()  # at once: the newcomer may still be leaving

    assert len(old.batches) == asked + 1
    await until(lambda: new.unloaded)
    assert not old.unloaded
    assert house.state(version="1") == ("READY", "")
    reason = "10 of its first 10 requests failed, 0.0% of those of the version before it"
    assert ("recall", reason) in house.events()
    await until(lambda: ("gone", f"taken back: {reason}") in house.events())
    if version != "1":
        assert house.state(version="2") == ("UNAVAILABLE", f"taken back: {reason}")
        assert (await house.fail(version="2")).code == "model_not_ready"


async def test_few_failures_are_not_enough(house: House) -> None:
    old, new = await with_a_newcomer(house, config=BRIEFLY)
    new.compute = broken
    for _ in range(9):
        await house.fail()
    await until(lambda: old.unloaded)
    assert not new.unloaded
    assert house.state() == ("READY", "")


async def test_a_newcomer_that_is_slow_is_taken_back(house: House) -> None:
    old, new = await with_a_newcomer(house, config=GUARDED_BY_SPEED)
    served = house.served()
    for _ in range(50):  # as its batches would report
        served.health.batch(1, 0, 10**12, 1)
    await until(lambda: new.unloaded)
    assert house.served() is not served
    assert any("took longer than" in reason for _, reason in house.events())
    assert not old.unloaded


@BOTH
async def test_a_good_newcomer_stays_and_the_old_one_goes(house: House, version: str) -> None:
    old, new = await with_a_newcomer(house, version, BRIEFLY)
    await house.ask(times=20)
    await until(lambda: old.unloaded)
    assert not house.manager.stands_by("m")
    assert not new.unloaded
    assert house.state(version=version) == ("READY", "")
    await until(lambda: house.events()[-1][0] == "gone")
    if version != "1":
        assert house.state(version="1") == ("UNAVAILABLE", "unloaded")


async def test_without_something_to_compare_with_the_old_one_goes_at_once(house: House) -> None:
    await house.manager.load(house.source(**GUARDED))
    await house.ask(times=9)
    old = house.models.pop(("m", "1"))
    leaving = await house.manager.replace([house.source(version="2", **GUARDED)], drain_s=30)
    assert not house.manager.stands_by("m")
    await asyncio.gather(*leaving)
    assert old.unloaded


async def test_without_a_guard_the_old_one_goes_at_once(house: House) -> None:
    unguarded = {"rollout": RolloutConfig(guard="", min_requests=10, shadow_warm_s=0)}
    await house.manager.load(house.source(**unguarded))
    await house.ask(times=10)
    old = house.models.pop(("m", "1"))
    leaving = await house.manager.replace([house.source(version="2", **unguarded)], drain_s=30)
    await asyncio.gather(*leaving)
    assert old.unloaded


async def test_an_operator_may_go_back_without_a_reason_of_ours(house: House) -> None:
    old, new = await with_a_newcomer(house, "2")
    leaving = house.manager.roll_back("m", "I say so", drain_s=30)
    assert house.served().version == "1"
    await asyncio.gather(*leaving)
    assert new.unloaded
    assert not old.unloaded
    assert house.state(version="2") == ("UNAVAILABLE", "taken back: I say so")
    with pytest.raises(InvalidRequest, match="no earlier version in memory") as caught:
        house.manager.roll_back("m", "again", drain_s=30)
    assert caught.value.code == "nothing_to_roll_back"


async def test_what_runs_in_a_newcomer_that_is_taken_back_is_answered(house: House) -> None:
    _, new = await with_a_newcomer(house, "2")
    new.may_run.clear()
    running = asyncio.create_task(house.ask())
    await asyncio.to_thread(new.entered.acquire, timeout=30)
    leaving = house.manager.roll_back("m", "slow", drain_s=30)
    await house.ask()  # by the old one meanwhile
    assert not new.unloaded
    new.may_run.set()
    assert (await running).model_version == "2"
    await asyncio.gather(*leaving)
    assert new.unloaded


async def test_a_further_version_ends_the_watch(house: House) -> None:
    oldest, middle = await with_a_newcomer(house, "2")
    await house.ask(times=10)
    await house.manager.replace([house.source(version="3", **GUARDED)], drain_s=30)
    await until(lambda: oldest.unloaded)
    assert not middle.unloaded  # it stands by now
    house.models["m", "3"].compute = broken
    for _ in range(10):
        await house.fail()
    await until(lambda: house.served().version == "2")


async def test_a_further_version_that_cannot_be_loaded_changes_nothing(house: House) -> None:
    old, new = await with_a_newcomer(house, "2")

    def refuse(source) -> None:
        raise HeadraceError("it is broken")

    house.on_load = refuse
    with pytest.raises(HeadraceError, match="it is broken"):
        await house.manager.replace([house.source(version="3", **GUARDED)], drain_s=30)
    await house.ask()
    assert len(new.batches) == 1
    assert not old.unloaded
    assert house.manager.stands_by("m")


async def test_the_end_unloads_both(house: House) -> None:
    old, new = await with_a_newcomer(house, "2")
    house.engine.close()
    await house.manager.close()
    assert old.unloaded
    assert new.unloaded


async def test_who_commands_several_processes_is_told_instead(house: House) -> None:
    told: list[tuple[str, str]] = []
    house.manager.on_breach = lambda name, reason: told.append((name, reason))
    _, new = await with_a_newcomer(house)
    new.compute = broken
    for _ in range(10):
        await house.fail()
    await until(lambda: told)
    ((name, reason),) = told
    assert name == "m"
    assert "10 of its first 10 requests failed" in reason
    assert house.manager.stands_by("m")  # until whoever was told decides


async def test_operators_see_who_stands_by(house: House) -> None:
    await with_a_newcomer(house, "2")
    lines = {line["version"]: line for line in house.manager.describe()}
    assert (lines["1"]["standby"], lines["2"]["standby"]) == (True, False)
    assert lines["2"]["default"]
    assert lines["1"]["requests"] == 10
