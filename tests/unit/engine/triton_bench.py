"""An engine with Triton models, each loaded as a server loads it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from headrace.config import ModelConfig, TensorConfig
from headrace.engine.engine import Engine
from headrace.engine.inflight import Ticket
from headrace.engine.models import ModelManager
from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument
from headrace.types import InferenceRequest, InferenceResponse, Tensor
from tests.unit.runtimes.triton.models import write

IN = TensorConfig(name="IN", datatype="INT32", shape=(-1,))
OUT = TensorConfig(name="OUT", datatype="INT32", shape=(-1,))

MODEL = """
def number(request):
    return int(given(request, "IN")[0])

def numbers(*values):
    array = np.array(values, np.int32)
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])

def asked(model, *values, outputs=("OUT",)):
    tensor = pb_utils.Tensor("IN", np.array(values, np.int32))
    return pb_utils.InferenceRequest(
        model_name=model, inputs=[tensor], requested_output_names=list(outputs)
    )

def outcome(response):
    '''The values of a response; -1 for an error, which is printed.'''
    if response.has_error():
        print("ERROR", response.error().message(), flush=True)
        return [-1]
    return [v for t in response.output_tensors() for v in t.as_numpy().tolist()]

class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.kept = {}

    def execute(self, requests):
"""


def source(execute: str) -> str:
    """A model with this body of ``execute(self, requests)``."""
    lines = execute.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    return MODEL.lstrip("\n") + "".join(f"        {line[margin:]}\n" for line in lines)


class Stream:
    """A reply that keeps all answers."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()

    def part(self, response: InferenceResponse) -> None:
        self._add(response)

    def complete(self, response: InferenceResponse, _record: object) -> None:
        self._add(response)
        self.ended.set_result(None)

    def fail(self, error: HeadraceError) -> None:
        self.answers.append(error)
        self.came.set()
        self.ended.set_result(None)

    def _add(self, response: InferenceResponse) -> None:
        self.answers.append([v for t in response.outputs for v in t.data.tolist()])
        self.came.set()

    async def all(self) -> list[Any]:
        """Every answer, once the last one is there."""
        await asyncio.wait_for(self.ended, 30)
        return self.answers


class TritonBench:
    """An engine with two common instances."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine(instances=2, preprocess_threads=1)
        self.manager = ModelManager(
            self.engine, cache_dir=folder / "cache", instrument=Instrument()
        )

    async def load(
        self, name: str, execute: str, *, inputs=(IN,), outputs=(OUT,), **config: Any
    ) -> ServedModel:
        """The first axis of its tensors counts elements, not rows: max_batch_size is 0."""
        path = write(self.folder / name, source(execute))
        dims = {"data_type": "TYPE_INT32", "dims": [-1]}
        config.setdefault(
            "triton_config",
            {
                "name": name,
                "max_batch_size": 0,
                "input": [{"name": each.name, **dims} for each in inputs],
                "output": [{"name": each.name, **dims} for each in outputs],
                "model_transaction_policy": {"decoupled": config.get("decoupled", False)},
            },
        )
        whole = ModelConfig(
            runtime="python",
            task="tensor",
            inputs=inputs,
            outputs=outputs,
            runtime_options={"restart_delay_s": 0.01},
            **config,
        )
        return await self.manager.load(
            ModelSource(
                name,
                "1",
                "python",
                path,
                path.parent,
                task="tensor",
                config=whole,
                may_run_code=True,
            )
        )

    def request(self, name: str, *values: int, **fields: Any) -> InferenceRequest:
        data = np.array(values, np.int32)
        return InferenceRequest(name, [Tensor("IN", "INT32", data.shape, data)], **fields)

    async def ask(self, name: str, *values: int, **fields: Any) -> list[int]:
        answer = await self.engine.infer(self.request(name, *values, **fields))
        return [v for t in answer.outputs for v in t.data.tolist()]

    def stream(self, name: str, *values: int, **fields: Any) -> tuple[Stream, Ticket]:
        stream = Stream()
        return stream, self.engine.submit(self.request(name, *values, **fields), stream)

    async def idle(self, served: ServedModel) -> None:
        """Until the batches are back whose requests have all been answered."""
        idle = asyncio.Event()
        served.on_idle = idle.set
        if served.busy:
            await asyncio.wait_for(idle.wait(), 30)
        served.on_idle = None

    async def close(self) -> None:
        self.engine.close()
        await self.manager.close()
