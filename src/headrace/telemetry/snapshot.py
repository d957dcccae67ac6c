"""What one worker process has counted, as plain numbers that can be sent, added and shown.

The structs here are both the live counters (``metrics.py`` writes into them) and the wire
form of a snapshot, so a snapshot is one ``msgspec`` encode and no copying code can forget a
field. Times are integer nanoseconds until they are shown.

How snapshots of several workers become one: counters and gauges add up; ``load_seconds``
and the readings of the machine, of which there is only one, take the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add

import msgspec

from headrace.telemetry.model_metrics import ModelSeries, added

TIME_BOUNDS_NS = tuple(m * 10**e for e in range(4, 11) for m in (1, 2, 5))
"""Upper bounds of every time histogram: 1-2-5 steps from 10 µs to 50 s.

A tiny model answers in tens of microseconds and a client gives up after tens of seconds; the
steps contain 100 ms, 500 ms, 2 s and 5 s, which is what Triton's own histogram asks for."""

ROW_BOUNDS = tuple(1 << k for k in range(11))
"""Upper bounds of the batch size histogram, in rows: 1, 2, 4 ... 1024."""

STAGES = ("decode", "prepare", "queue", "collate", "execute", "encode", "write")
"""The life of a request, cut at the stamps of ``RequestRecord``, in order.

decode   arrived  -> decoded    bytes to tensors
prepare  decoded  -> admitted   checks, tokenising, reading images
queue    admitted -> batched    waiting for an instance
collate  batched  -> started    rows put together, and the hop to the instance
execute  started  -> finished   the model
encode   finished -> encoded    what the task does with the result, tensors to bytes
write    encoded  -> written    until the socket took it
"""

TOTAL = len(STAGES)
"""Index of the whole request (arrived -> written), kept beside the stages."""


TOTALS = (
    "completed",
    "rows",
    "tokens",
    "served_ns",
    "batches",
    "inline_batches",
    "batch_rows",
    "batch_execute_ns",
    "split_ns",
    "useful_tokens",
    "padded_tokens",
    "failed",
    "failed_ns",
    "cache_hits",
    "cache_hit_ns",
    "cache_hit_rows",
    "cache_misses",
    "cache_miss_ns",
)
"""Plain sums, kept in one list in this order because an item of a list is incremented in half
the time of an attribute.

completed, rows, tokens: requests that succeeded, and what was in them.
served_ns: from arrival to the end of the model's work, known even for an answer never sent.
batches, inline_batches, batch_rows, batch_execute_ns: executions, and what was in them.
split_ns: the end of ``execute`` that went into taking the batch apart; of requests, as that is.
useful_tokens, padded_tokens: in executed batches.
failed, failed_ns: requests that ended in any other way than complete, from arrival to end.
cache_*: look-ups in the response cache; ``cache_hit_rows`` are among ``rows``.
"""

(
    COMPLETED,
    ROWS,
    TOKENS,
    SERVED_NS,
    BATCHES,
    INLINE_BATCHES,
    BATCH_ROWS,
    BATCH_EXECUTE_NS,
    SPLIT_NS,
    USEFUL_TOKENS,
    PADDED_TOKENS,
    FAILED,
    FAILED_NS,
    CACHE_HITS,
    CACHE_HIT_NS,
    CACHE_HIT_ROWS,
    CACHE_MISSES,
    CACHE_MISS_NS,
) = range(len(TOTALS))


RESPONSE_KINDS = ("success", "empty", "fail", "cancel")
"""How one of several answers can turn out; ``empty`` tells the end and nothing else."""


def _zeros(count: int) -> list[int]:
    return [0] * count


def _time_buckets() -> list[int]:
    return _zeros(len(TIME_BOUNDS_NS) + 1)


