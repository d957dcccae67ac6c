"""The attacks: what each sends, and which answers mean that the server held.

A flood is repeated while honest traffic is measured; the rest is sent once. The models are
``mlp`` (the honest one), ``wide`` (one value in, eight million out), ``words`` (a text in, the
same out), ``child`` (Python in a process of its own) and ``sums`` (a sequence).
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import attack_wire as wire
from benchmarks.attack_wire import Target

MIB = 1 << 20
_GZIP = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
_JSON = {"Content-Type": "application/json"}

Send = Callable[[Target], str]


class Attack(msgspec.Struct, frozen=True):
    """``held``: a pattern that the whole answer matches where the server held."""

    name: str
    send: Send
    held: str
    flood: bool = False
    watch: bool = True
    """Whether the server has ``--watch``, which allows loading over the network."""


ATTACKS: list[Attack] = []


def attack(held: str, *, flood: bool = False, watch: bool = True) -> Callable[[Send], Send]:
    """Registers a function; the first line of its docstring is the attack's name."""

    def register(send: Send) -> Send:
        assert send.__doc__ is not None
        ATTACKS.append(Attack(send.__doc__.strip(), send, held, flood, watch))
        return send

    return register


def write_models(folder: Path) -> None:
    """The models beside ``mlp``."""
    _write(folder / "wide" / "1" / "model.onnx", _wide())
    _write(folder / "words" / "1" / "model.onnx", _identity())
    child = (
        "import numpy as np\nfrom typing import Annotated\n"
        "Rows = Annotated[np.ndarray, 'INT32[N,1]']\n"
        "def predict(x: Rows) -> Rows:\n    return x\n"
    )
    _write(folder / "child" / "1" / "model.py", child.encode())
    _write(folder / "child" / "model.toml", b'execution_timeout = "2s"\n')


# --- models and control


@attack(r"400 .*")
def python_in_an_xml_file(target: Target) -> str:
    """upload: `model.xml` that is Python source, `runtime = "python"` in `model.toml`"""
    trap = target.work / "trap"
    source = f"open({str(trap)!r}, 'w').close()\n".encode()
    files = {"1/model.xml": source, "1/model.bin": b"x", "model.toml": b'runtime = "python"'}
    answer = _load(target, {"backend": "openvino"}, files)
    return f"{answer} (ran)" if trap.exists() else answer


@attack(r"403 .*")
def foreign_page(target: Target) -> str:
    """unload sent by a web page of another site"""
    return target.post_json(
        "/v2/repository/models/mlp/unload", {}, {"Origin": "http://evil.example", **_JSON}
    )


@attack(r"403 .*")
def rebound_name(target: Target) -> str:
    """unload with the `Host` of a rebound name, on loopback"""
    return target.post_json(
        "/v2/repository/models/mlp/unload", {}, {"Host": "evil.example", **_JSON}
    )


@attack(r"415 .*")
def form(target: Target) -> str:
    """log settings sent as a form"""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return target.ask("POST", "/v2/logging", b"{}", kind)


@attack(r"503 .*", watch=False)
def log_settings(target: Target) -> str:
    """the log switched off without the control switch"""
    return target.post_json("/v2/logging", {"log_error": False}, _JSON)


@attack(r"400 .*")
def instances(target: Target) -> str:
    """upload: `instances = 100000`"""
    return _load(target, {}, {"1/model.onnx": _identity(), "model.toml": b"instances = 100000"})


@attack(r"400 .*")
def threads(target: Target) -> str:
    """upload: `threads = 20000`"""
    return _load(target, {}, {"1/model.onnx": _identity(), "model.toml": b"threads = 20000"})


@attack(r"400 .*; meanwhile 200")
def endless_loop(target: Target) -> str:
    """upload: an ONNX `Loop` that never ends; another model is loaded meanwhile"""
    told: list[str] = []
    files = {"1/model.onnx": _endless()}
    thread = threading.Thread(target=lambda: told.append(_load(target, {}, files, "endless")))
    thread.start()
    time.sleep(0.5)
    other = _load(target, {}, {"1/model.onnx": _identity()}, "other")
    thread.join(wire.TIMEOUT_S)
    return f"{told[0] if told else 'no answer'}; meanwhile {other}"


