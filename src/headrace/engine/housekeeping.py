"""Who leaves memory though nobody needs the room: the idle, and what outgrew the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from headrace.engine import memory
from headrace.engine.residency import Residency
from headrace.engine.served import ServedModel
from headrace.repository.base import ModelSource

PAUSE_S = 1.0
"""Between two looks; a tenth of the shortest ``idle_unload``, if that is less."""


class Housekeeping:
    """One slow look after another, where a model may be idle or memory has a budget.

    Args:
        residency: the books.
        evict: takes a model out of memory, for a reason.
        is_quiet: whether nothing is being loaded.
        may_leave: whether a model serves, and is not leaving already.
    """

    def __init__(
        self,
        residency: Residency,
        evict: Callable[[ServedModel, str], Awaitable[None]],
        is_quiet: Callable[[], bool],
        may_leave: Callable[[ServedModel], bool],
    ) -> None:
        self._residency = residency
        self._evict = evict
        self._is_quiet = is_quiet
        self._may_leave = may_leave
        self._task: asyncio.Task[None] | None = None

    def keep(self, sources: Sequence[ModelSource]) -> None:
        """Begins to look, if there is anything to look for in these."""
        idle_ns = [source.config.residency.idle_unload_ns for source in sources]
        shortest_ns = min((each for each in idle_ns if each), default=0)
        if self._task is None and (shortest_ns or self._residency.budget_bytes):
            pause_s = min(PAUSE_S, shortest_ns / 1e10 or PAUSE_S)
            self._task = asyncio.create_task(self._look(max(0.02, pause_s)))

    def close(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()

    async def _look(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            self._residency.tick()
            for served in self._residency.idle():
                if self._may_leave(served):
                    await self._evict(served, "nobody asked for it")
            if self._residency.budget_bytes and self._is_quiet():
                await self._keep_within()

    async def _keep_within(self) -> None:
        """Requests need memory too: what no longer fits leaves, though nobody comes instead."""
        residency = self._residency
        children = any(hasattr(each.loaded, "process_ids") for each in residency.places)
        if not children and memory.resident_bytes() < residency.budget_bytes:
            return
        used = await asyncio.to_thread(residency.used_bytes)
        if used > residency.budget_bytes:
            for served in residency.by_label(residency.plan(0, used).evict):
                if self._may_leave(served):
                    await self._evict(served, "memory_budget was exceeded")
