"""Whether a request that arrives now would be answered when it is due.

Law: a request is refused by a prediction only if something is in its way. While an instance
is free and nothing waits, it runs, whatever is believed: beliefs are mended by what runs.

As long as nearly everybody is in time only that is asked: would it be in time next, if all who
wait gave way to it? Who has to is known best when the batch is formed. Once some have to go in any
case, they had better go at the door:

The prediction lays the work that is ahead in batches over the instances as they become free
(Clockwork, A. Gujarati et al., OSDI 2020), and adds the request to the last one. One more
question is asked of who would be the first of a batch: how many are likely to come until it
starts. If a batch of so many would end too late for the first, that one will be given up when
the batch is formed (see ``urgency``), and it is kinder to say so now.
"""

from __future__ import annotations

from bisect import insort
from math import ceil

import msgspec

from headrace.core.actions import RejectRequest
from headrace.core.events import NEVER_NS, BatchLimits, QueuedRequest
from headrace.core.instances import Instances
from headrace.core.latency import LatencyModel
from headrace.core.pool import ModelState
from headrace.core.priorities import is_entitled
from headrace.core.urgency import largest_of, units_of

_LIKELY = 0.7
"""Of those expected, so many are counted on. Chosen by simulation over the curves and arrivals of
``benchmarks/goodput.py``: with 1.0 a lull leaves instances idle (3-5 % less within the SLO at the
highest load that meets it), with 0.5 a third of the refusals come late."""

_OVERLOAD = 0.03
"""Of the last thousand requests or so, refused or given up; above it some have to go anyway."""

_SOONEST_NS = 1_000_000
"""The shortest time after which it is worth asking again."""


class Forecast:
    """When work would be done, as seen at one moment. For one model.

    Args:
        starts_ns: when each instance it may use is free, in any order; at least one.
        head_due_ns: when the first that waits is due; None: nobody waits.
        rate: units of work that arrive per nanosecond.
    """

    __slots__ = (
        "_cost",
        "_head_due_ns",
        "_largest",
        "_now_ns",
        "_rate",
        "_starts_ns",
        "calm_ns",
    )

    def __init__(
        self,
        limits: BatchLimits,
        cost: LatencyModel,
        starts_ns: list[float],
        now_ns: int,
        *,
        head_due_ns: int | None,
        units: float,
        rate: float,
    ) -> None:
        self._cost = cost
        self._largest = float(largest_of(limits))
        self._starts_ns = sorted(starts_ns)
        self._now_ns = now_ns
        self._head_due_ns = head_due_ns
        self._rate = rate
        waves = units / (self._largest * len(starts_ns)) + 2.0
        self.calm_ns = self._starts_ns[-1] + waves * cost.safe_ns(self._largest)
        """Who is due later is in no danger, while no more than ``units`` are ahead."""

    def finish_ns(self, ahead: float, own: float, due_ns: int, *, strict: bool) -> float:
        """When a request of ``own`` units, with ``ahead`` units before it, would be answered.

        Beyond ``due_ns``: it should be refused.

        Args:
            strict: whether some have to be refused in any case, and this may be one of them.
        """
        cost, largest = self._cost, self._largest
        if not strict:
            return self._starts_ns[0] + cost.predict_ns(own)
        starts = list(self._starts_ns)
        waves = ahead / (largest * len(starts)) - 2.0
        if waves > 1.0:
            # Far behind it is not worth laying batches one by one.
            skipped = int(waves)
            ahead -= skipped * largest * len(starts)
            starts = [start + skipped * cost.predict_ns(largest) for start in starts]
        start = starts[0]
        head_due_ns = due_ns if self._head_due_ns is None else self._head_due_ns
        room = self._room(head_due_ns, start)
        while ahead > 0.0 and ahead + own > room:
            size = min(ahead, max(room, 1.0))
            ahead -= size
            del starts[0]
            insort(starts, start + cost.predict_ns(size))
            start = starts[0]
            room = self._room(due_ns, start)
        finish_ns = start + cost.safe_ns(ahead + own)
        if ahead <= 0.0 and finish_ns <= due_ns:
            company = min(self._rate * (start - self._now_ns) * _LIKELY, largest)
            if company > own and company > room:
                return start + cost.safe_ns(company)
        return finish_ns

    def _room(self, due_ns: float, start_ns: float) -> float:
        return min(self._cost.largest_within(due_ns - start_ns), self._largest)


