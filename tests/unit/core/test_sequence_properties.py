"""Any order of events: one instance a sequence, in order, nothing lost, each ends once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.events import NEVER_NS
from headrace.core.sequence_events import (
    EndSequence,
    ExpireWaiting,
    InstanceLost,
    RefuseRequest,
    RequestOver,
    RunRequest,
    SequenceArrived,
    SequenceLimits,
    SequenceRequest,
    SequencesClosed,
    SequenceTimer,
)
from headrace.core.sequences import Sequences

CALLERS = {1: "one", 2: "one", 3: "one", "a": "two", "b": ""}
NAMES = st.sampled_from(list(CALLERS))


class SequencesMachine(RuleBasedStateMachine):
    """Plays the engine, and keeps its own books."""

    @initialize(
        slots=st.integers(1, 3),
        instances=st.integers(1, 3),
        waiting=st.integers(1, 6),
        idle_ns=st.sampled_from([10, 1_000, NEVER_NS]),
        of_one=st.integers(0, 2),
    )
    def begin(self, slots, instances, waiting, idle_ns, of_one):
        self.limits = SequenceLimits(slots, waiting, idle_ns, of_one)
        self.instances = instances
        self.machine = Sequences(self.limits, instances)
        self.now_ns = 0
        self.next_id = 1
        self.open: dict[int, SequenceRequest] = {}  # arrived and not ended
        self.order: dict[int | str, list[int]] = {}  # of those that wait, by sequence
        self.running: dict[int, RunRequest] = {}
        self.place: dict[int | str, tuple[int, int]] = {}  # of sequences that have begun
        self.idle_since: dict[int | str, int] = {}
        self.told: set[int | str] = set()  # sequences whose start the model has seen
        self.closed = False

    def send(self, event):
        for action in self.machine.handle(event, now_ns=self.now_ns):
            if isinstance(action, RunRequest):
                self.run_it(action)
            elif isinstance(action, EndSequence):
                self.end_it(action)
            elif isinstance(action, ExpireWaiting):
                for request_id in action.request_ids:
                    assert self.open[request_id].deadline_ns <= self.now_ns
                    assert request_id not in self.running
                    self.leave(request_id)
            else:
                assert isinstance(action, RefuseRequest)
                if action.request_id in self.running:
                    assert action.reason == "instance_lost"
                self.leave(action.request_id)

    def run_it(self, action):
        request = action.request
        assert not self.closed
        assert self.open[request.request_id] == request
        assert self.order[request.sequence][0] == request.request_id, "out of order"
        self.order[request.sequence].pop(0)
        busy = [r for r in self.running.values() if r.request.sequence == request.sequence]
        assert not busy, "two requests of a sequence at one time"
        assert action.instance < self.instances
        assert action.slot < self.limits.slots
        assert action.request.caller == CALLERS[action.request.sequence]
        place = (action.instance, action.slot)
        if request.sequence in self.place:
            assert self.place[request.sequence] == place, "it moved"
        else:
            assert request.start, "it began without a start"
            assert place not in self.place.values(), "the slot was taken"
            self.place[request.sequence] = place
        assert request.start or request.sequence in self.told, "the model knows nothing of it"
        self.running[request.request_id] = action
        self.idle_since.pop(request.sequence, None)

    def end_it(self, action):
        assert self.place.pop(action.sequence) == (action.instance, action.slot)
        self.told.discard(action.sequence)
        since_ns = self.idle_since.pop(action.sequence, None)
        if action.reason == "idle":
            assert since_ns is not None
            assert since_ns + self.limits.idle_timeout_ns <= self.now_ns

    def leave(self, request_id):
        request = self.open.pop(request_id)
        if self.running.pop(request_id, None) is None:
            self.order[request.sequence].remove(request_id)

    @rule(name=NAMES, start=st.booleans(), end=st.booleans(), left=st.sampled_from([0, 5, 50]))
    def arrives(self, name, start, end, left):
        deadline_ns = self.now_ns + left if left else NEVER_NS
        request = SequenceRequest(self.next_id, name, start, end, deadline_ns, CALLERS[name])
        self.next_id += 1
        self.open[request.request_id] = request
        self.order.setdefault(name, []).append(request.request_id)
        self.send(SequenceArrived(request))
        if self.closed:
            assert request.request_id not in self.open

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ran=st.sampled_from([True, True, False]))
    def finishes(self, data, ran):
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        request = self.running[request_id].request
        self.leave(request_id)
        self.idle_since[request.sequence] = self.now_ns
        if request.start:
            self.told.discard(request.sequence)
            if ran:
                self.told.add(request.sequence)
        self.send(RequestOver(request_id, ran))

    @precondition(lambda self: len(self.open) > len(self.running))
    @rule(data=st.data())
    def is_withdrawn(self, data):
        waiting = sorted(self.open.keys() - self.running.keys())
        request_id = data.draw(st.sampled_from(waiting))
        self.leave(request_id)
        self.send(RequestOver(request_id))

    @rule(passed_ns=st.integers(1, 60))
    def time_passes(self, passed_ns):
        self.now_ns += passed_ns
        wakeup_ns = self.machine.next_wakeup_ns()
        if wakeup_ns is not None and wakeup_ns <= self.now_ns:
            self.send(SequenceTimer())
        late = [
            r
            for i, r in self.open.items()
            if i not in self.running and r.deadline_ns <= self.now_ns
        ]
        assert not late, "a deadline was missed"
        limit_ns = self.limits.idle_timeout_ns
        assert all(since + limit_ns > self.now_ns for since in self.idle_since.values())

    @rule(data=st.data())
    def dies(self, data):
        instance = data.draw(st.integers(0, self.instances - 1))
        before = {name for name, place in self.place.items() if place[0] == instance}
        others = {i: r for i, r in self.running.items() if r.instance != instance}
        self.send(InstanceLost(instance))
        assert others.items() <= self.running.items()
        assert all(
            run.request.start
            for run in self.running.values()
            if run.request.sequence in before and run.instance == instance
        )

    @precondition(lambda self: self.next_id > 20)
    @rule()
    def is_closed(self):
        self.closed = True
        self.send(SequencesClosed())
        assert self.open.keys() == self.running.keys()

    @rule()
    def a_late_word_about_nobody(self):
        self.send(RequestOver(self.next_id))

    @invariant()
    def holds(self):
        if not hasattr(self, "machine"):
            return
        self.machine.check_invariants()
        waiting = len(self.open) - len(self.running)
        assert self.machine.waiting == waiting == sum(map(len, self.order.values()))
        assert waiting <= self.limits.max_queue_size

    def teardown(self):
        if not hasattr(self, "machine"):
            return
        while self.running:
            request_id = min(self.running)
            name = self.running[request_id].request.sequence
            self.told.add(name)
            self.leave(request_id)
            self.idle_since[name] = self.now_ns
            self.send(RequestOver(request_id))
            if not self.running and self.open:
                # Whoever still waits does so for a slot of a sequence that has nothing to do.
                assert self.idle_since.keys() == self.place.keys()
                if not self.limits.max_per_caller:
                    assert len(self.place) == self.limits.slots * self.instances
                if self.limits.idle_timeout_ns < NEVER_NS:
                    self.now_ns = max(self.idle_since.values()) + self.limits.idle_timeout_ns
                    self.send(SequenceTimer())
                    assert self.running or not self.open
        self.send(SequencesClosed())
        assert not self.open
        assert self.machine.live == 0


SequencesMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None
)
TestSequences = SequencesMachine.TestCase