@attack(r"400 .*")
def other_models_file(target: Target) -> str:
    """load override that names another model's file"""
    config = {"default_model_filename": "../../mlp/1/model.onnx"}
    parameters = {"parameters": {"config": json.dumps(config)}}
    return target.post_json("/v2/repository/models/words/load", parameters, _JSON)


@attack(r"400 .*")
def nested_ensembles(target: Target) -> str:
    """upload: 300 ensembles, each a step of the next"""
    step: dict[str, Any] = {"input_map": {"x": "x"}, "output_map": {"y": "y"}}
    answer = ""
    tensors = {"input": [_pb("x")], "output": [_pb("y")]}
    for depth in range(300):
        model = f"e{depth - 1}" if depth else "words"
        config = {
            "platform": "ensemble",
            "ensemble_scheduling": {"step": [{"model_name": model, "model_version": -1, **step}]},
            **tensors,
        }
        answer = _load(target, config, {"1/keep": b""}, f"e{depth}")
        if not answer.startswith("200"):
            return answer
    return answer


@attack(r"400 .*", watch=False)
def foreign_region(target: Target) -> str:
    """shared memory: another user's object in `/dev/shm`, mode 0600"""
    file = Path("/dev/shm") / f"headrace-attack-{os.getpid()}"
    file.write_bytes(bytes(64))
    file.chmod(0o600)
    try:
        os.chown(file, 65_534, 65_534)
    except PermissionError:
        return "400 (not tried: only root can give a file to another user)"
    try:
        return target.post_json(
            "/v2/systemsharedmemory/region/r/register",
            {"key": f"/{file.name}", "offset": 0, "byte_size": 64},
            _JSON,
        )
    finally:
        file.unlink()


# --- bodies


@attack(r"4\d\d .*", flood=True, watch=False)
def empty_arrays(target: Target) -> str:
    """60 MB of empty arrays in `parameters`, 58 kB as gzip"""
    return target.ask("POST", "/v2/models/mlp/infer", _empty_arrays(), _GZIP)


@attack(r"grpc-status (3|8) .*", flood=True, watch=False)
def long_shape(target: Target) -> str:
    """60 million elements of a shape in protobuf, 63 kB as gzip"""
    return _one_call(target, _long_shape(), compressed=True)


@attack(r"4\d\d .*", flood=True, watch=False)
def deep_nesting(target: Target) -> str:
    """100,000 nested arrays"""
    body = b'{"inputs":[],"parameters":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    return target.ask("POST", "/v2/models/mlp/infer", body, _JSON)


@attack(r"4\d\d .*", flood=True, watch=False)
def zeros(target: Target) -> str:
    """a gigabyte of zeros as gzip"""
    return target.ask("POST", "/v2/models/mlp/infer", _zeros(), _GZIP)


@attack(r"4\d\d .*|200", flood=True, watch=False)
def wide_answer(target: Target) -> str:
    """a request of 100 bytes whose answer has 8 million numbers as JSON"""
    return target.post_json("/v2/models/wide/infer", _values("x", [1.0]), _JSON)


@attack(r"4\d\d .*", flood=True, watch=False)
def numbers(target: Target) -> str:
    """60 MB of numbers as JSON"""
    return target.ask("POST", "/v2/models/mlp/infer", _numbers(), _JSON)


@attack(r"400 .*", flood=True, watch=False)
def failing(target: Target) -> str:
    """60 MB that fail: binary data of the wrong size"""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2, 16],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 60 * MIB},
                }
            ]
        }
    ).encode()
    fields = {"Inference-Header-Content-Length": str(len(head))}
    return target.ask("POST", "/v2/models/mlp/infer", head + bytes(60 * MIB), fields)


@attack(r"(400 .*)", watch=False)
def not_utf8(target: Target) -> str:
    """60 texts that are not UTF-8; the model stays ready"""
    answers = dict[str, None]()
    for _ in range(60):
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "shape": [1],
                        "datatype": "BYTES",
                        "parameters": {"binary_data_size": 6},
                    }
                ]
            }
        ).encode()
        fields = {"Inference-Header-Content-Length": str(len(head))}
        body = head + struct.pack("<I", 2) + b"\xff\xfe"
        answers[target.ask("POST", "/v2/models/words/infer", body, fields)] = None
    return "; ".join(answers)


