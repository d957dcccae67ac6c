"""What was learnt of a model, and what follows from it: every decision can be read."""

from __future__ import annotations

import msgspec

from headrace.core.latency import LatencyModel
from headrace.core.pool import SchedulerStatistics
from headrace.engine.limits import limits_of
from headrace.engine.served import ServedModel


class Curve(msgspec.Struct, frozen=True):
    """Of one kind of instance. ``points``: units in a batch, milliseconds as of now.

    ``slowdown``: how many times longer than usual; ``allowance``: what a promise allows for;
    ``batches``: how many it was learnt from, 0: only measured when it was loaded.
    ``within_slo``: units of the largest batch that is safely within the SLO; -1: there is none.
    """

    kind: int
    points: list[tuple[float, float]]
    slowdown: float
    allowance: float
    batches: int
    within_slo: float


class Explanation(msgspec.Struct, frozen=True):
    """The answer of ``GET /v2/models/NAME/explain``. Times in milliseconds; 0: none.

    ``unit`` is "row", or "token" where rows are padded; ``largest`` batch in these.
    """

    model: str
    version: str
    runtime: str
    unit: str
    largest: int
    instances: int
    slo_ms: float
    strict: bool
    timeout_ms: float
    priority_levels: int
    waiting: int
    running: int
    batches: int
    rows: int
    completed: int
    late: int
    refused: int
    given_up: int
    unattainable: int
    curves: list[Curve]


def explanation_of(served: ServedModel, statistics: SchedulerStatistics) -> Explanation:
    """What the core knows of it now; of a stateful model, of all its instances together."""
    limits = limits_of(served)
    lanes = [statistics.models[lane.number] for lane in (served, *served.lanes)]
    curves = [
        _curve(kind, LatencyModel(cost), lane.level, served.slo_ns)
        for lane in lanes
        for kind, cost in sorted(lane.costs.items())
    ]
    return Explanation(
        model=served.name,
        version=served.version,
        runtime=served.runtime,
        unit="token" if limits.max_padded_tokens else "row",
        largest=limits.max_padded_tokens or limits.max_rows,
        instances=limits.max_concurrency,
        slo_ms=served.slo_ns / 1e6,
        strict=limits.strict_slo,
        timeout_ms=served.timeout_ns / 1e6,
        priority_levels=limits.priority_levels,
        waiting=sum([lane.waiting for lane in lanes]),
        running=sum([lane.running for lane in lanes]),
        batches=sum([lane.batches for lane in lanes]),
        rows=sum([lane.rows for lane in lanes]),
        completed=sum([lane.completed for lane in lanes]),
        late=sum([lane.late for lane in lanes]),
        refused=sum([lane.rejected for lane in lanes]),
        given_up=sum([lane.given_up for lane in lanes]),
        unattainable=sum([lane.hurried for lane in lanes]),
        curves=curves,
    )


def _curve(kind: int, cost: LatencyModel, level: float, slo_ns: int) -> Curve:
    within = -1.0
    if slo_ns:
        within = cost.largest_within(slo_ns / level)
    return Curve(
        kind=kind,
        points=[
            (round(units, 1), round(taken_ns * level / 1e6, 4)) for units, taken_ns in cost.points()
        ],
        slowdown=round(level, 3),
        allowance=round(cost.spread, 3),
        batches=cost.batches,
        within_slo=min(within, 1e9),
    )
