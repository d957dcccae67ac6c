"""Models that never finish loading, or ask for all memory, and what goes on beside them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving, wait_until

GOOD = onnx_models.mlp(0, widths=(4, 4, 2))


def _model(nodes: list[Any], constants: dict[str, np.ndarray]) -> bytes:
    """``x`` -> ``y``, FP32 ``[batch, 4]`` each."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    values = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    opset = helper.make_opsetid("", 18)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(made.SerializeToString())


def _endless(condition: str) -> bytes:
    """A loop that goes on while the unchanging ``condition`` is true."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("carried", TensorProto.FLOAT, []),
        ],
        [info("go_on", TensorProto.BOOL, []), info("carried_on", TensorProto.FLOAT, [])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["most", "zero"], ["asked"]),
        helper.make_node("Loop", ["count", condition, "zero"], ["last"], body=body),
        helper.make_node("Add", ["x", "last"], ["y"]),
    ]
    constants: dict[str, np.ndarray] = {
        "zero": np.array(0, np.float32),
        "count": np.array(2**63 - 1, np.int64),
        "always": np.array(True),
    }
    return _model(nodes, constants)


def _huge(shape: str) -> bytes:
    """Adds the sum of 4 TB of zeros: ``shape`` is "constant", or known when it is run."""
    nodes = [
        helper.make_node("Shape", ["x"], ["asked"]),
        helper.make_node("Mul", ["asked", "million"], ["run"]),
        helper.make_node("ConstantOfShape", [shape], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    million = np.array([10**6, 10**5], np.int64)
    return _model(nodes, {"million": million, "constant": million * 10})


HOSTILE = {
    "a loop in constants": (_endless("always"), "trial_timeout"),
    "a loop at the first run": (_endless("asked"), "trial_timeout"),
    "4 TB of constants": (_huge("constant"), ""),
    "4 TB at the first run": (_huge("run"), "trial_failed"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "models").mkdir()
    env = {
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__TRIAL_TIMEOUT_S": "5",
        "HEADRACE_SERVER__PARALLEL_LOADS": "2",
    }
    arguments = ("--watch", "--drain-timeout-s", "5")
    with serving(tmp_path / "models", *arguments, env=env) as running:
        yield running


def upload(server: ServerProcess, name: str, model: bytes) -> tuple[int, Any]:
    content = base64.b64encode(model).decode()
    body = {"parameters": {"config": json.dumps({}), "file:1/model.onnx": content}}
    return server.json("POST", f"/v2/repository/models/{name}/load", body)


def states(server: ServerProcess) -> dict[str, tuple[str, str]]:
    index = server.json("POST", "/v2/repository/index", {})[1]
    return {each["name"]: (each.get("state", ""), each.get("reason", "")) for each in index}


def answers(server: ServerProcess, name: str) -> bool:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return server.json("POST", f"/v2/models/{name}/infer", {"inputs": [tensor]})[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(("model", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_upload_is_refused_and_the_others_are_served(
    server: ServerProcess, model: bytes, code: str
) -> None:
    outcome: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: outcome.append(upload(server, "bad", model)))
    thread.start()
    assert upload(server, "good", GOOD)[0] == 200
    assert answers(server, "good")
    thread.join()
    status, answer = outcome[0]
    assert (status, "bad" in answer["error"]) == (400, True)
    assert code in ("", answer.get("reason_code"))
    state, reason = states(server)["bad"]
    assert state == "UNAVAILABLE"
    assert reason
    assert answers(server, "good")
    assert server.stop() == 0


@pytest.mark.slow
def test_sigterm_ends_a_server_that_tries_an_endless_model_out(server: ServerProcess) -> None:
    thread = threading.Thread(target=_quietly, args=(server, HOSTILE["a loop in constants"][0]))
    thread.start()
    wait_until(lambda: states(server).get("bad", ("",))[0] == "LOADING", "it is being loaded")
    server.signal(signal.SIGTERM)
    assert server.wait() in (0, 1), "it ended by itself"
    thread.join()


def _quietly(server: ServerProcess, model: bytes) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # it is cut off
        upload(server, "bad", model)