class Door:
    """Who gets into the queue of one model, of those that arrive in one event.

    Args:
        others_ns: the time of instances that is owed to what waits for other models.
    """

    __slots__ = ("_calm_ns", "_forecast", "_now_ns", "calm", "model", "weight")

    def __init__(
        self,
        number: int,
        model: ModelState,
        instances: Instances,
        arriving: list[QueuedRequest],
        *,
        now_ns: int,
        others_ns: float,
    ) -> None:
        self.model = model
        self._now_ns = now_ns
        self._forecast: Forecast | None = None
        limits, cost = model.limits, model.cost
        count = len(arriving)
        self.weight = weight = model.weigh(arriving)
        units = weight[1]
        model.arrived(count, units, now_ns)
        roomy = model.has_room(count, weight)
        self._calm_ns = 0.0  # who is due from then on is in no danger
        self.calm = roomy
        """Whether all that arrive are in no danger, and no bound of the queue can be reached."""
        if not cost:
            return
        earliest_ns = arriving[0].due_ns
        if count > 1:
            earliest_ns = min([request.due_ns for request in arriving])
        if instances.takes(number, model):
            together = model.waiting_units + units
            if not model.waiting_rows:
                self._calm_ns = now_ns + cost.on_curve(largest_of(limits))
            elif together <= largest_of(limits):  # it waits for company: here it is
                self._calm_ns = now_ns + cost.safe_ns(together)
            self.calm = roomy and earliest_ns >= self._calm_ns > 0.0
            if self.calm or not model.waiting_rows:
                return
        starts_ns = instances.starts_ns(number, model, now_ns)
        if not starts_ns:
            return  # nothing can run it; who knows for how long
        head = model.oldest()
        wait_ns = others_ns * (1.0 - limits.min_share) / len(starts_ns)
        self._forecast = Forecast(
            limits,
            cost,
            [start + wait_ns for start in starts_ns],
            now_ns,
            head_due_ns=None if head is None else head.due_ns,
            units=model.waiting_units + units,
            rate=model.rate(now_ns),
        )
        self._calm_ns = self._forecast.calm_ns
        self.calm = roomy and earliest_ns >= self._calm_ns

    def ask(self, request: QueuedRequest) -> RejectRequest | QueuedRequest:
        """The request as it is to be queued, or why it is not.

        One that is wanted sooner than an idle machine could answer is due at its deadline instead.
        """
        model, now_ns = self.model, self._now_ns
        limits, cost = model.limits, model.cost
        own = units_of(request, limits)
        usual_ns = cost.on_curve(own)
        if now_ns + usual_ns > request.due_ns:
            model.hurried += 1
            if limits.strict_slo:
                return RejectRequest(
                    request.request_id, "slo_unattainable", 0, _whole(usual_ns + now_ns, request)
                )
            request = msgspec.structs.replace(request, due_ns=request.deadline_ns)
        forecast = self._forecast
        if forecast is None or request.due_ns == NEVER_NS or request.due_ns >= self._calm_ns:
            return request
        waiting = model.waiting()
        mean = model.waiting_units / waiting if waiting else 0.0
        ahead = (len(model.alone) + model.queue.ahead_of(request)) * mean
        strict = model.loss > _OVERLOAD and not is_entitled(model.queue, request)
        finish_ns = forecast.finish_ns(ahead, own, request.due_ns, strict=strict)
        if finish_ns <= request.due_ns:
            return request
        return RejectRequest(
            request.request_id,
            "deadline_unreachable",
            max(_SOONEST_NS, int(finish_ns - request.due_ns)),
            _whole(finish_ns, request),
        )


def _whole(finish_ns: float, request: QueuedRequest) -> int:
    return max(1, ceil(finish_ns - request.arrival_ns))
