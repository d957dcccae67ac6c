"""Clients that are slow on purpose, and too many of them, against limits made tiny."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import (
    Raw,
    ServerProcess,
    http_request,
    limits,
    serving,
    wait_until,
)

TIGHT = limits(
    header_timeout_s=0.3,
    body_timeout_s=0.4,
    idle_timeout_s=0.5,
    write_timeout_s=0.5,
    max_connections=20,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("slow")
    model = folder / "echo.onnx"
    model.write_bytes(onnx_models.identity("UINT8", ("n",)))
    env = {"HEADRACE_CACHE_DIR": str(folder / "cache")} | TIGHT
    with serving(model, "--runtime", "onnxruntime", env=env) as server:
        yield server


@pytest.fixture(autouse=True)
def _the_next_one_is_served(server: ServerProcess) -> Iterator[None]:
    """Whatever a test did, afterwards nobody is left and a request succeeds."""
    yield
    wait_until(lambda: _ready(server), "a free connection")
    assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})


def _ready(server: ServerProcess) -> bool:
    return server.request("GET", "/v2/health/ready")[0] == 200


def refused(client: Raw) -> tuple[int, str]:
    """Status and limit; and that the connection is closed then."""
    status, fields, body = client.answer()
    assert fields["connection"] == "close"
    assert client.read_to_the_end() == b""
    return status, json.loads(body)["limit"]


def test_silence_is_ended_without_a_word(server: ServerProcess) -> None:
    with server.connect() as client:
        assert client.read_to_the_end() == b""


def test_silence_after_an_answer_is_ended_without_a_word(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(http_request("GET", "/v2/health/live"))
        assert client.answer()[0] == 200
        assert client.read_to_the_end() == b""


@pytest.mark.parametrize("begun", [b"P", b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\n"])
def test_slow_headers(server: ServerProcess, begun: bytes) -> None:
    with server.connect() as client:
        client.send(begun)
        assert refused(client) == (408, "header_timeout_s")


def test_a_slow_body(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(http_request("POST", "/v2/models/echo/infer", {"inputs": []})[:-3])
        assert refused(client) == (408, "body_timeout_s")


def test_a_client_that_does_not_read_is_cut_off(server: ServerProcess) -> None:
    """Its answers would fill our memory."""
    body = b"\1" * 1_000_000
    request = (
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: 0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    before = server.metrics()
    with server.connect() as client, pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        client.send(request * 60)
    after = server.metrics()
    name = 'headrace_http_rejected_total{limit="write_timeout_s"}'
    assert after[name] == before.get(name, 0) + 1


def test_one_connection_too_many_is_told_so(server: ServerProcess) -> None:
    clients = []
    try:
        while True:
            clients.append(server.connect())
            clients[-1].send(http_request("GET", "/v2/health/live"))
            status, fields, body = clients[-1].answer()
            if status != 200:
                break
        assert (status, fields["retry-after"]) == (503, "1")
        assert json.loads(body)["limit"] == "max_connections"
        assert len(clients) <= 21
    finally:
        for client in clients:
            client.socket.close()


def test_the_limits_that_were_hit_are_counted(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(b"GET /")
        refused(client)
    assert server.metrics()['headrace_http_rejected_total{limit="header_timeout_s"}'] >= 1
