"""Bad input to a real server: the status, what was wrong, what was expected, what to do about
it, and nobody else affected.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import (
    ServerProcess,
    http_request,
    limits,
    make_gate_model,
    rows,
    serving,
    wait_until,
)

ONNX = ("--runtime", "onnxruntime")
INFER = "/v2/models/echo/infer"
MAX_BODY = 2_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad-input")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    repository = folder / "repository"
    for name, model in {
        "echo": onnx_models.identity("FP32", ("n", 2)),
        "ints": onnx_models.identity("INT32", ("n",)),
        "sum": onnx_models.optional_bias(),
    }.items():
        path = repository / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(model)
    env = {"HEADRACE_CACHE_DIR": str(folder / "cache")} | limits(
        max_body_bytes=MAX_BODY, max_header_bytes=5000, max_headers=50
    )
    with serving(repository, *ONNX, env=env) as server:
        yield server


@pytest.fixture(autouse=True)
def _nobody_else_is_affected(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        server: ServerProcess = request.getfixturevalue("server")
        status, answer = server.json("POST", INFER, ask())
        assert (status, answer["outputs"][0]["data"]) == (200, [1.0, 2.0])


def ask(data: Any = (1.0, 2.0), shape: Any = (1, 2), **changed: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": data} | changed
    return {"inputs": [tensor]}


def with_data(data: bytes) -> bytes:
    """A request with these very bytes as data."""
    return b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":%b}]}' % data


BODIES: dict[str, tuple[object, int, str, str]] = {
    # what is sent: (body, status, code, what the text must have)
    "nothing": (b"", 400, "malformed_json", "JSON"),
    "no JSON": (b"hello", 400, "malformed_json", "JSON"),
    "JSON cut short": (json.dumps(ask()).encode()[:-4], 400, "malformed_json", "JSON"),
    "two JSON objects": (json.dumps(ask()).encode() * 2, 400, "malformed_json", "JSON"),
    "bytes that are no UTF-8": (b'{"id": "\xff"}', 400, "malformed_json", "JSON"),
    "nested 100,000 deep": (b"[" * 100_000, 400, "invalid_request", "object"),
    "data nested 100,000 deep": (
        with_data(b"[" * 100_000 + b"]" * 100_000),
        400,
        "malformed_json",
        "nested too deeply",
    ),
    "NaN": (with_data(b"[NaN, 1]"), 400, "malformed_json", "JSON"),
    "Infinity": (with_data(b"[1, -Infinity]"), 400, "malformed_json", "JSON"),
    "1e999": (with_data(b"[1, 1e999]"), 400, "wrong_data", "out of range"),
    "a number too large for FP32": (with_data(b"[1, 1e300]"), 400, "out_of_range", "FP32"),
    "an integer too large for INT32": (
        (
            "/v2/models/ints/infer",
            {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [2**31]}]},
        ),
        400,
        "out_of_range",
        "INT32",
    ),
    "a list": ([], 400, "invalid_request", "object"),
    "no inputs": ({}, 400, "invalid_request", "inputs"),
    "inputs that are no list": ({"inputs": {}}, 400, "invalid_request", "inputs"),
    "an input without a shape": (
        {"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]},
        400,
        "invalid_request",
        "shape",
    ),
    "an input without data": (
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]},
        400,
        "missing_data",
        "'x'",
    ),
    "a negative dimension": (ask(shape=[-1, 2]), 400, "invalid_request", "shape"),
    "a huge shape": (ask(shape=[2**62, 2]), 400, "shape_data_mismatch", "'x'"),
    "a shape that wraps around": (ask(shape=[2**32, 2**32]), 400, "shape_data_mismatch", "'x'"),
    "an empty shape too large for memory": (
        ask(data=[], shape=[0, 2**63]),
        400,
        "wrong_shape",
        "'x'",
    ),
    "too few numbers": (ask(data=[1.0]), 400, "shape_data_mismatch", "2 elements, got 1"),
    "too many numbers": (ask(data=[1.0] * 3), 400, "shape_data_mismatch", "got 3"),
    "ragged lists": (ask(data=[[1.0], [1.0, 2.0]]), 400, "shape_data_mismatch", "nested"),
    "text for numbers": (ask(data=["1", "2"]), 400, "wrong_data", "FP32"),
    "null for a number": (ask(data=[None, 1.0]), 400, "wrong_data", "FP32"),
    "an unknown datatype": (ask(datatype="FLOAT"), 400, "unknown_datatype", "FLOAT"),
    "another datatype": (
        ask(datatype="INT64", data=[1, 2]),
        400,
        "wrong_datatype",
        "inference input 'x' data-type is 'INT64', but model 'echo' expects 'FP32'",
    ),
    "another shape": (
        ask(data=[1.0] * 3, shape=[1, 3]),
        400,
        "wrong_shape",
        "unexpected shape for input 'x' for model 'echo'. Expected [-1,2], got [1,3]",
    ),
    "another rank": (ask(shape=[2]), 400, "wrong_shape", "Expected [-1,2], got [2]"),
    "no rows": (ask(data=[], shape=[0, 2]), 400, "empty_batch", "at least one row"),
    "an unknown input": (
        ask(name="y"),
        400,
        "unexpected_input",
        "unexpected inference input 'y' for model 'echo'",
    ),
    "the same input twice": (
        {"inputs": ask()["inputs"] * 2},
        400,
        "duplicate_input",
        "input 'x' already exists",
    ),
    "an input left out": ({"inputs": []}, 400, "missing_input", "missing required input(s) ['x']"),
    "an unknown output": (
        ask() | {"outputs": [{"name": "z"}]},
        400,
        "unexpected_output",
        "unexpected inference output 'z' for model 'echo'",
    ),
    "the same output twice": (
        ask() | {"outputs": [{"name": "y"}, {"name": "y"}]},
        400,
        "duplicate_output",
        "output 'y' already exists in request",
    ),
    "rows that disagree": (
        (
            "/v2/models/sum/infer",
            {
                "inputs": [
                    {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4},
                    {"name": "bias", "shape": [2, 4], "datatype": "FP32", "data": [0.0] * 8},
                ]
            },
        ),
        400,
        "batch_mismatch",
        "same first dimension",
    ),
    "a timeout that is none": (
        ask() | {"parameters": {"timeout": "soon"}},
        400,
        "wrong_parameter",
        "timeout",
    ),
    "binary_data_output as text": (
        ask() | {"parameters": {"binary_data_output": "yes"}},
        400,
        "wrong_parameter",
        "true or false",
    ),
    "a sequence that is none": (
        ask() | {"parameters": {"sequence_id": 1.5}},
        400,
        "wrong_parameter",
        "sequence_id",
    ),
    "shared memory that nobody registered": (
        ask(parameters={"shared_memory_region": "nowhere", "shared_memory_byte_size": 8}),
        400,
        "unknown_region",
        "Unable to find shared memory region: 'nowhere'",
    ),
    "a model that is not there": (
        ("/v2/models/nobody/infer", ask()),
        404,
        "model_not_found",
        "Request for unknown model: 'nobody' is not found",
    ),
    "a version that is not there": (
        ("/v2/models/echo/versions/9/infer", ask()),
        404,
        "model_not_found",
        "version 9",
    ),
    "a name that is an attack": (
        ("/v2/models/..%2f..%2fetc%2fpasswd/infer", ask()),
        404,
        "model_not_found",
        "'../../etc/passwd'",
    ),
    "embeddings of a model that makes none": (
        ("/v1/embeddings", {"model": "echo", "input": "text"}),
        404,
        "model_not_found",
        "does not embed",
    ),
}


def told(answer: Any) -> tuple[str, str, str]:
    """Message, code and hint in either protocol's shape."""
    error = answer["error"]
    if isinstance(error, dict):
        return error["message"], error["code"], ""
    return error, answer["code"], answer.get("hint", "")


