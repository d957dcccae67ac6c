"""What is counted, and that counting in several processes adds up to the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.telemetry.instruments import BatchRecord, QueueRecord, RequestRecord
from headrace.telemetry.metrics import MAX_REASONS, MAX_RETIRED, Metrics
from headrace.telemetry.snapshot import (
    BATCH_EXECUTE_NS,
    BATCH_ROWS,
    BATCHES,
    COMPLETED,
    INLINE_BATCHES,
    PADDED_TOKENS,
    ROW_BOUNDS,
    ROWS,
    SERVED_NS,
    STAGES,
    TIME_BOUNDS_NS,
    TOKENS,
    TOTAL,
    USEFUL_TOKENS,
    ModelCounters,
    Snapshot,
    counters_only,
    merge,
)

ARRIVED_NS = 1_000_000_000

durations = st.integers(min_value=0, max_value=100 * 10**9)
stage_times = st.lists(durations, min_size=len(STAGES), max_size=len(STAGES))


def a_record(
    stages: list[int] | None = None, *, model: str = "m", version: str = "1", rows: int = 1
) -> RequestRecord:
    """A request that spent ``stages`` nanoseconds in each of STAGES."""
    stamps = [ARRIVED_NS]
    for duration in stages or [1_000] * len(STAGES):
        stamps.append(stamps[-1] + duration)
    return RequestRecord(model, version, rows, 10 * rows, *stamps)


def complete(metrics: Metrics, *records: RequestRecord) -> None:
    # Of one batch only those that ended at the same time are told together.
    for record in records:
        metrics.requests_completed([record], record.finished_ns)


def counted(*metrics: Metrics) -> Snapshot:
    return merge([each.snapshot() for each in metrics])


def only_model(metrics: Metrics) -> ModelCounters:
    (model,) = counted(metrics).models
    return model


@given(st.lists(stage_times, min_size=1, max_size=8))
def test_every_duration_is_in_the_bucket_of_its_bound_and_in_the_sum(
    requests: list[list[int]],
) -> None:
    metrics = Metrics()
    complete(metrics, *[a_record(stages) for stages in requests])
    model = only_model(metrics)
    for index in range(TOTAL + 1):
        spent = [sum(stages) if index == TOTAL else stages[index] for stages in requests]
        assert model.sums_ns[index] == sum(spent)
        for bucket, bound in enumerate(TIME_BOUNDS_NS):
            assert sum(model.counts[index][: bucket + 1]) == sum(ns <= bound for ns in spent)
        assert sum(model.counts[index]) == len(requests)


def test_rows_tokens_and_time_until_the_model_was_done_add_up_over_a_batch() -> None:
    metrics = Metrics()
    complete(metrics, a_record(rows=2), a_record(rows=3))
    totals = only_model(metrics).totals
    assert (totals[COMPLETED], totals[ROWS], totals[TOKENS]) == (2, 5, 50)
    assert totals[SERVED_NS] == 2 * 5 * 1_000  # five stages lie before ``finished``


def test_a_request_made_inside_the_process_has_no_decode_stage() -> None:
    metrics = Metrics()
    record = a_record()
    record.arrived_ns = record.decoded_ns = 0
    metrics.requests_completed([record], record.finished_ns)
    model = only_model(metrics)
    assert sum(model.counts[STAGES.index("decode")]) == 0
    assert sum(model.counts[STAGES.index("queue")]) == 1
    assert model.totals[SERVED_NS] == record.finished_ns - record.admitted_ns


def test_an_answer_that_was_never_sent_is_complete_without_a_total_time() -> None:
    metrics = Metrics()
    record = a_record()
    record.encoded_ns = record.written_ns = 0
    metrics.requests_completed([record], ARRIVED_NS)
    model = only_model(metrics)
    assert model.totals[COMPLETED] == 1
    assert sum(model.counts[TOTAL]) == 0


def test_an_empty_completion_counts_nothing() -> None:
    metrics = Metrics()
    metrics.requests_completed([], ARRIVED_NS)
    assert counted(metrics).models == []


@given(st.lists(st.integers(min_value=1, max_value=5_000), min_size=1, max_size=20))
def test_batches_are_counted_by_rows(sizes: list[int]) -> None:
    metrics = Metrics()
    for rows in sizes:
        metrics.batch_executed(BatchRecord("m", "1", 2, rows, 10, 20_000, 30, 6, 8, rows % 2 == 0))
    model = only_model(metrics)
    totals = model.totals
    assert totals[BATCHES] == len(sizes)
    assert totals[INLINE_BATCHES] == sum(rows % 2 == 0 for rows in sizes)
    assert totals[BATCH_ROWS] == sum(sizes)
    assert totals[BATCH_EXECUTE_NS] == 20_000 * len(sizes)
    counted = {rows: sizes.count(rows) for rows in sizes}
    assert model.by_rows == {
        rows: [count, 10 * count, 20_000 * count, 30 * count] for rows, count in counted.items()
    }
    assert (totals[USEFUL_TOKENS], totals[PADDED_TOKENS]) == (6 * len(sizes), 8 * len(sizes))
    for bucket, bound in enumerate(ROW_BOUNDS):
        assert sum(model.batch_rows_counts[: bucket + 1]) == sum(rows <= bound for rows in sizes)


def test_gauges_show_the_latest_value() -> None:
    metrics = Metrics()
    metrics.model_loaded("m", "1", 2.5)
    metrics.queue_changed("m", "1", QueueRecord(7, 3))
    metrics.queue_changed("m", "1", QueueRecord(5, 2))
    model = only_model(metrics)
    assert (model.waiting, model.running, model.loaded, model.load_seconds) == (5, 2, 1, 2.5)
    metrics.model_unloaded("m", "1")
    model = only_model(metrics)
    assert (model.waiting, model.running, model.loaded) == (0, 0, 0)


def test_a_name_that_a_caller_made_up_never_becomes_a_label() -> None:
    metrics = Metrics()
    metrics.model_loaded("m", "1", 1.0)
    metrics.request_failed(RequestRecord("../../x", "1"), "fail", "model_not_found", ARRIVED_NS)
    metrics.request_failed(RequestRecord("m", "99"), "fail", "model_not_found", ARRIVED_NS)
    metrics.request_failed(RequestRecord("m", "1"), "reject", "queue_full", ARRIVED_NS)
    metrics.request_failed(RequestRecord("m", "1"), "reject", "queue_full", ARRIVED_NS)
    failures = {
        (f.model, f.version, f.outcome, f.reason): f.count for f in counted(metrics).failures
    }
    assert failures == {
        ("", "", "fail", "model_not_found"): 1,
        ("m", "", "fail", "model_not_found"): 1,
        ("m", "1", "reject", "queue_full"): 2,
    }


def test_reasons_are_bounded_and_none_is_lost() -> None:
    metrics = Metrics()
    for number in range(10 * MAX_REASONS):
        metrics.request_failed(RequestRecord("m", "1"), "fail", f"reason {number}", ARRIVED_NS)
    failures = counted(metrics).failures
    assert len(failures) == MAX_REASONS + 1
    assert sum(failure.count for failure in failures) == 10 * MAX_REASONS


def test_versions_that_are_gone_are_kept_for_a_while_and_bounded() -> None:
    metrics = Metrics()
    for version in map(str, range(100)):
        metrics.model_loaded("m", version, 1.0)
        complete(metrics, a_record(version=version))
        metrics.request_failed(RequestRecord("m", version), "cancel", "cancelled", ARRIVED_NS)
        metrics.model_unloaded("m", version)
    snapshot = counted(metrics)
    assert {model.version for model in snapshot.models} == {
        str(version) for version in range(100 - MAX_RETIRED, 100)
    }
    assert len(snapshot.failures) == MAX_RETIRED


def test_a_version_that_comes_back_goes_on_counting() -> None:
    metrics = Metrics()
    metrics.model_loaded("m", "1", 1.0)
    complete(metrics, a_record())
    metrics.model_unloaded("m", "1")
    metrics.model_loaded("m", "1", 2.0)
    for version in map(str, range(2, 2 + 2 * MAX_RETIRED)):
        metrics.model_loaded("m", version, 1.0)
        metrics.model_unloaded("m", version)
    kept = {model.version: model for model in counted(metrics).models}
    assert kept["1"].totals[COMPLETED] == 1
    assert kept["1"].loaded == 1


def test_a_model_of_which_nothing_is_left_gives_up_its_name() -> None:
    metrics = Metrics()
    metrics.model_loaded("old", "1", 1.0)
    metrics.request_failed(RequestRecord("old", "9"), "fail", "model_not_found", ARRIVED_NS)
    metrics.model_unloaded("old", "1")
    for number in range(MAX_RETIRED):
        metrics.model_loaded(f"new{number}", "1", 1.0)
        metrics.model_unloaded(f"new{number}", "1")
    metrics.request_failed(RequestRecord("old", "1"), "fail", "model_not_found", ARRIVED_NS)
    assert {failure.model for failure in counted(metrics).failures} == {""}


events = st.lists(
    st.tuples(
        st.sampled_from(["complete", "fail", "batch"]),
        st.sampled_from(["a", "b"]),
        stage_times,
        st.booleans(),
    ),
    max_size=20,
)


def tell(metrics: Metrics, what: str, model: str, stages: list[int]) -> None:
    record = a_record(stages, model=model)
    if what == "complete":
        complete(metrics, record)
    elif what == "fail":
        metrics.request_failed(record, "expire", "deadline_exceeded", ARRIVED_NS)
    else:
        metrics.batch_executed(BatchRecord(model, "1", 1, 3, *stages[:3], 5, 6))


@given(events)
def test_two_workers_add_up_to_one(story: list[tuple[str, str, list[int], bool]]) -> None:
    one, left, right = Metrics(), Metrics(), Metrics()
    for metrics in (one, left, right):
        metrics.model_loaded("a", "1", 1.0)
        metrics.model_loaded("b", "1", 1.0)
    for what, model, stages, goes_left in story:
        tell(one, what, model, stages)
        tell(left if goes_left else right, what, model, stages)
    together, alone = counted(left, right), counted(one)
    for model in alone.models:
        model.loaded = 2
    assert together.models == alone.models
    assert together.failures == alone.failures
    assert (together.workers, alone.workers) == (2, 1)


def test_the_slowest_load_and_the_http_counters_of_all_workers() -> None:
    left, right = Metrics(version="1.2"), Metrics(version="1.2")
    left.model_loaded("m", "1", 2.0)
    right.model_loaded("m", "1", 3.0)
    left.http.connections_open = 4
    left.http.responses[2] += 10
    right.http.responses[2] += 1
    left.http.reject("max_body_bytes")
    right.http.reject("max_body_bytes")
    right.http.reject("max_headers")
    total = counted(left, right)
    assert total.version == "1.2"
    assert total.models[0].load_seconds == 3.0
    assert total.http.connections_open == 4
    assert total.http.responses[2] == 11
    assert Counter(total.http.rejected) == {"max_body_bytes": 2, "max_headers": 1}


def test_no_snapshots_give_an_empty_one() -> None:
    assert merge([]).workers == 0


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        merge([b"\x00\x01"])


@pytest.fixture
def ended_worker() -> bytes:
    metrics = Metrics()
    metrics.model_loaded("m", "1", 1.0)
    metrics.queue_changed("m", "1", QueueRecord(5, 5))
    metrics.http.connections_open = 9
    metrics.http.connections = 20
    complete(metrics, a_record())
    return metrics.snapshot()


def test_a_worker_that_ended_leaves_its_counters_and_no_gauges(ended_worker: bytes) -> None:
    left = merge([counters_only([ended_worker, ended_worker])])
    assert left.workers == 0
    assert (left.http.connections, left.http.connections_open) == (40, 0)
    assert left.process.resident_bytes == 0
    (model,) = left.models
    assert model.totals[COMPLETED] == 2
    assert (model.waiting, model.running, model.loaded) == (0, 0, 0)


def test_a_successor_goes_on_where_the_worker_before_it_ended(ended_worker: bytes) -> None:
    successor = Metrics()
    successor.model_loaded("m", "1", 1.0)
    complete(successor, a_record())
    total = merge([successor.snapshot(), counters_only([ended_worker])])
    assert total.workers == 1
    assert total.http.connections_open == 0
    (model,) = total.models
    assert (model.totals[COMPLETED], model.waiting, model.loaded) == (2, 0, 1)
