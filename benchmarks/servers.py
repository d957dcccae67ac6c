"""Servers under test: started, awaited, their CPU time and memory read, stopped."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from conformance.environments import triton_environment, triton_packages
from headrace.client.processes import cpu_of

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.005
"""How often a start is asked about; this much of a start-up time is the poll's own."""

_LOG_SHOWN = 2000


class ServerFailed(Exception):
    """The process ended, or did not become ready in time; the text has the end of its log."""


class Server:
    """One process that serves HTTP. ``pid`` and all below it count as the server."""

    def __init__(
        self, name: str, port: int, process: subprocess.Popen[bytes], log: IO[bytes]
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Seconds of CPU used so far, user and system, children included."""
        return cpu_of((self.pid,)).seconds

    def memory_bytes(self) -> int:
        """Resident memory of all processes of the server."""
        pages = 0
        for pid in cpu_of((self.pid,)).pids:
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:  # it ended meanwhile
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._exchange("GET", path, b"", {})

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body."""
        return self._exchange("POST", path, body, headers)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until(self, is_up: Callable[[], bool]) -> None:
        """Asks until the answer is yes.

        Raises:
            ServerFailed: the process ended instead, or took too long.
        """
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not is_up():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self._log.seek(0)
                log = self._log.read().decode(errors="replace")
                raise ServerFailed(f"{self.name} did not start: {log[-_LOG_SHOWN:].strip()}")
            time.sleep(_POLL_S)

    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def headrace_server(models: Path, work: Path, *flags: str) -> Iterator[Server]:
    """``headrace serve`` on a free port, ready; its cache is in ``work``.

    Raises:
        ServerFailed: it did not become ready.
    """
    port = free_port()
    command = [
        sys.executable, "-m", "headrace", "serve", str(models), "--port", str(port),
        "--cache-dir", str(work / "cache"), "--log-level", "warning", *flags,
    ]  # fmt: skip
    with _started("headrace", port, command) as server:
        server.wait_until(lambda: _is_ready(server))
        yield server


@contextmanager
def floor_server(model: str, wire: str) -> Iterator[Server]:
    """``benchmarks.floor_server`` on a free port, listening.

    Raises:
        ServerFailed: it does not listen.
    """
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floor_server", model, wire, str(port)]
    with _started("floor", port, command) as server:
        server.wait_until(lambda: _connects(port))
        yield server


@contextmanager
def triton_server(binary: Path, repository: Path) -> Iterator[Server]:
    """Triton's own server; ``port`` is that of its gRPC, which opens when its models are ready.

    Raises:
        ServerFailed: it does not listen.
    """
    port, packages = free_port(), triton_packages(binary)
    command = [
        str(binary), f"--model-repository={repository}", "--http-address=127.0.0.1",
        f"--backend-directory={binary.parents[1] / 'backends'}", f"--http-port={free_port()}",
        "--grpc-address=127.0.0.1", f"--grpc-port={port}", "--allow-metrics=false",
    ]  # fmt: skip
    env = os.environ | triton_environment(binary)
    # The stub of its Python backend finds numpy in the folder it is started in.
    with _started("triton", port, command, cwd=packages, env=env) as server:
        server.wait_until(lambda: _connects(port))
        yield server


def environment() -> dict[str, str]:
    """That of this process, but compiled modules are kept: an installed package has them."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _started(
    name: str,
    port: int,
    command: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=log, stderr=log, env=env or environment()
        )
        server = Server(name, port, process, log)
        try:
            yield server
        finally:
            server.stop()


def _connects(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _is_ready(server: Server) -> bool:
    try:
        return server.get("/v2/health/ready")[0] == 200
    except (OSError, http.client.HTTPException):
        return False