@pytest.mark.parametrize(("sent", "status", "code", "text"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_wrong(
    server: ServerProcess, sent: object, status: int, code: str, text: str
) -> None:
    path, body = sent if isinstance(sent, tuple) else (INFER, sent)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    got, fields, answer = server.request("POST", path, raw)
    assert got == status, answer
    assert fields["content-type"] == "application/json"
    message, name, _ = told(json.loads(answer))
    assert name == code
    assert text in message
    assert len(message) < 1000, "what was sent is not sent back"


JSON_SIZE = "Inference-Header-Content-Length"


def binary(size: Any, *, shape: Any = (1, 2), datatype: str = "FP32", **more: Any) -> bytes:
    tensor = {"name": "x", "shape": shape, "datatype": datatype} | more
    return json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()


BINARY: dict[str, tuple[bytes, bytes, str | None, str]] = {
    "bytes cut short": (binary(8), b"\0" * 7, None, "wrong_binary_size"),
    "bytes left over": (binary(8), b"\0" * 9, None, "wrong_binary_size"),
    "a size that disagrees with the shape": (binary(4), b"\0" * 4, None, "shape_data_mismatch"),
    "a size that is no number": (binary("8"), b"\0" * 8, None, "wrong_binary_size"),
    "a header length beyond the body": (binary(8), b"\0" * 8, "9999", "malformed_json"),
    "a header length that is no number": (binary(8), b"\0" * 8, "-1", "wrong_binary_header"),
    "a header length with an underscore": (binary(8), b"\0" * 8, "1_0", "wrong_binary_header"),
    "no header length": (binary(8), b"", "", "missing_binary_header"),
    "raw bytes that are no whole rows": (b"\0" * 9, b"", "0", "shape_data_mismatch"),
    "both data and bytes": (
        binary(8, data=[1.0, 2.0]),
        b"\0" * 8,
        None,
        "wrong_binary_size",
    ),
    "a BYTES element longer than its tensor": (
        binary(5, shape=[1], datatype="BYTES"),
        struct.pack("<I", 2**31) + b"a",
        None,
        "wrong_bytes_length",
    ),
}


@pytest.mark.parametrize(("head", "tail", "length", "code"), BINARY.values(), ids=BINARY)
def test_binary_data_that_is_wrong(
    server: ServerProcess, head: bytes, tail: bytes, length: str | None, code: str
) -> None:
    fields = {JSON_SIZE: str(len(head)) if length is None else length} if length != "" else {}
    status, _, answer = server.request("POST", INFER, head + tail, fields)
    assert status == 400
    assert told(json.loads(answer))[1] == code


def test_nan_is_a_number_unless_the_model_says_otherwise(server: ServerProcess) -> None:
    """NaN is how tree models spell "missing"; JSON has no word for it, bytes have."""
    data = np.array([np.nan, np.inf], dtype=np.float32).tobytes()
    head = binary(len(data))
    status, _, answer = server.request("POST", INFER, head + data, {JSON_SIZE: str(len(head))})
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [None, None]


def test_nan_is_refused_where_the_configuration_says_so(folder: Path) -> None:
    env = {
        "HEADRACE_CACHE_DIR": str(folder / "cache"),
        "HEADRACE_DEFAULTS__ALLOW_NONFINITE": "false",
    }
    data = np.array([1.0, np.nan], dtype=np.float32).tobytes()
    head = binary(len(data))
    model = folder / "repository" / "echo"
    with serving(model, *ONNX, env=env) as server:
        status, _, answer = server.request("POST", INFER, head + data, {JSON_SIZE: str(len(head))})
    message, code, hint = told(json.loads(answer))
    assert (status, code) == (400, "nonfinite_input")
    assert "'x'" in message
    assert "allow_nonfinite" in hint


# -- HTTP -----------------------------------------------------------------------------------


HTTP: dict[str, tuple[bytes, int, str]] = {
    "not HTTP": (b"hello\r\n\r\n", 400, "malformed_http"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, 400, "malformed_http"),
    "HTTP/2 in words": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "unknown_version"),
    "half of HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 505, "unknown_version"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_http"),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "malformed_http",
    ),
    "too many headers": (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 60 + b"\r\n",
        431,
        "too_many_headers",
    ),
    "headers too large": (
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 6000 + b"\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "a target too long": (
        b"GET /" + b"a" * 6000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "a body too large": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1),
        413,
        "payload_too_large",
    ),
    "a body too large, expected": (
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        % (MAX_BODY + 1),
        413,
        "payload_too_large",
    ),
    "chunks that are none": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        400,
        "malformed_http",
    ),
    "another expectation": (
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n",
        417,
        "unknown_expectation",
    ),
}


