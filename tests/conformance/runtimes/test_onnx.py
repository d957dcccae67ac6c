from __future__ import annotations

from headrace.runtimes.onnx import OnnxRuntime
from headrace.testing import RuntimeKit, onnx_models
from tests.conformance.runtimes import onnx_cases


class TestOnnxRuntime(RuntimeKit):
    def make_runtime(self):
        return OnnxRuntime()

    def cases(self, folder):
        return [onnx_cases.mlp_case(folder), onnx_cases.embedder_case(folder)]

    def broken_artifacts(self, folder):
        return onnx_cases.broken(folder)

    def identity_case(self, folder, datatype):
        return onnx_cases.write(folder, datatype.lower(), onnx_models.identity(datatype))

    def optional_case(self, folder):
        return onnx_cases.optional_bias_case(folder)
