"""The Python runtime passes the kit, inside the server and in child processes."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.runtimes.base import Artifact
from headrace.runtimes.python import PythonRuntime
from headrace.testing import ModelCase, RuntimeKit
from headrace.types import TensorSpec

DOUBLE = """
from typing import Annotated
import numpy as np

def predict(x: Annotated[np.ndarray, "FP32[N,4]"]) -> Annotated[np.ndarray, "FP32[N,4]"]:
    return x * 2
"""
DESCRIBE = """
from typing import Annotated, NamedTuple
import numpy as np

class Described(NamedTuple):
    total: Annotated[np.ndarray, "FP64[N]"]
    label: list[str]

class Describer:
    def load(self):
        self.unit = "g"

    def predict(
        self, weights: Annotated[np.ndarray, "FP64[N,L]"], label: list[str]
    ) -> Described:
        return Described(weights.sum(axis=1), [f"{one} in {self.unit}" for one in label])
"""
OPTIONAL = """
from typing import Annotated
import numpy as np

def predict(x: list[int], offset: list[int] | None = None) -> list[int]:
    return [a + b for a, b in zip(x, offset or [100] * len(x))]
"""
IDENTITY = "def predict(x): return x"


class InThreads(RuntimeKit):
    isolation = "thread"
    identities: tuple[str, ...] | None = None
    """Datatypes to try; None: all."""

    def make_runtime(self):
        return PythonRuntime()

    def artifact(self, folder, name, source, **options: Any):
        (folder / name).mkdir(exist_ok=True)
        path = folder / name / "model.py"
        path.write_text(source)
        options.setdefault("isolation", self.isolation)
        return Artifact(name, "1", path, path.parent, "python", options=options)

    def cases(self, folder):
        double = ModelCase(
            artifact=self.artifact(folder, "double", DOUBLE),
            make_inputs=lambda rows, rng: [rng.random((rows, 4), np.float32)],
            expected=lambda inputs: [inputs[0] * 2],
            inputs=(TensorSpec("x", "FP32", (-1, 4)),),
            outputs=(TensorSpec("output", "FP32", (-1, 4)),),
        )
        describe = ModelCase(
            artifact=self.artifact(folder, "describe", DESCRIBE),
            make_inputs=lambda rows, rng: [
                rng.random((rows, rng.integers(1, 9))),
                words(rows, rng),
            ],
            expected=lambda inputs: [
                inputs[0].sum(axis=1),
                np.array([one + b" in g" for one in inputs[1]], object),
            ],
            inputs=(TensorSpec("weights", "FP64", (-1, -1)), TensorSpec("label", "BYTES", (-1,))),
            outputs=(TensorSpec("total", "FP64", (-1,)), TensorSpec("label", "BYTES", (-1,))),
        )
        return [double, describe]

    def broken_artifacts(self, folder):
        nothing = folder / "nothing"
        return [
            Artifact("nothing", "1", nothing / "model.py", nothing, "python"),
            self.artifact(folder, "garbage", "\x00\x01 no python \x7f"),
            self.artifact(folder, "cut", DOUBLE[:-20]),
            self.artifact(folder, "no_hints", IDENTITY),
            self.artifact(folder, "no_model", "x = 1"),
            self.artifact(folder, "raises", "raise ValueError('of two\\nlines')"),
            self.artifact(folder, "no_library", "import no_such_library"),
            self.artifact(folder, "no_load", DESCRIBE.replace('"g"', "self.missing")),
            self.artifact(folder, "no_option", DOUBLE, treads=4),
            self.artifact(folder, "no_entry", DOUBLE, entry="Model"),
            self.artifact(folder, "no_isolation", DOUBLE, isolation="container"),
        ]

    def identity_case(self, folder, datatype):
        if self.identities is not None and datatype not in self.identities:
            return None
        spec = {"datatype": datatype, "shape": [-1, 4]}
        return self.artifact(
            folder,
            "identity",
            IDENTITY,
            inputs=[{"name": "x", **spec}],
            outputs=[{"name": "y", **spec}],
        )

    def optional_case(self, folder):
        return ModelCase(
            artifact=self.artifact(folder, "optional", OPTIONAL),
            make_inputs=lambda rows, rng: list(rng.integers(-1000, 1000, (2, rows))),
            expected=lambda inputs: [inputs[0] + (100 if inputs[1] is None else inputs[1])],
            inputs=(TensorSpec("x", "INT64", (-1,)), TensorSpec("offset", "INT64", (-1,), True)),
            outputs=(TensorSpec("output", "INT64", (-1,)),),
        )


class TestPythonInThreads(InThreads):
    pass


class TestPythonInProcesses(InThreads):
    isolation = "process"
    concurrency = 2
    cycles = 3
    # One of each way through shared memory; the transport has a test of its own for the rest.
    identities = ("BF16", "BYTES")


def words(rows, rng):
    array = np.empty(rows, object)
    array[:] = [rng.bytes(3).hex().encode() for _ in range(rows)]
    return array
