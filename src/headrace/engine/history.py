"""What became of every model, for the index and for people: the core's table, with a clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.core.lifecycle import Action, Kind, Lifecycles, LifeEvent, Shown
from headrace.engine.catalog import Catalog

ENTRIES_MAX = 256
"""Lines of one model; the oldest go first."""

MODELS_MAX = 1024
"""Models with a history: names of models that never were do not pile up."""


class Histories:
    """Drives :class:`headrace.core.lifecycle.Lifecycles`. On the event loop.

    Args:
        catalog: told what to show.
        now_ns: monotonic; ``wall_s``: what people's clocks say, for the history.
    """

    def __init__(
        self,
        catalog: Catalog,
        now_ns: Callable[[], int],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._now_ns = now_ns
        self._wall_s = wall_s
        self._lives = Lifecycles()
        self._lines: dict[str, deque[dict[str, Any]]] = {}
        self._phases: dict[int, str] = {}

    def begin(self, name: str, version: str, why: str = "") -> int:
        """A copy is being loaded; returns its number."""
        copy = self._lives.copy_of(name, version)
        self._tell(copy, "begin", reason=why)
        return copy

    def adopt(self, name: str, version: str) -> int:
        """A copy that is ready already."""
        copy = self.begin(name, version)
        self.loaded(copy)
        return copy

    def step(self, copy: int, phase: str) -> None:
        """It is in its next phase; nothing where it is gone: a thread may not know that yet."""
        if self._phases.get(copy) != phase and self._lives.state(copy) != "UNAVAILABLE":
            self._phases[copy] = phase
            self._tell(copy, "step", phase)

    def loaded(self, copy: int, how: str = "") -> None:
        """It serves."""
        self._phases.pop(copy, None)
        self._tell(copy, "loaded", reason=how)

    def failed(self, copy: int, reason: str) -> None:
        """It cannot be served."""
        self._phases.pop(copy, None)
        self._tell(copy, "failed", reason=reason)

    def unload(self, copy: int, why: str = "") -> None:
        """It leaves."""
        self._tell(copy, "unload", reason=why)

    def recall(self, copy: int, why: str) -> None:
        """It serves again, before it was gone."""
        self._phases.pop(copy, None)
        self._tell(copy, "recall", reason=why)

    def gone(self, copy: int, why: str) -> None:
        """It is out of memory."""
        self._phases.pop(copy, None)
        self._tell(copy, "gone", reason=why)

    def note(self, copy: int, text: str) -> None:
        """Something that people should know, such as a crash; nothing where it is gone."""
        if self._lives.state(copy) != "UNAVAILABLE":
            self._tell(copy, "note", reason=text)

    def phase(self, copy: int) -> str:
        """Where it is on its way; "" where it is on none."""
        return self._phases.get(copy, "")

    def of(self, name: str) -> list[dict[str, Any]]:
        """The lines of a model, oldest first; empty: nothing ever happened to it."""
        return list(self._lines.get(name, ()))

    def _tell(self, copy: int, kind: Kind, phase: str = "", reason: str = "") -> None:
        event = LifeEvent(copy, kind, phase, reason)
        for action in self._lives.handle(event, now_ns=self._now_ns()):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Shown):
            if action.state != "READY" and self._catalog.is_routed(action.name, action.version):
                return  # a copy that nobody loaded through here serves
            self._catalog.set_status(action.name, action.version, action.state, action.reason)
            return
        lines = self._lines.pop(action.name, None) or deque(maxlen=ENTRIES_MAX)
        self._lines[action.name] = lines  # the last that anything happened to is at the end
        while len(self._lines) > MODELS_MAX:
            del self._lines[next(iter(self._lines))]
        entry = action.entry
        lines.append(
            {
                "at": round(self._wall_s(), 3),
                "version": entry.version,
                "copy": entry.copy,
                "event": entry.kind,
                "state": entry.state,
                "phase": entry.phase,
                "reason": entry.reason,
                "lasted_s": round(entry.lasted_ns / 1e9, 6),
            }
        )
