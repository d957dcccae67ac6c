"""The same requests to headrace and to Triton's own binary: every difference, with its reason.

What is compared: over HTTP the status and the JSON of the answer (names and values; texts of
errors too), over gRPC the status code, the message and the fields of the answer. Durations,
timestamps and the server's own name and version are not facts about the protocol.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from conformance import environments, servers
from conformance.reasons import REASONS
from conformance.servers import Server

_TIMEOUT_S = 30
_MOVING = re.compile(r"_ns$|^ns$|^last_inference$|^version$|^name$|^log_file$")
_A = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
_B = {"name": "INPUT1", "shape": [1, 4], "datatype": "FP32", "data": [10, 20, 30, 40]}

Answer = dict[str, Any]


class Case(NamedTuple):
    """One request; ``ask`` gives what is compared."""

    name: str
    ask: Callable[[Server], Answer]


def _http(method: str, path: str, body: object = None, headers: Mapping[str, str] = {}) -> Case:
    def ask(server: Server) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=_TIMEOUT_S)
        try:
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
            connection.request(method, path, data, dict(headers))
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            value: Any = json.loads(raw) if raw else None
        except ValueError:
            value = raw.decode("latin-1")
        return {"status": answer.status, "body": value}

    shown = body.decode("latin-1") if isinstance(body, bytes) else json.dumps(body)
    size = "" if body is None else f" {shown if len(shown) < 300 else shown[:300] + '…'}"
    return Case(f"{method} {path}{size}", ask)


def _infer(model: str, **body: Any) -> Case:
    return _http("POST", f"/v2/models/{model}/infer", body)


def _grpc(method: str, request: Any) -> Case:
    def ask(server: Server) -> Answer:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            try:
                answer = getattr(stub, method)(request, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                return {"status": error.code().name, "message": error.details()}
        value = json_format.MessageToDict(answer, preserving_proto_field_name=True)
        return {"status": "OK", "body": value}

    shown = json_format.MessageToJson(request, indent=None)
    return Case(f"{method} {shown if len(shown) < 300 else shown[:300] + '…'}", ask)


def _stream(name: str, *requests: Any) -> Case:
    """What comes back over one ModelStreamInfer, in order."""

    def ask(server: Server) -> Answer:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            answers = stub.ModelStreamInfer(iter(requests), timeout=_TIMEOUT_S)
            told = [
                json_format.MessageToDict(each, preserving_proto_field_name=True)
                for each in answers
            ]
        for each in told:  # an error's text is compared like any other's
            if "error_message" in each:
                each["message"] = each.pop("error_message")
        return {"answers": told}

    return Case(f"ModelStreamInfer: {name}", ask)


def _metrics() -> Case:
    """Names and types of Triton's families, as far as the models were asked something."""

    def ask(server: Server) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.metrics, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        finally:
            connection.close()
        return dict(re.findall(r"^# TYPE (nv_\w+) (\w+)$", page, re.MULTILINE))

    return Case("GET /metrics, types of nv_*", ask)


def _message(model: str, *inputs: tuple[str, str, list[int], bytes], **more: Any) -> Any:
    request = pb.ModelInferRequest(model_name=model, **more)
    for name, datatype, shape, raw in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


_F = np.arange(4, dtype="f4").tobytes()
_GOOD = (("INPUT0", "FP32", [1, 4], _F), ("INPUT1", "FP32", [1, 4], _F))

