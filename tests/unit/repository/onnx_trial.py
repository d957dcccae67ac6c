"""Runs a graph with ONNX Runtime itself, for tests of what writes graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from headrace.errors import ModelLoadError
from headrace.types import TensorSpec


def execute(path: Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """One run. BYTES are ``bytes`` on both sides, as everywhere in headrace."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no other base
        raise ModelLoadError(str(error)) from None
    results = session.run(None, {name: _each(a, bytes, "decode") for name, a in inputs.items()})
    return [_each(result, str, "encode") for result in results]


def _each(array: np.ndarray, kind: type, method: str) -> np.ndarray:
    if array.dtype != object:
        return array
    out = np.empty(array.size, dtype=object)
    out[:] = [getattr(v, method)() if isinstance(v, kind) else v for v in array.ravel()]
    return out.reshape(array.shape)


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The model's inputs and outputs, as a runtime tells them."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return (
        tuple(_spec(each) for each in session.get_inputs()),
        tuple(_spec(each) for each in session.get_outputs()),
    )


def _spec(node: ort.NodeArg) -> TensorSpec:
    kinds = {"float": "FP32", "double": "FP64", "int64": "INT64", "string": "BYTES"}
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, kinds[node.type[len("tensor(") : -1]], shape)
