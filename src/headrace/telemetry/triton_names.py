"""The ``nv_*`` names, types and labels of Triton, filled from headrace's own counters.

Names, types and meanings as in Triton's ``metrics.cc`` and its metrics page. The GPU families
are there where there is a GPU. A pool of pinned memory we have not; its gauges are 0.

Triton's compute time of a request is the time of the batch it was in, so a batch of four
that took 1 ms adds 4 ms; boards divide by requests, not by executions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from headrace.telemetry.exposition import Exposition, labels
from headrace.telemetry.snapshot import (
    BATCHES,
    CACHE_HIT_NS,
    CACHE_HIT_ROWS,
    CACHE_HITS,
    CACHE_MISS_NS,
    CACHE_MISSES,
    COMPLETED,
    ROWS,
    SERVED_NS,
    SPLIT_NS,
    STAGES,
    TIME_BOUNDS_NS,
    TOTAL,
    Failure,
    GpuReading,
    ModelCounters,
    Snapshot,
)
from headrace.telemetry.statistics import compute_infer_ns

NS_PER_US = 1_000
NS_PER_MS = 1_000_000

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Every reason Triton knows; all four are always present."""

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)

FIRST_RESPONSE_BOUNDS_MS = (100, 500, 2000, 5000)

_REJECTED = frozenset(
    {
        "capacity",
        "deadline_unreachable",
        "overdue",
        "overloaded",
        "queue_full",
        "model_not_ready",
        "model_removed",
        "shed",
        "shutting_down",
        "slo_unattainable",
        "unknown_model",
    }
)
_BACKEND = frozenset(
    {
        "model_error",
        "inference_failed",
        "instance_died",
        "wrong_output_count",
        "wrong_output_rows",
    }
)

_QUEUE, _COLLATE, _EXECUTE = (STAGES.index(name) for name in ("queue", "collate", "execute"))


class TritonOptions(msgspec.Struct, frozen=True):
    """``--metrics-config histogram_latencies=`` and ``summary_latencies=``; Triton has both off.

    ``histogram_latencies`` also shows the histograms proposed upstream (core#474). ``tags``:
    further labels of a model and version, from its configuration's ``metric_tags``.
    """

    histogram_latencies: bool = False
    summary_latencies: bool = False
    tags: Mapping[tuple[str, str], Mapping[str, str]] = {}


def _compute_us(model: ModelCounters) -> int:
    return (model.sums_ns[_COLLATE] + model.sums_ns[_EXECUTE]) // NS_PER_US


_Column = tuple[str, str, str, Callable[[ModelCounters], float]]

_PER_MODEL: tuple[_Column, ...] = (
    (
        "nv_inference_count",
        "counter",
        "Rows inferred, without those answered from the response cache.",
        lambda m: m.totals[ROWS] - m.totals[CACHE_HIT_ROWS],
    ),
    (
        "nv_inference_exec_count",
        "counter",
        "Executions of the model; rows / executions is the mean batch.",
        lambda m: m.totals[BATCHES],
    ),
    (
        "nv_inference_request_duration_us",
        "counter",
        "Time from arrival to result, summed over successful requests, in microseconds.",
        lambda m: m.totals[SERVED_NS] // NS_PER_US,
    ),
    (
        "nv_inference_queue_duration_us",
        "counter",
        "Time in the queue, summed over successful requests, in microseconds.",
        lambda m: m.sums_ns[_QUEUE] // NS_PER_US,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "counter",
        "Time to put inputs together, summed over successful requests, in microseconds.",
        lambda m: m.sums_ns[_COLLATE] // NS_PER_US,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Time in the model, summed over successful requests, in microseconds.",
        lambda m: compute_infer_ns(m) // NS_PER_US,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "counter",
        "Time to take outputs apart, summed over requests, in microseconds.",
        lambda m: m.totals[SPLIT_NS] // NS_PER_US,
    ),
    (
        "nv_inference_compute_duration_us",
        "counter",
        "The three compute durations together: an old name, kept for old boards.",
        _compute_us,
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Requests in the queue now.",
        lambda m: m.waiting,
    ),
    (
        "nv_model_load_duration_secs",
        "gauge",
        "Time from the start of loading until ready, in seconds.",
        lambda m: m.load_seconds,
    ),
    (
        "nv_cache_num_hits_per_model",
        "counter",
        "Requests answered from the response cache.",
        lambda m: m.totals[CACHE_HITS],
    ),
    (
        "nv_cache_num_misses_per_model",
        "counter",
        "Requests that the response cache could not answer.",
        lambda m: m.totals[CACHE_MISSES],
    ),
    (
        "nv_cache_hit_duration_per_model",
        "counter",
        "Time of look-ups that found an answer, in microseconds.",
        lambda m: m.totals[CACHE_HIT_NS] // NS_PER_US,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "counter",
        "Time of look-ups that found none, and of keeping the answers, in microseconds.",
        lambda m: m.totals[CACHE_MISS_NS] // NS_PER_US,
    ),
)


