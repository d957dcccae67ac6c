"""The ONNX models that every runtime for ONNX is tried with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.runtimes.base import Artifact
from headrace.testing import ModelCase, onnx_models
from headrace.types import TensorSpec


def write(folder: Path, name: str, content: bytes, **options: object) -> Artifact:
    path = folder / f"{name}.onnx"
    path.write_bytes(content)
    return Artifact(name, "1", path, folder, "onnx", options=options)


def mlp_case(folder: Path) -> ModelCase:
    return ModelCase(
        artifact=write(folder, "mlp", onnx_models.mlp()),
        make_inputs=lambda rows, rng: [rng.random((rows, 16), np.float32)],
        expected=lambda inputs: [onnx_models.mlp_reference(inputs[0])],
        inputs=(TensorSpec("x", "FP32", (-1, 16)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
    )


def embedder_case(folder: Path) -> ModelCase:
    def make_inputs(rows: int, rng: np.random.Generator) -> list[np.ndarray]:
        length = int(rng.integers(1, 20))
        mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int64)
        return [rng.integers(0, 100, (rows, length)), mask]

    return ModelCase(
        artifact=write(folder, "embedder", onnx_models.embedder()),
        make_inputs=make_inputs,
        expected=lambda inputs: [onnx_models.embedder_reference(*inputs)],
        inputs=(
            TensorSpec("input_ids", "INT64", (-1, -1)),
            TensorSpec("attention_mask", "INT64", (-1, -1)),
        ),
        outputs=(TensorSpec("embedding", "FP32", (-1, 8)),),
    )


def optional_bias_case(folder: Path) -> ModelCase:
    return ModelCase(
        artifact=write(folder, "optional", onnx_models.optional_bias()),
        make_inputs=lambda rows, rng: [rng.random((rows, 4), np.float32) for _ in range(2)],
        expected=lambda inputs: [inputs[0] if inputs[1] is None else inputs[0] + inputs[1]],
        inputs=(
            TensorSpec("x", "FP32", (-1, 4)),
            TensorSpec("bias", "FP32", (-1, 4), optional=True),
        ),
        outputs=(TensorSpec("y", "FP32", (-1, 4)),),
    )


def broken(folder: Path) -> list[Artifact]:
    whole = onnx_models.mlp()
    return [
        write(folder, "garbage", b"this is not a model" * 100),
        write(folder, "empty", b""),
        write(folder, "short", whole[: len(whole) // 2]),
        Artifact("nowhere", "1", folder / "nowhere.onnx", folder, "onnx"),
        write(folder, "option", whole, colour="blue"),
    ]
