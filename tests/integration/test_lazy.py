"""Models that are not in memory until somebody asks for them, over every protocol."""

from __future__ import annotations

import json
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from headrace.engine.catalog import ABSENT
from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, http_request, serving, wait_until
from tests.unit.tasks.text_models import vocabulary

SLOW = """
import time
from pathlib import Path
from typing import Annotated
import numpy as np

Rows = Annotated[np.ndarray, "FP32[N,4]"]


class Slow:
    def __init__(self):
        folder = Path(__file__).parent
        (folder / "loading").touch()
        while not (folder / "open").exists():
            time.sleep(0.002)

    def predict(self, x: Rows) -> Rows:
        return x * 10
"""
"""Loading it takes until the file ``open`` is there; ``loading`` says that it has begun."""

BROKEN = SLOW.replace("(folder", "raise OSError('no weights'); (folder", 1)

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X}]}
TENFOLD = [10.0, 20.0, 30.0, 40.0]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    for name, data in {
        "same": onnx_models.identity("FP32"),
        "texts": onnx_models.embedder(),
    }.items():
        (repository / name).mkdir(parents=True)
        (repository / name / "model.onnx").write_bytes(data)
    for name, code in {"slow": SLOW, "broken": BROKEN}.items():
        (repository / name).mkdir()
        (repository / name / "model.py").write_text(code)
    vocabulary(repository / "texts")
    return repository


def settings(repository: Path, **residency: Any) -> dict[str, str]:
    env = {"load": "lazy", **residency}
    return {
        **{f"HEADRACE_DEFAULTS__RESIDENCY__{k.upper()}": str(v) for k, v in env.items()},
        "HEADRACE_MODELS__TEXTS__TASK": "text-embedding",
        "HEADRACE_CACHE_DIR": str(repository.parent / "cache"),
    }


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(repository, env=settings(repository)) as server:
        yield server


def address(server: ServerProcess) -> str:
    return server.url.removeprefix("http://")


def is_ready(server: ServerProcess, name: str) -> bool:
    return server.request("GET", f"/v2/models/{name}/ready")[0] == 200


def index(server: ServerProcess) -> dict[str, tuple[str, str]]:
    status, lines = server.json("POST", "/v2/repository/index", {})
    assert status == 200
    return {line["name"]: (line["state"], line["reason"]) for line in lines}


def test_a_server_without_a_model_in_memory_is_ready(server: ServerProcess) -> None:
    assert server.request("GET", "/v2/health/ready")[0] == 200
    assert not is_ready(server, "same")
    assert index(server)["same"] == ("UNAVAILABLE", ABSENT)


def test_v2(server: ServerProcess) -> None:
    status, answer = server.json("POST", "/v2/models/same/infer", BODY)
    assert status == 200
    assert answer["outputs"][0]["data"] == X[0]
    assert is_ready(server, "same")
    assert index(server)["same"] == ("READY", "")
    assert index(server)["texts"] == ("UNAVAILABLE", ABSENT)  # nobody asked for that one


def test_v1(server: ServerProcess) -> None:
    status, answer = server.json("POST", "/v1/models/same:predict", {"instances": X})
    assert (status, answer) == (200, {"predictions": X})


def test_generate(server: ServerProcess) -> None:
    status, answer = server.json("POST", "/v2/models/same/generate", {"x": X})
    assert status == 200
    assert answer["y"] == X[0]


def test_generate_stream(server: ServerProcess) -> None:
    body = json.dumps({"x": X}).encode()
    status, fields, answer = server.request("POST", "/v2/models/same/generate_stream", body)
    assert (status, fields["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert json.loads(answer.removeprefix(b"data: "))["y"] == X[0]


def test_embeddings(server: ServerProcess) -> None:
    status, answer = server.json("POST", "/v1/embeddings", {"model": "texts", "input": "the cat"})
    assert status == 200
    assert len(answer["data"][0]["embedding"]) == 8


def test_the_triton_clients(server: ServerProcess) -> None:
    with triton_http.InferenceServerClient(address(server)) as client:
        assert client.is_server_ready()
        assert not client.is_model_ready("same")
        x = triton_http.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.array(X, np.float32))
        assert client.infer("same", [x]).as_numpy("y").tolist() == X
        assert client.is_model_ready("same")


def grpc_input() -> triton_grpc.InferInput:
    x = triton_grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.array(X, np.float32))
    return x


def test_grpc(server: ServerProcess) -> None:
    with triton_grpc.InferenceServerClient(address(server)) as client:
        assert client.is_server_ready()
        assert not client.is_model_ready("same")
        assert client.infer("same", [grpc_input()]).as_numpy("y").tolist() == X
        assert client.is_model_ready("same")


