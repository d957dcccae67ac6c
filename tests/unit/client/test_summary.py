"""Figures from hand-made samples: what counts, what does not, and against what."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.processes import Meter
from headrace.client.samples import NO_STATUS, PENDING, Reason, Samples
from headrace.client.summary import Context, Summary, summarise

MS = 1_000_000
START = 5_000_000_000


def samples_of(
    latencies_ms: list[float | str | None], *, gap_ms: float = 10, late_ms: float = 0
) -> Samples:
    """A request every ``gap_ms``; a number succeeds, a text fails for it, None is pending."""
    samples = Samples()
    samples.started_ns = START
    for number, latency in enumerate(latencies_ms):
        due = START + int(number * gap_ms * MS)
        index = samples.take(due, due + int(late_ms * MS))
        samples.sent += 1
        if isinstance(latency, str):
            samples.fail(index, due + MS, Reason(503 if "full" in latency else NO_STATUS, latency))
        elif latency is not None:
            samples.succeed(index, due + int(latency * MS))
    samples.ended_ns = START + int(len(latencies_ms) * gap_ms * MS)
    return samples


def summary_of(samples: Samples, **changes: object) -> Summary:
    context = {
        "percentile": 99.0,
        "slo_ms": None,
        "horizon_ns": samples.ended_ns - samples.started_ns,
        "rows": np.ones(len(samples), np.int64),
        "interrupted": False,
        "meter": Meter(),
    }
    return summarise(samples, Context(**(context | changes)))  # type: ignore[arg-type]


@given(st.lists(st.floats(0.001, 5000), min_size=1, max_size=300))
def test_percentiles_are_latencies_that_occurred_by_nearest_rank(latencies):
    latency = summary_of(samples_of(list(latencies))).latency
    assert latency is not None
    ordered = sorted(int(each * MS) / MS for each in latencies)
    for percentile, value in (
        (50, latency.p50_ms),
        (90, latency.p90_ms),
        (99, latency.p99_ms),
        (99.9, latency.p999_ms),
        (100, latency.max_ms),
    ):
        assert value in ordered
        # at least that share of the answers was this fast, and the next faster one is too few
        rank = ordered.index(value)
        assert sum(each <= value for each in ordered) >= len(ordered) * percentile / 100 - 1e-6
        assert rank < math.ceil(len(ordered) * percentile / 100 + 1e-6)


def test_failures_are_not_in_the_latencies_but_count_against_the_slo():
    samples = samples_of([5.0] * 95 + ["queue is full"] * 5)
    summary = summary_of(samples, slo_ms=10.0)
    assert summary.latency is not None
    assert summary.latency.max_ms == 5
    assert summary.slo is not None
    assert summary.slo.goodput_share == 0.95
    assert not summary.slo.met
    lenient = summary_of(samples, slo_ms=10.0, percentile=90.0).slo
    assert lenient is not None
    assert lenient.met


def test_exactly_the_percentile_within_the_bound_meets_the_slo():
    slo = summary_of(samples_of([10.0] * 99 + [10.1]), slo_ms=10.0).slo
    assert slo is not None
    assert slo.met
    assert slo.good == 99
    missed = summary_of(samples_of([10.0] * 98 + [10.1] * 2), slo_ms=10.0).slo
    assert missed is not None
    assert not missed.met


def test_answers_that_come_in_more_slowly_than_requests_left_are_overload():
    # 100 requests over one second, each 10 ms slower than the one before: 2 s for the answers
    summary = summary_of(samples_of([10.0 * (number + 1) for number in range(100)]))
    assert summary.window_s == 1
    assert summary.offered_rps == 100
    assert summary.answering_s == pytest.approx(1.98)
    assert summary.answered_rps == pytest.approx(100 / 1.98)
    assert not summary.kept_up
    assert [note.kind for note in summary.notes] == ["overload", "few"]


def test_a_server_that_is_slow_but_steady_keeps_up():
    summary = summary_of(samples_of([1010.0] * 100))
    assert summary.answered_rps == 100
    assert summary.kept_up


def test_a_time_out_at_the_end_does_not_stretch_the_run():
    samples = samples_of([5.0] * 99 + ["no answer within 10 s"])
    samples.ended_ns += 10_000_000_000
    summary = summary_of(samples, horizon_ns=1_000_000_000)
    assert summary.answered_rps == pytest.approx(99)
    assert summary.kept_up
    assert "unanswered" in [note.kind for note in summary.notes]


def test_what_was_under_way_at_an_interruption_is_neither_good_nor_bad():
    samples = samples_of([5.0] * 50 + [None] * 50)
    assert samples.outcome[-1] == PENDING
    summary = summary_of(samples, interrupted=True, slo_ms=10.0, horizon_ns=60_000_000_000)
    assert (summary.ok, summary.failed, summary.unfinished) == (50, 0, 50)
    assert summary.window_s == 1  # what ran, not what was planned
    assert summary.slo is not None
    assert summary.slo.goodput_share == 1


def test_errors_are_counted_by_status_and_reason_most_frequent_first():
    errors = summary_of(samples_of(["queue is full"] * 3 + ["reset"] * 4 + [1.0])).errors
    assert [(error.status, error.reason, error.count) for error in errors] == [
        (NO_STATUS, "reset", 4),
        (503, "queue is full", 3),
    ]


def test_the_number_of_reasons_is_bounded():
    samples = Samples()
    for number in range(1000):
        samples.fail(samples.take(0, 0), 1, Reason(500, f"error {number}"))
    assert len(samples.reasons) <= 70
    assert sum(error.count for error in summary_of(samples).errors) == 1000


def test_nothing_answered_is_a_summary_too():
    summary = summary_of(samples_of(["queue is full"] * 10), slo_ms=5.0)
    assert summary.latency is None
    assert summary.headline_ms is None
    assert summary.slo is not None
    assert not summary.slo.met
    assert summary.answered_rps == 0


def test_the_generators_own_lateness_is_reported_and_warned_of():
    punctual = summary_of(samples_of([5.0] * 1000, late_ms=0.2))
    assert punctual.late is not None
    assert punctual.late.p99_ms == pytest.approx(0.2)
    assert punctual.notes == ()
    late = summary_of(samples_of([5.0] * 1000, late_ms=3))
    assert late.late is not None
    assert late.late.share_over_1ms == 1
    assert late.latency is not None
    assert late.latency.p99_ms == 5
    assert late.late.answer_p99_ms == 2
    assert [note.kind for note in late.notes] == ["late"]


def test_a_closed_loop_has_no_schedule_to_be_late_for():
    samples = samples_of([5.0] * 100)
    summary = summary_of(samples, horizon_ns=None)
    assert summary.late is None
    assert summary.answering_s == pytest.approx(0.995)  # to the last answer


def test_samples_are_rows_of_good_answers():
    rows = np.array([8, 8, 2], np.int64)
    summary = summary_of(samples_of([5.0, "x", 5.0], gap_ms=500), rows=rows)
    assert summary.samples_per_s == pytest.approx(10 / 1.5)


def test_cpu_time_is_per_request_that_the_server_answered_in_any_way():
    meter = Meter((7,))
    meter.own_s, meter.server_s, meter.wall_s = 0.95, 0.5, 1.0
    summary = summary_of(samples_of([5.0] * 90 + ["full"] * 10 + ["reset"] * 10), meter=meter)
    assert summary.server is not None
    assert summary.server.us_per_request == pytest.approx(5000)
    assert summary.server.cores == 0.5
    assert summary.server.pids == (7,)
    assert "busy" in [note.kind for note in summary.notes]


def test_a_request_ends_once():
    samples = Samples()
    index = samples.take(0, 0)
    samples.succeed(index, 1)
    with pytest.raises(AssertionError, match="ends once"):
        samples.fail(index, 2, Reason(500, "again"))


# coordinated omission, as arithmetic


def test_a_stall_shows_in_full_when_latency_counts_from_the_schedule():
    """A request every 10 ms for 10 s; the server stops for 1 s at 5 s, then answers at once.

    The hundred requests that were due meanwhile waited 1000, 990, ... 10 ms, so one in ten
    of all requests is above 5 ms, and the p99 is about 0.9 s. A generator that waits for its
    answer before it sends the next would have seen one slow request in 900.
    """
    stall_from, stall_to = 5000.0, 6000.0
    latencies: list[float | str | None] = []
    for number in range(1000):
        due_ms = number * 10.0
        stalled = stall_from <= due_ms < stall_to
        latencies.append(stall_to - due_ms if stalled else 1.0)
    latency = summary_of(samples_of(latencies)).latency
    assert latency is not None
    assert latency.p50_ms == 1
    assert latency.p90_ms == 1
    assert latency.p95_ms == 500
    assert latency.p99_ms == 900
    assert latency.max_ms == 1000
