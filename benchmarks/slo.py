"""The latency target on real servers: overload, callers who leave, and what the simulator foretold.

``overload``: all-MiniLM-L6-v2 with an SLO of 100 ms, offered half of what it can do up to three
times as much, open loop. ``cancellation``: half of the callers of a slow model leave while they
wait. ``simulator``: a model that takes ``5 + b`` ms by sleeping is served and recorded; the
recorded arrivals, with the costs that this server learnt, go through ``headrace simulate``.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.minilm import Unavailable, get_minilm
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings
from headrace.core.actions import CompleteRequests, RejectRequest
from headrace.core.events import BatchLimits, RequestsArrived
from headrace.core.scheduler import Scheduler
from headrace.engine.recording import read_recording
from headrace.simulate.curves import Learnt, read_curve
from headrace.simulate.outcome import report
from headrace.simulate.simulator import Scenario, SimulatedModel, Simulation
from headrace.simulate.traces import read_trace

NAME = "slo"
SLO_MS = 100.0
LOADS = (0.5, 1.0, 2.0, 3.0)
WORDS = "15,0.85,110"

SLEEPER = """
import time
from typing import Annotated
import numpy as np
Table = Annotated[np.ndarray, "FP32[N,2]"]

def predict(x: Table) -> Table:
    time.sleep(({fixed} + {each} * len(x)) / 1000)
    return x
