"""How many requests a second the pure core decides about, on one core, by itself.

The benchmark is the engine: it reports arrivals, and reports every batch it is told to
execute as completed before the next arrivals come. Nothing is computed, so what is measured
is ``Scheduler.handle`` and the events themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import numpy as np

from benchmarks.results import Goal, Result, Spread
from benchmarks.settings import Settings
from benchmarks.texts import draw_lengths
from headrace.core.actions import CompleteRequests, ExecuteBatch
from headrace.core.events import (
    BatchCompleted,
    BatchLimits,
    InstanceAdded,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
)
from headrace.core.scheduler import Scheduler

NAME = "core"
REQUESTS = 200_000
MIN_RATE = 100_000.0

MODEL, INSTANCES = 1, 2
_TIMEOUT_NS = 60_000_000_000

ROWS = BatchLimits(max_rows=64, max_concurrency=INSTANCES)
TOKENS = BatchLimits(
    max_rows=256, max_padded_tokens=512, batch_overhead_tokens=16, max_concurrency=INSTANCES
)


class Case(msgspec.Struct, frozen=True):
    """``together`` requests arrive in one event; with ``TOKENS`` they have lengths."""

    name: str
    limits: BatchLimits
    together: int


CASES = (
    Case("rows, 1 at a time", ROWS, 1),
    Case("rows, 16 at a time", ROWS, 16),
    Case("rows, 64 at a time", ROWS, 64),
    Case("lengths, 1 at a time", TOKENS, 1),
    Case("lengths, 64 at a time", TOKENS, 64),
)


def run(settings: Settings) -> Iterator[Result]:
    """One result for each pattern of arrivals."""
    count = settings.scaled(REQUESTS, least=1000)
    for case in CASES:
        rate = Spread.of(measure(case, count, settings.seed) for _ in range(settings.rounds))
        yield Result(
            benchmark=NAME,
            case=case.name,
            figures={"req/s": rate, "us/request": 1e6 / rate.median},
            goals=(Goal(f"decided per second: {case.name}", rate, MIN_RATE, "/s", at_least=True),),
        )


def measure(case: Case, count: int, seed: int) -> float:
    """Requests completed per second of CPU time.

    Raises:
        AssertionError: a request did not complete, which would be a defect of the core.
    """
    rounds = _rounds(case, count, seed)
    scheduler = Scheduler()
    scheduler.handle(ModelAdded(MODEL, case.limits), now_ns=0)
    for instance in range(INSTANCES):
        scheduler.handle(InstanceAdded(instance), now_ns=0)
    completed = 0
    started_s = time.process_time()
    for now_ns, requests in enumerate(rounds):
        actions = scheduler.handle(RequestsArrived(requests), now_ns=now_ns)
        while actions:
            finished = [a for a in actions if isinstance(a, ExecuteBatch)]
            completed += sum(len(a.request_ids) for a in actions if isinstance(a, CompleteRequests))
            actions = [
                action
                for batch in finished
                for action in scheduler.handle(BatchCompleted(batch.batch_id), now_ns=now_ns)
            ]
    taken_s = time.process_time() - started_s
    assert completed == sum(map(len, rounds)), "a request was lost"
    return completed / taken_s


def _rounds(case: Case, count: int, seed: int) -> list[list[QueuedRequest]]:
    """The arrivals, made beforehand: making them is the engine's work."""
    rng = np.random.default_rng(seed)
    lengths = draw_lengths(rng, count)
    if not case.limits.max_padded_tokens:
        lengths = [0] * count
    requests = [
        QueuedRequest(number, MODEL, 1, length, 0, number, number + _TIMEOUT_NS)
        for number, length in enumerate(lengths)
    ]
    return [requests[start : start + case.together] for start in range(0, count, case.together)]
