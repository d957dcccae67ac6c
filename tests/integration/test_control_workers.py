"""With several workers: whichever is asked, all of them do it, and those that come later."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving, traces_in, wait_until

WIDTHS = (4, 4, 2)
ASKED = 24
"""Connections, each to whichever worker the kernel likes: that all of them meet the same one
of two has a chance of 2 in 2**24."""

INFER = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


@pytest.mark.slow
def test_a_stopped_worker_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "a" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(onnx_models.mlp(0, widths=WIDTHS))
    env = {
        "HEADRACE_SERVER__WORKER_TIMEOUT_S": "3",
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__SHARED_CACHE__URL": "redis://:a-password@127.0.0.1:9/0",
    }
    with serving(tmp_path / "repository", "--workers", "2", env=env) as server:
        stopped = min(workers_of(server))
        assert b"a-password" not in Path(f"/proc/{stopped}/cmdline").read_bytes()
        os.kill(stopped, signal.SIGSTOP)
        server.wait_for("hung: it was not heard of for 3 s, and was killed")
        server.wait_for("2 of 2 workers ready")
        assert stopped not in workers_of(server)
        for _ in range(ASKED):
            assert server.json("POST", "/v2/models/a/infer", INFER)[0] == 200
        assert server.stop() == 0


def workers_of(server: ServerProcess) -> set[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return set(map(int, children.read_text().split()))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


@pytest.fixture
def server(tmp_path: Path, trace: Path) -> Iterator[ServerProcess]:
    for name in ("a", "b"):
        folder = tmp_path / "repository" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(onnx_models.mlp(0, widths=WIDTHS))
    env = {
        "HEADRACE_SERVER__MODEL_CONTROL": "explicit",
        "HEADRACE_SERVER__LOAD_MODELS": '["b"]',
        "HEADRACE_SERVER__TRACE__FILE": str(trace),
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
    }
    with serving(tmp_path / "repository", "--workers", "2", env=env) as server:
        yield server


def everywhere(server: ServerProcess, method: str, path: str, body: object = None) -> list[Any]:
    """The answers of all workers: every connection is a new one."""
    return [server.json(method, path, body) for _ in range(ASKED)]


def command(server: ServerProcess, path: str, body: object = None) -> Any:
    status, answer = server.json("POST", path, body)
    assert status == 200, answer
    return answer


def test_commands_reach_every_worker(server: ServerProcess, trace: Path) -> None:
    ready = "/v2/models/a/ready"
    assert {status for status, _ in everywhere(server, "GET", ready)} == {404}
    command(server, "/v2/repository/models/a/load")
    assert {status for status, _ in everywhere(server, "GET", ready)} == {200}

    command(server, "/v2/logging", {"log_verbose_level": 3})
    command(server, "/v2/models/a/trace/setting", {"trace_level": ["TIMESTAMPS"], "trace_rate": 1})
    for _, body in everywhere(server, "GET", "/v2/logging"):
        assert body["log_verbose_level"] == 3
    for _, body in everywhere(server, "GET", "/v2/models/a/trace/setting"):
        assert body["trace_level"] == ["TIMESTAMPS"]

    assert {s for s, _ in everywhere(server, "POST", "/v2/models/a/infer", INFER)} == {200}
    for _, body in everywhere(server, "GET", "/v2/models/a/stats")[:4]:
        (stats,) = body["model_stats"]
        assert stats["inference_count"] == stats["inference_stats"]["success"]["count"] == ASKED
    wait_until(lambda: len(traces_in(trace)) == ASKED, "all are traced")
    assert len({each["id"] for each in traces_in(trace)}) == ASKED

    command(server, "/v2/repository/models/a/unload")
    assert {status for status, _ in everywhere(server, "GET", ready)} == {503}
    status, answer = server.json("POST", "/v2/repository/models/x/load")
    assert (status, answer["code"]) == (400, "model_not_found")


def test_a_worker_that_comes_later_is_told_what_it_missed(server: ServerProcess) -> None:
    config = json.dumps({"backend": "onnxruntime", "max_batch_size": 3})
    command(server, "/v2/repository/models/a/load", {"parameters": {"config": config}})
    command(server, "/v2/repository/models/b/unload")
    command(server, "/v2/trace/setting", {"trace_rate": "77"})
    before = workers_of(server)
    os.kill(min(before), signal.SIGKILL)
    wait_until(_changed(server, before), "somebody else took the place")
    server.wait_for("2 of 2 workers ready")

    assert {s for s, _ in everywhere(server, "GET", "/v2/models/b/ready")} == {503}
    for _, body in everywhere(server, "GET", "/v2/models/a/config"):
        assert body["max_batch_size"] == 3
    for _, body in everywhere(server, "GET", "/v2/trace/setting"):
        assert body["trace_rate"] == "77"
    command(server, "/v2/repository/models/b/load")
    assert {s for s, _ in everywhere(server, "GET", "/v2/models/b/ready")} == {200}


def _changed(server: ServerProcess, before: set[int]) -> Callable[[], bool]:
    return lambda: len(workers_of(server)) == len(before) and workers_of(server) != before


def test_shared_memory_is_known_to_every_worker(server: ServerProcess) -> None:
    memory = SharedMemory(f"headrace-test-{uuid.uuid4().hex}", create=True, size=64)
    try:
        region = server.process.pid
        key = "/" + memory.name.lstrip("/")
        where = json.dumps({"key": key, "offset": 8, "byte_size": 16}).encode()
        path = f"/v2/systemsharedmemory/region/{region}/register"
        assert server.request("POST", path, where)[0] == 200
        for status, body in everywhere(server, "GET", "/v2/systemsharedmemory/status"):
            assert status == 200
            assert [each["byte_size"] for each in body] == [16]
        assert server.request("POST", "/v2/systemsharedmemory/unregister")[0] == 200
        for _, body in everywhere(server, "GET", "/v2/systemsharedmemory/status"):
            assert body == []
    finally:
        memory.close()
        memory.unlink()
