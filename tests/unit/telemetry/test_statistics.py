"""The statistics extension: integers that add up to what happened."""

from __future__ import annotations

import time

import pytest

from headrace.clock import MonotonicClock
from headrace.telemetry.instruments import BatchRecord, RequestRecord
from headrace.telemetry.metrics import MAX_BATCH_SIZES, MAX_RESPONSES, Metrics
from headrace.telemetry.snapshot import ModelCounters, merge
from headrace.telemetry.statistics import model_statistics

START_NS = 10**9


def a_record(rows: int = 1) -> RequestRecord:
    """10 ns to decode, 20 to prepare, 30 queued, 40 collated, 50 run, 5 split, 7 encoded, 8."""
    stamps = [START_NS + each for each in (0, 10, 30, 60, 100, 155, 162, 170)]
    return RequestRecord("m", "1", rows, 0, *stamps, executed_ns=START_NS + 150)


def counters(*workers: Metrics) -> ModelCounters:
    (only,) = merge([worker.snapshot() for worker in workers]).models
    return only


def ran(metrics: Metrics, *rows: int) -> None:
    """One batch of requests with so many rows."""
    metrics.batch_executed(BatchRecord("m", "1", len(rows), sum(rows), 40, 50, 5))
    metrics.requests_completed([a_record(each) for each in rows], START_NS + 155)


def duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def test_every_duration_is_counted_once_for_each_request() -> None:
    metrics = Metrics()
    ran(metrics, 1, 3)
    ran(metrics, 2)
    body = model_statistics(counters(metrics))
    assert (body["name"], body["version"]) == ("m", "1")
    assert (body["inference_count"], body["execution_count"]) == (6, 2)
    assert body["inference_stats"] == {
        "success": duration(3, 3 * 155),
        "fail": duration(0, 0),
        "queue": duration(3, 3 * 30),
        "compute_input": duration(3, 3 * 40),
        "compute_infer": duration(3, 3 * 50),
        "compute_output": duration(3, 3 * 5),
        "cache_hit": duration(0, 0),
        "cache_miss": duration(0, 0),
    }
    assert body["memory_usage"] == []


def test_batches_are_told_apart_by_their_size() -> None:
    metrics = Metrics()
    for rows in ((1, 3), (4,), (2,)):
        ran(metrics, *rows)
    assert model_statistics(counters(metrics))["batch_stats"] == [
        {
            "batch_size": size,
            "compute_input": duration(count, 40 * count),
            "compute_infer": duration(count, 50 * count),
            "compute_output": duration(count, 5 * count),
        }
        for size, count in ((2, 1), (4, 2))
    ]


def test_batch_sizes_are_bounded_and_none_is_lost() -> None:
    metrics = Metrics()
    for rows in range(1, 2 * MAX_BATCH_SIZES):
        ran(metrics, rows)
    stats = model_statistics(counters(metrics))["batch_stats"]
    assert len(stats) == MAX_BATCH_SIZES
    assert sum(each["compute_infer"]["count"] for each in stats) == 2 * MAX_BATCH_SIZES - 1


def test_a_request_that_failed_has_a_duration_too() -> None:
    metrics = Metrics()
    metrics.model_loaded("m", "1", 1.0)
    metrics.request_failed(a_record(), "expire", "deadline_exceeded", START_NS + 500)
    never_arrived = RequestRecord("m", "1")
    metrics.request_failed(never_arrived, "reject", "queue_full", START_NS + 500)
    stats = model_statistics(counters(metrics))["inference_stats"]
    assert stats["fail"] == duration(2, 500)
    assert stats["success"] == duration(0, 0)


def test_what_the_cache_answered_is_a_success_and_no_inference() -> None:
    metrics = Metrics()
    metrics.cache_looked_up("m", "1", hit=False, ns=9, rows=2)
    ran(metrics, 2)
    metrics.cache_looked_up("m", "1", hit=True, ns=4, rows=2)
    answered = a_record(2)
    answered.batched_ns = answered.started_ns = answered.admitted_ns
    answered.executed_ns = answered.finished_ns = answered.admitted_ns
    metrics.requests_completed([answered], START_NS + 155)
    body = model_statistics(counters(metrics))
    stats = body["inference_stats"]
    assert body["inference_count"] == 2
    assert stats["success"]["count"] == stats["queue"]["count"] == 2
    assert stats["compute_infer"] == duration(1, 50)
    assert (stats["cache_hit"], stats["cache_miss"]) == (duration(1, 4), duration(1, 9))


def test_answers_of_one_request_are_counted_by_their_place() -> None:
    metrics = Metrics()
    record = a_record()
    for index, kind in enumerate(("success", "success", "empty")):
        since = START_NS + 60 + 10 * index
        metrics.response_sent(record, index, kind, since, since + 10)
    stats = model_statistics(counters(metrics))["response_stats"]
    assert list(stats) == ["0", "1", "2"]
    assert stats["0"]["success"] == stats["0"]["compute_infer"] == duration(1, 10)
    assert stats["2"]["empty_response"] == duration(1, 10)
    assert stats["2"]["success"] == stats["1"]["fail"] == duration(0, 0)


def test_places_of_answers_are_bounded() -> None:
    metrics = Metrics()
    for index in range(2 * MAX_RESPONSES):
        metrics.response_sent(a_record(), index, "success", 0, 1)
    stats = model_statistics(counters(metrics))["response_stats"]
    assert len(stats) == MAX_RESPONSES
    assert stats[str(MAX_RESPONSES - 1)]["success"]["count"] == MAX_RESPONSES + 1


def test_workers_add_up() -> None:
    one, other, both = Metrics(), Metrics(), Metrics()
    for metrics in (one, both):
        ran(metrics, 1, 3)
        metrics.response_sent(a_record(), 0, "success", 0, 1)
    for metrics in (other, both):
        ran(metrics, 4)
        metrics.cache_looked_up("m", "1", hit=True, ns=4)
        metrics.request_failed(a_record(), "cancel", "cancelled", START_NS + 9)
    together = model_statistics(counters(one, other))
    alone = model_statistics(counters(both))
    assert together.pop("last_inference") == pytest.approx(alone.pop("last_inference"), abs=1000)
    assert together == alone


def test_the_last_inference_is_told_by_the_wall_clock() -> None:
    metrics = Metrics()
    now_ns = MonotonicClock.now_ns()
    metrics.requests_completed([a_record()], now_ns)
    told_ms = model_statistics(counters(metrics))["last_inference"]
    assert abs(told_ms - time.time_ns() // 1_000_000) < 60_000


def test_a_model_without_a_request_has_no_last_inference() -> None:
    assert model_statistics(ModelCounters("m", "1"))["last_inference"] == 0