@pytest.mark.parametrize(("sent", "status", "code"), HTTP.values(), ids=HTTP)
def test_http_that_is_wrong(server: ServerProcess, sent: bytes, status: int, code: str) -> None:
    with server.connect() as client:
        client.send(sent)
        got, fields, body = client.answer()
        assert (got, fields["connection"]) == (status, "close")
        answer = json.loads(body)
        assert told(answer)[1] == code
        assert ("allowed" in answer) == (status in (413, 431)), "what would have been right"
        assert client.read_to_the_end() == b""


def test_a_refusal_reaches_a_client_that_is_still_sending(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (100 * MAX_BODY))
        client.send(b"x" * MAX_BODY)
        status, _, body = client.answer()
        assert (status, told(json.loads(body))[1]) == (413, "payload_too_large")


def test_a_body_cut_short_by_the_client(server: ServerProcess) -> None:
    with server.connect() as client:
        client.send(http_request("POST", INFER, ask())[:-5])
        client.socket.shutdown(socket.SHUT_WR)
        status, _, body = client.answer()
        assert status == 400
        assert "ended in the middle of a request" in told(json.loads(body))[0]


COMPRESSED: dict[str, tuple[bytes, str, int, str]] = {
    "gzip that is none": (b"hello", "gzip", 400, "malformed_http"),
    "gzip cut short": (
        gzip.compress(json.dumps(ask()).encode())[:-5],
        "gzip",
        400,
        "malformed_http",
    ),
    "a bomb": (gzip.compress(b"\0" * (100 * MAX_BODY)), "gzip", 413, "payload_too_large"),
    "brotli": (b"hello", "br", 415, "unknown_encoding"),
    "gzip twice": (
        gzip.compress(gzip.compress(b"{}")),
        "gzip, gzip",
        415,
        "unknown_encoding",
    ),
}


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"), COMPRESSED.values(), ids=COMPRESSED
)
def test_compression_that_is_wrong(
    server: ServerProcess, body: bytes, encoding: str, status: int, code: str
) -> None:
    got, _, answer = server.request("POST", INFER, body, {"Content-Encoding": encoding})
    assert got == status
    assert told(json.loads(answer))[1] == code


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/nowhere", 404, "there is no route /nowhere"),
        ("GET", INFER, 405, "GET is not allowed"),
        ("DELETE", "/v2/models/echo", 405, "DELETE is not allowed"),
        ("GET", "/v2/models/nobody", 404, "'nobody'"),
        ("GET", "/v2/models/echo/versions/x", 404, "version x"),
        ("GET", "/../../etc/passwd", 404, "no route"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, "no route"),
    ],
)
def test_a_route_that_is_wrong(
    server: ServerProcess, method: str, path: str, status: int, text: str
) -> None:
    got, _, answer = server.request(method, path)
    assert got == status
    message, _, hint = told(json.loads(answer))
    assert text in message
    assert hint


