"""What must hold in a scheduler between any two events. O(everything); for tests.

A violation is a defect of the core; the message says which law broke.
"""

from __future__ import annotations

from headrace.core.books import Books
from headrace.core.events import NEVER_NS
from headrace.core.instances import Instances
from headrace.core.pool import ModelState
from headrace.core.selection import in_turn
from headrace.core.urgency import units_of


def check(books: Books, wakeup_ns: int | None, start_ns: int | None) -> None:
    """Asserts all of it.

    Args:
        wakeup_ns: when the scheduler wants to be woken.
        start_ns: when a batch that waits for company is to start, if one does.

    Raises:
        AssertionError: a law is broken.
    """
    live, instances = books.live, books.instances
    seen: dict[int, str] = {}
    for number, model in books.models.items():
        _check_queue(number, model, books, seen)
        _check_counts(number, model, instances)
    for batch_id, batch in instances.batches.items():
        for request_id in batch.request_ids:
            assert request_id not in seen, f"request {request_id} in two places"
            seen[request_id] = f"batch {batch_id}"
    missing = live.keys() - seen.keys()
    assert not missing, f"live but neither queued nor running: {sorted(missing)}"
    _check_instances(books, start_ns)
    earliest = min([request.deadline_ns for request in live.values()], default=NEVER_NS)
    if earliest < NEVER_NS:
        assert wakeup_ns is not None, "a deadline would be missed"
        assert wakeup_ns <= earliest, "a deadline would be missed"


def _check_instances(books: Books, start_ns: int | None) -> None:
    instances = books.instances
    busy = [batch.instance_id for batch in instances.batches.values()]
    idle = instances.idle
    assert len(busy) == len(set(busy)), "one instance runs two batches"
    assert idle == sorted(set(idle)), "idle list out of order"
    assert not set(busy) & set(idle), "an instance is idle and busy"
    assert set(idle) == instances.numbers() - set(busy), "an instance is neither idle nor busy"
    for instance_id in idle:
        able = in_turn(books.waiting, instances, instance_id, 0)
        assert not able or start_ns is not None, "an idle instance could work"


def _check_queue(number: int, model: ModelState, books: Books, seen: dict[int, str]) -> None:
    queued = [*model.alone, *model.queue]
    assert len(queued) == model.waiting(), f"model {number} miscounts its queue"
    assert bool(queued) == (number in books.waiting), f"model {number} is misfiled"
    for request in queued:
        assert books.live.get(request.request_id) == request, f"queued but dead: {request}"
        assert request.request_id not in seen, f"queued twice: {request}"
        assert request.model == number, f"in the wrong queue: {request}"
        seen[request.request_id] = "queue"


def _check_counts(number: int, model: ModelState, instances: Instances) -> None:
    queued = [*model.alone, *model.queue]
    units = [units_of(request, model.limits) for request in queued]
    assert model.waiting_units == sum(units), f"model {number} miscounts its work"
    assert model.waiting_rows == sum([r.rows for r in queued]), f"model {number} miscounts rows"
    assert model.waiting_bytes == sum([r.size_bytes for r in queued]), f"{number} miscounts bytes"
    running = [batch for batch in instances.batches.values() if batch.model == number]
    assert model.running == len(running), f"model {number} miscounts its batches"
    assert model.running_requests == sum([len(batch.request_ids) for batch in running])