"""


def run(settings: Settings) -> Iterator[Result]:
    """All three."""
    yield from overload(settings)
    yield cancellation(settings)
    yield from simulator(settings)


def overload(settings: Settings) -> Iterator[Result]:
    """Goodput, p99 of the accepted, and how soon the others were told."""
    work = settings.work / NAME
    try:
        minilm = get_minilm(settings, work / "cache")
    except Unavailable as error:
        yield Result(benchmark=NAME, case="overload", skipped=str(error))
        return
    flags = ("--runtime", settings.runtime, "--name", "minilm", "--slo", f"{SLO_MS:g}ms")
    record = work / "overload.jsonl"
    peak = 0.0
    with headrace_server(minilm.folder, work, *flags[:4]) as server:  # without an SLO
        capacity = _bench(server, work, settings, "--scenario", "offline")["answered_rps"]
    with headrace_server(minilm.folder, work, *flags, "--record", str(record)) as server:
        for load in LOADS:
            told = _bench(server, work, settings, "--rate", f"{load * capacity:.1f}")
            good = told["slo"]["goodput_rps"]
            peak = max(peak, good)
            kept = Spread.of([good / peak])
            p99 = Spread.of([told["latency"]["p99_ms"]])
            goals = (
                Goal(f"MiniLM at {load:g} x: goodput, of its peak", kept, 0.95, at_least=True),
                Goal(f"MiniLM at {load:g} x: p99 of accepted", p99, SLO_MS, "ms"),
            )
            yield Result(
                benchmark=NAME,
                case=f"MiniLM, SLO {SLO_MS:g} ms, {load:g} x {capacity:.0f}/s",
                figures={
                    "answered in time /s": good,
                    "of the peak": kept,
                    "p50 ms": told["latency"]["p50_ms"],
                    "p99 ms of accepted": p99,
                    "refused": told["failed"],
                },
                goals=goals if load >= 2 else (),
            )
    at_once, later = refusals(record)
    share = Spread.of([len(at_once) / max(1, len(at_once) + later)])
    slowest = Spread.of([sorted(at_once)[int(len(at_once) * 0.99)] / 1e6 if at_once else 0.0])
    yield Result(
        benchmark=NAME,
        case="MiniLM: refusals in the event of their arrival",
        figures={
            "at arrival": len(at_once),
            "after waiting": later,
            "share": share,
            "p99 ms until refused": slowest,
        },
        goals=(
            Goal("refusals at arrival: p99 of the time until they are decided", slowest, 1.0, "ms"),
        ),
    )


def refusals(record: Path) -> tuple[list[int], int]:
    """Of a recording: nanoseconds of the refusals at arrival, and how many came later."""
    at_once: list[int] = []
    later = 0
    for entry in read_recording(record):
        arrived: dict[int, int] = {}
        if isinstance(entry.event, RequestsArrived):
            arrived = {r.request_id: r.arrival_ns for r in entry.event.requests}
        for action in entry.actions:
            if isinstance(action, RejectRequest):
                if action.request_id in arrived:
                    at_once.append(entry.now_ns - arrived[action.request_id])
                else:
                    later += 1
    return at_once, later


def cancellation(settings: Settings) -> Result:
    """Executions for callers that had left, of all."""
    work = settings.work / NAME
    model = _sleeper(work / "leaving", 10, 0)
    count = settings.scaled(400, least=60)
    with headrace_server(model, work, "--max-batch-size", "1") as server:
        asyncio.run(_leave(server, count))
        executed = _metric(server, "headrace_batches_total")
        answered = _metric(
            server, 'headrace_requests_total{model="sleeper",version="1",outcome="comp'
        )
    dead = Spread.of([(executed - answered) / executed])
    return Result(
        benchmark=NAME,
        case=f"{count} requests of 10 ms, half of the callers leave",
        figures={"executed": int(executed), "answered": int(answered), "for nobody": dead},
        goals=(Goal("worker time for callers that had left", dead, 0.02),),
    )


async def _leave(server: Server, count: int) -> None:
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    ).encode()
    head = (
        f"POST /v2/models/sleeper/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def ask(*, leaves: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + body)
        await writer.drain()
        if leaves:
            await asyncio.sleep(0.1)
        else:
            await reader.readuntil(b"]}]}")
        writer.close()

    await asyncio.gather(*(ask(leaves=number % 2 == 0) for number in range(count)))


def _metric(server: Server, series: str) -> float:
    lines = server.get("/metrics")[1].decode().splitlines()
    return float(next(line for line in lines if line.startswith(series)).split()[-1])


def simulator(settings: Settings) -> Iterator[Result]:
    """p99 on the real server beside that of the same arrivals in the simulator."""
    slo_ms, capacity = 60.0, 32 / 0.037
    for load in (0.25, 0.5, 0.75):
        work = settings.work / NAME / f"load-{load:g}"
        model = _sleeper(work / "model", 5, 1)
        record = work / "record.jsonl"
        flags = ("--max-batch-size", "32", "--slo", f"{slo_ms:g}ms", "--record", str(record))
        for old in (work / "cache" / "profiles").glob("*.json"):
            old.unlink()
        with headrace_server(model, work, *flags) as server:
            rate = f"{load * capacity:.1f}"
            told = _bench(server, work, settings, "--rate", rate, seconds=8, slo_ms=slo_ms)
        measured = _p99_of(record)
        foretold = _foretold(record, next((work / "cache" / "profiles").glob("*.json")))
        off = Spread.of([abs(foretold / measured - 1)])
        yield Result(
            benchmark=NAME,
            case=f"5+b ms, {load:g} of capacity: the server beside the simulator",
            figures={
                "p99 ms, client": told["latency"]["p99_ms"],
                "p99 ms, server": measured,
                "p99 ms, simulated": foretold,
                "off by": off,
            },
            goals=(Goal(f"simulated p99, off by, at {load:g}", off, 0.15),),
        )


def _p99_of(record: Path) -> float:
    arrived: dict[int, int] = {}
    latencies: list[int] = []
    for entry in read_recording(record):
        if isinstance(entry.event, RequestsArrived):
            arrived |= {r.request_id: r.arrival_ns for r in entry.event.requests}
        for action in entry.actions:
            if isinstance(action, CompleteRequests):
                latencies += [entry.now_ns - arrived[i] for i in action.request_ids]
    return sorted(latencies)[int(len(latencies) * 0.99)] / 1e6


def _foretold(record: Path, profile: Path) -> float:
    curve = read_curve(str(profile))
    assert isinstance(curve, Learnt)
    noise = math.log(curve.cost.spread) / 2.33  # the spread is the 99th percentile
    model = SimulatedModel(1, curve, BatchLimits(max_rows=32), noise=noise)
    arrivals = read_trace(record)
    outcome = Simulation(Scenario((model,), 1, arrivals, seed=1), Scheduler()).run()
    return report(outcome, 1, arrivals[-1].at_ns).total.p99_ms


def _sleeper(folder: Path, fixed_ms: float, each_ms: float) -> Path:
    model = folder / "sleeper"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.py").write_text(SLEEPER.format(fixed=fixed_ms, each=each_ms))
    return folder


def _bench(
    server: Server,
    work: Path,
    settings: Settings,
    *flags: str,
    seconds: float = 6,
    slo_ms: float = SLO_MS,
) -> dict[str, Any]:
    out = work / "bench.jsonl"
    out.unlink(missing_ok=True)
    texts = () if "sleeper" in _models(server) else ("--text-lengths", WORDS)
    subprocess.run(
        [
            sys.executable, "-m", "headrace", "bench", server.url, "--slo-ms", f"{slo_ms:g}",
            "--duration", str(max(2, round(seconds * min(1.0, settings.scale)))),
            "--seed", str(settings.seed), "--json", str(out), "--quiet", *texts, *flags,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(0.5)  # the queue of the run before
    results: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])["results"]
    return results


def _models(server: Server) -> list[str]:
    names: list[str] = json.loads(server.get("/v2/models")[1])["models"]
    return names
