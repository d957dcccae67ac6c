"""Every route of the application, without a socket."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from headrace.frontends.rest import create_app
from headrace.testing.engine_view import FakeEngineView
from headrace.types import ModelMetadata, TensorSpec

MLP = ModelMetadata(
    name="mlp",
    versions=("1", "2"),
    platform="onnxruntime_onnx",
    inputs=(TensorSpec("x", "FP32", (-1, 4)), TensorSpec("mask", "BOOL", (-1,), optional=True)),
    outputs=(TensorSpec("y", "FP32", (-1, 2)),),
    properties={"task": "tensor"},
)
MINILM = ModelMetadata(
    name="org/minilm",
    versions=("1",),
    platform="openvino",
    inputs=(TensorSpec("text", "BYTES", (-1,)),),
    outputs=(TensorSpec("embedding", "FP32", (-1, 384)),),
)
METRICS = b"# HELP x y\n# TYPE x counter\nx 1\n"


class Server:
    """The application with levers."""

    def __init__(self) -> None:
        self.view = FakeEngineView(
            {"mlp": MLP, "org/minilm": MINILM},
            kinds={"org/minilm": "text-embedding"},
            loading={"slow": "fetching"},
        )
        self.is_live = True
        self.is_ready = True
        app = create_app(
            self.view,
            version="1.2.3",
            metrics=self._metrics,
            is_live=lambda: self.is_live,
            is_ready=lambda: self.is_ready,
        )
        self.client = TestClient(app)

    async def _metrics(self) -> bytes:
        return METRICS

    def get(self, path: str) -> Any:
        response = self.client.get(path)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        return response.json()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_with_and_without_the_slash(server: Server, path: str) -> None:
    body = server.get(path)
    assert body["name"] == "headrace"
    assert body["version"] == "1.2.3"
    assert "binary_tensor_data" in body["extensions"]


def test_health_says_yes_in_the_objects_that_clients_parse(server: Server) -> None:
    assert server.get("/v2/health/live") == {"live": True}
    assert server.get("/v2/health/ready") == {"ready": True}
    assert server.get("/healthz") == {"status": "ok"}


def test_health_says_no_with_503(server: Server) -> None:
    server.is_live = server.is_ready = False
    for path, body in (
        ("/v2/health/live", {"live": False}),
        ("/v2/health/ready", {"ready": False, "waiting_for": ["slow/1: LOADING"]}),
        ("/healthz", {"status": "stopping"}),
    ):
        response = server.client.get(path)
        assert response.status_code == 503
        assert response.json() == body


def test_the_list_of_models(server: Server) -> None:
    assert server.get("/v2/models") == {"models": ["mlp", "org/minilm", "slow"]}


@pytest.mark.parametrize("path", ["/v2/models/mlp", "/v2/models/mlp/versions/2"])
def test_model_metadata(server: Server, path: str) -> None:
    assert server.get(path) == {
        "name": "mlp",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1], "optional": True},
        ],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        "properties": {"task": "tensor"},
    }


@pytest.mark.parametrize("path", ["/v2/models/mlp/ready", "/v2/models/mlp/versions/1/ready"])
def test_model_ready(server: Server, path: str) -> None:
    assert server.get(path) == {"name": "mlp", "ready": True}


def test_a_loading_model_is_503_with_a_time_to_come_back(server: Server) -> None:
    response = server.client.get("/v2/models/slow/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json()["code"] == "model_not_ready"


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/nope",
        "/v2/models/nope/ready",
        "/v2/models/nope/config",
        "/v2/models/mlp/versions/9",
        "/v2/models/mlp/versions/9/ready",
    ],
)
def test_an_unknown_model_is_404_in_the_words_clients_look_for(server: Server, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 404
    assert "Request for unknown model" in response.json()["error"]
    assert response.json()["code"] == "model_not_found"


def test_model_config(server: Server) -> None:
    assert server.get("/v2/models/mlp/config")["max_batch_size"] == 8


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", ["mlp", "mlp", "org/minilm", "slow"]),
        (b"{}", ["mlp", "mlp", "org/minilm", "slow"]),
        (b'{"ready": false}', ["mlp", "mlp", "org/minilm", "slow"]),
        (b'{"ready": true}', ["mlp", "mlp", "org/minilm"]),
    ],
)
def test_the_repository_index(server: Server, body: bytes, names: list[str]) -> None:
    response = server.client.post("/v2/repository/index", content=body)
    assert response.status_code == 200
    assert [entry["name"] for entry in response.json()] == names
    assert response.json()[0] == {"name": "mlp", "version": "1", "state": "READY", "reason": ""}


@pytest.mark.parametrize("body", [b'{"ready": "yes"}', b"[1", b"\xff", b"[" * 100_000])
def test_a_broken_index_request_is_400(server: Server, body: bytes) -> None:
    response = server.client.post("/v2/repository/index", content=body)
    assert response.status_code == 400
    assert response.json()["code"] in ("malformed_json", "wrong_json")


def test_openai_lists_the_models_it_can_use(server: Server) -> None:
    body = server.get("/v1/models")
    assert body["object"] == "list"
    (model,) = body["data"]
    assert model["id"] == "org/minilm"
    assert abs(model["created"] - time.time()) < 600
    assert server.get("/v1/models/org/minilm") == model


@pytest.mark.parametrize("name", ["nope", "org/nope", "mlp"])
def test_openai_answers_in_its_own_shape(server: Server, name: str) -> None:
    response = server.client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == "model_not_found"


def test_metrics_are_passed_on(server: Server) -> None:
    response = server.client.get("/metrics")
    assert response.content == METRICS
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_wrong_path_is_told_the_right_ones(server: Server) -> None:
    response = server.client.get("/v2/modles")
    assert response.status_code == 404
    assert response.json()["code"] == "route_not_found"
    assert "/v2/models/{model}/infer" in response.json()["hint"]
    assert set(server.client.get("/v1/nope").json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/mlp/infer", "POST"),
        ("GET", "/v2/models/mlp/versions/1/infer", "POST"),
        ("GET", "/v2/repository/index", "POST"),
        ("GET", "/v1/embeddings", "POST"),
        ("DELETE", "/v2/models/mlp", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("OPTIONS", "/v2", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(
    server: Server, method: str, path: str, allowed: str
) -> None:
    response = server.client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert allowed in response.text


def test_a_slash_at_the_end_does_not_redirect_to_a_host_of_the_callers_choice(
    server: Server,
) -> None:
    response = server.client.get("/v2/models/", headers={"host": "evil"}, follow_redirects=False)
    assert response.status_code == 404


@pytest.mark.parametrize("path", ["/", "/docs", "/v2", "/metrics", "/v2/models/mlp", "/nope"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    get, head = server.client.get(path), server.client.head(path)
    assert head.content == b""
    assert head.status_code == (get.status_code if path != "/nope" else 404)
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == get.headers["content-length"]


def test_the_unforeseen_is_500_and_tells_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, version: str = "") -> ModelMetadata:
        raise KeyError("/etc/shadow")

    monkeypatch.setattr(server.view, "metadata", fail)
    response = server.client.get("/v2/models/mlp")
    assert response.status_code == 500
    assert "shadow" not in response.text
    assert response.json()["code"] == "internal"


def test_inference_without_the_fast_lane_says_so(server: Server) -> None:
    response = server.client.post("/v2/models/mlp/infer", content=b"{}")
    assert response.status_code == 501
    assert "headrace serve" in response.json()["hint"]


def test_a_model_unloaded_while_the_documentation_is_made_is_left_out(server: Server) -> None:
    ready = server.view.statuses()
    server.view.statuses = lambda: ready  # type: ignore[method-assign]  # the moment before
    del server.view.models["mlp"]
    assert "mlp" not in str(server.get("/openapi.json")["paths"]["/v2/models/{model}"])
