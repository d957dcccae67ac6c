"""What the scheduler keeps for one model. No decisions.

Only :class:`headrace.core.scheduler.Scheduler` changes these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil, exp

import msgspec

from headrace.core.events import BatchLimits, LearntCost, ModelAdded, QueuedRequest
from headrace.core.fairness import Fairness, FairQueue
from headrace.core.latency import LatencyModel
from headrace.core.priorities import LevelledQueue, Queue, queue_for
from headrace.core.urgency import largest_of, units_of

_RATE_SPAN_NS = 30e6
"""Arrivals of so long ago count for a third. Some batches long, so that the rate is of this
burst and not of this minute."""

_RATE_STEP_NS = 300_000
"""How often the rate is worked out anew: a hundredth of the span."""

_LOSS_REQUESTS = 1024
"""What was lost is looked at over so many: several bursts, so that one is no overload."""

_SHARE_SPAN_NS = 1e9
"""The same for the time of instances that a model used."""


class ModelStatistics(msgspec.Struct, frozen=True):
    """Counts of one model since it was added; ``waiting`` and ``running`` are of now.

    ``rejected`` counts all that were refused, ``given_up`` those of them that had waited first,
    ``hurried`` the requests whose due time not even an idle machine could have kept. ``late``
    were answered, after they were due. ``level`` and ``spread`` are of ``latency``;
    ``costs`` what was learnt, by kind of instance.
    """

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
    given_up: int = 0
    hurried: int = 0
    late: int = 0
    level: float = 1.0
    spread: float = 1.0
    waiting_rows: int = 0
    waiting_bytes: int = 0
    costs: dict[int, LearntCost] = {}


class SchedulerStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot."""

    models: dict[int, ModelStatistics]
    live: int
    idle_instances: int
    instances: int


Weight = tuple[int, int, int]
"""Rows, units of work, and bytes of inputs."""