def test_overload_is_503_with_a_time_to_come_back(tmp_path: Path) -> None:
    gate = make_gate_model(tmp_path)
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    path = "/v2/models/gate/infer"
    limited = ("--max-queue-size", 1, "--max-batch-size", 1, "--instances", 1)
    with (
        serving(gate, *limited, env=env) as server,
        server.connect() as running,
        server.connect() as waiting,
        server.connect() as refused,
    ):
        running.send(http_request("POST", path, rows(77)))
        wait_until((tmp_path / "entered").exists, "it runs")
        waiting.send(http_request("POST", path, rows(1)))
        wait_until(
            lambda: server.metrics()['headrace_requests_waiting{model="gate",version="1"}'] == 1,
            "the second waits",
        )
        refused.send(http_request("POST", path, rows(2)))
        status, fields, body = refused.answer()
        assert (status, told(json.loads(body))[1]) == (503, "queue_full")
        assert int(fields["retry-after"]) >= 1
        (tmp_path / "open").touch()
        assert running.answer()[0] == 200
        assert waiting.answer()[0] == 200


def test_a_timeout_is_504(tmp_path: Path) -> None:
    gate = make_gate_model(tmp_path)
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(gate, env=env) as server:
        asked = rows(77) | {"parameters": {"timeout": 50_000}}
        status, answer = server.json("POST", "/v2/models/gate/infer", asked)
        assert (status, told(answer)[1]) == (504, "deadline_exceeded")
        (tmp_path / "open").touch()
        assert server.json("POST", "/v2/models/gate/infer", rows(5))[0] == 200


def test_a_model_that_raises_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "picky.py"
    path.write_text(
        "def predict(x: list[int]) -> list[int]:\n"
        "    if 13 in x: raise ValueError('thirteen')\n"
        "    return x\n"
    )
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    ask_for = "/v2/models/picky/infer"
    with serving(path, env=env) as server:
        told_of = server.json("GET", "/v2/models/picky")[1]["inputs"][0]

        def body(value: int) -> dict[str, Any]:
            shape = [1] * len(told_of["shape"])
            tensor = {"name": "x", "shape": shape, "datatype": "INT64", "data": [value]}
            return {"inputs": [tensor]}

        status, answer = server.json("POST", ask_for, body(13))
        assert (status, told(answer)[1]) == (500, "inference_failed")
        status, answer = server.json("POST", ask_for, body(5))
        assert (status, answer["outputs"][0]["data"]) == (200, [5])
