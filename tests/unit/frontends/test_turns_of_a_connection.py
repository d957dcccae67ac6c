"""When a turn of a connection is over."""

from __future__ import annotations

import pytest

from headrace.clock import MonotonicClock
from headrace.frontends.turns import LONE_TURN_NS, TURN_NS, Turn
from headrace.telemetry.snapshot import HttpCounters


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [1]
    monkeypatch.setattr(MonotonicClock, "now_ns", staticmethod(lambda: now[0]))
    return now


def time_of_a_turn(turn: Turn, clock: list[int]) -> int:
    turn.begin()
    assert not turn.is_over()
    turn.left -= 8
    began = clock[0]
    while not turn.is_over():
        clock[0] += 100_000
    return clock[0] - began


def test_a_turn_is_short_where_others_send_something(clock: list[int]) -> None:
    counters = HttpCounters()
    turn = Turn(100, counters)
    assert time_of_a_turn(turn, clock) == LONE_TURN_NS
    counters.received_bytes += 1
    assert time_of_a_turn(turn, clock) == TURN_NS
    turn.count(5)
    assert counters.received_bytes == 6
    assert time_of_a_turn(turn, clock) == LONE_TURN_NS


def test_a_turn_is_over_after_its_units(clock: list[int]) -> None:
    turn = Turn(100, HttpCounters())
    turn.left -= 100
    assert turn.is_over()
