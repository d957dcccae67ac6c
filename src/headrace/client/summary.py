"""Raw samples -> the figures of a run. Pure.

Percentiles are by nearest rank (a latency that really occurred, never one between two), over
the requests that were answered well. Failed requests are not hidden by that: whether the
SLO was met, and goodput, count every request that was offered, and one that failed was not
in time.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.client.processes import Meter
from headrace.client.samples import NO_STATUS, OK, PENDING, Samples

LATE_MS = 1.0
"""A send later than this is the generator's fault and worth mentioning."""

LATE_SHARE = 0.01
"""More late sends than this and the run's tail is partly the generator's own."""

BUSY_SHARE = 0.9
"""Of one core; above it the generator is likely to be what limits the run."""

KEPT_UP_SHARE = 0.95
"""Answered over offered; below it a queue was growing for as long as the run lasted."""

_NS_PER_MS = 1e6
Floats = npt.NDArray[np.float64]


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds, over requests that were answered well."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class ErrorCount(msgspec.Struct, frozen=True):
    """Requests that failed for one reason; ``status`` 0 where there was no answer."""

    status: int
    reason: str
    count: int


class Slo(msgspec.Struct, frozen=True):
    """A latency bound held against every request offered.

    ``met``: at least ``percentile`` percent of them succeeded within ``bound_ms``.
    """

    bound_ms: float
    percentile: float
    met: bool
    good: int
    goodput_share: float
    goodput_rps: float


class Lateness(msgspec.Struct, frozen=True):
    """How long after they were due the generator came to its requests (open loop).

    ``answer_p99_ms`` is the p99 of good answers counted from that moment instead of from the
    schedule. Where the generator was late the truth lies between the two.
    """

    p50_ms: float
    p99_ms: float
    max_ms: float
    share_over_1ms: float
    answer_p99_ms: float | None


class Cpu(msgspec.Struct, frozen=True):
    """CPU time over a run. ``cores`` = CPU seconds per second; per request answered."""

    seconds: float
    cores: float
    us_per_request: float | None
    pids: tuple[int, ...] = ()


class Note(msgspec.Struct, frozen=True):
    """What a reader must know before believing the figures; ``kind`` is for machines."""

    kind: str
    text: str


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a summary needs beside the samples.

    ``horizon_ns``: time the open loop's schedule covers; None for a closed loop.
    ``rows``: samples in each query, by index.
    """

    percentile: float
    slo_ms: float | None
    horizon_ns: int | None
    rows: npt.NDArray[np.int64]
    interrupted: bool
    meter: Meter
    notes: tuple[Note, ...] = ()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run.

    ``offered`` are requests that were due; ``unfinished`` those under way when the run was
    interrupted, which count as neither good nor bad. ``window_s`` is the time that
    the offered rate and goodput are of: the schedule's; in a closed loop to the last good
    answer. ``answered_rps`` is of ``answering_s``: where an open loop's answers took longer
    to come in, first to last, than the schedule to send them out, a queue was growing.
    """

    offered: int
    sent: int
    ok: int
    failed: int
    unfinished: int
    window_s: float
    answering_s: float
    offered_rps: float
    answered_rps: float
    samples_per_s: float
    percentile: float
    latency: Latency | None
    headline_ms: float | None
    slo: Slo | None
    late: Lateness | None
    errors: tuple[ErrorCount, ...]
    generator: Cpu
    server: Cpu | None
    notes: tuple[Note, ...]

    @property
    def kept_up(self) -> bool:
        """Whether the server answered what was offered: no growing queue, hardly an error."""
        return self.ok >= KEPT_UP_SHARE * (self.offered - self.unfinished) and (
            self.late is None or self.answered_rps >= KEPT_UP_SHARE * self.offered_rps
        )


def summarise(samples: Samples, context: Context) -> Summary:
    """All figures of a run that has ended."""
    outcome = np.array(samples.outcome, np.int16)
    due, done = np.array(samples.due_ns, np.int64), np.array(samples.done_ns, np.int64)
    good_answer = outcome == OK
    latency_ms = np.sort((done - due)[good_answer] / _NS_PER_MS)
    unfinished = int((outcome == PENDING).sum())
    window_s, answering_s = _spans(samples, context, done[good_answer])
    counted = len(outcome) - unfinished
    answered, meter = _answered(samples, outcome), context.meter
    summary = Summary(
        offered=len(outcome),
        sent=samples.sent,
        ok=samples.ok,
        failed=samples.failed,
        unfinished=unfinished,
        window_s=window_s,
        answering_s=answering_s,
        offered_rps=len(outcome) / window_s,
        answered_rps=samples.ok / answering_s,
        samples_per_s=int(context.rows[good_answer].sum()) / answering_s,
        percentile=context.percentile,
        latency=_latency(latency_ms),
        headline_ms=_rank(latency_ms, context.percentile) if len(latency_ms) else None,
        slo=_slo(context, latency_ms, counted, window_s),
        late=None
        if context.horizon_ns is None
        else _late(samples, due, np.where(good_answer, done, 0)),
        errors=_errors(samples, outcome),
        generator=_cpu(meter.own_s, meter.wall_s, answered),
        server=None
        if meter.server_s is None
        else _cpu(meter.server_s, meter.wall_s, answered, meter.pids),
        notes=(),
    )
    return msgspec.structs.replace(summary, notes=(*context.notes, *_notes(summary)))