CASES: list[Case] = [
    _http("GET", "/v2/health/live"),
    _http("GET", "/v2/health/ready"),
    _http("GET", "/v2"),
    _http("GET", "/v2/models/add_sub"),
    _http("GET", "/v2/models/pipeline"),
    _http("GET", "/v2/models/accumulate"),
    _http("GET", "/v2/models/add_sub/versions/1"),
    _http("GET", "/v2/models/add_sub/versions/9"),
    _http("GET", "/v2/models/nobody"),
    _http("GET", "/v2/models/add_sub/ready"),
    _http("GET", "/v2/models/nobody/ready"),
    _http("GET", "/v2/models/add_sub/config"),
    _http("GET", "/v2/models/pipeline/config"),
    _http("GET", "/v2/models/accumulate/config"),
    _http("GET", "/v2/models/nobody/config"),
    _http("POST", "/v2/repository/index", {}),
    _http("GET", "/v2/models/nobody/stats"),
    _infer("add_sub", inputs=[_A, _B]),
    _infer("add_sub", id="7", inputs=[_A, _B], outputs=[{"name": "OUTPUT1"}]),
    _infer("pipeline", inputs=[{**_A, "name": "A"}, {**_B, "name": "B"}]),
    _infer(
        "add_sub",
        inputs=[_A, _B],
        outputs=[{"name": "OUTPUT0", "parameters": {"classification": 2}}],
    ),
    _infer(
        "echo", inputs=[{"name": "IN_BYTES", "shape": [2], "datatype": "BYTES", "data": ["a", ""]}]
    ),
    _infer(
        "echo",
        inputs=[{"name": "IN_BOOL", "shape": [2], "datatype": "BOOL", "data": [True, False]}],
    ),
    _infer("echo", inputs=[{"name": "IN_FP64", "shape": [0], "datatype": "FP64", "data": []}]),
    _infer("nobody", inputs=[_A]),
    _infer("add_sub", inputs=[_A]),
    _infer("add_sub", inputs=[_A, {**_B, "name": "C"}]),
    _infer("add_sub", inputs=[_A, _A]),
    _infer("add_sub", inputs=[{**_A, "datatype": "INT32"}, _B]),
    _infer("add_sub", inputs=[{**_A, "datatype": "FP33"}, _B]),
    _infer("add_sub", inputs=[{**_A, "shape": [1, 5], "data": [1] * 5}, _B]),
    _infer("add_sub", inputs=[{**_A, "shape": [2, 4]}, _B]),
    _infer("add_sub", inputs=[{**_A, "data": [1, 2, 3]}, _B]),
    _infer("add_sub", inputs=[{**_A, "data": ["x"] * 4}, _B]),
    _infer("add_sub", inputs=[{**_A, "shape": [9, 4], "data": [0] * 36}] * 1 + [_B]),
    _infer(
        "add_sub",
        inputs=[{**each, "shape": [9, 4], "data": [0] * 36} for each in (_A, _B)],
    ),
    _infer("add_sub", inputs=[_A, _B], outputs=[{"name": "C"}]),
    _infer("add_sub", inputs=[_A, _B], outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]),
    _infer("add_sub"),
    _http("POST", "/v2/models/add_sub/infer", b"{"),
    _http("POST", "/v2/models/add_sub/infer", b"{}", {"Inference-Header-Content-Length": "9"}),
    _infer("repeat", inputs=[{"name": "IN", "shape": [1], "datatype": "INT32", "data": [1]}]),
    _infer(
        "accumulate", inputs=[{"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [1]}]
    ),
    _infer(
        "accumulate",
        parameters={"sequence_id": 77},
        inputs=[{"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [1]}],
    ),
    _infer(
        "accumulate",
        parameters={"sequence_id": 78, "sequence_start": True, "sequence_end": True},
        inputs=[{"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [5]}],
    ),
    _infer("patient", inputs=[{"name": "SECONDS", "shape": [1], "datatype": "FP32", "data": [-1]}]),
    _http("POST", "/v2/models/add_sub/generate", {"INPUT0": [1, 2, 3, 4], "INPUT1": [0, 0, 0, 0]}),
    _http("POST", "/v2/models/add_sub/generate", {"INPUT0": [1, 2, 3, 4]}),
    _http("POST", "/v2/models/repeat/generate", {"IN": [1, 2]}),
    _http("POST", "/v2/models/repeat/generate_stream", {"IN": [1, 2]}),
    _http("POST", "/v2/models/nobody/generate", {"IN": [1, 2]}),
    _http("GET", "/v2/trace/setting"),
    _http("POST", "/v2/trace/setting", {"trace_level": ["NONSENSE"]}),
    _http("POST", "/v2/trace/setting", {"trace_rate": "many"}),
    _http("GET", "/v2/models/add_sub/trace/setting"),
    _http("GET", "/v2/logging"),
    _http("POST", "/v2/logging", {"log_verbose_level": "loud"}),
    _http("GET", "/v2/systemsharedmemory/status"),
    _http("GET", "/v2/systemsharedmemory/region/nobody/status"),
    _http(
        "POST",
        "/v2/systemsharedmemory/region/r/register",
        {"key": "/none", "offset": 0, "byte_size": 8},
    ),
    _http("POST", "/v2/systemsharedmemory/region/nobody/unregister"),
    _http("GET", "/v2/cudasharedmemory/status"),
    _http("POST", "/v2/repository/models/nobody/load"),
    _http("POST", "/v2/repository/models/nobody/unload"),
    _http("GET", "/v2/nowhere"),
    _http("GET", "/v2/models/add_sub/infer"),
    _grpc("ServerLive", pb.ServerLiveRequest()),
    _grpc("ServerReady", pb.ServerReadyRequest()),
    _grpc("ServerMetadata", pb.ServerMetadataRequest()),
    _grpc("ModelReady", pb.ModelReadyRequest(name="nobody")),
    _grpc("ModelMetadata", pb.ModelMetadataRequest(name="add_sub")),
    _grpc("ModelMetadata", pb.ModelMetadataRequest(name="nobody")),
    _grpc("ModelConfig", pb.ModelConfigRequest(name="add_sub")),
    _grpc("ModelConfig", pb.ModelConfigRequest(name="accumulate")),
    _grpc("RepositoryIndex", pb.RepositoryIndexRequest()),
    _grpc("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nobody")),
    _grpc("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
    _grpc("TraceSetting", pb.TraceSettingRequest()),
    _grpc("ModelInfer", _message("add_sub", *_GOOD, id="9")),
    _grpc("ModelInfer", _message("nobody", *_GOOD)),
    _grpc("ModelInfer", _message("add_sub", _GOOD[0])),
    _grpc("ModelInfer", _message("add_sub", _GOOD[0], ("C", "FP32", [1, 4], _F))),
    _grpc("ModelInfer", _message("add_sub", _GOOD[0], ("INPUT1", "INT32", [1, 4], _F))),
    _grpc("ModelInfer", _message("add_sub", _GOOD[0], ("INPUT1", "FP32", [1, 3], _F[:12]))),
    _grpc("ModelInfer", _message("add_sub", _GOOD[0], ("INPUT1", "FP32", [1, 4], _F[:12]))),
    _grpc(
        "ModelInfer",
        _message(
            "add_sub", *_GOOD, outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="C")]
        ),
    ),
    _grpc("ModelInfer", _message("repeat", ("IN", "INT32", [1], b"\1\0\0\0"))),
    _stream("two requests", _message("add_sub", *_GOOD, id="1"), _message("add_sub", *_GOOD)),
    _stream("decoupled", _message("repeat", ("IN", "INT32", [2], b"\1\0\0\0\2\0\0\0"), id="3")),
    _stream("decoupled, without an answer", _message("repeat", ("IN", "INT32", [0], b""))),
    _stream(
        "decoupled, with an empty last one",
        _message(
            "repeat",
            ("IN", "INT32", [1], b"\1\0\0\0"),
            parameters={"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)},
        ),
    ),
    _stream("a wrong request", _message("add_sub", _GOOD[0], id="5")),
    _stream("an unknown model", _message("nobody", *_GOOD, id="6")),
    _metrics(),
]


def make() -> tuple[str, list[str]]:
    """Runs every case against both: the report, and the differences without a reason.

    Raises:
        Unavailable: Triton cannot be installed here.
    """
    binary = environments.triton()
    with ExitStack() as stack:
        ours = stack.enter_context(servers.headrace())
        theirs = stack.enter_context(servers.triton(binary))
        outcomes = [(case, case.ask(ours), case.ask(theirs)) for case in CASES]
    same, reasoned, unexplained = 0, [], []
    for case, mine, other in outcomes:
        differences = list(_differences(_steady(mine), _steady(other), ""))
        same += not differences
        for where, left, right in differences:
            line = f"| {_cell(case.name)} | `{where}` | {_cell(left)} | {_cell(right)} |"
            reason = _reason(case.name, where)
            if reason:
                reasoned.append(f"{line} {reason} |")
            else:
                unexplained.append(f"{line} **no reason given** |")
    head = "| request | where | headrace | Triton 2.51.0 | why |\n|---|---|---|---|---|"
    lines = [
        f"# headrace beside Triton 2.51.0: {same} of {len(CASES)} answers are equal",
        "",
        "`python -m conformance differential`. Not counted as differences: durations and times;",
        "the machine-readable facts (`code`, `hint`, ...) that headrace puts beside `error`, its",
        "hint in parentheses behind a gRPC message; `[request id: ...]` before Triton's",
        "errors. The rest differ where a row says so:",
        "",
        head,
        *unexplained,
        *reasoned,
    ]
    return "\n".join(lines), unexplained


def _reason(case: str, where: str) -> str:
    for rule in REASONS:
        if re.search(rule.case, case) and re.search(rule.where, where):
            return rule.reason
    return ""


def _steady(value: Any) -> Any:
    """Without what differs between two runs of one server."""
    if isinstance(value, dict):
        if isinstance(value.get("error"), str):  # ours has machine-readable facts beside it
            return {"error": _REQUEST_ID.sub("", value["error"])}
        if isinstance(value.get("message"), str):  # and over gRPC a hint behind it
            text = _HINT.sub("", _REQUEST_ID.sub("", value["message"]))
            return value | {"message": text}
        return {k: _steady(v) for k, v in value.items() if not _MOVING.search(k) or k == "name"}
    if isinstance(value, list):
        return [_steady(each) for each in value]
    return value


def _differences(mine: Any, other: Any, where: str) -> Any:
    """(path, ours, theirs) of every leaf that is not equal."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in sorted(mine.keys() | other.keys()):
            yield from _differences(
                mine.get(key, _ABSENT), other.get(key, _ABSENT), f"{where}.{key}"
            )
    elif isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        for index, pair in enumerate(zip(_sorted(mine), _sorted(other), strict=True)):
            yield from _differences(*pair, f"{where}[{index}]")
    elif mine != other:
        yield where.lstrip("."), mine, other


_ABSENT = "(absent)"
_REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")
_HINT = re.compile(r" \(.*\)\Z", re.DOTALL)


def _sorted(values: list[Any]) -> list[Any]:
    """Models in an index have no order; inputs and outputs do."""
    if values and all(isinstance(each, dict) and "state" in each for each in values):
        return sorted(values, key=lambda each: str(each["name"]))
    return values


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 160 else text[:157] + "…"
