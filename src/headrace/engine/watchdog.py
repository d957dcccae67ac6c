"""Finds executions that hang, fails their requests, and ends the execution where it can be ended.

How long an execution may take is decided by ``core.overtime``. When that time is over,

1. the requests of the batch fail, and count against the model;
2. the model is asked to end the execution (``LoadedModel.interrupt``): a child process is killed
   and started again, a run of ONNX Runtime is terminated;
3. an execution that cannot be ended, or has not ended after :data:`STOP_NS`, is *stuck*: a new
   thread takes the place of the one that it holds, so that other models go on. A model of which
   every instance is stuck is not ready and refuses requests until one comes back.

An answer of a decoupled model is progress: its time begins again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from headrace.core.events import NEVER_NS, BatchAbandoned, Event
from headrace.engine import endings
from headrace.engine.inflight import Ticket, whole_of
from headrace.engine.instances import BatchJob
from headrace.engine.served import Intake, ServedModel
from headrace.engine.wakeup import Wakeup

_LOG = logging.getLogger("headrace.engine")

STOP_NS = 10_000_000_000
"""What an execution that was told to end has for it. A killed process is gone in milliseconds;
ONNX Runtime ends between two operators."""


class Threads(Protocol):
    """The threads that batches run in."""

    def ident(self, instance_id: int) -> int:
        """What ``threading.get_ident`` says there; 0: there is no such instance any more."""
        ...

    def replace(self, instance_id: int) -> None:
        """Another thread takes its place; it ends after the batch that it has."""
        ...


class Watchdog:
    """Watches the batches that run in threads. On the event loop.

    A batch pays for one entry in a dictionary and a comparison; limits are worked out when the
    timer fires, which is once in the shortest limit at most.

    Args:
        limit_ns: how long a batch may take, by its number; ``wanted``: a request waits for it.
        drive: tells the core.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        wakeup: Callable[[Callable[[], None]], Wakeup],
        limit_ns: Callable[..., int],
        drive: Callable[[Event, BatchJob | None], None],
        threads: Threads,
    ) -> None:
        self._now_ns = now_ns
        self._limit_ns = limit_ns
        self._drive = drive
        self._threads = threads
        self._wakeup = wakeup(self._look)
        self._next_ns = NEVER_NS
        self._jobs: dict[int, BatchJob] = {}
        self._intakes: dict[ServedModel, Intake | None] = {}

    def began(self, job: BatchJob) -> None:
        """It is on its way to its thread."""
        job.begun_ns = now_ns = self._now_ns()
        self._jobs[job.batch_id] = job
        look_ns = now_ns + job.served.look_ns
        if look_ns < self._next_ns:
            self._look_again(look_ns)

    def ended(self, job: BatchJob) -> None:
        """It is back."""
        del self._jobs[job.batch_id]
        if job.is_stuck:
            self._came_back(job)

    def close(self) -> None:
        """Looks no more."""
        self._wakeup.cancel()

    def _look(self) -> None:
        now_ns = self._now_ns()
        next_ns = self._next_ns = NEVER_NS
        for job in tuple(self._jobs.values()):
            if not job.finished_ns:  # it may be on its way back
                next_ns = min(next_ns, self._look_at(job, now_ns))
        self._look_again(min(next_ns, self._next_ns))  # a batch may have begun meanwhile

    def _look_again(self, at_ns: int) -> None:
        self._next_ns = at_ns
        if at_ns < NEVER_NS:
            self._wakeup.at(at_ns)

    def _look_at(self, job: BatchJob, now_ns: int) -> int:
        """Does what is due; when to look again."""
        if job.overtime is None:
            tickets = [whole_of(part) for part in job.parts]
            since_ns = max(job.begun_ns, *[ticket.answered_ns for ticket in tickets])
            wanted = not all(ticket.done for ticket in tickets)
            limit_ns = self._limit_ns(job.batch_id, wanted=wanted)
            if now_ns < since_ns + limit_ns:
                # Sooner than the limit: it is shorter where nobody waits any more.
                return min(since_ns + limit_ns, now_ns + job.served.look_ns)
            self._abandon(job, now_ns, now_ns - since_ns, limit_ns)
        if job.is_stuck:
            return NEVER_NS
        if now_ns >= job.stop_ns:
            self._stuck(job)
        return job.stop_ns

    def _abandon(self, job: BatchJob, now_ns: int, ran_ns: int, limit_ns: int) -> None:
        served = job.served.whole or job.served
        error = job.overtime = endings.hung(served, ran_ns, limit_ns)
        served.health.failed += len(job.parts)
        _LOG.error("model %s version %s: %s", served.name, served.version, error.message)
        served.notice(error.message)
        self._drive(BatchAbandoned(job.batch_id), job)
        job.stop_ns = now_ns
        interrupt = getattr(served.loaded, "interrupt", None)
        if interrupt is not None:
            interrupt(self._threads.ident(job.instance_id), error.details["reason"])
            job.stop_ns += STOP_NS

    def _stuck(self, job: BatchJob) -> None:
        job.is_stuck = True
        served = job.served.whole or job.served
        served.stuck += 1
        self._threads.replace(job.instance_id)
        told = f"an execution cannot be ended: {served.stuck} of {served.places} instances stuck"
        _LOG.error("model %s version %s: %s", served.name, served.version, told)
        served.notice(told)
        if not served.serving and served not in self._intakes:
            self._intakes[served] = served.intake
            served.intake = partial(_refuse, served)

    def _came_back(self, job: BatchJob) -> None:
        served = job.served.whole or job.served
        served.stuck -= 1
        _LOG.warning(
            "model %s version %s: an execution that was stuck has ended",
            served.name,
            served.version,
        )
        served.notice("an execution that was stuck has ended")
        if served in self._intakes and served.stuck < served.places:
            served.intake = self._intakes.pop(served)


def _refuse(served: ServedModel, _ticket: Ticket) -> None:
    raise endings.all_stuck(served)
