"""Loads models written for Triton's Python backend, and asks them."""

from __future__ import annotations

import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from headrace.config import ModelConfig, TensorConfig
from headrace.runtimes.base import Artifact, InstanceConfig, ModelRequest
from headrace.runtimes.python import PythonRuntime
from headrace.types import DTYPE_OF

HEADER = """\
import asyncio, json, os, signal, sys, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils
"""

DATATYPES = tuple(DTYPE_OF)

# Runs the code that the first request brings; ``result`` is what execute returns.
OBEDIENT = """
class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.kept = {}

    def execute(self, requests):
        code = pb_utils.get_input_tensor_by_name(requests[0], "CODE").as_numpy()[0].decode()
        scope = {"requests": requests, "self": self, "say": say, **globals()}
        exec(code, scope)
        return scope.get("result")

def say(*texts):
    array = np.array([str(text).encode() for text in texts], dtype=object)
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT_BYTES", array)])
"""


def tensors(kind: str, *more: TensorConfig) -> tuple[TensorConfig, ...]:
    """One optional tensor of every datatype and any length."""
    return (
        *more,
        *(
            TensorConfig(name=f"{kind}_{datatype}", datatype=datatype, shape=(-1,), optional=True)
            for datatype in DATATYPES
        ),
    )


OBEDIENT_CONFIG = {
    "inputs": tensors("IN", TensorConfig(name="CODE", datatype="BYTES", shape=(1,))),
    "outputs": tensors("OUT"),
    "triton_config": {"max_batch_size": 0},
}


def text(value: str) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = textwrap.dedent(value).encode()
    return array


def write_model(folder: Path, source: str, version: str = "1") -> Path:
    path = folder / version / "model.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + textwrap.dedent(source))
    return path


@contextmanager
def loaded(folder: Path, source: str, *, concurrency: int = 1, options=None, **config):
    path = write_model(folder, source)
    decoupled = config.pop("decoupled", False)
    if decoupled:
        config.setdefault("triton_config", {"max_batch_size": 0})
        config["triton_config"] = {
            **config["triton_config"],
            "model_transaction_policy": {"decoupled": True},
        }
    artifact = Artifact(
        "m",
        "1",
        path,
        path.parent,
        "python",
        options=options or {},
        config=ModelConfig(decoupled=decoupled, **config),
    )
    model = PythonRuntime().load(artifact, InstanceConfig(1, concurrency))
    try:
        yield model
    finally:
        model.unload()


class Answers:
    """What was emitted, by key."""

    def __init__(self) -> None:
        self.by_key: dict[int, list[object]] = {}
        self._over: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, key, answer, final) -> None:
        with self._changed:
            assert key not in self._over, "after the final answer"
            self.by_key.setdefault(key, []).append(answer)
            if final:
                self._over.add(key)
            self._changed.notify_all()

    def ended(self, *keys: int) -> None:
        """Until these have had their last answer."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._over.issuperset(keys), 30)

    def told(self, key: int, count: int = 1) -> None:
        """Until so many answers have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.by_key.get(key, ())) >= count, 30)

    def is_over(self, key: int) -> bool:
        with self._changed:
            return key in self._over


def request(model, key: int = 1, *, fields=None, **inputs) -> ModelRequest:
    """``inputs`` by name; the others are left out."""
    arrays = [inputs.pop(spec.name, None) for spec in model.inputs]
    assert not inputs
    return ModelRequest(key, arrays, **(fields or {}))


class Obedient:
    """The model of OBEDIENT, one request at a time unless told otherwise."""

    def __init__(self, model) -> None:
        self.model = model
        self.index = {spec.name: i for i, spec in enumerate(model.outputs)}
        self._next = 0

    def requests(self, code: str, count: int = 1, fields=None, **inputs) -> list[ModelRequest]:
        made = []
        for _ in range(count):
            self._next += 1
            made.append(request(self.model, self._next, CODE=text(code), fields=fields, **inputs))
        return made

    def run(self, code: str, count: int = 1, fields=None, **inputs) -> list[list[object]]:
        """All answers to each of ``count`` equal requests of one batch."""
        answers = Answers()
        requests = self.requests(code, count, fields, **inputs)
        self.model.execute_requests(requests, answers)
        return [answers.by_key.get(each.key, []) for each in requests]

    def sole(self, code: str, fields=None, **inputs):
        """The one answer to one request."""
        ((answer,),) = self.run(code, 1, fields, **inputs)
        return answer

    def said(self, code: str, fields=None, **inputs) -> list[str]:
        """The texts of ``say``."""
        return self.texts(self.sole(code, fields, **inputs))

    def texts(self, answer) -> list[str]:
        assert not isinstance(answer, Exception), answer
        return [each.decode() for each in answer[self.index["OUT_BYTES"]]]
