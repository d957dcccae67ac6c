"""A discrete-event simulation of a pool: virtual time, real decisions.

Law: the same scenario and the same seed give the same history, event by event. Nothing here
knows how the policy decides; it carries out what it is told, as the engine does, and tells it
what happened.

What happens at the same instant is ordered by when it was planned, except that batches end before
requests arrive. What arrives within one instant (a recording has such) is one event, as in the
engine what arrives in one turn of its loop is.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from headrace.core.actions import (
    Action,
    CancelRequests,
    CompleteRequests,
    ExecuteBatch,
    ExpireRequests,
    FailRequests,
    RejectRequest,
)
from headrace.core.events import (
    BatchCompleted,
    BatchFailed,
    BatchLimits,
    Event,
    InstanceAdded,
    InstanceRemoved,
    LearntCost,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
    RequestsCancelled,
    TenantsChanged,
    TimerFired,
)
from headrace.simulate.faults import Fault, Machine
from headrace.simulate.outcome import Outcome
from headrace.simulate.peers import Policy
from headrace.simulate.workload import Arrival

_END, _FAULT, _CANCEL, _ARRIVE, _WAKE = range(5)


class Costs(Protocol):
    """What a batch costs in reality; see ``curves``."""

    def ns(self, units: float) -> float:
        """Of a batch of ``units``: rows, or padded tokens where the model has a length."""
        ...

    def seed(self, largest: int) -> LearntCost:
        """What is known of it beforehand."""
        ...


class SimulatedModel(msgspec.Struct, frozen=True):
    """One model: what it costs, what it may do, whether that is known beforehand.

    ``noise``: sigma of a log-normal factor on every batch; ``known`` False: everything is
    learnt from the first batch on.
    """

    number: int
    costs: Costs
    limits: BatchLimits
    noise: float = 0.0
    known: bool = True


class Scenario(msgspec.Struct, frozen=True):
    """Everything a simulation is made of, but for the policy."""

    models: tuple[SimulatedModel, ...]
    instances: int
    arrivals: Sequence[Arrival]
    seed: int = 0
    tenants: TenantsChanged | None = None
    faults: tuple[Fault, ...] = ()
    failure_rate: float = 0.0


class Watcher(Protocol):
    """Sees every event and what was decided; see ``laws``."""

    def saw(self, event: Event, decided: list[Action], now_ns: int) -> None:
        """After ``event`` was handled."""
        ...


class Simulation:
    """One run. ``now_ns`` is virtual; what the policy is told as time may jump (see ``faults``)."""

    def __init__(
        self, scenario: Scenario, policy: Policy, watchers: Sequence[Watcher] = ()
    ) -> None:
        self._scenario = scenario
        self._policy = policy
        self._watchers = watchers
        self._chance = random.Random(f"{scenario.seed}/batches")
        self._models = {model.number: model for model in scenario.models}
        self._planned: list[tuple[int, int, int, object]] = []
        self._order = 0
        self._wake_ns: int | None = None
        self._batches: dict[int, ExecuteBatch] = {}
        self._slow: dict[int, list[tuple[int, int, float]]] = {}
        self._hangs: dict[int, list[tuple[int, int]]] = {}
        self._alive: set[int] = set()
        self._started_ns: dict[int, int] = {}
        self._skew_ns = 0
        self._told_ns = 0
        self.now_ns = 0
        self.live: dict[int, QueuedRequest] = {}
        self.outcome = Outcome()
        self.requests = 0

    def run(self) -> Outcome:
        """To the end: until nothing is left to happen."""
        self._set_up()
        arrivals, total, following = self._scenario.arrivals, len(self._scenario.arrivals), 0
        planned = self._planned
        while True:
            at_ns = arrivals[following].at_ns if following < total else None
            ahead_ns = planned[0][0] if planned else None
            wake_ns = self._wake_ns
            if at_ns is not None and _first(at_ns, ahead_ns, wake_ns):
                self.now_ns = at_ns
                following = self._arrive(following)
            elif ahead_ns is not None and (wake_ns is None or ahead_ns <= wake_ns):
                self.now_ns = ahead_ns
                self._happens(heapq.heappop(planned))
            elif wake_ns is not None:
                self.now_ns = max(self.now_ns, wake_ns)
                self._tell(TimerFired())
            else:
                break
        self.outcome.unanswered = len(self.live)
        return self.outcome

    # -- what happens ----------------------------------------------------------------------

    def _set_up(self) -> None:
        scenario = self._scenario
        if scenario.tenants is not None:
            self._tell(scenario.tenants)
        for model in scenario.models:
            largest = model.limits.max_padded_tokens or model.limits.max_rows
            costs = {0: model.costs.seed(largest)} if model.known else {}
            self._tell(ModelAdded(model.number, model.limits, costs=costs))
        for number in range(scenario.instances):
            self._alive.add(number)
            self._tell(InstanceAdded(number))
        for fault in scenario.faults:
            self._plan(fault.at_ns, _FAULT, fault)

    def _arrive(self, first: int) -> int:
        """All that arrive in this instant; the index of the first that does not."""
        arrivals = self._scenario.arrivals
        now_ns = self._clock_ns()
        requests: list[QueuedRequest] = []
        index = first
        while index < len(arrivals) and arrivals[index].at_ns == self.now_ns:
            arrival = arrivals[index]
            self.requests += 1
            request = arrival.request(self.requests, now_ns)
            requests.append(request)
            self.live[request.request_id] = request
            if arrival.cancel_ns:
                self._plan(arrival.cancel_ns, _CANCEL, (request.request_id,))
            index += 1
        self.outcome.end_ns = self.now_ns
        self._tell(RequestsArrived(requests))
        return index

    def _happens(self, planned: tuple[int, int, int, object]) -> None:
        kind, what = planned[1], planned[3]
        if kind == _END:
            batch = self._batches.pop(what, None)  # type: ignore[call-overload]
            if batch is not None:
                self._ends(batch)
        elif kind == _CANCEL:
            ids = tuple([i for i in what if i in self.live])  # type: ignore[attr-defined]
            if ids:
                self._tell(RequestsCancelled(ids))
        else:
            assert isinstance(what, Fault)
            what.strike(self)

    def _ends(self, batch: ExecuteBatch) -> None:
        self.outcome.end_ns = self.now_ns
        self.outcome.batch(batch, self.now_ns - self._started_ns.pop(batch.batch_id))
        if self._scenario.failure_rate and self._chance.random() < self._scenario.failure_rate:
            self._tell(BatchFailed(batch.batch_id))
        else:
            self._tell(BatchCompleted(batch.batch_id))

    # -- what faults do --------------------------------------------------------------------

    def slow_down(self, instance: int, until_ns: int, factor: float) -> None:
        """Batches that begin there until then take so many times as long."""
        self._slow.setdefault(instance, []).append((self.now_ns, until_ns, factor))

    def hang(self, instance: int, until_ns: int) -> None:
        """What begins there before then does not end before then."""
        self._hangs.setdefault(instance, []).append((self.now_ns, until_ns))

    def crash(self, instance: int, back_ns: int) -> None:
        """It is gone, with the batch it had; another takes its place later."""
        if instance not in self._alive:
            return
        self._alive.discard(instance)
        self._tell(InstanceRemoved(instance))
        for batch_id, batch in tuple(self._batches.items()):
            if batch.instance_id == instance:
                del self._batches[batch_id]
                del self._started_ns[batch_id]
                self._tell(BatchFailed(batch_id, retry_alone=False))
        self._plan(back_ns, _FAULT, _Restart(back_ns, instance))

    def restart(self, instance: int) -> None:
        """It is back."""
        self._alive.add(instance)
        self._tell(InstanceAdded(instance))

    def cancel_some(self, share: float) -> None:
        """So many of all live requests are withdrawn at once."""
        count = int(len(self.live) * share)
        ids = tuple(self._chance.sample(sorted(self.live), count))
        if ids:
            self._tell(RequestsCancelled(ids))

    def jump(self, by_ns: int) -> None:
        """The clock that the policy sees moves by so much; never back behind what it saw."""
        self._skew_ns += by_ns
        self._set_wake()

    def tell(self, event: Event) -> None:
        """Any other event, such as new limits."""
        self._tell(event)

    # -- the policy ------------------------------------------------------------------------

    def _clock_ns(self) -> int:
        self._told_ns = max(self._told_ns, self.now_ns + self._skew_ns)
        return self._told_ns

    def _tell(self, event: Event) -> None:
        now_ns = self._clock_ns()
        decided = self._policy.handle(event, now_ns=now_ns)
        for action in decided:
            if isinstance(action, ExecuteBatch):
                self._execute(action)
            else:
                self._end_requests(action, now_ns)
        self._set_wake()
        for watcher in self._watchers:
            watcher.saw(event, decided, now_ns)

    def _set_wake(self) -> None:
        wake_ns = self._policy.next_wakeup_ns()
        self._wake_ns = None if wake_ns is None else max(self.now_ns, wake_ns - self._skew_ns)

    def _execute(self, batch: ExecuteBatch) -> None:
        model = self._models[batch.model]
        units = batch.rows
        if model.limits.max_padded_tokens:
            units *= max(1, batch.padded_length)
        taken_ns = model.costs.ns(units)
        if model.noise:
            taken_ns *= self._chance.lognormvariate(0.0, model.noise)
        for since_ns, until_ns, factor in self._slow.get(batch.instance_id, ()):
            if since_ns <= self.now_ns < until_ns:
                taken_ns *= factor
        end_ns = self.now_ns + max(1, int(taken_ns))
        for since_ns, until_ns in self._hangs.get(batch.instance_id, ()):
            if since_ns <= self.now_ns < until_ns:
                end_ns = max(end_ns, until_ns)
        self._batches[batch.batch_id] = batch
        self._started_ns[batch.batch_id] = self.now_ns
        self._plan(end_ns, _END, batch.batch_id)

    def _end_requests(self, action: Action, now_ns: int) -> None:
        live, outcome = self.live, self.outcome
        if isinstance(action, CompleteRequests):
            for request_id in action.request_ids:
                outcome.completed(live.pop(request_id), now_ns)
        elif isinstance(action, RejectRequest):
            outcome.rejected(live.pop(action.request_id), action, now_ns)
        elif isinstance(action, ExpireRequests | CancelRequests | FailRequests):
            for request_id in action.request_ids:
                outcome.ended(live.pop(request_id), action)

    def _plan(self, at_ns: int, kind: int, what: object) -> None:
        self._order += 1
        heapq.heappush(self._planned, (max(at_ns, self.now_ns), kind, self._order, what))


class _Restart(Fault, frozen=True):
    instance: int = 0

    def strike(self, machine: Machine) -> None:
        machine.restart(self.instance)


def _first(at_ns: int, ahead_ns: int | None, wake_ns: int | None) -> bool:
    """Whether an arrival comes before what is planned, and before the timer."""
    return (ahead_ns is None or at_ns < ahead_ns) and (wake_ns is None or at_ns <= wake_ns)