def _latencies(model: ModelCounters) -> dict[str, tuple[list[int], int]]:
    """Counts per bucket and the sum in nanoseconds, by Triton's word for the duration."""
    counts, sums_ns = model.counts, model.sums_ns
    return {
        "request": (counts[TOTAL], sums_ns[TOTAL]),
        "queue": (counts[_QUEUE], sums_ns[_QUEUE]),
        "compute_input": (counts[_COLLATE], sums_ns[_COLLATE]),
        "compute_infer": (counts[_EXECUTE], compute_infer_ns(model)),
        "compute_output": (model.split_counts, model.totals[SPLIT_NS]),
    }


_LATENCY_NAMES = ("request", "queue", "compute_input", "compute_infer", "compute_output")


def write_triton(page: Exposition, snapshot: Snapshot, options: TritonOptions) -> None:
    """Appends the family to ``page``."""
    _write_outcomes(page, snapshot, options)
    for name, kind, text, value in _PER_MODEL:
        page.family(name, kind, text)
        for model in snapshot.models:
            page.sample(name, _label_set(model, options), value(model))
    if options.histogram_latencies:
        _write_histograms(page, snapshot.models, options)
    if options.summary_latencies:
        _write_summaries(page, snapshot.models, options)
    for what in ("total", "used"):
        name = f"nv_pinned_memory_pool_{what}_bytes"
        page.single(name, "gauge", f"Pinned memory pool, {what}: there is none here.", 0)
    _write_gpus(page, snapshot)
    machine = snapshot.machine
    page.single(
        "nv_cpu_utilization",
        "gauge",
        "Busy share of all processors of the machine, 0-1.",
        machine.utilization,
    )
    page.single(
        "nv_cpu_memory_total_bytes",
        "gauge",
        "Memory of the machine.",
        machine.memory_total_bytes,
    )
    page.single(
        "nv_cpu_memory_used_bytes",
        "gauge",
        "Memory of the machine that is not available.",
        machine.memory_used_bytes,
    )


def triton_reason(failure: Failure) -> str:
    """Which of :data:`REASONS` this is; running out of time in the queue is a rejection there."""
    if failure.outcome == "cancel":
        return "CANCELED"
    if failure.outcome == "expire" or failure.reason in _REJECTED:
        return "REJECTED"
    return "BACKEND" if failure.reason in _BACKEND else "OTHER"


def quantile(counts: Sequence[int], share: float) -> float:
    """Nanoseconds that ``share`` of all observations do not exceed, estimated from buckets.

    Linear inside the bucket, as Prometheus' ``histogram_quantile``; the last bound where it
    lies above; NaN without observations.
    """
    total = sum(counts)
    if not total:
        return float("nan")
    rank = share * total
    below, lower = 0, 0
    for bound, count in zip(TIME_BOUNDS_NS, counts, strict=False):
        if count and below + count >= rank:
            return float(lower + (bound - lower) * (rank - below) / count)
        below += count
        lower = bound
    return float(TIME_BOUNDS_NS[-1])


def _label_set(model: ModelCounters, options: TritonOptions, **more: str) -> str:
    return _labels(model.model, model.version, options, more)


def _labels(model: str, version: str, options: TritonOptions, more: Mapping[str, str]) -> str:
    tags = options.tags.get((model, version), {})
    own = {"model": model, "version": version, **more}
    return labels(**{name: value for name, value in tags.items() if name not in own}, **own)


def _write_outcomes(page: Exposition, snapshot: Snapshot, options: TritonOptions) -> None:
    name = "nv_inference_request_success"
    page.family(name, "counter", "Requests answered.")
    for model in snapshot.models:
        page.sample(name, _label_set(model, options), model.totals[COMPLETED])
    failed: dict[tuple[str, str], dict[str, int]] = {
        (model.model, model.version): dict.fromkeys(REASONS, 0) for model in snapshot.models
    }
    for failure in snapshot.failures:
        # Triton knows no failures without a model; headrace_requests_total has them all.
        by_reason = failed.get((failure.model, failure.version))
        if by_reason is not None:
            by_reason[triton_reason(failure)] += failure.count
    name = "nv_inference_request_failure"
    page.family(name, "counter", "Requests that ended without an answer, by Triton's four reasons.")
    for (model_name, version), by_reason in failed.items():
        for reason, count in by_reason.items():
            label_set = _labels(model_name, version, options, {"reason": reason})
            page.sample(name, label_set, count)


