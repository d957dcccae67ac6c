"""Who asks for a model that is not in memory waits, for one answer, in a room that has an end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.engine import lobby as rooms
from headrace.engine.lobby import Lobby, Waiting
from headrace.errors import (
    HeadraceError,
    ModelAbsent,
    ModelLoadError,
    ModelNotReady,
    Overloaded,
)
from headrace.lifetimes import ResidencyConfig

from .conftest import ScriptedModel, request

LOAD_NS = 7_000_000_000


class Guest:
    """Writes down what it was called with."""

    def __init__(self) -> None:
        self.calls: list[str | HeadraceError] = []

    def again(self) -> None:
        self.calls.append("again")

    def refuse(self, error: HeadraceError) -> None:
        self.calls.append(error)

    @property
    def error(self) -> Any:
        (error,) = self.calls
        return error


class House:
    """A lobby whose loads the test ends."""

    def __init__(self, **terms: Any) -> None:
        self.loads: list[tuple[str, str]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.terms = ResidencyConfig(**terms)
        self.lobby = Lobby(self.bring, lambda *_: self.terms, lambda *_: LOAD_NS)

    async def bring(self, name: str, version: str) -> None:
        self.loads.append((name, version))
        await self.done

    def enter(self, name: str = "m", guest: Guest | None = None):
        guest = guest or Guest()
        return guest, self.lobby.wait(absent(name), guest.again, guest.refuse)

    async def finish(self, error: Exception | None = None) -> None:
        """The load ends, and who waited for it has been told."""
        done, self.done = self.done, asyncio.get_running_loop().create_future()
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
        await turns()


def absent(name: str = "m", version: str = "1") -> ModelAbsent:
    return ModelAbsent("not in memory", model=name, version=version)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(holds) -> None:
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


async def test_all_who_wait_are_called_once_and_one_load_is_enough() -> None:
    house = House()
    guests = [house.enter()[0] for _ in range(3)]
    await turns()
    assert house.loads == [("m", "1")]
    assert house.lobby.waiting("m") == 3
    assert [guest.calls for guest in guests] == [[], [], []]

    await house.finish()

    assert [guest.calls for guest in guests] == [["again"]] * 3
    assert house.lobby.waiting("m") == 0


async def test_models_do_not_wait_for_one_another() -> None:
    house = House()
    house.enter("a")
    house.enter("b")
    await turns()
    assert house.loads == [("a", "1"), ("b", "1")]
    assert (house.lobby.waiting("a"), house.lobby.waiting("c")) == (1, 0)
    house.lobby.close()


async def test_they_are_called_in_the_order_in_which_they_came() -> None:
    house, order = House(), []
    for number in range(3):
        house.lobby.wait(absent(), lambda number=number: order.append(number), order.append)
    await turns()
    await house.finish()
    assert order == [0, 1, 2]


async def test_a_full_room_says_when_to_come_back() -> None:
    house = House(max_waiting=2)
    inside = [house.enter()[0] for _ in range(2)]
    outside = Guest()
    with pytest.raises(Overloaded, match="2 requests wait for it already") as caught:
        house.enter(guest=outside)
    assert caught.value.code == "load_queue_full"
    assert caught.value.retry_after_ns == LOAD_NS
    assert caught.value.details == {"model": "m", "limit": "max_waiting"}

    await turns()
    await house.finish()

    assert outside.calls == []
    assert [guest.calls for guest in inside] == [["again"]] * 2


async def test_a_room_for_nobody_still_loads() -> None:
    house = House(max_waiting=0)
    with pytest.raises(Overloaded):
        house.enter()
    await turns()
    assert house.loads == [("m", "1")]
    await house.finish()


async def test_who_waited_for_long_enough_is_told_and_the_load_goes_on() -> None:
    house = House(max_wait_s=0.01)
    guest, _ = house.enter()
    await until(lambda: guest.calls)

    assert isinstance(guest.error, ModelNotReady)
    assert guest.error.code == "load_wait"
    assert guest.error.retry_after_ns == LOAD_NS
    assert "was not loaded within 0.01 s" in guest.error.message
    assert house.lobby.waiting("m") == 0

    await house.finish()
    assert len(guest.calls) == 1


async def test_a_load_that_fails_is_the_answer_and_not_tried_again_at_once() -> None:
    house = House()
    guest, _ = house.enter()
    await turns()
    await house.finish(ModelLoadError("it is broken", code="broken", hint="mend it"))

    assert isinstance(guest.error, ModelNotReady)
    assert guest.error.message == "model 'm' version 1 could not be loaded: it is broken"
    assert (guest.error.code, guest.error.hint) == ("broken", "mend it")
    assert guest.error.retry_after_ns > 0

    late = Guest()
    with pytest.raises(ModelNotReady, match="could not be loaded: it is broken") as caught:
        house.enter(guest=late)
    assert 0 < caught.value.retry_after_ns <= guest.error.retry_after_ns
    await turns()
    assert house.loads == [("m", "1")]
    assert late.calls == []


async def test_after_a_while_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_FAILED_S", 0.0)
    house = House()
    house.enter()
    await turns()
    await house.finish(ModelLoadError("it is broken"))
    guest, _ = house.enter()
    await turns()
    await house.finish()
    assert house.loads == [("m", "1")] * 2
    assert guest.calls == ["again"]


async def test_whatever_the_load_raises_nobody_waits_in_vain() -> None:
    house = House()
    guest, _ = house.enter()
    await turns()
    await house.finish(FileNotFoundError("model.bin"))
    assert isinstance(guest.error, ModelNotReady)
    assert "FileNotFoundError: model.bin" in guest.error.message
    assert house.lobby.waiting("m") == 0


async def test_who_leaves_is_not_called() -> None:
    house = House(max_waiting=1)
    guest, leave = house.enter()
    await turns()
    leave()
    assert house.lobby.waiting("m") == 0
    other, _ = house.enter()  # there is room again
    await house.finish()
    leave()  # once more is no mistake
    assert guest.calls == []
    assert other.calls == ["again"]


async def test_who_leaves_while_others_are_called_is_not() -> None:
    house = House()
    leaves = []
    house.lobby.wait(absent(), lambda: leaves[0](), lambda _: None)
    guest, leave = house.enter()
    leaves.append(leave)
    await turns()
    await house.finish()
    assert guest.calls == []


async def test_the_end_calls_nobody() -> None:
    house = House(max_wait_s=0.01)
    guest, leave = house.enter()
    await turns()
    house.lobby.close()
    assert house.lobby.waiting("m") == 0
    leave()
    await turns()
    assert house.done.cancelled()
    assert guest.calls == []


class Reply:
    """The one answer of a request."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def complete(self, response, record) -> None:
        self.answer.set_result(response)

    def fail(self, error) -> None:
        self.answer.set_exception(error)


