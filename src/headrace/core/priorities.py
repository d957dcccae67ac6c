"""One model's waiting requests where some go before others.

Law: levels are strict; within a level tenants take turns (see ``fairness``), and of one tenant
the earliest due is first. So a request of the first level waits for no one but its own kind,
and one of the last may wait until it is due: that is what strict levels mean, and why a model
has none unless its configuration says so.

A batch is anchored on the best level that waits and is filled from the levels below it, in
order: whoever rides along costs the anchor nothing that ``batching`` would not allow anyway.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from headrace.core.events import BatchLimits, QueuedRequest
from headrace.core.fairness import Fairness, FairQueue
from headrace.core.queueing import ModelQueue

Lane = ModelQueue | FairQueue


class LevelledQueue:
    """A queue for each level that has somebody, seen as one, best level first.

    A request's priority is 1 (the first) to ``levels``; 0 and whatever lies above is the
    default's, which is what Triton makes of them (its ``InferenceRequest::SetPriority``). A
    tenant may be held below a level whatever it asks for.
    """

    __slots__ = ("_default", "_fair", "_fairness", "_level_of", "_levels", "_order", "_queues")

    def __init__(self, levels: int, default: int, fairness: Fairness, *, fair: bool) -> None:
        self._levels = levels
        self._default = default if 0 < default <= levels else levels
        self._fairness = fairness
        self._fair = fair  # whether there are tenants to tell apart
        self._order: list[int] = []  # the levels that have somebody, best first
        self._queues: dict[int, Lane] = {}
        self._level_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def __iter__(self) -> Iterator[QueuedRequest]:
        """The live entries in the order in which they would run alone."""
        return chain.from_iterable([self._queues[level] for level in self._order])

    def level_of(self, request: QueuedRequest) -> int:
        """Where it belongs, whether it waits or not."""
        level = request.priority
        if not 0 < level <= self._levels:
            level = self._default
        if request.tenant:
            level = max(level, self._fairness.terms_of(request.tenant).priority_max)
        return min(level, self._levels)

    def append(self, request: QueuedRequest) -> None:
        """Adds to its level."""
        level = self.level_of(request)
        queue = self._queues.get(level)
        if queue is None:
            queue = self._queues[level] = FairQueue(self._fairness) if self._fair else ModelQueue()
            insort(self._order, level)
        queue.append(request)
        self._level_of[request.request_id] = level

    def head(self) -> QueuedRequest | None:
        """The first of the best level, or None."""
        return self._queues[self._order[0]].head() if self._order else None

    def best(self) -> Lane:
        """The level that is served next, as a queue of its own. There must be one."""
        return self._queues[self._order[0]]

    def lane_of(self, request: QueuedRequest) -> Lane | None:
        """The queue of its level, if anybody waits there."""
        return self._queues.get(self.level_of(request))

    def lanes(self) -> Iterable[Lane]:
        """All levels that have somebody."""
        return self._queues.values()

    def oldest_arrival_ns(self) -> int | None:
        """When the oldest of all levels came, which need not be the next to run."""
        arrivals = [queue.oldest_arrival_ns() for queue in self._queues.values()]
        return min([arrival for arrival in arrivals if arrival is not None], default=None)

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

    def ahead_of(self, request: QueuedRequest) -> float:
        """How many would be served before it, about, if it were added now."""
        own = self.level_of(request)
        ahead = 0.0
        for level in self._order:
            if level < own:
                ahead += len(self._queues[level])
            elif level == own:
                ahead += self._queues[level].ahead_of(request)
        return ahead

    def remove(self, request_ids: Iterable[int]) -> None:
        """Removes these, wherever they stand. Each must be in the queue."""
        of_level: dict[int, list[int]] = {}
        for request_id in request_ids:
            of_level.setdefault(self._level_of.pop(request_id), []).append(request_id)
        for level, gone in of_level.items():
            self._queues[level].remove(gone)
            if not self._queues[level]:
                self._drop(level)

    def least(self, request: QueuedRequest) -> QueuedRequest | None:
        """The one whose place the request may have, if there is one that counts for less."""
        worst = self._order[-1]
        own, queue = self.level_of(request), self._queues[worst]
        if worst > own:
            return _last_of(queue)
        return queue.fattest(request) if worst == own and isinstance(queue, FairQueue) else None

    def _drop(self, level: int) -> None:
        del self._queues[level]
        self._order.remove(level)


Queue = ModelQueue | FairQueue | LevelledQueue


def queue_for(limits: BatchLimits, fairness: Fairness, *, fair: bool) -> Queue:
    """The queue of a model with these limits. What it does not need is not paid for.

    Args:
        fair: whether its requests are of different tenants.
    """
    if limits.priority_levels < 2:
        return FairQueue(fairness) if fair else ModelQueue()
    return LevelledQueue(limits.priority_levels, limits.default_priority, fairness, fair=fair)


def front_of(queue: Queue) -> Lane:
    """Those that go before all others: the best level, or everybody."""
    return queue.best() if isinstance(queue, LevelledQueue) else queue


def giving_way(queue: Queue, request: QueuedRequest) -> QueuedRequest | None:
    """Who leaves a full queue so that the request may have its place; None: nobody.

    The newest of the lowest level; among equals, of the tenant that has most waiting over its
    share. Whoever counts for as much as the request stays.
    """
    if not queue:
        return None
    if isinstance(queue, LevelledQueue):
        return queue.least(request)
    return queue.fattest(request) if isinstance(queue, FairQueue) else None


def is_entitled(queue: Queue, request: QueuedRequest) -> bool:
    """Whether others have to give way before it: its tenant has less waiting than is its due.

    False where tenants are not told apart.
    """
    if isinstance(queue, LevelledQueue):
        lane = queue.lane_of(request)
        return isinstance(lane, FairQueue) and lane.within_share(request)
    return isinstance(queue, FairQueue) and queue.within_share(request)


def _last_of(queue: Lane) -> QueuedRequest | None:
    if isinstance(queue, ModelQueue):
        return queue.tail()
    return max(queue, key=_arrival)


def _arrival(request: QueuedRequest) -> tuple[int, int]:
    return request.arrival_ns, request.request_id
