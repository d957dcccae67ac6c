"""Stateful models out of a Triton repository, with Triton's own clients."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess

CONFIG = """
name: "sums"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  %s
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] }
  ]
  state [
    {
      input_name: "STATE_IN"
      output_name: "STATE_OUT"
      data_type: TYPE_INT32
      dims: [ 1 ]
    }
  ]
}
"""


@pytest.fixture(scope="module", params=["direct { }", "oldest { max_candidate_sequences: 4 }"])
def server(request, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    version = repository / "sums" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(onnx_models.accumulator())
    (version.parent / "config.pbtxt").write_text(CONFIG % request.param)
    with ServerProcess(repository, "--port", 0) as process:
        yield process.wait_ready()


def http_client(server: ServerProcess, **options) -> triton_http.InferenceServerClient:
    return triton_http.InferenceServerClient(server.url.removeprefix("http://"), **options)


def value_of(client, value: int):
    tensor = client.InferInput("INPUT", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], np.int32))
    return tensor


def add_up(client, name, values) -> list[int]:
    last = len(values) - 1
    sums = []
    for i, value in enumerate(values):
        answer = client.infer(
            "sums",
            [value_of(triton_http, value)],
            sequence_id=name,
            sequence_start=i == 0,
            sequence_end=i == last,
        )
        sums.append(int(answer.as_numpy("OUTPUT")[0, 0]))
    return sums


def test_many_sequences_at_once_over_http(server):
    sums: dict[int | str, list[int]] = {}
    names = [*range(1, 13), *(f"name {i}" for i in range(6))]

    def run(mine):
        with http_client(server) as client:
            for name in mine:
                sums[name] = add_up(client, name, [len(str(name)), 1, 2, 3])

    threads = [threading.Thread(target=run, args=(names[i::6],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in names:
        first = len(str(name))
        assert sums[name] == [first, first + 1, first + 3, first + 6]


def test_the_texts_that_clients_match_over_http(server):
    with http_client(server) as client:
        with pytest.raises(InferenceServerException, match="must specify the START flag") as caught:
            client.infer("sums", [value_of(triton_http, 1)], sequence_id=99)
        assert caught.value.status() == "400"
        with pytest.raises(InferenceServerException, match="non-zero or non-empty correlation ID"):
            client.infer("sums", [value_of(triton_http, 1)])
        metadata = client.get_model_metadata("sums")
        assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT"]
        assert [tensor["name"] for tensor in metadata["outputs"]] == ["OUTPUT"]


def test_the_texts_that_clients_match_over_grpc(server):
    with triton_grpc.InferenceServerClient(server.url.removeprefix("http://")) as client:
        with pytest.raises(InferenceServerException, match="must specify the START flag") as caught:
            client.infer("sums", [value_of(triton_grpc, 1)], sequence_id=98)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        answer = client.infer(
            "sums", [value_of(triton_grpc, 7)], sequence_id="by name", sequence_start=True
        )
        assert answer.as_numpy("OUTPUT").tolist() == [[7]]


def test_interleaved_on_one_grpc_stream(server):
    answers: queue.Queue = queue.Queue()
    with triton_grpc.InferenceServerClient(server.url.removeprefix("http://")) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        names = [1001, 1002, "a text"]
        for turn in range(5):
            for name in names:
                client.async_stream_infer(
                    "sums",
                    [value_of(triton_grpc, turn + 1)],
                    request_id=f"{name}/{turn}",
                    sequence_id=name,
                    sequence_start=turn == 0,
                    sequence_end=turn == 4,
                )
        got = {}
        for _ in range(15):
            result, error = answers.get(timeout=60)
            assert error is None
            got[result.get_response().id] = int(result.as_numpy("OUTPUT")[0, 0])
        client.stop_stream()
    sums = [1, 3, 6, 10, 15]
    assert got == {f"{name}/{turn}": sums[turn] for name in names for turn in range(5)}
