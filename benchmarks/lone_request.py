"""What a lone request waits for beside the model: one connection, one request at a time.

Client-observed latency minus the time of the bare model call in a quiet loop. Two trips
through the loopback interface and two wake-ups are in it; the floor server shows how much
of it no server could avoid.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import mlp
from benchmarks.overhead import Case, bare_call_us, interleaved, pair_of_servers
from benchmarks.results import Goal, Result, Spread
from benchmarks.settings import Settings

MAX_ADDED_US = 100.0


def run(settings: Settings) -> Iterator[Result]:
    """One result for JSON and one for binary."""
    for case in (Case("mlp", "json"), Case("mlp", "binary")):
        yield measure(case, settings)


def measure(case: Case, settings: Settings) -> Result:
    """Headrace, the floor and the bare call."""
    with pair_of_servers(case, settings) as (ours, floor, generator):
        requests = mlp.make_requests(case.wire, settings.seed)
        bare_us = bare_call_us(settings.work / "overhead" / "mlp.onnx", requests)
        pairs = interleaved(ours, floor, generator, 1, settings)
    added = Spread.of(mine.p50_us - bare_us for mine, _ in pairs)
    what = f"mlp {case.wire}, 1 connection"
    return Result(
        benchmark="lone_request",
        case=what,
        figures={
            "bare call us": bare_us,
            "p50 us": Spread.of(mine.p50_us for mine, _ in pairs),
            "floor p50 us": Spread.of(its.p50_us for _, its in pairs),
            "over the bare call us": added,
            "over the floor us": Spread.of(a.p50_us - b.p50_us for a, b in pairs),
            "p99 us": Spread.of(mine.p99_us for mine, _ in pairs),
        },
        goals=(Goal(f"median latency over the bare call: {what}", added, MAX_ADDED_US, "us"),),
    )
