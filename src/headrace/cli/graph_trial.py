"""Runs a graph once, in the runtime that will serve it: for commands that write models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig


def execute(path: Path, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    """Loads ``path`` in ONNX Runtime, runs it on ``inputs`` and lets it go.

    Returns:
        One array for each output, in the model's order.

    Raises:
        ModelLoadError: it is no model that ONNX Runtime can load.
        InferenceFailed: it loads and does not run.
    """
    artifact = Artifact(name=path.stem, version="1", path=path, folder=path.parent, format="onnx")
    loaded = registry.load("onnxruntime", artifact, InstanceConfig())
    try:
        return loaded.execute([inputs[spec.name] for spec in loaded.inputs])
    finally:
        loaded.unload()
