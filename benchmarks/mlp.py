"""The tiny model of the overhead benchmarks, its requests, and its right answers.

16 -> 64 -> 64 -> 2 with ReLU between: 5,000 multiplications, a few microseconds, so that
what is measured is everything around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from headrace.client.wire import binary_body, json_body
from headrace.repository.onnx_writer import chain, write_model
from headrace.types import DYNAMIC, Tensor, TensorSpec

Wire = Literal["json", "binary"]
JSON: Wire = "json"
BINARY: Wire = "binary"

WIDTHS = (16, 64, 64, 2)
PATH = "/v2/models/mlp/infer"
BODIES = 32
"""Different requests, sent in turn; their lengths, and so their heads, differ, too."""

INPUT = TensorSpec("x", "FP32", (DYNAMIC, WIDTHS[0]))
OUTPUT = TensorSpec("y", "FP32", (DYNAMIC, WIDTHS[-1]))


class Request(msgspec.Struct, frozen=True):
    """One request's body and headers, and the input it carries (FP32 ``[1,16]``)."""

    body: bytes
    headers: dict[str, str]
    array: np.ndarray


def weights(seed: int) -> dict[str, np.ndarray]:
    """``w0``, ``b0`` ... of each layer."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for layer, (size, width) in enumerate(pairwise(WIDTHS)):
        scale = 1 / np.sqrt(size)
        made[f"w{layer}"] = (rng.standard_normal((size, width)) * scale).astype(np.float32)
        made[f"b{layer}"] = rng.standard_normal(width).astype(np.float32)
    return made


def write_mlp(folder: Path, seed: int) -> Path:
    """``folder/mlp.onnx`` with random weights."""
    operators: list[tuple[str, Sequence[str]]] = []
    for layer in range(len(WIDTHS) - 1):
        if layer:
            operators.append(("Relu", []))
        operators.append(("Gemm", [f"w{layer}", f"b{layer}"]))
    folder.mkdir(parents=True, exist_ok=True)
    return write_model(
        folder / "mlp.onnx",
        chain(operators, INPUT.name, OUTPUT.name),
        inputs=[INPUT],
        outputs=[OUTPUT],
        initializers=weights(seed),
    )


def write_null(folder: Path) -> Path:
    """A model called ``mlp`` that has the MLP's signature and answers zeros at once."""
    model = folder / "null" / "mlp"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.toml").write_text('runtime = "null"\n')
    return model


def make_requests(wire: Wire, seed: int, count: int = BODIES) -> list[Request]:
    """``count`` seeded requests of one row."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(count):
        array = rng.standard_normal((1, WIDTHS[0]), np.float32)
        tensor = Tensor(INPUT.name, INPUT.datatype, array.shape, array)
        if wire == "binary":
            body, size = binary_body([tensor])
            headers = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(size),
            }
        else:
            body, headers = json_body([tensor]), {"Content-Type": "application/json"}
        requests.append(Request(body, headers, array))
    return requests


def output_of(answer: bytes, wire: Wire) -> np.ndarray:
    """``y`` of an answer's body: FP32 ``[1,2]``."""
    if wire == "json":
        output: dict[str, Any] = msgspec.json.decode(answer)["outputs"][0]
        data = np.array(output["data"], np.float32)
    else:
        # One output of two numbers, and no brace in the JSON part after its last.
        end = len(answer) - 4 * WIDTHS[-1]
        output = msgspec.json.decode(answer[:end])["outputs"][0]
        data = np.frombuffer(answer, "<f4", offset=end)
    return data.reshape(output["shape"])