def _write_gpus(page: Exposition, snapshot: Snapshot) -> None:
    if not snapshot.gpus:
        return
    for name, kind, text, value in _PER_GPU:
        page.family(name, kind, text)
        for gpu in snapshot.gpus:
            page.sample(name, labels(gpu_uuid=gpu.uuid), value(gpu))


_PER_GPU: tuple[tuple[str, str, str, Callable[[GpuReading], float]], ...] = (
    ("nv_gpu_utilization", "gauge", "Busy share of the GPU, 0-1.", lambda g: g.utilization),
    ("nv_gpu_memory_total_bytes", "gauge", "Memory of the GPU.", lambda g: g.memory_total_bytes),
    ("nv_gpu_memory_used_bytes", "gauge", "Memory in use.", lambda g: g.memory_used_bytes),
    ("nv_gpu_power_usage", "gauge", "Power drawn now, in watts.", lambda g: g.power_watts),
    ("nv_gpu_power_limit", "gauge", "Power limit, in watts.", lambda g: g.power_limit_watts),
    (
        "nv_energy_consumption",
        "counter",
        "Energy used since the driver was loaded, in joules.",
        lambda g: g.energy_joules,
    ),
)


def _write_histograms(
    page: Exposition, models: Sequence[ModelCounters], options: TritonOptions
) -> None:
    name = "nv_inference_first_response_histogram_ms"
    page.family(name, "histogram", "Arrival to first answer, in milliseconds.")
    edges = [TIME_BOUNDS_NS.index(ms * NS_PER_MS) + 1 for ms in FIRST_RESPONSE_BOUNDS_MS]
    bounds = [str(ms) for ms in FIRST_RESPONSE_BOUNDS_MS]
    for model in models:
        fine, total_ns = model.counts[TOTAL], model.sums_ns[TOTAL]
        if model.responses:  # the first of several answers, not the last
            fine, total_ns = model.first_counts, model.first_ns
        starts, ends = [0, *edges], [*edges, len(fine)]
        coarse = [sum(fine[a:b]) for a, b in zip(starts, ends, strict=True)]
        page.histogram(name, _label_set(model, options), bounds, coarse, total_ns / NS_PER_MS)
    bounds = [str(bound // NS_PER_US) for bound in TIME_BOUNDS_NS]
    for what in _LATENCY_NAMES:
        name = f"nv_inference_{what}_duration_histogram_us"
        page.family(name, "histogram", f"Time of {what} of one request, in microseconds.")
        for model in models:
            counts, sum_ns = _latencies(model)[what]
            page.histogram(name, _label_set(model, options), bounds, counts, sum_ns / NS_PER_US)


def _write_summaries(
    page: Exposition, models: Sequence[ModelCounters], options: TritonOptions
) -> None:
    def write(name: str, text: str, of: Callable[[ModelCounters], tuple[list[int], int]]) -> None:
        page.family(name, "summary", f"{text}, in microseconds, since the start; from buckets.")
        for model in models:
            counts, sum_ns = of(model)
            for share in QUANTILES:
                label_set = _label_set(model, options, quantile=str(share))
                page.sample(name, label_set, quantile(counts, share) / NS_PER_US)
            page.sample(f"{name}_sum", _label_set(model, options), sum_ns / NS_PER_US)
            page.sample(f"{name}_count", _label_set(model, options), sum(counts))

    for what in _LATENCY_NAMES:
        write(
            f"nv_inference_{what}_summary_us",
            f"Time of {what} of one request",
            lambda model, what=what: _latencies(model)[what],  # type: ignore[misc]
        )
    write(
        "nv_cache_hit_summary_per_model",
        "Time of a look-up that found an answer",
        lambda model: (model.cache_hit_counts, model.totals[CACHE_HIT_NS]),
    )
    write(
        "nv_cache_miss_summary_per_model",
        "Time of a look-up that found none",
        lambda model: (model.cache_miss_counts, model.totals[CACHE_MISS_NS]),
    )
