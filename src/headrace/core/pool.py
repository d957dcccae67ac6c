"""What the scheduler keeps: one record per model, one per running batch. No decisions.

Only :class:`headrace.core.scheduler.Scheduler` changes these.
"""

from __future__ import annotations

from collections import deque

import msgspec

from headrace.core.events import BatchLimits, QueuedRequest
from headrace.core.priorities import LevelledQueue, queue_for
from headrace.core.queueing import ModelQueue


class ModelStatistics(msgspec.Struct, frozen=True):
    """Counts of one model since it was added; ``waiting`` and ``running`` are of now."""

    waiting: int
    running: int
    batches: int
    rows: int
    completed: int
    rejected: int
    expired: int
    cancelled: int
    failed: int
    oldest_arrival_ns: int | None


class SchedulerStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot."""

    models: dict[int, ModelStatistics]
    live: int
    idle_instances: int
    instances: int


class ModelState:
    """What the scheduler keeps for one model."""

    __slots__ = (
        "alone",
        "batches",
        "cancelled",
        "completed",
        "dedicated",
        "expired",
        "failed",
        "limits",
        "queue",
        "rejected",
        "removed",
        "rows",
        "running",
        "running_requests",
        "service_ns",
    )

    def __init__(self, limits: BatchLimits, *, dedicated: bool = False) -> None:
        self.limits = limits
        self.dedicated = dedicated
        self.queue: ModelQueue | LevelledQueue = queue_for(limits)
        self.alone: deque[QueuedRequest] = deque()  # survivors of a failed batch, run singly
        self.running = 0  # batches
        self.running_requests = 0
        self.removed = False
        self.service_ns = 0  # smoothed time of one request, for retry_after
        self.batches = self.rows = 0
        self.completed = self.rejected = self.expired = self.cancelled = self.failed = 0

    def change_limits(self, limits: BatchLimits) -> None:
        """From now on these hold; what waits keeps its order within its level."""
        was, self.limits = self.limits, limits
        if (was.priority_levels, was.default_priority) != (
            limits.priority_levels,
            limits.default_priority,
        ):
            waiting = sorted(self.queue, key=_arrival)
            self.queue = queue_for(limits)
            for request in waiting:
                self.queue.append(request)

    def waiting(self) -> int:
        """Requests queued, counting those that will run alone."""
        return len(self.queue) + len(self.alone)

    def oldest(self) -> QueuedRequest | None:
        """The request that runs next; who must run alone has waited longest."""
        return self.alone[0] if self.alone else self.queue.head()


def _arrival(request: QueuedRequest) -> tuple[int, int]:
    return request.arrival_ns, request.request_id


class RunningBatch(msgspec.Struct, frozen=True, gc=False):
    """One running batch."""

    model: int
    instance_id: int
    request_ids: tuple[int, ...]
    started_ns: int


def model_statistics(model: ModelState) -> ModelStatistics:
    """The public snapshot of one model's record."""
    oldest = [request.arrival_ns for request in model.alone]
    if (queued := model.queue.oldest_arrival_ns()) is not None:
        oldest.append(queued)
    return ModelStatistics(
        waiting=model.waiting(),
        running=model.running_requests,
        batches=model.batches,
        rows=model.rows,
        completed=model.completed,
        rejected=model.rejected,
        expired=model.expired,
        cancelled=model.cancelled,
        failed=model.failed,
        oldest_arrival_ns=min(oldest, default=None),
    )
