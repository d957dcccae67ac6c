"""``GET /metrics``: what the counters mean, under names that boards can be built on.

:func:`render` writes headrace's own names; ``triton_names.py`` adds the ``nv_*`` family, so
that boards and autoscalers made for Triton show something without a change.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import msgspec

from headrace.telemetry.exposition import CONTENT_TYPE, Exposition, labels
from headrace.telemetry.model_metrics import write_series
from headrace.telemetry.snapshot import (
    BATCH_EXECUTE_NS,
    BATCH_ROWS,
    BATCHES,
    COMPLETED,
    INLINE_BATCHES,
    PADDED_TOKENS,
    ROW_BOUNDS,
    ROWS,
    STAGES,
    TIME_BOUNDS_NS,
    TOKENS,
    TOTAL,
    USEFUL_TOKENS,
    ModelCounters,
    Snapshot,
    merge,
)
from headrace.telemetry.triton_names import TritonOptions, write_triton

__all__ = ["CONTENT_TYPE", "RenderOptions", "TritonOptions", "render"]

NS_PER_S = 1_000_000_000

_SECONDS = tuple(str(bound / NS_PER_S) for bound in TIME_BOUNDS_NS)
_ROWS = tuple(str(bound) for bound in ROW_BOUNDS)

_ALWAYS_SHOWN = (
    ("reject", "queue_full"),
    ("reject", "deadline_unreachable"),
    ("reject", "overdue"),
    ("reject", "shed"),
    ("expire", "deadline_exceeded"),
    ("cancel", "cancelled"),
    ("fail", "inference_failed"),
)
"""Present at 0, so that ``rate()`` sees the first one; a series that is born at 1 is missed."""

_Column = tuple[str, str, str, Callable[[ModelCounters], float]]

_PER_MODEL: tuple[_Column, ...] = (
    ("headrace_rows_total", "counter", "Rows in successful requests.", lambda m: m.totals[ROWS]),
    (
        "headrace_tokens_total",
        "counter",
        "Tokens in successful requests, without padding; 0 for models without a length.",
        lambda m: m.totals[TOKENS],
    ),
    ("headrace_batches_total", "counter", "Executions of the model.", lambda m: m.totals[BATCHES]),
    (
        "headrace_inline_batches_total",
        "counter",
        "Executions on the event loop, because the model is cheaper than a thread hop.",
        lambda m: m.totals[INLINE_BATCHES],
    ),
    (
        "headrace_batch_useful_tokens_total",
        "counter",
        "Tokens in executed batches that belong to a request.",
        lambda m: m.totals[USEFUL_TOKENS],
    ),
    (
        "headrace_batch_padded_tokens_total",
        "counter",
        "Tokens in executed batches, padding included; 1 - useful / padded is the waste.",
        lambda m: m.totals[PADDED_TOKENS],
    ),
    ("headrace_requests_waiting", "gauge", "Requests in the queue now.", lambda m: m.waiting),
    ("headrace_requests_running", "gauge", "Requests in a batch now.", lambda m: m.running),
    (
        "headrace_queue_bytes",
        "gauge",
        "Input tensors of the requests in the queue now.",
        lambda m: m.waiting_bytes,
    ),
    (
        "headrace_slo_late_total",
        "counter",
        "Requests answered after the time within which they were wanted (SLO or timeout).",
        lambda m: m.late,
    ),
    (
        "headrace_slo_unattainable_total",
        "counter",
        "Requests wanted sooner than an idle machine could have answered.",
        lambda m: m.hurried,
    ),
    (
        "headrace_batch_slowdown",
        "gauge",
        "How many times longer batches take now than they usually do; the slowest worker's.",
        lambda m: m.slowdown,
    ),
    (
        "headrace_model_loaded",
        "gauge",
        "Worker processes in which this version is ready.",
        lambda m: m.loaded,
    ),
    (
        "headrace_model_load_seconds",
        "gauge",
        "Time from the start of loading until ready, warm-up included; the slowest worker's.",
        lambda m: m.load_seconds,
    ),
)


class RenderOptions(msgspec.Struct, frozen=True):
    """What the page contains. ``triton`` None leaves the ``nv_*`` family out."""

    triton: TritonOptions | None = TritonOptions()


def render(snapshots: Sequence[bytes], options: RenderOptions | None = None) -> bytes:
    """The snapshots of all workers, added up, as a page in the text format 0.0.4.

    Raises:
        msgspec.DecodeError: a snapshot was not made by ``Metrics.snapshot``.
    """
    options = options or RenderOptions()
    snapshot = merge(snapshots)
    page = Exposition()
    _write_requests(page, snapshot)
    _write_models(page, snapshot.models)
    _write_caches(page, snapshot)
    _write_http(page, snapshot)
    _write_process(page, snapshot)
    if options.triton is not None:
        write_triton(page, snapshot, options.triton)
    write_series(page, snapshot.own)
    return page.text()


def _label_set(counters: ModelCounters) -> str:
    return labels(model=counters.model, version=counters.version)


def _write_requests(page: Exposition, snapshot: Snapshot) -> None:
    name = "headrace_requests_total"
    page.family(
        name,
        "counter",
        "Requests that ended, each in exactly one outcome; model is empty where the request"
        " named none that is known.",
    )
    counts = {
        (failure.model, failure.version, failure.outcome, failure.reason): failure.count
        for failure in snapshot.failures
    }
    for model in snapshot.models:
        counts[(model.model, model.version, "complete", "")] = model.totals[COMPLETED]
        for outcome, reason in _ALWAYS_SHOWN:
            counts.setdefault((model.model, model.version, outcome, reason), 0)
    for (model_name, version, outcome, reason), count in sorted(counts.items()):
        label_set = labels(model=model_name, version=version, outcome=outcome, reason=reason)
        page.sample(name, label_set, count)


def _write_caches(page: Exposition, snapshot: Snapshot) -> None:
    counts = {(each.kind, each.model, each.result): each.count for each in snapshot.caches}
    page.family(
        "headrace_shared_cache_requests_total",
        "counter",
        "Looks into the cache that servers share, by what it said.",
    )
    for result in ("hit", "miss", "refused", "error"):
        count = counts.get(("shared", "", result), 0)
        page.sample("headrace_shared_cache_requests_total", labels(result=result), count)
    models = sorted({each.model for each in snapshot.caches if each.kind == "semantic"})
    if not models:
        return
    page.family(
        "headrace_semantic_cache_requests_total",
        "counter",
        "Looks into a semantic cache; verified and false are of hits that were run all the same.",
    )
    for model in models:
        for result in ("hit", "miss", "verified", "false"):
            count = counts.get(("semantic", model, result), 0)
            label = labels(model=model, result=result)
            page.sample("headrace_semantic_cache_requests_total", label, count)


def _write_models(page: Exposition, models: Sequence[ModelCounters]) -> None:
    for name, kind, text, value in _PER_MODEL:
        page.family(name, kind, text)
        for model in models:
            page.sample(name, _label_set(model), value(model))
    name = "headrace_request_duration_seconds"
    page.family(name, "histogram", "From the last byte of a request to its answer on the socket.")
    for model in models:
        total_s = model.sums_ns[TOTAL] / NS_PER_S
        page.histogram(name, _label_set(model), _SECONDS, model.counts[TOTAL], total_s)
    name = "headrace_request_stage_seconds"
    page.family(name, "histogram", f"Where the time went; the stages in order: {_STAGE_LIST}.")
    for model in models:
        for index, stage in enumerate(STAGES):
            label_set = labels(model=model.model, version=model.version, stage=stage)
            total_s = model.sums_ns[index] / NS_PER_S
            page.histogram(name, label_set, _SECONDS, model.counts[index], total_s)
    name = "headrace_batch_rows"
    page.family(name, "histogram", "Rows in one execution.")
    for model in models:
        page.histogram(
            name, _label_set(model), _ROWS, model.batch_rows_counts, model.totals[BATCH_ROWS]
        )
    name = "headrace_batch_execute_seconds"
    page.family(name, "histogram", "Time of one execution of the model.")
    for model in models:
        total_s = model.totals[BATCH_EXECUTE_NS] / NS_PER_S
        page.histogram(name, _label_set(model), _SECONDS, model.batch_execute_counts, total_s)


_STAGE_LIST = ", ".join(STAGES)


def _write_http(page: Exposition, snapshot: Snapshot) -> None:
    http = snapshot.http
    page.single(
        "headrace_http_connections_open", "gauge", "Open connections.", http.connections_open
    )
    page.single(
        "headrace_http_connections_total", "counter", "Connections accepted.", http.connections
    )
    page.single("headrace_http_received_bytes_total", "counter", "Bytes read.", http.received_bytes)
    page.single("headrace_http_sent_bytes_total", "counter", "Bytes written.", http.sent_bytes)
    name = "headrace_http_responses_total"
    page.family(name, "counter", "Answers by class of status.")
    for status_class in range(2, len(http.responses)):
        label_set = labels(status=f"{status_class}xx")
        page.sample(name, label_set, http.responses[status_class])
    name = "headrace_http_rejected_total"
    page.family(name, "counter", "Connections and requests refused, by the limit that was hit.")
    for limit, count in sorted(http.rejected.items()):
        page.sample(name, labels(limit=limit), count)
    _write_buffered(page, snapshot)


def _write_buffered(page: Exposition, snapshot: Snapshot) -> None:
    http = snapshot.http
    page.single(
        "headrace_buffered_bytes",
        "gauge",
        "Bytes of requests and answers that are held, and of TLS connections.",
        http.buffered_bytes,
    )
    page.single(
        "headrace_buffered_limit_bytes",
        "gauge",
        "Bytes that may be held (max_memory_bytes), all workers.",
        http.buffered_limit_bytes,
    )
    name = "headrace_buffered_refused_total"
    page.family(
        name,
        "counter",
        "Refusals for want of room: all was held (total), or half by one client (peer).",
    )
    for reason, count in sorted(http.buffered_refused.items()):
        page.sample(name, labels(reason=reason), count)


def _write_process(page: Exposition, snapshot: Snapshot) -> None:
    process = snapshot.process
    page.single(
        "process_cpu_seconds_total", "counter", "CPU time, all workers.", process.cpu_seconds
    )
    page.single(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory, all workers; pages they share count once for each.",
        process.resident_bytes,
    )
    page.single("process_open_fds", "gauge", "Open file descriptors.", process.open_files)
    page.single("process_max_fds", "gauge", "Limit on file descriptors.", process.max_files)
    page.single(
        "headrace_uptime_seconds", "gauge", "Age of the oldest worker.", process.uptime_seconds
    )
    page.single("headrace_workers", "gauge", "Worker processes that answered.", snapshot.workers)
    name = "headrace_build_info"
    page.family(name, "gauge", "Always 1; the labels say what is running.")
    label_set = labels(version=snapshot.version, python=platform.python_version())
    page.sample(name, label_set, 1)
