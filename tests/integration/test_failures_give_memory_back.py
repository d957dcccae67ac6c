"""Requests of 20 MB that fail, in every way there is: the memory is there again afterwards.

The server runs without a garbage collector, which runs rarely in any case, so that what an error
or a reply still holds stays held.
"""

from __future__ import annotations

import json
import queue
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from headrace import protos
from headrace.testing import onnx_models
from tests.integration.server_process import (
    TIMEOUT_S,
    ServerProcess,
    limits,
    make_gate_model,
    rows,
    wait_until,
)
from tests.unit.tasks.text_models import vocabulary

pytestmark = pytest.mark.slow

MB = 1 << 20
PAYLOAD = 20 * MB
FIRST, REPEATS = 5, 50
ROOM = 3 * PAYLOAD
"""What may be held more than after the first few: buffers of the allocator and of threads."""

WITHOUT_COLLECTOR = (
    "import gc; gc.disable(); from headrace.cli.main import main; raise SystemExit(main())"
)

RAISES = """
from typing import Annotated
import numpy as np
Rows = Annotated[np.ndarray, "FP32[N,4]"]
def predict(x: Rows) -> Rows:
    raise ValueError("no")
"""

TRITON = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        if requests[0].request_id() == "raise":
            raise ValueError("no")
        error = pb_utils.TritonError("no", pb_utils.TritonError.INVALID_ARG)
        return [pb_utils.InferenceResponse(error=error) for each in requests]
