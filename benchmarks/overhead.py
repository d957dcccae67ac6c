"""What a request costs around the model: server CPU time per request, beside the floor.

Headrace and a bare floor server (``floor_server.py``) are up at the same time and loaded in
turn with the same requests, A B B A ..., so that whatever else happens on the machine
happens to both. CPU time is user + system of the server's processes over the load.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import mlp
from benchmarks.floor_server import load
from benchmarks.load import Generator, Load
from benchmarks.mlp import Request, Wire
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, floor_server, headrace_server
from benchmarks.settings import Settings

CONNECTIONS = (1, 16, 64)
MAX_RATIO = 1.6
"""Of CPU time per request over the floor's: tiny MLP, V2 JSON, 64 connections."""


class Case(msgspec.Struct, frozen=True):
    """One pair of servers and what they are sent."""

    model: str
    wire: Wire


CASES = (Case("mlp", "json"), Case("mlp", "binary"), Case("null", "json"), Case("null", "binary"))


class WrongAnswer(Exception):
    """A server does not answer what the bare model does; nothing is measured."""


def run(settings: Settings) -> Iterator[Result]:
    """One result for every model, wire form and number of connections."""
    for case in CASES:
        yield from measure(case, CONNECTIONS, settings)


def measure(case: Case, connections: Sequence[int], settings: Settings) -> Iterator[Result]:
    """One result for each number of connections."""
    with pair_of_servers(case, settings) as (ours, floor, generator):
        for number in connections:
            yield _result(case, number, interleaved(ours, floor, generator, number, settings))


@contextmanager
def pair_of_servers(case: Case, settings: Settings) -> Iterator[tuple[Server, Server, Generator]]:
    """Headrace and the floor, warm, and shown to answer every request alike and rightly.

    Raises:
        WrongAnswer: one of them does not.
    """
    work = settings.work / "overhead"
    file = mlp.write_mlp(work, settings.seed)
    models, floor_model = (
        (mlp.write_null(work), "null") if case.model == "null" else (file, str(file))
    )
    requests = mlp.make_requests(case.wire, settings.seed)
    flags = () if case.model == "null" else ("--runtime", "onnxruntime")
    with (
        headrace_server(models, work, *flags) as ours,
        floor_server(floor_model, case.wire) as floor,
    ):
        for server in (ours, floor):
            _check(server, case, requests, floor_model)
        generator = Generator(requests, work)
        for server in (ours, floor):
            generator.run(server, 16, 1)  # warm: caches, allocators, a settled batch size
        yield ours, floor, generator


def interleaved(
    ours: Server, floor: Server, generator: Generator, connections: int, settings: Settings
) -> list[tuple[Load, Load]]:
    """Pairs of rounds (ours, the floor's) at one number of connections."""
    pairs = []
    for number in range(settings.rounds):
        # A B, then B A: a machine that gets slower or faster favours neither.
        order = (ours, floor) if number % 2 == 0 else (floor, ours)
        seen = {s.name: generator.run(s, connections, settings.seconds) for s in order}
        pairs.append((seen[ours.name], seen[floor.name]))
    return pairs


def _result(case: Case, connections: int, pairs: list[tuple[Load, Load]]) -> Result:
    what = f"{case.model} {case.wire}, {connections} connection{'s' * (connections > 1)}"
    ratio = Spread.of(ours.cpu_us / floor.cpu_us for ours, floor in pairs)
    bound = case == Case("mlp", "json") and connections == 64
    return Result(
        benchmark="overhead",
        case=what,
        figures={
            "cpu us": Spread.of(ours.cpu_us for ours, _ in pairs),
            "floor cpu us": Spread.of(floor.cpu_us for _, floor in pairs),
            "cpu ratio": ratio,
            "req/s": Spread.of(ours.rate for ours, _ in pairs).median,
            "floor req/s": Spread.of(floor.rate for _, floor in pairs).median,
            "p50 us": Spread.of(ours.p50_us for ours, _ in pairs).median,
            "floor p50 us": Spread.of(floor.p50_us for _, floor in pairs).median,
            "p99 us": Spread.of(ours.p99_us for ours, _ in pairs).median,
        },
        goals=(Goal(f"CPU time per request over the floor's: {what}", ratio, MAX_RATIO),)
        if bound
        else (),
    )


def _check(server: Server, case: Case, requests: list[Request], floor_model: str) -> None:
    call = load(floor_model)
    for request in requests:
        status, answer = server.post(mlp.PATH, request.body, request.headers)
        if status != 200:
            raise WrongAnswer(f"{server.name} answered {status}: {answer[:200]!r}")
        expected, output = call(request.array), mlp.output_of(answer, case.wire)
        if not np.allclose(output, expected, rtol=1e-5, atol=1e-6):
            raise WrongAnswer(f"{server.name} answered {output}, the model says {expected}")


def bare_call_us(file: Path, requests: list[Request], count: int = 2000) -> float:
    """Median time of a bare model call for one request, in microseconds."""
    call = load(str(file))
    arrays = [request.array for request in requests]
    taken = []
    for number in range(count):
        array = arrays[number % len(arrays)]
        started_ns = time.perf_counter_ns()
        call(array)
        taken.append(time.perf_counter_ns() - started_ns)
    return float(np.median(taken)) / 1e3
