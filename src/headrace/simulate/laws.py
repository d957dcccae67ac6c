"""What must hold in every history, checked after every event.

Safety: nothing is answered twice, nothing that was never asked; batches stay within their limits,
on instances that are there and idle; a queue never holds more than its bounds; what expires was
due. Liveness is asked at the end: everything that arrived has ended, and nobody waited longer than
until its deadline.
"""

from __future__ import annotations

from collections import deque

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
    LimitsChanged,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
)
from headrace.core.scheduler import Scheduler

_REMEMBERED = 12


class LawBroken(Exception):
    """A history that must not be; ``history`` are the last events and decisions before it."""

    def __init__(self, law: str, history: list[str]) -> None:
        super().__init__(law)
        self.law = law
        self.history = history


class Laws:
    """Keeps its own books of one run.

    Args:
        scheduler: whose invariants are asked too, every ``every`` events.
    """

    def __init__(self, scheduler: Scheduler, every: int = 1) -> None:
        self._scheduler = scheduler
        self._every = every
        self._events = 0
        self._open: dict[int, QueuedRequest] = {}
        self._waiting: dict[int, dict[int, QueuedRequest]] = {}
        self._ended: set[int] = set()
        self._limits: dict[int, BatchLimits] = {}
        self._most: dict[int, int] = {}
        self._running: dict[int, ExecuteBatch] = {}
        self._instances: set[int] = set()
        self._recent: deque[str] = deque(maxlen=_REMEMBERED)

    def saw(self, event: Event, decided: list[Action], now_ns: int) -> None:
        """See ``simulator.Watcher``.

        Raises:
            LawBroken: one of the laws does not hold.
        """
        self._recent.append(f"{now_ns} {event!r:.300} -> {decided!r:.300}")
        self._events += 1
        try:
            self._before(event)
            for action in decided:
                if isinstance(action, ExecuteBatch):
                    self._starts(action)
                else:
                    self._ends(action, now_ns)
            self._bounds()
            if self._events % self._every == 0:
                self._scheduler.check_invariants()
        except AssertionError as broken:
            raise LawBroken(str(broken), list(self._recent)) from broken

    def over(self) -> None:
        """Everything has stopped.

        Raises:
            LawBroken: somebody was never answered.
        """
        if self._open:
            first = min(self._open.values(), key=lambda request: request.arrival_ns)
            text = f"{len(self._open)} requests never ended; the first: {first}"
            raise LawBroken(text, list(self._recent))

    def _before(self, event: Event) -> None:
        if isinstance(event, RequestsArrived):
            for request in event.requests:
                assert request.request_id not in self._ended, "an id came twice"
                self._open[request.request_id] = request
                self._waiting.setdefault(request.model, {})[request.request_id] = request
        elif isinstance(event, ModelAdded | LimitsChanged):
            self._limits[event.model] = event.limits
            # Who waits already stays, also where the bound is lower from now on.
            there = len(self._waiting.get(event.model, ()))
            self._most[event.model] = max(event.limits.max_queue_size, there)
        elif isinstance(event, InstanceAdded):
            self._instances.add(event.instance_id)
        elif isinstance(event, InstanceRemoved):
            self._instances.discard(event.instance_id)
        elif isinstance(event, BatchCompleted | BatchFailed):
            batch = self._running.pop(event.batch_id)
            if isinstance(event, BatchFailed):  # its members may wait again
                waiting = self._waiting.setdefault(batch.model, {})
                waiting |= {i: self._open[i] for i in batch.request_ids if i in self._open}

    def _starts(self, batch: ExecuteBatch) -> None:
        limits = self._limits[batch.model]
        assert batch.instance_id in self._instances, f"no such instance: {batch}"
        busy = [running.instance_id for running in self._running.values()]
        assert batch.instance_id not in busy, f"the instance is busy: {batch}"
        of_model = [running for running in self._running.values() if running.model == batch.model]
        assert len(of_model) < max(limits.max_concurrency, 1), f"too many at one time: {batch}"
        members = []
        for request_id in batch.request_ids:
            assert request_id in self._open, f"request {request_id} has ended and runs"
            members.append(self._open[request_id])
            waiting = self._waiting.get(batch.model, {})
            assert waiting.pop(request_id, None) is not None, f"{request_id} does not wait"
        assert len({member.shape_key for member in members}) == 1, f"mixed shapes: {batch}"
        assert batch.rows == sum([member.rows for member in members]), f"miscounted: {batch}"
        if len(members) > 1:
            assert batch.rows <= limits.max_rows, f"too many rows: {batch}"
            if limits.max_padded_tokens:
                tokens = batch.rows * batch.padded_length
                assert tokens <= limits.max_padded_tokens, f"too many tokens: {batch}"
        self._running[batch.batch_id] = batch

    def _ends(self, action: Action, now_ns: int) -> None:
        ids = (action.request_id,) if isinstance(action, RejectRequest) else action.request_ids
        for request_id in ids:
            assert request_id not in self._ended, f"request {request_id} ended twice: {action}"
            request = self._open.pop(request_id, None)
            assert request is not None, f"request {request_id} was never asked: {action}"
            self._ended.add(request_id)
            self._waiting.get(request.model, {}).pop(request_id, None)
            if isinstance(action, ExpireRequests):
                assert request.deadline_ns <= now_ns, f"expired too early: {request}"
            elif isinstance(action, CompleteRequests):
                assert request.arrival_ns <= now_ns, f"answered before it came: {request}"
            assert isinstance(
                action,
                CompleteRequests | RejectRequest | ExpireRequests | CancelRequests | FailRequests,
            )

    def _bounds(self) -> None:
        for number, waiting in self._waiting.items():
            limits = self._limits.get(number)
            if limits is None or len(waiting) <= 1:
                continue
            retried = limits.max_rows * max(1, limits.max_concurrency)  # of failed batches
            most = self._most[number] + retried
            assert len(waiting) <= most, f"{len(waiting)} wait for model {number}, of {most}"
