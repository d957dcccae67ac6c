"""Shared memory through real clients: unchanged for the user whose it is, closed to every other."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from headrace.testing import onnx_models
from tests.integration.server_process import (
    TIMEOUT_S,
    ServerProcess,
    make_gate_model,
    serving,
    wait_until,
)

OTHER_UID = 54321
SIZE = 16
DATA = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "1" / "model.onnx").write_bytes(onnx_models.identity("FP32"))
    (root / "gate").mkdir()
    make_gate_model(root / "gate").rename(root / "gate" / "model.py")
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(repository) as running:
        yield running


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    found = SharedMemory(f"headrace-test-{uuid.uuid4().hex}", create=True, size=2 * SIZE)
    found.buf[:SIZE] = DATA.tobytes()
    yield found
    found.close()
    found.unlink()


def infer(client: Any, kind: Any, region: str) -> Any:
    inputs = [kind.InferInput("x", [1, 4], "FP32")]
    inputs[0].set_shared_memory(region, SIZE)
    outputs = [kind.InferRequestedOutput("y")]
    outputs[0].set_shared_memory(region, SIZE, offset=SIZE)
    return client.infer("m", inputs, outputs=outputs)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [(triton_http, ()), (triton_grpc, ()), (triton_grpc, ("--grpc-server", "grpcio"))],
    ids=["http", "grpc", "grpcio"],
)
def test_tritons_clients_use_their_own_memory(
    repository: Path, memory: SharedMemory, kind: Any, flags: tuple[str, ...]
) -> None:
    more = ("--grpc-port", "0") if flags else ()
    with serving(repository, *flags, *more) as running:
        port = int(re.findall(r":([0-9]+)", running.lines[-1])[-1]) if flags else running.port
        with kind.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.register_system_shared_memory("r", "/" + memory.name.lstrip("/"), 2 * SIZE)
            infer(client, kind, "r")
            assert bytes(memory.buf[SIZE:]) == DATA.tobytes()
            client.unregister_system_shared_memory("r")
            with pytest.raises(Exception, match="Unable to find shared memory region"):
                infer(client, kind, "r")


@contextlib.contextmanager
def as_user(uid: int, work: Callable[[], Any]) -> Iterator[Any]:
    """What ``work`` returns, as JSON, in a process of another user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer: Any = "it failed"
        with contextlib.suppress(BaseException):
            os.setuid(uid)
            answer = work()
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        answer = json.load(told)
    os.waitpid(child, 0)
    yield answer


def post(port: int, path: str, body: Any = None, method: str = "POST") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body or {}).encode())
        response = connection.getresponse()
        answer = response.read()
    return response.status, json.loads(answer) if answer else None


def region(name: str, verb: str) -> str:
    return f"/v2/systemsharedmemory/region/{name}/{verb}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_client(server: ServerProcess, memory: SharedMemory, tmp_path: Path) -> None:
    """The server's user is root, who can open every object; this one's has mode 0600."""
    port, key = server.port, memory.name
    where = {"key": key, "byte_size": 2 * SIZE}
    assert post(port, region("secret", "register"), where)[0] == 200
    theirs = Path("/dev/shm") / f"{key}-theirs"
    shared = {"shared_memory_region": "secret", "shared_memory_byte_size": SIZE}
    into = {"name": "y", "parameters": shared | {"shared_memory_offset": SIZE}}
    asked = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    before = bytes(memory.buf)

    def work() -> Any:
        theirs.write_bytes(bytes(2 * SIZE))
        mine = {"key": theirs.name, "byte_size": 2 * SIZE}
        return [
            post(port, region("mine", "register"), where),
            post(port, "/v2/models/m/infer", {"inputs": [asked | {"parameters": shared}]}),
            post(
                port,
                "/v2/models/m/infer",
                {"inputs": [asked | {"data": [9, 9, 9, 9]}], "outputs": [into]},
            ),
            post(port, region("secret", "status"), method="GET"),
            post(port, "/v2/systemsharedmemory/unregister"),
            post(port, region("secret", "register"), mine),
            post(port, "/v2/systemsharedmemory/status", method="GET"),
        ]

    try:
        with as_user(OTHER_UID, work) as answers:
            refused, read, written, seen, unregistered, own, listed = answers
    finally:
        theirs.unlink(missing_ok=True)
    assert refused[0] == 400
    assert "belongs to another user" in refused[1]["error"]
    for status, answer in (read, written):
        assert (status, answer["code"]) == (400, "unknown_region")
    assert seen[0] == 400
    assert (unregistered[0], own[0]) == (200, 200)
    assert [each["key"] for each in listed[1]] == [theirs.name]
    assert bytes(memory.buf) == before
    ours = post(port, "/v2/systemsharedmemory/status", method="GET")[1]
    assert [each["name"] for each in ours] == ["secret"]
    post(port, "/v2/systemsharedmemory/unregister")


@pytest.mark.parametrize("kind", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_a_region_of_a_running_request(
    server: ServerProcess, repository: Path, memory: SharedMemory, kind: Any
) -> None:
    folder = repository / "gate"
    memory.buf[:4] = np.int32(77).tobytes()
    inputs = [kind.InferInput("x", [1, 1], "INT32")]
    inputs[0].set_shared_memory("r", 4)
    with kind.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.register_system_shared_memory("r", "/" + memory.name.lstrip("/"), 2 * SIZE)

        def run() -> None:
            with kind.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
                other.infer("gate", inputs)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_until((folder / "entered").exists, "the request runs")
            for name in ("r", ""):
                with pytest.raises(Exception, match="currently in use"):
                    client.unregister_system_shared_memory(name)
        finally:
            (folder / "open").touch()
            thread.join(TIMEOUT_S)
            for name in ("entered", "open"):
                (folder / name).unlink(missing_ok=True)
        client.unregister_system_shared_memory("r")


def test_off(repository: Path, memory: SharedMemory) -> None:
    with serving(repository, env={"HEADRACE_SERVER__SHARED_MEMORY": "off"}) as running:
        where = {"key": memory.name, "byte_size": SIZE}
        status, answer = post(running.port, region("r", "register"), where)
        assert (status, answer["code"]) == (403, "shared_memory_off")
        assert post(running.port, "/v2/systemsharedmemory/unregister")[0] == 200
