"""Which models are in memory: the books that the pure ``core.placement`` decides by.

The budget is what the processes of this server may take together, as the system counts it
(resident set; of child processes their share of what is shared). It is looked at, not added up:
what a heap holds on to counts, because it counts where it is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from headrace.core.placement import Interest, Placement, Resident, place
from headrace.engine import memory
from headrace.engine.loads import Loaded
from headrace.engine.served import ServedModel
from headrace.errors import ModelLoadError
from headrace.repository.base import ModelSource
from headrace.units import size_text

_LOG = logging.getLogger("headrace.engine")

PEAK = 2.6
"""While a model is loaded it takes so many times its size: the file, a copy that is optimised, and
what the heap rounds up. Measured: 2.0 to 2.6 (see ``engine.memory``)."""

HEADROOM = 0.05
"""Of the budget is left free when a model is placed: between two placings the heap grows by what
requests need, and returns it late."""


class Place:
    """One version in memory. ``loaded`` is None if this engine did not load it."""

    __slots__ = ("answered", "copy", "interest", "loaded")

    def __init__(self, loaded: Loaded | None, copy: int, now_ns: int) -> None:
        self.loaded = loaded
        self.copy = copy
        self.interest = Interest(now_ns)
        self.answered = 0

    @property
    def source(self) -> ModelSource | None:
        """Where it came from, and comes from again."""
        return None if self.loaded is None else self.loaded.source

    @property
    def load_ns(self) -> int:
        """How long it took."""
        return 0 if self.loaded is None else self.loaded.took_ns


class Residency:
    """The places of one engine. On the event loop, but for what says it blocks.

    Args:
        budget_bytes: 0: none.
    """

    def __init__(self, budget_bytes: int, now_ns: Callable[[], int]) -> None:
        self.budget_bytes = budget_bytes
        self.places: dict[ServedModel, Place] = {}
        self._now_ns = now_ns
        self._pins: dict[str, bool] = {}

    def pin(self, name: str, pinned: bool) -> None:
        """Whether a model may leave memory, whatever its configuration says."""
        self._pins[name] = pinned

    def is_pinned(self, served: ServedModel) -> bool:
        """Whether it never leaves to make room."""
        return self._pins.get(served.name, served.config.residency.pinned)

    def tick(self) -> None:
        """Counts what came since the last look; often enough for interest to fade evenly."""
        now_ns = self._now_ns()
        for served, known in self.places.items():
            new = served.health.answered - known.answered
            if new > 0:
                known.answered = served.health.answered
                known.interest.used(new, now_ns)

    def idle(self) -> list[ServedModel]:
        """Those that nobody has asked for as long as they say."""
        now_ns = self._now_ns()
        return [
            served
            for served in self.places
            if 0 < served.config.residency.idle_unload_ns <= now_ns - self._used_ns(served)
            and not (served.busy or self._why_held(served))
        ]

    def used_bytes(self) -> int:
        """What the processes take now, freed memory given back first. Blocks for milliseconds."""
        memory.give_back()
        return memory.resident_bytes() + memory.processes_bytes(self._children())

    def warn(self) -> None:
        """Says so in the log if the server itself leaves no room. Blocks."""
        used = self.used_bytes()
        if used > self.budget_bytes * (1 - HEADROOM):
            _LOG.warning(
                "server.memory_budget = %s is for all that the server takes, and it takes %s "
                "without any model: none can be loaded",
                size_text(self.budget_bytes),
                size_text(used),
            )

    def plan(self, needed_bytes: int, used_bytes: int) -> Placement:
        """What has to go so that a newcomer fits at its largest."""
        self.tick()
        return place(
            int(needed_bytes * PEAK),
            self.residents(),
            budget_bytes=int(self.budget_bytes * (1 - HEADROOM)),
            used_bytes=used_bytes,
        )

    def residents(self) -> list[Resident]:
        """All of them, as the core sees them; named as :func:`label`."""
        now_ns = self._now_ns()
        return [
            Resident(
                label(served),
                served.size_bytes,
                known.interest.at(now_ns),
                known.load_ns,
                self._used_ns(served),
                bool(served.busy),
                bool(why := self._why_held(served)),
                why,
            )
            for served, known in self.places.items()
        ]

    def by_label(self, labels: Iterable[str]) -> list[ServedModel]:
        """The models of these labels, in that order."""
        named = {label(served): served for served in self.places}
        return [named[each] for each in labels if each in named]

    def describe(self, served: ServedModel) -> dict[str, Any]:
        """What an operator wants to know of it."""
        known, now_ns = self.places[served], self._now_ns()
        health = served.health
        return {
            "isolation": "process" if _pids(served) else "thread",
            "size_bytes": served.size_bytes,
            "load_s": round(known.load_ns / 1e9, 3),
            "requests": health.answered,
            "failed": health.failed,
            "idle_s": round((now_ns - self._used_ns(served)) / 1e9, 3),
            "interest": round(known.interest.at(now_ns), 3),
            "held": self._why_held(served),
            "processes": list(_pids(served)),
        }

    def refusal(
        self, source: ModelSource, needed: int, used: int, plan: Placement
    ) -> ModelLoadError:
        """Says what would have to go, and cannot."""
        told = ", ".join(
            f"{each.name} ({size_text(each.size_bytes)}, {each.why})" for each in plan.held[:8]
        )
        peak = int(needed * PEAK)
        return ModelLoadError(
            f"model '{source.name}' version {source.version} does not fit: loading it takes about "
            f"{size_text(peak)}, {size_text(used)} of memory_budget = "
            f"{size_text(self.budget_bytes)} are in use, and {size_text(plan.missing_bytes)} are "
            f"missing even if {len(plan.evict)} models left",
            code="no_memory",
            hint=f"unpin or unload {told}" if told else "raise server.memory_budget",
            model=source.name,
            needed_bytes=peak,
            budget_bytes=self.budget_bytes,
            used_bytes=used,
            would_go=list(plan.evict),
            held=[each.name for each in plan.held],
        )

    def _used_ns(self, served: ServedModel) -> int:
        return served.health.last_used_ns or self.places[served].interest.since_ns

    def _why_held(self, served: ServedModel) -> str:
        if self.is_pinned(served):
            return "pinned"
        if self.places[served].source is None:
            return "its files came with the command that loaded it"
        for other in self.places:
            if served.name in other.steps:
                return f"a step of ensemble '{other.name}'"
        return "it keeps sequences" if served.sequences is not None and served.busy else ""

    def _children(self) -> list[int]:
        return [pid for served in tuple(self.places) for pid in _pids(served)]


def label(served: ServedModel) -> str:
    """Names a version among residents."""
    return f"{served.name} version {served.version}"


def _pids(served: ServedModel) -> tuple[int, ...]:
    ids: Callable[[], tuple[int, ...]] | None = getattr(served.loaded, "process_ids", None)
    return () if ids is None else ids()
