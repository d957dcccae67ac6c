"""tritonclient over gRPC, unchanged, against a real server with either of its two transports."""

from __future__ import annotations

import asyncio
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.utils import InferenceServerException

from headrace.types import DTYPE_OF
from tests.conformance.frontends.python_models import put_count, put_gate
from tests.conformance.frontends.serving_everything import DATATYPES, make_repository
from tests.conformance.frontends.test_triton_client import same, sample
from tests.integration.server_process import TIMEOUT_S, ServerProcess, serving, wait_until

_GRPC = re.compile(r"gRPC on (\S+?:[0-9]+)")


@pytest.fixture(scope="module", params=["headrace", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp(f"grpc-{request.param}")
    repository = make_repository(folder / "repository")
    put_count(repository)
    put_gate(repository, folder / "open")
    env = {
        "HEADRACE_CACHE_DIR": str(folder / "cache"),
        "HEADRACE_SERVER__MODEL_CONTROL": "explicit",
        "HEADRACE_SERVER__LOAD_MODELS": '["*"]',
    }
    flags = ["--grpc-port", "0", "--grpc-server", request.param]
    with serving(repository, "--runtime", "onnxruntime", *flags, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def address(server: ServerProcess) -> str:
    found = _GRPC.search(server.lines[-1])
    assert found is not None, server.lines
    return found[1]


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


def input_of(datatype: str, array: np.ndarray, name: str = "x") -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def rows(*values: float) -> list[triton.InferInput]:
    return [input_of("FP32", np.repeat(np.float32(values), 3).reshape(-1, 3))]


def count_to(number: int) -> list[triton.InferInput]:
    return [input_of("INT32", np.array([number], np.int32), "N")]


# -- one answer to one request ------------------------------------------------------------------


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype(client: triton.InferenceServerClient, datatype: str) -> None:
    array = sample(datatype)
    result = client.infer(f"echo_{datatype.lower()}", [input_of(datatype, array)])
    assert result.get_output("y").datatype == datatype
    same(result.as_numpy("y"), array)


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in ("FP16", "BF16")])
def test_every_datatype_in_typed_contents(address: str, datatype: str) -> None:
    """As KServe's and MLServer's clients send them."""
    field = {
        "BOOL": "bool_contents",
        "INT64": "int64_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }.get(datatype, "int_contents" if datatype.startswith("INT") else "uint_contents")
    array = sample(datatype)
    message = triton.service_pb2.ModelInferRequest(model_name=f"echo_{datatype.lower()}")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=array.shape)
    getattr(tensor.contents, field).extend(array.ravel().tolist())
    with grpc.insecure_channel(address) as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(message, timeout=TIMEOUT_S)
    (blob,) = answer.raw_output_contents
    if datatype != "BYTES":
        assert blob == array.astype(DTYPE_OF[datatype]).tobytes()


def test_names_ids_versions_and_outputs(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("y")]
    result = client.infer(
        "echo_fp32", rows(1, 2), model_version="1", outputs=outputs, request_id="i"
    ).get_response()
    assert (result.model_name, result.model_version, result.id) == ("echo_fp32", "1", "i")
    assert [output.name for output in result.outputs] == ["y"]


def test_a_tensor_of_megabytes(client: triton.InferenceServerClient) -> None:
    array = np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)
    same(client.infer("echo_fp32", [input_of("FP32", array)]).as_numpy("y"), array)


def test_callbacks(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(40):
        client.async_infer(
            "echo_fp32", rows(number), callback=lambda result, error: answers.put(error or result)
        )
    got = [answers.get(timeout=TIMEOUT_S).as_numpy("y")[0, 0] for _ in range(40)]
    assert sorted(got) == list(range(40))


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "version", "status", "text"),
    [
        ("n", rows(1), [], "", "NOT_FOUND", "Request for unknown model: 'n' is not found"),
        (
            "echo_fp32",
            rows(1),
            [],
            "9",
            "NOT_FOUND",
            "Request for unknown model: 'echo_fp32' version 9 is not found",
        ),
        (
            "echo_fp32",
            [*rows(1), input_of("FP32", np.zeros(1, np.float32), "z")],
            [],
            "",
            "INVALID_ARGUMENT",
            "unexpected inference input 'z' for model 'echo_fp32'",
        ),
        (
            "echo_fp32",
            [input_of("FP64", np.ones((1, 3)))],
            [],
            "",
            "INVALID_ARGUMENT",
            "inference input 'x' data-type is 'FP64', but model 'echo_fp32' expects 'FP32'",
        ),
        (
            "echo_fp32",
            [input_of("FP32", np.ones((1, 4), np.float32))],
            [],
            "",
            "INVALID_ARGUMENT",
            "unexpected shape for input 'x' for model 'echo_fp32'. Expected [-1,3], got [1,4]",
        ),
        (
            "echo_fp32",
            rows(1),
            ["z"],
            "",
            "INVALID_ARGUMENT",
            "unexpected inference output 'z' for model 'echo_fp32'",
        ),
        (
            "echo_fp32",
            rows(1),
            ["y", "y"],
            "",
            "INVALID_ARGUMENT",
            "output 'y' already exists in request",
        ),
        ("echo_fp32", [], [], "", "INVALID_ARGUMENT", "missing required input"),
        ("count", count_to(1), [], "", "UNIMPLEMENTED", "decoupled transaction policy"),
    ],
)
def test_mistakes_are_told_in_the_words_that_clients_match(
    client: triton.InferenceServerClient,
    model: str,
    inputs: list[triton.InferInput],
    outputs: list[str],
    version: str,
    status: str,
    text: str,
) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs, model_version=version, outputs=wanted)
    assert caught.value.status() == f"StatusCode.{status}"
    assert text in caught.value.message()


