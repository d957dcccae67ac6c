"""What somebody may make a server do who can send it models, or write to its store."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving, wait_until

ONNX = onnx_models.mlp(0, widths=(4, 4, 2))
Files = dict[str, bytes]


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that is there once code of a model has run."""
    return tmp_path / "code has run"


@pytest.fixture
def code(trap: Path) -> bytes:
    text = f"open({str(trap)!r}, 'w').close()\n"
    text += "def predict(x: list[int]) -> list[int]: return x\n"
    text += "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    return text.encode()


def toml(text: str) -> Files:
    return {"model.toml": text.encode()}


Attack = Callable[[bytes], tuple[dict[str, Any], Files]]

ATTACKS: dict[str, Attack] = {
    # Each: code -> the configuration sent, the files sent.
    "an XML file that is Python, by model.toml": lambda code: (
        {"backend": "openvino"},
        {"1/model.xml": code, "1/model.bin": b"x", **toml('runtime = "python"')},
    ),
    "the same in the version's folder": lambda code: (
        {"backend": "openvino"},
        {"1/model.xml": code, "1/model.bin": b"x", "1/model.toml": b'runtime = "python"'},
    ),
    "an ONNX name that is Python": lambda code: (
        {"backend": "onnxruntime"},
        {"1/model.onnx": code, **toml('runtime = "python"')},
    ),
    "a real ONNX file with Python beside it": lambda code: (
        {},
        {"1/model.onnx": ONNX, "1/model.py": code, **toml('runtime = "python"')},
    ),
    "Python as such": lambda code: ({"backend": "python"}, {"1/model.py": code}),
    "Python that no configuration names": lambda code: ({}, {"1/model.py": code}),
    "Python by another name": lambda code: (
        {"backend": "python", "default_model_filename": "weights.bin"},
        {"1/weights.bin": code},
    ),
    "OpenVINO told to run Python": lambda code: (
        {"backend": "openvino", "default_model_filename": "model.py"},
        {"1/model.py": code, "1/model.xml": code, "1/model.bin": b"x"},
    ),
    "a thread of the server for it": lambda code: (
        {"backend": "python"},
        {"1/model.py": code, **toml('runtime_options = { isolation = "thread" }')},
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("repository")
    (folder / "mine" / "1").mkdir(parents=True)
    (folder / "mine" / "1" / "model.onnx").write_bytes(ONNX)
    env = {"HEADRACE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    with serving(folder, "--watch", env=env) as running:
        yield running


def send(server: ServerProcess, config: Mapping[str, Any], files: Files) -> tuple[int, Any]:
    parameters: dict[str, Any] = {
        f"file:{path}": base64.b64encode(content).decode() for path, content in files.items()
    }
    parameters["config"] = json.dumps(config)
    return server.json("POST", "/v2/repository/models/x/load", {"parameters": parameters})


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
class TestSentCode:
    def test_is_not_run_over_http(
        self, server: ServerProcess, attack: Attack, code: bytes, trap: Path
    ) -> None:
        status, answer = send(server, *attack(code))
        assert (status, "x" in answer["error"]) == (400, True)
        assert not trap.exists()
        assert server.json("GET", "/v2/models/x/ready")[0] in (400, 404, 503)

    def test_is_not_run_over_grpc(
        self, server: ServerProcess, attack: Attack, code: bytes, trap: Path
    ) -> None:
        config, files = attack(code)
        with grpc_client.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            sent = {f"file:{path}": content for path, content in files.items()}
            with pytest.raises(InferenceServerException, match="x"):
                client.load_model("x", config=json.dumps(config), files=sent)
        assert not trap.exists()

    def test_is_not_run_from_a_store(
        self, attack: Attack, code: bytes, trap: Path, tmp_path: Path
    ) -> None:
        config, files = attack(code)
        if config:
            text = "\n".join(f'{name}: "{value}"' for name, value in config.items())
            files = {**files, "config.pbtxt": text.encode()}
        with store(tmp_path, {"x": files, "good": {"1/model.onnx": ONNX}}) as url:
            env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
            with serving(url, env=env) as running:
                assert running.json("GET", "/v2/models/good/ready")[0] == 200
                assert running.json("GET", "/v2/models/x/ready")[0] != 200
        assert not trap.exists()


@contextmanager
def store(tmp_path: Path, models: Mapping[str, Files]) -> Iterator[str]:
    """A web server that has these models, and the address by which its list is known."""
    folder = tmp_path / "site" / "models"
    sums = ""
    for name, files in models.items():
        for path, content in files.items():
            file = folder / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            sums += f"{hashlib.sha256(content).hexdigest()}  {name}/{path}\n"
    (folder / "SHA256SUMS").write_text(sums)
    digest = hashlib.sha256(sums.encode()).hexdigest()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{site.server_port}/models/#sha256={digest}"
        finally:
            site.shutdown()
            thread.join()


REFUSED_FIELDS = [
    ('runtime = "openvino"', "runtime"),
    ('runtime = "null"', "runtime"),
    ('isolation = "thread"', "isolation"),
    ('runtime_options = { properties = { CACHE_DIR = "/tmp/x" } }', "runtime_options.properties"),
    ('runtime_options = { providers = ["CUDAExecutionProvider"] }', "runtime_options.providers"),
    ('runtime_options = { session_config = { a = "b" } }', "runtime_options.session_config"),
    ('task_options = { tokenizer = "/etc/passwd" }', "task_options.tokenizer"),
    ("instances = 100000", "instances"),
    ("threads = 20000", "threads"),
    ("min_share = 0.9", "min_share"),
    ("residency = { pinned = true }", "residency.pinned"),
    ("cache = { shared_between_tenants = true }", "cache.shared_between_tenants"),
]


@pytest.mark.parametrize(("text", "field"), REFUSED_FIELDS)
def test_a_field_that_is_not_for_a_caller_to_set(
    server: ServerProcess, text: str, field: str
) -> None:
    status, answer = send(server, {}, {"1/model.onnx": ONNX, **toml(text)})
    assert status == 400
    assert field in answer["error"]
    assert "model.toml" in answer["error"]
    assert "/tmp" not in answer["error"].replace("/tmp/x", "")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"instance_group": [{"count": 100_000}]}, "instances"),
        ({"parameters": {"intra_op_thread_count": {"string_value": "20000"}}}, "threads"),
    ],
    ids=["instances", "threads"],
)
@pytest.mark.parametrize("files", [{}, {"1/model.onnx": ONNX}], ids=["its own files", "sent"])
def test_a_count_beyond_the_machine(
    server: ServerProcess, config: dict[str, Any], field: str, files: Files
) -> None:
    name = "x" if files else "mine"
    parameters: dict[str, Any] = {
        f"file:{k}": base64.b64encode(v).decode() for k, v in files.items()
    }
    parameters["config"] = json.dumps({"backend": "onnxruntime", **config})
    path = f"/v2/repository/models/{name}/load"
    status, answer = server.json("POST", path, {"parameters": parameters})
    assert (status, field in answer["error"]) == (400, True)
    assert server.json("GET", "/v2/models/mine/ready")[0] == 200


