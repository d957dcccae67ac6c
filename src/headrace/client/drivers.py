"""What the open and the closed loop have in common: samples, judgement, housekeeping, an end."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from headrace.client.connection import Connection, open_connection
from headrace.client.payloads import Payloads
from headrace.client.processes import Meter
from headrace.client.samples import NO_STATUS, Reason, Samples
from headrace.client.target import Target

HOUSEKEEPING_S = 0.1
"""Time-outs are noticed, and progress is shown, this often."""

Watch = Callable[[Samples], None]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What ends a run and what it may hold; see ``BenchSpec`` for the reasons.

    ``connections`` and ``fanout`` (requests of one query) are the closed loop's,
    ``max_outstanding`` is the open loop's.
    """

    duration_s: float | None = None
    requests: int | None = None
    timeout_s: float = 10.0
    connections: int = 1
    fanout: int = 1
    max_outstanding: int = 4096


class Driver(ABC):
    """One run. ``await run()`` once; ``stop()`` from anywhere on the loop ends it early.

    Attributes:
        samples: what happened so far.
        meter: may be replaced before ``run`` by one that watches the server, too.
        interrupted: ``stop()`` was called.
        gave_up: why the run ended by itself before its time; "" where it did not.
    """

    def __init__(
        self, target: Target, payloads: Payloads, bounds: Bounds, watch: Watch | None = None
    ) -> None:
        self.samples = Samples()
        self.interrupted = False
        self.gave_up = ""
        self._target = target
        self._payloads = payloads
        self._bounds = bounds
        self.meter = Meter()
        self._watch = watch
        self._timeout_ns = int(bounds.timeout_s * 1e9)
        self._timed_out = Reason(NO_STATUS, f"no answer within {bounds.timeout_s:g} s")
        self._clock = time.monotonic_ns
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._housekeeper: asyncio.TimerHandle | None = None

    async def run(self) -> Samples:
        """Sends everything and waits for the last answer or its time-out.

        Raises:
            ConnectFailed: not even the first connections could be opened.
        """
        try:
            await self._open()
            self._housekeep()
            self.meter.start()
            self._begin()
            await self._finished
            self.samples.ended_ns = self._clock()
            self.meter.stop()
            if self._watch is not None:
                self._watch(self.samples)
        finally:
            await self._end()
        return self.samples

    def stop(self) -> None:
        """Ends the run now; requests under way stay without an outcome."""
        self.interrupted = True
        self._finish()

    @abstractmethod
    async def _open(self) -> None:
        """Opens connections before the clock starts."""

    @abstractmethod
    def _begin(self) -> None:
        """Sets ``samples.started_ns`` and starts sending."""

    @abstractmethod
    def _expire(self, now_ns: int) -> None:
        """Fails what has waited for longer than the time-out."""

    @abstractmethod
    def _connections(self) -> list[Connection]:
        """All that must be closed at the end."""

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    async def _end(self) -> None:
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections():
            connection.close()
        await asyncio.sleep(0)  # the loop closes an aborted transport on its next turn

    def _housekeep(self) -> None:
        if self._finished.done():
            return
        self._expire(self._clock())
        if self._watch is not None and self.samples.started_ns:
            self._watch(self.samples)
        self._housekeeper = self._loop.call_later(HOUSEKEEPING_S, self._housekeep)

    def _judge(self, connection: Connection) -> Reason | None:
        """None for a good answer."""
        text = self._payloads.check(connection.status, connection.header_length, connection.body)
        return Reason(connection.status, text) if text else None

    async def _connect(self, make: Callable[[], Connection]) -> Connection:
        return await open_connection(self._target, make, self._bounds.timeout_s)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
