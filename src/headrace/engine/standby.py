"""A newcomer on probation: what it replaced stays in memory until it has proved itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from headrace.core.rollout import Record, Terms, breach, comparable
from headrace.engine.served import ServedModel

_LOG = logging.getLogger("headrace.engine")

LOOK_S = 1.0
"""Between two looks at how the newcomer does, while there is one."""


def terms_of(served: ServedModel) -> Terms:
    """What its configuration allows a newcomer."""
    rollout = served.config.rollout
    return Terms(
        rollout.guard_ns, rollout.max_error_rate, rollout.max_slowdown, rollout.min_requests
    )


def is_watched(newcomers: Sequence[ServedModel], before: Sequence[ServedModel]) -> bool:
    """Whether there is something to compare a newcomer with, and it is to be compared."""
    if not newcomers or any(each.sequences is not None for each in (*newcomers, *before)):
        return False
    terms = terms_of(newcomers[0])
    return bool(terms.window_ns) and comparable(terms, _together(before))


class Standby:
    """One model's. On the event loop.

    Args:
        before: what answered until now, withdrawn but in memory.
        newcomers: what answers instead.
        over: called when the newcomer has proved itself.
        breached: called with the reason when it has not.
    """

    def __init__(
        self,
        before: Sequence[ServedModel],
        newcomers: Sequence[ServedModel],
        over: Callable[[], object],
        breached: Callable[[str], None],
        look_s: float = LOOK_S,
    ) -> None:
        self.before = tuple(before)
        self.newcomers = tuple(newcomers)
        self._terms = terms_of(newcomers[0])
        self._measure = _together(before)
        self._over = over
        self._breached = breached
        self._look_s = look_s
        self._task = asyncio.create_task(self._watch())

    def end(self) -> None:
        """Watches no longer; calls nothing."""
        self._task.cancel()

    async def _watch(self) -> None:
        left_s = self._terms.window_ns / 1e9
        while left_s > 0:
            pause_s = min(self._look_s, left_s)
            await asyncio.sleep(pause_s)
            left_s -= pause_s
            reason = breach(self._terms, self._measure, _together(self.newcomers))
            if reason:
                _LOG.warning("model %s: %s", self.newcomers[0].name, reason)
                self._breached(reason)
                return
        self._over()


def _together(models: Sequence[ServedModel]) -> Record:
    records = [each.health.record() for each in models]
    return Record(
        sum(each.answered for each in records),
        sum(each.failed for each in records),
        [latency for each in records for latency in each.latencies_ns],
    )
