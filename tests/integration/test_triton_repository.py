"""A Triton model repository and Triton's command line, against the real server."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton

from headrace.testing.onnx_models import identity
from tests.integration.server_process import ServerProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "triton_repository"

IDENTITY_CONFIG = """
name: "identity"
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
version_policy: { all { } }
dynamic_batching { max_queue_delay_microseconds: 100 }
"""

TWICE_CONFIG = """
platform: "ensemble"
max_batch_size: 8
input { name: "A" data_type: TYPE_FP32 dims: 4 }
output { name: "B" data_type: TYPE_FP32 dims: 4 }
ensemble_scheduling { step [
  { model_name: "identity" model_version: -1
    input_map { key: "x" value: "A" } output_map { key: "y" value: "t" } },
  { model_name: "identity" model_version: 1
    input_map { key: "x" value: "t" } output_map { key: "y" value: "B" } }
] }
"""

ROW = np.array([[1, 2, 3, 4]], np.float32)


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tensor(name: str, array: np.ndarray, datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as it is, and what cannot be committed: ONNX files."""
    root = tmp_path_factory.mktemp("triton") / "models"
    shutil.copytree(EXAMPLE, root)
    put(root / "identity" / "config.pbtxt", IDENTITY_CONFIG)
    for version in ("1", "3"):
        put(root / "identity" / version / "model.onnx", identity("FP32"))
    put(root / "twice" / "config.pbtxt", TWICE_CONFIG)
    put(root / "plain" / "1" / "model.onnx", identity("INT32"))
    put(root / "broken" / "config.pbtxt", 'backend: "tensorrt"')
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    flags = ["--http-port=0", "--log-verbose=0", "--allow-gpu-metrics=false"]
    with ServerProcess(f"--model-repository={repository}", *flags) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as made:
        yield made


class TestServedAsItIs:
    def test_onnx_with_two_versions(self, client: triton.InferenceServerClient) -> None:
        metadata = client.get_model_metadata("identity")
        assert metadata["versions"] == ["1", "3"]
        assert metadata["platform"] == "onnxruntime_onnx"
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        answer = client.infer("identity", [tensor("x", ROW)], model_version="3")
        np.testing.assert_array_equal(answer.as_numpy("y"), ROW)

    def test_its_configuration_is_shown_with_tritons_defaults(
        self, client: triton.InferenceServerClient
    ) -> None:
        config = client.get_model_config("identity")
        assert config["max_batch_size"] == 8
        assert config["input"][0]["dims"] == [4]
        assert config["dynamic_batching"]["preferred_batch_size"] == [8]
        assert config["default_model_filename"] == "model.onnx"

    def test_more_rows_than_it_says_are_refused(self, client: triton.InferenceServerClient) -> None:
        with pytest.raises(triton.InferenceServerException, match="batch-size must be <= 8"):
            client.infer("identity", [tensor("x", np.zeros((9, 4), np.float32))])

    def test_an_ensemble_without_version_folder(self, client: triton.InferenceServerClient) -> None:
        answer = client.infer("twice", [tensor("A", ROW)])
        np.testing.assert_array_equal(answer.as_numpy("B"), ROW)

    def test_a_model_without_configuration(self, client: triton.InferenceServerClient) -> None:
        rows = np.array([[1, 2, 3, 4]], np.int32)
        answer = client.infer("plain", [tensor("x", rows, "INT32")])
        np.testing.assert_array_equal(answer.as_numpy("y"), rows)

    def test_what_cannot_run_is_in_the_index_with_its_reason(
        self, client: triton.InferenceServerClient
    ) -> None:
        index = {entry["name"]: entry for entry in client.get_model_repository_index()}
        assert index["broken"]["state"] == "UNAVAILABLE"
        assert "'tensorrt' is not a backend that runs here" in index["broken"]["reason"]

    def test_what_has_no_effect_is_in_the_log(self, server: ServerProcess) -> None:
        told = [line for line in server.lines if "has no effect" in line]
        assert sum("identity" in line for line in told) == 1
        assert sum("--allow-gpu-metrics" in line for line in told) == 1


