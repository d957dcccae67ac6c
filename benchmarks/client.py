"""A closed loop in a process of its own that keeps every answer, as a check needs them.

``python -m benchmarks.client PLAN`` reads a :class:`Plan` as MessagePack from a file, sends,
and writes a :class:`Seen` next to it. Requests are bytes made beforehand and answers are only
looked at when the last has come, so that its share of the machine stays small.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.servers import ROOT, environment
from headrace.client.benchmark import new_event_loop
from headrace.client.connection import BinaryConnection, Connection, open_connection
from headrace.client.target import resolve_target

TIMEOUT_S = 10.0
"""To connect. A server that does not answer at all is ended by whoever runs the benchmark."""

KEPT_LATENCIES = 1_000_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send.

    ``seconds`` 0: every request once, in order; else in turn until then. ``keep``: whether
    the answers' bodies are wanted.
    """

    url: str
    requests: list[bytes]
    connections: int
    seconds: float = 0.0
    keep: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: latencies in nanoseconds and bodies, in the order of the requests.

    ``failures`` are answers other than 200 and lost connections, the first few of them.
    """

    answered: int
    seconds: float
    latencies_ns: list[int]
    bodies: list[bytes]
    failures: list[str]

    def percentile_us(self, percentile: float) -> float:
        """Of the latencies, by nearest rank."""
        if not self.latencies_ns:
            return 0.0
        rank = np.percentile(self.latencies_ns, percentile, method="inverted_cdf")
        return float(rank) / 1e3


def send(plan: Plan, work: Path) -> Seen:
    """Runs the plan in a child process.

    Raises:
        subprocess.CalledProcessError: the client itself failed.
    """
    file = work / "plan.msgpack"
    file.write_bytes(msgspec.msgpack.encode(plan))
    command = [sys.executable, "-m", "benchmarks.client", str(file)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment())
    return msgspec.msgpack.decode(_answer_file(file).read_bytes(), type=Seen)


class _Loop:
    """Hands out requests to callers and collects what they saw."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._next = 0
        self._active = 0
        self._end_ns = 0
        self.answered = 0
        self.latencies_ns: list[int] = [0] * (0 if plan.seconds else len(plan.requests))
        self.bodies: list[bytes] = [b""] * (len(plan.requests) if plan.keep else 0)
        self.failures: list[str] = []
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> float:
        """Seconds from the first request to the last answer."""
        target = resolve_target(self._plan.url)
        callers = [_Caller(self) for _ in range(self._plan.connections)]
        for caller in callers:
            await open_connection(target, caller.made, TIMEOUT_S)
        started_ns = time.monotonic_ns()
        self._end_ns = started_ns + int(self._plan.seconds * 1e9)
        self._active = len(callers)
        for caller in callers:
            caller.next()
        await self.finished
        seconds = (time.monotonic_ns() - started_ns) / 1e9
        for caller in callers:
            caller.close()
        return seconds

    def take(self) -> tuple[int, bytes] | None:
        """The next request and its number; None when there is none."""
        requests = self._plan.requests
        number = self._next
        if self._plan.seconds:
            if time.monotonic_ns() >= self._end_ns:
                return None
        elif number >= len(requests):
            return None
        self._next += 1
        return number, requests[number % len(requests)]

    def settle(self, number: int, taken_ns: int, connection: Connection) -> None:
        """One answer."""
        if connection.status != 200:
            self.fail(f"{connection.status}: {connection.body[:200]!r}")
            return
        self.answered += 1
        if not self._plan.seconds:
            self.latencies_ns[number] = taken_ns
        elif len(self.latencies_ns) < KEPT_LATENCIES:
            self.latencies_ns.append(taken_ns)
        if self._plan.keep:
            self.bodies[number % len(self._plan.requests)] = connection.body

    def fail(self, reason: str) -> None:
        """One request that was not answered well."""
        if len(self.failures) < 10:
            self.failures.append(reason)

    def leave(self) -> None:
        """A caller has nothing more to send."""
        self._active -= 1
        if not self._active:
            self.finished.set_result(None)


class _Caller:
    """One connection and the request under way on it (a ``Listener``)."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._connection: Connection | None = None
        self._number = 0
        self._sent_ns = 0

    def made(self) -> Connection:
        """The connection, not yet open."""
        self._connection = BinaryConnection(self)
        return self._connection

    def next(self) -> None:
        """Sends the next request."""
        assert self._connection is not None
        work = self._loop.take()
        if work is None:
            self._loop.leave()
            return
        self._number, request = work
        self._sent_ns = time.monotonic_ns()
        self._connection.send(request, self._number)

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()

    def answered(self, connection: Connection) -> None:
        """The connection's callback."""
        taken_ns = time.monotonic_ns() - self._sent_ns
        connection.tag = -1
        self._loop.settle(self._number, taken_ns, connection)
        self.next()

    def lost(self, _connection: Connection, _tag: int, reason: str) -> None:
        """The connection's callback: this caller is out."""
        self._loop.fail(reason)
        self._loop.leave()


async def _send(plan: Plan) -> Seen:
    loop = _Loop(plan)
    seconds = await loop.run()
    return Seen(
        answered=loop.answered,
        seconds=seconds,
        latencies_ns=loop.latencies_ns,
        bodies=loop.bodies,
        failures=loop.failures,
    )


def _answer_file(plan_file: Path) -> Path:
    return plan_file.with_suffix(".seen")


def main(file: Path) -> None:
    """The child process."""
    plan = msgspec.msgpack.decode(file.read_bytes(), type=Plan)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        seen = runner.run(_send(plan))
    _answer_file(file).write_bytes(msgspec.msgpack.encode(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
