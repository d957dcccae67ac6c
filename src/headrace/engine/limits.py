"""What the core is told about how large a batch of a model may grow."""

from __future__ import annotations

from headrace.core.events import BatchLimits, LearntCost
from headrace.core.pool import SchedulerStatistics
from headrace.engine.served import ServedModel
from headrace.telemetry.instruments import QueueRecord


def limits_of(served: ServedModel) -> BatchLimits:
    """What the core is told: the configuration where it speaks, the measurement elsewhere."""
    config, profile = served.config, served.profile
    batching, queue = config.batching, config.queue
    tokens = batching.max_batch_tokens or profile.batch_tokens
    max_rows = batching.max_batch_size or profile.max_rows
    return BatchLimits(
        max_rows=max_rows if served.batchable else 1,
        max_padded_tokens=tokens if served.padding is not None and served.batchable else 0,
        batch_overhead_tokens=profile.overhead_tokens,
        max_queue_size=queue.max_queue_size,
        max_concurrency=served.loaded.concurrency,
        max_queue_rows=queue.max_queue_rows,
        max_queue_tokens=queue.max_queue_tokens,
        max_queue_bytes=queue.max_queue_bytes,
        priority_levels=config.priority_levels,
        default_priority=config.default_priority,
        strict_slo=config.slo.strict,
        min_share=config.min_share,
        execution_limit_ns=config.execution_timeout_ns,
        execution_floor_ns=served.timeout_ns,
    )


def load_of(served: ServedModel, statistics: SchedulerStatistics) -> QueueRecord:
    """What a model's queue is like now, in all of its lanes and before them."""
    lanes = [statistics.models[lane.number] for lane in (served, *served.lanes)]
    return QueueRecord(
        waiting=served.preparing + sum([lane.waiting for lane in lanes]),
        running=sum([lane.running for lane in lanes]),
        waiting_bytes=sum([lane.waiting_bytes for lane in lanes]),
        late=sum([lane.late for lane in lanes]),
        hurried=sum([lane.hurried for lane in lanes]),
        slowdown=max([lane.level for lane in lanes]),
    )


def costs_of(served: ServedModel, statistics: SchedulerStatistics) -> dict[int, LearntCost]:
    """What was learnt of a model's batches, by kind of instance; empty: nothing, or it is gone."""
    model = statistics.models.get(served.number)
    costs = {} if model is None else model.costs
    return {kind: cost for kind, cost in costs.items() if cost.batches}
