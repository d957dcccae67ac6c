"""Many callers that leave at once: what that costs grows with their number, not its square."""

from __future__ import annotations

import time

import pytest

from headrace.core.sequence_events import RequestOver, SequenceArrived, SequenceLimits
from headrace.core.sequence_events import SequenceRequest as Request
from headrace.core.sequences import Sequences
from headrace.engine.inflight import FutureReply

from .conftest import Bench, ScriptedModel, request

SMALL, LARGE = 1000, 8000


def engine_cancels(bench: Bench, count: int) -> float:
    """CPU seconds for cancelling requests that the core has not been told of."""
    loop = bench.engine._loop
    tickets = [bench.engine.submit(request([1, 2]), FutureReply(loop)) for _ in range(count)]
    begin = time.process_time()
    for ticket in tickets:
        ticket.cancel()
    return time.process_time() - begin


async def test_requests_that_came_a_moment_ago(bench: Bench) -> None:
    bench.serve(ScriptedModel())
    small = min(engine_cancels(bench, SMALL) for _ in range(3))
    assert engine_cancels(bench, LARGE) < 4 * LARGE / SMALL * small
    assert not bench.engine._arrived
    assert not bench.engine._parts


@pytest.mark.parametrize("starts", [True, False], ids=["each starts", "one starts"])
def test_requests_of_one_sequence(starts: bool) -> None:
    def cancels(count: int) -> float:
        core = Sequences(SequenceLimits(1, count, 10**9), 1)
        for number in range(count):
            asked = Request(number, 7, starts or not number, False, 10**9)
            core.handle(SequenceArrived(asked), now_ns=0)
        begin = time.process_time()
        for number in reversed(range(1, count)):
            core.handle(RequestOver(number, False), now_ns=0)
        cost = time.process_time() - begin
        core.check_invariants()
        assert core.waiting == 0
        return cost

    small = min(cancels(SMALL) for _ in range(3))
    assert cancels(LARGE) < 4 * LARGE / SMALL * small
