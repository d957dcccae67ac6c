"""Which requests run together, when and where, and which do not run at all.

Law: :class:`Scheduler` is the only owner of request state, and :meth:`Scheduler.handle` is
the only way to change it. Same events at the same times, same actions: there is no clock,
no chance and no I/O in here.

Theory of operation. A request is *live* from its arrival until exactly one terminal action
names it (complete, reject, expire, cancel, fail). Live requests are either in the queue of
their model or in exactly one running batch. An instance is idle or runs one batch. After
every event idle instances are given work until nothing that waits can run on anything that
is idle (the pool is work-conserving): the oldest waiting request anywhere chooses the
model, ``batching`` chooses its company.

A running batch cannot be stopped, so a request that expires or is cancelled while it runs
just ceases to be live, and the batch's result for it is dropped. When a batch of several
fails, its members are run again one by one, so that a bad request fails alone.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Any

from headrace.core.actions import (
    Action,
    CancelRequests,
    CompleteRequests,
    ExecuteBatch,
    ExpireRequests,
    FailRequests,
    RejectRequest,
)
from headrace.core.batching import take_batch
from headrace.core.events import (
    NEVER_NS,
    BatchCompleted,
    BatchFailed,
    Event,
    InstanceAdded,
    InstanceRemoved,
    LimitsChanged,
    ModelAdded,
    ModelRemoved,
    QueuedRequest,
    RequestsArrived,
    RequestsCancelled,
    TimerFired,
)
from headrace.core.pool import (
    ModelState,
    RunningBatch,
    SchedulerStatistics,
    model_statistics,
)

_SERVICE_WEIGHT = 8
"""The service time estimate moves an eighth of the way per batch: it follows a change of
load within a few batches and is not thrown about by one."""


class Scheduler:
    """See the module. Not thread-safe: one owner drives it."""

    def __init__(self) -> None:
        self._models: dict[int, ModelState] = {}
        self._waiting: dict[int, ModelState] = {}  # the models that have something queued
        self._live: dict[int, QueuedRequest] = {}
        self._batches: dict[int, RunningBatch] = {}
        self._instances: dict[int, tuple[int, ...]] = {}
        self._idle: list[int] = []  # sorted: the lowest number first keeps its caches warm
        self._next_batch_id = 1
        self._next_expiry_ns = NEVER_NS
        self._handlers: dict[type, Callable[[Any, int, list[Action]], None]] = {
            RequestsArrived: self._on_requests_arrived,
            RequestsCancelled: self._on_requests_cancelled,
            BatchCompleted: self._on_batch_completed,
            BatchFailed: self._on_batch_failed,
            ModelAdded: self._on_model_added,
            LimitsChanged: self._on_limits_changed,
            ModelRemoved: self._on_model_removed,
            InstanceAdded: self._on_instance_added,
            InstanceRemoved: self._on_instance_removed,
            TimerFired: self._on_timer_fired,
        }

    def handle(self, event: Event, *, now_ns: int) -> list[Action]:
        """Takes in one event and says what must be done, in order.

        Raises:
            KeyError: an event names a batch, model or instance that does not exist, or an
                event of an unknown type: a defect of the caller.
        """
        actions: list[Action] = []
        self._handlers[type(event)](event, now_ns, actions)
        if self._idle and self._waiting:
            self._dispatch(now_ns, actions)
        return actions

    def next_wakeup_ns(self) -> int | None:
        """When a :class:`TimerFired` is wanted at the latest, or None.

        A lower bound: it may turn out that nothing expires then, and a later time is given.
        """
        return None if self._next_expiry_ns == NEVER_NS else self._next_expiry_ns

    def statistics(self) -> SchedulerStatistics:
        """An immutable snapshot."""
        return SchedulerStatistics(
            models={number: model_statistics(model) for number, model in self._models.items()},
            live=len(self._live),
            idle_instances=len(self._idle),
            instances=len(self._instances),
        )

    # -- what arrives and leaves ---------------------------------------------------------

    def _on_requests_arrived(
        self, event: RequestsArrived, now_ns: int, actions: list[Action]
    ) -> None:
        live = self._live
        model: ModelState | None = None
        number, room = -1, 0
        for request in event.requests:
            if request.model != number:
                number = request.model
                model = self._models.get(number)
                if model is not None and not model.removed:
                    room = model.limits.max_queue_size - model.waiting()
                    self._waiting[number] = model
                else:
                    model = None
            if model is None:
                actions.append(RejectRequest(request.request_id, "unknown_model"))
            elif room <= 0:
                model.rejected += 1
                actions.append(
                    RejectRequest(request.request_id, "queue_full", self._retry_after_ns(model))
                )
            else:
                room -= 1
                live[request.request_id] = request
                model.queue.append(request)
                if request.deadline_ns < self._next_expiry_ns:
                    self._next_expiry_ns = request.deadline_ns

    def _on_requests_cancelled(
        self, event: RequestsCancelled, now_ns: int, actions: list[Action]
    ) -> None:
        known = [self._live[i] for i in event.request_ids if i in self._live]
        if known:
            for request in self._forget(known):
                self._models[request.model].cancelled += 1
            actions.append(CancelRequests(tuple(r.request_id for r in known)))

    def _on_timer_fired(self, event: TimerFired, now_ns: int, actions: list[Action]) -> None:
        due = [r for r in self._live.values() if r.deadline_ns <= now_ns]
        running = self._running_ids() if due else frozenset()
        for request in self._forget(due):
            self._models[request.model].expired += 1
        for is_running in (False, True):
            ids = tuple(r.request_id for r in due if (r.request_id in running) is is_running)
            if ids:
                actions.append(ExpireRequests(ids, is_running))
        self._next_expiry_ns = min((r.deadline_ns for r in self._live.values()), default=NEVER_NS)

    def _forget(self, requests: list[QueuedRequest]) -> list[QueuedRequest]:
        """Takes live requests out of the queues (or leaves their batch to run without them)."""
        running = self._running_ids()
        queued: dict[int, list[int]] = {}
        for request in requests:
            del self._live[request.request_id]
            if request.request_id not in running:
                queued.setdefault(request.model, []).append(request.request_id)
        for number, request_ids in queued.items():
            model = self._models[number]
            alone = [r for r in model.alone if r.request_id in request_ids]
            for request in alone:
                model.alone.remove(request)
            apart = {r.request_id for r in alone}
            model.queue.remove(i for i in request_ids if i not in apart)
            if not model.waiting():
                del self._waiting[number]
        return requests

    def _running_ids(self) -> frozenset[int]:
        return frozenset(i for batch in self._batches.values() for i in batch.request_ids)

    def _retry_after_ns(self, model: ModelState) -> int:
        """How long the queue will take to empty at the speed of late."""
        return model.waiting() * model.service_ns // max(1, model.limits.max_concurrency)

    # -- what runs -----------------------------------------------------------------------

    def _on_batch_completed(
        self, event: BatchCompleted, now_ns: int, actions: list[Action]
    ) -> None:
        batch, model = self._end_batch(event.batch_id, now_ns)
        live = self._live
        wanted = tuple([i for i in batch.request_ids if live.pop(i, None) is not None])
        if wanted:
            model.completed += len(wanted)
            actions.append(CompleteRequests(event.batch_id, wanted))

    def _on_batch_failed(self, event: BatchFailed, now_ns: int, actions: list[Action]) -> None:
        batch, model = self._end_batch(event.batch_id, now_ns)
        wanted = [self._live[i] for i in batch.request_ids if i in self._live]
        if not wanted:
            return
        if event.retry_alone and len(batch.request_ids) > 1 and not model.removed:
            model.alone.extend(wanted)
            self._waiting[batch.model] = model
            return
        for request in wanted:
            del self._live[request.request_id]
        model.failed += len(wanted)
        actions.append(FailRequests(event.batch_id, tuple(r.request_id for r in wanted)))

    def _end_batch(self, batch_id: int, now_ns: int) -> tuple[RunningBatch, ModelState]:
        batch = self._batches.pop(batch_id)
        model = self._models[batch.model]
        count = len(batch.request_ids)
        model.running -= 1
        model.running_requests -= count
        per_request_ns = (now_ns - batch.started_ns) // count
        model.service_ns += (per_request_ns - model.service_ns) // _SERVICE_WEIGHT
        if batch.instance_id in self._instances:
            insort(self._idle, batch.instance_id)
        if model.removed and not model.running:
            del self._models[batch.model]
        return batch, model

    def _dispatch(self, now_ns: int, actions: list[Action]) -> None:
        """Gives idle instances work, until there is none that fits."""
        for instance_id in tuple(self._idle):
            number = self._choose_model(self._instances[instance_id])
            if number is None:
                continue
            self._idle.remove(instance_id)
            actions.append(self._start_batch(number, instance_id, now_ns))
            if not self._waiting:
                return

    def _choose_model(self, allowed: tuple[int, ...]) -> int | None:
        """The model of the oldest request that can run now; the seam for fairness."""
        eligible = [
            number
            for number, model in self._waiting.items()
            if model.running < model.limits.max_concurrency
            and (number in allowed if allowed or model.dedicated else True)
        ]
        if len(eligible) > 1:
            return min(eligible, key=self._oldest_arrival_ns)
        return eligible[0] if eligible else None

    def _oldest_arrival_ns(self, number: int) -> int:
        oldest = self._waiting[number].oldest()
        return NEVER_NS if oldest is None else oldest.arrival_ns

    def _start_batch(self, number: int, instance_id: int, now_ns: int) -> ExecuteBatch:
        model = self._waiting[number]
        members = [model.alone.popleft()] if model.alone else take_batch(model.queue, model.limits)
        if not model.alone and not model.queue:
            del self._waiting[number]
        rows = sum([member.rows for member in members])
        longest = max([member.length for member in members])
        request_ids = tuple([member.request_id for member in members])
        batch_id = self._next_batch_id
        self._next_batch_id = batch_id + 1
        self._batches[batch_id] = RunningBatch(number, instance_id, request_ids, now_ns)
        model.running += 1
        model.running_requests += len(request_ids)
        model.batches += 1
        model.rows += rows
        return ExecuteBatch(batch_id, instance_id, number, request_ids, rows, longest)

    # -- what is there to run on ---------------------------------------------------------

    def _on_model_added(self, event: ModelAdded, now_ns: int, actions: list[Action]) -> None:
        if event.model in self._models:
            raise KeyError(f"model {event.model} was added before")
        self._models[event.model] = ModelState(event.limits, dedicated=event.dedicated)

    def _on_limits_changed(self, event: LimitsChanged, now_ns: int, actions: list[Action]) -> None:
        self._models[event.model].change_limits(event.limits)

    def _on_model_removed(self, event: ModelRemoved, now_ns: int, actions: list[Action]) -> None:
        model = self._models[event.model]
        model.removed = True
        waiting = [*model.alone, *model.queue]
        for request in self._forget(waiting):
            model.rejected += 1
            actions.append(RejectRequest(request.request_id, "model_removed"))
        if not model.running:
            del self._models[event.model]

    def _on_instance_added(self, event: InstanceAdded, now_ns: int, actions: list[Action]) -> None:
        if event.instance_id in self._instances:
            raise KeyError(f"instance {event.instance_id} was added before")
        self._instances[event.instance_id] = event.models
        insort(self._idle, event.instance_id)

    def _on_instance_removed(
        self, event: InstanceRemoved, now_ns: int, actions: list[Action]
    ) -> None:
        del self._instances[event.instance_id]
        if event.instance_id in self._idle:
            self._idle.remove(event.instance_id)

    # -- what must always hold -----------------------------------------------------------

    def check_invariants(self) -> None:
        """Asserts what must hold between any two events. O(everything); for tests.

        Raises:
            AssertionError: this class has a defect; the message says which law broke.
        """
        seen: dict[int, str] = {}
        for number, model in self._models.items():
            self._check_model(number, model, seen)
        for batch_id, batch in self._batches.items():
            for request_id in batch.request_ids:
                assert request_id not in seen, f"request {request_id} in two places"
                seen[request_id] = f"batch {batch_id}"
        missing = self._live.keys() - seen.keys()
        assert not missing, f"live but neither queued nor running: {sorted(missing)}"
        busy = [b.instance_id for b in self._batches.values()]
        assert len(busy) == len(set(busy)), "one instance runs two batches"
        assert self._idle == sorted(set(self._idle)), "idle list out of order"
        assert not set(busy) & set(self._idle), "an instance is idle and busy"
        expected_idle = self._instances.keys() - set(busy)
        assert set(self._idle) == expected_idle, "an instance is neither idle nor busy"
        for instance_id in self._idle:
            allowed = self._instances[instance_id]
            assert self._choose_model(allowed) is None, "an idle instance could work"
        earliest = min((r.deadline_ns for r in self._live.values()), default=NEVER_NS)
        assert self._next_expiry_ns <= earliest, "a deadline would be missed"

    def _check_model(self, number: int, model: ModelState, seen: dict[int, str]) -> None:
        waiting = [*model.alone, *model.queue]
        assert len(waiting) == model.waiting(), f"model {number} miscounts its queue"
        assert bool(waiting) == (number in self._waiting), f"model {number} is misfiled"
        for request in waiting:
            assert request.request_id in self._live, f"queued but dead: {request}"
            assert request.request_id not in seen, f"queued twice: {request}"
            assert request.model == number, f"in the wrong queue: {request}"
            seen[request.request_id] = "queue"
        running = [b for b in self._batches.values() if b.model == number]
        assert model.running == len(running), f"model {number} miscounts its batches"
        assert model.running_requests == sum(len(b.request_ids) for b in running)
