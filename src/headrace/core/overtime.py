"""How long an execution may take before it counts as hung. A pure rule.

A limit that is configured holds as it is. Without one the limit follows what the latency model has
learnt, and is never below the floor: an execution that is slow, on a machine that is busy, must
not be taken for one that hangs. As long as too little is known about a model, an execution has an
hour while a request waits for it, because its first requests may be its largest.
"""

from __future__ import annotations

from headrace.core.latency import LatencyModel

FLOOR_NS = 60_000_000_000
"""No automatic limit is below it. A machine under load, or one that pages, makes an execution of
a millisecond take seconds, not a minute."""

FACTOR = 20
"""Times what nearly all batches of the size keep below. Above what a model whose time depends on
its inputs (generated tokens, iterations of a loop) shows beyond the quantile."""

LEARNT_BATCHES = 32
"""Executions before the latency model is believed."""

UNLEARNT_NS = 3_600_000_000_000
"""The limit before that, while a request waits for the execution."""


def execution_limit_ns(
    cost: LatencyModel, units: float, *, configured_ns: int, floor_ns: int, wanted: bool
) -> int:
    """How long an execution may take.

    Args:
        cost: what was learnt of the model on this kind of instance.
        units: the batch's work, in the latency model's units.
        configured_ns: the limit of the configuration; 0: automatic.
        floor_ns: the least that an automatic limit may be for this model.
        wanted: whether a request still waits for the execution.
    """
    if configured_ns:
        return configured_ns
    floor_ns = min(max(FLOOR_NS, floor_ns), UNLEARNT_NS)
    if cost.batches < LEARNT_BATCHES:
        return UNLEARNT_NS if wanted else floor_ns
    return max(floor_ns, int(FACTOR * cost.safe_ns(units)))
