"""``headrace serve`` as an operator meets it: ports, workers, logs, limits from the outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import (
    ServerProcess,
    http_request,
    listening_port,
    make_gate_model,
    rows,
    serving,
    wait_until,
)

ONNX = ("--runtime", "onnxruntime")
INFER = "/v2/models/echo/infer"
NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="looks for processes and ports in /proc"
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    path = folder / "echo" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(onnx_models.identity("FP32", ("n", 2)))
    return folder


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"HEADRACE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def server(repository: Path, env: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(repository, *ONNX, "--access-log", env=env) as server:
        yield server


def request(*values: float) -> dict[str, Any]:
    shape = [len(values) // 2, 2]
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": list(values)}]}


# -- one server -----------------------------------------------------------------------------


def test_zero_configuration_serves_a_file(repository: Path, env: dict[str, str]) -> None:
    with serving(repository / "echo" / "1" / "model.onnx", *ONNX, env=env) as server:
        status, answer = server.json("POST", INFER, request(1.0, 2.0))
        assert (status, answer["outputs"][0]["data"]) == (200, [1.0, 2.0])


def test_a_number_too_large_for_its_datatype_is_refused_in_a_real_server(
    server: ServerProcess,
) -> None:
    """numpy must have been told so in the very context that the connections run in."""
    status, answer = server.json("POST", INFER, request(1e300, 0.0))
    assert (status, answer["code"]) == (400, "out_of_range")


def test_the_access_log_has_a_line_for_every_request(server: ServerProcess) -> None:
    assert server.json("POST", INFER + "?who=me", request(1.0, 2.0))[0] == 200
    line = json.loads(server.wait_for("who=me"))
    assert line["logger"] == "headrace.access"
    assert line["event"] == "request"
    assert line["method"] == "POST"
    assert line["target"] == INFER + "?who=me"
    assert line["status"] == 200
    assert line["bytes"] > 50
    assert line["ms"] > 0
    assert re.fullmatch(r"127\.0\.0\.1:\d+", line["peer"])
    server.request("GET", "/nowhere")
    assert json.loads(server.wait_for("/nowhere"))["status"] == 404


def test_without_the_flag_nothing_is_logged(repository: Path, env: dict[str, str]) -> None:
    with serving(repository, *ONNX, env=env) as server:
        server.json("POST", INFER, request(1.0, 2.0))
        server.stop()
        assert not [line for line in server.lines if "headrace.access" in line]


def test_pipelining_over_a_real_socket(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(b"".join(http_request("POST", INFER, request(n, n)) for n in range(50)))
        for number in range(50):
            status, _, body = client.answer()
            assert status == 200
            assert json.loads(body)["outputs"][0]["data"] == [number, number]


def test_a_client_that_leaves_cancels_its_request(tmp_path: Path, env: dict[str, str]) -> None:
    gate = make_gate_model(tmp_path)
    with serving(gate, env=env) as server:
        with server.connect() as client:
            client.send(http_request("POST", "/v2/models/gate/infer", rows(77)))
            wait_until((tmp_path / "entered").exists, "the request runs")
        wait_until(lambda: _count(server, "gate", "cancel") == 1, "it is cancelled")
        (tmp_path / "open").touch()
        assert server.json("POST", "/v2/models/gate/infer", rows(5))[0] == 200


def _count(server: ServerProcess, model: str, outcome: str) -> float:
    """Requests of a model that ended so, whatever the reason."""
    labels = (f'model="{model}"', f'outcome="{outcome}"')
    return sum(
        value
        for name, value in server.metrics().items()
        if name.startswith("headrace_requests_total{") and all(label in name for label in labels)
    )


# -- ports ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_one_line_and_exit_1(
    repository: Path, env: dict[str, str], workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = (repository, *ONNX, "--port", port, "--workers", workers)
        with ServerProcess(*arguments, env=env) as server:
            assert server.wait() == 1
            error, hint = server.lines
            assert error == f"headrace: error: port {port} of 127.0.0.1 is taken by another process"
            assert hint.startswith("hint: choose another with --port")


def test_two_servers_may_share_a_repository(
    server: ServerProcess, repository: Path, env: dict[str, str]
) -> None:
    with serving(repository, *ONNX, env=env) as other:
        assert other.port != server.port
        for one in (server, other):
            assert one.json("POST", INFER, request(1.0, 2.0))[0] == 200


def test_a_second_server_cannot_join_the_port_of_the_first(
    server: ServerProcess, repository: Path, env: dict[str, str]
) -> None:
    """SO_REUSEPORT would let it, and every other connection would go astray."""
    arguments = (repository, *ONNX, "--port", server.port, "--workers", 2)
    with ServerProcess(*arguments, env=env) as second:
        assert second.wait() == 1


# -- workers --------------------------------------------------------------------------------


def workers_of(server: ServerProcess) -> list[int]:
    pids = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(server.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [int(pid) for pid in pids if "headrace.server.worker" in _command_of(pid)]


def _command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""  # ps itself, for one


def ask_everybody(server: ServerProcess, count: int) -> int:
    """``count`` requests on connections of their own, which the kernel spreads."""
    for number in range(count):
        status, answer = server.json("POST", INFER, request(number, 0))
        assert (status, answer["outputs"][0]["data"]) == (200, [number, 0])
    return count


@NEEDS_PROC
def test_workers_count_together_and_survive_the_death_of_one(
    repository: Path, env: dict[str, str]
) -> None:
    with serving(repository, *ONNX, "--workers", 2, env=env) as server:
        first = workers_of(server)
        assert len(first) == 2
        sent = ask_everybody(server, 30)
        for _ in range(5):
            assert _count(server, "echo", "complete") == sent, "whoever is asked tells all"
        assert server.metrics()["headrace_workers"] == 2
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: first[0] not in workers_of(server), "it is gone")
        page = _metrics_after_a_kill(server)
        assert _count(server, "echo", "complete") == sent, "counters do not go back"
        assert page["headrace_workers"] == 1
        server.wait_for("2 of 2 workers ready")
        assert first[0] not in workers_of(server)
        assert len(workers_of(server)) == 2
        assert _count(server, "echo", "complete") == sent
        assert server.metrics()["headrace_workers"] == 2
        sent += ask_everybody(server, 30)
        assert _count(server, "echo", "complete") == sent
        assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})
        assert server.stop() == 0


def _metrics_after_a_kill(server: ServerProcess) -> dict[str, float]:
    """A connection the kernel had given to the dead worker is reset; the next one is not."""
    for _ in range(5):
        with contextlib.suppress(ConnectionResetError):
            return server.metrics()
    return server.metrics()


@NEEDS_PROC
def test_a_worker_that_still_loads_keeps_nobody_waiting(
    tmp_path: Path, env: dict[str, str]
) -> None:
    """The first to start is ready, the second loads until it is told to go on."""
    path = tmp_path / "model.py"
    path.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def predict(x: list[int]) -> list[int]: return x\n"
        "here = Path(__file__).parent\n"
        "try:\n"
        "    (here / 'first').touch(exist_ok=False)\n"
        "except FileExistsError:\n"
        "    while not (here / 'go').exists(): time.sleep(0.002)\n"
    )
    with ServerProcess(path, "--port", 0, "--workers", 2, env=env) as server:
        server.wait_for("1 of 2 workers ready")
        port = max(listening_port(pid) for pid in workers_of(server))
        server.url = f"http://127.0.0.1:{port}"
        for _ in range(20):
            assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})
        (tmp_path / "go").touch()
        server.wait_ready()
        assert server.stop() == 0


def test_a_model_that_no_worker_can_load_is_told_once(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is no model" * 100)
    arguments = (tmp_path / "broken.onnx", "--port", 0, "--workers", 2)
    with ServerProcess(*arguments, env=env) as server:
        assert server.wait() == 1
        errors = [line for line in server.lines if line.startswith("headrace: error:")]
        assert len(errors) == 1
        assert not [line for line in server.lines if "Traceback" in line]
