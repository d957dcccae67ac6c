"""curl, as people use it from a shell."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

INFER = "/v2/models/echo/infer"
REQUEST = json.dumps(
    {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, -2.0]}]}
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("curl")
    model = folder / "echo.onnx"
    model.write_bytes(onnx_models.identity("FP32", ("n",)))
    env = {"HEADRACE_CACHE_DIR": str(folder / "cache")}
    with serving(model, "--runtime", "onnxruntime", env=env) as server:
        yield server


def curl(server: ServerProcess, *arguments: str, path: str = INFER) -> str:
    """What curl prints; it fails the test on any error of the protocol."""
    ran = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *arguments, server.url + path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def assert_answered(printed: str) -> None:
    assert json.loads(printed.splitlines()[-1])["outputs"][0]["data"] == [1.5, -2.0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--http1.1"],
        ["--http1.0"],
        ["--http1.0", "--header", "Connection: keep-alive"],
        ["--http2"],  # asks for an upgrade to h2c, with the body behind it
        ["--header", "Transfer-Encoding: chunked"],
        ["--header", "Expect: 100-continue"],
        ["--http2-prior-knowledge"],
        ["--http2-prior-knowledge", "--header", "Expect: 100-continue"],
        ["--header", "Expect: 100-continue", "--header", "Transfer-Encoding: chunked"],
        ["--header", "Connection: close"],
        ["--compressed"],
        ["--header", "Content-Type: application/json; charset=utf-8"],
        ["--request-target", "http://somewhere.else/v2/models/echo/infer"],
        ["--path-as-is"],
        ["--limit-rate", "1000"],
    ],
    ids=" ".join,
)
def test_a_request(server: ServerProcess, arguments: list[str]) -> None:
    assert_answered(curl(server, "--data", REQUEST, *arguments))


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_compressed_request(server: ServerProcess, tmp_path: Path, encoding: str) -> None:
    body = REQUEST.encode() if encoding == "identity" else gzip.compress(REQUEST.encode())
    (tmp_path / "body").write_bytes(body)
    field = f"Content-Encoding: {encoding}"
    assert_answered(curl(server, "--data-binary", f"@{tmp_path / 'body'}", "--header", field))


def test_a_connection_is_used_again(server: ServerProcess) -> None:
    told = curl(
        server,
        *("--data", REQUEST, "--output", "/dev/null", "--write-out", "%{num_connects} "),
        *(server.url + INFER, "--output", "/dev/null"),
    )
    assert told.split() == ["1", "0"]


def test_http_1_0_keeps_its_connection_where_it_asks(server: ServerProcess) -> None:
    told = curl(
        server,
        *("--http1.0", "--header", "Connection: keep-alive", "--data", REQUEST),
        *("--output", "/dev/null", "--write-out", "%{num_connects} "),
        *(server.url + INFER, "--output", "/dev/null"),
    )
    assert told.split() == ["1", "0"]


def test_expect_is_answered_before_the_body(server: ServerProcess) -> None:
    told = curl(
        server, "--include", "--data", REQUEST, "--header", "Expect: 100-continue", "--http1.1"
    )
    assert told.startswith("HTTP/1.1 100 Continue")
    assert_answered(told)


@pytest.mark.parametrize("path", ["/v2", "/v2/models/echo", "/metrics", "/docs", "/"])
def test_head_has_the_same_fields_as_get(server: ServerProcess, tmp_path: Path, path: str) -> None:
    head = curl(server, "--head", path=path)
    assert head.startswith("HTTP/1.1 200 OK")
    curl(server, "--dump-header", str(tmp_path / "head"), "--output", "/dev/null", path=path)
    get = (tmp_path / "head").read_text()
    names = [[line.split(":")[0] for line in text.splitlines() if line] for text in (head, get)]
    assert names[0] == names[1]
    assert "content-length" in names[0]


def test_an_error_is_an_answer_and_a_status(server: ServerProcess) -> None:
    told = curl(server, "--data", "{}", "--write-out", "\n%{http_code}")
    body, status = told.rsplit("\n", 1)
    assert status == "400"
    assert "inputs" in json.loads(body)["error"]
