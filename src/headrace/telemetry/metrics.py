"""Counts what the instruments are told: integers in lists, nothing else on the hot path.

``requests_completed`` runs once a batch on the event loop and may cost half a microsecond a
request. That is why a bucket is found by ``bisect`` on integer nanoseconds, sums stay in
local variables until the batch is through, what all requests of a batch share is counted
once, and no label, string or float is touched before somebody asks for a snapshot.

Labels are bounded: a model becomes one when the engine loads it, never because a caller
named it; versions that are gone keep their counters for a while (``MAX_RETIRED``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from headrace.telemetry import snapshot
from headrace.telemetry.gpu import GpuReader
from headrace.telemetry.instruments import (
    BatchRecord,
    Instrument,
    QueueRecord,
    RequestRecord,
    SeriesRecord,
)
from headrace.telemetry.model_metrics import ModelMetrics
from headrace.telemetry.process import UsageReader
from headrace.telemetry.snapshot import (
    BATCH_EXECUTE_NS,
    BATCH_ROWS,
    BATCHES,
    CACHE_HIT_NS,
    CACHE_HIT_ROWS,
    CACHE_HITS,
    CACHE_MISS_NS,
    CACHE_MISSES,
    COMPLETED,
    FAILED,
    FAILED_NS,
    INLINE_BATCHES,
    PADDED_TOKENS,
    RESPONSE_KINDS,
    ROW_BOUNDS,
    ROWS,
    SERVED_NS,
    SPLIT_NS,
    TIME_BOUNDS_NS,
    TOKENS,
    USEFUL_TOKENS,
    CacheCount,
    Failure,
    HttpCounters,
    ModelCounters,
    Snapshot,
)

MAX_RETIRED = 16
"""Unloaded versions whose counters are kept, so that the scrape after a hot swap still sees
how the old one ended; a server that swaps every hour stays bounded."""

MAX_REASONS = 64
"""Distinct failure reasons. Reasons are error codes, of which there are fewer than thirty; a
runtime that invents a new one for every failure ends up in ``other``."""

MAX_BATCH_SIZES = 256
"""Different batch sizes told apart, per model; any further one counts as the largest."""

MAX_RESPONSES = 256
"""Answers of one request told apart; those after count with the last."""

OTHER = "other"

FIRST_BOUND_NS = TIME_BOUNDS_NS[0]
"""Most stages of a small model end below it, and a comparison is cheaper than a search."""


class Metrics(Instrument):
    """Counters of one worker process. ``http`` belongs to the HTTP front-end.

    Args:
        version: of headrace, for ``headrace_build_info``.
        usage: reads the process and the machine.
        gpus: reads the machine's GPUs; None shows none.
    """

    def __init__(
        self,
        *,
        version: str = "",
        usage: UsageReader | None = None,
        gpus: GpuReader | None = None,
    ) -> None:
        self.http = HttpCounters()
        self._version = version
        self._usage = usage or UsageReader()
        self._gpus = gpus
        self._own = ModelMetrics()
        self._models: dict[tuple[str, str], ModelCounters] = {}
        self._retired: dict[tuple[str, str], None] = {}
        self._names: set[str] = set()
        self._caches: Counter[tuple[str, str, str]] = Counter()
        self._failures: dict[tuple[str, str, str, str], int] = {}
        self._reasons: set[str] = set()

    def requests_completed(self, records: Sequence[RequestRecord], ended_ns: int) -> None:
        """One pass over a batch's requests, which are all of one model; hot.

        Stamps are added up, not stages: a stage's sum is the difference of two of them, so
        seven sums cost five additions. What most stages of a small model are, shorter than
        the first bound, is counted for all at once; the few that are longer are moved.
        """
        if not records:
            return
        first = records[0]
        counters = self._models.get((first.model, first.version)) or self._known(
            first.model, first.version
        )
        decode, prepare, queue, _, _, encode, write, total = counters.counts
        bounds, bucket, first_bound = TIME_BOUNDS_NS, bisect_left, FIRST_BOUND_NS
        batched, finished = first.batched_ns, first.finished_ns
        count = len(records)
        rows = tokens = arrived_sum = decoded_sum = admitted_sum = encoded_sum = written_sum = 0
        for record in records:
            arrived, written = record.arrived_ns, record.written_ns
            rows += record.rows
            tokens += record.tokens
            if not arrived or not written:
                count -= 1
                _add_partial(counters, record, ended_ns)
                continue
            decoded, admitted, encoded = record.decoded_ns, record.admitted_ns, record.encoded_ns
            arrived_sum += arrived
            decoded_sum += decoded
            admitted_sum += admitted
            encoded_sum += encoded
            written_sum += written
            if admitted - arrived > first_bound:  # else neither of its parts is longer
                decode[0] -= 1
                decode[bucket(bounds, decoded - arrived)] += 1
                prepare[0] -= 1
                prepare[bucket(bounds, admitted - decoded)] += 1
            ns = written - encoded
            if ns > first_bound:
                write[0] -= 1
                write[bucket(bounds, ns)] += 1
            queue[bucket(bounds, batched - admitted)] += 1
            encode[bucket(bounds, encoded - finished)] += 1
            total[bucket(bounds, written - arrived)] += 1
        decode[0] += count
        prepare[0] += count
        write[0] += count
        sums = counters.sums_ns
        sums[0] += decoded_sum - arrived_sum
        sums[1] += admitted_sum - decoded_sum
        sums[2] += count * batched - admitted_sum
        sums[5] += encoded_sum - count * finished
        sums[6] += written_sum - encoded_sum
        sums[7] += written_sum - arrived_sum
        totals = counters.totals
        totals[SERVED_NS] += count * ended_ns - arrived_sum
        count = len(records)
        _add(counters, 3, first.started_ns - batched, count)
        _add(counters, 4, finished - first.started_ns, count)
        split_ns = finished - (first.executed_ns or finished)
        counters.split_counts[0 if split_ns <= first_bound else bucket(bounds, split_ns)] += count
        counters.last_ended_ns = max(counters.last_ended_ns, ended_ns)
        totals[SPLIT_NS] += split_ns * count
        totals[COMPLETED] += count
        totals[ROWS] += rows
        totals[TOKENS] += tokens

    def batch_executed(self, record: BatchRecord) -> None:
        """Once an execution."""
        counters = self._models.get((record.model, record.version)) or self._known(
            record.model, record.version
        )
        rows, execute_ns = record.rows, record.execute_ns
        totals = counters.totals
        totals[BATCHES] += 1
        totals[INLINE_BATCHES] += record.inline
        totals[BATCH_ROWS] += rows
        totals[BATCH_EXECUTE_NS] += execute_ns
        counters.batch_rows_counts[bisect_left(ROW_BOUNDS, rows)] += 1
        counters.batch_execute_counts[bisect_left(TIME_BOUNDS_NS, execute_ns)] += 1
        sums = counters.by_rows.get(rows)
        if sums is None:
            if len(counters.by_rows) >= MAX_BATCH_SIZES:
                rows = max(counters.by_rows)
            sums = counters.by_rows.setdefault(rows, [0, 0, 0, 0])
        sums[0] += 1
        sums[1] += record.collate_ns
        sums[2] += execute_ns
        sums[3] += record.split_ns
        if record.padded_tokens:
            totals[USEFUL_TOKENS] += record.useful_tokens
            totals[PADDED_TOKENS] += record.padded_tokens

    def request_failed(
        self,
        record: RequestRecord,
        outcome: str,
        reason: str,
        ended_ns: int,
    ) -> None:
        """Counts it under the model it named, if this server has such a model."""
        model = record.model if record.model in self._names else ""
        counters = self._models.get((model, record.version))
        version = ""
        if counters is not None:
            version = record.version
            began_ns = record.arrived_ns or record.admitted_ns or ended_ns
            counters.totals[FAILED] += 1
            counters.totals[FAILED_NS] += max(0, ended_ns - began_ns)
        if reason not in self._reasons:
            if len(self._reasons) < MAX_REASONS:
                self._reasons.add(reason)
            else:
                reason = OTHER
        key = (model, version, outcome, reason)
        self._failures[key] = self._failures.get(key, 0) + 1

    def response_sent(
        self, record: RequestRecord, index: int, kind: str, since_ns: int, now_ns: int
    ) -> None:
        """One of several answers."""
        counters = self._models.get((record.model, record.version)) or self._known(
            record.model, record.version
        )
        if not index:
            ns = now_ns - (record.arrived_ns or record.admitted_ns)
            counters.first_counts[bisect_left(TIME_BOUNDS_NS, ns)] += 1
            counters.first_ns += ns
        slot = 2 * RESPONSE_KINDS.index(kind)
        sums = counters.responses.setdefault(
            min(index, MAX_RESPONSES - 1), [0] * (2 * len(RESPONSE_KINDS))
        )
        sums[slot] += 1
        sums[slot + 1] += max(0, now_ns - since_ns)

    def cache_looked_up(
        self, model: str, version: str, *, hit: bool, ns: int, rows: int = 1
    ) -> None:
        """Counts it."""
        counters = self._models.get((model, version)) or self._known(model, version)
        totals, bucket = counters.totals, bisect_left(TIME_BOUNDS_NS, ns)
        if hit:
            totals[CACHE_HITS] += 1
            totals[CACHE_HIT_NS] += ns
            totals[CACHE_HIT_ROWS] += rows
            counters.cache_hit_counts[bucket] += 1
        else:
            totals[CACHE_MISSES] += 1
            totals[CACHE_MISS_NS] += ns
            counters.cache_miss_counts[bucket] += 1

    def shared_cache_asked(self, how: str) -> None:
        """The shared cache was asked: "hit", "miss", "refused" or "error"."""
        self._caches["shared", "", how] += 1

    def semantic_cache_asked(self, model: str, how: str) -> None:
        """A semantic cache was: "hit", "miss"; "verified" or "false" where a hit was run too."""
        self._caches["semantic", model, how] += 1

    def queue_changed(self, model: str, version: str, queue: QueueRecord) -> None:
        """Gauges, and the counts that the scheduler keeps itself."""
        counters = self._models.get((model, version)) or self._known(model, version)
        counters.waiting = queue.waiting
        counters.running = queue.running
        counters.waiting_bytes = queue.waiting_bytes
        counters.late = queue.late
        counters.hurried = queue.hurried
        counters.slowdown = queue.slowdown

    def model_loaded(self, model: str, version: str, seconds: float) -> None:
        """From now on the model has labels of its own."""
        counters = self._known(model, version)
        counters.load_seconds = seconds
        counters.loaded = 1
        self._retired.pop((model, version), None)

    def model_measured(self, model: str, version: str, instance: int, record: SeriesRecord) -> None:
        """Keeps it, for the models' own part of the page."""
        self._own.measured(model, version, instance, record)

    def model_unloaded(self, model: str, version: str) -> None:
        """Keeps the counters, until ``MAX_RETIRED`` later versions have gone as well."""
        self._own.forget(model, version)
        counters = self._models.get((model, version))
        if counters is None:
            return
        counters.loaded = counters.waiting = counters.running = 0
        self._retired[(model, version)] = None
        while len(self._retired) > MAX_RETIRED:
            self._forget(next(iter(self._retired)))

    def snapshot(self) -> bytes:
        """Everything counted since the start, for ``merge`` and ``prometheus.render``."""
        return snapshot.encode(
            Snapshot(
                version=self._version,
                models=list(self._models.values()),
                failures=[Failure(*key, count) for key, count in self._failures.items()],
                http=self.http,
                process=self._usage.process(),
                machine=self._usage.machine(),
                gpus=[] if self._gpus is None else self._gpus.read(),
                own=self._own.series(),
                caches=[CacheCount(*key, count) for key, count in self._caches.items()],
            )
        )

    def _known(self, model: str, version: str) -> ModelCounters:
        """Counters of a version the engine speaks of; made if need be."""
        key = (model, version)
        counters = self._models.get(key)
        if counters is None:
            counters = self._models[key] = ModelCounters(model, version)
            self._names.add(model)
        return counters

    def _forget(self, key: tuple[str, str]) -> None:
        del self._retired[key], self._models[key]
        model = key[0]
        gone = {key}
        if all(name != model for name, _ in self._models):
            self._names.discard(model)
            gone.add((model, ""))
        for failure in [each for each in self._failures if each[:2] in gone]:
            del self._failures[failure]


def _add(counters: ModelCounters, stage: int, ns: int, times: int = 1) -> None:
    """The same duration, as often as there were requests in the batch."""
    counters.counts[stage][bisect_left(TIME_BOUNDS_NS, ns)] += times
    counters.sums_ns[stage] += ns * times


def _add_partial(counters: ModelCounters, record: RequestRecord, ended_ns: int) -> None:
    """One without all stamps: made inside the process, or its answer was not sent at once."""
    arrived_ns, admitted_ns = record.arrived_ns, record.admitted_ns
    if arrived_ns:
        _add(counters, 0, record.decoded_ns - arrived_ns)
        _add(counters, 1, admitted_ns - record.decoded_ns)
    _add(counters, 2, record.batched_ns - admitted_ns)
    if record.written_ns:
        _add(counters, 5, record.encoded_ns - record.finished_ns)
        _add(counters, 6, record.written_ns - record.encoded_ns)
    counters.totals[SERVED_NS] += ended_ns - (arrived_ns or admitted_ns)
