"""How long a start takes: ``import headrace``, and a server from its command to readiness.

The bare start beside it is a Python process that imports ONNX Runtime and creates a session
of the same file, until the session is there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import msgspec
import numpy as np

from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import environment, headrace_server
from benchmarks.settings import Settings
from headrace.repository.onnx_writer import chain, write_model
from headrace.types import DYNAMIC, TensorSpec

NAME = "startup"
MAX_IMPORT_MS = 150.0
MAX_RATIO = 1.5

LAYERS, WIDTH = 10, 1536
"""Ten square layers of 1536: 94 MB of weights in one file, as large as a small encoder."""

_IMPORT = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
import headrace
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
heavy = {"numpy", "onnxruntime", "openvino", "starlette", "uvloop", "tokenizers", "sklearn"}
print(wall * 1e3, cpu * 1e3, *sorted(heavy & sys.modules.keys()))
"""

_SESSION = """
import sys, time, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
print(time.process_time(), flush=True)
"""


def run(settings: Settings) -> Iterator[Result]:
    """The import, then starts with an empty cache and with one that was filled before."""
    yield import_headrace(settings)
    file = write_large(settings.work / NAME, settings.seed)
    for runtime in ("onnxruntime", "auto"):
        for first in (True, False):
            yield serve(file, runtime, settings, first=first)


def write_large(folder: Path, seed: int) -> Path:
    """``folder/large.onnx``: a chain of dense layers with random weights, 94 MB."""
    rng = np.random.default_rng(seed)
    scale = np.float32(1 / np.sqrt(WIDTH))
    weights = {
        f"w{layer}": rng.standard_normal((WIDTH, WIDTH), np.float32) * scale
        for layer in range(LAYERS)
    }
    steps: list[tuple[str, list[str]]] = []
    for name in weights:
        steps += [("MatMul", [name]), ("Relu", [])]
    folder.mkdir(parents=True, exist_ok=True)
    return write_model(
        folder / "large.onnx",
        chain(steps, "x", "y"),
        inputs=[TensorSpec("x", "FP32", (DYNAMIC, WIDTH))],
        outputs=[TensorSpec("y", "FP32", (DYNAMIC, WIDTH))],
        initializers=weights,
    )


class Start(msgspec.Struct, frozen=True):
    """One start, until ready."""

    wall_s: float
    cpu_s: float


def import_headrace(settings: Settings) -> Result:
    """``import headrace`` in fresh processes."""
    walls, cpus, heavy = [], [], set[str]()
    for number in range(settings.rounds + 1):
        words = _output([sys.executable, "-c", _IMPORT]).split()
        if number:  # the first compiles
            walls.append(float(words[0]))
            cpus.append(float(words[1]))
            heavy.update(words[2:])
    wall = Spread.of(walls)
    return Result(
        benchmark=NAME,
        case="import headrace",
        figures={
            "ms": wall,
            "cpu ms": Spread.of(cpus),
            "pulls in": ", ".join(sorted(heavy)) or "nothing",
        },
        goals=(
            Goal("import headrace", wall, MAX_IMPORT_MS, unit="ms"),
            Goal("runtimes and web libraries it pulls in", Spread.of([len(heavy)]), 0, unit=""),
        ),
    )


def serve(file: Path, runtime: str, settings: Settings, *, first: bool) -> Result:
    """``first``: nothing was measured before, so the model is measured before it is ready."""
    ours, bare = [], []
    work = settings.work / NAME
    start_server(file, runtime, work)  # compiles modules, and fills the cache
    for number in range(settings.rounds):
        for turn in (0, 1) if number % 2 else (1, 0):
            if turn:
                bare.append(start_bare(file))
                continue
            if first:
                rmtree(work / "cache", ignore_errors=True)
            ours.append(start_server(file, runtime, work))
    ratio = Spread.of(a.wall_s / b.wall_s for a, b in zip(ours, bare, strict=True))
    case = f"serve, runtime {runtime}, {'first' if first else 'later'} start"
    # The first start with "auto" loads and measures every runtime there is: worth its time.
    bound = not (first and runtime == "auto")
    return Result(
        benchmark=NAME,
        case=case,
        figures={
            "ms": Spread.of(each.wall_s * 1e3 for each in ours),
            "bare ms": Spread.of(each.wall_s * 1e3 for each in bare),
            "ratio": ratio,
            "cpu ms": Spread.of(each.cpu_s * 1e3 for each in ours),
            "bare cpu ms": Spread.of(each.cpu_s * 1e3 for each in bare),
            "file MB": file.stat().st_size / 1e6,
        },
        goals=(Goal(f"ready, over a bare session: {case}", ratio, MAX_RATIO),) if bound else (),
    )


def start_server(file: Path, runtime: str, work: Path) -> Start:
    """From ``headrace serve`` until it says that it is ready."""
    started_s = time.monotonic()
    with headrace_server(file, work, "--runtime", runtime) as server:
        return Start(time.monotonic() - started_s, server.cpu_s())


def start_bare(file: Path) -> Start:
    """From the start of Python until the session is there."""
    started_s = time.monotonic()
    command = [sys.executable, "-c", _SESSION, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        cpu_s = float(process.stdout.readline())
        return Start(time.monotonic() - started_s, cpu_s)


def _output(command: list[str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment()
    ).stdout
