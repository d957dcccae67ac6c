"""How a version leaves: withdrawn at once, drained, unloaded when nothing runs in it any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from headrace.engine import memory
from headrace.engine.catalog import UNLOADED
from headrace.engine.engine import Engine
from headrace.engine.history import Histories
from headrace.engine.residency import Residency
from headrace.engine.served import ServedModel
from headrace.telemetry.instruments import Instrument

_LOG = logging.getLogger("headrace.engine")


class Departures:
    """Those under way in one engine. On the event loop.

    Args:
        learnt: writes down what was learnt of a model, before it is forgotten.
        left: waits for what runs a model beside its requests.
    """

    def __init__(
        self,
        engine: Engine,
        histories: Histories,
        residency: Residency,
        instrument: Instrument,
        *,
        learnt: Callable[[ServedModel], Awaitable[None]],
        left: Callable[[ServedModel], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._histories = histories
        self._residency = residency
        self._instrument = instrument
        self._learnt = learnt
        self._left = left
        self._tasks: dict[ServedModel, asyncio.Task[None]] = {}

    def __contains__(self, served: ServedModel) -> bool:
        return served in self._tasks

    def begin(self, served: ServedModel, copy: int, drain_s: float, why: str) -> asyncio.Task[None]:
        """See ``ModelManager.retire``."""
        self._engine.catalog.withdraw(served, "UNLOADING", why)
        if self._histories.phase(copy) != "standby":
            self._histories.unload(copy, why)
        task = asyncio.create_task(self._retire(served, copy, drain_s, why or UNLOADED))
        self._tasks[served] = task
        task.add_done_callback(lambda _: self._tasks.pop(served, None))
        return task

    def cancel(self) -> tuple[ServedModel, ...]:
        """Waits for none of them; returns those that are still to be unloaded."""
        leaving = tuple(self._tasks)
        for task in tuple(self._tasks.values()):
            task.cancel()
        return leaving

    async def _retire(self, served: ServedModel, copy: int, drain_s: float, why: str) -> None:
        self._histories.step(copy, "draining")
        if not await _idle(served, drain_s):
            _LOG.warning(
                "model %s version %s is unloaded with requests waiting for more than %g s",
                served.name,
                served.version,
                drain_s,
            )
        await self._learnt(served)
        self._engine.remove_model(served)
        await _idle(served, None)
        await self._left(served)
        self._histories.step(copy, "unloading")
        del self._tasks[served]
        await asyncio.to_thread(_unload, served)
        self._residency.places.pop(served, None)
        self._histories.gone(copy, why)
        if not self._engine.catalog.is_routed(served.name, served.version):
            self._instrument.model_unloaded(served.name, served.version)
        _LOG.info("model %s version %s unloaded", served.name, served.version)


def _unload(served: ServedModel) -> None:
    served.loaded.unload()
    memory.give_back()


async def _idle(served: ServedModel, timeout_s: float | None) -> bool:
    """Waits until no request and no batch of the model is under way; False: it took too long."""
    idle = asyncio.Event()
    served.on_idle = idle.set
    try:
        async with asyncio.timeout(timeout_s):
            while served.busy:
                idle.clear()
                await idle.wait()
    except TimeoutError:
        return False
    finally:
        served.on_idle = None
    return True