"""
TRITON_CONFIG = """
backend: "python" max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
"""
STEPS = """
platform: "ensemble" max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] }
ensemble_scheduling { step { model_name: "child" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "output" value: "y" } } }
"""
SEQUENCES = """
backend: "onnxruntime" max_batch_size: 8
input { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] }
sequence_batching { direct { }
  control_input {
    name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  state { input_name: "STATE_IN" output_name: "STATE_OUT" data_type: TYPE_INT32 dims: [ 1 ] } }
"""


def put(folder: Path, file: str, content: str | bytes, config: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    (folder / file).write_bytes(data)
    if config:
        (folder.parent / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[ServerProcess]:
    """With our own gRPC lane, unless the test says that it wants grpcio's."""
    lane = getattr(request, "param", "headrace")
    models = folder / lane
    put(models / "echo" / "1", "model.onnx", onnx_models.identity("FP32"))
    put(models / "strict" / "1", "model.onnx", onnx_models.identity("FP32"))
    put(models / "strings" / "1", "model.onnx", onnx_models.identity("BYTES", ("n",)))
    put(models / "ids" / "1", "model.onnx", onnx_models.embedder())
    put(models / "texts", "model.onnx", onnx_models.embedder())
    vocabulary(models / "texts")
    put(models / "child", "model.py", RAISES)
    put(models / "thread", "model.py", RAISES)
    put(models / "triton" / "1", "model.py", TRITON, TRITON_CONFIG)
    put(models / "steps" / "1", "nothing", "", STEPS)
    put(models / "sums" / "1", "model.onnx", onnx_models.accumulator(), SEQUENCES)
    (models / "gate").mkdir(exist_ok=True)
    make_gate_model(models / "gate").rename(models / "gate" / "model.py")
    env = {
        **limits(max_name_length=2**30, max_answer_bytes=2**40, max_memory_bytes=2**40),
        "HEADRACE_MODELS__TEXTS__TASK": "text-embedding",
        "HEADRACE_MODELS__THREAD__ISOLATION": "thread",
        "HEADRACE_MODELS__GATE__QUEUE__MAX_QUEUE_SIZE": "2",
        "HEADRACE_MODELS__STRICT__ALLOW_NONFINITE": "false",
        "HEADRACE_CACHE_DIR": str(folder / "cache"),
    }
    arguments = (models, "--port", "0", "--grpc-port", "0", "--grpc-server", lane)
    with ServerProcess(*arguments, env=env, script=WITHOUT_COLLECTOR) as process:
        yield process.wait_ready()


def resident(pid: int) -> int:
    """Of a process and its children, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+([0-9]+) kB", status)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = Path(f"/proc/{pid}/task").iterdir()
    with suppress(FileNotFoundError):  # a thread that ended
        children = [
            each for thread in threads for each in (thread / "children").read_text().split()
        ]
    own = int(found[1]) * 1024 if found else 0
    return own + sum(resident(int(child)) for child in children)


def check(server: ServerProcess, fail: Callable[[], None], repeats: int = REPEATS) -> None:
    for _ in range(FIRST):
        fail()
    level = resident(server.process.pid)
    for _ in range(repeats - FIRST):
        fail()
    held = resident(server.process.pid) - level
    assert held < ROOM, f"{held / MB:.0f} MB more after {repeats - FIRST} failures of 20 MB each"


# -- what is sent --------------------------------------------------------------------------------

ZEROS = bytes(PAYLOAD)
LONG = "x" * PAYLOAD
FLOATS = {"name": "x", "datatype": "FP32", "shape": [PAYLOAD // 16, 4]}
ONE = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}


def text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def binary(
    tensor: dict[str, object], data: bytes, **fields: object
) -> tuple[bytes, dict[str, str]]:
    tensor = {**tensor, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], **fields}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def plain(body: object, **headers: str) -> tuple[bytes, dict[str, str]]:
    return json.dumps(body).encode(), headers


def ids() -> tuple[bytes, dict[str, str]]:
    half = np.full(PAYLOAD // 16, 10**6).tobytes()  # the table has 100 rows
    shape = {"datatype": "INT64", "shape": [1, PAYLOAD // 16]}
    size = {"parameters": {"binary_data_size": len(half)}}
    inputs = [{"name": name, **shape, **size} for name in ("input_ids", "attention_mask")]
    head = json.dumps({"inputs": inputs}).encode()
    return head + half * 2, {"Inference-Header-Content-Length": str(len(head))}


TEXT = {"name": "text", "datatype": "BYTES", "shape": [1]}
ENDLESS = json.dumps({"inputs": [ONE], "id": LONG}).encode()[:-1]
NAN = np.array([np.nan] * (PAYLOAD // 4), np.float32).tobytes()

WAYS: dict[str, tuple[int, str, Callable[[], tuple[bytes, dict[str, str]]]]] = {
    "a text is too long": (413, "texts", lambda: binary(TEXT, text(ZEROS))),
    "JSON ends too early": (400, "echo", lambda: (ENDLESS, {})),
    "wrong datatype": (400, "echo", lambda: binary(FLOATS | {"datatype": "INT32"}, ZEROS)),
    "wrong shape": (400, "echo", lambda: binary(FLOATS | {"shape": [PAYLOAD // 4]}, ZEROS)),
    "not finite": (400, "strict", lambda: binary(FLOATS, NAN)),
    "unknown model": (404, "nothing", lambda: binary(FLOATS, ZEROS)),
    "unknown version": (404, "echo/versions/9", lambda: binary(FLOATS, ZEROS)),
    "unknown output": (400, "echo", lambda: binary(FLOATS, ZEROS, outputs=[{"name": "no"}])),
    "ONNX Runtime raises": (500, "ids", ids),
    "ONNX text is not UTF-8": (
        400,
        "strings",
        lambda: binary(TEXT | {"name": "x"}, text(b"\xff" * PAYLOAD)),
    ),
    "a Python model raises": (500, "child", lambda: binary(FLOATS, ZEROS)),
    "a Python model in a thread raises": (500, "thread", lambda: binary(FLOATS, ZEROS)),
    "a Triton model raises": (500, "triton", lambda: binary(FLOATS, ZEROS, id="raise")),
    "a Triton model refuses": (400, "triton", lambda: binary(FLOATS, ZEROS)),
    "a step of an ensemble fails": (500, "steps", lambda: binary(FLOATS, ZEROS)),
    "a sequence without a name": (
        400,
        "sums",
        lambda: plain({"inputs": [rows(1)["inputs"][0] | {"name": "INPUT"}], "id": LONG}),
    ),
    "a sequence that was not started": (
        400,
        "sums",
        lambda: plain(
            {
                "inputs": [rows(1)["inputs"][0] | {"name": "INPUT"}],
                "parameters": {"sequence_id": 7},
                "id": LONG,
            }
        ),
    ),
    "no time": (504, "gate", lambda: plain(rows(1) | {"parameters": {"timeout": 1}, "id": LONG})),
    "bad gzip": (400, "echo", lambda: (ZEROS, {"Content-Encoding": "gzip"})),
}

ROUTES: dict[str, tuple[int, str, Callable[[], tuple[bytes, dict[str, str]]]]] = {
    "V1": (400, "/v1/models/echo:predict", lambda: plain({"instances": [LONG]})),
    "V1, too early": (400, "/v1/models/echo:predict", lambda: (ENDLESS, {})),
    "embeddings": (413, "/v1/embeddings", lambda: plain({"model": "texts", "input": LONG})),
    "embeddings of no model": (404, "/v1/embeddings", lambda: plain({"model": "a", "input": LONG})),
    "generate": (413, "/v2/models/texts/generate", lambda: plain({"text": LONG})),
    "generate_stream": (413, "/v2/models/texts/generate_stream", lambda: plain({"text": LONG})),
    "no route": (404, "/nowhere", lambda: (ZEROS, {})),
    "control": (400, "/v2/repository/models/a/load", lambda: plain({"parameters": {"a": LONG}})),
}


@pytest.mark.parametrize("way", WAYS)
def test_over_http(server: ServerProcess, way: str) -> None:
    expected, model, make = WAYS[way]
    body, headers = make()

    def fail() -> None:
        status, _, answer = server.request("POST", f"/v2/models/{model}/infer", body, headers)
        assert status == expected, answer[:500]

    check(server, fail)


@pytest.mark.parametrize("route", ROUTES)
def test_on_other_routes(server: ServerProcess, route: str) -> None:
    expected, path, make = ROUTES[route]
    body, headers = make()
    headers = {"Content-Type": "application/json", **headers}

    def fail() -> None:
        status, _, answer = server.request("POST", path, body, headers)
        assert status == expected, answer[:500]

    check(server, fail)


# -- a server that is busy, clients that leave ---------------------------------------------------

HEAD = b"POST /v2/models/gate/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
WAITING = 'headrace_requests_waiting{model="gate",version="1"}'


@pytest.fixture
def gate(server: ServerProcess, folder: Path, request: pytest.FixtureRequest) -> Path:
    parameters = getattr(request.node, "callspec", None)
    lane = parameters.params.get("server", "headrace") if parameters else "headrace"
    return folder / lane / "gate"


@contextmanager
def busy(server: ServerProcess, gate: Path, waiting: int = 0) -> Iterator[None]:
    """The gate model runs a request, and so many others wait for it."""
    body = json.dumps(rows(77)).encode()
    clients = [server.connect() for _ in range(1 + waiting)]
    for client in clients:
        client.send(HEAD % len(body) + body)
        wait_until((gate / "entered").exists, "the gate is entered")
    wait_until(lambda: server.metrics()[WAITING] == waiting, "the others wait")
    try:
        yield
    finally:
        (gate / "open").touch()
        assert [client.answer()[0] for client in clients] == [200] * len(clients)
        (gate / "open").unlink()
        (gate / "entered").unlink()
        for client in clients:
            client.socket.close()


def test_a_full_queue(server: ServerProcess, gate: Path) -> None:
    body = json.dumps(rows(1) | {"id": LONG}).encode()

    def fail() -> None:
        status, _, answer = server.request("POST", "/v2/models/gate/infer", body)
        assert (status, json.loads(answer)["code"]) == (503, "queue_full")

    with busy(server, gate, waiting=2):
        check(server, fail)


def test_time_that_runs_out_in_the_queue(server: ServerProcess, gate: Path) -> None:
    body = json.dumps(rows(1) | {"id": LONG, "parameters": {"timeout": 200_000}}).encode()

    def fail() -> None:
        assert server.request("POST", "/v2/models/gate/infer", body)[0] in (503, 504)

    with busy(server, gate):
        check(server, fail, repeats=25)


@pytest.mark.parametrize("sent", [0.5, 1.0], ids=["half of the request", "all of it"])
def test_clients_that_leave(server: ServerProcess, gate: Path, sent: float) -> None:
    body = json.dumps(rows(1) | {"id": LONG}).encode()
    whole = HEAD % len(body) + body

    def fail() -> None:
        with server.connect() as client:
            client.send(whole[: int(len(whole) * sent)])
        server.request("GET", "/healthz")

    with busy(server, gate):
        check(server, fail)
        wait_until(lambda: server.metrics()[WAITING] == 0, "all have left")


# -- gRPC ----------------------------------------------------------------------------------------

LANES = pytest.mark.parametrize("server", ["headrace", "grpcio"], indirect=True)

SERVICE = "/inference.GRPCInferenceService"
Request = protos.message("inference.ModelInferRequest")
StreamResponse = protos.message("inference.ModelStreamInferResponse")
GRID = [PAYLOAD // 16, 4]


def message(
    model: str, raw: bytes = ZEROS, datatype: str = "FP32", shape: object = GRID, **fields: object
) -> bytes:
    outputs = fields.pop("outputs", ())
    built = Request(model_name=model, **fields)
    built.inputs.add(name="x", datatype=datatype, shape=shape)
    for output in outputs:  # type: ignore[attr-defined]
        built.outputs.add(name=output)
    built.raw_input_contents.append(raw)
    found: bytes = built.SerializeToString()
    return found


GRPC: dict[str, tuple[str, Callable[[], bytes]]] = {
    "unknown model": ("NOT_FOUND", lambda: message("nothing")),
    "wrong datatype": ("INVALID_ARGUMENT", lambda: message("echo", datatype="INT32")),
    "wrong shape": ("INVALID_ARGUMENT", lambda: message("echo", shape=[PAYLOAD // 4])),
    "unknown output": ("INVALID_ARGUMENT", lambda: message("echo", outputs=["no"])),
    "not finite": ("INVALID_ARGUMENT", lambda: message("strict", NAN)),
    "no UTF-8": (
        "INVALID_ARGUMENT",
        lambda: message("strings", text(b"\xff" * PAYLOAD), "BYTES", [1]),
    ),
    "a Python model raises": ("INTERNAL", lambda: message("child")),
    "a Triton model raises": ("INTERNAL", lambda: message("triton", id="raise")),
    "a step of an ensemble fails": ("INTERNAL", lambda: message("steps")),
    "no protobuf": ("INVALID_ARGUMENT", lambda: b"\xff" * PAYLOAD),
}


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    found = re.search(r"gRPC on (\S+?:[0-9]+)", server.lines[-1])
    assert found is not None, server.lines
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    with grpc.insecure_channel(found[1], options=limits) as channel:
        yield channel


@LANES
@pytest.mark.parametrize("way", GRPC)
def test_over_grpc(server: ServerProcess, channel: grpc.Channel, way: str) -> None:
    expected, make = GRPC[way]
    asked, infer = make(), channel.unary_unary(f"{SERVICE}/ModelInfer")

    def fail() -> None:
        with pytest.raises(grpc.RpcError) as caught:
            infer(asked, timeout=TIMEOUT_S)
        assert caught.value.code().name == expected, caught.value.details()

    check(server, fail, repeats=25)


@LANES
@pytest.mark.parametrize("way", GRPC)
def test_on_a_grpc_stream(server: ServerProcess, channel: grpc.Channel, way: str) -> None:
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer", response_deserializer=StreamResponse.FromString
    )(iter(requests.get, None), timeout=TIMEOUT_S)
    asked = GRPC[way][1]()

    def fail() -> None:
        requests.put(asked)
        assert next(answers).error_message

    check(server, fail, repeats=25)
    requests.put(None)
    assert list(answers) == []


@LANES
@pytest.mark.parametrize("cancels", [True, False], ids=["cancelled", "out of time"])
def test_grpc_calls_that_are_given_up(
    server: ServerProcess, gate: Path, channel: grpc.Channel, cancels: bool
) -> None:
    body = Request(model_name="gate", id=LONG)
    body.inputs.add(name="x", datatype="INT32", shape=[1, 1])
    body.raw_input_contents.append(bytes(4))
    asked, infer = body.SerializeToString(), channel.unary_unary(f"{SERVICE}/ModelInfer")

    def fail() -> None:
        call = infer.future(asked, timeout=TIMEOUT_S if cancels else 0.2)
        if cancels:
            wait_until(lambda: server.metrics()[WAITING] == 1, "it waits")
            call.cancel()
        assert call.code().name in ("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
        wait_until(lambda: server.metrics()[WAITING] == 0, "it has left")

    with busy(server, gate):
        check(server, fail, repeats=25)
