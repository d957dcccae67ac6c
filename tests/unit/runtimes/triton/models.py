"""Loads a Triton model for a test; and one that does what each request says."""

from __future__ import annotations

import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from headrace.config import ModelConfig, TensorConfig
from headrace.runtimes.base import Artifact, InstanceConfig, ModelRequest
from headrace.runtimes.python import PythonRuntime

HEADER = """\
import asyncio, json, os, threading
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def given(request, name="IN"):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

def said(value, name="OUT"):
    array = np.array([value if isinstance(value, bytes) else str(value)], dtype=object)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array)])

"""

SCRIPT = """
class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.kept = {}

    def execute(self, requests):
        scope = dict(globals(), self=self)
        exec(given(requests[0])[0].decode(), scope)
        return scope["execute"](requests)
"""
"""Does what the first request of its batch says: Python that defines ``execute(requests)``."""


def tensor_config(name: str, datatype: str = "BYTES", shape: tuple[int, ...] = (-1,), **fields):
    return TensorConfig(name=name, datatype=datatype, shape=shape, **fields)


def write(folder: Path, source: str) -> Path:
    """Puts it where Triton's repository would have it."""
    path = folder / "1" / "model.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + textwrap.dedent(source).strip("\n") + "\n")
    return path


IN, OUT = tensor_config("IN"), tensor_config("OUT")


def load(folder: Path, source: str, *, inputs=(IN,), outputs=(OUT,), instances=1, **config):
    path = write(folder, source)
    options = {"restart_delay_s": 0.01}
    whole = ModelConfig(inputs=tuple(inputs), outputs=tuple(outputs), **config)
    artifact = Artifact("m", "1", path, path.parent, "python", options=options, config=whole)
    return PythonRuntime().load(artifact, InstanceConfig(concurrency=instances))


@contextmanager
def loaded(folder: Path, source: str, **how):
    model = load(folder, source, **how)
    try:
        yield model
    finally:
        model.unload()


def texts(*values: str | bytes) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


class Answers:
    """What was emitted, in order, for every key."""

    def __init__(self) -> None:
        self.of: dict[int, list] = {}
        self.ended: dict[int, threading.Event] = {}
        self._all: SimpleQueue = SimpleQueue()

    def emit(self, key, answer, final) -> None:
        self.of.setdefault(key, []).append((answer, final))
        if final:
            self.ended.setdefault(key, threading.Event()).set()
        self._all.put((key, answer, final))

    def next(self):
        """The next one of any key, waited for."""
        return self._all.get(timeout=30)

    def texts(self, key: int) -> list:
        """The first output of each answer as text; errors and ends as they are."""
        return [
            answer[0][0].decode() if isinstance(answer, list) else answer
            for answer, _ in self.of.get(key, [])
        ]


def request(key: int, code: str, **fields) -> ModelRequest:
    return ModelRequest(key, [texts(textwrap.dedent(code))], **fields)


def run(model, code: str = "", *, requests=None) -> Answers:
    """Runs one batch: of one request with this code, unless others are given."""
    answers = Answers()
    model.execute_requests(requests or [request(1, code)], answers.emit)
    return answers


def tell(model, expression: str, **fields) -> str:
    """What an expression gives in the model's process; ``request`` is the request itself."""
    code = f"def execute(requests):\n    request, = requests\n    return [said({expression})]\n"
    (text,) = run(model, requests=[request(1, code, **fields)]).texts(1)
    if isinstance(text, Exception):
        raise text
    return text
