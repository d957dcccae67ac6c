"""Models come and go in a real server: absent ones over every protocol, aliases, the watcher."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving, wait_until

WIDTHS = (4, 4, 2)
X = np.arange(4, dtype=np.float32).reshape(1, 4)
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X[0].tolist()}]}


def put(repository: Path, name: str, version: int = 1, seed: int = 0) -> None:
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "model.new"
    new.write_bytes(onnx_models.mlp(seed, widths=WIDTHS))
    new.replace(folder / "model.onnx")


def expected(seed: int) -> list[float]:
    return onnx_models.mlp_reference(X, seed, widths=WIDTHS)[0].tolist()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        put(tmp_path / "repository", name)
    return tmp_path / "repository"


def env(tmp_path: Path, **settings: str) -> dict[str, str]:
    named = {f"HEADRACE_{name.upper()}": value for name, value in settings.items()}
    return named | {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}


def lazy(tmp_path: Path) -> dict[str, str]:
    return env(tmp_path, defaults__residency__load="lazy")


def infer(server: ServerProcess, model: str, version: str = "") -> tuple[int, Any]:
    place = f"/versions/{version}" if version else ""
    return server.json("POST", f"/v2/models/{model}{place}/infer", BODY)


def answer(server: ServerProcess, model: str, version: str = "") -> list[float]:
    status, body = infer(server, model, version)
    assert status == 200, body
    data: list[float] = body["outputs"][0]["data"]
    return data


def states(server: ServerProcess) -> dict[tuple[str, str], tuple[str, str]]:
    _, lines = server.json("POST", "/v2/repository/index")
    return {(line["name"], line["version"]): (line["state"], line["reason"]) for line in lines}


def models(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "models", *arguments, "--url", server.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# -- absent models -------------------------------------------------------------------------------


def test_a_lazy_model_is_loaded_by_its_first_request(repository: Path, tmp_path: Path) -> None:
    with serving(repository, env=lazy(tmp_path)) as server:
        assert server.request("GET", "/v2/health/ready")[0] == 200
        assert server.request("GET", "/v2/models/a/ready")[0] != 200
        reason = "not in memory: loaded when it is asked for"
        assert states(server) == {(name, "1"): ("UNAVAILABLE", reason) for name in ("a", "b")}
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)
        assert server.request("GET", "/v2/models/a/ready")[0] == 200
        assert states(server)[("b", "1")] == ("UNAVAILABLE", reason)
        status, body = server.json("POST", "/v1/models/b:predict", {"instances": X.tolist()})
        assert status == 200
        assert np.allclose(body["predictions"][0], expected(0), atol=1e-5)


def test_other_protocols_wait_for_an_absent_model_too(repository: Path, tmp_path: Path) -> None:
    put(repository, "c")
    with serving(repository, env=lazy(tmp_path)) as server:
        address = f"127.0.0.1:{server.port}"
        with triton_http.InferenceServerClient(address) as client:
            x = triton_http.InferInput("x", [1, 4], "FP32")
            x.set_data_from_numpy(X)
            assert np.allclose(client.infer("a", [x]).as_numpy("y")[0], expected(0), atol=1e-5)
        with triton_grpc.InferenceServerClient(address) as client:
            x = triton_grpc.InferInput("x", [1, 4], "FP32")
            x.set_data_from_numpy(X)
            assert np.allclose(client.infer("b", [x]).as_numpy("y")[0], expected(0), atol=1e-5)
            answers: queue.Queue[Any] = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            # The first waits for its model, the second need not; their answers keep their order.
            client.async_stream_infer("c", [x], request_id="first")
            client.async_stream_infer("a", [x], request_id="second")
            client.async_stream_infer("nothing", [x], request_id="third")
            for wanted in ("first", "second"):
                result, error = answers.get(timeout=60)
                assert error is None
                assert result.get_response().id == wanted
            assert "unknown model" in str(answers.get(timeout=60)[1])
            client.stop_stream()


def test_a_model_that_cannot_be_loaded_says_so_to_who_waits(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "broken"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("def predict(x: float) -> float:\n    return x\n1 / 0\n")
    put(tmp_path / "repository", "a")
    with serving(tmp_path / "repository", env=lazy(tmp_path)) as server:
        for _ in range(2):  # the second is told at once
            status, fields, body = server.request(
                "POST", "/v2/models/broken/infer", json.dumps(BODY).encode()
            )
            assert status == 503
            assert "ZeroDivisionError" in json.loads(body)["error"]
            assert 1 <= int(fields["retry-after"]) <= 5
        status, body = server.json("POST", "/v1/embeddings", {"model": "broken", "input": "x"})
        assert (status, body["error"]["type"]) == (503, "server_error")
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)


def test_a_full_waiting_room_tells_when_to_come_back(repository: Path, tmp_path: Path) -> None:
    settings = lazy(tmp_path) | {"HEADRACE_DEFAULTS__RESIDENCY__MAX_WAITING": "0"}
    with serving(repository, env=settings) as server:
        status, fields, body = server.request(
            "POST", "/v2/models/a/infer", json.dumps(BODY).encode()
        )
        assert status == 503
        assert json.loads(body)["code"] == "load_queue_full"
        assert int(fields["retry-after"]) >= 1
        wait_until(lambda: infer(server, "a")[0] == 200, "it was loaded behind the refusals")


# -- versions --------------------------------------------------------------------------------------


def test_promote_rollback_pin_and_history_from_the_command_line(
    repository: Path, tmp_path: Path
) -> None:
    put(repository, "a", 2, seed=5)
    with serving(repository, "--watch", env=env(tmp_path)) as server:
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)
        said = models(server, "promote", "a", "1")
        assert said.stdout.startswith('a: stable = "1"')
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)
        assert np.allclose(answer(server, "a", "stable"), expected(0), atol=1e-5)
        assert models(server, "promote", "a", "2", "--alias", "canary").returncode == 0
        assert np.allclose(answer(server, "a", "canary"), expected(5), atol=1e-5)
        assert models(server, "promote", "a", "2").returncode == 0
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)
        assert models(server, "rollback", "a").returncode == 0
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)
        assert "stays in memory" in models(server, "pin", "a").stdout
        listed = models(server, "list").stdout
        assert "stable (answers)" in listed
        assert "pinned" in listed
        history = models(server, "history", "a").stdout
        assert "promote 1: stable = 1" in history
        refused = models(server, "promote", "a", "9")
        assert refused.returncode == 1
        assert "has no version 9" in refused.stderr
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)
        assert "is not found" in models(server, "history", "nothing").stderr


def test_a_rollback_without_a_promotion_goes_to_the_version_below(
    repository: Path, tmp_path: Path
) -> None:
    put(repository, "a", 2, seed=5)
    with serving(repository, "--watch", env=env(tmp_path)) as server:
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)
        assert models(server, "rollback", "a").returncode == 0
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)
        assert "nothing to go back to" in models(server, "rollback", "b").stderr


def test_nothing_is_changed_by_command_unless_the_server_was_started_for_it(
    repository: Path, tmp_path: Path
) -> None:
    put(repository, "a", 2, seed=5)
    with serving(repository, env=env(tmp_path)) as server:
        before = server.json("GET", "/v2/repository/models")[1]
        for command in (["unload", "a"], ["promote", "a", "1"], ["rollback", "a"], ["pin", "a"]):
            refused = models(server, *command)
            assert refused.returncode == 1
            assert "--watch" in refused.stderr
        for path, update in (
            ("/v2/logging", {"log_info": False}),
            ("/v2/trace/setting", {"trace_rate": "7"}),
            ("/v2/models/a/trace/setting", {"trace_rate": None}),
        ):
            settings = server.json("GET", path)
            status, body = server.json("POST", path, update)
            assert (status, body["code"]) == (503, "model_control")
            assert server.json("POST", path) == server.json("GET", path) == settings
            assert server.json("POST", path, {}) == settings
        assert [(each["version"], each["aliases"], each["pinned"]) for each in before] == [
            (each["version"], each["aliases"], each["pinned"])
            for each in server.json("GET", "/v2/repository/models")[1]
        ]
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)


def test_workers_all_follow_an_alias(repository: Path, tmp_path: Path) -> None:
    put(repository, "a", 2, seed=5)
    with serving(repository, "--watch", "--workers", "2", env=env(tmp_path)) as server:
        assert models(server, "promote", "a", "1").returncode == 0
        for _ in range(12):  # connections of their own: both workers are asked
            assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)


def test_aliases_in_model_toml_are_served_whatever_the_policy(
    repository: Path, tmp_path: Path
) -> None:
    put(repository, "a", 2, seed=5)
    put(repository, "a", 3, seed=7)
    (repository / "a" / "model.toml").write_text('aliases = { stable = "1", canary = "2" }\n')
    with serving(repository, env=env(tmp_path)) as server:
        for version, seed in (("", 0), ("stable", 0), ("canary", 5), ("3", 7)):
            assert np.allclose(answer(server, "a", version), expected(seed), atol=1e-5)


# -- the watcher -----------------------------------------------------------------------------------


def test_a_watched_repository_is_followed_and_nonsense_changes_nothing(
    repository: Path, tmp_path: Path
) -> None:
    with serving(repository, "--watch", env=env(tmp_path)) as server:
        put(repository, "a", 2, seed=5)
        wait_until(lambda: states(server).get(("a", "2"), ("", ""))[0] == "READY", "version 2")
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)
        (repository / "a" / "3").mkdir()
        (repository / "a" / "3" / "model.onnx").write_bytes(b"half of it")
        server.wait_for("model a")
        (repository / "b" / "model.toml").write_text("threads = 'many'\n")
        server.wait_for("threads")
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)
        assert np.allclose(answer(server, "b"), expected(0), atol=1e-5)
        assert models(server, "unload", "b").returncode == 0
        for version in ("1", "2", "3"):
            shutil.rmtree(repository / "a" / version)
        (repository / "a" / "notes.txt").write_text("empty for now\n")
        server.wait_for("what is in memory stays")
        assert np.allclose(answer(server, "a"), expected(5), atol=1e-5)
        shutil.rmtree(repository / "a")
        wait_until(lambda: states(server)[("a", "2")][0] == "UNAVAILABLE", "a left")
        assert states(server)[("b", "1")] == ("UNAVAILABLE", "unloaded")  # by hand, and stays so


def test_code_that_is_sent_is_not_run(repository: Path, tmp_path: Path) -> None:
    with serving(repository, "--watch", env=env(tmp_path)) as server:
        code = b"import os\nos.abort()\n"
        config = json.dumps({"backend": "python"})
        with (
            triton_http.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
            pytest.raises(InferenceServerException, match="brings code"),
        ):
            client.load_model("sent", config=config, files={"file:1/model.py": code})
        assert server.process.poll() is None


def test_a_process_of_its_own_is_told_of_in_the_history(repository: Path, tmp_path: Path) -> None:
    settings = env(tmp_path, defaults__isolation="process")
    with serving(repository / "a", env=settings) as server:
        assert np.allclose(answer(server, "a"), expected(0), atol=1e-5)
        (line,) = server.json("GET", "/v2/repository/models")[1]
        (pid,) = line["processes"]
        assert line["size_bytes"] > 1 << 20
        os.kill(pid, 9)
        wait_until(lambda: infer(server, "a")[0] == 200, "it is back")
        history = server.json("GET", "/v2/models/a/history")[1]
        assert any("SIGKILL" in each["reason"] for each in history)
        assert any("serves" in each["reason"] for each in history)
