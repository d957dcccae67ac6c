"""Executions that never end, in a real server: told, ended, and served again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving, wait_until
from tests.integration.test_isolation import children_of

SPIN = """\
from typing import Annotated
import numpy as np
Rows = Annotated[np.ndarray, "FP32[N,4]"]
def predict(x: Rows) -> Rows:
    while (x < 0).any():
        pass
    return x
"""

TRITON_SPIN = """\
import triton_python_backend_utils as utils
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = utils.get_input_tensor_by_name(request, "x").as_numpy()
            while (x < 0).any():
                pass
            answers.append(utils.InferenceResponse([utils.Tensor("y", x)]))
        return answers
"""

TRITON_CONFIG = """\
backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""

MODELS = ("spin", "triton", "loop", "isolated")


def add(repository: Path, name: str, file: str, content: str | bytes, extra: str = "") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    if not extra.startswith("backend"):
        (repository / name / "model.toml").write_text(f'execution_timeout = "2s"\n{extra}')
    else:
        (repository / name / "config.pbtxt").write_text(extra)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("hung")
    repository = root / "repository"
    add(repository, "spin", "model.py", SPIN)
    add(repository, "triton", "model.py", TRITON_SPIN, TRITON_CONFIG)
    add(repository, "loop", "model.onnx", onnx_models.endless())
    add(repository, "isolated", "model.onnx", onnx_models.endless(), 'isolation = "process"')
    config = root / "headrace.toml"
    config.write_text('[models.triton]\nexecution_timeout = "2s"\n')
    env = {"HEADRACE_CACHE_DIR": str(root / "cache")}
    with serving(repository, "--config", config, env=env) as server:
        yield server


def infer(server: ServerProcess, model: str, value: float) -> tuple[int, dict]:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}
    return server.json("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})


def wait_for_answers(server: ServerProcess, model: str) -> None:
    ready = f"/v2/models/{model}/ready"
    wait_until(lambda: server.json("GET", ready)[0] == 200, f"{model} is ready again")
    wait_until(lambda: infer(server, model, 1.0)[0] == 200, f"{model} answers again")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_an_input_that_never_ends_costs_its_own_request(server: ServerProcess, model: str) -> None:
    assert infer(server, model, 1.0)[0] == 200
    status, answer = infer(server, model, -1.0)
    assert (status, answer["code"]) == (500, "execution_timeout"), answer
    assert "hung" in answer["error"]
    assert server.json("GET", "/v2/health/live")[0] == 200
    wait_for_answers(server, model)
    reasons = [line["reason"] for line in history(server, model)]
    assert any("longer than its limit of 2 s" in reason for reason in reasons), reasons
    failed = [value for name, value in server.metrics().items() if "execution_timeout" in name]
    assert sum(failed) >= 1


@pytest.mark.slow
def test_a_stopped_child_is_noticed_and_replaced(server: ServerProcess) -> None:
    pids = {pid for pid in children_of(server.process.pid) if " spin " in command_of(pid)}
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for _ in pids:
        status, answer = infer(server, "spin", 1.0)
        assert (status, answer["code"]) == (500, "execution_timeout"), answer
    wait_for_answers(server, "spin")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "they are gone")
    reasons = [line["reason"] for line in history(server, "spin")]
    assert any("was killed: an execution ran for" in reason for reason in reasons), reasons


def history(server: ServerProcess, model: str) -> list[dict]:
    status, lines = server.json("GET", f"/v2/models/{model}/history")
    assert status == 200
    return lines


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
