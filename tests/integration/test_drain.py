"""How a server ends: what is under way is finished, and nobody is kept waiting."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.server_process import (
    TIMEOUT_S,
    ServerProcess,
    http_request,
    listening_port,
    make_gate_model,
    rows,
    serving,
    wait_until,
)

INFER = "/v2/models/gate/infer"


def serving_pids(server: ServerProcess, workers: int) -> list[int]:
    """The process that serves, or the workers."""
    pid = server.process.pid
    if workers == 1:
        return [pid]
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return make_gate_model(tmp_path)


@pytest.fixture
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"HEADRACE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def server(gate: Path, env: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(gate, "--drain-timeout-s", "30", env=env) as server:
        yield server


def test_sigterm_finishes_what_is_under_way_and_exits_with_0(
    server: ServerProcess, gate: Path
) -> None:
    with server.connect() as busy, server.connect() as sending, server.connect() as idle:
        busy.send(http_request("POST", INFER, rows(77)))
        half = http_request("POST", INFER, rows(5))
        sending.send(half[:-5])
        idle.send(http_request("GET", "/v2/health/ready"))
        assert idle.answer()[0] == 200
        wait_until((gate.parent / "entered").exists, "the request runs")
        server.signal(signal.SIGTERM)
        server.wait_for("stopping")
        assert idle.read_to_the_end() == b"", "idle connections do not wait for the others"
        sending.send(half[-5:])
        (gate.parent / "open").touch()
        status, fields, body = busy.answer()
        assert (status, fields["connection"]) == (200, "close")
        assert b'"data":[77]' in body
        status, fields, body = sending.answer()
        assert (status, fields["connection"]) == (200, "close")
        assert busy.read_to_the_end() == b""
        assert sending.read_to_the_end() == b""
    assert server.wait() == 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for workers in /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_no_connection_that_the_kernel_has_made(
    gate: Path, env: dict[str, str], workers: int
) -> None:
    """Processes that are stopped accept nothing: all connections wait in the kernel."""
    with serving(gate, "--workers", workers, env=env) as server, ExitStack() as clients:
        used = [clients.enter_context(server.connect()) for _ in range(10)]
        for client in used:
            client.send(http_request("POST", INFER, rows(5)))
            assert client.answer()[0] == 200
        pids = serving_pids(server, workers)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            fresh = [clients.enter_context(server.connect()) for _ in range(50)]
            for client in (*fresh, *used):
                client.send(http_request("POST", INFER, rows(6)))
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        server.signal(signal.SIGTERM)
        for client in (*fresh, *used):
            status, _, body = client.answer()
            assert status == 200
            assert b'"data":[6]' in body
            assert client.read_to_the_end() == b"", "closed, and not reset"
        assert server.wait() == 0


def test_readiness_is_false_before_the_port_closes(gate: Path, env: dict[str, str]) -> None:
    with serving(gate, "--readiness-grace-s", "30", env=env) as server, server.connect() as client:
        client.send(http_request("GET", "/v2/health/ready"))
        assert client.answer()[0] == 200
        server.signal(signal.SIGTERM)
        server.wait_for("stopping")
        status, answer = server.json("GET", "/v2/health/ready")
        assert (status, answer["ready"]) == (503, False)
        assert server.json("GET", "/v2/health/live") == (200, {"live": True})
        status, answer = server.json("POST", INFER, rows(5))
        assert (status, answer["outputs"][0]["data"]) == (200, [5])
        client.send(http_request("POST", INFER, rows(6)))
        assert client.answer()[0] == 200


def test_what_does_not_end_in_time_is_cut_off_and_said(gate: Path, env: dict[str, str]) -> None:
    with (
        serving(gate, "--drain-timeout-s", "0.2", env=env) as server,
        server.connect() as busy,
    ):
        busy.send(http_request("POST", INFER, rows(77)))
        wait_until((gate.parent / "entered").exists, "the request runs")
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
        assert any("cut off" in line for line in server.lines)


def test_the_second_ctrl_c_ends_at_once(server: ServerProcess, gate: Path) -> None:
    with server.connect() as busy:
        busy.send(http_request("POST", INFER, rows(77)))
        wait_until((gate.parent / "entered").exists, "the request runs")
        server.signal(signal.SIGINT)
        server.wait_for("stopping")
        server.signal(signal.SIGINT)
        assert server.wait() == -signal.SIGINT


def test_sigterm_while_it_loads(tmp_path: Path, env: dict[str, str]) -> None:
    """Loading cannot be interrupted; the process can."""
    path = tmp_path / "endless.py"
    path.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def predict(x: list[int]) -> list[int]: return x\n"
        "Path(__file__).with_name('loading').touch()\n"
        "time.sleep(600)\n"
    )
    with ServerProcess(path, "--port", "0", env=env) as server:
        wait_until((tmp_path / "loading").exists, "it loads")
        assert server.stop() == 0
        assert any("stopping" in line for line in server.lines)


@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_sigterm_before_there_is_an_event_loop(more: tuple[str, ...], env: dict[str, str]) -> None:
    """A model store that accepts the connection and never answers holds the start up."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        store.settimeout(TIMEOUT_S)
        port, digest = store.getsockname()[1], "0" * 64
        url = f"http://127.0.0.1:{port}/models/#sha256={digest}"
        with ServerProcess(url, "--port", "0", *more, env=env) as server:
            connection, _ = store.accept()
            with connection:
                assert server.stop() == 0
            assert any("stopping" in line for line in server.lines)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the port in /proc")
def test_liveness_at_once_readiness_after_loading(tmp_path: Path, env: dict[str, str]) -> None:
    path = tmp_path / "late.py"
    path.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def predict(x: list[int]) -> list[int]: return x\n"
        "while not Path(__file__).with_name('go').exists(): time.sleep(0.002)\n"
    )
    with ServerProcess(path, "--port", "0", env=env) as server:
        wait_until(lambda: listening_port(server.process.pid), "it listens")
        server.url = f"http://127.0.0.1:{listening_port(server.process.pid)}"
        assert server.json("GET", "/v2/health/live") == (200, {"live": True})
        status, answer = server.json("GET", "/v2/health/ready")
        assert (status, answer["ready"]) == (503, False)
        assert "late" in answer["waiting_for"][0]
        status, answer = server.json("POST", "/v2/models/late/infer", rows(1, datatype="INT64"))
        assert status == 503
        assert "LOADING" in answer["error"]
        (tmp_path / "go").touch()
        server.wait_ready()
        assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})
        assert server.stop() == 0
