"""What others do, for comparison: a window for batches, or none; first come first served.

The dynamic batcher of Triton: a batch starts when it is full, or when its oldest request has
waited for the window; with a window of 0 whatever is there runs when an instance is free. Nothing
is refused, nothing is given up, and due times are not known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from headrace.core.actions import (
    Action,
    CancelRequests,
    CompleteRequests,
    ExecuteBatch,
    FailRequests,
)
from headrace.core.events import (
    BatchCompleted,
    BatchFailed,
    BatchLimits,
    Event,
    InstanceAdded,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
    RequestsCancelled,
    TimerFired,
)


class Policy(Protocol):
    """What a simulation drives; ``core.scheduler.Scheduler`` is one."""

    def handle(self, event: Event, *, now_ns: int) -> list[Action]:
        """Takes in one event and says what must be done, in order."""
        ...

    def next_wakeup_ns(self) -> int | None:
        """When a TimerFired is wanted at the latest, or None."""
        ...


class FixedWindow:
    """One model on one pool.

    Args:
        window_ns: how long the oldest waits for company at most.
        max_rows: of a batch; 0: the model's own.
    """

    def __init__(self, window_ns: int, max_rows: int = 0) -> None:
        self._window_ns = window_ns
        self._max_rows = max_rows
        self._limits = BatchLimits()
        self._queue: deque[QueuedRequest] = deque()
        self._idle: list[int] = []
        self._running: dict[int, tuple[int, list[QueuedRequest]]] = {}
        self._gone: set[int] = set()
        self._next = 1
        self._wakeup_ns: int | None = None
        self._handlers: dict[type, Callable[[Any, list[Action]], None]] = {
            ModelAdded: self._on_model,
            InstanceAdded: self._on_instance,
            RequestsArrived: self._on_arrived,
            RequestsCancelled: self._on_cancelled,
            BatchCompleted: self._on_completed,
            BatchFailed: self._on_failed,
            TimerFired: lambda _event, _actions: None,
        }

    def next_wakeup_ns(self) -> int | None:
        """When the oldest has waited for long enough."""
        return self._wakeup_ns

    def handle(self, event: Event, *, now_ns: int) -> list[Action]:
        """See :class:`Policy`.

        Raises:
            KeyError: an event that this comparison does not know.
        """
        actions: list[Action] = []
        self._handlers[type(event)](event, actions)
        most = self._max_rows or self._limits.max_rows
        queue = self._queue
        while self._idle and queue:
            if len(queue) < most and now_ns < queue[0].arrival_ns + self._window_ns:
                break
            self._start(most, actions)
        waits = bool(self._idle and queue)
        self._wakeup_ns = queue[0].arrival_ns + self._window_ns if waits else None
        return actions

    def _start(self, most: int, actions: list[Action]) -> None:
        queue = self._queue
        members = [queue.popleft()]
        rows = members[0].rows
        while queue and rows + queue[0].rows <= most:
            rows += queue[0].rows
            members.append(queue.popleft())
        instance = self._idle.pop(0)
        self._running[self._next] = (instance, members)
        longest = max([member.length for member in members])
        ids = tuple([member.request_id for member in members])
        actions.append(ExecuteBatch(self._next, instance, members[0].model, ids, rows, longest))
        self._next += 1

    def _on_model(self, event: ModelAdded, _actions: list[Action]) -> None:
        self._limits = event.limits

    def _on_instance(self, event: InstanceAdded, _actions: list[Action]) -> None:
        self._idle.append(event.instance_id)

    def _on_arrived(self, event: RequestsArrived, _actions: list[Action]) -> None:
        self._queue.extend(event.requests)

    def _on_cancelled(self, event: RequestsCancelled, actions: list[Action]) -> None:
        wanted = set(event.request_ids)
        there = [request for request in self._queue if request.request_id in wanted]
        for request in there:
            self._queue.remove(request)
        running = {r.request_id for _, members in self._running.values() for r in members}
        self._gone |= running & wanted
        ids = tuple([r.request_id for r in there]) + tuple(sorted(running & wanted))
        if ids:
            actions.append(CancelRequests(ids))

    def _on_completed(self, event: BatchCompleted, actions: list[Action]) -> None:
        ids = self._end(event.batch_id)
        if ids:
            actions.append(CompleteRequests(event.batch_id, ids))

    def _on_failed(self, event: BatchFailed, actions: list[Action]) -> None:
        ids = self._end(event.batch_id)
        if ids:
            actions.append(FailRequests(event.batch_id, ids))

    def _end(self, batch_id: int) -> tuple[int, ...]:
        instance, members = self._running.pop(batch_id)
        self._idle.append(instance)
        self._idle.sort()
        ids = tuple([r.request_id for r in members if r.request_id not in self._gone])
        self._gone -= {r.request_id for r in members}
        return ids
