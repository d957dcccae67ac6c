"""The V2 statistics extension: counters of one version as the JSON that Triton's clients read.

Names and meanings as in Triton's extension_statistics.md. Every duration is ``{"count",
"ns"}`` and exact: sums of integers, never a mean times a number. What a request spent in the
model is the time of the batch it was in, so a batch of four that took 1 ms adds 4 ms.
"""

from __future__ import annotations

import time
from typing import Any

from headrace.clock import MonotonicClock
from headrace.telemetry.snapshot import (
    BATCHES,
    CACHE_HIT_NS,
    CACHE_HIT_ROWS,
    CACHE_HITS,
    CACHE_MISS_NS,
    CACHE_MISSES,
    COMPLETED,
    FAILED,
    FAILED_NS,
    RESPONSE_KINDS,
    ROWS,
    SERVED_NS,
    SPLIT_NS,
    STAGES,
    ModelCounters,
)

_QUEUE, _COLLATE, _EXECUTE = (STAGES.index(name) for name in ("queue", "collate", "execute"))


def model_statistics(counters: ModelCounters) -> dict[str, Any]:
    """One element of ``model_stats``."""
    totals, sums_ns = counters.totals, counters.sums_ns
    ran = totals[COMPLETED] - totals[CACHE_HITS]
    return {
        "name": counters.model,
        "version": counters.version,
        "last_inference": _wall_ms(counters.last_ended_ns),
        "inference_count": totals[ROWS] - totals[CACHE_HIT_ROWS],
        "execution_count": totals[BATCHES],
        "inference_stats": {
            "success": _duration(totals[COMPLETED], totals[SERVED_NS]),
            "fail": _duration(totals[FAILED], totals[FAILED_NS]),
            "queue": _duration(totals[COMPLETED], sums_ns[_QUEUE]),
            "compute_input": _duration(ran, sums_ns[_COLLATE]),
            "compute_infer": _duration(ran, compute_infer_ns(counters)),
            "compute_output": _duration(ran, totals[SPLIT_NS]),
            "cache_hit": _duration(totals[CACHE_HITS], totals[CACHE_HIT_NS]),
            "cache_miss": _duration(totals[CACHE_MISSES], totals[CACHE_MISS_NS]),
        },
        "response_stats": {
            str(index): _response(sums) for index, sums in sorted(counters.responses.items())
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(count, collate_ns),
                "compute_infer": _duration(count, execute_ns),
                "compute_output": _duration(count, split_ns),
            }
            for rows, (count, collate_ns, execute_ns, split_ns) in sorted(counters.by_rows.items())
        ],
        "memory_usage": [],
    }


def compute_infer_ns(counters: ModelCounters) -> int:
    """Time in the model itself; the stage ``execute`` ends when the batch is taken apart."""
    return counters.sums_ns[_EXECUTE] - counters.totals[SPLIT_NS]


def _response(sums: list[int]) -> dict[str, Any]:
    kinds = {
        kind: _duration(*sums[2 * index : 2 * index + 2])
        for index, kind in enumerate(RESPONSE_KINDS)
    }
    success = kinds["success"]
    return {
        "compute_infer": success,
        # An answer is encoded by the front-end: that is no part of the model's time.
        "compute_output": _duration(success["count"], 0),
        "success": success,
        "fail": kinds["fail"],
        "empty_response": kinds["empty"],
        "cancel": kinds["cancel"],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _wall_ms(monotonic_ns: int) -> int:
    """Milliseconds since the epoch of a moment of the monotonic clock; 0: there was none."""
    if not monotonic_ns:
        return 0
    return (time.time_ns() - (MonotonicClock.now_ns() - monotonic_ns)) // 1_000_000
