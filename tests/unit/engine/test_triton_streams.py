"""Requests whose answers come one after another: through the engine, from real children."""

from __future__ import annotations

import asyncio
import os

import pytest

from headrace.errors import DeadlineExceeded, HeadraceError, InferenceFailed, InstanceDied

from .triton_bench import TritonBench

REPEAT = """
    for each in requests:
        sender = each.get_response_sender()
        for value in range(number(each)):
            sender.send(numbers(value))
        sender.send(flags=FINAL)
"""

KEEP = """
    for each in requests:
        if number(each) >= 0:
            self.kept[number(each)] = each, each.get_response_sender()
            continue
        sender = each.get_response_sender()
        if number(each) == -1:
            sender.send(numbers(*(k for k, (r, _) in self.kept.items() if r.is_cancelled())))
        elif number(each) == -2:
            for value, (request, other) in self.kept.items():
                other.send(numbers(value))
        elif number(each) == -3:
            for value, (request, other) in self.kept.items():
                other.send(flags=FINAL)
            self.kept.clear()
        elif number(each) == -4:
            os._exit(1)
        sender.send(flags=FINAL)
"""


@pytest.fixture
async def bench(tmp_path):
    bench = TritonBench(tmp_path)
    yield bench
    await bench.close()


async def do(bench, what: int) -> list:
    stream, _ = bench.stream("keep", what)
    return await stream.all()


async def until_cancelled(bench, *values: int) -> None:
    """The model is told beside its executions; so it is asked until it knows."""
    for _ in range(1000):
        if (await do(bench, -1))[0] == list(values):
            return
    pytest.fail("the model was not told")


async def test_any_number_of_answers_of_many_at_a_time(bench):
    served = await bench.load("repeat", REPEAT, decoupled=True)
    streams = [bench.stream("repeat", n)[0] for n in (0, 1, 5, 300, 2)]
    for stream, n in zip(streams, (0, 1, 5, 300, 2), strict=True):
        assert await stream.all() == [[value] for value in range(n)] + [[]]
    await bench.idle(served)


async def test_answers_after_execute_returned(bench):
    await bench.load("keep", KEEP, decoupled=True)
    streams = [bench.stream("keep", value)[0] for value in range(3)]
    for _ in range(2):
        await do(bench, -2)
    assert not any(stream.ended.done() for stream in streams)
    await do(bench, -3)
    for value, stream in enumerate(streams):
        assert await stream.all() == [[value], [value], []]


async def test_a_deadline_counts_after_execute_returned(bench):
    await bench.load("keep", KEEP, decoupled=True)
    short, _ = bench.stream("keep", 1, timeout_ns=50_000_000)
    long, _ = bench.stream("keep", 2)
    (error,) = await short.all()
    assert isinstance(error, DeadlineExceeded)
    await until_cancelled(bench, 1)
    await do(bench, -3)
    assert await long.all() == [[]]
    assert len(short.answers) == 1


async def test_a_deadline_after_the_first_answers(bench):
    code = """
    for each in requests:
        each.get_response_sender().send(numbers(1))
        self.kept[0] = each.get_response_sender()
    """
    await bench.load("once", code, decoupled=True)
    stream, _ = bench.stream("once", 1, timeout_ns=300_000_000)
    first, error = await stream.all()
    assert first == [1]
    assert isinstance(error, DeadlineExceeded)


async def test_a_client_that_leaves_is_told_to_the_model(bench):
    served = await bench.load("keep", KEEP, decoupled=True)
    stream, ticket = bench.stream("keep", 4)
    other, _ = bench.stream("keep", 5)
    await do(bench, -2)
    ticket.cancel()
    ticket.cancel()
    await until_cancelled(bench, 4)
    await do(bench, -2)
    await do(bench, -3)
    assert await other.all() == [[5], [5], []]
    assert stream.answers == [[4]]
    await bench.idle(served)


async def test_a_client_that_leaves_while_it_waits_is_never_run(bench):
    await bench.load("keep", KEEP, decoupled=True)
    stream, ticket = bench.stream("keep", 4)
    ticket.cancel()
    other, _ = bench.stream("keep", 5)
    await do(bench, -2)
    await do(bench, -3)
    assert await other.all() == [[5], []]
    assert stream.answers == []


async def test_a_child_that_dies_fails_all_that_is_open(bench):
    served = await bench.load("keep", KEEP, decoupled=True)
    streams = [bench.stream("keep", value)[0] for value in range(5)]
    await do(bench, -2)
    (error,) = await do(bench, -4)
    assert isinstance(error, InstanceDied)
    for value, stream in enumerate(streams):
        first, error = await stream.all()
        assert first == [value]
        assert isinstance(error, InstanceDied)
    assert await do(bench, -1) == [[], []]
    await bench.idle(served)


async def test_a_batch_that_raises_is_not_run_again(bench):
    """Some of its answers may have been sent already."""
    code = """
    for each in requests:
        each.get_response_sender().send(numbers(number(each)))
    raise ValueError("bad")
    """
    await bench.load("raises", code, decoupled=True)
    streams = [bench.stream("raises", value)[0] for value in range(4)]
    for value, stream in enumerate(streams):
        *answers, error = await stream.all()
        assert answers == [[value]]
        assert isinstance(error, InferenceFailed)


async def test_an_error_among_the_answers(bench):
    code = """
    for each in requests:
        sender = each.get_response_sender()
        sender.send(numbers(1))
        error = pb_utils.TritonError("no more")
        sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
    """
    await bench.load("errs", code, decoupled=True)
    stream, _ = bench.stream("errs", 1)
    first, error = await stream.all()
    assert first == [1]
    assert isinstance(error, HeadraceError)
    assert error.message == "no more"


GATED = """
    def wait(sender):
        with open(os.path.dirname(__file__) + "/gate"):
            sender.send(numbers(1), flags=FINAL)

    for each in requests:
        sender = each.get_response_sender()
        sender.send(numbers(0))
        threading.Thread(target=wait, args=(sender,)).start()
"""


async def test_unload_waits_for_open_requests(bench):
    served = await bench.load("gated", GATED, decoupled=True)
    gate = bench.folder / "gated" / "1" / "gate"
    os.mkfifo(gate)
    stream, _ = bench.stream("gated", 1)
    await asyncio.wait_for(stream.came.wait(), 30)
    retired = bench.manager.retire(served, drain_s=30)
    with pytest.raises(HeadraceError):
        bench.stream("gated", 1)
    assert not retired.done()
    assert stream.answers == [[0]]
    with os.fdopen(os.open(gate, os.O_WRONLY), "w"):
        assert await stream.all() == [[0], [1]]
    await asyncio.wait_for(retired, 30)


async def test_unload_waits_no_longer_than_their_deadline(bench):
    served = await bench.load("keep", KEEP, decoupled=True)
    stream, _ = bench.stream("keep", 1, timeout_ns=400_000_000)
    await do(bench, -1)
    retired = bench.manager.retire(served, drain_s=0)
    (error,) = await stream.all()
    assert isinstance(error, DeadlineExceeded)
    await asyncio.wait_for(retired, 30)
