"""The threads where batches run: common ones, and those of models that need their own.

A model that calls other models holds its instance meanwhile. If that were one of the common
instances, as many such calls as there are instances would wait for ever; so it has instances
that run nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from headrace.core.events import InstanceAdded, InstanceRemoved
from headrace.engine.instances import BatchJob, InstanceThread
from headrace.engine.served import ServedModel
from headrace.engine.wakeup import Wakeup
from headrace.engine.watchdog import Watchdog


class InstancePool:
    """Makes and ends instances, and tells the core. On the event loop.

    Args:
        common: instances that run any model.
        finished: told of every batch that is back.
        drive: tells the core.
        limit_ns: how long a batch may run; see ``watchdog``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        common: int,
        finished: Callable[[BatchJob], None],
        drive: Callable[..., None],
        *,
        limit_ns: Callable[..., int],
        now_ns: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._watchdog = Watchdog(now_ns, partial(Wakeup, loop, now_ns), limit_ns, drive, self)
        self._drive = drive
        self._next = 0
        self._threads: dict[int, InstanceThread] = {}
        self._of_model: dict[int, list[int]] = {}
        for _ in range(common):
            self._add(())

    def submit(self, job: BatchJob) -> None:
        """Runs it on the instance that the core chose."""
        self._watchdog.began(job)
        self._threads[job.instance_id].submit(job)

    def dedicate(self, model: ServedModel, count: int) -> None:
        """``count`` more instances, for a model that has its number."""
        self._of_model[model.number] = [self._add((model.number,)) for _ in range(count)]

    def release(self, model: ServedModel) -> None:
        """Ends those of a model, each after the batch that it has."""
        for number in self._of_model.pop(model.number, ()):
            self._threads.pop(number).stop()
            self._drive(InstanceRemoved(number))

    def ident(self, instance_id: int) -> int:
        """See :class:`headrace.engine.watchdog.Threads`."""
        thread = self._threads.get(instance_id)
        return 0 if thread is None else thread.ident

    def replace(self, instance_id: int) -> None:
        """See :class:`headrace.engine.watchdog.Threads`."""
        thread = self._threads.pop(instance_id, None)
        if thread is None:
            return  # its model has been removed
        thread.stop()
        self._drive(InstanceRemoved(instance_id))
        models = [number for number, own in self._of_model.items() if instance_id in own]
        number = self._add(tuple(models))
        for model in models:
            own = self._of_model[model]
            own[own.index(instance_id)] = number

    def _on_finished(self, job: BatchJob) -> None:
        self._watchdog.ended(job)
        self._finished(job)

    def close(self, timeout_s: float) -> None:
        """Ends all of them; waits for each so long at most."""
        self._watchdog.close()
        for thread in self._threads.values():
            thread.stop()
        for thread in self._threads.values():
            thread.join(timeout_s)

    def _add(self, models: tuple[int, ...]) -> int:
        number = self._next
        self._next += 1
        self._threads[number] = InstanceThread(number, self._loop, self._on_finished)
        self._drive(InstanceAdded(number, models))
        return number
