"""The threads where batches run: common ones, and those of models that need their own.

A model that calls other models holds its instance meanwhile. If that were one of the common
instances, as many such calls as there are instances would wait for ever; so it has instances
that run nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.core.events import Event, InstanceAdded, InstanceRemoved
from headrace.engine.instances import BatchJob, InstanceThread
from headrace.engine.served import ServedModel


class InstancePool:
    """Makes and ends instances, and tells the core. On the event loop.

    Args:
        common: instances that run any model.
        finished: told of every batch that is back.
        drive: tells the core.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        common: int,
        finished: Callable[[BatchJob], None],
        drive: Callable[[Event], None],
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._drive = drive
        self._next = 0
        self._threads: dict[int, InstanceThread] = {}
        self._of_model: dict[int, list[int]] = {}
        for _ in range(common):
            self._add(())

    def submit(self, job: BatchJob) -> None:
        """Runs it on the instance that the core chose."""
        self._threads[job.instance_id].submit(job)

    def dedicate(self, model: ServedModel, count: int) -> None:
        """``count`` more instances, for a model that has its number."""
        self._of_model[model.number] = [self._add((model.number,)) for _ in range(count)]

    def release(self, model: ServedModel) -> None:
        """Ends those of a model, each after the batch that it has."""
        for number in self._of_model.pop(model.number, ()):
            self._threads.pop(number).stop()
            self._drive(InstanceRemoved(number))

    def close(self, timeout_s: float) -> None:
        """Ends all of them; waits for each so long at most."""
        for thread in self._threads.values():
            thread.stop()
        for thread in self._threads.values():
            thread.join(timeout_s)

    def _add(self, models: tuple[int, ...]) -> int:
        number = self._next
        self._next += 1
        self._threads[number] = InstanceThread(number, self._loop, self._finished)
        self._drive(InstanceAdded(number, models))
        return number
