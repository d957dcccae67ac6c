"""Any order of events: nothing lost, nothing answered twice, limits hold, everything ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.core.actions import (
    CancelRequests,
    CompleteRequests,
    ExecuteBatch,
    ExpireRequests,
    FailRequests,
    RejectRequest,
)
from headrace.core.events import (
    NEVER_NS,
    BatchCompleted,
    BatchFailed,
    BatchLimits,
    InstanceAdded,
    InstanceRemoved,
    LearntCost,
    LimitsChanged,
    ModelAdded,
    ModelRemoved,
    QueuedRequest,
    RequestsArrived,
    RequestsCancelled,
    TenantsChanged,
    TenantTerms,
    TimerFired,
)
from headrace.core.scheduler import Scheduler

LIMITS = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 8),
    max_padded_tokens=st.sampled_from([0, 0, 64, 256]),
    batch_overhead_tokens=st.integers(0, 32),
    max_queue_size=st.integers(1, 12),
    max_concurrency=st.integers(1, 3),
    priority_levels=st.sampled_from([0, 0, 1, 3]),
    default_priority=st.integers(0, 4),
    max_queue_rows=st.sampled_from([0, 0, 0, 12]),
    max_queue_tokens=st.sampled_from([0, 0, 0, 300]),
    max_queue_bytes=st.sampled_from([0, 0, 0, 40]),
    strict_slo=st.booleans(),
    min_share=st.sampled_from([0.0, 0.0, 0.3, 0.9]),
)
COSTS = st.sampled_from(
    [{}, {0: LearntCost(((1.0, 4.0), (8.0, 8.0)))}, {0: LearntCost(((1.0, 10.0), (256.0, 60.0)))}]
)
LATE = {"deadline_unreachable", "overdue"}
TERMS = st.builds(
    TenantTerms, share=st.sampled_from([0.5, 1.0, 3.0]), priority_max=st.integers(0, 4)
)


def level_of(request: QueuedRequest, limits: BatchLimits) -> int:
    """Its level, as Triton has it; everybody's is the same where there are no levels."""
    levels = limits.priority_levels
    if levels < 2:
        return 1
    default = limits.default_priority if 0 < limits.default_priority <= levels else levels
    return request.priority if 0 < request.priority <= levels else default


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine, and keeps its own books."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.now_ns = 0
        self.next_id = 1
        self.next_model = 1
        self.models: dict[int, BatchLimits] = {}
        self.instances: set[int] = set()
        self.next_instance = 0
        self.open: dict[int, QueuedRequest] = {}
        self.ended: set[int] = set()
        self.running: dict[int, ExecuteBatch] = {}
        self.failed: set[int] = set()
        self.rejected: set[int] = set()
        self.hurried = self.fair = False  # whether due times or tenants decide too

    def send(self, event) -> None:
        actions = self.scheduler.handle(event, now_ns=self.now_ns)
        self.rejected |= {a.request_id for a in actions if isinstance(a, RejectRequest)}
        for action in actions:
            if isinstance(action, ExecuteBatch):
                self.start(action)
            else:
                ids = getattr(action, "request_ids", None) or (action.request_id,)
                for request_id in ids:
                    self.end(request_id, action)

    def start(self, batch: ExecuteBatch) -> None:
        assert batch.instance_id in self.instances
        assert batch.instance_id not in {b.instance_id for b in self.running.values()}
        members = [self.open[request_id] for request_id in batch.request_ids]
        limits = self.models[batch.model]
        assert {m.model for m in members} == {batch.model}
        assert len({m.shape_key for m in members}) == 1
        assert batch.rows == sum(m.rows for m in members)
        assert batch.padded_length == max(m.length for m in members)
        if len(members) > 1:
            assert batch.rows <= limits.max_rows
            if limits.max_padded_tokens:
                assert batch.rows * batch.padded_length <= limits.max_padded_tokens
        if not (self.hurried or self.fair):
            self.is_led_by_the_first(batch, limits)
        self.running[batch.batch_id] = batch

    def is_led_by_the_first(self, batch, limits) -> None:
        """Whoever is first, of all that wait for this model, is in the batch."""
        taken = set(batch.request_ids)
        if taken & self.failed:
            self.failed -= taken
            return  # a survivor of a failed batch runs alone, before all others
        busy = {i for b in self.running.values() for i in b.request_ids} | self.failed
        waiting = [
            request
            for request in self.open.values()
            if request.model == batch.model and request.request_id not in busy
            if request.request_id in taken or request.request_id not in self.rejected
        ]
        first = min(waiting, key=lambda r: (level_of(r, limits), r.arrival_ns, r.request_id))
        assert first.request_id in taken

    def end(self, request_id: int, action) -> None:
        assert request_id in self.open, f"{action} names a request that is not open"
        request = self.open.pop(request_id)
        self.ended.add(request_id)
        if isinstance(action, ExpireRequests):
            assert request.deadline_ns <= self.now_ns
        if isinstance(action, RejectRequest) and action.reason in LATE:
            assert request.arrival_ns + action.predicted_ns > request.due_ns
        if isinstance(action, RejectRequest) and action.limit:
            assert getattr(self.models[request.model], action.limit) > 0
        assert isinstance(
            action,
            CompleteRequests | RejectRequest | ExpireRequests | CancelRequests | FailRequests,
        )

    @rule(limits=LIMITS, costs=COSTS)
    def add_model(self, limits, costs) -> None:
        self.models[self.next_model] = limits
        self.send(ModelAdded(self.next_model, limits, costs=costs))
        self.next_model += 1

    @rule(data=st.data())
    def remove_model(self, data) -> None:
        if self.models:
            model = data.draw(st.sampled_from(sorted(self.models)))
            self.send(ModelRemoved(model))
            if not any(b.model == model for b in self.running.values()):
                del self.models[model]
            else:
                self.models[model] = BatchLimits(max_queue_size=1)
                self.removed = model
                for batch_id in [i for i, b in self.running.items() if b.model == model]:
                    self.finish(batch_id, BatchCompleted(batch_id))
                del self.models[model]

    @rule(limits=LIMITS, data=st.data())
    def change_limits(self, limits, data) -> None:
        if self.models:
            model = data.draw(st.sampled_from(sorted(self.models)))
            self.models[model] = limits
            self.send(LimitsChanged(model, limits))

    @rule(terms=st.dictionaries(st.integers(1, 3), TERMS), otherwise=TERMS)
    def change_tenants(self, terms, otherwise) -> None:
        self.fair = True
        self.send(TenantsChanged(terms, otherwise))

    @rule()
    def add_instance(self) -> None:
        self.instances.add(self.next_instance)
        self.next_instance += 1
        self.send(InstanceAdded(self.next_instance - 1))

    @rule(data=st.data())
    def remove_instance(self, data) -> None:
        if self.instances:
            instance = data.draw(st.sampled_from(sorted(self.instances)))
            self.instances.discard(instance)
            self.send(InstanceRemoved(instance))

    @rule(
        count=st.integers(1, 6),
        rows=st.integers(1, 10),
        length=st.integers(0, 80),
        shape=st.integers(0, 1),
        priority=st.integers(0, 5),
        patience=st.one_of(st.none(), st.integers(1, 50)),
        wanted=st.one_of(st.none(), st.none(), st.integers(1, 50)),
        tenant=st.integers(0, 4),
        size_bytes=st.integers(0, 20),
        data=st.data(),
    )
    def arrive(
        self, count, rows, length, shape, priority, patience, wanted, tenant, size_bytes, data
    ) -> None:
        self.hurried = self.hurried or wanted is not None
        models = [*sorted(self.models), 999]
        requests = []
        for _ in range(count):
            deadline = NEVER_NS if patience is None else self.now_ns + patience
            request = QueuedRequest(
                self.next_id,
                data.draw(st.sampled_from(models)),
                rows,
                length,
                shape,
                self.now_ns,
                deadline,
                priority,
                tenant,
                NEVER_NS if wanted is None else min(deadline, self.now_ns + wanted),
                size_bytes,
            )
            self.next_id += 1
            self.open[request.request_id] = request
            requests.append(request)
        self.send(RequestsArrived(requests))

    @rule(data=st.data(), outcome=st.sampled_from(["completed", "failed", "died"]))
    def batch_ends(self, data, outcome) -> None:
        if self.running:
            batch_id = data.draw(st.sampled_from(sorted(self.running)))
            if outcome == "completed":
                self.finish(batch_id, BatchCompleted(batch_id))
            else:
                self.finish(batch_id, BatchFailed(batch_id, retry_alone=outcome == "failed"))

    def finish(self, batch_id, event) -> None:
        batch = self.running.pop(batch_id)
        if isinstance(event, BatchFailed) and event.retry_alone and len(batch.request_ids) > 1:
            self.failed |= {i for i in batch.request_ids if i in self.open}
        self.send(event)

    @rule(data=st.data())
    def cancel(self, data) -> None:
        ids = data.draw(st.lists(st.integers(1, max(1, self.next_id)), max_size=4, unique=True))
        expected = {i for i in ids if i in self.open}
        self.send(RequestsCancelled(tuple(ids)))
        assert not expected & self.open.keys()

    @rule(passed=st.integers(0, 60))
    def time_passes(self, passed) -> None:
        self.now_ns += passed
        wakeup = self.scheduler.next_wakeup_ns()
        if wakeup is not None and wakeup <= self.now_ns:
            self.send(TimerFired())
            assert all(r.deadline_ns > self.now_ns for r in self.open.values())

    @invariant()
    def laws_hold(self) -> None:
        self.scheduler.check_invariants()
        statistics = self.scheduler.statistics()
        assert statistics.live == len(self.open)
        for number, model in statistics.models.items():
            assert model.waiting <= len(self.open), number
        wakeup = self.scheduler.next_wakeup_ns()
        assert wakeup is None or wakeup > 0

    def teardown(self) -> None:
        """Liveness: with an instance and successful batches every request ends."""
        if not self.instances:
            self.add_instance()
        for _ in range(10_000):
            if not self.open:
                return
            if self.running:
                batch_id = min(self.running)
                self.finish(batch_id, BatchCompleted(batch_id))
            else:  # what is left waits for company, and says until when
                self.now_ns = max(self.now_ns, self.scheduler.next_wakeup_ns())
                self.send(TimerFired())
        raise AssertionError(f"never ended: {sorted(self.open)}")


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