# --- connections and streams


@attack(r".*", flood=True, watch=False)
def empty_messages(target: Target) -> str:
    """200,000 empty messages on one gRPC stream"""
    return _one_stream(target, wire.message(b"") * 200_000)


@attack(r".*", flood=True, watch=False)
def many_requests(target: Target) -> str:
    """40,000 requests on one gRPC stream"""
    return _one_stream(target, wire.message(wire.infer_message("none")) * 40_000)


@attack(r".*GOAWAY.*|closed", flood=True, watch=False)
def rapid_reset(target: Target) -> str:
    """12,000 calls, each reset at once"""
    client = target.open_http2()
    streams = range(1, 24_001, 2)
    client.send(b"".join(client.call(s, wire.INFER) + wire.reset(s) for s in streams))
    answer = client.answers([streams[-1]])
    client.close()
    return answer


@attack(r".*", flood=True, watch=False)
def pipelined(target: Target) -> str:
    """10,000 pipelined requests, and no answer is read"""
    request = b"GET /v2/models/none HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with target.connect() as connection:
        connection.settimeout(1)
        try:
            connection.sendall(request * 10_000)
        except OSError:
            return "not read"
        return f"{connection.recv(12)[9:12].decode()}"


@attack(r"(.*503|open).*", watch=False)
def one_byte_short(target: Target) -> str:
    """40 bodies of 60 MB, each held one byte short"""
    head = (
        b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: localhost\r\n"
        + f"Content-Length: {60 * MIB}\r\n\r\n".encode()
    )
    held = []
    answers = dict[str, int]()
    body = bytes(60 * MIB - 1)
    for _ in range(40):
        connection = target.connect()
        connection.settimeout(5)
        held.append(connection)
        try:
            connection.sendall(head)
            connection.sendall(body)
            connection.settimeout(0.2)
            told = connection.recv(12)[9:12].decode() or "closed"
        except TimeoutError:
            told = "open"
        except OSError:
            told = _last_status(connection)
        answers[told] = answers.get(told, 0) + 1
    peak = target.server.memory_bytes() // MIB
    for connection in held:
        connection.close()
    return "; ".join(f"{told} x {count}" for told, count in answers.items()) + f" ({peak} MiB)"


@attack(r".*grpc-status (8|14|3).*", watch=False)
def inflated(target: Target) -> str:
    """40 gRPC messages of 45 MB of zeros, 45 kB as gzip each, none complete"""
    client = target.open_http2()
    packed = wire.message(bytes(45 * MIB), compressed=True)
    streams = range(1, 81, 2)
    for stream in streams:
        client.send(client.call(stream, wire.STREAM, compressed=True))
        client.send(wire.data(stream, packed))
    answer = client.answers(streams)
    client.close()
    return answer


@attack(r".*", watch=False)
def unread_answers(target: Target) -> str:
    """100 binary answers of 32 MB on one connection, none read"""
    value = {**_values("x", [1.0]), "parameters": {"binary_data_output": True}}
    body = json.dumps(value).encode()
    head = f"POST /v2/models/wide/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with target.connect() as connection:
        connection.settimeout(2)
        try:
            connection.sendall((head.encode() + body) * 100)
        except OSError:
            return "not read"
        time.sleep(3)
        return f"held {target.server.memory_bytes() // MIB} MiB"


@attack(r"5\d\d .*; then 200")
def hanging_child(target: Target) -> str:
    """a model's process that hangs (SIGSTOP), with an execution timeout of 2 s"""
    path = "/v2/models/child/infer"
    body = json.dumps(_values("x", [1], "INT32", [1, 1])).encode()
    models = json.loads(target.server.get("/v2/repository/models")[1])
    (pid,) = [pid for m in models if m["name"] == "child" for pid in m.get("processes", ())]
    os.kill(pid, signal.SIGSTOP)
    first = target.ask("POST", path, body, _JSON)
    deadline = time.monotonic() + wire.TIMEOUT_S
    then = ""
    while not then.startswith("200") and time.monotonic() < deadline:
        then = target.ask("POST", path, body, _JSON)
    return f"{first}; then {then}"


