"""HTTP/2 on the port of a real server: clients as they are, floods, the end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hyperframe.frame import GoAwayFrame

from headrace.frontends.http2 import frames
from headrace.testing import onnx_models
from tests.integration.server_process import (
    TIMEOUT_S,
    ServerProcess,
    make_gate_model,
    rows,
    serving,
    wait_until,
)
from tests.unit.frontends.http2.bench import (
    HELLO,
    Answer,
    data,
    headers,
    ping,
    read_frames,
    rst,
    window,
)

INFER = "/v2/models/echo/infer"
REQUEST = json.dumps(
    {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, -2.0]}]}
).encode()

Fields = list[tuple[str, str]]


def fields(method: str, path: str) -> Fields:
    return [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)]


class Client:
    """The ``h2`` library on a socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def start(self, fields: Fields, body: bytes = b"") -> int:
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, fields, end_stream=not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()
        return stream_id

    def read(self) -> bool:
        """Some more; False at the end."""
        received = self.socket.recv(65_536)
        if not received:
            return False
        for event in self.h2.receive_data(received):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
        return True

    def answer(self, stream_id: int) -> Answer:
        while True:
            answer = Answer([e for e in self.events if getattr(e, "stream_id", 0) == stream_id])
            if answer.ended:
                return answer
            assert self.read(), "closed without an answer"

    def until(self, kind: type[h2.events.Event]) -> Any:
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            assert self.read(), f"closed without {kind}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("http2")
    (folder / "echo.onnx").write_bytes(onnx_models.identity("FP32", ("n",)))
    env = {"HEADRACE_CACHE_DIR": str(folder / "cache"), "HEADRACE_SERVER__HTTP2__MAX_RESETS": "50"}
    flags = ["--runtime", "onnxruntime", "--access-log", "--log-format", "json"]
    with serving(folder / "echo.onnx", *flags, env=env) as server:
        yield server


def test_inference_by_an_independent_client(server: ServerProcess) -> None:
    with Client(server.port) as client:
        streams = [client.start(fields("POST", INFER), REQUEST) for _ in range(20)]
        for stream in streams:
            answer = client.answer(stream)
            assert answer.status == 200
            assert json.loads(answer.body)["outputs"][0]["data"] == [1.5, -2.0]
        wrong = client.answer(client.start(fields("POST", INFER), b"{}"))
        assert wrong.status == 400
        assert "inputs" in json.loads(wrong.body)["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2", 200),
        ("GET", "/v2/models/echo", 200),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
        ("HEAD", "/v2", 200),
        ("GET", "/nowhere", 404),
        ("PUT", "/v2", 405),
    ],
)
def test_everything_else_is_there_too(
    server: ServerProcess, method: str, path: str, status: int
) -> None:
    with Client(server.port) as client:
        answer = client.answer(client.start(fields(method, path)))
    assert answer.status == status
    over_http1 = server.request(method, path)
    assert over_http1[0] == status
    assert set(over_http1[1]) - set(answer.fields) <= {"connection"}


def test_a_body_above_the_limit_is_refused_while_it_comes(server: ServerProcess) -> None:
    with Client(server.port) as client:
        stream = client.h2.get_next_available_stream_id()
        length = ("content-length", str(10**9))
        client.h2.send_headers(stream, [*fields("POST", INFER), length])
        client.flush()
        answer = client.answer(stream)
        assert answer.status == 413
        assert client.until(h2.events.StreamReset).error_code == 0
        assert client.answer(client.start(fields("GET", "/v2"))).status == 200


def test_the_access_log_has_http2_too(server: ServerProcess) -> None:
    with Client(server.port) as client:
        client.answer(client.start(fields("POST", INFER + "?who=h2"), REQUEST))
    line = json.loads(server.wait_for("who=h2"))
    assert (line["method"], line["status"]) == ("POST", 200)
    assert line["bytes"] > 50
    assert line["ms"] > 0


