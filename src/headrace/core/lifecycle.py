"""The life of a model's copies, as a table of what may follow what.

A *copy* is one version of a model in memory, or on its way there; when a version is loaded again
there are two for a while. Each is in one of four states, and what happens to it is an event::

    UNAVAILABLE --begin--> LOADING --loaded--> READY --unload--> UNLOADING --gone--> UNAVAILABLE
                              |                  ^                   |
                              +--failed--> UNAVAILABLE               |
                                                 +-----recall--------+

Law: what is not in :data:`TRANSITIONS` cannot happen; who tries is told (:class:`IllegalEvent`)
and nothing has changed. What is shown of a version is the best of its copies, so a copy that fails
never hides one that serves.
"""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["UNAVAILABLE", "LOADING", "READY", "UNLOADING"]

Kind = Literal["begin", "step", "loaded", "failed", "note", "unload", "recall", "gone"]

LOADING_PHASES = ("fetching", "placing", "verifying", "loading", "measuring", "warming")
UNLOADING_PHASES = ("draining", "standby", "unloading")

TRANSITIONS: dict[tuple[State, Kind], State] = {
    ("UNAVAILABLE", "begin"): "LOADING",
    ("LOADING", "step"): "LOADING",
    ("LOADING", "note"): "LOADING",
    ("LOADING", "loaded"): "READY",
    ("LOADING", "failed"): "UNAVAILABLE",
    ("READY", "note"): "READY",
    ("READY", "unload"): "UNLOADING",
    ("UNLOADING", "step"): "UNLOADING",
    ("UNLOADING", "note"): "UNLOADING",
    ("UNLOADING", "recall"): "READY",
    ("UNLOADING", "gone"): "UNAVAILABLE",
}
"""State and event -> the state after it. Nothing else can happen."""

_BEST: tuple[State, ...] = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")


class IllegalEvent(Exception):
    """Something was reported that cannot have happened: a mistake in whoever drives this."""


class LifeEvent(msgspec.Struct, frozen=True):
    """Something happened to a copy.

    ``phase`` with ``step`` (one of the phases above), ``reason`` with ``failed``, ``unload``,
    ``gone``, ``note``: why, in words for people.
    """

    copy: int
    kind: Kind
    phase: str = ""
    reason: str = ""


class Entry(msgspec.Struct, frozen=True):
    """One line of a model's history; ``lasted_ns``: how long what it ends had lasted."""

    at_ns: int
    version: str
    copy: int
    kind: Kind
    state: State
    phase: str = ""
    reason: str = ""
    lasted_ns: int = 0


class Shown(msgspec.Struct, frozen=True):
    """What is to be shown of a version from now on."""

    name: str
    version: str
    state: State
    reason: str


class Recorded(msgspec.Struct, frozen=True):
    """One more line of the history of ``name``."""

    name: str
    entry: Entry


Action = Shown | Recorded


class _Copy(msgspec.Struct):
    name: str
    version: str
    state: State = "UNAVAILABLE"
    phase: str = ""
    reason: str = ""
    since_ns: int = 0


class Lifecycles:
    """Every copy there is. Pure: ``handle(event, now_ns) -> [actions]``."""

    def __init__(self) -> None:
        self._copies: dict[int, _Copy] = {}
        self._next = 1

    def copy_of(self, name: str, version: str) -> int:
        """Numbers a copy that is about to be loaded."""
        number = self._next
        self._next += 1
        self._copies[number] = _Copy(name, version)
        return number

    def state(self, copy: int) -> State:
        """Of one copy; UNAVAILABLE once it is gone."""
        known = self._copies.get(copy)
        return "UNAVAILABLE" if known is None else known.state

    def shown(self, name: str, version: str) -> State:
        """The best of the version's copies."""
        states = {c.state for c in self._copies.values() if (c.name, c.version) == (name, version)}
        return next((state for state in _BEST if state in states), "UNAVAILABLE")

    def handle(self, event: LifeEvent, *, now_ns: int) -> list[Action]:
        """What follows from an event: what is shown, and what is written down.

        Raises:
            IllegalEvent: it cannot have happened.
        """
        copy = self._copies.get(event.copy)
        after = None if copy is None else TRANSITIONS.get((copy.state, event.kind))
        if copy is None or after is None:
            state = "gone" if copy is None else copy.state
            raise IllegalEvent(f"{event.kind!r} of copy {event.copy}, which is {state}")
        if event.kind == "step":
            self._check_phase(copy, event.phase)
        lasted_ns = now_ns - copy.since_ns if copy.since_ns else 0
        if event.kind != "note":
            copy.since_ns = now_ns
            copy.phase = event.phase
        before, copy.state = copy.state, after
        if event.kind not in ("note", "step"):  # these do not change why it is where it is
            copy.reason = event.reason
        entry = Entry(
            now_ns,
            copy.version,
            event.copy,
            event.kind,
            after,
            event.phase,
            event.reason,
            0 if event.kind == "note" else lasted_ns,
        )
        actions: list[Action] = [Recorded(copy.name, entry)]
        if after == "UNAVAILABLE":
            del self._copies[event.copy]
        if before != after:
            actions.append(self._show(copy))
        return actions

    def _show(self, copy: _Copy) -> Shown:
        state = self.shown(copy.name, copy.version)
        # A reason belongs to the copy that is shown; of one that serves there is none to tell.
        reason = (
            copy.reason if state == copy.state and state in ("UNAVAILABLE", "UNLOADING") else ""
        )
        return Shown(copy.name, copy.version, state, reason)

    @staticmethod
    def _check_phase(copy: _Copy, phase: str) -> None:
        known = LOADING_PHASES if copy.state == "LOADING" else UNLOADING_PHASES
        if phase not in known:
            raise IllegalEvent(f"{phase!r} is no phase of {copy.state}")
