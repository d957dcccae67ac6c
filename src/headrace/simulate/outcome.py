"""What became of the requests of a simulation."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from headrace.core.actions import (
    CancelRequests,
    ExecuteBatch,
    ExpireRequests,
    FailRequests,
    RejectRequest,
)
from headrace.core.events import QueuedRequest

Group = tuple[int, int, int]
"""Model, tenant, priority."""


class Tally:
    """The requests of one group. Times in nanoseconds."""

    __slots__ = ("ended", "in_time", "late", "latencies_ns", "rejected")

    def __init__(self) -> None:
        self.latencies_ns: list[int] = []  # of those answered
        self.in_time = self.late = 0
        self.rejected: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()  # expire, cancel, fail

    @property
    def offered(self) -> int:
        """All of them."""
        return self.in_time + self.late + self.rejected.total() + self.ended.total()

    def add(self, other: Tally) -> None:
        """Those of another group too."""
        self.latencies_ns += other.latencies_ns
        self.in_time += other.in_time
        self.late += other.late
        self.rejected += other.rejected
        self.ended += other.ended

    def percentile_ms(self, share: float) -> float:
        """Of the latencies of those answered, by nearest rank; 0.0 where there are none."""
        return _percentile(self.latencies_ns, share)


class Outcome:
    """Counts of one run."""

    def __init__(self) -> None:
        self.groups: defaultdict[Group, Tally] = defaultdict(Tally)
        self.batches = 0
        self.rows = 0
        self.busy_ns = 0
        self.refusal_waits_ns: list[int] = []  # how long the refused waited to be told
        self.end_ns = 0
        self.unanswered = 0

    def completed(self, request: QueuedRequest, now_ns: int) -> None:
        """It has its answer."""
        tally = self.groups[request.model, request.tenant, request.priority]
        tally.latencies_ns.append(now_ns - request.arrival_ns)
        if now_ns <= request.due_ns:
            tally.in_time += 1
        else:
            tally.late += 1

    def rejected(self, request: QueuedRequest, action: RejectRequest, now_ns: int) -> None:
        """It was refused, at the door or later."""
        self.groups[request.model, request.tenant, request.priority].rejected[action.reason] += 1
        self.refusal_waits_ns.append(now_ns - request.arrival_ns)

    def ended(
        self, request: QueuedRequest, action: ExpireRequests | CancelRequests | FailRequests
    ) -> None:
        """It ended in another way."""
        how = type(action).__name__.removesuffix("Requests").lower()
        self.groups[request.model, request.tenant, request.priority].ended[how] += 1

    def batch(self, batch: ExecuteBatch, taken_ns: int) -> None:
        """One ran."""
        self.batches += 1
        self.rows += batch.rows
        self.busy_ns += taken_ns

    def total(self) -> Tally:
        """Of all groups."""
        total = Tally()
        for tally in self.groups.values():
            total.add(tally)
        return total


class Line(msgspec.Struct, frozen=True):
    """One line of the report. Times in milliseconds; rates of a second of the simulation."""

    who: str
    offered: int
    in_time: int
    late: int
    refused: dict[str, int]
    ended: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @property
    def goodput(self) -> float:
        """The part of the offered that was answered in time."""
        return self.in_time / self.offered if self.offered else 0.0


class Report(msgspec.Struct, frozen=True):
    """What a run came to."""

    seconds: float
    offered_rps: float
    good_rps: float
    mean_rows: float
    utilisation: float
    refused_at_once: float
    """Of the refusals: the part given at arrival, and not after waiting."""

    total: Line
    groups: list[Line]


def report(outcome: Outcome, instances: int, arrivals_ns: int) -> Report:
    """Summed up; ``arrivals_ns``: how long requests arrived."""
    total = outcome.total()
    span_s = max(1, arrivals_ns) / 1e9
    groups: list[Line] = []
    if len(outcome.groups) > 1:
        for (model, tenant, priority), tally in sorted(outcome.groups.items()):
            names = ((model, "model"), (tenant, "tenant"), (priority, "priority"))
            who = ", ".join([f"{what} {number}" for number, what in names if number])
            groups.append(_line(who or "others", tally))
    waits = outcome.refusal_waits_ns
    return Report(
        seconds=round(outcome.end_ns / 1e9, 3),
        offered_rps=round(total.offered / span_s, 1),
        good_rps=round(total.in_time / span_s, 1),
        mean_rows=round(outcome.rows / outcome.batches, 2) if outcome.batches else 0.0,
        utilisation=round(outcome.busy_ns / max(1, instances * outcome.end_ns), 4),
        refused_at_once=sum([not wait for wait in waits]) / len(waits) if waits else 1.0,
        total=_line("all", total),
        groups=groups,
    )


def _line(who: str, tally: Tally) -> Line:
    latencies = tally.latencies_ns = sorted(tally.latencies_ns)
    return Line(
        who,
        tally.offered,
        tally.in_time,
        tally.late,
        dict(sorted(tally.rejected.items())),
        dict(sorted(tally.ended.items())),
        *[_percentile(latencies, share) for share in (0.5, 0.9, 0.99)],
    )


def _percentile(latencies_ns: list[int], share: float) -> float:
    if not latencies_ns:
        return 0.0
    ordered = sorted(latencies_ns)
    rank = max(0, min(len(ordered) - 1, -(-int(share * 1000) * len(ordered) // 1000) - 1))
    return round(ordered[rank] / 1e6, 3)
