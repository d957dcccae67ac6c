"""The table of what may follow what, and what is shown of a version."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import lifecycle
from headrace.core.lifecycle import IllegalEvent, Lifecycles, LifeEvent, Recorded, Shown

KINDS = ("begin", "step", "loaded", "failed", "note", "unload", "recall", "gone")
STATES = ("UNAVAILABLE", "LOADING", "READY", "UNLOADING")


def drive(lives: Lifecycles, copy: int, *events: str) -> list:
    actions = []
    for number, text in enumerate(events):
        kind, _, phase = text.partition(":")
        actions += lives.handle(LifeEvent(copy, kind, phase), now_ns=number + 1)
    return actions


def shown(actions) -> list:
    return [(each.version, each.state) for each in actions if isinstance(each, Shown)]


def test_a_copy_is_loaded_and_leaves():
    lives = Lifecycles()
    copy = lives.copy_of("m", "1")
    steps = ["begin", "step:loading", "step:warming", "loaded", "unload", "step:draining", "gone"]
    assert shown(drive(lives, copy, *steps)) == [
        ("1", "LOADING"),
        ("1", "READY"),
        ("1", "UNLOADING"),
        ("1", "UNAVAILABLE"),
    ]
    assert lives.state(copy) == "UNAVAILABLE"


def test_a_copy_that_fails_does_not_hide_the_one_that_serves():
    lives = Lifecycles()
    old, new = lives.copy_of("m", "1"), lives.copy_of("m", "1")
    drive(lives, old, "begin", "loaded")
    actions = drive(lives, new, "begin")
    (failed,) = [
        a
        for a in lives.handle(LifeEvent(new, "failed", reason="broken"), now_ns=9)
        if isinstance(a, Shown)
    ]
    assert shown(actions) == [("1", "READY")]
    assert (failed.state, failed.reason) == ("READY", "")


def test_a_failure_is_shown_with_its_reason():
    lives = Lifecycles()
    copy = lives.copy_of("m", "2")
    drive(lives, copy, "begin")
    _, last = lives.handle(LifeEvent(copy, "failed", reason="no weights"), now_ns=5)
    assert last == Shown("m", "2", "UNAVAILABLE", "no weights")


def test_why_it_serves_is_no_reason_to_leave():
    lives = Lifecycles()
    copy = lives.copy_of("m", "1")
    drive(lives, copy, "begin")
    lives.handle(LifeEvent(copy, "loaded", reason="onnxruntime"), now_ns=5)
    _, last = lives.handle(LifeEvent(copy, "unload"), now_ns=6)
    assert last == Shown("m", "1", "UNLOADING", "")


def test_the_old_copy_of_a_version_leaves_without_hiding_the_new_one():
    lives = Lifecycles()
    old, new = lives.copy_of("m", "1"), lives.copy_of("m", "1")
    drive(lives, old, "begin", "loaded")
    drive(lives, new, "begin", "loaded")
    assert shown(drive(lives, old, "unload", "gone")) == [("1", "READY"), ("1", "READY")]


def test_what_was_leaving_comes_back():
    lives = Lifecycles()
    copy = lives.copy_of("m", "1")
    actions = drive(lives, copy, "begin", "loaded", "unload", "step:standby", "recall")
    assert shown(actions)[-1] == ("1", "READY")


def test_history_says_how_long_each_phase_lasted():
    lives = Lifecycles()
    copy = lives.copy_of("m", "1")
    told = []
    for at_ns, kind, phase in (
        (10, "begin", ""),
        (30, "step", "loading"),
        (90, "step", "warming"),
        (100, "loaded", ""),
    ):
        told += lives.handle(LifeEvent(copy, kind, phase), now_ns=at_ns)
    entries = [a.entry for a in told if isinstance(a, Recorded)]
    assert [(e.phase, e.lasted_ns) for e in entries] == [
        ("", 0),
        ("loading", 20),
        ("warming", 60),
        ("", 10),
    ]


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(STATES, KINDS)))
def test_only_what_is_in_the_table_can_happen(state, kind):
    lives = Lifecycles()
    copy = lives.copy_of("m", "1")
    drive(
        lives,
        copy,
        *{
            "UNAVAILABLE": (),
            "LOADING": ("begin",),
            "READY": ("begin", "loaded"),
            "UNLOADING": ("begin", "loaded", "unload"),
        }[state],
    )
    phase = "draining" if state == "UNLOADING" else "loading"
    event = LifeEvent(copy, kind, phase)
    if (state, kind) in lifecycle.TRANSITIONS:
        lives.handle(event, now_ns=9)
        assert lives.state(copy) == lifecycle.TRANSITIONS[state, kind]
    else:
        with pytest.raises(IllegalEvent, match=kind):
            lives.handle(event, now_ns=9)
        assert lives.state(copy) == state


def test_a_phase_of_unloading_is_none_of_loading():
    lives = Lifecycles()
    copy = lives.copy_of("m", "1")
    with pytest.raises(IllegalEvent, match="draining"):
        drive(lives, copy, "begin", "step:draining")


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS)), max_size=40))
def test_what_is_shown_is_the_best_of_the_copies(events):
    lives = Lifecycles()
    copies = [lives.copy_of("m", "1") for _ in range(4)]
    states = dict.fromkeys(copies, "UNAVAILABLE")
    order = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
    for index, kind in events:
        copy = copies[index]
        phase = "draining" if states[copy] == "UNLOADING" else "loading"
        gone = states[copy] == "GONE"
        expected = None if gone else lifecycle.TRANSITIONS.get((states[copy], kind))
        try:
            lives.handle(LifeEvent(copy, kind, phase), now_ns=1)
        except IllegalEvent:
            assert expected is None
            continue
        assert expected is not None
        states[copy] = "GONE" if expected == "UNAVAILABLE" else expected
        best = next((s for s in order if s in states.values()), "UNAVAILABLE")
        assert lives.shown("m", "1") == best
