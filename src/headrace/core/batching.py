"""Which waiting requests run together now.

Law: the first request is always in the batch, unless it is given up: the first is the earliest
due of the best level (where there are tenants: of the one furthest behind). Everybody else
joins only if it helps, so no order of arrivals can starve anyone, and a lone request never
waits for company. Nobody joins who would make a member late.

Two shapes of work:

* **By rows.** Requests of equal shape are concatenated, in order, up to ``max_rows``.
* **By length.** Rows of different length are padded to the longest, so the cost of a batch
  is about ``overhead + rows x longest`` (in tokens). Among the runs of neighbours in length
  that contain the first request and fit the token budget, the one with the most useful
  tokens per token of cost is taken, of those that cost no more than running each member alone:
  like meets like, and padding is paid only where it is cheaper than a further execution.

Where due times are tight they decide how large a batch may be, and ``urgency`` decides whom to
give up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from headrace.core.events import BatchLimits, QueuedRequest
from headrace.core.latency import LatencyModel
from headrace.core.priorities import Queue
from headrace.core.queueing import ModelQueue
from headrace.core.urgency import give_up, largest_of

LOOKAHEAD_REQUESTS = 256
"""How many of the first requests are considered for one batch: enough for several token
budgets of short texts, and sorting them costs less than a thousandth of running one."""


class Formed(NamedTuple):
    """What became of those in front: at most one batch, and who is given up.

    ``members`` are in order (by length: shortest first), and none where nobody was left.
    ``hopeless`` would be late whatever happens, ``in_the_way`` forced a smaller batch.
    """

    members: list[QueuedRequest]
    hopeless: Sequence[QueuedRequest] = ()
    in_the_way: Sequence[QueuedRequest] = ()


def form_batch(queue: Queue, limits: BatchLimits, cost: LatencyModel, now_ns: int) -> Formed:
    """Removes the next batch from ``queue``, and those who are not to be run at all.

    The queue must not be empty.
    """
    if not cost or at_ease(queue, cost.safe_ns(largest_of(limits)), now_ns):
        return Formed(take_batch(queue, limits))
    hopeless, in_the_way = give_up(queue, limits, cost, now_ns)
    members = _take_in_time(queue, limits, cost, now_ns) if queue else []
    return Formed(members, hopeless, in_the_way)


def at_ease(queue: Queue, span_ns: float, now_ns: int) -> bool:
    """Whether all that are looked at have so much time left."""
    if isinstance(queue, ModelQueue):
        head = queue.head()
        return head is None or head.due_ns - now_ns >= span_ns
    window = queue.window(LOOKAHEAD_REQUESTS)
    return min([request.due_ns for request in window]) - now_ns >= span_ns


def take_batch(queue: Queue, limits: BatchLimits) -> list[QueuedRequest]:
    """Removes the next batch as if there were all the time in the world. Not from an empty one."""
    if not limits.max_padded_tokens or len(queue) == 1:
        return _take_by_rows(queue, limits)
    return _take_by_length(queue, queue.window(LOOKAHEAD_REQUESTS), limits)


def _take_in_time(
    queue: Queue, limits: BatchLimits, cost: LatencyModel, now_ns: int
) -> list[QueuedRequest]:
    """As :func:`take_batch`, but no larger than lets every member be answered when due."""
    window = queue.window(LOOKAHEAD_REQUESTS)
    first = window[0]
    room = min(cost.largest_within(first.due_ns - now_ns), largest_of(limits))
    if limits.max_padded_tokens:
        mates = [
            request
            for request in window
            if request.due_ns >= first.due_ns or request.due_ns - now_ns >= cost.safe_ns(room)
        ]
        tight = msgspec.structs.replace(limits, max_padded_tokens=max(1, int(room)))
        return _take_by_length(queue, mates, tight)
    members: list[QueuedRequest] = []
    rows, tightest_ns = 0, first.due_ns
    for request in window:
        if request.shape_key != first.shape_key:
            continue
        fits = room
        if request.due_ns < tightest_ns:
            fits = min(room, cost.largest_within(request.due_ns - now_ns))
        if members and rows + request.rows > fits:
            continue
        members.append(request)
        rows += request.rows
        room, tightest_ns = fits, min(tightest_ns, request.due_ns)
        if rows >= room:
            break
    queue.remove([request.request_id for request in members])
    return members


def _take_by_rows(queue: Queue, limits: BatchLimits) -> list[QueuedRequest]:
    batch = queue.take_front(limits.max_rows)
    if queue:
        rows = sum([request.rows for request in batch])
        if rows < limits.max_rows:
            _join_from_behind(queue, batch, limits.max_rows - rows)
    return batch


def _join_from_behind(queue: Queue, batch: list[QueuedRequest], rows_left: int) -> None:
    """The front does not fit; somebody a little further back may."""
    key = batch[0].shape_key
    joined: list[QueuedRequest] = []
    for candidate in queue.window(LOOKAHEAD_REQUESTS):
        if candidate.shape_key == key and candidate.rows <= rows_left:
            joined.append(candidate)
            rows_left -= candidate.rows
            if not rows_left:
                break
    if joined:
        batch.extend(joined)
        queue.remove([request.request_id for request in joined])


def _take_by_length(
    queue: Queue, window: list[QueuedRequest], limits: BatchLimits
) -> list[QueuedRequest]:
    anchor = window[0]
    candidates = [request for request in window if request.shape_key == anchor.shape_key]
    # Sorting is stable, so equal lengths keep their order.
    candidates.sort(key=_length)
    first, last = _best_run(candidates, candidates.index(anchor), limits)
    batch = candidates[first : last + 1]
    queue.remove([request.request_id for request in batch])
    return batch


def _length(request: QueuedRequest) -> int:
    return request.length


class _Candidates:
    """Requests sorted by length, with running sums, so that any slice is priced in O(1)."""

    __slots__ = ("_limits", "_longest", "_rows", "_useful")

    def __init__(self, requests: list[QueuedRequest], limits: BatchLimits) -> None:
        self._limits = limits
        self._longest = [request.length for request in requests]
        self._rows = [0]
        self._useful = [0]
        for request in requests:
            self._rows.append(self._rows[-1] + request.rows)
            self._useful.append(self._useful[-1] + request.rows * request.length)

    def fits(self, first: int, last: int) -> bool:
        rows = self._rows[last + 1] - self._rows[first]
        limits = self._limits
        return rows <= limits.max_rows and rows * self._longest[last] <= limits.max_padded_tokens

    def useful(self, first: int, last: int) -> int:
        return self._useful[last + 1] - self._useful[first]

    def cost(self, first: int, last: int) -> int:
        rows = self._rows[last + 1] - self._rows[first]
        return self._limits.batch_overhead_tokens + rows * self._longest[last]

    def pays(self, first: int, last: int) -> bool:
        """Whether running them together costs no more than running each alone."""
        alone = self.useful(first, last) + (last + 1 - first) * self._limits.batch_overhead_tokens
        return self.cost(first, last) <= alone

    def without_costly_short(self, first: int, last: int, anchor: int) -> int:
        """Moves ``first`` towards the anchor while the shortest member lowers efficiency."""
        while first < anchor:
            with_useful, with_cost = self.useful(first, last), self.cost(first, last)
            useful, cost = self.useful(first + 1, last), self.cost(first + 1, last)
            if useful * with_cost <= with_useful * cost:
                break
            first += 1
        return first


def _best_run(requests: list[QueuedRequest], anchor: int, limits: BatchLimits) -> tuple[int, int]:
    """The slice of ``requests`` (sorted by length) to run: first and last index, inclusive.

    For every longest member at or after the anchor, the shortest is the furthest that still
    fits; then efficiencies (useful tokens per token of cost) are compared as fractions, by
    cross-multiplication in integers, so that no rounding decides.
    """
    candidates = _Candidates(requests, limits)
    best, best_useful, best_cost = (anchor, anchor), -1, 1
    first = 0
    for last in range(anchor, len(requests)):
        while first < anchor and not candidates.fits(first, last):
            first += 1
        if last > anchor and not candidates.fits(first, last):
            break
        start = candidates.without_costly_short(first, last, anchor)
        if not candidates.pays(start, last):
            continue
        useful, cost = candidates.useful(start, last), candidates.cost(start, last)
        # ">=" prefers the larger batch when both are equally efficient.
        if useful * best_cost >= best_useful * cost:
            best, best_useful, best_cost = (start, last), useful, cost
    return best
