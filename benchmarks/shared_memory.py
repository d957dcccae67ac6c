"""Tensors of 4 MB: handed over in shared memory, beside sent over HTTP with the binary extension.

An ONNX model that copies its input to its output, so both ways of the 4 MB count. One client on
one connection, in turn, over tritonclient; the server's CPU time per request is what counts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm

from benchmarks.overhead import WrongAnswer
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings
from headrace.repository.onnx_writer import chain, write_model
from headrace.types import DYNAMIC, TensorSpec

SIZE = 1024 * 1024
"""Elements of FP32: 4 MB."""

REQUESTS_PER_S = 50
MIN_RATIO = 2.0

_Call = Callable[[], None]


def run(settings: Settings) -> Iterator[Result]:
    """One result."""
    work = settings.work / "shared_memory"
    with headrace_server(_identity(work), work, "--runtime", "onnxruntime") as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        array = np.random.default_rng(settings.seed).standard_normal((1, SIZE), np.float32)
        regions = [_Region(client, array.nbytes) for _ in range(2)]
        try:
            shared = _over_shared_memory(client, array, *regions)
            over_http = _over_http(client, array)
            yield _compared(server, shared, over_http, settings)
        finally:
            for region in regions:
                region.close()
            client.close()


def _compared(server: Server, shared: _Call, over_http: _Call, settings: Settings) -> Result:
    count = REQUESTS_PER_S * settings.seconds
    pairs = []
    for number in range(settings.rounds):
        order = (shared, over_http) if number % 2 == 0 else (over_http, shared)
        seen = {call: _round(server, call, count) for call in order}
        pairs.append((seen[shared], seen[over_http]))
    ratio = Spread.of(its.cpu_us / mine.cpu_us for mine, its in pairs)
    what = "4 MB in, 4 MB out"
    return Result(
        benchmark="shared_memory",
        case=what,
        figures={
            "cpu us": Spread.of(mine.cpu_us for mine, _ in pairs),
            "http cpu us": Spread.of(its.cpu_us for _, its in pairs),
            "http / shared memory": ratio,
            "ms": Spread.of(mine.taken_us / 1e3 for mine, _ in pairs),
            "http ms": Spread.of(its.taken_us / 1e3 for _, its in pairs),
        },
        goals=(
            Goal(
                f"CPU time, binary HTTP over shared memory: {what}", ratio, MIN_RATIO, at_least=True
            ),
        ),
    )


class _Round:
    def __init__(self, cpu_us: float, taken_us: float) -> None:
        self.cpu_us = cpu_us
        self.taken_us = taken_us


def _round(server: Server, call: _Call, count: int) -> _Round:
    call()
    before_s, started_s = server.cpu_s(), time.perf_counter()
    for _ in range(count):
        call()
    taken_s = time.perf_counter() - started_s
    return _Round((server.cpu_s() - before_s) / count * 1e6, taken_s / count * 1e6)


class _Region:
    """Shared memory of our own, known to the server."""

    def __init__(self, client: triton.InferenceServerClient, size_bytes: int) -> None:
        self.name = f"headrace-{uuid.uuid4().hex[:8]}"
        self.size_bytes = size_bytes
        self.handle = shm.create_shared_memory_region(self.name, f"/{self.name}", size_bytes)
        self._client = client
        client.register_system_shared_memory(self.name, f"/{self.name}", size_bytes)

    def close(self) -> None:
        self._client.unregister_system_shared_memory(self.name)
        shm.destroy_shared_memory_region(self.handle)


def _over_shared_memory(
    client: triton.InferenceServerClient, array: np.ndarray, given: _Region, taken: _Region
) -> _Call:
    shm.set_shared_memory_region(given.handle, [array])
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_shared_memory(given.name, given.size_bytes)
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory(taken.name, taken.size_bytes)

    def call() -> None:
        client.infer("copy", [tensor], outputs=[output])

    call()
    _check(shm.get_contents_as_numpy(taken.handle, np.float32, array.shape), array)
    return call


def _over_http(client: triton.InferenceServerClient, array: np.ndarray) -> _Call:
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    output = triton.InferRequestedOutput("y", binary_data=True)

    def call() -> None:
        client.infer("copy", [tensor], outputs=[output])

    _check(client.infer("copy", [tensor], outputs=[output]).as_numpy("y"), array)
    return call


def _check(answer: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(answer, expected):
        raise WrongAnswer("the copy is not the original")


def _identity(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    spec = (DYNAMIC, SIZE)
    return write_model(
        folder / "copy.onnx",
        chain([("Identity", [])], "x", "y"),
        inputs=[TensorSpec("x", "FP32", spec)],
        outputs=[TensorSpec("y", "FP32", spec)],
    )
