"""A server that answers for ``conformance/models``: headrace, or Triton's own binary."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from conformance import environments

MODELS = Path(__file__).parent / "models"

_START_S = 60.0
"""Six child processes on a busy machine."""


class Server(NamedTuple):
    """Where it listens, on loopback."""

    name: str
    http: int
    grpc: int
    metrics: int

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc}"


@contextmanager
def headrace(*flags: str, models: Path = MODELS) -> Iterator[Server]:
    """``headrace serve`` with Triton's flags and explicit model control."""
    command = [sys.executable, "-m", "headrace", "serve"]
    with _running("headrace", command, models, flags, env={}) as server:
        yield server


@contextmanager
def triton(binary: Path, *flags: str, models: Path = MODELS) -> Iterator[Server]:
    """The ``tritonserver`` that :func:`conformance.environments.triton` found."""
    env = environments.triton_environment(binary)
    command = [str(binary), f"--backend-directory={binary.parents[1] / 'backends'}"]
    # The stub of the Python backend finds numpy in the folder it is started in.
    with _running(
        "triton", command, models, flags, env=env, cwd=environments.triton_packages(binary)
    ) as server:
        yield server


@contextmanager
def _running(
    name: str,
    command: Sequence[str],
    models: Path,
    flags: Sequence[str],
    *,
    env: dict[str, str],
    cwd: Path | None = None,
) -> Iterator[Server]:
    server = Server(name, *_free_ports(3))
    process = subprocess.Popen(
        [
            *command,
            f"--model-repository={models}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--http-address=127.0.0.1",
            f"--http-port={server.http}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={server.grpc}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={server.metrics}",
            *flags,
        ],
        env=os.environ | env,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if name == "headrace" else subprocess.DEVNULL,
    )
    try:
        _wait_ready(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            _, said = process.communicate()
            raise RuntimeError(f"{server.name} ended: {(said or b'').decode()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://{server.http_address}/v2/health/ready", timeout=1):
                return
        except (OSError, urllib.error.URLError):
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    raise RuntimeError(f"{server.name} was not ready after {_START_S:.0f} s")


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
