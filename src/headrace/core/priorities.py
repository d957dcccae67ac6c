"""One model's waiting requests where some go before others.

Law: levels are strict, and within a level the oldest is first. So a request of the first
level waits for no one but its own kind, and one of the last may wait for ever: that is what
strict levels mean, and why a model has none unless its configuration says so.

A batch is anchored on the best level that waits and is filled from the levels below it, in
order: whoever rides along costs the anchor nothing that ``batching`` would not allow anyway.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from headrace.core.events import BatchLimits, QueuedRequest
from headrace.core.queueing import ModelQueue


class LevelledQueue:
    """A :class:`ModelQueue` for each level that has somebody, seen as one, best level first.

    A request's priority is 1 (the first) to ``levels``; 0 and whatever lies above is the
    default's, which is what Triton makes of them (its ``InferenceRequest::SetPriority``).
    """

    __slots__ = ("_default", "_level_of", "_levels", "_order", "_queues")

    def __init__(self, levels: int, default: int) -> None:
        self._levels = levels
        self._default = default if 0 < default <= levels else levels
        self._order: list[int] = []  # the levels that have somebody, best first
        self._queues: dict[int, ModelQueue] = {}
        self._level_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def __iter__(self) -> Iterator[QueuedRequest]:
        """The live entries in the order in which they would run alone."""
        return chain.from_iterable([self._queues[level] for level in self._order])

    def append(self, request: QueuedRequest) -> None:
        """Adds at the back of its level."""
        level = request.priority
        if not 0 < level <= self._levels:
            level = self._default
        queue = self._queues.get(level)
        if queue is None:
            queue = self._queues[level] = ModelQueue()
            insort(self._order, level)
        queue.append(request)
        self._level_of[request.request_id] = level

    def head(self) -> QueuedRequest | None:
        """The oldest of the best level, or None."""
        return self._queues[self._order[0]].head() if self._order else None

    def oldest_arrival_ns(self) -> int | None:
        """When the oldest of all levels came, which need not be the next to run."""
        heads = [queue.head() for queue in self._queues.values()]
        return min([head.arrival_ns for head in heads if head is not None], default=None)

    def take_front(self, max_rows: int) -> list[QueuedRequest]:
        """As :meth:`ModelQueue.take_front`, going on into the levels below.

        It ends where one does not fit: nobody may overtake.
        """
        taken: list[QueuedRequest] = []
        rows = 0
        for level in tuple(self._order):
            queue = self._queues[level]
            head = queue.head()
            assert head is not None  # a level without anybody is dropped
            if taken and (head.shape_key != taken[0].shape_key or rows + head.rows > max_rows):
                break
            front = queue.take_front(max_rows - rows)
            rows += sum([request.rows for request in front])
            taken += front
            if queue:
                break
            self._drop(level)
        for request in taken:
            del self._level_of[request.request_id]
        return taken

    def window(self, count: int) -> list[QueuedRequest]:
        """The ``count`` first live entries, without removing them."""
        return list(islice(self, count))

    def remove(self, request_ids: Iterable[int]) -> None:
        """Removes these, wherever they stand. Each must be in the queue."""
        of_level: dict[int, list[int]] = {}
        for request_id in request_ids:
            of_level.setdefault(self._level_of.pop(request_id), []).append(request_id)
        for level, gone in of_level.items():
            self._queues[level].remove(gone)
            if not self._queues[level]:
                self._drop(level)

    def _drop(self, level: int) -> None:
        del self._queues[level]
        self._order.remove(level)


def queue_for(limits: BatchLimits) -> ModelQueue | LevelledQueue:
    """The queue of a model with these limits. Without levels nothing is paid for them."""
    if limits.priority_levels < 2:
        return ModelQueue()
    return LevelledQueue(limits.priority_levels, limits.default_priority)
