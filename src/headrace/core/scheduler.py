"""Which requests run together, when and where, and which do not run at all.

Law: :class:`Scheduler` is the only owner of request state, and :meth:`Scheduler.handle` is
the only way to change it. Same events at the same times, same actions: there is no clock,
no chance and no I/O in here.

Theory of operation. A request is *live* from its arrival until exactly one terminal action
names it (complete, reject, expire, cancel, fail). Live requests are either in the queue of
their model or in exactly one running batch. An instance is idle or runs one batch. After
every event idle instances are given work until nothing that waits can run on anything that
is idle, or had better wait for company (``urgency``): ``selection`` chooses the model,
``batching`` its requests, ``admission`` who gets into the queue at all, and all of them go by
what ``latency`` has learnt.

A running batch cannot be stopped, so a request that expires or is cancelled while it runs
just ceases to be live, and the batch's result for it is dropped. When a batch of several
fails, its members are run again one by one, so that a bad request fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from headrace.core.admission import Door
from headrace.core.batching import form_batch
from headrace.core.books import Books
from headrace.core.events import (
    NEVER_NS,
    BatchAbandoned,
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
    TenantsChanged,
    TimerFired,
)
from headrace.core.fairness import Fairness
from headrace.core.instances import RunningBatch
from headrace.core.invariants import check
from headrace.core.pool import ModelState, SchedulerStatistics, model_statistics
from headrace.core.priorities import giving_way
from headrace.core.selection import in_turn, start_after_ns


class Scheduler:
    """See the module. Not thread-safe: one owner drives it."""

    def __init__(self) -> None:
        self._books = Books()
        self._models = self._books.models
        self._waiting = self._books.waiting
        self._live = self._books.live
        self._instances = self._books.instances
        self._fairness = Fairness()
        self._next_batch_id = 1
        self._next_expiry_ns = NEVER_NS
        self._next_start_ns = NEVER_NS  # of a batch that waits for company
        self._handlers: dict[type, Callable[[Any, int, list[Action]], None]] = {
            RequestsArrived: self._on_requests_arrived,
            RequestsCancelled: self._on_requests_cancelled,
            BatchCompleted: self._on_batch_completed,
            BatchFailed: self._on_batch_failed,
            BatchAbandoned: self._on_batch_abandoned,
            ModelAdded: self._on_model_added,
            LimitsChanged: self._on_limits_changed,
            ModelRemoved: self._on_model_removed,
            InstanceAdded: lambda event, *_: self._instances.add(event),
            InstanceRemoved: lambda event, *_: self._instances.remove(event.instance_id),
            TenantsChanged: self._on_tenants_changed,
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
        if self._waiting and self._instances.idle:
            self._dispatch(now_ns, actions)
        else:
            self._next_start_ns = NEVER_NS
        return actions

    def next_wakeup_ns(self) -> int | None:
        """When a :class:`TimerFired` is wanted at the latest, or None.

        A lower bound: it may turn out that nothing expires then, and a later time is given.
        """
        wakeup_ns = min(self._next_expiry_ns, self._next_start_ns)
        return None if wakeup_ns == NEVER_NS else wakeup_ns

    def execution_limit_ns(self, batch_id: int, *, wanted: bool) -> int:
        """How long a running batch may take; see ``overtime``."""
        return self._books.execution_limit_ns(batch_id, wanted=wanted)

    def statistics(self) -> SchedulerStatistics:
        """An immutable snapshot."""
        return SchedulerStatistics(
            models={number: model_statistics(model) for number, model in self._models.items()},
            live=len(self._live),
            idle_instances=len(self._instances.idle),
            instances=len(self._instances),
        )

    # -- what arrives and leaves ---------------------------------------------------------

    def _on_requests_arrived(
        self, event: RequestsArrived, now_ns: int, actions: list[Action]
    ) -> None:
        requests = event.requests
        numbers = dict.fromkeys([request.model for request in requests])  # in order of arrival
        for number in numbers:
            if len(numbers) > 1:
                requests = [request for request in event.requests if request.model == number]
            door = self._books.door(number, requests, now_ns)
            if door is None:
                actions += [RejectRequest(r.request_id, "unknown_model") for r in requests]
                continue
            if not door.calm:
                requests = self._ask(door, requests, actions)
            else:
                door.model.enter(requests, door.weight)
            live = self._live
            for request in requests:
                live[request.request_id] = request
                if request.deadline_ns < self._next_expiry_ns:
                    self._next_expiry_ns = request.deadline_ns
            if requests or door.model.waiting_rows:
                self._waiting[number] = door.model

    def _ask(
        self, door: Door, requests: list[QueuedRequest], actions: list[Action]
    ) -> list[QueuedRequest]:
        """Lets in, one by one, whom there is room and time for; those who are in."""
        model = door.model
        entered: dict[int, QueuedRequest] = {}
        for request in requests:
            answer = door.ask(request)
            if isinstance(answer, RejectRequest):
                model.lost(1)
                actions.append(answer)
                continue
            victim: QueuedRequest | None = answer
            while bound := model.bound_reached(answer):
                victim = giving_way(model.queue, answer)
                refused = victim or answer
                reason = "queue_full" if victim is None else "shed"
                retry_ns = model.retry_after_ns()
                actions.append(RejectRequest(refused.request_id, reason, retry_ns, limit=bound))
                model.lost(1)
                if victim is None:
                    break
                if entered.pop(victim.request_id, None) is None:
                    del self._live[victim.request_id]
                model.queue.remove((victim.request_id,))
                model.left((victim,))
            if victim is not None:
                entered[answer.request_id] = answer
                model.enter((answer,), model.weigh((answer,)))
        return list(entered.values())

    def _on_requests_cancelled(
        self, event: RequestsCancelled, now_ns: int, actions: list[Action]
    ) -> None:
        known = [self._live[i] for i in event.request_ids if i in self._live]
        for request in self._books.forget(known):
            self._models[request.model].cancelled += 1
        if known:
            actions.append(CancelRequests(tuple(r.request_id for r in known)))

    def _on_timer_fired(self, event: TimerFired, now_ns: int, actions: list[Action]) -> None:
        if now_ns < self._next_expiry_ns:
            return  # it is for a batch that waited for company
        due = [r for r in self._live.values() if r.deadline_ns <= now_ns]
        running = self._books.running_ids() if due else frozenset()
        for request in self._books.forget(due):
            self._models[request.model].expired += 1
        for is_running in (False, True):
            ids = tuple(r.request_id for r in due if (r.request_id in running) is is_running)
            actions += [ExpireRequests(ids, is_running)] if ids else []
        self._next_expiry_ns = min((r.deadline_ns for r in self._live.values()), default=NEVER_NS)

    # -- what runs -----------------------------------------------------------------------

    def _on_batch_completed(
        self, event: BatchCompleted, now_ns: int, actions: list[Action]
    ) -> None:
        batch, model = self._books.end_batch(event.batch_id, now_ns)
        model.cost_on(batch.kind).observe(batch.units, now_ns - batch.started_ns, now_ns)
        live = self._live
        model.late += self._books.late(batch, now_ns) if now_ns > batch.due_ns else 0
        wanted = tuple([i for i in batch.request_ids if live.pop(i, None) is not None])
        if wanted:
            model.completed += len(wanted)
            actions.append(CompleteRequests(event.batch_id, wanted))

    def _on_batch_failed(self, event: BatchFailed, now_ns: int, actions: list[Action]) -> None:
        batch, model = self._books.end_batch(event.batch_id, now_ns)
        wanted = [self._live[i] for i in batch.request_ids if i in self._live]
        if not wanted:
            return
        if event.retry_alone and len(batch.request_ids) > 1 and not model.removed:
            model.retry_alone(wanted)
            self._waiting[batch.model] = model
            return
        for request in wanted:
            del self._live[request.request_id]
        model.failed += len(wanted)
        actions.append(FailRequests(event.batch_id, tuple(r.request_id for r in wanted)))

    def _on_batch_abandoned(
        self, event: BatchAbandoned, now_ns: int, actions: list[Action]
    ) -> None:
        if waited := self._books.abandon(event.batch_id):
            actions.append(FailRequests(event.batch_id, waited))

    def _dispatch(self, now_ns: int, actions: list[Action]) -> None:
        """Gives idle instances work, until there is none that fits."""
        self._next_start_ns = NEVER_NS
        patient: set[int] = set()  # models that had rather wait, wherever it is
        for instance_id in tuple(self._instances.idle):
            for number in in_turn(self._waiting, self._instances, instance_id, now_ns):
                if number in patient:
                    continue
                if self._start_batch(number, instance_id, now_ns, actions):
                    break
                patient.add(number)
            if len(patient) >= len(self._waiting):
                return

    def _start_batch(
        self, number: int, instance_id: int, now_ns: int, actions: list[Action]
    ) -> bool:
        """Whether a batch was started: it may wait for company, or nobody could be saved."""
        model, limits = self._waiting[number], self._waiting[number].limits
        kind = self._instances.kind_of(instance_id)
        cost = model.cost = model.cost_on(kind)
        if model.alone:
            members = [model.alone.popleft()]
        else:
            if len(self._instances) > 1:
                until_ns = start_after_ns(number, model, self._instances, now_ns)
                if until_ns:
                    self._next_start_ns = min(self._next_start_ns, until_ns)
                    return False
            members, hopeless, in_the_way = form_batch(model.queue, limits, cost, now_ns)
            if hopeless:
                self._give_up(model, hopeless, "overdue", now_ns, actions)
            if in_the_way:
                self._give_up(model, in_the_way, "shed", now_ns, actions)
        rows = sum([member.rows for member in members])
        model.left(members)
        if not model.waiting_rows:
            del self._waiting[number]
        if not members:
            return False
        longest = max([member.length for member in members])
        units = rows * max(1, longest) if limits.max_padded_tokens else rows
        request_ids = tuple([member.request_id for member in members])
        cost_ns = cost.predict_ns(units)
        batch_id = self._next_batch_id
        self._next_batch_id = batch_id + 1
        self._instances.begin(
            batch_id,
            RunningBatch(
                number,
                instance_id,
                kind,
                request_ids,
                units,
                now_ns,
                now_ns + cost_ns,
                min([member.due_ns for member in members]),
            ),
        )
        model.begun(members, rows, units, cost_ns, now_ns)
        actions.append(ExecuteBatch(batch_id, instance_id, number, request_ids, rows, longest))
        return True

    def _give_up(
        self,
        model: ModelState,
        requests: Sequence[QueuedRequest],
        reason: str,
        now_ns: int,
        actions: list[Action],
    ) -> None:
        model.gave_up(requests)
        retry_ns = model.retry_after_ns()
        for request in requests:
            del self._live[request.request_id]
            predicted_ns = model.alone_after_ns(request, now_ns)
            actions.append(RejectRequest(request.request_id, reason, retry_ns, predicted_ns))

    # -- what is there to run on ---------------------------------------------------------

    def _on_model_added(self, event: ModelAdded, now_ns: int, actions: list[Action]) -> None:
        if event.model in self._models:
            raise KeyError(f"model {event.model} was added before")
        self._models[event.model] = ModelState(event, self._fairness)

    def _on_limits_changed(self, event: LimitsChanged, now_ns: int, actions: list[Action]) -> None:
        self._models[event.model].change_limits(event.limits)

    def _on_model_removed(self, event: ModelRemoved, now_ns: int, actions: list[Action]) -> None:
        model = self._models[event.model]
        model.removed = True
        waiting = [*model.alone, *model.queue]
        for request in self._books.forget(waiting):
            model.rejected += 1
            actions.append(RejectRequest(request.request_id, "model_removed"))
        if not model.running:
            del self._models[event.model]

    def _on_tenants_changed(
        self, event: TenantsChanged, now_ns: int, actions: list[Action]
    ) -> None:
        self._fairness.change(event)
        for model in self._models.values():
            model.lay_anew()

    def check_invariants(self) -> None:
        """Asserts what must hold between any two events. O(everything); for tests.

        Raises:
            AssertionError: this class has a defect; the message says which law broke.
        """
        start_ns = None if self._next_start_ns == NEVER_NS else self._next_start_ns
        check(self._books, self.next_wakeup_ns(), start_ns)
