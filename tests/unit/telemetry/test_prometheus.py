"""The page, read back by the parser of Prometheus' own client library."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry.instruments import BatchRecord, QueueRecord, RequestRecord
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.prometheus import CONTENT_TYPE, RenderOptions, TritonOptions, render
from headrace.telemetry.snapshot import TIME_BOUNDS_NS, Failure
from headrace.telemetry.triton_names import REASONS, quantile, triton_reason

MODEL = {"model": "m", "version": "1"}

FAILURE = "nv_inference_request_failure_total"
"""Without ``_total`` on the page; it is this parser that adds it to every counter."""

EVERYTHING = RenderOptions(triton=TritonOptions(histogram_latencies=True, summary_latencies=True))

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def a_worker(model: str = "m") -> Metrics:
    metrics = Metrics(version="1.2.3")
    metrics.model_loaded(model, "1", 1.5)
    # Stages of 1, 2, 3 ... 7 ms, so 28 ms in all.
    stamps = [10**9 + step * (step + 1) // 2 * 1_000_000 for step in range(8)]
    record = RequestRecord(model, "1", 4, 40, *stamps, executed_ns=stamps[5] - 500_000)
    metrics.requests_completed([record, record], record.finished_ns)
    metrics.batch_executed(
        BatchRecord(model, "1", 2, 8, 4_000_000, 5_000_000, 500_000, 60, 80, inline=True)
    )
    metrics.queue_changed(model, "1", QueueRecord(3, 2, 100, 4, 5, 1.5))
    metrics.http.responses[2] += 2
    metrics.http.reject("max_body_bytes")
    return metrics


def read(page: bytes) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def samples() -> Samples:
    return read(render([a_worker().snapshot()], EVERYTHING))


def test_the_content_type_names_the_format() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_every_family_has_one_help_and_one_type_and_stands_together() -> None:
    lines = render([a_worker().snapshot()], EVERYTHING).decode().splitlines()
    families: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert before.startswith(f"# HELP {name} ")
            families.append(name)
        elif not line.startswith("#"):
            assert line.startswith(families[-1])
    assert len(families) == len(set(families))


def test_the_page_ends_with_a_line_feed() -> None:
    assert render([]).endswith(b"\n")


def test_outcomes_are_there_before_they_happen(samples: Samples) -> None:
    name = "headrace_requests_total"
    assert value(samples, name, **MODEL, outcome="complete", reason="") == 2
    assert value(samples, name, **MODEL, outcome="reject", reason="queue_full") == 0
    assert value(samples, name, **MODEL, outcome="expire", reason="deadline_exceeded") == 0


def test_what_became_of_due_times(samples: Samples) -> None:
    assert value(samples, "headrace_queue_bytes", **MODEL) == 100
    assert value(samples, "headrace_slo_late_total", **MODEL) == 4
    assert value(samples, "headrace_slo_unattainable_total", **MODEL) == 5
    assert value(samples, "headrace_batch_slowdown", **MODEL) == 1.5


def test_stages_add_up_to_the_whole(samples: Samples) -> None:
    stages = [
        number
        for (name, _), number in samples.items()
        if name == "headrace_request_stage_seconds_sum"
    ]
    assert len(stages) == 7
    whole = value(samples, "headrace_request_duration_seconds_sum", **MODEL)
    assert whole == pytest.approx(sum(stages))
    assert whole == pytest.approx(2 * 0.028)


def test_buckets_are_cumulative_and_end_with_all(samples: Samples) -> None:
    name = "headrace_request_duration_seconds"
    buckets = sorted(
        (float(dict(labels)["le"]), number)
        for (sample, labels), number in samples.items()
        if sample == f"{name}_bucket"
    )
    assert len(buckets) == len(TIME_BOUNDS_NS) + 1
    assert [number for _, number in buckets] == sorted(number for _, number in buckets)
    assert dict(buckets)[0.02] == 0
    assert dict(buckets)[0.05] == 2
    assert buckets[-1] == (math.inf, value(samples, f"{name}_count", **MODEL))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("headrace_rows_total", 8),
        ("headrace_tokens_total", 80),
        ("headrace_batches_total", 1),
        ("headrace_inline_batches_total", 1),
        ("headrace_batch_useful_tokens_total", 60),
        ("headrace_batch_padded_tokens_total", 80),
        ("headrace_requests_waiting", 3),
        ("headrace_requests_running", 2),
        ("headrace_model_loaded", 1),
        ("headrace_model_load_seconds", 1.5),
        ("headrace_batch_rows_sum", 8),
        ("headrace_batch_execute_seconds_sum", 0.005),
    ],
)
def test_native_names(samples: Samples, name: str, expected: float) -> None:
    assert value(samples, name, **MODEL) == pytest.approx(expected)


def test_http_and_process(samples: Samples) -> None:
    assert value(samples, "headrace_http_responses_total", status="2xx") == 2
    assert value(samples, "headrace_http_rejected_total", limit="max_body_bytes") == 1
    assert value(samples, "headrace_workers") == 1
    assert value(samples, "process_cpu_seconds_total") > 0
    (build,) = (dict(labels) for name, labels in samples if name == "headrace_build_info")
    assert build["version"] == "1.2.3"


TRITON = {
    "nv_inference_request_success": ("counter", 2),
    "nv_inference_count": ("counter", 8),
    "nv_inference_exec_count": ("counter", 1),
    "nv_inference_request_duration_us": ("counter", 2 * 15_000),
    "nv_inference_queue_duration_us": ("counter", 2 * 3_000),
    "nv_inference_compute_input_duration_us": ("counter", 2 * 4_000),
    "nv_inference_compute_infer_duration_us": ("counter", 2 * 4_500),
    "nv_inference_compute_output_duration_us": ("counter", 2 * 500),
    "nv_inference_compute_duration_us": ("counter", 2 * 9_000),
    "nv_inference_pending_request_count": ("gauge", 3),
    "nv_model_load_duration_secs": ("gauge", 1.5),
}


@pytest.mark.parametrize(("name", "kind", "expected"), [(n, *rest) for n, rest in TRITON.items()])
def test_triton_names_keep_their_type_and_labels(name: str, kind: str, expected: float) -> None:
    page = render([a_worker().snapshot()]).decode()
    assert f"# TYPE {name} {kind}\n" in page
    # Triton's counters have no _total, and its boards ask for the name as it is.
    line = next(line for line in page.splitlines() if line.startswith(name + "{"))
    assert line.startswith(f'{name}{{model="m",version="1"}} ')
    assert float(line.rpartition(" ")[2]) == expected


def test_all_four_failure_reasons_are_there_at_zero(samples: Samples) -> None:
    for reason in REASONS:
        assert value(samples, FAILURE, **MODEL, reason=reason) == 0


@pytest.mark.parametrize(
    ("outcome", "reason", "expected"),
    [
        ("cancel", "cancelled", "CANCELED"),
        ("expire", "deadline_exceeded", "REJECTED"),
        ("reject", "queue_full", "REJECTED"),
        ("reject", "shutting_down", "REJECTED"),
        ("reject", "invalid_request", "OTHER"),
        ("fail", "wrong_shape", "OTHER"),
        ("fail", "inference_failed", "BACKEND"),
        ("fail", "instance_died", "BACKEND"),
    ],
)
def test_reasons_in_tritons_words(outcome: str, reason: str, expected: str) -> None:
    assert triton_reason(Failure("m", "1", outcome, reason)) == expected


def test_a_failure_is_counted_under_its_reason() -> None:
    metrics = a_worker()
    metrics.request_failed(RequestRecord("m", "1"), "expire", "deadline_exceeded", 0)
    metrics.request_failed(RequestRecord("made up", ""), "fail", "model_not_found", 0)
    samples = read(render([metrics.snapshot()]))
    failures = {
        dict(labels)["reason"]: number
        for (name, labels), number in samples.items()
        if name == FAILURE
    }
    assert failures == {"REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    name = "headrace_requests_total"
    unknown = {"model": "", "version": "", "outcome": "fail", "reason": "model_not_found"}
    assert value(samples, name, **unknown) == 1


def test_triton_latencies_only_when_asked_for() -> None:
    page = render([a_worker().snapshot()])
    assert b"histogram_ms" not in page
    assert b"summary_us" not in page
    assert b"nv_" not in render([a_worker().snapshot()], RenderOptions(triton=None))


def test_first_response_in_tritons_buckets(samples: Samples) -> None:
    name = "nv_inference_first_response_histogram_ms"
    bounds = [float(dict(labels)["le"]) for sample, labels in samples if sample == f"{name}_bucket"]
    assert bounds == [100, 500, 2000, 5000, math.inf]
    assert value(samples, f"{name}_bucket", **MODEL, le="100") == 2
    assert value(samples, f"{name}_sum", **MODEL) == pytest.approx(2 * 28)


@pytest.mark.parametrize(
    "what", ["request", "queue", "compute_input", "compute_infer", "compute_output"]
)
def test_summaries_have_five_rising_quantiles(samples: Samples, what: str) -> None:
    name = f"nv_inference_{what}_summary_us"
    quantiles = [
        value(samples, name, **MODEL, quantile=str(share))
        for share in (0.5, 0.9, 0.95, 0.99, 0.999)
    ]
    assert quantiles == sorted(quantiles)
    assert value(samples, f"{name}_count", **MODEL) == 2


@given(
    st.lists(st.integers(min_value=0, max_value=50 * 10**9), min_size=1),
    st.floats(min_value=0.01, max_value=1.0),
)
def test_a_quantile_is_estimated_within_the_bucket_of_the_true_one(
    spent_ns: list[int], share: float
) -> None:
    edges = (0, *TIME_BOUNDS_NS)
    counts = [0] * (len(TIME_BOUNDS_NS) + 1)
    for ns in spent_ns:
        counts[next(i for i, bound in enumerate(TIME_BOUNDS_NS) if ns <= bound)] += 1
    rank = math.ceil(share * len(spent_ns))
    true_ns = sorted(spent_ns)[rank - 1]
    bucket = next(i for i, bound in enumerate(TIME_BOUNDS_NS) if true_ns <= bound)
    assert edges[bucket] <= quantile(counts, share) <= edges[bucket + 1]


def test_a_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(quantile([0] * (len(TIME_BOUNDS_NS) + 1), 0.5))


def test_a_quantile_above_the_last_bound_is_the_last_bound() -> None:
    counts = [0] * len(TIME_BOUNDS_NS) + [3]
    assert quantile(counts, 0.5) == TIME_BOUNDS_NS[-1]


@given(st.text(min_size=1, max_size=20))
def test_any_name_comes_back_from_the_parser(name: str) -> None:
    samples = read(render([a_worker(name).snapshot()]))
    assert samples["headrace_rows_total", frozenset({"model": name, "version": "1"}.items())] == 8


def test_two_workers_on_one_page() -> None:
    samples = read(render([a_worker().snapshot(), a_worker().snapshot()]))
    assert value(samples, "headrace_rows_total", **MODEL) == 16
    assert value(samples, "headrace_workers") == 2
    assert value(samples, "nv_model_load_duration_secs", **MODEL) == 1.5
