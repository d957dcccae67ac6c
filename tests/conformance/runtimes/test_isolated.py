"""A model in child processes keeps the contract of the runtime that runs in them."""

from __future__ import annotations

import pytest

from headrace.runtimes import registry
from headrace.runtimes.isolated import IsolatedModel
from headrace.testing import RuntimeKit, onnx_models
from tests.conformance.runtimes import onnx_cases


class Isolated:
    """A runtime as the kit expects it, for what is loaded in children."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.formats = registry.create(name).formats

    def load(self, artifact, config):
        return IsolatedModel(self.name, artifact, config)


class TestOnnxRuntimeInChildren(RuntimeKit):
    concurrency = 2  # each is a process
    cycles = 5

    def make_runtime(self):
        return Isolated("onnxruntime")

    def cases(self, folder):
        return [onnx_cases.mlp_case(folder), onnx_cases.embedder_case(folder)]

    def broken_artifacts(self, folder):
        return onnx_cases.broken(folder)

    def identity_case(self, folder, datatype):
        return onnx_cases.write(folder, datatype.lower(), onnx_models.identity(datatype))

    def optional_case(self, folder):
        return onnx_cases.optional_bias_case(folder)


class TestOpenVinoInChildren(RuntimeKit):
    concurrency = 2
    cycles = 3

    @pytest.fixture(autouse=True)
    def _is_installed(self):
        pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")

    def make_runtime(self):
        return Isolated("openvino")

    def cases(self, folder):
        return [onnx_cases.mlp_case(folder), onnx_cases.embedder_case(folder)]

    def broken_artifacts(self, folder):
        return onnx_cases.broken(folder)
