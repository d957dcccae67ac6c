"""Which waiting requests run together now.

Law: the first request is always in the batch: the oldest, of the best level where the model
has priority levels. Everybody else joins only if it helps, so within a level no order of
arrivals can starve anyone, and a lone request never waits for company. Below, "oldest" is in
the queue's order.

Two shapes of work:

* **By rows.** Requests of equal shape are concatenated, oldest first, up to ``max_rows``.
* **By length.** Rows of different length are padded to the longest, so the cost of a batch
  is about ``overhead + rows x longest`` (in tokens). Among the runs of neighbours in length
  that contain the oldest request and fit the token budget, the one with the most useful
  tokens per token of cost is taken, of those that cost no more than running each member alone:
  like meets like, and padding is paid only where it is cheaper than a further execution.
"""

from __future__ import annotations

from headrace.core.events import BatchLimits, QueuedRequest
from headrace.core.priorities import LevelledQueue
from headrace.core.queueing import ModelQueue

LOOKAHEAD_REQUESTS = 256
"""How many of the oldest requests are considered for one batch: enough for several token
budgets of short texts, and sorting them costs less than a thousandth of running one."""


def take_batch(queue: ModelQueue | LevelledQueue, limits: BatchLimits) -> list[QueuedRequest]:
    """Removes the next batch from ``queue`` and returns it, oldest (by length: shortest) first.

    The queue must not be empty.
    """
    if limits.max_padded_tokens:
        return _take_by_length(queue, limits)
    return _take_by_rows(queue, limits)


def _take_by_rows(queue: ModelQueue | LevelledQueue, limits: BatchLimits) -> list[QueuedRequest]:
    batch = queue.take_front(limits.max_rows)
    if queue:
        rows = sum([request.rows for request in batch])
        if rows < limits.max_rows:
            _join_from_behind(queue, batch, limits.max_rows - rows)
    return batch


def _join_from_behind(
    queue: ModelQueue | LevelledQueue, batch: list[QueuedRequest], rows_left: int
) -> None:
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
        queue.remove(request.request_id for request in joined)


def _take_by_length(queue: ModelQueue | LevelledQueue, limits: BatchLimits) -> list[QueuedRequest]:
    window = queue.window(LOOKAHEAD_REQUESTS)
    anchor = window[0]
    candidates = [request for request in window if request.shape_key == anchor.shape_key]
    # Sorting is stable, so equal lengths keep their order of arrival.
    candidates.sort(key=_length)
    first, last = _best_run(candidates, candidates.index(anchor), limits)
    batch = candidates[first : last + 1]
    queue.remove(request.request_id for request in batch)
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
