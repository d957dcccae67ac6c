"""What a caller does wrong is a 4xx and takes no new version back, whatever runs the model."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import grpc
import numpy as np
import pytest

from headrace import protos
from headrace.testing import onnx_models
from tests.integration.server_process import TIMEOUT_S, ServerProcess, serving, wait_until

Request = protos.message("inference.ModelInferRequest")

ENOUGH, MISTAKES = 10, 20
"""Requests before anything is decided about a version, and how many of them are wrong."""

PYTHON = """
def predict(x: list[str]) -> list[str]:
    return x
"""

TRITON = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(each) for each in requests]
    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x")
        try:
            x.as_numpy()[0].decode()
        except UnicodeDecodeError:
            wrong = pb_utils.TritonError("no UTF-8", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=wrong)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())])
"""
CONFIG = """
backend: "python" max_batch_size: 0
input { name: "x" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "y" data_type: TYPE_STRING dims: [ -1 ] }
version_policy { latest { num_versions: 1 } }
"""

STRINGS = onnx_models.identity("BYTES", ("n",))
MODELS: dict[str, tuple[str, str | bytes]] = {
    "onnx": ("model.onnx", STRINGS),
    "isolated": ("model.onnx", STRINGS),
    "python": ("model.py", PYTHON),
    "thread": ("model.py", PYTHON),
    "triton": ("model.py", TRITON),
    "openvino": ("model.onnx", onnx_models.identity("INT64", ("n",))),
}
ENV = {
    "HEADRACE_DEFAULTS__ROLLOUT__GUARD": "5s",
    "HEADRACE_DEFAULTS__ROLLOUT__MIN_REQUESTS": str(ENOUGH),
    "HEADRACE_DEFAULTS__ROLLOUT__MAX_SLOWDOWN": "1e9",
    "HEADRACE_DEFAULTS__ROLLOUT__SHADOW_WARM_S": "0",
    "HEADRACE_MODELS__ISOLATED__ISOLATION": "process",
    "HEADRACE_MODELS__THREAD__ISOLATION": "thread",
    "HEADRACE_MODELS__OPENVINO__RUNTIME": "openvino",
}


def put(repository: Path, version: int) -> None:
    for name, (file, content) in MODELS.items():
        folder = repository / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (folder / "new").write_bytes(data)
        (folder / "new").rename(folder / file)
    (repository / "triton" / "config.pbtxt").write_text(CONFIG)


def message(name: str, *, wrong: bool) -> bytes:
    if name == "openvino":
        datatype, raw = "INT64", np.array([2**40 if wrong else 1]).tobytes()
    else:
        datatype, raw = "BYTES", struct.pack("<I", 2) + (b"\xff\xfe" if wrong else b"ok")
    built = Request(model_name=name, raw_input_contents=[raw])
    built.inputs.add(name="x", datatype=datatype, shape=[1])
    found: bytes = built.SerializeToString()
    return found


def over_http(server: ServerProcess, name: str) -> int:
    asked = Request.FromString(message(name, wrong=True))
    raw, tensor = asked.raw_input_contents[0], asked.inputs[0]
    head = (
        b'{"inputs":[{"name":"x","datatype":"%b","shape":[1],'
        b'"parameters":{"binary_data_size":%d}}]}' % (tensor.datatype.encode(), len(raw))
    )
    fields = {"Inference-Header-Content-Length": str(len(head))}
    return server.request("POST", f"/v2/models/{name}/infer", head + raw, fields)[0]


def states(server: ServerProcess) -> dict[tuple[str, str], str]:
    _, lines = server.json("POST", "/v2/repository/index")
    return {(line["name"], line["version"]): line["state"] for line in lines}


def wait_for(server: ServerProcess, version: tuple[str, str], state: str) -> None:
    wait_until(lambda: states(server).get(version) == state, f"{version} is {state}")


def is_decided(server: ServerProcess, name: str) -> bool:
    found = states(server)
    return "UNAVAILABLE" in (found[name, "1"], found[name, "2"])


def history(name: str) -> str:
    return f"/v2/models/{name}/history"


@pytest.mark.slow
def test_a_new_version_stays_whatever_callers_send(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    put(repository, 1)
    env = ENV | {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(repository, "--watch", env=env) as server:
        found = re.search(r"http://(\S+)", server.url)
        assert found is not None
        with grpc.insecure_channel(found[1]) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for name in MODELS:
                for _ in range(ENOUGH):
                    infer(message(name, wrong=False), timeout=TIMEOUT_S)
            put(repository, 2)
            for name in MODELS:
                wait_for(server, (name, "2"), "READY")
                for _ in range(MISTAKES):
                    assert over_http(server, name) == 400, name
                    with pytest.raises(grpc.RpcError) as caught:
                        infer(message(name, wrong=True), timeout=TIMEOUT_S)
                    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
        for name in MODELS:
            # The end of the watch, either way: the version before leaves, or the new one does.
            wait_until(lambda name=name: is_decided(server, name), f"{name} is decided")
            assert states(server)[name, "2"] == "READY", server.json("GET", history(name))
