"""What became of a model: lines with a clock, and what the catalog shows meanwhile."""

from __future__ import annotations

import pytest

from headrace.core.lifecycle import IllegalEvent
from headrace.engine import history
from headrace.engine.catalog import Catalog
from headrace.engine.history import Histories
from headrace.testing.clock import ManualClock

from .assembled import assemble
from .conftest import ScriptedModel

WALL_S = 1_700_000_000.25
SECOND_NS = 1_000_000_000


class Kept:
    """Histories whose clocks the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._start_ns = self.clock.now_ns()
        self.catalog = Catalog()
        self.of = Histories(self.catalog, self.clock.now_ns, wall_s=self.wall_s)

    def wall_s(self) -> float:
        return WALL_S + (self.clock.now_ns() - self._start_ns) / 1e9

    def shown(self) -> tuple[str, str]:
        (status,) = self.catalog.statuses()
        return status.state, status.reason

    def lines(self, *fields: str, name: str = "m") -> list[tuple]:
        return [tuple(line[field] for field in fields) for line in self.of.of(name)]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def publish(kept: Kept) -> None:
    kept.catalog.publish(assemble(ScriptedModel()))


def test_a_whole_life(kept: Kept) -> None:
    of, clock = kept.of, kept.clock
    copy = of.begin("m", "1", "asked for")
    assert kept.shown() == ("LOADING", "")
    for phase in ("loading", "measuring", "warming"):
        of.step(copy, phase)
        assert of.phase(copy) == phase
        clock.advance_ns(SECOND_NS)
    publish(kept)
    of.loaded(copy, "onnxruntime")
    assert of.phase(copy) == ""
    assert kept.shown() == ("READY", "")
    clock.advance_ns(2 * SECOND_NS)
    kept.catalog.withdraw(kept.catalog.served()[0], "UNLOADING")
    of.unload(copy, "nobody asked for it")
    assert kept.shown() == ("UNLOADING", "nobody asked for it")
    of.step(copy, "draining")
    of.gone(copy, "nobody asked for it")
    assert kept.shown() == ("UNAVAILABLE", "nobody asked for it")

    assert kept.lines("event", "state", "phase", "reason") == [
        ("begin", "LOADING", "", "asked for"),
        ("step", "LOADING", "loading", ""),
        ("step", "LOADING", "measuring", ""),
        ("step", "LOADING", "warming", ""),
        ("loaded", "READY", "", "onnxruntime"),
        ("unload", "UNLOADING", "", "nobody asked for it"),
        ("step", "UNLOADING", "draining", ""),
        ("gone", "UNAVAILABLE", "", "nobody asked for it"),
    ]


def test_each_line_says_how_long_what_it_ends_had_lasted(kept: Kept) -> None:
    copy = kept.of.begin("m", "1")
    kept.of.step(copy, "loading")
    kept.clock.advance_ns(SECOND_NS // 2)
    kept.of.step(copy, "warming")
    kept.clock.advance_ns(SECOND_NS // 4)
    kept.of.loaded(copy)
    assert kept.lines("event", "lasted_s")[2:] == [("step", 0.5), ("loaded", 0.25)]


def test_lines_have_the_time_of_people(kept: Kept) -> None:
    kept.of.begin("m", "1")
    kept.clock.advance_ns(3 * SECOND_NS)
    kept.of.begin("m", "2")
    assert kept.lines("at", "version") == [(WALL_S, "1"), (WALL_S + 3, "2")]


def test_the_same_phase_twice_is_one(kept: Kept) -> None:
    copy = kept.of.begin("m", "1")
    kept.of.step(copy, "loading")
    kept.of.step(copy, "loading")
    assert kept.lines("phase") == [("",), ("loading",)]


def test_why_it_cannot_be_served_is_shown(kept: Kept) -> None:
    copy = kept.of.begin("m", "1")
    kept.of.failed(copy, "it is broken")
    assert kept.shown() == ("UNAVAILABLE", "it is broken")
    assert kept.of.of("m")[-1]["reason"] == "it is broken"


def test_a_copy_that_fails_does_not_hide_the_one_that_serves(kept: Kept) -> None:
    first = kept.of.begin("m", "1")
    publish(kept)
    kept.of.loaded(first)
    second = kept.of.begin("m", "1")
    assert kept.shown() == ("READY", "")
    kept.of.failed(second, "it is broken")
    assert kept.shown() == ("READY", "")
    assert kept.lines("copy", "event")[-1] == (second, "failed")
    assert second != first


def test_one_that_somebody_else_published_is_not_hidden_either(kept: Kept) -> None:
    publish(kept)
    copy = kept.of.begin("m", "1")
    kept.of.failed(copy, "it is broken")
    assert kept.shown() == ("READY", "")
    adopted = kept.of.adopt("m", "1")
    assert kept.lines("copy", "event")[-2:] == [(adopted, "begin"), (adopted, "loaded")]


def test_one_that_is_recalled_serves_again(kept: Kept) -> None:
    copy = kept.of.adopt("m", "1")
    kept.of.unload(copy, "version 2 is watched")
    kept.of.step(copy, "standby")
    assert kept.of.phase(copy) == "standby"
    kept.of.recall(copy, "too slow")
    assert kept.of.phase(copy) == ""
    assert kept.shown()[0] == "READY"
    assert kept.lines("event", "reason")[-1] == ("recall", "too slow")


def test_a_phase_of_what_was_given_up_is_no_mistake(kept: Kept) -> None:
    """A thread that loads goes on for a while after its load was cancelled."""
    copy = kept.of.begin("m", "1")
    kept.of.failed(copy, "cancelled")
    kept.of.step(copy, "measuring")
    assert kept.shown() == ("UNAVAILABLE", "cancelled")
    assert kept.lines("event")[-1] == ("failed",)
    assert kept.of.phase(copy) == ""


def test_notes_are_kept_of_what_is_there_and_of_nothing_else(kept: Kept) -> None:
    copy = kept.of.adopt("m", "1")
    kept.of.note(copy, "its process ended")
    assert kept.lines("event", "state", "reason")[-1] == ("note", "READY", "its process ended")
    kept.of.unload(copy)
    kept.of.gone(copy, "unloaded")
    lines = kept.of.of("m")
    kept.of.note(copy, "too late")
    assert kept.of.of("m") == lines


def test_what_cannot_have_happened_changes_nothing(kept: Kept) -> None:
    copy = kept.of.begin("m", "1")
    with pytest.raises(IllegalEvent):
        kept.of.gone(copy, "")
    assert kept.shown() == ("LOADING", "")
    assert kept.lines("event") == [("begin",)]


def test_the_oldest_lines_go_first(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "ENTRIES_MAX", 4)
    copy = kept.of.adopt("m", "1")
    for number in range(6):
        kept.of.note(copy, str(number))
    assert kept.lines("reason") == [("2",), ("3",), ("4",), ("5",)]


def test_models_that_nothing_happened_to_for_longest_are_forgotten(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MODELS_MAX", 2)
    first = kept.of.adopt("a", "1")
    kept.of.adopt("b", "1")
    kept.of.note(first, "still here")
    kept.of.adopt("c", "1")
    assert [bool(kept.of.of(name)) for name in "abc"] == [True, False, True]
    assert kept.of.of("never heard of") == []
