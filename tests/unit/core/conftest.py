"""A scheduler whose invariants are checked after every event of every test."""

from __future__ import annotations

import itertools

import pytest

from headrace.core.actions import Action
from headrace.core.events import (
    NEVER_NS,
    BatchLimits,
    Event,
    InstanceAdded,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
)
from headrace.core.scheduler import Scheduler


class Driver:
    """Feeds a scheduler and checks it; ``now_ns`` moves only when a test moves it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.now_ns = 1_000
        self._ids = itertools.count(1)

    def send(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, now_ns=self.now_ns)
        self.scheduler.check_invariants()
        return actions

    def model(self, number: int = 1, **limits: int) -> None:
        assert self.send(ModelAdded(number, BatchLimits(**limits))) == []

    def instances(self, *numbers: int) -> None:
        for number in numbers:
            self.send(InstanceAdded(number))

    def request(
        self,
        *,
        model: int = 1,
        rows: int = 1,
        length: int = 0,
        shape: int = 0,
        deadline_ns: int = NEVER_NS,
        priority: int = 0,
    ) -> QueuedRequest:
        number = next(self._ids)
        return QueuedRequest(number, model, rows, length, shape, self.now_ns, deadline_ns, priority)

    def arrive(self, *requests: QueuedRequest) -> list[Action]:
        return self.send(RequestsArrived(list(requests)))


@pytest.fixture
def driver() -> Driver:
    return Driver()