def test_a_configuration_names_no_other_model_s_file(server: ServerProcess) -> None:
    for name in ("../../mine/1/model.onnx", "/etc/passwd"):
        config = {"backend": "onnxruntime", "default_model_filename": name}
        status, answer = send(server, config, {"1/model.onnx": ONNX})
        assert (status, "leaves the version's folder" in answer["error"]) == (400, True)


def test_data_may_still_be_sent(server: ServerProcess) -> None:
    fine = 'versions = "1"\ninstances = 2\nthreads = 1\nslo = { p99 = "50ms" }\n'
    config = {"backend": "onnxruntime", "max_batch_size": 8, "instance_group": [{"count": 2}]}
    status, _ = send(server, config, {"1/model.onnx": ONNX, **toml(fine)})
    assert status == 200
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
    assert server.json("POST", "/v2/models/x/infer", body)[0] == 200
    with http_client.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.load_model("mine", config=json.dumps({"backend": "onnxruntime"}))
        client.unload_model("x")


def test_whoever_runs_the_server_may_allow_it(tmp_path: Path, code: bytes, trap: Path) -> None:
    repository = local(tmp_path, {"mine/1/model.onnx": ONNX})
    env = {
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__CODE_FROM": "anywhere",
    }
    with serving(repository, "--watch", env=env) as server:
        plain = code.split(b"class")[0]
        status, answer = send(server, {}, {"1/model.py": plain, **toml('runtime = "python"')})
        assert (status, trap.exists()) == (200, True), answer


