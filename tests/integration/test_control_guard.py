"""Who may change a running server: no web page of another site, on any port or protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from starlette.routing import Route

from headrace import protos
from headrace.frontends.rest import create_app
from headrace.testing import onnx_models
from headrace.testing.control import FakeControl
from headrace.testing.engine_view import FakeEngineView
from tests.integration.server_process import TIMEOUT_S, ServerProcess, http_request, serving

SERVICE = "inference.GRPCInferenceService"

EVIL = "evil.example"

POSTS_THAT_CHANGE_NOTHING = re.compile(
    r"/v2/repository/(\{repository\}/)?index"
    r"|/v1/embeddings"
    r"|/v1/models/\{model\}:predict"
    r"|/v2/models/\{model\}/(versions/\{version\}/)?(infer|generate|generate_stream)"
)
"""Reads that Triton's clients send as POST, and inference; every other POST must be guarded."""

CALLS_THAT_CHANGE_NOTHING = frozenset(
    {
        *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"),
        *("ModelConfig", "ModelStatistics", "RepositoryIndex", "ModelInfer", "ModelStreamInfer"),
        *("SystemSharedMemoryStatus", "CudaSharedMemoryStatus"),
    }
)

REFUSED = {
    "Origin": ({"origin": f"http://{EVIL}"}, 403, "cross_site"),
    "an opaque Origin": ({"origin": "null"}, 403, "cross_site"),
    "Sec-Fetch-Site": ({"sec-fetch-site": "cross-site"}, 403, "cross_site"),
    "another port": ({"sec-fetch-site": "same-site"}, 403, "cross_site"),
    "Host": ({"host": f"{EVIL}:8000"}, 403, "unknown_host"),
    "DNS rebinding": (
        {"host": EVIL, "origin": f"http://{EVIL}", "sec-fetch-site": "same-origin"},
        403,
        "unknown_host",
    ),
    "text": ({"content-type": "text/plain;charset=UTF-8"}, 415, "unsupported_media_type"),
    "a form": (
        {"content-type": "application/x-www-form-urlencoded"},
        415,
        "unsupported_media_type",
    ),
    "a file": ({"content-type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
}


async def no_metrics() -> bytes:
    return b""


def guarded_routes() -> list[str]:
    """Paths of the routes that must be guarded, from the table of routes itself."""
    app = create_app(
        FakeEngineView({}),
        version="1",
        metrics=no_metrics,
        is_live=lambda: True,
        is_ready=lambda: True,
        control=FakeControl(),
        explain=lambda *_: None,
    )
    return sorted(
        route.path
        for route in app.routes
        if isinstance(route, Route)
        and not {"POST", "PUT", "PATCH", "DELETE"}.isdisjoint(route.methods or ())
        and not POSTS_THAT_CHANGE_NOTHING.fullmatch(route.path)
    )


def guarded_calls() -> list[str]:
    service = protos.pool().FindServiceByName(SERVICE)
    return sorted({method.name for method in service.methods} - CALLS_THAT_CHANGE_NOTHING)


def of_a_model(path: str) -> str:
    values = {"model": "m", "repository": "r", "version": "1", "region": "x"}
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    version = tmp_path_factory.mktemp("guard") / "repository" / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(onnx_models.identity("FP32", ("n",)))
    return version.parent.parent


def env_of(repository: Path, **settings: str) -> dict[str, str]:
    named = {f"HEADRACE_SERVER__{name.upper()}": value for name, value in settings.items()}
    return {"HEADRACE_CACHE_DIR": str(repository.parent / "cache"), **named}


FLAGS = ("--watch", "--runtime", "onnxruntime", "--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(repository, *FLAGS, env=env_of(repository)) as server:
        yield server


@pytest.fixture(scope="module")
def grpcio_server(repository: Path) -> Iterator[ServerProcess]:
    flags = (*FLAGS, "--grpc-server", "grpcio")
    with serving(repository, *flags, env=env_of(repository)) as server:
        yield server


def port_of(server: ServerProcess, what: str) -> int:
    """``gRPC`` or ``metrics``, as it was announced; "" for the main port."""
    if not what:
        return server.port
    found = re.search(rf"{what} on \S+:([0-9]+)", server.lines[-1])
    assert found is not None, server.lines
    return int(found[1])


def state(server: ServerProcess) -> Any:
    """All that the control routes can change. ``idle_s`` and the like change by themselves."""
    models = server.json("GET", "/v2/repository/models")[1]
    kept = ("name", "version", "state", "aliases", "pinned")
    settings = ("/v2/logging", "/v2/trace/setting", "/v2/models/m/trace/setting")
    paths = (*settings, "/v2/systemsharedmemory/status")
    return (
        [{name: each.get(name) for name in kept} for each in models],
        server.json("POST", "/v2/repository/index"),
        [server.json("GET", path) for path in paths],
    )


@pytest.fixture
def unchanged(server: ServerProcess) -> Iterator[None]:
    before = state(server)
    yield
    assert state(server) == before


BODIES: dict[str, object] = {
    "promote": {"version": "latest"},
    "pin": {"pinned": True},
    "logging": {"log_verbose_level": 7},
    "setting": {"trace_rate": "7"},
    "register": {"key": "/nothing", "byte_size": 1},
}


def body_of(path: str) -> object:
    return BODIES.get(path.rpartition("/")[2], {})


# -- HTTP ------------------------------------------------------------------------------------------


def test_the_table_of_routes_is_what_this_file_thinks() -> None:
    assert len(guarded_routes()) >= 16
    assert "/v2/repository/models/{model}/unload" in guarded_routes()
    assert "RepositoryModelUnload" in guarded_calls()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("port", ["", "gRPC"], ids=["main", "grpc"])
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1", "HTTP/2"])
def test_a_page_of_another_site_changes_nothing(
    server: ServerProcess, http2: bool, port: str, reason: str
) -> None:
    fields, status, code = REFUSED[reason]
    base = f"http://127.0.0.1:{port_of(server, port)}"
    with httpx.Client(http1=not http2, http2=http2, base_url=base, timeout=TIMEOUT_S) as client:
        for path in guarded_routes():
            content = json.dumps(body_of(path)).encode()
            answer = client.post(of_a_model(path), content=content, headers=fields)
            told = (answer.status_code, answer.json()["code"])
            assert told == (status, code), path
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")


@pytest.mark.usefixtures("unchanged")
def test_the_connection_goes_on_after_a_refusal(server: ServerProcess) -> None:
    unload = http_request(
        "POST", "/v2/repository/models/m/unload", {}, f"Origin: http://{EVIL}\r\n"
    )
    with server.connect() as client:
        client.send(unload + http_request("GET", "/v2/health/live"))
        assert client.answer()[0] == 403
        assert client.answer()[0] == 200


ACCEPTED: dict[str, Callable[[int], Mapping[str, str]]] = {
    "no fields": lambda _: {},
    "JSON": lambda _: {"content-type": "application/json"},
    "localhost": lambda port: {"host": f"localhost:{port}"},
    "our own page": lambda port: {
        "host": f"localhost:{port}",
        "origin": f"http://localhost:{port}",
        "sec-fetch-site": "same-origin",
        "content-type": "application/json",
    },
    "an address that was typed": lambda _: {"sec-fetch-site": "none"},
}


@pytest.mark.parametrize("fields", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1", "HTTP/2"])
def test_everybody_else_may(
    server: ServerProcess, http2: bool, fields: Callable[[int], Mapping[str, str]]
) -> None:
    with httpx.Client(http1=not http2, http2=http2, base_url=server.url) as client:
        for level in (3, 0):
            answer = client.post(
                "/v2/logging",
                content=json.dumps({"log_verbose_level": level}).encode(),
                headers=fields(server.port),
            )
            assert (answer.status_code, answer.json().get("log_verbose_level")) == (200, level)


def test_http_1_0_needs_no_host(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(b"POST /v2/logging HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        assert client.read_to_the_end().startswith(b"HTTP/1.1 200 ")


def test_what_changes_nothing_is_not_guarded(server: ServerProcess) -> None:
    fields = {"origin": f"http://{EVIL}", "content-type": "text/plain"}
    assert server.request("POST", "/v2/repository/index", b"{}", fields)[0] == 200
    assert server.request("GET", "/v2/logging", None, fields)[0] == 200


def test_hosts_that_the_operator_lists(repository: Path) -> None:
    env = env_of(repository, allowed_hosts='["models.example"]')
    with serving(repository, "--watch", "--runtime", "onnxruntime", env=env) as server:

        def status(host: str) -> int:
            return server.request("POST", "/v2/logging", b"{}", {"Host": host})[0]

        assert [status(host) for host in ("models.example", "models.example:80")] == [200, 200]
        assert [status(host) for host in ("www.models.example", EVIL)] == [403, 403]


def test_it_counts_where_a_client_connects_not_where_the_server_listens(repository: Path) -> None:
    flags = ("--watch", "--runtime", "onnxruntime", "--host", "0.0.0.0")
    with serving(repository, *flags, env=env_of(repository)) as server:
        fields = {"Host": EVIL}
        assert server.request("POST", "/v2/logging", b"{}", fields)[0] == 403
        own = own_address()
        if own is not None:
            url = f"http://{own}:{server.port}/v2/logging"
            assert httpx.post(url, content=b"{}", headers=fields).status_code == 200


def own_address() -> str | None:
    """Of this machine, to others; None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


# -- gRPC ------------------------------------------------------------------------------------------


def status_of(
    channel: grpc.Channel, name: str, metadata: Any = (), *, reads: bool = False
) -> grpc.StatusCode:
    """``reads``: without the changes that the requests for settings bring."""
    kind = protos.message(f"inference.{name}Request")
    request = kind()
    if "model_name" in kind.DESCRIPTOR.fields_by_name:
        request.model_name = "m"
    if name == "LogSettings" and not reads:
        request.settings["log_verbose_level"].uint32_param = 0
    if name == "TraceSetting" and not reads:
        request.settings["trace_rate"].value.append("1000")
    call = channel.unary_unary(f"/{SERVICE}/{name}")
    try:
        call(request.SerializeToString(), metadata=metadata, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    return grpc.StatusCode.OK


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("port", ["", "gRPC"], ids=["main", "grpc"])
@pytest.mark.parametrize("name", guarded_calls())
def test_grpc_calls_of_another_site(server: ServerProcess, name: str, port: str) -> None:
    address = f"127.0.0.1:{port_of(server, port)}"
    for metadata in ([("origin", f"http://{EVIL}")], [("sec-fetch-site", "cross-site")]):
        with grpc.insecure_channel(address) as channel:
            assert status_of(channel, name, metadata) is grpc.StatusCode.PERMISSION_DENIED
            assert status_of(channel, "ServerLive", metadata) is grpc.StatusCode.OK
    with grpc.insecure_channel(address, [("grpc.default_authority", EVIL)]) as channel:
        assert status_of(channel, name) is grpc.StatusCode.PERMISSION_DENIED
        assert status_of(channel, "ServerLive") is grpc.StatusCode.OK


@pytest.mark.parametrize("name", ["LogSettings", "TraceSetting"])
def test_settings_may_be_read(server: ServerProcess, name: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        metadata = [("origin", f"http://{EVIL}")]
        assert status_of(channel, name, metadata, reads=True) is grpc.StatusCode.OK


@pytest.mark.parametrize("name", guarded_calls())
def test_grpcio_refuses_them_too(grpcio_server: ServerProcess, name: str) -> None:
    before = state(grpcio_server)
    address = f"127.0.0.1:{port_of(grpcio_server, 'gRPC')}"
    with grpc.insecure_channel(address) as channel:
        for metadata in ([("origin", f"http://{EVIL}")], [("sec-fetch-site", "cross-site")]):
            assert status_of(channel, name, metadata) is grpc.StatusCode.PERMISSION_DENIED
        assert status_of(channel, "LogSettings") is grpc.StatusCode.OK
    assert state(grpcio_server) == before


# -- the metrics port ------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1", "HTTP/2"])
def test_the_metrics_port_answers_metrics_and_health(server: ServerProcess, http2: bool) -> None:
    base = f"http://127.0.0.1:{port_of(server, 'metrics')}"
    with httpx.Client(http1=not http2, http2=http2, base_url=base, timeout=TIMEOUT_S) as client:
        for path in ("/metrics", "/metrics?x=1", "/healthz", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
            assert client.head(path).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/v2", "/v2/models/m", "/v2/models/stats"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")
        for path in ("/v2/models/m/infer", "/v1/embeddings", "/v2/repository/index"):
            assert client.post(path, json={}).status_code == 404
        assert client.get("/v2/%68ealth/live").status_code == 404
        assert client.post("/metrics").status_code == 405


@pytest.mark.usefixtures("unchanged")
def test_the_metrics_port_changes_nothing(server: ServerProcess) -> None:
    port = port_of(server, "metrics")
    for path in map(of_a_model, guarded_routes()):
        assert httpx.post(f"http://127.0.0.1:{port}{path}", json={}).status_code == 404
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as client:
        client.sendall(b"GET http://127.0.0.1/v2/models HTTP/1.0\r\n\r\n")
        assert client.recv(13) == b"HTTP/1.1 404 "
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in (*guarded_calls(), "ModelInfer", "ServerLive"):
            assert status_of(channel, name) is grpc.StatusCode.UNIMPLEMENTED


# -- clients as they are ---------------------------------------------------------------------------


@pytest.fixture
def region() -> Iterator[SharedMemory]:
    memory = SharedMemory(name=f"headrace-guard-{os.getpid()}", create=True, size=64)
    yield memory
    memory.close()
    memory.unlink()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("client_of", [triton_http, triton_grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("kind", ["headrace", "grpcio"])
def test_triton_clients(
    request: pytest.FixtureRequest,
    region: SharedMemory,
    kind: str,
    client_of: Any,
    host: str,
) -> None:
    server = request.getfixturevalue("server" if kind == "headrace" else "grpcio_server")
    port = server.port if client_of is triton_http else port_of(server, "gRPC")
    with client_of.InferenceServerClient(f"{host}:{port}") as client:
        client.load_model("m")
        client.update_log_settings({"log_verbose_level": 1})
        client.update_log_settings({"log_verbose_level": 0})
        client.update_trace_settings("m", {"trace_rate": "5"})
        client.update_trace_settings("m", {"trace_rate": None})
        client.register_system_shared_memory("guard", "/" + region.name, 64)
        client.unregister_system_shared_memory("guard")
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        client.unload_model("m")
        assert not client.is_model_ready("m")
        client.load_model("m")
        assert client.is_model_ready("m")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
@pytest.mark.parametrize("kind", ["headrace", "grpcio"])
def test_grpc_over_ipv6(repository: Path, kind: str) -> None:
    """grpc-core writes ``:authority`` percent-encoded then."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    flags = (*FLAGS, "--host", "::1", "--grpc-server", kind)
    with serving(repository, *flags, env=env_of(repository)) as server:
        address = f"[::1]:{port_of(server, 'gRPC')}"
        with triton_grpc.InferenceServerClient(address) as client:
            client.load_model("m")


curls = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(url: str, *arguments: str) -> str:
    """The status."""
    return subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", *arguments, url],
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    ).stdout


@curls
@pytest.mark.usefixtures("unchanged")
def test_curl(server: ServerProcess) -> None:
    load = f"{server.url}/v2/repository/models/m/load"
    assert curl(load, "-X", "POST") == "200"
    assert curl(load, "-d", "{}", "-H", "Content-Type: application/json") == "200"
    assert curl(load, "-d", "{}") == "415"
    here = f"{EVIL}:{server.port}"
    rebound = f"http://{here}/v2/repository/models/m/unload"
    assert curl(rebound, "-X", "POST", "--resolve", f"{here}:127.0.0.1") == "403"
