"""The same events at the same times to a fresh scheduler: the same decisions, or a difference."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.core.actions import Action
from headrace.core.scheduler import Scheduler
from headrace.engine.recording import Entry, read_recording

_DIFFERENCES = 5
"""Shown; what follows from the first is no news."""


class Replayed(msgspec.Struct, frozen=True):
    """``differences`` are texts of several lines; none: every decision was the same."""

    events: int
    actions: int
    differences: list[str]


def replay(path: Path) -> Replayed:
    """Decides everything once more.

    Raises:
        ConfigError: see :func:`read_recording`.
    """
    scheduler = Scheduler()
    count = decided = 0
    differences: list[str] = []
    for entry in read_recording(path):
        count += 1
        try:
            now = scheduler.handle(entry.event, now_ns=entry.now_ns)
        except KeyError as error:
            differences.append(f"line {entry.line}: {_brief(entry.event)}: refused: {error}")
            break
        decided += len(now)
        if now != entry.actions and len(differences) < _DIFFERENCES:
            differences.append(_difference(entry, now))
    return Replayed(count, decided, differences)


def _difference(entry: Entry, now: list[Action]) -> str:
    then = [f"  - {_brief(action)}" for action in entry.actions if action not in now]
    mine = [f"  + {_brief(action)}" for action in now if action not in entry.actions]
    if not then and not mine:
        mine = ["  the same actions in another order"]
    head = f"line {entry.line}, {entry.now_ns} ns: {_brief(entry.event)}"
    return "\n".join([head, *then, *mine])


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