class ModelCounters(msgspec.Struct, array_like=True):
    """Everything counted for one version of one model.

    ``counts[s][b]`` requests spent at most ``TIME_BOUNDS_NS[b]`` (and more than the bound
    before it) in ``STAGES[s]``, ``sums_ns[s]`` all of them together; the last of each is
    :data:`TOTAL`. ``totals`` is described at :data:`TOTALS`. ``load_seconds`` is 0 before the
    first load; ``loaded`` is 1 while the version is ready in this process. ``last_ended_ns``
    is of the machine's monotonic clock, which all its processes share.

    ``by_rows[n]``: executions of n rows, and their nanoseconds of collate, execute and split.
    ``responses[i]``: of the i-th answers of requests that may have several; in turn the
    count and nanoseconds of each of :data:`RESPONSE_KINDS`. ``first_*``: until the first of
    those, where there are such requests at all.
    """

    model: str
    version: str
    totals: list[int] = msgspec.field(default_factory=lambda: _zeros(len(TOTALS)))
    counts: list[list[int]] = msgspec.field(
        default_factory=lambda: [_time_buckets() for _ in range(TOTAL + 1)]
    )
    sums_ns: list[int] = msgspec.field(default_factory=lambda: _zeros(TOTAL + 1))
    batch_rows_counts: list[int] = msgspec.field(
        default_factory=lambda: _zeros(len(ROW_BOUNDS) + 1)
    )
    batch_execute_counts: list[int] = msgspec.field(default_factory=_time_buckets)
    split_counts: list[int] = msgspec.field(default_factory=_time_buckets)
    waiting: int = 0
    running: int = 0
    load_seconds: float = 0.0
    loaded: int = 0
    last_ended_ns: int = 0
    by_rows: dict[int, list[int]] = msgspec.field(default_factory=dict)
    responses: dict[int, list[int]] = msgspec.field(default_factory=dict)
    first_counts: list[int] = msgspec.field(default_factory=_time_buckets)
    first_ns: int = 0
    cache_hit_counts: list[int] = msgspec.field(default_factory=_time_buckets)
    cache_miss_counts: list[int] = msgspec.field(default_factory=_time_buckets)
    waiting_bytes: int = 0
    late: int = 0
    hurried: int = 0
    slowdown: float = 0.0


class CacheCount(msgspec.Struct, array_like=True):
    """How often a cache beside the exact one of this process was asked, and what it said.

    ``kind`` is "shared" (``model`` "" then) or "semantic".
    """

    kind: str
    model: str
    result: str
    count: int


class Failure(msgspec.Struct, array_like=True):
    """How many requests ended without an answer, and why.

    ``model`` is "" where the request named none that this server knows: what a caller makes
    up never becomes a label.
    """

    model: str
    version: str
    outcome: str
    reason: str
    count: int = 0


class HttpCounters(msgspec.Struct):
    """What the HTTP front-end counts; it increments the fields itself.

    ``responses[c]`` counts answers with status ``c``xx. ``rejected`` is keyed by the name of
    the limit in ``config.HttpLimits`` that was hit. ``buffered_*`` show the account of bytes
    (``frontends/byte_account.py``); ``buffered_refused`` is keyed by ``total`` and ``peer``.
    """

    connections: int = 0
    connections_open: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    responses: list[int] = msgspec.field(default_factory=lambda: _zeros(6))
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    buffered_bytes: int = 0
    buffered_limit_bytes: int = 0
    buffered_refused: dict[str, int] = msgspec.field(default_factory=dict)

    def reject(self, limit: str) -> None:
        """One connection or request was refused because of ``limit``."""
        self.rejected[limit] = self.rejected.get(limit, 0) + 1


class ProcessReading(msgspec.Struct, array_like=True):
    """What one process has used. 0 where the platform does not tell."""

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    open_files: int = 0
    max_files: int = 0
    uptime_seconds: float = 0.0


class MachineReading(msgspec.Struct, array_like=True):
    """The whole machine, as Triton's ``nv_cpu_*`` family shows it; ``utilization`` is 0-1."""

    utilization: float = 0.0
    memory_total_bytes: int = 0
    memory_used_bytes: int = 0


class GpuReading(msgspec.Struct, array_like=True):
    """One GPU of the machine; ``utilization`` is 0-1."""

    uuid: str
    utilization: float = 0.0
    memory_total_bytes: int = 0
    memory_used_bytes: int = 0
    power_watts: float = 0.0
    power_limit_watts: float = 0.0
    energy_joules: float = 0.0


class Snapshot(msgspec.Struct):
    """The state of one worker, or of several added up (then ``workers`` says how many)."""

    version: str = ""
    workers: int = 1
    models: list[ModelCounters] = msgspec.field(default_factory=list)
    failures: list[Failure] = msgspec.field(default_factory=list)
    http: HttpCounters = msgspec.field(default_factory=HttpCounters)
    process: ProcessReading = msgspec.field(default_factory=ProcessReading)
    machine: MachineReading = msgspec.field(default_factory=MachineReading)
    gpus: list[GpuReading] = msgspec.field(default_factory=list)
    own: list[ModelSeries] = msgspec.field(default_factory=list)
    caches: list[CacheCount] = msgspec.field(default_factory=list)


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode


def merge(snapshots: Sequence[bytes]) -> Snapshot:
    """Adds the snapshots of several workers up; no snapshots give an empty one.

    Raises:
        msgspec.DecodeError: one of them was not made by ``Metrics.snapshot``.
    """
    total = Snapshot(workers=0)
    models: dict[tuple[str, str], ModelCounters] = {}
    failures: dict[tuple[str, str, str, str], Failure] = {}
    own: list[ModelSeries] = []
    caches: dict[tuple[str, str, str], CacheCount] = {}
    for snapshot in map(_decode, snapshots):
        total.version = total.version or snapshot.version
        total.workers += snapshot.workers
        for counters in snapshot.models:
            known = models.setdefault((counters.model, counters.version), counters)
            if known is not counters:
                _add_model(known, counters)
        for failure in snapshot.failures:
            key = (failure.model, failure.version, failure.outcome, failure.reason)
            seen = failures.setdefault(key, failure)
            if seen is not failure:
                seen.count += failure.count
        _add_http(total.http, snapshot.http)
        _add_process(total.process, snapshot.process)
        _take_largest(total.machine, snapshot.machine)
        total.gpus = total.gpus or snapshot.gpus
        own += snapshot.own
        for cache in snapshot.caches:
            asked = caches.setdefault((cache.kind, cache.model, cache.result), cache)
            if asked is not cache:
                asked.count += cache.count
    total.own = added(own)
    total.caches = [caches[key] for key in sorted(caches)]
    total.models = [models[key] for key in sorted(models)]
    total.failures = [failures[key] for key in sorted(failures)]
    return total


def counters_only(snapshots: Sequence[bytes]) -> bytes:
    """The counters of workers that have ended, as one snapshot whose gauges are all zero.

    Whoever adds workers up must keep this for those that are gone: without it a worker's end
    would take the sums backwards, and Prometheus reads that as a restart and counts twice.
    """
    total = merge(snapshots)
    total.workers = 0
    http = total.http
    http.connections_open = http.buffered_bytes = http.buffered_limit_bytes = 0
    total.process = ProcessReading(cpu_seconds=total.process.cpu_seconds)
    total.machine = MachineReading()
    total.gpus = []
    total.own = [each for each in total.own if each.kind != "gauge"]
    for counters in total.models:
        counters.waiting = counters.running = counters.loaded = counters.waiting_bytes = 0
        counters.slowdown = 0.0
    return encode(total)


def _add_lists(into: list[int], other: list[int]) -> None:
    into[:] = map(add, into, other)


def _add_model(into: ModelCounters, other: ModelCounters) -> None:
    for counts, more in zip(into.counts, other.counts, strict=True):
        _add_lists(counts, more)
    for name in _MODEL_LISTS:
        _add_lists(getattr(into, name), getattr(other, name))
    into.waiting += other.waiting
    into.running += other.running
    into.waiting_bytes += other.waiting_bytes
    into.late += other.late
    into.hurried += other.hurried
    into.slowdown = max(into.slowdown, other.slowdown)
    into.loaded += other.loaded
    into.load_seconds = max(into.load_seconds, other.load_seconds)
    into.last_ended_ns = max(into.last_ended_ns, other.last_ended_ns)
    into.first_ns += other.first_ns
    for mine, theirs in ((into.by_rows, other.by_rows), (into.responses, other.responses)):
        for key, sums in theirs.items():
            _add_lists(mine.setdefault(key, _zeros(len(sums))), sums)


_MODEL_LISTS = (
    "totals",
    "sums_ns",
    "batch_rows_counts",
    "batch_execute_counts",
    "split_counts",
    "first_counts",
    "cache_hit_counts",
    "cache_miss_counts",
)


def _add_http(into: HttpCounters, other: HttpCounters) -> None:
    into.connections += other.connections
    into.connections_open += other.connections_open
    into.received_bytes += other.received_bytes
    into.sent_bytes += other.sent_bytes
    _add_lists(into.responses, other.responses)
    for limit, count in other.rejected.items():
        into.rejected[limit] = into.rejected.get(limit, 0) + count
    into.buffered_bytes += other.buffered_bytes
    into.buffered_limit_bytes += other.buffered_limit_bytes
    for reason, count in other.buffered_refused.items():
        into.buffered_refused[reason] = into.buffered_refused.get(reason, 0) + count


def _add_process(into: ProcessReading, other: ProcessReading) -> None:
    into.cpu_seconds += other.cpu_seconds
    into.resident_bytes += other.resident_bytes
    into.open_files += other.open_files
    into.max_files += other.max_files
    into.uptime_seconds = max(into.uptime_seconds, other.uptime_seconds)


def _take_largest(into: MachineReading, other: MachineReading) -> None:
    for name in MachineReading.__struct_fields__:
        setattr(into, name, max(getattr(into, name), getattr(other, name)))