# --- what is told


@attack(r"404 .*", watch=False)
def unknown_model(target: Target) -> str:
    """the answer about an unknown model lists no models"""
    answer = target.post_json("/v2/models/none/infer", _values("x", [1.0]), _JSON)
    return f"{answer} (lists models)" if "words" in answer else answer


@attack(r"0o700", watch=False)
def cache_folder(target: Target) -> str:
    """the mode of the cache folder"""
    return oct(stat.S_IMODE((target.work / "cache").stat().st_mode))


def _load(target: Target, config: dict[str, Any], files: dict[str, bytes], name: str = "x") -> str:
    parameters: dict[str, Any] = {
        f"file:{path}": base64.b64encode(content).decode() for path, content in files.items()
    }
    parameters["config"] = json.dumps(config)
    path = f"/v2/repository/models/{name}/load"
    return target.post_json(path, {"parameters": parameters}, _JSON)


def _one_call(target: Target, payload: bytes, *, compressed: bool) -> str:
    client = target.open_http2()
    client.send(client.call(1, wire.INFER, compressed=compressed))
    client.send(wire.data(1, payload))
    answer = client.answers([1])
    client.close()
    return answer


def _one_stream(target: Target, messages: bytes) -> str:
    client = target.open_http2()
    client.send(client.call(1, wire.STREAM))
    client.send(wire.data(1, messages))
    answer = client.answers([1])
    client.close()
    return answer


def _last_status(connection: Any) -> str:
    """What came before the server closed its side."""
    try:
        return connection.recv(12)[9:12].decode() or "closed"
    except OSError:
        return "closed"


def _values(
    name: str, data: list[Any], datatype: str = "FP32", shape: list[int] | None = None
) -> dict[str, Any]:
    tensor = {"name": name, "shape": shape or [1, len(data)], "datatype": datatype, "data": data}
    return {"inputs": [tensor]}


def _pb(name: str) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_STRING", "dims": [-1]}


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def _wide() -> bytes:
    """FP32 ``x [N,1]`` -> ``y [N,8000000]``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8_000_000])
    width = onnx.numpy_helper.from_array(np.array([1, 8_000_000], np.int64), "width")
    return _model([helper.make_node("Expand", ["x", "width"], ["y"])], [x], [y], [width])


def _identity() -> bytes:
    """BYTES ``x [N]`` -> ``y [N]``."""
    x = helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])
    return _model([helper.make_node("Identity", ["x"], ["y"])], [x], [y], [])


def _endless() -> bytes:
    """FP32 ``x [N,1]``, added to itself 2**62 times."""
    value = helper.make_tensor_value_info("v", TensorProto.FLOAT, None)
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    on = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    still = helper.make_tensor_value_info("d", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["d"]),
            helper.make_node("Add", ["v", "v"], ["o"]),
        ],
        "body",
        [count, on, value],
        [still, out],
    )
    trips = onnx.numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    always = onnx.numpy_helper.from_array(np.array(True), "always")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    node = helper.make_node("Loop", ["trips", "always", "x"], ["y"], body=body)
    return _model([node], [x], [y], [trips, always])


@cache
def _empty_arrays() -> bytes:
    arrays = b"[]," * 20_000_000
    return gzip.compress(b'{"inputs":[],"parameters":{"a":[' + arrays + b"[]]}}", 6)


@cache
def _long_shape() -> bytes:
    shape = wire.field(3, b"\x01" * 60_000_000)
    tensor = wire.field(1, b"x") + wire.field(2, b"FP32") + shape
    return wire.message(wire.infer_message("mlp", [tensor]), compressed=True)


@cache
def _zeros() -> bytes:
    packer = zlib.compressobj(6, wbits=31)
    return b"".join([packer.compress(bytes(MIB)) for _ in range(1024)]) + packer.flush()


@cache
def _numbers() -> bytes:
    numbers = b"0.125," * (10 * MIB - 1) + b"0.125"
    head = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":['
    return head + numbers + b"]}]}"