def test_a_refusal_with_names_of_any_length_is_still_told(
    client: triton.InferenceServerClient,
) -> None:
    for name in ("n" * 20_000, "ä" * 20_000):
        with pytest.raises(InferenceServerException, match="unknown model") as caught:
            client.infer(name, rows(1))
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_what_is_wrong_is_told_in_json_too(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff", timeout=TIMEOUT_S)
        trailers = dict(caught.value.trailing_metadata())
        assert b'"code":"malformed_protobuf"' in trailers["headrace-error-bin"]
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- streams ------------------------------------------------------------------------------------


class Stream:
    """tritonclient's, with its answers in a queue."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.client = client
        self.answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put(error or result))

    def ask(self, model: str, inputs: list[triton.InferInput], **how: Any) -> None:
        self.client.async_stream_infer(model, inputs, **how)

    def take(self, count: int) -> list[Any]:
        return [self.answers.get(timeout=TIMEOUT_S) for _ in range(count)]


def test_a_stream(client: triton.InferenceServerClient) -> None:
    stream = Stream(client)
    for number in range(300):
        stream.ask("echo_fp32", rows(number), request_id=str(number))
    answers = stream.take(300)
    assert {a.get_response().id: a.as_numpy("y")[0, 0] for a in answers} == {
        str(number): number for number in range(300)
    }
    client.stop_stream()
    assert stream.answers.empty()


def test_a_decoupled_model(client: triton.InferenceServerClient) -> None:
    stream = Stream(client)
    stream.ask("count", count_to(5), request_id="a")
    assert [a.as_numpy("I").tolist() for a in stream.take(5)] == [[i] for i in range(5)]
    stream.ask("count", count_to(2), request_id="b", enable_empty_final_response=True)
    told = [a.get_response() for a in stream.take(3)]
    assert [a.parameters["triton_final_response"].bool_param for a in told] == [False, False, True]
    assert [len(a.outputs) for a in told] == [1, 1, 0]
    assert {a.id for a in told} == {"b"}
    stream.ask("count", count_to(0))
    client.stop_stream()
    assert stream.answers.empty()


def test_errors_within_a_stream(client: triton.InferenceServerClient) -> None:
    stream = Stream(client)
    stream.ask("nobody", rows(1))
    (error,) = stream.take(1)
    assert isinstance(error, InferenceServerException)
    assert "Request for unknown model: 'nobody' is not found" in error.message()
    stream.ask("count", count_to(-1))
    (error,) = stream.take(1)
    assert "cannot count down" in error.message()
    stream.ask("echo_fp32", rows(3))
    (answer,) = stream.take(1)
    assert answer.as_numpy("y")[0, 0] == 3
    client.stop_stream()


def test_a_stream_that_is_cancelled(client: triton.InferenceServerClient) -> None:
    stream = Stream(client)
    stream.ask("count", count_to(3))
    stream.take(3)
    client.stop_stream(cancel_requests=True)
    again = Stream(client)
    again.ask("count", count_to(1))
    again.take(1)
    client.stop_stream()


def test_the_dialect_of_mlserver(address: str) -> None:
    message = triton.service_pb2.ModelInferRequest(model_name="echo_fp32", id="i")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend(
        [1, 2, 3]
    )
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        sent = [message.SerializeToString()] * 3
        metadata = [("headrace-dialect", "mlserver")]
        answers = list(call(iter(sent), metadata=metadata, timeout=TIMEOUT_S))
    for raw in answers:
        answer = triton.service_pb2.ModelInferResponse.FromString(raw)
        assert answer.id == "i"
        assert list(answer.raw_output_contents) == [np.float32([1, 2, 3]).tobytes()]
    assert len(answers) == 3


# -- everything else ----------------------------------------------------------------------------


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp", "1")
    assert not client.is_model_ready("mlp", "9")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "headrace"
    model = client.get_model_metadata("mlp", as_json=True)
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "16"]}]
    config = client.get_model_config("count").config
    assert config.model_transaction_policy.decoupled
    assert config.input[0].data_type == triton.model_config_pb2.TYPE_INT32


def test_repository(client: triton.InferenceServerClient) -> None:
    client.unload_model("mlp")
    index = {m.name: m.state for m in client.get_model_repository_index().models}
    assert (index["mlp"], index["echo_fp32"]) == ("UNAVAILABLE", "READY")
    with pytest.raises(InferenceServerException, match="mlp"):
        client.infer("mlp", rows(1))
    client.load_model("mlp")
    assert client.is_model_ready("mlp")
    with pytest.raises(InferenceServerException, match="failed to load 'nobody'"):
        client.load_model("nobody")


def test_the_dialect_of_kserve_in_the_repository(address: str) -> None:
    """It names the model in field 1, and reads two fields of the answer."""
    with grpc.insecure_channel(address) as channel:
        for method in ("RepositoryModelUnload", "RepositoryModelLoad"):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            assert call(b"\x0a\x03mlp", timeout=TIMEOUT_S) == b"\x0a\x03mlp\x10\x01"


def test_statistics(client: triton.InferenceServerClient) -> None:
    def requests() -> int:
        (stats,) = client.get_inference_statistics("echo_int8").model_stats
        return int(stats.inference_stats.success.count)

    before = requests()
    client.infer("echo_int8", [input_of("INT8", np.ones((4, 3), np.int8))])
    assert requests() == before + 1


def test_settings(client: triton.InferenceServerClient) -> None:
    client.update_log_settings({"log_verbose_level": 1})
    assert client.get_log_settings().settings["log_verbose_level"].uint32_param == 1
    client.update_log_settings({"log_verbose_level": 0})
    client.update_trace_settings(settings={"trace_rate": "9"})
    assert list(client.get_trace_settings().settings["trace_rate"].value) == ["9"]
    client.update_trace_settings(settings={"trace_rate": None})
    assert list(client.get_trace_settings().settings["trace_rate"].value) == ["1000"]


def test_health_service(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_reflection(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        method = service.FindMethodByName("ModelInfer")
        assert method.input_type.fields_by_name["raw_input_contents"].number == 7


# -- the asyncio client, deadlines, cancelling ---------------------------------------------------


async def test_the_asyncio_client(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        results = await asyncio.gather(
            *(client.infer("echo_fp32", rows(number)) for number in range(100))
        )
        assert [r.as_numpy("y")[0, 0] for r in results] == list(range(100))
        with pytest.raises(InferenceServerException, match="unknown model"):
            await client.infer("nobody", rows(1))

        async def asked() -> Any:
            for number in range(5):
                yield {"model_name": "count", "inputs": count_to(number)}

        answers = [a async for a in client.stream_infer(asked())]
        assert [error for _, error in answers if error] == []
        assert len(answers) == 10


class Gate:
    """The model ``gate``, whose requests all wait while it is shut."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.client = client
        self.file = Path(client.get_model_config("gate").config.parameters["file"].string_value)

    def __enter__(self) -> Self:
        self.file.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.touch()

    def infer(self, **how: Any) -> Any:
        return self.client.infer("gate", count_to(0), **how)

    def executions(self) -> int:
        (stats,) = self.client.get_inference_statistics("gate").model_stats
        return int(stats.execution_count)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"timeout": 50_000}, "not answered within"),
        ({"client_timeout": 0.05}, "Deadline Exceeded|not answered"),
    ],
)
def test_a_deadline_that_passes(
    client: triton.InferenceServerClient, how: dict[str, Any], text: str
) -> None:
    with Gate(client) as gate:
        with pytest.raises(InferenceServerException, match=text) as caught:
            gate.infer(**how)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert gate.infer().as_numpy("I").tolist() == [0]


def waiting(server: ServerProcess) -> float:
    samples = server.metrics().items()
    return sum(
        n for name, n in samples if name.startswith("nv_inference_pending") and "gate" in name
    )


def test_calls_that_are_cancelled_do_not_run(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    ended: queue.Queue[Any] = queue.Queue()
    with Gate(client) as gate:
        before = gate.executions()
        calls = [
            client.async_infer(
                "gate", count_to(0), callback=lambda result, error: ended.put(error or result)
            )
            for _ in range(5)
        ]
        wait_until(lambda: waiting(server) == 4, "the server has them all")
        for call in calls[1:]:
            call.cancel()
        errors = [ended.get(timeout=TIMEOUT_S) for _ in calls[1:]]
        assert {error.status() for error in errors} == {"StatusCode.CANCELLED"}
        wait_until(lambda: waiting(server) == 0, "the server knows of it")
    assert ended.get(timeout=TIMEOUT_S).as_numpy("I").tolist() == [0]
    assert gate.infer().as_numpy("I").tolist() == [0]
    assert gate.executions() == before + 2