@pytest.fixture
async def house(bench) -> House:
    house = House()
    bench.engine.lobby = house.lobby
    bench.engine.catalog.set_absent("m", "1")
    return house


def wait(bench, reply: Reply, **fields: Any) -> Waiting:
    asked = request([1, 2])
    with pytest.raises(ModelAbsent) as caught:
        bench.engine.submit(asked, reply)
    return Waiting(bench.engine, caught.value, asked, reply, **fields)


async def test_a_request_is_answered_once_its_model_is_there(bench, house) -> None:
    reply, tickets = Reply(), []
    wait(bench, reply, then=tickets.append)
    await turns()
    assert not reply.answer.done()
    bench.serve(ScriptedModel())
    await house.finish()
    assert (await reply.answer).outputs[0].data.tolist() == [[2, 4]]
    assert [ticket.served.name for ticket in tickets] == ["m"]


async def test_a_request_that_is_wrong_is_told_when_its_model_is_there(bench, house) -> None:
    reply = Reply()
    asked = request([1, 2, 3])
    Waiting(bench.engine, absent(), asked, reply)
    bench.serve(ScriptedModel())
    await turns()
    await house.finish()
    with pytest.raises(HeadraceError, match="shape"):
        await reply.answer


async def test_a_model_that_had_to_leave_again_is_waited_for_once_more(bench, house) -> None:
    reply = Reply()
    wait(bench, reply)
    await turns()
    await house.finish()  # loaded, and gone before its turn
    assert not reply.answer.done()
    assert house.lobby.waiting("m") == 1
    bench.serve(ScriptedModel())
    await turns()
    await house.finish()
    assert (await reply.answer).outputs[0].data.tolist() == [[2, 4]]
    assert house.loads == [("m", "1")] * 2


async def test_a_request_that_is_cancelled_leaves_the_room(bench, house) -> None:
    reply = Reply()
    waiting = wait(bench, reply)
    waiting.cancel()
    assert house.lobby.waiting("m") == 0
    model = ScriptedModel()
    bench.serve(model)
    await turns()
    await house.finish()
    assert model.batches == []
    assert not reply.answer.done()


async def test_a_request_that_is_cancelled_after_its_load_is_withdrawn(bench, house) -> None:
    model = ScriptedModel()
    model.may_run.clear()
    reply = Reply()
    waiting = wait(bench, reply)
    served = bench.serve(model)
    await turns()
    await house.finish()
    await asyncio.to_thread(model.entered.acquire, timeout=30)
    waiting.cancel()
    model.may_run.set()
    await until(lambda: not served.busy)
    assert not reply.answer.done()
    assert bench.watcher.ends == ["cancel:cancelled"]


async def test_without_a_lobby_absent_is_absent(bench) -> None:
    with pytest.raises(ModelAbsent):
        Waiting(bench.engine, absent(), request([1, 2]), Reply())