def test_a_grpc_stream_answers_in_order_although_the_first_waits(
    server: ServerProcess, repository: Path
) -> None:
    answers: queue.Queue = queue.Queue()
    with triton_grpc.InferenceServerClient(address(server)) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("slow", [grpc_input()], request_id="first")
        wait_until((repository / "slow" / "loading").exists, "slow is being loaded")
        client.async_stream_infer("same", [grpc_input()], request_id="second")
        wait_until(lambda: is_ready(server, "same"), "the second was not held up")
        assert answers.empty()
        (repository / "slow" / "open").touch()
        order = []
        for _ in range(2):
            result, error = answers.get(timeout=60)
            assert error is None
            order.append(result.get_response().id)
        client.stop_stream()
    assert order == ["first", "second"]


def test_all_who_wait_are_answered(server: ServerProcess, repository: Path) -> None:
    callers = [server.connect() for _ in range(8)]
    for caller in callers:
        caller.send(http_request("POST", "/v2/models/slow/infer", BODY))
    wait_until((repository / "slow" / "loading").exists, "slow is being loaded")
    assert server.request("GET", "/v2/health/ready")[0] == 200  # nobody else is held up
    (repository / "slow" / "open").touch()
    for caller in callers:
        with caller:
            status, _, answer = caller.answer()
            assert status == 200
            assert json.loads(answer)["outputs"][0]["data"] == TENFOLD


def test_requests_on_one_connection_are_answered_in_order(
    server: ServerProcess, repository: Path
) -> None:
    with server.connect() as caller:
        caller.send(
            http_request("POST", "/v2/models/slow/infer", BODY | {"id": "1"})
            + http_request("POST", "/v2/models/same/infer", BODY | {"id": "2"})
        )
        wait_until((repository / "slow" / "loading").exists, "slow is being loaded")
        (repository / "slow" / "open").touch()
        assert [json.loads(caller.answer()[2])["id"] for _ in range(2)] == ["1", "2"]


def test_who_left_no_longer_takes_a_place(repository: Path) -> None:
    with serving(repository, env=settings(repository, max_waiting=1)) as server:
        with server.connect() as first:
            first.send(http_request("POST", "/v2/models/slow/infer", BODY))
            wait_until((repository / "slow" / "loading").exists, "slow is being loaded")
            status, fields, answer = server.request(
                "POST", "/v2/models/slow/infer", json.dumps(BODY).encode()
            )
            assert status in {429, 503}
            assert int(fields["retry-after"]) >= 1
            assert "1 requests wait for it already" in json.loads(answer)["error"]

        def is_admitted() -> bool:
            with server.connect() as caller:
                caller.send(http_request("POST", "/v2/models/slow/infer", BODY))
                caller.socket.settimeout(0.2)
                try:
                    caller.answer()
                except TimeoutError:  # it waits
                    return True
                return False

        wait_until(is_admitted, "the place is free again")
        (repository / "slow" / "open").touch()
        wait_until(lambda: is_ready(server, "slow"), "slow is there")


def test_who_waits_too_long_is_told(repository: Path) -> None:
    with serving(repository, env=settings(repository, max_wait_s=0.1)) as server:
        status, fields, answer = server.request(
            "POST", "/v2/models/slow/infer", json.dumps(BODY).encode()
        )
        assert status == 503
        assert int(fields["retry-after"]) >= 1
        assert "was not loaded within 0.1 s" in json.loads(answer)["error"]
        (repository / "slow" / "open").touch()
        wait_until(lambda: is_ready(server, "slow"), "the load went on")


def test_a_model_that_is_broken(server: ServerProcess) -> None:
    for _ in range(2):  # after the load, and at once
        status, fields, answer = server.request(
            "POST", "/v2/models/broken/infer", json.dumps(BODY).encode()
        )
        assert status == 503
        assert int(fields["retry-after"]) >= 1
        assert "'broken' version 1 could not be loaded" in json.loads(answer)["error"]
    with (
        triton_grpc.InferenceServerClient(address(server)) as client,
        pytest.raises(InferenceServerException, match="could not be loaded"),
    ):
        client.infer("broken", [grpc_input()])


def test_the_shape_of_openais_errors(server: ServerProcess) -> None:
    status, answer = server.json("POST", "/v1/embeddings", {"model": "broken", "input": "a"})
    assert status == 503
    assert "could not be loaded" in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_what_is_wrong_with_a_request_is_told_after_the_load(server: ServerProcess) -> None:
    status, answer = server.json("POST", "/v2/models/same/infer", {"inputs": []})
    assert status == 400
    assert "x" in answer["error"]
    assert server.json("POST", "/v2/models/nothing/infer", BODY)[0] == 404


def test_the_end_comes_after_the_load_that_is_under_way(
    server: ServerProcess, repository: Path
) -> None:
    with server.connect() as caller:
        caller.send(http_request("POST", "/v2/models/slow/infer", BODY))
        wait_until((repository / "slow" / "loading").exists, "slow is being loaded")
    server.signal(signal.SIGTERM)
    (repository / "slow" / "open").touch()
    assert server.wait() == 0
    assert not any("Traceback" in line for line in server.lines), "\n".join(server.lines)
