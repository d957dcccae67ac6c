"""Which model files are Triton's, and what their children are told at the start."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from headrace.config import ModelConfig
from headrace.runtimes.base import Artifact
from headrace.types import DYNAMIC, TensorSpec

CLASS = "TritonPythonModel"

_DEFINITION = re.compile(rb"^class[ \t]+TritonPythonModel\b", re.MULTILINE)


class TritonStart(msgspec.Struct, array_like=True):
    """What a child needs beside the file.

    ``config`` is Triton's ModelConfig as JSON text; ``version_folder``'s parent is what Triton
    calls the model's repository. ``place``: the number of the instance.
    """

    config: str
    version: str
    repository: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    place: int = 0


def is_triton_model(path: Path) -> bool:
    """Whether the file defines a class ``TritonPythonModel``. Reads it; runs nothing."""
    try:
        return _DEFINITION.search(path.read_bytes()) is not None
    except OSError:
        return False  # loading it will say what is wrong


def start_of(artifact: Artifact, instances: int) -> TritonStart:
    """What the children of this model are told."""
    config = artifact.config
    told = dict(config.triton_config) or _config_of(artifact.name, config)
    if not told.get("instance_group"):
        told["instance_group"] = [{"kind": "KIND_CPU", "count": instances}]
    inputs, outputs = signature_of(config)
    folder = artifact.path.absolute().parent
    repository = folder.parent if folder.name == artifact.version else folder
    return TritonStart(json.dumps(told), artifact.version, str(repository), inputs, outputs)


def instance_name(model: str, config: dict[str, Any], place: int) -> str:
    """What Triton calls the instance ``place``: after its group, and its number there."""
    groups = config.get("instance_group") or [{}]
    left = place
    for number, group in enumerate(groups):
        count = max(1, int(group.get("count", 1)))
        if left < count:
            name = str(group.get("name") or f"{model}_{number}")
            return name if count == 1 else f"{name}_{left}"
        left -= count
    return f"{model}_{len(groups) - 1}_{place}"


def signature_of(config: ModelConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What the model is given and gives: what is declared, and what a sequence adds to it."""
    inputs = [_spec(tensor) for tensor in config.inputs]
    outputs = [_spec(tensor) for tensor in config.outputs]
    if config.sequence is not None:
        rows = _counts_rows(config)
        shape = (DYNAMIC, 1) if rows else (1,)
        inputs += [
            TensorSpec(control.name, control.datatype, shape)
            for control in config.sequence.controls
        ]
        for state in config.sequence.states:
            inputs.append(TensorSpec(state.input_name, state.datatype, state.shape))
            outputs.append(TensorSpec(state.output_name, state.datatype, state.shape))
    return tuple(inputs), tuple(outputs)


def _spec(tensor: Any) -> TensorSpec:
    shape = tensor.shape if tensor.model_shape is None else tensor.model_shape
    return TensorSpec(tensor.name, tensor.datatype, shape, tensor.optional)


def _counts_rows(config: ModelConfig) -> bool:
    if "max_batch_size" in config.triton_config:
        return int(config.triton_config["max_batch_size"]) > 0
    return all(tensor.shape[:1] == (DYNAMIC,) for tensor in (*config.inputs, *config.outputs))


def _config_of(name: str, config: ModelConfig) -> dict[str, Any]:
    """The configuration of a model that has none of Triton's own."""
    rows = _counts_rows(config) and bool(config.inputs)

    def told(tensor: Any) -> dict[str, Any]:
        kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
        dims = tensor.shape[1:] if rows else tensor.shape
        return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(dims)}

    return {
        "name": name,
        "backend": "python",
        "max_batch_size": (config.batching.max_batch_size or 1) if rows else 0,
        "input": [told(tensor) for tensor in config.inputs],
        "output": [told(tensor) for tensor in config.outputs],
        "model_transaction_policy": {"decoupled": config.decoupled},
        "parameters": {name: {"string_value": value} for name, value in config.parameters.items()},
    }
