"""Models small enough to be written in a test, and how the tests look for them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from onnx import TensorProto, helper

from headrace.config import Config
from headrace.repository.base import ModelSource
from headrace.repository.layout import ScanResult, scan

IDENTITY = helper.make_model(
    helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
    )
).SerializeToString()


def put(path: Path, content: bytes | str = IDENTITY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def find(*paths: Path, name: str = "", **config: object) -> ScanResult:
    return scan(paths, config=msgspec.convert(config, Config), name=name)


def only(*paths: Path, name: str = "", **config: object) -> ModelSource:
    found = find(*paths, name=name, **config)
    assert not found.problems
    (source,) = found.models
    return source


def served(result: ScanResult) -> list[tuple[str, str]]:
    return [(source.name, source.version) for source in result.models]
