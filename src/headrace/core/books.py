"""The books of a scheduler: which requests are live, and what is kept for models and batches.

Only :class:`headrace.core.scheduler.Scheduler` drives these; every method keeps the books
consistent, and none decides anything.
"""

from __future__ import annotations

from headrace.core.admission import Door
from headrace.core.events import QueuedRequest
from headrace.core.instances import Instances, RunningBatch
from headrace.core.overtime import execution_limit_ns
from headrace.core.pool import ModelState

_SERVICE_WEIGHT = 8
"""The service time estimate moves an eighth of the way per batch: it follows a change of
load within a few batches and is not thrown about by one."""


class Books:
    """One for a pool."""

    __slots__ = ("instances", "live", "models", "waiting")

    def __init__(self) -> None:
        self.models: dict[int, ModelState] = {}
        self.waiting: dict[int, ModelState] = {}  # the models that have something queued
        self.live: dict[int, QueuedRequest] = {}
        self.instances = Instances()

    def door(self, number: int, arriving: list[QueuedRequest], now_ns: int) -> Door | None:
        """Who gets into the queue of a model; None: there is none of that number."""
        model = self.models.get(number)
        if model is None or model.removed:
            return None
        others_ns = 0.0
        if len(self.waiting) > 1 or (self.waiting and number not in self.waiting):
            others_ns = sum(
                [other.owed_ns() for key, other in self.waiting.items() if key != number]
            )
        return Door(number, model, self.instances, arriving, now_ns=now_ns, others_ns=others_ns)

    def forget(self, requests: list[QueuedRequest]) -> list[QueuedRequest]:
        """Takes live requests out of the queues (or leaves their batch to run without them)."""
        running = self.running_ids()
        queued: dict[int, list[QueuedRequest]] = {}
        for request in requests:
            del self.live[request.request_id]
            if request.request_id not in running:
                queued.setdefault(request.model, []).append(request)
        for number, gone in queued.items():
            model = self.models[number]
            ids = {request.request_id for request in gone}
            alone = [r for r in model.alone if r.request_id in ids]
            for request in alone:
                model.alone.remove(request)
            model.queue.remove(ids - {r.request_id for r in alone})
            model.left(gone)
            if not model.waiting():
                del self.waiting[number]
        return requests

    def running_ids(self) -> frozenset[int]:
        """The requests in batches, live or not."""
        batches = self.instances.batches.values()
        return frozenset(i for batch in batches for i in batch.request_ids)

    def end_batch(self, batch_id: int, now_ns: int) -> tuple[RunningBatch, ModelState]:
        """Its instance is free again.

        Raises:
            KeyError: no such batch runs.
        """
        batch = self.instances.end(batch_id)
        model = self.models[batch.model]
        count = len(batch.request_ids)
        model.running -= 1
        model.running_requests -= count
        per_request_ns = (now_ns - batch.started_ns) // count
        model.service_ns += (per_request_ns - model.service_ns) // _SERVICE_WEIGHT
        if model.removed and not model.running:
            del self.models[batch.model]
        return batch, model

    def abandon(self, batch_id: int) -> tuple[int, ...]:
        """Nobody waits for a running batch any more; the requests that did.

        Raises:
            KeyError: no such batch runs.
        """
        batch = self.instances.batches[batch_id]
        waited = [i for i in batch.request_ids if self.live.pop(i, None) is not None]
        self.models[batch.model].failed += len(waited)
        return tuple(waited)

    def execution_limit_ns(self, batch_id: int, *, wanted: bool) -> int:
        """How long a running batch may take. Raises KeyError: no such batch runs."""
        batch = self.instances.batches[batch_id]
        model = self.models[batch.model]
        return execution_limit_ns(
            model.cost_on(batch.kind),
            batch.units,
            configured_ns=model.limits.execution_limit_ns,
            floor_ns=model.limits.execution_floor_ns,
            wanted=wanted,
        )

    def late(self, batch: RunningBatch, now_ns: int) -> int:
        """How many of a batch that is over wanted to be answered before now."""
        members = [self.live[i] for i in batch.request_ids if i in self.live]
        return sum([request.due_ns < now_ns for request in members])
