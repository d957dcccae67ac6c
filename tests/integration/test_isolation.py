"""A server whose models live in processes of their own, as their owner meets it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from headrace.testing import onnx_models
from tests.integration.server_process import serving, wait_until

REQUEST = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5]}]}
CONFIG = """
[server]
model_control = "explicit"
load_models = ["*"]
[defaults]
isolation = "process"
runtime = "onnxruntime"
"""


def test_a_child_that_is_killed_comes_back_and_unloading_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "models" / "echo" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(onnx_models.identity("FP32", ("n", 2)))
    config = tmp_path / "headrace.toml"
    config.write_text(CONFIG)
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(tmp_path / "models", "--config", config, env=env) as server:
        assert any("runs in 1 child process(es): as configured" in line for line in server.lines)

        def asked() -> int:
            status, answer = server.json("POST", "/v2/models/echo/infer", REQUEST)
            assert status != 200 or answer["outputs"][0]["data"] == [1.5, 2.5]
            return status

        assert asked() == 200
        (first,) = children_of(server.process.pid)
        os.kill(first, signal.SIGKILL)
        found = re.search(r"child process (\d+) was killed by SIGKILL", server.wait_for("killed"))
        assert found is not None
        assert int(found[1]) == first
        assert asked() == 200  # its death is known, so this one waits for the next child
        (second,) = children_of(server.process.pid)
        assert second != first

        assert server.request("POST", "/v2/repository/models/echo/unload")[0] == 200
        wait_until(lambda: not children_of(server.process.pid), "the child ends")
        assert server.json("GET", "/v2/models/echo/ready")[0] != 200
        assert server.stop() == 0


def children_of(process: int) -> set[int]:
    """Of all its threads: children belong to the one that started them."""
    found: set[int] = set()
    for task in Path(f"/proc/{process}/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found
