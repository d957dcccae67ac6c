"""A result line says what was measured and whether a goal was kept; a table shows the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.results import Goal, Result, Spread, save
from benchmarks.tables import render

MISSED = Goal("twice as fast", Spread.of([1.0, 1.5, 1.2]), 2.0, at_least=True)
KEPT = Goal("no slower", Spread.of([0.9, 1.3, 0.95]), 1.0)
RESULT = Result(
    benchmark="b",
    case="one",
    figures={"cpu us": Spread.of([30.0, 10.0, 20.0]), "req/s": 12_345},
    goals=(MISSED, KEPT),
)
SKIPPED = Result(benchmark="b", case="two", skipped="there is no model")


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)


def test_a_goal_is_held_against_the_median() -> None:
    assert not MISSED.met
    assert KEPT.met


def test_a_line_has_what_is_needed_to_repeat_it(tmp_path: Path) -> None:
    file = tmp_path / "out" / "b.jsonl"
    for _ in range(2):
        save(file, [RESULT, SKIPPED], seed=7, arguments=["b", "--seed", "7"])
    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
    assert len(lines) == 4
    first = lines[0]
    assert first["figures"]["cpu us"] == {"median": 20.0, "low": 10.0, "high": 30.0, "count": 3}
    assert [goal["met"] for goal in first["goals"]] == [False, True]
    assert first["command"] == "python -m benchmarks b --seed 7"
    assert first["seed"] == 7
    assert first["machine"]["cpu"]
    assert first["versions"]["onnxruntime"]
    assert {"commit", "time_utc"} <= first.keys()
    assert lines[1]["skipped"] == "there is no model"


@pytest.mark.parametrize(
    "words",
    [
        ["case", "cpu us", "req/s"],
        ["one", "20.0 (10.0 to 30.0)", "12,345"],
        ["skipped two: there is no model"],
        ["MISSED", "twice as fast: 1.20 (1.00 to 1.50) x, at least 2 (3 measured)"],
        ["kept", "no slower: 0.95 (0.90 to 1.30) x, at most 1 (3 measured)"],
    ],
)
def test_the_table_has_a_line_with(words: list[str]) -> None:
    lines = render([RESULT, SKIPPED]).splitlines()
    assert any(all(word in line for word in words) for line in lines)
