"""Whether the server's memory stays where it is: resident size over many requests.

Requests come in rounds; after each the resident memory of the server's processes is read.
The first quarter is warm-up (allocators, caches, the largest batch). A line is fitted
through the rest, and what it rises by in as many requests as were sent is the growth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from benchmarks import mlp
from benchmarks.load import Generator
from benchmarks.minilm import Unavailable, get_minilm
from benchmarks.results import Goal, Result, Spread
from benchmarks.served_texts import serve_texts
from benchmarks.servers import headrace_server
from benchmarks.settings import Settings

NAME = "memory"
REQUESTS = 200_000
TEXTS_A_ROUND, TEXT_ROUNDS = 400, 20
MIN_ROUNDS = 8
WARM_UP_SHARE = 0.25
MAX_GROWTH_PERCENT = {"mlp": 1.0, "texts": 5.0}
"""Of the resident size. Batches of texts are megabytes of ever new sizes, which the C library
gives back to the system now and then: the level moves by some per cent from round to round."""

_MIB = 1 << 20


class Sample(msgspec.Struct, frozen=True):
    """Resident memory after so many requests."""

    requests: int
    resident_bytes: int


def run(settings: Settings) -> Iterator[Result]:
    """The MLP, half JSON and half binary, then texts of varying lengths."""
    yield result_of("mlp, 16 connections", list(mlp_samples(settings)))
    try:
        texts = settings.scaled(TEXTS_A_ROUND, 64)
        samples = list(text_samples(settings, TEXT_ROUNDS, texts))
    except Unavailable as error:
        yield Result(benchmark=NAME, case="texts", skipped=str(error))
        return
    yield result_of(f"texts, 64 connections, {settings.runtime}", samples)


def growth_bytes(samples: Sequence[Sample]) -> float:
    """Of the fitted line over all of the requests, warm-up left out."""
    rest = samples[int(len(samples) * WARM_UP_SHARE) :]
    requests = [sample.requests for sample in rest]
    slope = np.polyfit(requests, [sample.resident_bytes for sample in rest], 1)[0]
    return float(slope) * samples[-1].requests


def mlp_samples(settings: Settings) -> Iterator[Sample]:
    """JSON and binary in turn, every round over connections of its own."""
    work = settings.work / NAME
    file = mlp.write_mlp(work, settings.seed)
    wanted = settings.scaled(REQUESTS)
    generators = [
        Generator(mlp.make_requests(wire, settings.seed), work / wire)
        for wire in (mlp.JSON, mlp.BINARY)
    ]
    with headrace_server(file, work, "--runtime", "onnxruntime") as server:
        sent = number = 0
        while sent < wanted or number < MIN_ROUNDS:
            sent += generators[number % 2].run(server, 16, 1).requests
            number += 1
            yield Sample(sent, server.memory_bytes())


def text_samples(settings: Settings, rounds: int, texts: int) -> Iterator[Sample]:
    """Other texts in every round."""
    work = settings.work / NAME
    minilm = get_minilm(settings, work / "cache")
    flags = ("--runtime", settings.runtime, "--name", "minilm")
    with headrace_server(minilm.folder, work, *flags) as server:
        for number in range(rounds):
            serve_texts(server, minilm.texts(texts, settings.seed + number), 64, work)
            yield Sample((number + 1) * texts, server.memory_bytes())


def result_of(case: str, samples: Sequence[Sample]) -> Result:
    """The row of these samples."""
    grown = growth_bytes(samples)
    end = samples[-1]
    bound = MAX_GROWTH_PERCENT[case.partition(",")[0]]
    percent = Spread.of([grown / end.resident_bytes * 100])
    return Result(
        benchmark=NAME,
        case=case,
        figures={
            "requests": end.requests,
            "first MiB": samples[0].resident_bytes / _MIB,
            "last MiB": end.resident_bytes / _MIB,
            "growth MiB": grown / _MIB,
            "bytes/request": grown / end.requests,
            "samples": len(samples),
        },
        goals=(Goal(f"growth of resident memory, {case}", percent, bound, unit="%"),),
    )
