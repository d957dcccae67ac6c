"""Which models are in memory: budget, pins, idleness, and the way back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace.engine.catalog import ABSENT
from headrace.engine.inflight import FutureReply
from headrace.engine.lobby import Waiting
from headrace.errors import ModelAbsent, ModelLoadError, ModelNotReady
from headrace.lifetimes import ResidencyConfig

from .conftest import Bench, ScriptedModel, request
from .house import MIB, House, until

LAZY = {"residency": ResidencyConfig(load="lazy")}
PINNED = {"residency": ResidencyConfig(pinned=True)}
IDLE = {"residency": ResidencyConfig(idle_unload="20ms")}

Build = Callable[..., House]


@pytest.fixture
async def build(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Build]:
    built: list[House] = []

    def build(budget: int = 0) -> House:
        built.append(House(bench, tmp_path, monkeypatch, memory_budget_bytes=budget * MIB))
        return built[-1]

    yield build
    for house in built:
        await house.manager.close()


@pytest.fixture
def house(build: Build) -> House:
    return build(25)


async def answer(house: House, name: str = "m"):
    """As a frontend does it: waits for a model that is absent."""
    reply = FutureReply(asyncio.get_running_loop())
    asked = request([1, 2], name=name)
    try:
        house.engine.submit(asked, reply)
    except ModelAbsent as absent:
        Waiting(house.engine, absent, asked, reply)
    return await asyncio.wait_for(reply.future, 30)


# -- room ----------------------------------------------------------------------------------------


async def test_the_one_that_is_least_worth_its_memory_makes_room(house: House) -> None:
    for name in ("a", "b"):
        await house.manager.load(house.source(name))
    await house.ask("a", times=3)
    await house.ask("b")  # later, but less often
    unwanted = house.models["b", "1"]

    await house.manager.load(house.source("c"))

    assert house.in_memory() == ["a", "c"]
    assert unwanted.unloaded
    assert house.state("b") == ("UNAVAILABLE", ABSENT)
    assert house.events("b")[-1] == ("gone", "makes room for c")


async def test_where_there_is_room_nobody_leaves(house: House) -> None:
    house.sizes |= {"a": 10, "b": 10, "c": 5}
    for name in ("a", "b", "c"):
        await house.manager.load(house.source(name))
    assert house.in_memory() == ["a", "b", "c"]


async def test_it_comes_back_when_it_is_asked_for(house: House) -> None:
    for name in ("a", "b"):
        await house.manager.load(house.source(name))
    await house.ask("b", times=5)
    await house.manager.load(house.source("c"))
    assert house.in_memory() == ["b", "c"]
    assert (await answer(house, "a")).outputs[0].data.tolist() == [[2, 4]]
    assert house.in_memory() == ["a", "b"]
    assert house.loads.count(("a", "1")) == 2


async def test_what_is_pinned_stays(house: House) -> None:
    await house.manager.load(house.source("a", **PINNED))
    await house.manager.load(house.source("b"))
    await house.ask("b", times=5)
    await house.manager.load(house.source("c"))
    assert house.in_memory() == ["a", "c"]


async def test_an_operator_pins_and_unpins(house: House) -> None:
    await house.manager.load(house.source("a", **PINNED))
    await house.manager.load(house.source("b"))
    house.manager.pin("a", pinned=False)
    house.manager.pin("b", pinned=True)
    await house.manager.load(house.source("c"))
    assert house.in_memory() == ["b", "c"]


async def test_who_cannot_fit_is_told_what_would_have_to_go(house: House) -> None:
    await house.manager.load(house.source("a", **PINNED))
    await house.manager.load(house.source("b"))
    house.sizes["large"] = 20
    with pytest.raises(ModelLoadError, match="does not fit") as caught:
        await house.manager.load(house.source("large"))
    error = caught.value
    assert error.code == "no_memory"
    assert error.message == (
        "model 'large' version 1 does not fit: loading it takes about 20 MiB, 20 MiB of "
        "memory_budget = 25 MiB are in use, and 5 MiB are missing even if 1 models left"
    )
    assert error.hint == "unpin or unload a version 1 (10 MiB, pinned)"
    assert error.details == {
        "model": "large",
        "needed_bytes": 20 * MIB,
        "budget_bytes": 25 * MIB,
        "used_bytes": 20 * MIB,
        "would_go": ["b version 1"],
        "held": ["a version 1"],
    }
    assert house.in_memory() == ["a", "b"]  # nobody left in vain
    assert house.loads == [("a", "1"), ("b", "1")]
    assert house.state("large") == ("UNAVAILABLE", error.message)


async def test_more_than_the_budget_never_fits(house: House) -> None:
    house.sizes["large"] = 26
    with pytest.raises(ModelLoadError, match="does not fit") as caught:
        await house.manager.load(house.source("large"))
    assert caught.value.hint == "raise server.memory_budget"


async def test_requests_of_a_model_that_makes_room_are_answered(house: House) -> None:
    await house.manager.load(house.source("a"))
    await house.manager.load(house.source("b", **PINNED))
    model = house.models["a", "1"]
    model.may_run.clear()
    running = asyncio.create_task(house.ask("a"))
    await asyncio.to_thread(model.entered.acquire, timeout=30)

    loading = asyncio.create_task(house.manager.load(house.source("c")))
    await until(lambda: house.state("a")[0] != "READY")

    assert not model.unloaded
    assert house.loads[-1] == ("b", "1")  # nothing is loaded before there is room
    model.may_run.set()
    assert (await running).outputs[0].data.tolist() == [[2, 4]]
    await loading
    assert model.unloaded
    assert house.in_memory() == ["b", "c"]


async def test_a_step_of_an_ensemble_is_held(house: House) -> None:
    await house.manager.load(house.source("step"))
    await house.manager.load(house.ensemble("e", "step"))
    await house.manager.load(house.source("b"))
    await house.ask("b", times=5)
    await house.manager.load(house.source("c"))
    assert house.in_memory() == ["c", "e", "step"]
    lines = {line["name"]: line for line in house.manager.describe()}
    assert lines["step"]["held"] == "a step of ensemble 'e'"


async def test_what_nobody_could_load_again_is_held(house: House, bench: Bench) -> None:
    sent = bench.serve(ScriptedModel(), name="sent")
    await house.manager.load(house.source("a"))
    house.manager._copy_of(sent)  # as when it is seen for the first time
    sent.size_bytes = 10 * MIB
    await house.manager.load(house.source("b"))
    assert house.in_memory() == ["b", "sent"]


# -- at start ------------------------------------------------------------------------------------


async def test_at_start_what_does_not_fit_stays_absent(house: House) -> None:
    sources = [house.source(name) for name in ("a", "b", "c", "d")]
    assert await house.manager.load_all(sources) == []
    assert len(house.in_memory()) == 2
    (first, *_) = away = sorted({"a", "b", "c", "d"} - {*house.in_memory()})
    assert [house.state(name) for name in away] == [("UNAVAILABLE", ABSENT)] * 2
    await answer(house, first)
    assert first in house.in_memory()


async def test_lazy_models_are_absent_until_they_are_asked_for(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.source("a"), house.source("b", **LAZY)])
    assert house.in_memory() == ["a"]
    assert house.state("b") == ("UNAVAILABLE", ABSENT)
    assert not house.engine.catalog.is_ready("b")
    await asyncio.gather(answer(house, "b"), answer(house, "b"))
    assert house.in_memory() == ["a", "b"]
    assert house.loads.count(("b", "1")) == 1


async def test_an_ensemble_brings_its_steps(build: Build) -> None:
    house = build()
    sources = [house.ensemble("e", "s", "t"), house.source("s", **LAZY), house.source("t")]
    assert await house.manager.load_all(sources) == []
    assert house.in_memory() == ["t"]  # not the ensemble either, though it is not lazy
    assert (await answer(house, "e")).outputs[0].data.tolist() == [[4, 8]]
    assert house.in_memory() == ["e", "s", "t"]


async def test_an_ensemble_whose_step_is_broken_stays_absent(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.ensemble("e", "s"), house.source("s", **LAZY)])

    def refuse(source) -> None:
        raise ModelLoadError("it is broken")

    house.on_load = refuse
    with pytest.raises(ModelNotReady, match="could not be loaded: it is broken"):
        await answer(house, "e")
    assert house.state("e") == house.state("s") == ("UNAVAILABLE", ABSENT)
    house.on_load = lambda _: None
    await house.manager.bring("e", "1")
    assert house.in_memory() == ["e", "s"]


async def test_a_step_that_several_ask_for_is_loaded_once(build: Build) -> None:
    house = build()
    await house.manager.load_all(
        [house.ensemble("e", "s"), house.ensemble("f", "s"), house.source("s", **LAZY)]
    )
    await asyncio.gather(*(answer(house, name) for name in ("e", "f", "s")))
    assert house.loads.count(("s", "1")) == 1
    assert [served.name for served in house.manager._residency.places].count("s") == 1


async def test_what_was_replaced_while_it_was_brought_does_not_come(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.source(**LAZY)])
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(source) -> None:
        if not begun.is_set():
            begun.set()
            assert may_go_on.wait(30)

    house.on_load = hold
    waiting = asyncio.create_task(answer(house))
    await asyncio.to_thread(begun.wait, 30)
    model = house.models["m", "1"] = ScriptedModel()
    await house.manager.replace([house.source()], drain_s=30)
    late = house.models["m", "1"] = ScriptedModel()
    late.compute = lambda x: [x * 100]
    may_go_on.set()
    assert (await waiting).outputs[0].data.tolist() == [[2, 4]]
    assert late.unloaded
    assert not model.unloaded
    assert house.state() == ("READY", "")


async def test_what_was_unloaded_while_it_was_brought_does_not_come(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.source(**LAZY)])
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(source) -> None:
        begun.set()
        assert may_go_on.wait(30)

    house.on_load = hold
    waiting = asyncio.create_task(answer(house))
    await asyncio.to_thread(begun.wait, 30)
    house.manager.forget_absent("m")
    may_go_on.set()
    with pytest.raises(ModelNotReady, match="unloaded"):
        await waiting
    assert house.in_memory() == []
    assert house.models["m", "1"].unloaded


# -- nobody asks -----------------------------------------------------------------------------------


async def test_whom_nobody_asks_leaves_until_somebody_does(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.source("a", **IDLE), house.source("b")])
    model = house.models["a", "1"]
    await until(lambda: model.unloaded)
    await until(lambda: house.state("a") == ("UNAVAILABLE", ABSENT))
    assert house.in_memory() == ["b"]
    await until(lambda: ("gone", "nobody asked for it") in house.events("a"))
    assert (await answer(house, "a")).outputs[0].data.tolist() == [[2, 4]]
    assert house.loads.count(("a", "1")) == 2


async def test_a_model_that_runs_is_not_idle(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.source("a", **IDLE), house.source("b", **IDLE)])
    model, other = house.models["a", "1"], house.models["b", "1"]
    model.may_run.clear()
    running = asyncio.create_task(house.ask("a"))
    await asyncio.to_thread(model.entered.acquire, timeout=30)
    await until(lambda: other.unloaded)  # as long without a request
    assert not model.unloaded
    model.may_run.set()
    await running
    await until(lambda: model.unloaded)


async def test_neither_pins_nor_steps_are_idle(build: Build) -> None:
    house = build()
    pinned = {"residency": ResidencyConfig(idle_unload="20ms", pinned=True)}
    await house.manager.load_all(
        [house.source("p", **pinned), house.source("s", **IDLE), house.source("b", **IDLE)]
    )
    await house.manager.load(house.ensemble("e", "s"))
    await until(lambda: house.models["b", "1"].unloaded)
    assert house.in_memory() == ["e", "p", "s"]


async def test_an_idle_ensemble_leaves_before_its_steps(build: Build) -> None:
    house = build()
    await house.manager.load_all([house.source("s", **IDLE), house.ensemble("e", "s", **IDLE)])
    await until(lambda: house.models["s", "1"].unloaded)
    await until(lambda: house.state("s") == ("UNAVAILABLE", ABSENT))
    assert house.in_memory() == []
    assert house.state("e") == ("UNAVAILABLE", ABSENT)
    assert (await answer(house, "e")).outputs[0].data.tolist() == [[2, 4]]


async def test_operators_see_what_is_where(house: House) -> None:
    await house.manager.load(house.source("a", **PINNED))
    await house.manager.load_all([house.source("b", **LAZY)])
    await house.ask("a")
    lines = {line["name"]: line for line in house.manager.describe()}
    a, b = lines["a"], lines["b"]
    assert (a["state"], a["size_bytes"], a["requests"]) == ("READY", 10 * MIB, 1)
    assert (a["pinned"], a["held"], a["standby"]) == (True, "pinned", False)
    assert (b["state"], b["absent"], b["waiting"]) == ("UNAVAILABLE", True, 0)
    assert "size_bytes" not in b