def local(tmp_path: Path, files: Files) -> Path:
    """A repository on this machine."""
    for name, content in files.items():
        file = tmp_path / "repository" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "repository"


def test_nobody_s_code_is_run(tmp_path: Path, code: bytes, trap: Path) -> None:
    """With ``code_from = "nowhere"`` not even that of the operator's own folder."""
    repository = local(tmp_path, {"mine/1/model.onnx": ONNX, "local/1/model.py": code})
    env = {
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__CODE_FROM": "nowhere",
    }
    with serving(repository, env=env) as server:
        assert server.json("GET", "/v2/models/mine/ready")[0] == 200
        assert server.json("GET", "/v2/models/local/ready")[0] != 200
        status, index = server.json("POST", "/v2/repository/index")
        (reason,) = [each["reason"] for each in index if each["name"] == "local"]
        assert (status, "does not run" in reason) == (200, True)
    assert not trap.exists()


def test_uploads_can_be_switched_off(tmp_path: Path) -> None:
    repository = local(tmp_path, {"mine/1/model.onnx": ONNX})
    env = {
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__UPLOADS": "false",
    }
    with serving(repository, "--watch", env=env) as server:
        status, answer = send(server, {}, {"1/model.onnx": ONNX})
        assert (status, "takes no files" in answer["error"]) == (403, True)
        with (
            grpc_client.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
            pytest.raises(InferenceServerException, match="takes no files"),
        ):
            client.load_model("x", config="{}", files={"file:1/model.onnx": ONNX})
        assert server.json("POST", "/v2/repository/models/mine/load", {})[0] == 200


@pytest.mark.parametrize("filename", ["export.py", "model.py"])
def test_a_configuration_that_is_sent_selects_no_code(
    tmp_path: Path, code: bytes, trap: Path, filename: str
) -> None:
    """Of the operator's own folder either: scripts that made a model often lie beside it."""
    files = {"mine/1/model.onnx": ONNX, f"mine/1/{filename}": code}
    repository = local(tmp_path, {**files, "mine/config.pbtxt": b'backend: "onnxruntime"'})
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(repository, "--watch", env=env) as server:
        config = json.dumps({"backend": "python", "default_model_filename": filename})
        path = "/v2/repository/models/mine/load"
        status, answer = server.json("POST", path, {"parameters": {"config": config}})
        assert (status, answer["reason_code"]) == (400, "code_refused")
        assert not trap.exists()
        assert server.json("GET", "/v2/models/mine/ready")[0] == 200


def test_a_python_model_of_the_operator_s_may_be_configured(
    tmp_path: Path, code: bytes, trap: Path
) -> None:
    plain = code.split(b"class")[0]
    repository = local(tmp_path, {"mine/1/model.onnx": ONNX, "local/1/model.py": plain})
    env = {
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__MODEL_CONTROL": "explicit",
        "HEADRACE_SERVER__LOAD_MODELS": '["mine"]',
    }
    with serving(repository, env=env) as server:
        assert not trap.exists()
        config = json.dumps({"backend": "python", "max_batch_size": 4})
        path = "/v2/repository/models/local/load"
        status, answer = server.json("POST", path, {"parameters": {"config": config}})
        assert (status, trap.exists()) == (200, True), answer


