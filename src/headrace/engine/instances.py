"""Where batches run: one thread per instance, and the code that runs in it.

A batch goes through one queue to a thread and comes back through one
``call_soon_threadsafe``: one hop out, one hop back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import msgspec
import numpy as np

from headrace.clock import MonotonicClock
from headrace.engine.apart import run_apart
from headrace.engine.collate import collate, split
from headrace.engine.inflight import Member, Ticket
from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError, InferenceFailed, detached
from headrace.runtimes.base import Emitted

_LOG = logging.getLogger("headrace.engine")
_now_ns = MonotonicClock.now_ns

_HOPS = 33
_HOP_MIN_NS, _HOP_MAX_NS = 20_000, 150_000


class BatchJob(msgspec.Struct, eq=False):
    """One batch on its way through an instance. ``run`` fills in what has a default.

    A piece is what a part gets: arrays, or the error that is its own. ``emitted`` is set where
    answers come by themselves, and are no pieces.
    """

    batch_id: int
    instance_id: int
    served: ServedModel
    parts: Sequence[Member]
    rows: int
    padded_length: int
    inline: bool
    emitted: Callable[[Ticket, Emitted, bool], None] | None = None
    pieces: Sequence[Sequence[np.ndarray | None] | HeadraceError] = ()
    error: HeadraceError | None = None
    started_ns: int = 0
    collated_ns: int = 0
    executed_ns: int = 0
    finished_ns: int = 0
    begun_ns: int = 0
    overtime: HeadraceError | None = None  # it took too long: what its requests were told
    stop_ns: int = 0  # when it has to be over then
    is_stuck: bool = False

    def run(self) -> None:
        """Collate, execute, split. Blocks; never raises."""
        served, parts = self.served, self.parts
        self.started_ns = _now_ns()
        try:
            if served.takes_requests:
                self.collated_ns = self.started_ns
                self.pieces = run_apart(served, parts, self.emitted)
                self.executed_ns = self.finished_ns = _now_ns()
                return
            if served.collate is None:
                inputs, rows = collate(parts, served.padding, served.loaded.shape_policy)
            else:
                inputs, rows = served.collate(parts)
            if not self.inline:
                (served.whole or served).health.ran(inputs)
            self.collated_ns = _now_ns()
            outputs = served.loaded.execute(inputs)
            self.executed_ns = _now_ns()
            if len(outputs) != len(served.loaded.outputs):
                raise _wrong_output_count(served, len(outputs))
            if served.batchable:
                self.pieces = split(outputs, [part.rows for part in parts], rows)
            else:
                self.pieces = [list(outputs)]
        except HeadraceError as error:
            self.error = detached(error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises must not end the server
            _LOG.exception("model %s raised", served.name)
            self.error = InferenceFailed(
                f"model '{served.name}' failed: {type(error).__name__}: {error}",
                model=served.name,
            )
        self.finished_ns = _now_ns()
        if self.error is not None:  # what was never reached took no time
            self.collated_ns = self.collated_ns or self.finished_ns
            self.executed_ns = self.executed_ns or self.finished_ns


def _wrong_output_count(served: ServedModel, got: int) -> InferenceFailed:
    expected = [spec.name for spec in served.loaded.outputs]
    return InferenceFailed(
        f"model '{served.name}' returned {got} outputs, expected {len(expected)}: {expected}",
        code="wrong_output_count",
        hint="a model returns one array for each output of its signature, in that order",
        model=served.name,
        expected=expected,
        got=got,
    )


class InstanceThread:
    """One place where a batch can run at a time."""

    def __init__(
        self,
        instance_id: int,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[BatchJob], None],
    ) -> None:
        self.instance_id = instance_id
        self._loop = loop
        self._finished = finished
        self._jobs: SimpleQueue[BatchJob | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name=f"headrace-instance-{instance_id}", daemon=True
        )
        self._thread.start()

    @property
    def ident(self) -> int:
        """What ``threading.get_ident`` says in it."""
        return self._thread.ident or 0

    def submit(self, job: BatchJob) -> None:
        """Runs ``job`` and calls ``finished(job)`` on the loop."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Ends the thread after the job it has. Returns at once."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread; False if it was still busy after ``timeout_s``."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            try:
                self._loop.call_soon_threadsafe(self._finished, job)
            except RuntimeError:
                return  # the loop is closed: nobody is left to be told
            del job  # or its arrays would live until the next one comes


async def measure_hop_ns(loop: asyncio.AbstractEventLoop) -> int:
    """The median round trip from the loop through a thread and back, in nanoseconds.

    Bounded both ways, so that a stalled machine cannot make every model inline.
    """
    jobs: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()

    def work() -> None:
        while (future := jobs.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    hops: list[int] = []
    for _ in range(_HOPS):
        future = loop.create_future()
        started_ns = _now_ns()
        jobs.put(future)
        await future
        hops.append(_now_ns() - started_ns)
    jobs.put(None)
    thread.join()
    return min(max(sorted(hops)[_HOPS // 2], _HOP_MIN_NS), _HOP_MAX_NS)
