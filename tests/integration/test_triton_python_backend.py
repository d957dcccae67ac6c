"""A repository in the style of Triton's own examples for its Python backend, served as it is."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.integration.server_process import ServerProcess, serving, wait_until

ADD_SUB = '''
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """Adds and subtracts; the datatypes are those of its configuration."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.dtypes = [
            pb_utils.triton_string_to_numpy(
                pb_utils.get_output_config_by_name(config, name)["data_type"])
            for name in ("OUTPUT0", "OUTPUT1")
        ]
        self.logger = pb_utils.Logger
        self.calls = pb_utils.MetricFamily(
            name="add_sub_requests", description="Requests seen",
            kind=pb_utils.MetricFamily.COUNTER,
        ).Metric(labels={"model": args["model_name"], "version": args["model_version"]})

    def execute(self, requests):
        responses = []
        for request in requests:
            a, b = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("INPUT0", "INPUT1")
            )
            self.calls.increment(1)
            if not np.isfinite(a).all():
                error = pb_utils.TritonError("not finite", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            responses.append(pb_utils.InferenceResponse(output_tensors=[
                pb_utils.Tensor("OUTPUT0", (a + b).astype(self.dtypes[0])),
                pb_utils.Tensor("OUTPUT1", (a - b).astype(self.dtypes[1])),
            ], parameters={"rows": int(a.shape[0])}))
        self.logger.log_info(f"{len(requests)} requests")
        return responses

    def finalize(self):
        print("add_sub cleans up", flush=True)
'''

FOUR = """
input [ {{ name: "INPUT0" data_type: {0} dims: [ 4 ] }}, {{ name: "INPUT1" data_type: {0} dims: [ 4 ] }} ]
output [ {{ name: "OUTPUT0" data_type: {0} dims: [ 4 ] }}, {{ name: "OUTPUT1" data_type: {0} dims: [ 4 ] }} ]
"""  # noqa: E501 - as such files are

ADD_SUB_CONFIG = 'backend: "python" max_batch_size: 8 dynamic_batching { }' + FOUR.format(
    "TYPE_FP32"
)

BLS = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = pb_utils.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()
        call = pb_utils.InferenceRequest(
            model_name=names[0],  # bytes, as in Triton's own example
            requested_output_names=["OUTPUT0", "OUTPUT1"],
            inputs=[
                pb_utils.get_input_tensor_by_name(request, name) for name in ("INPUT0", "INPUT1")
            ],
        )
        response = call.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        return pb_utils.InferenceResponse(output_tensors=response.output_tensors())
"""

BLS_CONFIG = """
backend: "python" max_batch_size: 0
input [ { name: "MODEL_NAME" data_type: TYPE_STRING dims: [ 1 ] },
        { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1, 4 ] },
        { name: "INPUT1" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1, 4 ] },
         { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

BLS_ASYNC = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            a, b = (
                pb_utils.get_input_tensor_by_name(request, name) for name in ("INPUT0", "INPUT1")
            )
            calls = [
                pb_utils.InferenceRequest(
                    model_name="add_sub", requested_output_names=[name], inputs=[a, b]
                ).async_exec()
                for name in ("OUTPUT0", "OUTPUT1")
            ]
            first, second = await asyncio.gather(*calls)
            stream = pb_utils.InferenceRequest(
                model_name="repeat", requested_output_names=["OUT"],
                inputs=[
                    pb_utils.Tensor("IN", np.arange(3, dtype=np.int32)),
                    pb_utils.Tensor("DELAY_MS", np.zeros(1, np.uint32)),
                ],
            ).exec(decoupled=True)
            values = [
                int(pb_utils.get_output_tensor_by_name(each, "OUT").as_numpy()[0])
                for each in stream if each.output_tensors()
            ]
            assert values == [0, 1, 2], values
            responses.append(pb_utils.InferenceResponse(output_tensors=[
                pb_utils.get_output_tensor_by_name(first, "OUTPUT0"),
                pb_utils.get_output_tensor_by_name(second, "OUTPUT1"),
            ]))
        return responses
"""

REPEAT = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            arguments = (
                request.get_response_sender(),
                pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().copy(),
                pb_utils.get_input_tensor_by_name(request, "DELAY_MS").as_numpy().copy(),
            )
            thread = threading.Thread(target=self.answer, args=arguments)
            thread.start()
            self.threads.append(thread)

    def answer(self, sender, values, delay_ms):
        pause = threading.Event()
        for value in values:
            if sender.is_cancelled():
                print("repeat was cancelled", flush=True)
                break
            out = pb_utils.Tensor("OUT", np.array([value], np.int32))
            sender.send(pb_utils.InferenceResponse([out]))
            pause.wait(float(delay_ms[0]) / 1000)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
        print("repeat joined its threads", flush=True)
"""

REPEAT_CONFIG = """
backend: "python" max_batch_size: 0
model_transaction_policy { decoupled: True }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
        { name: "DELAY_MS" data_type: TYPE_UINT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""

COMPLETE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        for name in ("INPUT0", "INPUT1"):
            auto_complete_model_config.add_input(
                {"name": name, "data_type": "TYPE_FP32", "dims": [4]})
        auto_complete_model_config.add_output(
            {"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [4]})
        auto_complete_model_config.set_max_batch_size(4)
        auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(
                "OUTPUT0", sum(tensor.as_numpy() for tensor in request.inputs()))])
            for request in requests
        ]
"""

MODELS = {
    "add_sub": (ADD_SUB, ADD_SUB_CONFIG),
    "bls_sync": (BLS, BLS_CONFIG),
    "bls_async": (BLS_ASYNC, ADD_SUB_CONFIG),
    "repeat": (REPEAT, REPEAT_CONFIG),
    "complete": (COMPLETE, ""),
}


def put(repository: Path, name: str, source: str, config: str) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(source)
    if config:
        (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("python_backend") / "repository"
    for name, (source, config) in MODELS.items():
        put(repository, name, source, config)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    cache = str(repository.parent / "cache")
    with serving(repository, "--grpc-port", 0, env={"HEADRACE_CACHE_DIR": cache}) as process:
        yield process


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[triton_http.InferenceServerClient]:
    client = triton_http.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8)
    yield client
    client.close()


@pytest.fixture
def grpc(server: ServerProcess) -> Iterator[triton_grpc.InferenceServerClient]:
    found = re.search(r"gRPC on (127\.0\.0\.1:\d+)", "\n".join(server.lines))
    assert found is not None
    client = triton_grpc.InferenceServerClient(found[1])
    yield client
    client.close()


def tensor(kind: Any, name: str, datatype: str, data: np.ndarray) -> Any:
    made = kind.InferInput(name, list(data.shape), datatype)
    made.set_data_from_numpy(data)
    return made


def four(kind: Any, rows: int = 2, value: float = 1.0) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    a = np.full((rows, 4), value, np.float32)
    b = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    return a, b, [tensor(kind, "INPUT0", "FP32", a), tensor(kind, "INPUT1", "FP32", b)]


def repeat_inputs(values: list[int], delay_ms: int = 0) -> list[Any]:
    return [
        tensor(triton_grpc, "IN", "INT32", np.array(values, np.int32)),
        tensor(triton_grpc, "DELAY_MS", "UINT32", np.array([delay_ms], np.uint32)),
    ]


@pytest.mark.parametrize("model", ["add_sub", "bls_async"])
def test_add_and_subtract(http: triton_http.InferenceServerClient, model: str) -> None:
    a, b, inputs = four(triton_http)
    answer = http.infer(model, inputs)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), a + b)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), a - b)


def test_parameters_of_the_response_reach_the_client(
    http: triton_http.InferenceServerClient,
) -> None:
    _, _, inputs = four(triton_http, rows=3)
    assert http.infer("add_sub", inputs).get_response()["parameters"]["rows"] == 3


def test_requests_that_come_together_run_together(
    http: triton_http.InferenceServerClient,
) -> None:
    a, b, inputs = four(triton_http, rows=1)
    answers = [http.async_infer("add_sub", inputs) for _ in range(64)]
    for each in answers:
        np.testing.assert_array_equal(each.get_result().as_numpy("OUTPUT0"), a + b)


def test_an_error_is_that_of_its_own_request(http: triton_http.InferenceServerClient) -> None:
    _, _, bad = four(triton_http, rows=1, value=np.inf)
    a, b, good = four(triton_http, rows=1)
    pairs = [
        (http.async_infer("add_sub", bad), http.async_infer("add_sub", good)) for _ in range(8)
    ]
    for failed, fine in pairs:
        with pytest.raises(InferenceServerException, match=r"\[400\] not finite"):
            failed.get_result()
        np.testing.assert_array_equal(fine.get_result().as_numpy("OUTPUT0"), a + b)


def test_a_model_calls_another(http: triton_http.InferenceServerClient) -> None:
    a, b, inputs = four(triton_http)
    name = tensor(triton_http, "MODEL_NAME", "BYTES", np.array([b"add_sub"], dtype=object))
    calls = [http.async_infer("bls_sync", [name, *inputs]) for _ in range(16)]
    for call in calls:
        np.testing.assert_array_equal(call.get_result().as_numpy("OUTPUT1"), a - b)
    name = tensor(triton_http, "MODEL_NAME", "BYTES", np.array([b"nobody"], dtype=object))
    with pytest.raises(InferenceServerException) as raised:
        http.infer("bls_sync", [name, *inputs])
    assert re.search(
        r"Failed to process the request\(s\) for model 'bls_sync_0', message: "
        r"TritonModelException: Request for unknown model: 'nobody' is not found",
        str(raised.value),
    )


def test_a_model_completes_its_configuration(http: triton_http.InferenceServerClient) -> None:
    config = http.get_model_config("complete")
    assert config["max_batch_size"] == 4
    assert [each["name"] for each in config["input"]] == ["INPUT0", "INPUT1"]
    assert config["output"] == [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [4]}]
    a, b, inputs = four(triton_http, rows=4)
    np.testing.assert_array_equal(http.infer("complete", inputs).as_numpy("OUTPUT0"), a + b)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        http.infer("complete", four(triton_http, rows=5)[2])


def test_answers_come_one_after_another(grpc: triton_grpc.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    wanted = {"a": [3, 1, 2], "b": [], "c": list(range(50))}
    for name, values in wanted.items():
        grpc.async_stream_infer(
            "repeat",
            repeat_inputs(values),
            request_id=name,
            enable_empty_final_response=True,
        )
    got: dict[str, list[int]] = {name: [] for name in wanted}
    left = set(wanted)
    while left:
        result, error = answers.get(timeout=30)
        assert error is None
        response = result.get_response()
        if response.parameters["triton_final_response"].bool_param:
            left.remove(response.id)
            assert not response.outputs
        else:
            got[response.id].append(int(result.as_numpy("OUT")[0]))
    assert got == wanted
    grpc.stop_stream()


def test_a_client_that_leaves_is_noticed(
    server: ServerProcess, grpc: triton_grpc.InferenceServerClient
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    grpc.async_stream_infer("repeat", repeat_inputs(list(range(100_000)), delay_ms=10))
    answers.get(timeout=30)
    grpc.stop_stream(cancel_requests=True)
    server.wait_for("repeat was cancelled")


def test_its_metrics_are_beside_the_server_s(
    server: ServerProcess, http: triton_http.InferenceServerClient
) -> None:
    series = 'add_sub_requests{model="add_sub",version="1"}'
    http.infer("add_sub", four(triton_http)[2])
    wait_until(lambda: series in server.metrics(), "its metric is shown")
    before = server.metrics()[series]
    for _ in range(5):
        http.infer("add_sub", four(triton_http)[2])
    wait_until(lambda: server.metrics()[series] == before + 5, "it counts all of them")


def test_the_end_is_told_to_all_of_them(repository: Path) -> None:
    cache = str(repository.parent / "cache")
    with serving(repository, env={"HEADRACE_CACHE_DIR": cache}) as process:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{process.port}")
        client.infer("add_sub", four(triton_http)[2])
        client.close()
        assert process.stop() == 0
        lines = "\n".join(process.lines)
        assert "[add_sub] INFO: 1 requests" in lines
        assert "[add_sub] add_sub cleans up" in lines
        assert "[repeat] repeat joined its threads" in lines
