"""The other clients people have: KServe's, MLServer's, curl, nghttp, grpcio's own stubs."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from conformance import environments
from conformance.registry import CHECKS, Check, check
from conformance.servers import Server

_KSERVE = Path(__file__).parent / "clients" / "kserve_client.py"

_TIMEOUT_S = 60

_AB = {
    "inputs": [
        {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "INPUT1", "shape": [1, 4], "datatype": "FP32", "data": [10, 20, 30, 40]},
    ]
}
_SUM = [11, 22, 33, 44]


def _run(command: Sequence[str | Path], *, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert not done.returncode, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise environments.Unavailable(f"{name} is not installed")
    return found


def _kserve() -> None:
    for kind in ("rest", "grpc"):
        for feature in ("server live, ready", "model ready", "infer FP32"):

            def run(server: Server, kind: str = kind, feature: str = feature) -> None:
                python = environments.python("kserve", environments.KSERVE)
                address = server.http_address if kind == "rest" else server.grpc_address
                _run([python, "-W", "ignore", _KSERVE, kind, address, feature])

            CHECKS.append(Check(feature, f"kserve {kind}", run, needs="kserve"))


_kserve()


@check("infer FP32", "mlserver infer", needs="mlserver")
def _(server: Server) -> None:
    python = environments.python("mlserver", environments.MLSERVER)
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        asked.write_text((json.dumps(_AB) + "\n") * 10)
        _run(
            [python.with_name("mlserver"), "infer", "-u", server.http_address]
            + ["-m", "add_sub", "-i", asked, "-o", answered, "-s", "4"]
        )
        lines = [json.loads(line) for line in answered.read_text().splitlines()]
    assert len(lines) == 10
    for line in lines:
        sums = next(each for each in line["outputs"] if each["name"] == "OUTPUT0")
        assert sums["data"] == _SUM


def _curl(server: Server, path: str, *flags: str, body: object = None, port: int = 0) -> str:
    data = ["--data-binary", "@-"] if body is not None else []
    url = f"http://127.0.0.1:{port or server.http}{path}"
    stdin = json.dumps(body) if body is not None else ""
    return _run([_tool("curl"), "--silent", "--fail-with-body", *flags, *data, url], stdin=stdin)


def _rest(client: str, *flags: str) -> None:
    @check("server live, ready", client)
    def _(server: Server) -> None:
        _curl(server, "/v2/health/live", *flags)
        _curl(server, "/v2/health/ready", *flags)

    @check("model metadata", client)
    def _(server: Server) -> None:
        assert json.loads(_curl(server, "/v2/models/add_sub", *flags))["name"] == "add_sub"

    @check("infer as JSON", client)
    def _(server: Server) -> None:
        answer = json.loads(_curl(server, "/v2/models/add_sub/infer", *flags, body=_AB))
        assert answer["outputs"][0]["data"] == _SUM

    @check("generate", client)
    def _(server: Server) -> None:
        asked = {"INPUT0": [1, 2, 3, 4], "INPUT1": [10, 20, 30, 40]}
        answer = json.loads(_curl(server, "/v2/models/add_sub/generate", *flags, body=asked))
        assert answer["OUTPUT0"] == _SUM

    @check("generate_stream", client)
    def _(server: Server) -> None:
        path = "/v2/models/repeat/generate_stream"
        events = _curl(server, path, "--no-buffer", *flags, body={"IN": [5, 6]}).split("\n\n")
        values = [json.loads(each.removeprefix("data: "))["OUT"] for each in events if each]
        assert values == [5, 6]

    @check("metrics", client)
    def _(server: Server) -> None:
        page = _curl(server, "/metrics", *flags, port=server.metrics)
        assert 'nv_inference_request_success{model="add_sub",version="1"}' in page


_rest("curl")
_rest("curl HTTP/2", "--http2-prior-knowledge")


@check("load over HTTP/2", "h2load")
def _(server: Server) -> None:
    with tempfile.NamedTemporaryFile("w") as body:
        json.dump(_AB, body)
        body.flush()
        url = f"http://{server.http_address}/v2/models/add_sub/infer"
        command = [_tool("h2load"), "-n", "400", "-c", "4", "-m", "8", "-d", body.name, url]
        assert "400 succeeded" in _run(command)


@check("server live, ready", "grpc health")
def _(server: Server) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@check("reflection", "grpc reflection")
def _(server: Server) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        (service,) = file.service
        assert "ModelInfer" in [method.name for method in service.method]


@check("raw binary request", "http.client")
def _(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=_TIMEOUT_S)
    connection.request(
        "POST",
        "/v2/models/patient/infer",
        b"\0\0\0\0",
        {"Inference-Header-Content-Length": "0"},
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.read()[size:] == b"\0\0\0\0"
    connection.close()
