"""Models come, change and go in a running server, through Triton's own client."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from headrace.testing import onnx_models
from tests.integration.server_process import (
    ServerProcess,
    make_gate_model,
    rows,
    serving,
    wait_until,
)

WIDTHS = (4, 4, 2)
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def mlp(seed: int) -> bytes:
    return onnx_models.mlp(seed, widths=WIDTHS)


def expected(seed: int) -> np.ndarray:
    return onnx_models.mlp_reference(X, seed, widths=WIDTHS)


def put(repository: Path, name: str, version: int, seed: int) -> None:
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "model.new"
    new.write_bytes(mlp(seed))
    new.replace(folder / "model.onnx")  # as a whole: a server may be looking


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        put(tmp_path / "repository", name, 1, seed=0)
    return tmp_path / "repository"


def settings(tmp_path: Path, **server: Any) -> dict[str, str]:
    env = {f"HEADRACE_SERVER__{name.upper()}": str(value) for name, value in server.items()}
    return env | {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}


def client_of(server: ServerProcess) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{server.port}")


def infer(client: triton.InferenceServerClient, model: str, version: str = "") -> np.ndarray:
    x = triton.InferInput("x", [2, 4], "FP32")
    x.set_data_from_numpy(X)
    return client.infer(model, [x], model_version=version).as_numpy("y")


def states(client: triton.InferenceServerClient) -> dict[tuple[str, str], tuple[str, str]]:
    return {
        (line["name"], line["version"]): (line["state"], line["reason"])
        for line in client.get_model_repository_index()
    }


@contextmanager
def explicit(repository: Path, **server: Any) -> Iterator[triton.InferenceServerClient]:
    env = settings(repository.parent, model_control="explicit", **server)
    with serving(repository, env=env) as process, client_of(process) as client:
        yield client


def test_load_change_and_unload(repository: Path) -> None:
    with explicit(repository) as client:
        assert client.is_server_ready()
        assert states(client) == {("a", ""): ("UNAVAILABLE", ""), ("b", ""): ("UNAVAILABLE", "")}
        assert not client.is_model_ready("a")
        client.load_model("a")
        assert np.allclose(infer(client, "a"), expected(0), atol=1e-5)

        put(repository, "a", 2, seed=5)
        client.load_model("a")
        assert np.allclose(infer(client, "a"), expected(5), atol=1e-5)
        assert client.get_model_metadata("a")["versions"] == ["2"]
        wait_until(
            lambda: states(client)[("a", "1")] == ("UNAVAILABLE", "unloaded"), "the old one left"
        )
        client.unload_model("a")
        assert states(client)[("a", "2")] == ("UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'a'"):
            infer(client, "a")
        client.unload_model("a")  # once more is no mistake
        assert client.is_server_ready()


def test_configuration_and_files_that_come_with_the_command(repository: Path) -> None:
    with explicit(repository) as client:
        client.load_model("a", config=json.dumps({"backend": "onnxruntime", "max_batch_size": 3}))
        assert client.get_model_config("a")["max_batch_size"] == 3
        config = json.dumps({"backend": "onnxruntime", "max_batch_size": 8})
        client.load_model("sent", config=config, files={"file:7/model.onnx": mlp(9)})
        assert np.allclose(infer(client, "sent", "7"), expected(9), atol=1e-5)
        client.load_model("a")  # what was said with the command before no longer holds
        assert client.get_model_config("a")["max_batch_size"] != 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model_name": "x"}, "failed to load 'x', failed to poll from model repository"),
        ({"model_name": "..", "config": "{}"}, "failed to load '..'"),
        ({"model_name": "a", "config": "{"}, "load failed for model 'a'"),
        (
            {"model_name": "a", "config": "{}", "files": {"file:../../x": b"x"}},
            "not a path within the model's folder",
        ),
        (
            {
                "model_name": "a",
                "config": '{"backend":"onnxruntime"}',
                "files": {"file:1/model.onnx": b"no model"},
            },
            "load failed for model 'a'",
        ),
    ],
)
def test_what_cannot_be_loaded_leaves_what_serves(
    repository: Path, arguments: dict[str, Any], text: str
) -> None:
    with explicit(repository, load_models='["a"]') as client:
        with pytest.raises(InferenceServerException) as caught:
            client.load_model(**arguments)
        assert text in caught.value.message()
        assert np.allclose(infer(client, "a"), expected(0), atol=1e-5)


def test_no_request_fails_while_a_model_is_replaced_again_and_again(repository: Path) -> None:
    answers: list[np.ndarray] = []
    failures: list[Any] = []
    over = threading.Event()
    x = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": X.ravel().tolist()}

    def ask(process: ServerProcess) -> None:
        while not over.is_set():
            status, body = process.json("POST", "/v2/models/a/infer", {"inputs": [x]})
            if status == 200:
                answers.append(np.array(body["outputs"][0]["data"]).reshape(2, 2))
            else:
                failures.append(body)

    env = settings(repository.parent, model_control="explicit", load_models='["a"]')
    gc.collect()  # a client of another test must not be finalised in a thread: gevent minds
    with serving(repository, env=env) as process, client_of(process) as client:
        threads = [threading.Thread(target=ask, args=(process,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for seed in range(1, 7):
            put(repository, "a", 1 if seed % 2 else seed, seed)
            client.load_model("a")
        over.set()
        for thread in threads:
            thread.join(60)
        assert np.allclose(infer(client, "a"), expected(6), atol=1e-5)
    assert failures == []
    assert answers
    possible = [expected(seed) for seed in range(7)]
    assert all(any(np.allclose(each, p, atol=1e-5) for p in possible) for each in answers)


def test_a_request_that_runs_is_answered_before_its_model_goes(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "gate" / "1"
    folder.mkdir(parents=True)
    make_gate_model(folder).rename(folder / "model.py")
    env = settings(tmp_path, model_control="explicit", load_models='["gate"]')
    with serving(tmp_path / "repository", env=env) as server:
        answers: list[int] = []
        path = "/v2/models/gate/infer"
        asking = threading.Thread(
            target=lambda: answers.append(server.json("POST", path, rows(77))[0])
        )
        asking.start()
        wait_until((folder / "entered").exists, "the request runs")
        unload = "/v2/repository/models/gate/unload"
        assert server.json("POST", unload) == (200, {"name": "gate", "unload": True})
        (line,) = server.json("POST", "/v2/repository/index")[1]
        assert line["state"] == "UNLOADING"
        assert server.json("POST", path, rows(1))[0] == 503
        (folder / "open").touch()
        asking.join(60)
        assert answers == [200]
        wait_until(
            lambda: server.json("POST", "/v2/repository/index")[1][0]["state"] == "UNAVAILABLE",
            "it is gone",
        )


def test_without_explicit_control_a_command_is_refused(repository: Path) -> None:
    with (
        serving(repository, env=settings(repository.parent)) as process,
        client_of(process) as client,
    ):
        for command in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="is not allowed if polling"):
                command("a")
        assert client.is_model_ready("a")


def test_a_repository_that_is_looked_at_again(repository: Path) -> None:
    env = settings(repository.parent, model_control="poll", repository_poll_s=0.05)
    with serving(repository, env=env) as process, client_of(process) as client:
        assert client.is_model_ready("b")
        put(repository, "c", 1, seed=3)
        wait_until(lambda: client.is_model_ready("c"), "a new model is served")
        put(repository, "a", 1, seed=4)
        wait_until(
            lambda: np.allclose(infer(client, "a"), expected(4), atol=1e-5), "a changed one too"
        )
        shutil.rmtree(repository / "b")
        wait_until(lambda: not client.is_model_ready("b"), "one that is gone is not")
        (repository / "a" / "1" / "model.onnx").write_bytes(b"broken")
        process.wait_for("load failed for model 'a'")
        assert np.allclose(infer(client, "a"), expected(4), atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_a_broken_model_and_readiness(repository: Path, strict: bool) -> None:
    (repository / "b" / "1" / "model.onnx").write_bytes(b"broken")
    env = settings(repository.parent, strict_readiness=str(strict).lower())
    with ServerProcess(repository, "--port", "0", env=env) as server:
        server.wait_ready()
        assert server.request("GET", "/v2/health/ready")[0] == (503 if strict else 200)
        assert server.request("GET", "/v2/models/a/ready")[0] == 200


def test_a_broken_model_can_end_the_start(repository: Path) -> None:
    (repository / "b" / "1" / "model.onnx").write_bytes(b"broken")
    env = settings(repository.parent, exit_on_error="true")
    with ServerProcess(repository, "--port", "0", env=env) as server:
        assert server.wait() != 0
        assert any("is not an ONNX model" in line for line in server.lines)


def test_a_model_that_was_broken_is_shown_with_its_reason_until_it_is_not(
    repository: Path,
) -> None:
    model = repository / "a" / "1" / "model.onnx"
    model.write_bytes(b"broken")
    with explicit(repository, strict_readiness="true") as client:
        with pytest.raises(InferenceServerException, match="load failed for model 'a'"):
            client.load_model("a")
        (line,) = [line for line in client.get_model_repository_index() if line["name"] == "a"]
        assert line["state"] == "UNAVAILABLE"
        assert "is not an ONNX model" in line["reason"]
        assert not client.is_server_ready()
        model.write_bytes(mlp(0))
        client.load_model("a")
        assert states(client) == {("a", "1"): ("READY", ""), ("b", ""): ("UNAVAILABLE", "")}
        assert client.is_server_ready()


def test_an_ensemble_comes_with_its_steps_and_may_take_them_along(repository: Path) -> None:
    folder = repository / "both"
    (folder / "1").mkdir(parents=True)
    step = (
        'step {{ model_name: "{}" model_version: -1 input_map {{ key: "x" value: "{}" }} '
        'output_map {{ key: "y" value: "{}" }} }}'
    )
    (folder / "config.pbtxt").write_text(
        'platform: "ensemble"\nmax_batch_size: 8\n'
        'input { name: "IN" data_type: TYPE_FP32 dims: [4] }\n'
        'output { name: "OUT" data_type: TYPE_FP32 dims: [2] }\n'
        f"ensemble_scheduling {{ {step.format('a', 'IN', 'OUT')} }}\n"
    )
    with explicit(repository) as client:
        client.load_model("both")
        x = triton.InferInput("IN", [2, 4], "FP32")
        x.set_data_from_numpy(X)
        answer = client.infer("both", [x]).as_numpy("OUT")
        assert np.allclose(answer, expected(0), atol=1e-5)
        stats = {
            each["name"]: (each["inference_count"], each["execution_count"])
            for each in client.get_inference_statistics()["model_stats"]
        }
        assert stats == {"a": (2, 1), "both": (2, 1)}
        client.unload_model("both")
        assert client.is_model_ready("a")
        client.load_model("both")
        client.unload_model("both", unload_dependents=True)
        assert not client.is_model_ready("a")
