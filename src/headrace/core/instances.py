"""The places where batches run: which are idle, which may run what, when each is free again.

Only :class:`headrace.core.scheduler.Scheduler` changes these.
"""

from __future__ import annotations

from bisect import insort

import msgspec

from headrace.core.events import InstanceAdded
from headrace.core.pool import ModelState


class RunningBatch(msgspec.Struct, frozen=True, gc=False):
    """One running batch. ``due_ns``: when the first of its members wants to be answered."""

    model: int
    instance_id: int
    kind: int
    request_ids: tuple[int, ...]
    units: int
    started_ns: int
    expected_ns: float
    due_ns: int


class Instances:
    """All instances of a pool."""

    __slots__ = ("_known", "_particular", "batches", "idle")

    def __init__(self) -> None:
        self._known: dict[int, InstanceAdded] = {}
        self._particular = 0  # that run only the models they name
        self.idle: list[int] = []  # sorted: the lowest number first keeps its caches warm
        self.batches: dict[int, RunningBatch] = {}  # by batch_id

    def __len__(self) -> int:
        return len(self._known)

    def add(self, event: InstanceAdded) -> None:
        """One more, idle.

        Raises:
            KeyError: it was added before.
        """
        if event.instance_id in self._known:
            raise KeyError(f"instance {event.instance_id} was added before")
        self._known[event.instance_id] = event
        self._particular += bool(event.models)
        insort(self.idle, event.instance_id)

    def remove(self, instance_id: int) -> None:
        """No further batch goes there.

        Raises:
            KeyError: there is none.
        """
        self._particular -= bool(self._known.pop(instance_id).models)
        if instance_id in self.idle:
            self.idle.remove(instance_id)

    def kind_of(self, instance_id: int) -> int:
        """What is learnt there is learnt for this kind."""
        return self._known[instance_id].kind

    def numbers(self) -> frozenset[int]:
        """All that take batches."""
        return frozenset(self._known)

    def runs(self, instance_id: int, number: int, model: ModelState) -> bool:
        """Whether the model may run there."""
        models = self._known[instance_id].models
        return number in models if models else not model.dedicated

    def begin(self, batch_id: int, batch: RunningBatch) -> None:
        """An idle instance has work now."""
        self.idle.remove(batch.instance_id)
        self.batches[batch_id] = batch

    def end(self, batch_id: int) -> RunningBatch:
        """Its batch is over; it is idle again, unless it was removed meanwhile.

        Raises:
            KeyError: no such batch runs.
        """
        batch = self.batches.pop(batch_id)
        if batch.instance_id in self._known:
            insort(self.idle, batch.instance_id)
        return batch

    def takes(self, number: int, model: ModelState) -> bool:
        """Whether a batch of the model could start right now."""
        if not self.idle or model.running >= model.limits.max_concurrency:
            return False
        if not self._particular and not model.dedicated:
            return True
        return any(self.runs(instance_id, number, model) for instance_id in self.idle)

    def usable(self, number: int, model: ModelState) -> tuple[int, int]:
        """How many instances the model can have at one time, and how many of them are idle."""
        if not self._particular and not model.dedicated:
            most = min(len(self._known), model.limits.max_concurrency)
            return most, min(len(self.idle), most - model.running)
        runs = [i for i in self._known if self.runs(i, number, model)]
        idle = [i for i in self.idle if self.runs(i, number, model)]
        most = min(len(runs), model.limits.max_concurrency)
        return most, min(len(idle), most - model.running)

    def starts_ns(self, number: int, model: ModelState, now_ns: int) -> list[float]:
        """When each place that the model can have is free, by what is expected of what runs."""
        own: list[float] = []
        others = [float(now_ns) for i in self.idle if self.runs(i, number, model)]
        for batch in self.batches.values():
            if batch.instance_id not in self._known:
                continue
            free_ns = max(float(now_ns), batch.expected_ns)
            if batch.model == number:
                own.append(free_ns)
            elif self.runs(batch.instance_id, number, model):
                others.append(free_ns)
        # Its own batches hold its places, and the rest come from whoever is free first.
        others.sort()
        return own + others[: max(0, model.limits.max_concurrency - len(own))]
