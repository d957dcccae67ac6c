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
    LimitsChanged,
    ModelAdded,
    ModelRemoved,
    QueuedRequest,
    RequestsArrived,
    RequestsCancelled,
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
)


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

    def send(self, event) -> None:
        for action in self.scheduler.handle(event, now_ns=self.now_ns):
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
        self.running[batch.batch_id] = batch

    def end(self, request_id: int, action) -> None:
        assert request_id in self.open, f"{action} names a request that is not open"
        request = self.open.pop(request_id)
        self.ended.add(request_id)
        if isinstance(action, ExpireRequests):
            assert request.deadline_ns <= self.now_ns
        assert isinstance(
            action,
            CompleteRequests | RejectRequest | ExpireRequests | CancelRequests | FailRequests,
        )

    @rule(limits=LIMITS)
    def add_model(self, limits) -> None:
        self.models[self.next_model] = limits
        self.send(ModelAdded(self.next_model, limits))
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
        patience=st.one_of(st.none(), st.integers(1, 50)),
        data=st.data(),
    )
    def arrive(self, count, rows, length, shape, patience, data) -> None:
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
        del self.running[batch_id]
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
            assert model.waiting == len(self.open) or model.waiting <= len(self.open), number

    def teardown(self) -> None:
        """Liveness: with an instance and successful batches every request ends."""
        if not self.instances:
            self.add_instance()
        for _ in range(10_000):
            if not self.open:
                return
            batch_id = min(self.running)
            self.finish(batch_id, BatchCompleted(batch_id))
        raise AssertionError(f"never ended: {sorted(self.open)}")


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
