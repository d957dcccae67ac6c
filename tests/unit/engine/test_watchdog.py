"""Executions that take too long: what callers are told, and what becomes of instances."""

from __future__ import annotations

import asyncio

import pytest

from headrace.core import overtime
from headrace.core.events import BatchAbandoned
from headrace.core.latency import LatencyModel
from headrace.core.overtime import execution_limit_ns
from headrace.engine.inflight import Ticket
from headrace.engine.instances import BatchJob
from headrace.engine.watchdog import Watchdog
from headrace.errors import InferenceFailed, ModelNotReady

from .conftest import ScriptedModel, request

SECOND = 1_000_000_000
SHORT = {"execution_timeout": "20ms"}


class Interruptible(ScriptedModel):
    """Ends when it is told to; an execution that ends so fails."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupted: list[str] = []

    def interrupt(self, thread: int, reason: str) -> None:
        self.interrupted.append(reason)
        self.may_run.set()


async def test_a_hung_execution_fails_its_requests_and_is_ended(bench):
    model = Interruptible()
    served = bench.serve(model, **SHORT)
    heard: list[str] = []
    served.notice = heard.append
    model.may_run.clear()
    with pytest.raises(InferenceFailed, match="hung: an execution ran for") as caught:
        await bench.engine.infer(request([1, 2]))
    assert caught.value.code == "execution_timeout"
    assert model.interrupted == [caught.value.details["reason"]]
    assert bench.watcher.ends == ["fail:execution_timeout"]
    assert served.health.failed == 1
    assert heard == [caught.value.message]
    answer = await bench.engine.infer(request([1, 2]))
    assert answer.outputs[0].data.tolist() == [[2, 4]]
    assert served.serving


async def test_a_model_whose_instances_are_stuck_is_not_ready_and_others_run(bench):
    stuck, neighbour = ScriptedModel(), ScriptedModel()
    bench.serve(stuck, **SHORT)
    bench.serve(neighbour, name="n")
    catalog = bench.engine.catalog
    stuck.may_run.clear()
    with pytest.raises(InferenceFailed):
        await bench.engine.infer(request([1, 2]))
    assert not catalog.is_ready("m")
    assert [(s.name, s.state) for s in catalog.statuses()] == [
        ("m", "UNAVAILABLE"),
        ("n", "READY"),
    ]
    with pytest.raises(ModelNotReady, match="do not end"):
        await bench.engine.infer(request([1, 2]))
    # As many at one time as there are instances: the stuck thread has been replaced.
    neighbour.concurrency = 2
    held = asyncio.gather(*(bench.engine.infer(request([i, i], name="n")) for i in range(4)))
    assert len(await held) == 4
    assert bench.engine.statistics().instances == 2

    came_back = asyncio.Event()
    catalog.resolve("m").notice = lambda _: came_back.set()
    stuck.may_run.set()
    await came_back.wait()
    assert catalog.is_ready("m")
    await bench.engine.infer(request([1, 2]))


async def test_an_execution_that_does_not_end_when_told_is_stuck_in_the_end(bench, monkeypatch):
    class Deaf(ScriptedModel):
        def interrupt(self, thread: int, reason: str) -> None:
            """Does not listen."""

    monkeypatch.setattr("headrace.engine.watchdog.STOP_NS", 1)
    model = Deaf()
    served = bench.serve(model, **SHORT)
    told = asyncio.Event()
    served.notice = lambda text: told.set() if "cannot be ended" in text else None
    model.may_run.clear()
    with pytest.raises(InferenceFailed):
        await bench.engine.infer(request([1, 2]))
    await told.wait()
    assert not served.serving
    model.may_run.set()


class Desk:
    """A watchdog with a clock that the test moves, and one running batch."""

    def __init__(self, served, limit_ns: int) -> None:
        self.now_ns = 0
        self.looks_at: list[int] = []
        self.driven: list[object] = []
        desk = self

        class Timer:
            def __init__(self, due) -> None:
                self.due = desk.due = due

            def at(self, at_ns: int) -> None:
                desk.looks_at.append(at_ns)

        class Threads:
            ident = staticmethod(lambda _instance: 0)
            replace = staticmethod(lambda instance: desk.driven.append(instance))

        drive = lambda event, _job: self.driven.append(event)  # noqa: E731
        self.ticket = Ticket(
            "m", "1", 1, 0, 1, 1, engine=None, served=served, request=None, reply=None
        )
        dog = Watchdog(lambda: self.now_ns, Timer, lambda *_, **__: limit_ns, drive, Threads())
        dog.began(BatchJob(7, 3, served, [self.ticket], 1, 0, inline=False))

    def look(self, now_ns: int) -> list[object]:
        self.now_ns = now_ns
        self.due()
        return self.driven


async def test_an_answer_of_several_is_progress(bench):
    desk = Desk(bench.serve(ScriptedModel(), execution_timeout="1s"), 10 * SECOND)
    assert desk.looks_at == [SECOND]
    assert desk.look(9 * SECOND) == []
    desk.ticket.answered_ns = 9 * SECOND
    assert desk.look(18 * SECOND) == []
    assert desk.looks_at[-1] == 19 * SECOND
    assert desk.look(19 * SECOND) == [BatchAbandoned(7), 3]  # this one cannot be interrupted


def learnt(taken_ns: int, batches: int) -> LatencyModel:
    cost = LatencyModel()
    for at in range(batches):
        cost.observe(1, taken_ns, at * SECOND)
    return cost


def limit_ns(cost: LatencyModel, *, configured=0, floor=0, wanted=True) -> int:
    return execution_limit_ns(cost, 1, configured_ns=configured, floor_ns=floor, wanted=wanted)


class TestTheRule:
    def test_what_is_configured_holds(self):
        assert limit_ns(learnt(SECOND, 100), configured=7) == 7

    def test_an_honest_long_run_has_many_times_what_is_usual(self):
        minutes = limit_ns(learnt(90 * SECOND, overtime.LEARNT_BATCHES))
        assert minutes >= overtime.FACTOR * 90 * SECOND

    def test_no_automatic_limit_is_below_the_floor(self):
        quick = learnt(1_000, 100)
        assert limit_ns(quick) == overtime.FLOOR_NS
        assert limit_ns(quick, floor=300 * SECOND) == 300 * SECOND
        assert limit_ns(quick, floor=10**18) == overtime.UNLEARNT_NS

    def test_what_is_not_known_has_an_hour_while_somebody_waits(self):
        new = learnt(1_000, overtime.LEARNT_BATCHES - 1)
        assert limit_ns(new) == overtime.UNLEARNT_NS
        assert limit_ns(new, wanted=False) == overtime.FLOOR_NS