class TestPythonModels:
    def test_add_sub(self, client: triton.InferenceServerClient) -> None:
        ones = np.ones_like(ROW)
        answer = client.infer("add_sub", [tensor("INPUT0", ROW), tensor("INPUT1", ones)])
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), ROW + 1)
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), ROW - 1)

    def test_labels(self, client: triton.InferenceServerClient) -> None:
        wanted = triton.InferRequestedOutput("PROBABILITIES", class_count=2)
        answer = client.infer("softmax", [tensor("SCORES", ROW)], outputs=[wanted])
        first, second = answer.as_numpy("PROBABILITIES")[0]
        assert (first.split(b":")[1:], second.split(b":")[1:]) == (
            [b"3", b"west"],
            [b"2", b"south"],
        )

    def test_the_models_own_error(self, client: triton.InferenceServerClient) -> None:
        rows = np.array([[1, 2, np.inf, 4]], np.float32)
        with pytest.raises(triton.InferenceServerException, match="scores must be finite"):
            client.infer("softmax", [tensor("SCORES", rows)])

    def test_the_ensemble(self, client: triton.InferenceServerClient) -> None:
        ones = np.ones_like(ROW)
        answer = client.infer("add_sub_softmax", [tensor("A", ROW), tensor("B", ones)])
        powers = np.exp(ROW - ROW.max())
        np.testing.assert_allclose(answer.as_numpy("OF_SUM"), powers / powers.sum(), rtol=1e-6)
        np.testing.assert_array_equal(answer.as_numpy("DIFFERENCE"), ROW - 1)

    def test_sequences_do_not_mix(self, client: triton.InferenceServerClient) -> None:
        def send(sequence: int, value: int, **ends: Any) -> int:
            rows = np.array([[value]], np.int32)
            answer = client.infer(
                "accumulate", [tensor("INPUT", rows, "INT32")], sequence_id=sequence, **ends
            )
            return int(answer.as_numpy("OUTPUT").item())

        totals = [
            send(7, 1, sequence_start=True),
            send(8, 10, sequence_start=True),
            send(7, 2),
            send(8, 20, sequence_end=True),
            send(7, 4, sequence_end=True),
        ]
        assert totals == [1, 10, 3, 30, 7]


@pytest.mark.parametrize(
    ("model", "sent", "expected"), [("repeat", [3, 4, 5], [3, 4, 5]), ("square", [3], [3, 3, 3])]
)
def test_decoupled_answers(
    server: ServerProcess, model: str, sent: list[int], expected: list[int]
) -> None:
    made = triton_grpc.InferInput("IN", [len(sent)], "INT32")
    made.set_data_from_numpy(np.array(sent, np.int32))
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.url.removeprefix("http://")) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(model, [made], enable_empty_final_response=True)
        values: list[int] = []
        while True:
            answer = answers.get(timeout=30)
            assert not isinstance(answer, Exception), answer
            if answer.get_response().parameters["triton_final_response"].bool_param:
                break
            values.append(int(answer.as_numpy("OUT").item()))
        client.stop_stream()
    assert values == expected


def test_explicit_control_begins_with_what_is_named(repository: Path) -> None:
    flags = ["--http-port=0", "--model-control-mode=explicit", "--load-model=plain"]
    with ServerProcess(f"--model-repository={repository}", *flags) as process:
        process.wait_ready()
        with triton.InferenceServerClient(process.url.removeprefix("http://")) as client:
            assert client.is_server_ready()
            states = {e["name"]: e.get("state") for e in client.get_model_repository_index()}
            assert states["plain"] == "READY"
            assert states["identity"] != "READY"
            config = json.dumps({"backend": "onnxruntime", "max_batch_size": 2})
            client.load_model("identity", config=config)
            assert client.get_model_config("identity")["max_batch_size"] == 2


def test_explicit_control_may_begin_with_nothing(tmp_path: Path) -> None:
    flags = ["--http-port=0", "--model-control-mode=explicit"]
    with ServerProcess(f"--model-repository={tmp_path}", *flags) as process:
        process.wait_ready()
