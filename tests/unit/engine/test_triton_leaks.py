"""What must not grow: descriptors, threads, processes and garbage."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from headrace.errors import InferenceFailed, InstanceDied

from .triton_bench import TritonBench

CALLS = """
    if self.kept.get("garbage") is None:
        import gc
        gc.collect()
        gc.freeze()
        gc.disable()
        self.kept["garbage"] = gc.collect
    if number(requests[0]) == -1:
        return [numbers(self.kept["garbage"]()) for each in requests]
    if number(requests[0]) == -2:
        raise ValueError("bad")
    values = [asked("repeat", 2).exec(decoupled=True) for each in requests]
    return [numbers(*(v for r in each for v in outcome(r))) for each in values]
"""

REPEAT = """
    for each in requests:
        sender = each.get_response_sender()
        for value in range(number(each)):
            sender.send(numbers(value))
        sender.send(flags=FINAL)
"""


@pytest.fixture
async def bench(tmp_path):
    bench = TritonBench(tmp_path)
    yield bench
    await bench.close()


GROWS_TO_A_LIMIT = "asyncio_"
"""The event loop's own pool starts a thread whenever none is idle at that instant, up to its
limit: how many there are says nothing about what a model left behind."""


def held() -> tuple[int, int, int]:
    """Descriptors, threads and child processes of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    threads = [t for t in threading.enumerate() if not t.name.startswith(GROWS_TO_A_LIMIT)]
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), len(threads), len(children)


async def cycle(bench: TritonBench, number: int) -> None:
    served = await bench.load("repeat", REPEAT, decoupled=True)
    stream, ticket = bench.stream("repeat", 3)
    if number % 3 == 1:
        ticket.cancel()
    else:
        assert len(await stream.all()) == 4
    big = bench.stream("repeat", 2, *range(50_000))[0]
    await big.all()
    if number % 3 == 2:
        await bench.idle(served)  # its last answer comes before its child is back in the pool
        served.loaded._pool._idle[0].kill()
    await asyncio.wait_for(bench.manager.retire(served, drain_s=10), 30)


async def settled(expected: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """What is held once ending threads have ended; waits a while for ``expected``."""
    for thread in threading.enumerate():
        ours = thread.name.startswith(
            ("headrace-peer", "headrace-instance-", "headrace-supervisor")
        )
        if ours and not thread.name.startswith(("headrace-instance-0", "headrace-instance-1")):
            await asyncio.to_thread(thread.join, 10)
    gc.collect()
    for _ in range(100 if expected else 0):
        if held() == expected:
            break
        await asyncio.sleep(0)
    return held()


async def leaks(bench: TritonBench, cycles: int) -> None:
    for number in range(3):  # imports, the loop's own threads
        await cycle(bench, number)
    before = await settled()
    for number in range(cycles):
        await cycle(bench, number)
    assert await settled(before) == before


async def test_loading_and_unloading_leaves_nothing(bench):
    await leaks(bench, 6)


@pytest.mark.slow
async def test_loading_and_unloading_fifty_times_leaves_nothing(bench):
    await leaks(bench, 50)


async def test_requests_leave_no_garbage_on_either_side(bench):
    """Nothing that only the garbage collector can find, whatever becomes of a request."""
    await bench.load("repeat", REPEAT, decoupled=True)
    await bench.load("calls", CALLS)

    async def rounds() -> None:
        for _ in range(20):
            assert await bench.ask("calls", 1) == [0, 1]
            await bench.stream("repeat", 3)[0].all()
            stream, ticket = bench.stream("repeat", 3)
            ticket.cancel()
            del stream, ticket

    await rounds()
    await bench.ask("calls", -1)
    gc.collect()
    gc.disable()
    try:
        await rounds()
        found = gc.collect()
    finally:
        gc.enable()
    assert await bench.ask("calls", -1) == [0]
    assert found < 20  # fewer than one for each round


async def test_failures_leave_no_garbage_in_the_child(bench):
    await bench.load("repeat", REPEAT, decoupled=True)
    await bench.load("calls", CALLS)
    for _ in range(2):
        await bench.ask("calls", -1)
        for _ in range(20):
            with pytest.raises(InferenceFailed):
                await bench.ask("calls", -2)
        (found,) = await bench.ask("calls", -1)
    assert found < 20


async def test_children_that_die_leave_nothing(bench):
    code = """
    if number(requests[0]):
        os._exit(1)
    return [numbers(0) for each in requests]
    """
    await bench.load("dies", code)

    async def die() -> None:
        assert await bench.ask("dies", 0) == [0]
        with pytest.raises(InstanceDied):
            await bench.ask("dies", 1)
        assert await bench.ask("dies", 0) == [0]

    await die()
    gc.collect()
    before = held()
    for _ in range(3):
        await die()
    gc.collect()
    for _ in range(1000):
        if held() == before:
            break
        await asyncio.sleep(0)
    assert held() == before
