from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from headrace.runtimes.base import Artifact
from headrace.testing import RuntimeKit, onnx_models
from tests.conformance.runtimes import onnx_cases

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


def make_runtime():
    from headrace.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime()


class TestOpenVinoRunsOnnx(RuntimeKit):
    def make_runtime(self):
        return make_runtime()

    def cases(self, folder):
        return [onnx_cases.mlp_case(folder), onnx_cases.embedder_case(folder)]

    def broken_artifacts(self, folder):
        return onnx_cases.broken(folder)

    def identity_case(self, folder, datatype):
        return onnx_cases.write(folder, datatype.lower(), onnx_models.identity(datatype))


class TestOpenVinoRunsItsOwnFormat(RuntimeKit):
    def make_runtime(self):
        return make_runtime()

    def cases(self, folder):
        cases = [onnx_cases.mlp_case(folder), onnx_cases.embedder_case(folder)]
        return [msgspec.structs.replace(case, artifact=as_ir(case.artifact)) for case in cases]

    def broken_artifacts(self, folder):
        whole = as_ir(onnx_cases.mlp_case(folder).artifact)
        lonely = folder / "lonely.xml"
        lonely.write_bytes(whole.path.read_bytes())
        cut = folder / "cut.xml"
        cut.write_bytes(whole.path.read_bytes())
        cut.with_suffix(".bin").write_bytes(whole.path.with_suffix(".bin").read_bytes()[:100])
        garbage = folder / "garbage.xml"
        garbage.write_text("<net>no end")
        nowhere = folder / "nowhere.xml"
        return [
            *(
                Artifact(path.stem, "1", path, folder, "openvino")
                for path in (lonely, cut, garbage, nowhere)
            ),
            msgspec.structs.replace(whole, options={"colour": "blue"}),
        ]


def as_ir(artifact: Artifact) -> Artifact:
    path = artifact.path.with_suffix(".xml")
    graph, weights = convert(artifact.path.read_bytes())
    path.write_bytes(graph)
    path.with_suffix(".bin").write_bytes(weights)
    return msgspec.structs.replace(artifact, path=path, format="openvino")


@cache
def convert(content: bytes) -> tuple[bytes, bytes]:
    with TemporaryDirectory() as folder:
        source, path = Path(folder, "model.onnx"), Path(folder, "model.xml")
        source.write_bytes(content)
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
