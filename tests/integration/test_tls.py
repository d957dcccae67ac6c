"""HTTPS with a certificate made on the spot."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import (
    TIMEOUT_S,
    ServerProcess,
    http_request,
    limits,
    serving,
)

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="makes its certificate with the openssl command"
)

LARGE = 200_000


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    (folder / "echo.onnx").write_bytes(onnx_models.identity("UINT8", ("n",)))
    make_certificate(folder, "server")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    env = {"HEADRACE_CACHE_DIR": str(folder / "cache")} | limits(max_body_bytes=2 * LARGE)
    flags = ["--tls-certificate", folder / "server.pem", "--tls-key", folder / "server.key"]
    runtime = ["--runtime", "onnxruntime"]
    with serving(folder / "echo.onnx", *flags, *runtime, env=env) as server:
        assert server.url.startswith("https://")
        yield server


@pytest.fixture
def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "server.pem")


@pytest.fixture
def client(server: ServerProcess, trusting: ssl.SSLContext) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", server.port, timeout=TIMEOUT_S, context=trusting
    )
    yield connection
    connection.close()


def test_requests_and_keep_alive(client: http.client.HTTPConnection) -> None:
    for _ in range(3):
        client.request("GET", "/v2/health/ready")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"ready":true}')


def test_large_requests_and_answers(client: http.client.HTTPConnection) -> None:
    """Many TLS records each way."""
    data = bytes(range(256)) * (LARGE // 256)
    client.request("POST", "/v2/models/echo/infer", data, {"Inference-Header-Content-Length": "0"})
    answer = client.getresponse()
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.read()[size:] == data


def test_a_refusal_arrives(client: http.client.HTTPConnection) -> None:
    client.putrequest("POST", "/v2/models/echo/infer")
    client.putheader("Content-Length", str(10 * LARGE))
    client.endheaders(b"x" * LARGE)
    assert client.getresponse().status == 413


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2")],
)
def test_alpn(
    server: ServerProcess, trusting: ssl.SSLContext, offered: list[str], chosen: str
) -> None:
    trusting.set_alpn_protocols(offered)
    with (
        socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == chosen
        assert wrapped.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_http_2_over_tls(server: ServerProcess, folder: Path) -> None:
    data = bytes(range(256)) * (LARGE // 256)
    (folder / "body").write_bytes(data)
    ran = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--max-time", "30", "--http2"),
            *("--cacert", str(folder / "server.pem"), "--output", str(folder / "answer")),
            *("--header", "Inference-Header-Content-Length: 0"),
            *(
                "--data-binary",
                f"@{folder / 'body'}",
                "--write-out",
                "%{http_version} %{http_code}",
            ),
            f"{server.url}/v2/models/echo/infer",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "2 200", ran.stderr
    assert (folder / "answer").read_bytes().endswith(data)


def test_grpc_over_tls(server: ServerProcess, folder: Path) -> None:
    trusted = grpc.ssl_channel_credentials((folder / "server.pem").read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{server.port}", trusted) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(b"", timeout=TIMEOUT_S) == b"\x08\x01"


def test_plain_http_on_the_tls_port_ends_and_disturbs_nobody(
    server: ServerProcess, client: http.client.HTTPConnection
) -> None:
    with server.connect() as lost:
        lost.send(http_request("GET", "/v2/health/ready"))
        assert not lost.read_to_the_end().startswith(b"HTTP")
    client.request("GET", "/v2/health/ready")
    assert client.getresponse().status == 200


def test_who_leaves_without_a_word_disturbs_nobody(
    server: ServerProcess, client: http.client.HTTPConnection, trusting: ssl.SSLContext
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as plain:
        wrapped = trusting.wrap_socket(plain, server_hostname="127.0.0.1")
        wrapped.send(http_request("GET", "/v2/health/ready")[:20])
        wrapped.close()
    client.request("GET", "/v2/health/ready")
    assert client.getresponse().status == 200


@pytest.mark.parametrize(
    ("certificate", "key"),
    [("server.pem", "nowhere.key"), ("nowhere.pem", "server.key"), ("server.key", "server.key")],
)
def test_files_that_do_not_fit_are_named(folder: Path, certificate: str, key: str) -> None:
    flags = ["--tls-certificate", folder / certificate, "--tls-key", folder / key]
    with ServerProcess(folder / "echo.onnx", "--port", "0", *flags) as server:
        assert server.wait() == 2
        (error,) = [line for line in server.lines if "error:" in line]
        assert certificate in error
        assert key in error
        assert any(line.startswith("hint: both must be PEM") for line in server.lines)


def test_a_key_of_another_certificate_is_refused(folder: Path) -> None:
    _, other = make_certificate(folder, "other")
    flags = ["--tls-certificate", folder / "server.pem", "--tls-key", other]
    with ServerProcess(folder / "echo.onnx", "--port", "0", *flags) as server:
        assert server.wait() == 2
        assert "cannot be used" in "".join(server.lines)
