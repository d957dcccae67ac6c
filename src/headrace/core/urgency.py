"""Whom to give up, and when it pays to let an instance wait.

Law: a request is given up only if it would be late, or if running it in time would cost more
others theirs than itself; and nobody waits for company whom waiting would make late.

**Giving up** is the early drop of Nexus (H. Shen et al., SOSP 2019): of all batches that could
start now and end before their first member is due, the largest does the most in a given time, and
those before it, each of whom would force a smaller and less efficient one, stand in its way. Who
serves them in order of arrival all the same serves, past saturation, nobody in time.

**Waiting** is the deferral of Symphony (L. Chen et al., 2023): with several instances, each
taking whatever is there the moment it is free, batches stay small and all instances busy; so
one waits until the batch with one more member could no longer be on time. It is done only where
requests alone would be more than the instances can serve, and at least half of these are busy.
"""

from __future__ import annotations

from headrace.core.events import NEVER_NS, BatchLimits, QueuedRequest
from headrace.core.fairness import FairQueue
from headrace.core.latency import LatencyModel
from headrace.core.priorities import Queue, front_of
from headrace.core.queueing import ModelQueue

LOOKAHEAD_REQUESTS = 512
"""How many of the first are looked at: with batches of up to half of it nothing is overlooked."""

_TIGHT = 3.0
"""Waiting for company helps where the time allowed is less than so many of the largest batches;
beyond it batches fill by themselves."""

_WORTH = 1.05
"""What giving somebody up must gain, in work per time: where cost is nearly proportional to size a
larger batch is no better than two, and nobody stands in its way."""

_LONGEST_WAIT_NS = 500_000_000
"""For company, after the first has come: where batches take many seconds, and so do the times that
are allowed, half of one finds all the company that there is."""

_MIN_INSTANCES = 2


def largest_of(limits: BatchLimits) -> int:
    """The units of the largest batch: padded tokens where there is a length, else rows."""
    return limits.max_padded_tokens or limits.max_rows


def units_of(request: QueuedRequest, limits: BatchLimits) -> int:
    """The request's own work in these units."""
    return request.rows * max(1, request.length) if limits.max_padded_tokens else request.rows


def give_up(
    queue: Queue, limits: BatchLimits, cost: LatencyModel, now_ns: int
) -> tuple[list[QueuedRequest], list[QueuedRequest]]:
    """Removes some of the best level: who cannot be saved, and who stands in the way of more."""
    front = front_of(queue)
    window = front.window(LOOKAHEAD_REQUESTS)
    beyond = len(front) - len(window)
    hopeless: list[QueuedRequest] = []
    others: list[QueuedRequest] = []
    for request in window:
        alone_ns = cost.predict_ns(units_of(request, limits))
        if now_ns + alone_ns <= request.due_ns or _is_probe(request, alone_ns):
            others.append(request)
        else:
            hopeless.append(request)
    kept_ns = NEVER_NS  # when the first of those is due who do not give way to anybody
    if isinstance(front, FairQueue):
        entitled = {request.tenant: front.within_share(request) for request in others}
        kept_ns = min([r.due_ns for r in others if entitled[r.tenant]], default=NEVER_NS)
        beyond += len(others)
        others = [request for request in others if not entitled[request.tenant]]
        beyond -= len(others)
    others.sort(key=_due)
    start = _start_of_largest(others, beyond, limits, cost, now_ns=now_ns, kept_ns=kept_ns)
    in_the_way = others[:start]
    queue.remove([request.request_id for request in hopeless + in_the_way])
    return hopeless, in_the_way


def _is_probe(request: QueuedRequest, alone_ns: float) -> bool:
    """Nobody could be in time, says what was learnt: then it is that which needs a new look."""
    return request.arrival_ns + alone_ns > request.due_ns


def _start_of_largest(
    requests: list[QueuedRequest],
    beyond: int,
    limits: BatchLimits,
    cost: LatencyModel,
    *,
    now_ns: int,
    kept_ns: int,
) -> int:
    """The index, in order of due times, from which the largest batch in time can be formed.

    Args:
        beyond: others who may be in it, and are not given up.
        kept_ns: when the first of these is due.
    """
    if len(requests) < 2:
        return 0
    units = [units_of(request, limits) for request in requests]
    left = float(sum(units))
    left += beyond * left / len(requests)
    largest = min(float(largest_of(limits)), cost.largest_within(kept_ns - now_ns))
    start, most, speed = 0, -1.0, 0.0
    for index, request in enumerate(requests):
        if left <= most:
            break
        within = cost.largest_within(request.due_ns - now_ns)
        room = max(min(largest, left, within // 1), float(units[index]))
        quicker = room / cost.predict_ns(room)
        if index == 0 or quicker > speed * _WORTH:
            start, most, speed = index, room, quicker
        if room >= largest:
            break
        left -= units[index]
    return start


def hurries(queue: Queue, limits: BatchLimits, cost: LatencyModel) -> bool:
    """Whether the first is allowed so little time that company may not find it by itself."""
    head = queue.head()
    if head is None or head.due_ns == NEVER_NS or not cost:
        return False
    return head.due_ns - head.arrival_ns <= _TIGHT * cost.predict_ns(largest_of(limits))


def may_wait(cost: LatencyModel, mean_units: float, rate: float, usable: int, idle: int) -> bool:
    """Whether the load is one where an instance had better wait for a larger batch.

    Args:
        mean_units: of one request.
        rate: units that arrive per nanosecond.
        usable: instances that can run the model; ``idle`` of them do nothing.
    """
    if usable < _MIN_INSTANCES or 2 * idle > usable:
        return False
    return rate / mean_units * cost.predict_ns(mean_units) >= usable


def wait_until(
    queue: Queue, limits: BatchLimits, cost: LatencyModel, one_more: int, now_ns: int
) -> int:
    """Until when the batch that could start now may wait for one more; 0: it should not.

    It waits if all who are there fit into it and one more does.

    Args:
        one_more: the units of all who wait and of one like them.
    """
    head = queue.head()
    if head is None or one_more > largest_of(limits):
        return 0
    if isinstance(queue, ModelQueue):
        tightest_ns = head.due_ns
    else:
        tightest_ns = min([request.due_ns for request in queue.window(LOOKAHEAD_REQUESTS)])
    latest_ns = int(tightest_ns - cost.safe_ns(one_more))
    latest_ns = min(latest_ns, head.arrival_ns + _LONGEST_WAIT_NS)
    return latest_ns if latest_ns > now_ns else 0


def _due(request: QueuedRequest) -> int:
    return request.due_ns
