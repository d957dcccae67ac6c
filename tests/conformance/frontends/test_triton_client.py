"""tritonclient, unchanged, against a real server: both of its HTTP clients, every datatype."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from tests.conformance.frontends.serving_everything import DATATYPES, serving_everything
from tests.integration.server_process import ServerProcess

SHAPE = (2, 3)

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True, False, False],
    "UINT8": [0, 1, 255, 3, 4, 5],
    "UINT16": [0, 1, 65535, 3, 4, 5],
    "UINT32": [0, 1, 2**32 - 1, 3, 4, 5],
    "UINT64": [0, 1, 2**64 - 1, 3, 4, 2**53 + 1],
    "INT8": [0, -128, 127, 3, 4, 5],
    "INT16": [0, -32768, 32767, 3, 4, 5],
    "INT32": [0, -(2**31), 2**31 - 1, 3, 4, 5],
    "INT64": [0, -(2**63), 2**63 - 1, 3, 4, 5],
    "FP16": [0.0, -1.5, 65504.0, 6e-8, 0.1, -0.0],
    "BF16": [0.0, -1.5, 3e38, 1e-38, 0.1, -0.0],
    "FP32": [0.0, -1.5, 3.4e38, 1e-45, 0.1, -0.0],
    "FP64": [0.0, -1.5, 1.7e308, 5e-324, 0.1, -0.0],
    # What ONNX calls a string is text.
    "BYTES": [b"", b"a", b"\0\t", "é".encode(), b"long " * 50, b"z"],
}


def sample(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        array = np.empty(6, dtype=object)
        array[:] = VALUES["BYTES"]
        return array.reshape(SHAPE)
    dtype = triton_to_np_dtype(datatype)
    return np.array(VALUES[datatype], dtype=dtype).reshape(SHAPE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving_everything(tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as client:
        yield client


def input_of(datatype: str, array: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def mlp_input(row_count: int = 2) -> list[triton.InferInput]:
    return [input_of("FP32", np.ones((row_count, 16), dtype=np.float32))]


def same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    if expected.dtype == object:
        assert got.tolist() == expected.tolist()
    else:
        assert got.tobytes() == expected.tobytes()


# -- health and metadata ----------------------------------------------------------------------


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("mlp", "9")


def test_metadata(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "headrace"
    assert "binary_tensor_data" in metadata["extensions"]
    model = client.get_model_metadata("mlp")
    assert model["name"] == "mlp"
    assert model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]


def test_model_config(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("mlp")
    assert config["name"] == "mlp"
    assert config["input"][0]["name"] == "x"


def test_repository_index(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert {"mlp", "bert", "echo_fp32"} <= {model["name"] for model in index}
    assert {model["state"] for model in index} == {"READY"}


def test_an_unknown_model_is_404_in_the_words_that_clients_match(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model") as caught:
        client.get_model_metadata("nobody")
    assert caught.value.status() == "404"


# -- inference --------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_in_binary(client: triton.InferenceServerClient, datatype: str) -> None:
    array = sample(datatype)
    outputs = [triton.InferRequestedOutput("y", binary_data=True)]
    result = client.infer(f"echo_{datatype.lower()}", [input_of(datatype, array)], outputs=outputs)
    assert result.get_output("y")["datatype"] == datatype
    same(result.as_numpy("y"), array)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("FP16", "BF16")])
def test_every_datatype_in_json(client: triton.InferenceServerClient, datatype: str) -> None:
    """The client refuses to write FP16 and BF16 as JSON itself."""
    array = sample(datatype)
    outputs = [triton.InferRequestedOutput("y", binary_data=False)]
    sent = [input_of(datatype, array, binary=False)]
    result = client.infer(f"echo_{datatype.lower()}", sent, outputs=outputs)
    got = result.as_numpy("y")
    if datatype == "BYTES":
        assert [value.encode() for value in got.ravel()] == VALUES["BYTES"]
    else:
        same(got, array)


@pytest.mark.parametrize(("send", "receive"), [(True, False), (False, True)])
def test_json_and_binary_mixed(
    client: triton.InferenceServerClient, send: bool, receive: bool
) -> None:
    array = sample("FP32")
    outputs = [triton.InferRequestedOutput("y", binary_data=receive)]
    result = client.infer(
        "echo_fp32", [input_of("FP32", array, binary=send)], outputs=outputs, request_id="7"
    )
    assert result.get_response()["id"] == "7"
    same(result.as_numpy("y"), array)


def test_no_output_named_means_all(client: triton.InferenceServerClient) -> None:
    result = client.infer("mlp", mlp_input(), model_version="1")
    assert result.as_numpy("y").shape == (2, 2)
    assert result.get_response()["model_version"] == "1"


def test_a_raw_binary_request(client: triton.InferenceServerClient) -> None:
    array = sample("FP32")
    response = client._post(
        "v2/models/echo_fp32/infer",
        array.tobytes(),
        {"Inference-Header-Content-Length": "0"},
        None,
    )
    length = int(response.get("Inference-Header-Content-Length"))
    result = client.parse_response_body(response.read(), header_length=length)
    same(result.as_numpy("y"), array)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, algorithm: str) -> None:
    array = np.tile(sample("FP32"), (1000, 1))
    result = client.infer(
        "echo_fp32",
        [input_of("FP32", array)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    same(result.as_numpy("y"), array)


def test_many_at_one_time(client: triton.InferenceServerClient) -> None:
    arrays = [np.full((1, 3), number, dtype=np.float32) for number in range(40)]
    waiting = [client.async_infer("echo_fp32", [input_of("FP32", array)]) for array in arrays]
    for array, request in zip(arrays, waiting, strict=True):
        same(request.get_result().as_numpy("y"), array)


def test_a_timeout_parameter_is_accepted(client: triton.InferenceServerClient) -> None:
    result = client.infer("mlp", mlp_input(), timeout=10_000_000, priority=1)
    assert result.as_numpy("y").shape == (2, 2)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (lambda: [input_of("FP64", np.ones((1, 3)))], "data-type is 'FP64'"),
        (lambda: [input_of("FP32", np.ones((1, 4), np.float32))], "unexpected shape for input"),
        (list, "missing required input"),
    ],
)
def test_mistakes_are_told_in_the_words_that_clients_match(
    client: triton.InferenceServerClient, inputs: Any, text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text) as caught:
        client.infer("echo_fp32", inputs())
    assert caught.value.status() == "400"


def test_text_goes_in_and_vectors_come_out(client: triton.InferenceServerClient) -> None:
    texts = np.array([b"w5 w6", b"w7"], dtype=object)
    name = client.get_model_metadata("bert")["inputs"][0]["name"]
    tensor = triton.InferInput(name, [2], "BYTES")
    tensor.set_data_from_numpy(texts)
    result = client.infer("bert", [tensor])
    output = client.get_model_metadata("bert")["outputs"][0]["name"]
    vectors = result.as_numpy(output)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


# -- the asyncio client -----------------------------------------------------------------------


async def test_the_asyncio_client(server: ServerProcess) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("mlp")
        assert (await client.get_model_metadata("mlp"))["name"] == "mlp"
        assert (await client.get_server_metadata())["name"] == "headrace"
        arrays = [np.full((1, 3), number, dtype=np.float32) for number in range(40)]
        results = await asyncio.gather(
            *(client.infer("echo_fp32", [input_of("FP32", array)]) for array in arrays)
        )
        for array, result in zip(arrays, results, strict=True):
            same(result.as_numpy("y"), array)
        with pytest.raises(InferenceServerException, match="unknown model"):
            await client.infer("nobody", [input_of("FP32", arrays[0])])


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_with_the_asyncio_client(server: ServerProcess, datatype: str) -> None:
    array = sample(datatype)
    assert datatype == "BF16" or np_to_triton_dtype(array.dtype) == datatype
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        result = await client.infer(f"echo_{datatype.lower()}", [input_of(datatype, array)])
        same(result.as_numpy("y"), array)
