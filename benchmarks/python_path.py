"""The overhead benchmark without the kernel: CPU time of a request's path through Python.

In one process, requests are handed to as many connections as are said, one each, and taken
from them by a transport that drops what is written. No socket, no client, no system call:
what is left is code that a change of ours can make faster, and it repeats to a few per cent
on a busy machine, because the least of many short measurements counts. The system calls that
``overhead`` has on top are the same for headrace and for the floor.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import uvloop

from benchmarks import floor_server, mlp
from benchmarks.load import http_request
from benchmarks.results import Result, Spread
from benchmarks.servers import ROOT, environment
from benchmarks.settings import Settings

NAME = "python_path"
CONNECTIONS = (1, 16, 64)

_CHUNK = 1024
"""Requests of one of the short measurements: ten milliseconds, less than a time slice."""

_PORT = 8000  # only in the Host header

Side = Literal["headrace", "floor"]


class Plan(msgspec.Struct, frozen=True):
    """What a child measures, for ``seconds``."""

    side: Side
    wire: mlp.Wire
    connections: int
    model: str
    cache: str
    seed: int
    seconds: float


def run(settings: Settings) -> Iterator[Result]:
    """One result for every wire form and number of connections."""
    for wire in (mlp.JSON, mlp.BINARY):
        for connections in CONNECTIONS:
            yield measure(wire, connections, settings)


def measure(wire: mlp.Wire, connections: int, settings: Settings) -> Result:
    """Headrace and the floor, in turn."""
    work = settings.work / NAME
    model, cache = str(mlp.write_mlp(work, settings.seed)), str(work / "cache")

    def least_us(side: Side) -> float:
        return _in_child(
            Plan(side, wire, connections, model, cache, settings.seed, settings.seconds / 2)
        )

    pairs = [(least_us("headrace"), least_us("floor")) for _ in range(settings.rounds)]
    ours, floor = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Result(
        benchmark=NAME,
        case=f"mlp {wire}, {connections} connection{'s' * (connections > 1)}",
        figures={
            "us": Spread.of(ours),
            "floor us": Spread.of(floor),
            "more us": Spread.of(a - b for a, b in zip(ours, floor, strict=True)),
        },
    )


def _in_child(plan: Plan) -> float:
    command = [sys.executable, "-m", "benchmarks.python_path", msgspec.json.encode(plan).decode()]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
    )
    return float(done.stdout)


class _Sink(asyncio.Transport):
    """Counts answers and drops them."""

    answers = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        del data
        _Sink.answers += 1

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing is being read."""

    def resume_reading(self) -> None:
        """Nothing is being read."""


async def _child(plan: Plan) -> float:
    """The least CPU time of a request in microseconds."""
    make = await (_headrace(plan) if plan.side == "headrace" else _floor(plan))
    protocols = [make() for _ in range(plan.connections)]
    for protocol in protocols:
        protocol.connection_made(_Sink())
    requests = [
        http_request(_PORT, mlp.PATH, request.headers, request.body)
        for request in mlp.make_requests(plan.wire, plan.seed)
    ]
    turns = max(1, _CHUNK // plan.connections)
    await _turns(protocols, requests, turns)
    best_s = float("inf")
    end_s = time.monotonic() + plan.seconds
    while time.monotonic() < end_s:
        started_s = time.process_time()
        await _turns(protocols, requests, turns)
        best_s = min(best_s, time.process_time() - started_s)
    return best_s / turns / plan.connections * 1e6


async def _turns(
    protocols: Sequence[asyncio.Protocol], requests: Sequence[bytes], turns: int
) -> None:
    """Every turn, one request to every connection, and a wait for all the answers."""
    for turn in range(turns):
        expected = _Sink.answers + len(protocols)
        for number, protocol in enumerate(protocols):
            protocol.data_received(requests[(turn + number) % len(requests)])
        while _Sink.answers < expected:  # noqa: ASYNC110 - an event would be measured, too
            await asyncio.sleep(0)


async def _headrace(plan: Plan) -> Callable[[], asyncio.Protocol]:
    from headrace.frontends.http1 import Connection
    from headrace.loading import load_config
    from headrace.repository.layout import scan
    from headrace.server.app import Application

    settings = {"cache_dir": plan.cache, "defaults.runtime": "onnxruntime"}
    config = load_config(None, {}, settings, flag_names={}).config
    application = Application(config)
    await application.load(scan([Path(plan.model)], config=config))
    return lambda: Connection(application.lane)


async def _floor(plan: Plan) -> Callable[[], asyncio.Protocol]:
    turn = floor_server.Turn(asyncio.get_running_loop(), floor_server.load(plan.model))
    make = floor_server.CONNECTIONS[plan.wire]
    return lambda: make(turn)


if __name__ == "__main__":
    print(uvloop.run(_child(msgspec.json.decode(sys.argv[1], type=Plan))), flush=True)
    os._exit(0)  # instances and sessions end with the process
