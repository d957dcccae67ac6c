"""A model in a child process, beside the same one inside the server: what the hop costs.

An ONNX model that copies its input to its output, one thread, one caller. Both are loaded here
and called in turn, in blocks, so that what disturbs the machine disturbs both. The answers are
compared before anything is timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from benchmarks.overhead import WrongAnswer
from benchmarks.results import Goal, Result, Spread
from benchmarks.settings import Settings
from headrace.repository.onnx_writer import chain, write_model
from headrace.runtimes.base import Artifact, InstanceConfig, LoadedModel
from headrace.runtimes.isolated import IsolatedModel
from headrace.runtimes.onnx import OnnxRuntime
from headrace.types import DYNAMIC, TensorSpec

SIZES = (64, 64 * 1024, 1024 * 1024)
"""Bytes in, and as many out."""

GOAL_BYTES, GOAL_US = 64 * 1024, 150.0
BATCHES_PER_S = 2000
WIDTH = 16
"""Elements of FP32 in a row: 64 bytes."""


def run(settings: Settings) -> Iterator[Result]:
    """What starting costs, then one result for each size."""
    artifact = _copying_model(settings.work / "isolation")
    yield _starts(artifact, settings)
    inside = OnnxRuntime().load(artifact, InstanceConfig())
    apart = IsolatedModel("onnxruntime", artifact, InstanceConfig())
    try:
        for size in SIZES:
            yield measure(inside, apart, size, settings)
    finally:
        apart.unload()
        inside.unload()


def measure(inside: LoadedModel, apart: IsolatedModel, size: int, settings: Settings) -> Result:
    """One size: latency as the caller sees it, and the CPU time of both processes."""
    generator = np.random.default_rng(settings.seed)
    array = generator.standard_normal((size // 4 // WIDTH, WIDTH), np.float32)
    for model in (inside, apart):
        if not np.array_equal(model.execute([array])[0], array):
            raise WrongAnswer("the copy is not the original")
    (child,) = apart.process_ids()
    count = settings.scaled(BATCHES_PER_S * settings.seconds, least=50)
    pairs = []
    for number in range(settings.rounds):
        order = (apart, inside) if number % 2 == 0 else (inside, apart)
        seen = {model: _round(model, array, count, child) for model in order}
        pairs.append((seen[apart], seen[inside]))
    more = Spread.of(a.p50_us - b.p50_us for a, b in pairs)
    goal = Goal(f"one batch in a process over one inside, {_bytes(size)} each way", more, GOAL_US)
    return Result(
        benchmark="isolation",
        case=f"{_bytes(size)} in, {_bytes(size)} out",
        figures={
            "p50 us": Spread.of(a.p50_us for a, _ in pairs),
            "inside p50 us": Spread.of(b.p50_us for _, b in pairs),
            "more us": more,
            "cpu us": Spread.of(a.cpu_us for a, _ in pairs),
            "inside cpu us": Spread.of(b.cpu_us for _, b in pairs),
            "more cpu us": Spread.of(a.cpu_us - b.cpu_us for a, b in pairs),
        },
        goals=(msgspec.structs.replace(goal, unit="us"),) if size == GOAL_BYTES else (),
    )


def _starts(artifact: Artifact, settings: Settings) -> Result:
    taken_ms, resident_mb = [], []
    for _ in range(settings.rounds):
        started_s = time.perf_counter()
        model = IsolatedModel("onnxruntime", artifact, InstanceConfig())
        taken_ms.append((time.perf_counter() - started_s) * 1e3)
        (child,) = model.process_ids()
        pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
        resident_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        model.unload()
    figures = {"start ms": Spread.of(taken_ms), "resident MB": Spread.of(resident_mb)}
    return Result(benchmark="isolation", case="a process with ONNX Runtime", figures=dict(figures))


class _Round(msgspec.Struct, frozen=True):
    p50_us: float
    cpu_us: float


def _round(model: LoadedModel, array: np.ndarray, count: int, child: int) -> _Round:
    for _ in range(10):
        model.execute([array])
    taken_ns = []
    before_ns = time.process_time_ns() + _cpu_ns(child)
    for _ in range(count):
        started_ns = time.perf_counter_ns()
        model.execute([array])
        taken_ns.append(time.perf_counter_ns() - started_ns)
    cpu_ns = time.process_time_ns() + _cpu_ns(child) - before_ns
    return _Round(median(taken_ns) / 1e3, cpu_ns / count / 1e3)


def _cpu_ns(process: int) -> int:
    """What all threads of another process have run, in nanoseconds."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def _copying_model(folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    path = write_model(
        folder / "copy.onnx",
        chain([("Identity", [])], "x", "y"),
        inputs=[TensorSpec("x", "FP32", (DYNAMIC, WIDTH))],
        outputs=[TensorSpec("y", "FP32", (DYNAMIC, WIDTH))],
    )
    return Artifact("copy", "1", path, folder, "onnx")


def _bytes(size: int) -> str:
    return f"{size // 1024} KB" if size >= 1024 else f"{size} B"