class ModelState:
    """What the scheduler keeps for one model."""

    __slots__ = (
        "_came",
        "_count",
        "_fair",
        "_fairness",
        "_rate",
        "_rate_ns",
        "_used",
        "_used_ns",
        "alone",
        "batches",
        "cancelled",
        "completed",
        "cost",
        "costs",
        "dedicated",
        "expired",
        "failed",
        "given_up",
        "hurried",
        "late",
        "limits",
        "loss",
        "queue",
        "rejected",
        "removed",
        "rows",
        "running",
        "running_requests",
        "service_ns",
        "waiting_bytes",
        "waiting_rows",
        "waiting_units",
    )

    def __init__(self, added: ModelAdded, fairness: Fairness) -> None:
        self.limits = limits = added.limits
        self.dedicated = added.dedicated
        self._fairness = fairness
        self._fair = False
        self.queue: Queue = queue_for(limits, fairness, fair=False)
        self.alone: deque[QueuedRequest] = deque()  # survivors of a failed batch, run singly
        self._count = 0  # of both, as are these
        self.waiting_rows = self.waiting_units = self.waiting_bytes = 0
        self.costs = {kind: LatencyModel(learnt) for kind, learnt in added.costs.items()}
        # Of the kind that ran it last: what is asked where no instance is chosen yet.
        self.cost = next(iter(self.costs.values()), None) or self.costs.setdefault(
            0, LatencyModel()
        )
        self.running = 0  # batches
        self.running_requests = 0
        self.removed = False
        self.service_ns = 0  # smoothed time of one request, for retry_after
        self.batches = self.rows = 0
        self.completed = self.rejected = self.expired = self.cancelled = self.failed = 0
        self.given_up = self.hurried = self.late = 0
        self.loss = 0.0  # of the requests of late, the part that was refused
        self._rate = self._used = 0.0
        self._came = 0  # units since _rate_ns
        self._rate_ns = self._used_ns = 0

    def cost_on(self, kind: int) -> LatencyModel:
        """What is known of its batches on this kind of instance."""
        cost = self.costs.get(kind)
        if cost is None:
            cost = self.costs[kind] = LatencyModel()
        return cost

    def change_limits(self, limits: BatchLimits) -> None:
        """From now on these hold; what waits keeps its order within its level."""
        was, self.limits = self.limits, limits
        if (was.priority_levels, was.default_priority) != (
            limits.priority_levels,
            limits.default_priority,
        ):
            self.lay_anew()
        if bool(was.max_padded_tokens) != bool(limits.max_padded_tokens):
            # What was learnt per row says nothing about tokens, and the other way round.
            self.costs = {kind: LatencyModel() for kind in self.costs}
            self.cost = next(iter(self.costs.values()))
            self.waiting_units = sum([units_of(r, limits) for r in (*self.alone, *self.queue)])

    def lay_anew(self) -> None:
        """Levels or terms have changed: everybody who waits is put where it belongs now."""
        waiting = sorted(self.queue, key=lambda r: (r.arrival_ns, r.request_id))
        self.queue = queue_for(self.limits, self._fairness, fair=self._fair)
        for request in waiting:
            self.queue.append(request)

    def enter(self, requests: Sequence[QueuedRequest], weight: Weight) -> None:
        """These wait from now on, and weigh so much."""
        if self._fairness.enabled and not self._fair:
            self._fair = True
            self.lay_anew()
        append = self.queue.append
        for request in requests:
            append(request)
        self._waits(len(requests), weight)

    def _waits(self, count: int, weight: Weight) -> None:
        rows, units, size_bytes = weight
        self._count += count
        self.waiting_rows += rows
        self.waiting_units += units
        self.waiting_bytes += size_bytes

    def left(self, requests: Sequence[QueuedRequest]) -> None:
        """These no longer wait, and are out of the queue already."""
        rows, units, size_bytes = self.weigh(requests)
        self._waits(-len(requests), (-rows, -units, -size_bytes))

    def weigh(self, requests: Sequence[QueuedRequest]) -> Weight:
        """Their rows, units of work and bytes."""
        tokens = self.limits.max_padded_tokens
        if len(requests) == 1:
            request = requests[0]
            rows = request.rows
            return rows, rows * (request.length or 1) if tokens else rows, request.size_bytes
        rows = units = sum([request.rows for request in requests])
        if tokens:
            units = sum([request.rows * (request.length or 1) for request in requests])
        return rows, units, sum([request.size_bytes for request in requests])

    def gave_up(self, requests: Sequence[QueuedRequest]) -> None:
        """These waited, and are refused after all."""
        self.left(requests)
        self.lost(len(requests))
        self.given_up += len(requests)

    def lost(self, requests: int) -> None:
        """So many were refused, at the door or later."""
        self.rejected += requests
        self.loss += requests / _LOSS_REQUESTS

    def alone_after_ns(self, request: QueuedRequest, now_ns: int) -> int:
        """How long after its arrival a request that ran alone now would be answered."""
        finish_ns = now_ns + self.cost.predict_ns(units_of(request, self.limits))
        return ceil(finish_ns - request.arrival_ns)

    def retry_alone(self, requests: list[QueuedRequest]) -> None:
        """These were in a batch that failed; each deserves a run of its own."""
        self.alone.extend(requests)
        self._waits(len(requests), self.weigh(requests))

    def begun(
        self, members: list[QueuedRequest], rows: int, units: int, cost_ns: float, now_ns: int
    ) -> None:
        """A batch of these was handed to an instance."""
        self.running += 1
        self.running_requests += len(members)
        self.batches += 1
        self.rows += rows
        if self.limits.min_share:
            self._used, self._used_ns = self.use(now_ns) + cost_ns / _SHARE_SPAN_NS, now_ns
        if self._fair:
            self.charge(members, cost_ns, units)

    def owed_ns(self) -> float:
        """The time of instances that what waits will take, in large batches."""
        largest = largest_of(self.limits)
        return self.cost.predict_ns(largest) * self.waiting_units / largest

    def retry_after_ns(self) -> int:
        """How long the queue will take to empty at the speed of late."""
        return self.waiting() * self.service_ns // max(1, self.limits.max_concurrency)

    def waiting(self) -> int:
        """Requests queued, counting those that will run alone."""
        return self._count

    def oldest(self) -> QueuedRequest | None:
        """The request that runs next; who must run alone has waited longest."""
        return self.alone[0] if self.alone else self.queue.head()

    def has_room(self, count: int, weight: Weight) -> bool:
        """Whether so many requests of that weight fit below every bound."""
        if count == 1 and not self.waiting_rows:
            return True  # by itself it is always let in
        limits = self.limits
        rows, units, size_bytes = weight
        return (
            self._count + count <= limits.max_queue_size
            and (not limits.max_queue_rows or self.waiting_rows + rows <= limits.max_queue_rows)
            and (
                not limits.max_queue_tokens or self.waiting_units + units <= limits.max_queue_tokens
            )
            and (
                not limits.max_queue_bytes
                or self.waiting_bytes + size_bytes <= limits.max_queue_bytes
            )
        )

    def bound_reached(self, request: QueuedRequest) -> str:
        """The name of the bound of the queue that has no room for it; "" if there is room."""
        limits = self.limits
        if self._count >= limits.max_queue_size:
            return "max_queue_size"
        # What is larger than a bound by itself is let in when nothing else waits.
        if limits.max_queue_rows and 0 < self.waiting_rows > limits.max_queue_rows - request.rows:
            return "max_queue_rows"
        if limits.max_queue_bytes and (
            0 < self.waiting_bytes > limits.max_queue_bytes - request.size_bytes
        ):
            return "max_queue_bytes"
        if limits.max_queue_tokens and limits.max_padded_tokens:
            units = units_of(request, limits)
            if 0 < self.waiting_units > limits.max_queue_tokens - units:
                return "max_queue_tokens"
        return ""

    def arrived(self, requests: int, units: int, now_ns: int) -> None:
        """So much work came."""
        self.loss -= self.loss * min(requests, _LOSS_REQUESTS) / _LOSS_REQUESTS
        self._came += units
        elapsed_ns = now_ns - self._rate_ns
        if elapsed_ns > _RATE_STEP_NS:
            self._rate = self._rate * exp(-elapsed_ns / _RATE_SPAN_NS) + self._came / _RATE_SPAN_NS
            self._came = 0
            self._rate_ns = now_ns

    def rate(self, now_ns: int) -> float:
        """Units of work that arrive per nanosecond, of late."""
        return self._rate * exp(-max(0, now_ns - self._rate_ns) / _RATE_SPAN_NS)

    def use(self, now_ns: int) -> float:
        """How many instances it kept busy of late, about."""
        return self._used * exp(-max(0, now_ns - self._used_ns) / _SHARE_SPAN_NS)

    def charge(self, members: list[QueuedRequest], cost_ns: float, units: int) -> None:
        """Divides the cost of a batch among the tenants that are in it."""
        fairness = self._fairness
        fairness.turn_of(min([request.tenant for request in members], key=fairness.time_of))
        unit_ns = cost_ns / units
        for request in members:
            share_ns = unit_ns * units_of(request, self.limits)
            fairness.served(request.tenant, share_ns)
        lanes = self.queue.lanes() if isinstance(self.queue, LevelledQueue) else (self.queue,)
        for lane in lanes:
            if isinstance(lane, FairQueue):
                lane.unit_ns = unit_ns


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
        given_up=model.given_up,
        hurried=model.hurried,
        late=model.late,
        level=model.cost.level,
        spread=model.cost.spread,
        waiting_rows=model.waiting_rows,
        waiting_bytes=model.waiting_bytes,
        costs={kind: cost.state() for kind, cost in model.costs.items() if cost},
    )
