"""Routes that control a server: what is read from a request, and what is answered."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from headrace.errors import InvalidRequest, ModelNotReady
from headrace.frontends.rest import create_app
from headrace.testing.control import SETTINGS, FakeControl
from headrace.testing.engine_view import FakeEngineView


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def client(control: FakeControl) -> TestClient:
    async def metrics() -> bytes:
        return b""

    app = create_app(
        FakeEngineView({}),
        version="1",
        metrics=metrics,
        is_live=lambda: True,
        is_ready=lambda: True,
        control=control,
    )
    return TestClient(app)


def test_the_index(client: TestClient, control: FakeControl) -> None:
    answer = client.post("/v2/repository/index")
    assert answer.json() == [
        {"name": "m", "version": "1", "state": "READY", "reason": ""},
        {"name": "n", "version": "", "state": "UNAVAILABLE", "reason": ""},
    ]
    client.post("/v2/repository/index", json={"ready": True})
    assert control.asked == [("index", False), ("index", True)]


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        (b"", {}),
        (b"{}", {}),
        (b'{"parameters":{"config":"{}"}}', {"config": "{}"}),
        (b'{"parameters":{"config":{"backend":"x"}}}', {"config": '{"backend":"x"}'}),
        (
            json.dumps(
                {"parameters": {"config": "{}", "file:1/m": base64.b64encode(b"\0\xff").decode()}}
            ).encode(),
            {"config": "{}", "file:1/m": b"\0\xff"},
        ),
    ],
)
def test_load(
    client: TestClient, control: FakeControl, body: bytes, parameters: dict[str, Any]
) -> None:
    answer = client.post("/v2/repository/models/m/load", content=body)
    assert (answer.status_code, answer.json()) == (200, {"name": "m", "load": True})
    assert control.asked == [("load", "m", parameters)]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "JSON"),
        (b'{"parameters":3}', "parameters"),
        (b'{"parameters":{"file:1/m":3}}', "string of base64"),
        (b'{"parameters":{"file:1/m":"*"}}', "is not base64"),
        (b'{"parameters":{"config":[1]}}', "must be a string"),
    ],
)
def test_a_wrong_load_loads_nothing(
    client: TestClient, control: FakeControl, body: bytes, text: str
) -> None:
    answer = client.post("/v2/repository/models/m/load", content=body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert control.asked == []


def test_unload(client: TestClient, control: FakeControl) -> None:
    answer = client.post("/v2/repository/models/m/unload")
    assert (answer.status_code, answer.json()) == (200, {"name": "m", "unload": True})
    body = {"parameters": {"unload_dependents": True}}
    client.post("/v2/repository/models/m/unload", json=body)
    assert control.asked == [("unload", "m", False), ("unload", "m", True)]
    body = {"parameters": {"unload_dependents": 1}}  # type: ignore[dict-item]
    assert client.post("/v2/repository/models/m/unload", json=body).status_code == 400


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v2/models/stats", ("", "")),
        ("/v2/models/m/stats", ("m", "")),
        ("/v2/models/m/versions/2/stats", ("m", "2")),
    ],
)
def test_statistics(
    client: TestClient, control: FakeControl, path: str, asked: tuple[str, str]
) -> None:
    assert client.get(path).json() == {"model_stats": []}
    assert control.asked == [("statistics", *asked)]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v2/trace/setting", ("trace", "")),
        ("/v2/models/m/trace/setting", ("trace", "m")),
        ("/v2/logging", ("log",)),
    ],
)
def test_settings_are_read_and_changed(
    client: TestClient, control: FakeControl, path: str, asked: tuple[str, ...]
) -> None:
    assert client.get(path).json() == SETTINGS
    assert client.post(path, json={"x": None}).json() == SETTINGS
    client.post(path)
    assert control.asked == [(*asked, None), (*asked, {"x": None}), (*asked, {})]
    assert client.post(path, content=b"[]").status_code == 400


def test_what_is_refused_has_its_status(client: TestClient, control: FakeControl) -> None:
    control.error = ModelNotReady("explicit model load / unload is not allowed")
    assert client.post("/v2/repository/models/m/load").status_code == 503
    control.error = InvalidRequest("failed to load 'm'")
    assert client.post("/v2/repository/models/m/load").json()["error"] == "failed to load 'm'"