FLOODS = {
    "rapid reset": (lambda n: headers(2 * n + 1) + rst(2 * n + 1), "max_resets"),
    "PING": (lambda _: ping() * 100, "max_control_frames"),
    "SETTINGS": (lambda _: frames.settings({4: 65_535}) * 100, "max_control_frames"),
    "windows": (lambda _: window(0, 1) * 100, "max_control_frames"),
    "CONTINUATION": (
        lambda n: frames.frame(frames.CONTINUATION, 0, 1) if n else headers(1, flags=0),
        "max_continuations",
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_with_a_goaway_and_disturbs_nobody(server: ServerProcess, name: str) -> None:
    make, limit = FLOODS[name]
    with Client(server.port) as other, server.connect() as attacker:
        attacker.send(HELLO + b"".join(make(n) for n in range(200)))
        told = attacker.read_to_the_end()
        goaway = told.rindex(b"too many")
        assert told[goaway - 4 : goaway] == b"\0\0\0\x0b", "ENHANCE_YOUR_CALM"
        assert other.answer(other.start(fields("POST", INFER), REQUEST)).status == 200
    rejected = [n for n in server.metrics() if "reject" in n and limit in n]
    assert rejected
    assert server.metrics()[rejected[0]] >= 1


def test_sigterm_finishes_what_is_under_way(tmp_path: Path) -> None:
    """The busy client is a bare socket: ``h2`` takes a GOAWAY for the end of everything."""
    gate = make_gate_model(tmp_path)
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with (
        serving(gate, "--drain-timeout-s", "30", env=env) as server,
        Client(server.port) as idle,
        server.connect() as busy,
    ):
        assert idle.answer(idle.start(fields("GET", "/v2/health/ready"))).status == 200
        body = json.dumps(rows(77)).encode()
        busy.send(HELLO + headers(1, fields("POST", "/v2/models/gate/infer")) + data(1, body, 1))
        wait_until((tmp_path / "entered").exists, "the request runs")
        server.signal(signal.SIGTERM)
        assert idle.until(h2.events.ConnectionTerminated).error_code == 0
        while idle.read():  # the second GOAWAY
            pass
        (tmp_path / "open").touch()
        found, _ = read_frames(busy.read_to_the_end())
        goaways = [f for f in found if isinstance(f, GoAwayFrame)]
        told = [(goaway.error_code, goaway.last_stream_id) for goaway in goaways]
        assert told == [(0, 2**31 - 1), (0, 1)]
        answer = [f for f in found if f.stream_id == 1]
        assert hpack.Decoder().decode(answer[0].data)[0] == (":status", "200")
        assert b'"data":[77]' in b"".join(f.data for f in answer[1:])
        assert "END_STREAM" in answer[-1].flags
        assert server.wait() == 0


def test_a_client_that_cancels_takes_its_request_out_of_the_queue(tmp_path: Path) -> None:
    gate = make_gate_model(tmp_path)
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(gate, env=env) as server, Client(server.port) as client:
        path = fields("POST", "/v2/models/gate/infer")
        running = client.start(path, json.dumps(rows(77)).encode())
        wait_until((tmp_path / "entered").exists, "the request runs")
        waiting = [client.start(path, json.dumps(rows(n)).encode()) for n in range(5)]
        for stream in waiting[:4]:
            client.h2.reset_stream(stream, 8)
        client.flush()
        (tmp_path / "open").touch()
        assert client.answer(running).status == 200
        assert client.answer(waiting[4]).status == 200
        ended = {stream for e in client.events if (stream := getattr(e, "stream_id", 0))}
        assert not ended & set(waiting[:4])


@pytest.mark.skipif(shutil.which("nghttp") is None, reason="nghttp is not installed")
def test_nghttp(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(REQUEST)
    ran = subprocess.run(
        ["nghttp", "--no-dep", "-v", "-d", str(tmp_path / "body"), server.url + INFER],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ":status: 200" in ran.stdout
    assert "1.5,-2.0" in ran.stdout
    assert "ERROR" not in ran.stdout.replace("NO_ERROR", "")


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(REQUEST)
    ran = subprocess.run(
        [
            *("h2load", "-n", "400", "-c", "4", "-m", "16"),
            *("-d", str(tmp_path / "body"), server.url + INFER),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "400 succeeded, 0 failed, 0 errored" in ran.stdout
    assert "400 2xx" in ran.stdout
