"""What the core is told about how large a batch of a model may grow."""

from __future__ import annotations

from headrace.core.events import BatchLimits
from headrace.core.pool import SchedulerStatistics
from headrace.engine.served import ServedModel


def limits_of(served: ServedModel) -> BatchLimits:
    """What the core is told: the configuration where it speaks, the measurement elsewhere."""
    batching, queue, profile = served.config.batching, served.config.queue, served.profile
    tokens = batching.max_batch_tokens or profile.batch_tokens
    max_rows = batching.max_batch_size or profile.max_rows
    return BatchLimits(
        max_rows=max_rows if served.batchable else 1,
        max_padded_tokens=tokens if served.padding is not None and served.batchable else 0,
        batch_overhead_tokens=profile.overhead_tokens,
        max_queue_size=queue.max_queue_size,
        max_concurrency=served.loaded.concurrency,
        priority_levels=queue.priority_levels,
        default_priority=queue.default_priority,
    )


def load_of(served: ServedModel, statistics: SchedulerStatistics) -> tuple[int, int]:
    """Requests of a model that wait and that run, in all of its lanes and before them."""
    lanes = [statistics.models[lane.number] for lane in (served, *served.lanes)]
    waiting = served.preparing + sum([lane.waiting for lane in lanes])
    return waiting, sum([lane.running for lane in lanes])
