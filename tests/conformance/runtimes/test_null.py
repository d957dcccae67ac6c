from __future__ import annotations

import numpy as np

from headrace.runtimes.base import Artifact
from headrace.runtimes.null import NullRuntime
from headrace.testing import ModelCase, RuntimeKit
from headrace.types import TensorSpec


class TestNullRuntime(RuntimeKit):
    def make_runtime(self):
        return NullRuntime()

    def cases(self, folder):
        declared = {
            "inputs": [
                {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
                {"name": "hint", "datatype": "BYTES", "shape": [-1], "optional": True},
            ],
            "outputs": [
                {"name": "scores", "datatype": "FP16", "shape": [-1, -1, 3]},
                {"name": "label", "datatype": "BYTES", "shape": [-1, 1]},
            ],
        }
        return [
            ModelCase(
                artifact=artifact(folder, "default"),
                make_inputs=lambda rows, rng: [rng.random((rows, 16), np.float32)],
                expected=lambda inputs: [np.zeros((len(inputs[0]), 2), np.float32)],
                inputs=(TensorSpec("x", "FP32", (-1, 16)),),
                outputs=(TensorSpec("y", "FP32", (-1, 2)),),
            ),
            ModelCase(
                artifact=artifact(folder, "declared", **declared),
                make_inputs=lambda rows, rng: [rng.integers(0, 9, (rows, 5)), None],
                expected=lambda inputs: [
                    np.zeros((*inputs[0].shape, 3), np.float16),
                    np.full((len(inputs[0]), 1), b"", dtype=object),
                ],
                inputs=(
                    TensorSpec("ids", "INT64", (-1, -1)),
                    TensorSpec("hint", "BYTES", (-1,), optional=True),
                ),
                outputs=(
                    TensorSpec("scores", "FP16", (-1, -1, 3)),
                    TensorSpec("label", "BYTES", (-1, 1)),
                ),
            ),
        ]

    def broken_artifacts(self, folder):
        x = {"name": "x", "datatype": "FP32", "shape": [-1, 16]}
        return [
            artifact(folder, "unknown", colour="blue"),
            artifact(folder, "datatype", inputs=[{**x, "datatype": "FP8"}]),
            artifact(folder, "shape", outputs=[{**x, "shape": [-2]}]),
            artifact(folder, "nameless", inputs=[{**x, "name": ""}]),
            artifact(folder, "twice", inputs=[x, x]),
            artifact(folder, "nothing", outputs=[]),
        ]

    def optional_case(self, folder):
        return self.cases(folder)[1]


def artifact(folder, name: str, **options: object) -> Artifact:
    return Artifact(name, "1", folder, folder, "null", options=options)