def _spans(
    samples: Samples, context: Context, good_ns: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """``(window, answering)`` in seconds, both above 0."""
    ran_ns = max(1, samples.ended_ns - samples.started_ns)
    if context.horizon_ns is None:
        ran_ns = int(good_ns.max()) - samples.started_ns if len(good_ns) else ran_ns
        return max(1, ran_ns) / 1e9, max(1, ran_ns) / 1e9
    window_ns = min(context.horizon_ns, ran_ns) if context.interrupted else context.horizon_ns
    answering_ns = int(good_ns.max() - good_ns.min()) if len(good_ns) else 0
    return max(1, window_ns) / 1e9, max(1, window_ns, answering_ns) / 1e9


def _rank(ordered: Floats, percentile: float) -> float:
    return float(np.percentile(ordered, percentile, method="inverted_cdf"))


def _latency(ordered_ms: Floats) -> Latency | None:
    if not len(ordered_ms):
        return None
    ranks = (_rank(ordered_ms, percentile) for percentile in (50, 90, 95, 99, 99.9, 100))
    return Latency(float(ordered_ms.mean()), *ranks)


def _slo(context: Context, ordered_ms: Floats, counted: int, window_s: float) -> Slo | None:
    if context.slo_ms is None:
        return None
    good = int(np.searchsorted(ordered_ms, context.slo_ms, side="right"))
    share = good / counted if counted else 0.0
    return Slo(
        bound_ms=context.slo_ms,
        percentile=context.percentile,
        met=counted > 0 and good * 100 >= counted * context.percentile,
        good=good,
        goodput_share=share,
        goodput_rps=good / window_s,
    )


def _late(
    samples: Samples, due: npt.NDArray[np.int64], done_well: npt.NDArray[np.int64]
) -> Lateness | None:
    """``done_well``: when good answers were complete, 0 for all others."""
    if not len(due):
        return None
    taken = np.array(samples.taken_ns, np.int64)
    late_ms = np.sort((taken - due) / _NS_PER_MS)
    answer_ms = np.sort((done_well - taken)[done_well > 0] / _NS_PER_MS)
    return Lateness(
        _rank(late_ms, 50),
        _rank(late_ms, 99),
        float(late_ms[-1]),
        float((late_ms > LATE_MS).mean()),
        _rank(answer_ms, 99) if len(answer_ms) else None,
    )


def _answered(samples: Samples, outcome: npt.NDArray[np.int16]) -> int:
    """Requests the server gave any HTTP answer to: those it spent CPU time on."""
    with_status = [number for number, reason in enumerate(samples.reasons) if reason.status]
    return samples.ok + int(np.isin(outcome, with_status).sum())


def _errors(samples: Samples, outcome: npt.NDArray[np.int16]) -> tuple[ErrorCount, ...]:
    numbers, counts = np.unique(outcome[outcome > OK], return_counts=True)
    lines = [
        ErrorCount(samples.reasons[number].status, samples.reasons[number].text, int(count))
        for number, count in zip(numbers, counts, strict=True)
    ]
    return tuple(sorted(lines, key=lambda line: (-line.count, line.status, line.reason)))


def _cpu(seconds: float, wall_s: float, answered: int, pids: tuple[int, ...] = ()) -> Cpu:
    return Cpu(
        seconds,
        seconds / wall_s if wall_s else 0.0,
        seconds / answered * 1e6 if answered else None,
        pids,
    )


def _notes(summary: Summary) -> Iterator[Note]:
    late = summary.late
    if late is not None and late.share_over_1ms > LATE_SHARE:
        yield Note(
            "late",
            f"generator late: {late.share_over_1ms:.1%} of the requests left more than "
            f"{LATE_MS:g} ms after they were due (p99 {late.p99_ms:.3g} ms); latencies include "
            f"that. Counted from when they left, p99 is {late.answer_p99_ms or 0:.3g} ms; the "
            "truth lies between",
        )
    if summary.generator.cores > BUSY_SHARE:
        yield Note(
            "busy",
            f"generator busy: {summary.generator.cores:.0%} of a core; the server may be able to "
            "do more than this generator can ask for",
        )
    if late is not None and summary.answered_rps < KEPT_UP_SHARE * summary.offered_rps:
        yield Note(
            "overload",
            f"overload: {summary.answered_rps:.4g}/s answered of {summary.offered_rps:.4g}/s "
            "offered; where a queue grew, latencies depend on how long the run was",
        )
    unranked = next((p for p, needed in ((99, 100), (99.9, 1000)) if summary.ok < needed), None)
    if summary.ok and unranked is not None:
        yield Note("few", f"{summary.ok} answers: p{unranked:g} is the slowest of them")
    if any(error.status == NO_STATUS for error in summary.errors):
        yield Note(
            "unanswered",
            "failures without a status got no answer; their time is not in the latencies",
        )
