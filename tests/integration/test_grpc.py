"""gRPC of a real server: its ports, its workers, its beginning and its end."""

from __future__ import annotations

import queue
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace import protos
from headrace.testing import onnx_models
from tests.integration.server_process import (
    TIMEOUT_S,
    ServerProcess,
    listening_port,
    make_gate_model,
    serving,
    wait_until,
)
from tests.integration.test_tls import make_certificate

SERVICE = "/inference.GRPCInferenceService"

Request = protos.message("inference.ModelInferRequest")
StreamResponse = protos.message("inference.ModelStreamInferResponse")

KINDS = ["headrace", "grpcio"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return make_gate_model(tmp_path)


def ask_gate(*values: int, request_id: str = "") -> bytes:
    """A request to the gate model; it waits if one of the values is 77."""
    message = Request(model_name="gate", id=request_id)
    message.inputs.add(name="x", datatype="INT32", shape=[len(values), 1])
    message.raw_input_contents.append(np.array(values, np.int32).tobytes())
    raw: bytes = message.SerializeToString()
    return raw


def address_of(server: ServerProcess) -> str:
    """Of gRPC, as it was announced."""
    found = re.search(r"gRPC on (\S+?:[0-9]+)", server.lines[-1])
    assert found is not None, server.lines
    return found[1]


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address_of(server)) as channel:
        yield channel


@pytest.fixture(params=KINDS)
def server(
    request: pytest.FixtureRequest, gate: Path, env: dict[str, str]
) -> Iterator[ServerProcess]:
    flags = ["--grpc-port", "0", "--grpc-server", request.param, "--drain-timeout-s", "30"]
    with serving(gate, *flags, env=env) as server:
        yield server


class Messages:
    """What a client sends on a stream, until it is told to stop."""

    def __init__(self) -> None:
        self.queue: queue.Queue[bytes | None] = queue.Queue()

    def __iter__(self) -> Iterator[bytes]:
        while (message := self.queue.get()) is not None:
            yield message


def stream(channel: grpc.Channel) -> tuple[Messages, Any]:
    messages = Messages()
    call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
    return messages, call(iter(messages), timeout=TIMEOUT_S)


# -- the end --------------------------------------------------------------------------------------


def test_those_who_watch_and_idle_streams_do_not_keep_the_server(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    messages, answers = stream(channel)
    messages.queue.put(ask_gate(1))
    assert not StreamResponse.FromString(next(answers)).error_message
    server.signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    for call in (watch, answers):
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in caught.value.details()
    messages.queue.put(None)
    assert server.wait() == 0


def test_what_a_stream_was_asked_is_answered_before_the_end(
    server: ServerProcess, channel: grpc.Channel, gate: Path
) -> None:
    messages, answers = stream(channel)
    messages.queue.put(ask_gate(77, request_id="a"))
    unary = channel.unary_unary(f"{SERVICE}/ModelInfer").future(ask_gate(77), timeout=TIMEOUT_S)
    wait_until((gate.parent / "entered").exists, "the first request runs")
    server.signal(signal.SIGTERM)
    server.wait_for("stopping")
    (gate.parent / "open").touch()
    answer = StreamResponse.FromString(next(answers))
    assert (answer.error_message, answer.infer_response.id) == ("", "a")
    assert unary.result()
    with pytest.raises(grpc.RpcError):
        next(answers)
    messages.queue.put(None)
    assert server.wait() == 0


# -- the beginning --------------------------------------------------------------------------------


def test_while_models_are_loaded(tmp_path: Path, env: dict[str, str]) -> None:
    """Alive and not ready, and not as if there were no gRPC."""
    path = tmp_path / "late.py"
    path.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def predict(x: list[int]) -> list[int]: return x\n"
        "while not (Path(__file__).parent / 'go').exists(): time.sleep(0.002)\n"
    )
    with ServerProcess(path, "--port", 0, env=env) as server:
        wait_until(lambda: listening_port(server.process.pid), "it listens")
        port = listening_port(server.process.pid)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name, answer in (("ServerLive", b"\x08\x01"), ("ServerReady", b"")):
                call = channel.unary_unary(f"{SERVICE}/{name}")
                assert call(b"", timeout=TIMEOUT_S, wait_for_ready=True) == answer
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"{SERVICE}/ModelInfer")(b"\x0a\x04late", timeout=TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            (tmp_path / "go").touch()
            server.wait_ready()
            assert channel.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=TIMEOUT_S)
        assert server.stop() == 0


# -- ports and workers ----------------------------------------------------------------------------


def test_grpc_is_on_the_main_port_too(server: ServerProcess) -> None:
    for address in (address_of(server), f"127.0.0.1:{server.port}"):
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=TIMEOUT_S)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_share_the_ports(tmp_path: Path, env: dict[str, str], kind: str) -> None:
    model = tmp_path / "echo.onnx"
    model.write_bytes(onnx_models.identity("FP32", ("n",)))
    message = Request(model_name="echo", raw_input_contents=[b"1234"])
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    flags = ["--workers", "2", "--grpc-port", "0", "--metrics-port", "0", "--grpc-server", kind]
    with serving(model, "--runtime", "onnxruntime", *flags, env=env) as server:
        for _ in range(20):
            # A connection of its own: whichever worker the kernel likes.
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(address_of(server), options) as channel:
                infer = channel.unary_unary(f"{SERVICE}/ModelInfer")
                assert infer(message.SerializeToString(), timeout=TIMEOUT_S)
        samples = server.metrics()
        (name,) = [n for n in samples if n.startswith("nv_inference_request_success{")]
        assert samples[name] == 20
        assert server.stop() == 0


def test_a_port_that_is_taken_is_one_line_and_exit_1(
    server: ServerProcess, gate: Path, env: dict[str, str]
) -> None:
    port = address_of(server).rpartition(":")[2]
    with ServerProcess(gate, "--port", 0, "--grpc-port", port, env=env) as second:
        assert second.wait() == 1
        assert f"port {port} of 127.0.0.1 is taken" in second.lines[0]


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="makes its certificate with the openssl command"
)
def test_grpcio_over_tls(gate: Path, env: dict[str, str]) -> None:
    certificate, key = make_certificate(gate.parent, "server")
    flags = ["--tls-certificate", certificate, "--tls-key", key]
    flags += ["--grpc-port", "0", "--grpc-server", "grpcio"]
    with serving(gate, *flags, env=env) as server:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(address_of(server), credentials) as channel:
            assert channel.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=TIMEOUT_S)