def test_the_operator_s_files_outlive_a_load_that_fails(tmp_path: Path) -> None:
    """Whatever the folders are called: only what a load request brought is deleted."""
    name = "headrace-model-demo"
    repository = local(tmp_path, {f"{name}/1/model.onnx": ONNX, "good/1/model.onnx": ONNX})
    repository = repository.rename(tmp_path / "headrace-model-repository")
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(repository, "--watch", env=env) as server:
        path = f"/v2/repository/models/{name}/load"
        config = json.dumps({"backend": "openvino"})
        assert server.json("POST", path, {"parameters": {"config": config}})[0] == 400
        (repository / name / "model.toml").write_text("runtime_options = { zz = 1 }")
        assert server.json("POST", path, {})[0] == 400
        assert (repository / name / "1" / "model.onnx").exists()
        assert (repository / "good" / "1" / "model.onnx").exists()


def test_files_that_were_sent_are_deleted(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(scratch)}
    ensemble = {
        "platform": "ensemble",
        "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "b", "data_type": "TYPE_FP32", "dims": [2]}],
        "ensemble_scheduling": {
            "step": [{"model_name": "nobody", "input_map": {"x": "a"}, "output_map": {"y": "b"}}]
        },
    }
    with serving(local(tmp_path, {"mine/1/model.onnx": ONNX}), "--watch", env=env) as server:
        models = "/v2/repository/models"
        assert send(server, ensemble, {"1/.keep": b""})[0] == 400
        assert send(server, {"backend": "onnxruntime"}, {"1/model.onnx": b"not a model"})[0] == 400
        assert not uploads(scratch)
        both = {"1/model.onnx": ONNX, "2/model.onnx": ONNX}
        assert send(server, {}, both)[0] == 200
        for version in ("1", "2", "9", "1"):
            server.json("POST", f"{models}/x/promote", {"version": version})
        assert server.json("GET", "/v2/models/x/versions/1/ready")[0] == 200
        assert server.json("POST", f"{models}/x/unload", {})[0] == 200
        wait_until(lambda: not uploads(scratch), "the files are deleted")


def uploads(scratch: Path) -> list[Path]:
    return list(scratch.glob("headrace-model-*"))


@pytest.mark.parametrize("step", ["../../../../usr", "..", "a/b", ""])
def test_an_ensemble_s_step_is_a_name_and_no_path(server: ServerProcess, step: str) -> None:
    config = {
        "platform": "ensemble",
        "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "b", "data_type": "TYPE_FP32", "dims": [2]}],
        "ensemble_scheduling": {
            "step": [{"model_name": step, "input_map": {"x": "a"}, "output_map": {"y": "b"}}]
        },
    }
    status, answer = send(server, config, {"1/.keep": b""})
    assert status == 400
    assert step in answer["error"]


def test_labels_of_metrics_are_names(server: ServerProcess) -> None:
    forged = 'a="1"} 5\nnv_inference_request_success{model="mine"} 999\n# '
    tags = toml(f"metric_tags = {{ {json.dumps(forged)} = 'z' }}")
    status, answer = send(server, {}, {"1/model.onnx": ONNX, **tags})
    assert (status, "metric_tags" in answer["error"]) == (400, True)
    for tag in ("bad tag", "le", "__name__", "é", forged):
        config = {"backend": "onnxruntime", "metric_tags": {tag: "z", "team": "search"}}
        assert send(server, config, {"1/model.onnx": ONNX})[0] == 200
        page = server.request("GET", "/metrics")[2].decode()
        samples = [s for f in text_string_to_metric_families(page) for s in f.samples]
        ours = [s.labels for s in samples if s.labels.get("team") == "search"]
        assert ours
        assert all(labels["model"] == "x" for labels in ours)
        assert not any(forged in labels or tag in labels for labels in ours) or tag == "le"
        assert not any(s.value == 999 for s in samples)


@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_nothing_is_imported_from_the_current_directory(
    tmp_path: Path, trap: Path, more: tuple[str, ...]
) -> None:
    """Which is often the repository, or the mirror of a store."""
    repository = local(tmp_path, {"httptools/1/model.onnx": ONNX})
    for name in ("httptools/__init__.py", "uvloop.py", "numpy.py", "sitecustomize.py"):
        (repository / name).write_text(f"open({str(trap)!r}, 'w').close()\n")
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with ServerProcess(".", "--port", "0", *more, env=env, cwd=repository) as server:
        server.wait_ready()
        assert server.json("GET", "/v2/models/httptools/ready")[0] == 200
    assert not trap.exists()
