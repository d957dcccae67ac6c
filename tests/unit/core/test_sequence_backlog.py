"""What it costs to find who gets the next slot."""

from __future__ import annotations

import time

from headrace.core.sequence_backlog import Backlog


def cpu_ns_of_a_take(callers: int) -> float:
    """With so many callers who wait; the fastest of several tries."""
    tries = []
    for _ in range(5):
        backlog = Backlog()
        for number in range(callers):
            backlog.add((f"caller {number}", 1))
        began_ns = time.process_time_ns()
        for _ in range(100):
            key = backlog.take()
            assert key is not None
            backlog.gave_back(key[0])
        tries.append((time.process_time_ns() - began_ns) / 100)
    return min(tries)


def test_a_slot_finds_its_caller_however_many_wait() -> None:
    assert cpu_ns_of_a_take(10_000) < 8 * cpu_ns_of_a_take(200)
