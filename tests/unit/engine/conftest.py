"""An engine on a real loop, with models whose every execution the test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from headrace.config import ModelConfig
from headrace.engine.engine import Engine
from headrace.engine.served import Profile, ServedModel
from headrace.runtimes.base import ShapePolicy
from headrace.telemetry.instruments import Instrument
from headrace.types import InferenceRequest, ModelMetadata, Tensor, TensorSpec

X = TensorSpec("x", "FP32", (-1, 2))
Y = TensorSpec("y", "FP32", (-1, 2))


class ScriptedModel:
    """Doubles its input, unless told otherwise; remembers every batch; can be held back."""

    def __init__(self, inputs: Sequence[TensorSpec] = (X,)) -> None:
        self.inputs = tuple(inputs)
        self.outputs: tuple[TensorSpec, ...] = (Y,)
        self.concurrency = 1
        self.shape_policy = ShapePolicy()
        self.batches: list[list[np.ndarray | None]] = []
        self.compute: Callable[..., Sequence[np.ndarray]] = lambda x: [x * 2]
        self.may_run = threading.Event()
        self.may_run.set()
        self.entered = threading.Semaphore(0)
        self.unloaded = False

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        self.batches.append(list(inputs))
        self.entered.release()
        assert self.may_run.wait(30)
        return self.compute(*inputs)

    def unload(self) -> None:
        self.unloaded = True


class Watcher(Instrument):
    """Writes down how every request ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.records = []
        self.batches = []

    def requests_completed(self, records, ended_ns) -> None:
        self.ends += ["complete"] * len(records)
        self.records += records

    def request_failed(self, record, outcome, reason, ended_ns) -> None:
        self.ends.append(f"{outcome}:{reason}")

    def batch_executed(self, record) -> None:
        self.batches.append(record)


class Bench:
    """One engine and what the tests need around it."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.engine = Engine(instances=2, preprocess_threads=2, instrument=self.watcher)

    def serve(self, model, *, name="m", version="1", task=None, profile=None, **config):
        served = ServedModel(
            metadata=ModelMetadata(
                name,
                (version,),
                "test",
                model.inputs if task is None else task.inputs,
                model.outputs if task is None else task.outputs,
            ),
            version=version,
            loaded=model,
            task=task,
            runtime="test",
            config=ModelConfig(**config),
        )
        self.engine.add_model(served, profile or Profile(max_rows=8, batchable=True))
        return served


def request(*rows: Sequence[float], name: str = "m", **fields) -> InferenceRequest:
    data = np.array(rows, dtype=np.float32)
    return InferenceRequest(name, [Tensor("x", "FP32", data.shape, data)], **fields)


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    bench.engine.close()
