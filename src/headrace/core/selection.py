"""Which model an idle instance serves next, where several have work for it, and whether now.

Law: a model with a minimum share that it does not get goes first; after that the one whose next
batch has to begin soonest to be in time, and where nothing is promised, the one whose first
request is oldest. So two models that share cores are served like two requests of one model.
"""

from __future__ import annotations

from headrace.core.events import NEVER_NS
from headrace.core.instances import Instances
from headrace.core.pool import ModelState
from headrace.core.urgency import hurries, may_wait, units_of, wait_until


def in_turn(
    waiting: dict[int, ModelState], instances: Instances, instance_id: int, now_ns: int
) -> list[int]:
    """The models that have work for the instance and may run there, first first."""
    if len(waiting) == 1:
        for number, model in waiting.items():
            if model.running >= model.limits.max_concurrency:
                return []
            return [number] if instances.runs(instance_id, number, model) else []
    eligible = [
        number
        for number, model in waiting.items()
        if model.running < model.limits.max_concurrency
        and instances.runs(instance_id, number, model)
    ]
    if len(eligible) < 2:
        return eligible
    kind = instances.kind_of(instance_id)
    count = len(instances)
    return sorted(eligible, key=lambda number: _urgency(waiting[number], kind, count, now_ns))


def start_after_ns(number: int, model: ModelState, instances: Instances, now_ns: int) -> int:
    """Until when the model's next batch had better wait for company; 0: it should start now."""
    cost = model.cost
    if not hurries(model.queue, model.limits, cost):
        return 0
    units, count = model.waiting_units, model.waiting()
    mean_units = units / count
    usable, idle = instances.usable(number, model)
    if not may_wait(cost, mean_units, model.rate(now_ns), usable, idle):
        return 0
    return wait_until(model.queue, model.limits, cost, units + max(1, units // count), now_ns)


def _urgency(model: ModelState, kind: int, instances: int, now_ns: int) -> tuple[float, float, int]:
    """Smaller is sooner: what is missing of the share, the latest start, the arrival."""
    missing = 0.0
    if model.limits.min_share:
        missing = min(0.0, model.use(now_ns) / instances - model.limits.min_share)
    first = model.oldest()
    if first is None:
        return missing, float(NEVER_NS), NEVER_NS
    if first.due_ns == NEVER_NS:
        return missing, float(NEVER_NS), first.arrival_ns
    cost_ns = model.cost_on(kind).predict_ns(units_of(first, model.limits))
    return missing, first.due_ns - cost_ns, first.arrival_ns
