"""An engine with one stateful model, loaded as a server loads it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np

from headrace.config import ControlConfig, ModelConfig, SequenceConfig, StateConfig
from headrace.engine.engine import Engine
from headrace.engine.limits import load_of
from headrace.engine.models import ModelManager
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument
from headrace.testing import onnx_models
from headrace.testing.clock import ManualClock
from headrace.types import InferenceRequest, Tensor

STATE = StateConfig(input_name="STATE_IN", output_name="STATE_OUT", datatype="INT32", shape=(-1, 1))


def control(kind: str, datatype: str = "INT32", name: str = "") -> ControlConfig:
    return ControlConfig(name=name or kind.upper(), kind=kind, datatype=datatype)


START = control("start")


class Watcher(Instrument):
    def __init__(self) -> None:
        self.batches = []
        self.ends = []
        self.records = []

    def batch_executed(self, record) -> None:
        self.batches.append(record.requests)

    def requests_completed(self, records, ended_ns) -> None:
        self.ends += ["complete"] * len(records)
        self.records += records

    def request_failed(self, record, outcome, reason, ended_ns) -> None:
        self.ends.append(f"{outcome}:{reason}")


class SequenceBench:
    """An engine that loads models as a server does."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.watcher = Watcher()
        self.clock = ManualClock()
        self.engine = Engine(
            instances=3, preprocess_threads=1, instrument=self.watcher, clock=self.clock
        )
        self.manager = ModelManager(
            self.engine, cache_dir=folder / "cache", instrument=Instrument()
        )

    async def load(self, content: bytes | str, sequence: SequenceConfig, **config):
        file = "model.onnx" if isinstance(content, bytes) else "model.py"
        path = self.folder / "1" / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        runtime = "onnxruntime" if isinstance(content, bytes) else "python"
        source = ModelSource(
            "m",
            "1",
            "onnx" if isinstance(content, bytes) else "python",
            path,
            path.parent,
            task=config.get("task", "tensor"),
            config=ModelConfig(runtime=runtime, sequence=sequence, **config),
            may_run_code=True,
        )
        return await self.manager.load(source)

    def request(self, sequence, values, flags="", *, name="INPUT", datatype="INT32", **fields):
        dtype = {"INT32": np.int32, "FP32": np.float32, "INT64": np.int64}[datatype]
        data = np.array(values, dtype)
        return InferenceRequest(
            "m",
            [Tensor(name, datatype, data.shape, data)],
            sequence_id=sequence,
            sequence_start="s" in flags,
            sequence_end="e" in flags,
            **fields,
        )

    async def step(self, sequence, value: int, flags: str = "", **fields) -> int:
        """One step of a model with an INPUT [1,1]; its OUTPUT."""
        answer = await self.engine.infer(self.request(sequence, [[value]], flags, **fields))
        return int(answer.outputs[0].data.reshape(-1)[0])

    async def add_up(self, sequence, values: Sequence[int]) -> list[int]:
        """All steps of a sequence, one after another."""
        last = len(values) - 1
        return [
            await self.step(sequence, value, "s" * (i == 0) + "e" * (i == last))
            for i, value in enumerate(values)
        ]

    def waiting_and_running(self):
        queue = load_of(self.engine.catalog.resolve("m"), self.engine.statistics())
        return queue.waiting, queue.running


ACCUMULATOR = onnx_models.accumulator()


def implicit(**fields) -> SequenceConfig:
    return SequenceConfig(**{"controls": (START,), "states": (STATE,), **fields})


class Held:
    """An execute that waits."""

    def __init__(self, execute) -> None:
        self._execute = execute
        self._open = threading.Event()
        self._entered = threading.Semaphore(0)

    def __call__(self, inputs):
        self._entered.release()
        assert self._open.wait(30)
        return self._execute(inputs)

    async def entered(self, times=1):
        for _ in range(times):
            assert await asyncio.to_thread(self._entered.acquire, timeout=30)

    def release(self):
        self._open.set()

    def hold(self):
        self._open.clear()
