"""A Triton repository's features, from ``config.pbtxt`` to Triton's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving

WIDTHS = (4, 4, 3)

MLP = """
platform: "onnxruntime_onnx" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
dynamic_batching { priority_levels: 2 default_priority_level: 2 }
response_cache { enable: true }
model_warmup {
  name: "cold" batch_size: 2 count: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "two_rows" } }
}
"""

SQUARE = """
platform: "onnxruntime_onnx" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""

ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input { name: "IMAGE" data_type: TYPE_FP32 dims: [ 2, 2 ] }
output { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "FLAT" data_type: TYPE_FP32 dims: [ 4 ] }
ensemble_scheduling {
  step { model_name: "mlp" model_version: -1
         input_map { key: "x" value: "FLAT" } output_map { key: "y" value: "SCORES" } }
  step { model_name: "square" model_version: -1
         input_map { key: "x" value: "IMAGE" } output_map { key: "y" value: "FLAT" } }
}
"""

RAGGED = """
platform: "onnxruntime_onnx" max_batch_size: 8
input { name: "values" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
output { name: "total" data_type: TYPE_FP32 dims: [ 1 ] }
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "bounds"
              data_type: TYPE_FP32 source_input: "values" }
dynamic_batching { }
"""


def segment_sums() -> bytes:
    """Flat ``values`` and ``bounds`` (0, end of the first, ...) -> ``total`` [requests, 1]."""
    nodes = [
        helper.make_node("CumSum", ["values", "axis"], ["sums"]),
        helper.make_node("Concat", ["nothing", "sums"], ["from_zero"], axis=0),
        helper.make_node("Cast", ["bounds"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["from_zero", "places"], ["at"]),
        helper.make_node("Slice", ["at", "one", "end"], ["ends"]),
        helper.make_node("Slice", ["at", "start", "minus_one"], ["starts"]),
        helper.make_node("Sub", ["ends", "starts"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["total"]),
    ]
    whole = np.iinfo(np.int64).max
    numbers = {"axis": 0, "one": [1], "end": [whole], "start": [0], "minus_one": [-1]}
    constants = [
        onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in numbers.items()
    ]
    constants.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    vector = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None])
        for name in ("values", "bounds")
    ]
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph(nodes, "segments", vector, [total], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def put(repository: Path, name: str, config: str, data: bytes | None = None) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    if data is not None:
        (folder / "1" / "model.onnx").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("features") / "repository"
    mlp = put(repository, "mlp", MLP, onnx_models.mlp(widths=WIDTHS))
    (mlp / "labels.txt").write_text("low\nmiddle\nhigh\n")
    (mlp / "warmup").mkdir()
    (mlp / "warmup" / "two_rows").write_bytes(np.ones((2, 4), np.float32).tobytes())
    put(repository, "square", SQUARE, onnx_models.identity("FP32", ("batch", 4)))
    put(repository, "pipeline", ENSEMBLE)
    put(repository, "ragged", RAGGED, segment_sums())
    bad = put(repository, "bad_warmup", MLP, onnx_models.mlp(widths=WIDTHS))
    (bad / "labels.txt").write_text("")
    put(repository, "bad_ensemble", ENSEMBLE.replace('"mlp"', '"bad_warmup"'))
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with serving(
        repository, env={"HEADRACE_CACHE_DIR": str(repository.parent / "cache")}
    ) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8) as client:
        yield client


def given(name: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array.astype(np.float32))
    return tensor


def test_an_ensemble_runs_its_steps_in_one_process(client: triton.InferenceServerClient) -> None:
    image = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    answer = client.infer("pipeline", [given("IMAGE", image)], request_id="7")

    flat = image.reshape(2, 4)
    assert answer.get_response()["id"] == "7"
    assert (answer.as_numpy("FLAT") == flat).all()
    expected = onnx_models.mlp_reference(flat, widths=WIDTHS)
    assert np.allclose(answer.as_numpy("SCORES"), expected, atol=1e-5)
    assert client.get_model_metadata("pipeline")["platform"] == "ensemble"
    assert client.get_model_config("pipeline")["ensemble_scheduling"]["step"]


def test_equal_requests_are_answered_from_the_cache(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    def looks() -> tuple[float, float]:
        page, labels = server.metrics(), '{model="mlp",version="1"}'
        hits, misses = (f"nv_cache_num_{what}_per_model{labels}" for what in ("hits", "misses"))
        return page[hits], page[misses]

    x = np.full((1, 4), 0.125)
    before = looks()
    first = client.infer("mlp", [given("x", x)]).as_numpy("y")
    second = client.infer("mlp", [given("x", x)]).as_numpy("y")
    after = looks()

    assert (first == second).all()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


def test_classes_with_their_labels(client: triton.InferenceServerClient) -> None:
    x = np.array([[1, 2, 3, 4], [-4, 3, -2, 1]], np.float32)
    output = triton.InferRequestedOutput("y", class_count=2)
    got = client.infer("mlp", [given("x", x)], outputs=[output]).as_numpy("y")

    scores, names = onnx_models.mlp_reference(x, widths=WIDTHS), ("low", "middle", "high")
    assert got.shape == (2, 2)
    for row, classes in zip(scores, got, strict=True):
        order = np.argsort(-row)[:2]
        assert [c.decode().split(":")[1:] for c in classes] == [[str(i), names[i]] for i in order]
        assert [float(c.decode().split(":")[0]) for c in classes] == pytest.approx(
            row[order], abs=1e-5
        )


def test_ragged_requests_run_together(client: triton.InferenceServerClient) -> None:
    sizes = [1, 4, 2, 7, 3, 5]
    asked = [
        client.async_infer("ragged", [given("values", np.full((1, size), size))]) for size in sizes
    ]
    totals = [one.get_result().as_numpy("total").tolist() for one in asked]
    assert totals == [[[size * size]] for size in sizes]
    assert [tensor["name"] for tensor in client.get_model_metadata("ragged")["inputs"]] == [
        "values"
    ]


def test_a_priority_and_too_many_rows(client: triton.InferenceServerClient) -> None:
    assert client.infer("mlp", [given("x", np.ones((1, 4)))], priority=1).as_numpy("y").any()
    with pytest.raises(InferenceServerException, match="batch-size must be <= 8 for 'mlp'"):
        client.infer("mlp", [given("x", np.ones((9, 4)))])


def test_what_cannot_be_ready_says_why(client: triton.InferenceServerClient) -> None:
    index = {line["name"]: line for line in client.get_model_repository_index()}
    warmup = "failed to run warmup sample 'cold' for model 'bad_warmup'"
    assert index["bad_warmup"]["state"] == "UNAVAILABLE"
    assert warmup in index["bad_warmup"]["reason"]
    assert index["bad_ensemble"]["reason"].startswith(
        "ensemble 'bad_ensemble' depends on 'bad_warmup' which has no loaded version. Model "
        "'bad_warmup' loading failed with error:"
    )
    assert warmup in index["bad_ensemble"]["reason"]
    assert not client.is_model_ready("bad_ensemble")
