"""V2's JSON: every datatype there and back, and every mistake named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InferenceFailed, InvalidRequest
from headrace.frontends.codecs.v2_json import decode_request
from headrace.frontends.codecs.v2_json_answer import encode_response
from headrace.types import (
    DTYPE_OF,
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    SharedMemoryRange,
    Tensor,
)
from tests.unit.frontends.v2_tensors import assert_same, tensors


@pytest.fixture(autouse=True, scope="module")
def _as_the_server_does():
    with np.errstate(over="raise"):
        yield


def decode(body: object, **kwargs: Any) -> InferenceRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_request(raw, model_name="m", model_version="1", **kwargs)


def one(data: Any, datatype: str = "FP32", shape: Any = None, **more: Any) -> dict[str, Any]:
    shape = [len(data)] if shape is None else shape
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    return {"inputs": [tensor | more]}


def array_of(body: object) -> np.ndarray:
    (tensor,) = decode(body).inputs
    return tensor.data


def refused(body: object, kind: type[HeadraceError] = InvalidRequest, **kwargs: Any) -> Any:
    with pytest.raises(kind) as caught:
        decode(body, **kwargs)
    return caught.value


def answer(*outputs: Tensor, asked: InferenceRequest | None = None, **fields: Any) -> Any:
    """The JSON part, as a client reads it."""
    response = InferenceResponse("m", "1", fields.pop("id", ""), list(outputs), **fields)
    body, blobs = encode_response(response, asked or InferenceRequest("m", []))
    return json.loads(body), list(blobs)


# -- there and back ---------------------------------------------------------------------------


@given(st.lists(tensors(finite=True, text=True), min_size=1, max_size=3), st.text(max_size=5))
def test_what_is_encoded_decodes_to_the_same(sent: list[Tensor], request_id: str) -> None:
    told, _ = answer(*sent, id=request_id)
    assert told["model_name"] == "m"
    assert told["model_version"] == "1"
    assert told.get("id", "") == request_id
    request = decode({"inputs": told["outputs"], "id": request_id})
    assert request.id == request_id
    for got, expected in zip(request.inputs, sent, strict=True):
        assert_same(got, expected)


@given(tensors(finite=True, text=True))
def test_nested_data_is_the_same_as_flat(tensor: Tensor) -> None:
    told, _ = answer(tensor)
    (output,) = told["outputs"]
    nested = np.empty(len(output["data"]), dtype=object)
    nested[:] = output["data"]
    output["data"] = nested.reshape(tensor.shape).tolist() if tensor.shape else output["data"]
    (got,) = decode({"inputs": [output]}).inputs
    assert_same(got, tensor)


def test_the_limits_of_integers_are_exact() -> None:
    for datatype, dtype in DTYPE_OF.items():
        if dtype.kind in "iu" and datatype != "BF16":
            limits = np.iinfo(dtype)
            assert array_of(one([limits.min, limits.max], datatype)).tolist() == [
                limits.min,
                limits.max,
            ]
            for beyond in (limits.min - 1, limits.max + 1):
                assert refused(one([beyond], datatype)).code in ("out_of_range", "wrong_data")


@pytest.mark.parametrize(
    ("datatype", "largest", "beyond"),
    [("FP16", 65504.0, 65520.0), ("FP32", 3.4028234e38, 3.41e38), ("BF16", 3.38e38, 3.4e38)],
)
def test_a_number_that_does_not_fit_is_refused_and_not_made_infinite(
    datatype: str, largest: float, beyond: float
) -> None:
    assert array_of(one([largest, -largest], datatype)).size == 2
    for value in (beyond, -beyond, 1e300):
        assert refused(one([value], datatype)).code == "out_of_range"


def test_integers_are_numbers_too() -> None:
    assert array_of(one([1, -2, 0], "FP64")).tolist() == [1.0, -2.0, 0.0]
    assert array_of(one([1], "FP16")).dtype == np.float16


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    bits = array_of(one([1.0, 1.00390625, 1.01171875, -0.0], "BF16"))
    assert bits.tolist() == [0x3F80, 0x3F80, 0x3F82, 0x8000]


def test_a_scalar_has_one_element_and_no_axis() -> None:
    assert array_of(one([5], "INT32", [])).shape == ()


def test_zero_rows_are_an_array_without_rows() -> None:
    assert array_of(one([], "FP32", [0, 3])).shape == (0, 3)


@pytest.mark.parametrize("datatype", ["INT8", "FP64", "BYTES"])
@pytest.mark.parametrize("shape", [[0, 2**40, 2**40], [0, 2**63], [2**63, 0]])
def test_a_shape_that_no_array_can_have_is_refused(datatype: str, shape: list[int]) -> None:
    assert refused(one([], datatype, shape)).code == "wrong_shape"


def test_text_is_utf_8() -> None:
    assert array_of(one(["a\0b", "é", ""], "BYTES")).tolist() == [b"a\0b", "é".encode(), b""]


# -- the rest of a request --------------------------------------------------------------------


def test_everything_a_request_can_say() -> None:
    request = decode(
        one([1.0])
        | {
            "id": "7",
            "outputs": [
                {"name": "a"},
                {"name": "b", "parameters": {"binary_data": True}},
                {"name": "c", "parameters": {"binary_data": False}},
            ],
            "parameters": {"timeout": 2000, "priority": "3", "mine": [1, {"a": None}]},
            "unknown": "ignored, as Triton does",
        }
    )
    assert request.model_name == "m"
    assert request.model_version == "1"
    assert request.id == "7"
    assert request.outputs == [
        RequestedOutput("a"),
        RequestedOutput("b", True),
        RequestedOutput("c", False),
    ]
    assert request.timeout_ns == 2_000_000
    assert request.priority == 3
    assert request.parameters is not None
    assert request.parameters["mine"] == [1, {"a": None}]


def test_no_outputs_named_means_all_of_them() -> None:
    assert decode(one([1.0])).outputs is None
    assert decode(one([1.0]) | {"outputs": []}).outputs == []


def test_binary_outputs_may_be_the_default() -> None:
    request = decode(
        one([1.0])
        | {
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        }
    )
    assert request.outputs == [RequestedOutput("a", True), RequestedOutput("b", False)]


@pytest.mark.parametrize("name", ["timeout", "priority"])
@pytest.mark.parametrize("value", [-1, 1.5, True, None, "-1", "1.0", "٣", "1" * 16, 2**53, [], {}])
def test_timeout_and_priority_are_whole_numbers(name: str, value: object) -> None:
    error = refused(one([1.0]) | {"parameters": {name: value}})
    assert error.code == "wrong_parameter"
    assert error.details["parameter"] == name


@pytest.mark.parametrize("value", [1, 0, "true", None, [], {}])
def test_binary_data_output_is_true_or_false(value: object) -> None:
    error = refused(one([1.0]) | {"parameters": {"binary_data_output": value}})
    assert error.code == "wrong_parameter"
    assert "true or false" in error.message


@pytest.mark.parametrize("value", [1, "true", None])
def test_binary_data_is_true_or_false(value: object) -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": value}}]
    assert "true or false" in refused(one([1.0]) | {"outputs": outputs}).message


@pytest.mark.parametrize("name", [5, 2**64 - 1, "a"])
def test_a_sequence_is_named_by_a_number_or_a_text(name: int | str) -> None:
    request = decode(one([1.0]) | {"parameters": {"sequence_id": name, "sequence_start": True}})
    assert request.sequence_id == name
    assert (request.sequence_start, request.sequence_end) == (True, False)


@pytest.mark.parametrize(
    "parameters",
    [
        {"sequence_id": -1},
        {"sequence_id": 2**64},
        {"sequence_id": 1.5},
        {"sequence_id": True},
        {"sequence_id": None},
        {"sequence_id": 1, "sequence_start": 1},
        {"sequence_id": 1, "sequence_end": "yes"},
    ],
)
def test_a_sequence_that_is_none(parameters: dict[str, Any]) -> None:
    error = refused(one([1.0]) | {"parameters": parameters})
    assert error.code == "wrong_parameter"
    assert error.details["parameter"] in parameters


def test_classes_are_asked_for_by_output() -> None:
    outputs = [{"name": "y", "parameters": {"classification": 3}}, {"name": "z"}]
    asked = decode(one([1.0]) | {"outputs": outputs}).outputs
    assert asked is not None
    assert [output.classification for output in asked] == [3, 0]
    outputs[0]["parameters"] = {"classification": -1}
    assert refused(one([1.0]) | {"outputs": outputs}).details["parameter"] == "classification"


class Region:
    """Shared memory that has one tensor, and keeps what is put there."""

    def __init__(self) -> None:
        self.put: list[tuple[SharedMemoryRange, Tensor]] = []
        self.reserved: list[SharedMemoryRange] = []

    def reserve(self, where: SharedMemoryRange) -> None:
        self.reserved.append(where)

    def read(self, where: SharedMemoryRange, **of: Any) -> np.ndarray:
        assert where == SharedMemoryRange("r", 4, 8)
        assert of == {"name": "x", "datatype": "FP32", "shape": (2,)}
        return np.array([1, 2], np.float32)

    def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
        self.put.append((where, tensor))
        return tensor.data.nbytes


def test_tensors_in_shared_memory() -> None:
    region = Region()
    lies = {
        "shared_memory_region": "r",
        "shared_memory_offset": 4,
        "shared_memory_byte_size": 8,
    }
    body: dict[str, Any] = {
        "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": lies}],
        "outputs": [{"name": "y", "parameters": lies}],
    }
    request = decode(body, shared=region)
    assert request.inputs[0].data.tolist() == [1, 2]
    output = Tensor("y", "FP32", (2,), np.zeros(2, np.float32))
    response = InferenceResponse("m", "1", "", [output])
    told, blobs = encode_response(response, request, region)
    assert region.put == [(SharedMemoryRange("r", 4, 8), output)]
    assert not blobs
    assert json.loads(told)["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2], "parameters": lies}
    ]


@pytest.mark.parametrize(
    "parameters",
    [
        {"shared_memory_region": "r"},
        {"shared_memory_region": 7, "shared_memory_byte_size": 4},
        {"shared_memory_region": "r", "shared_memory_byte_size": -4},
        {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": "x"},
    ],
)
def test_a_range_that_is_none(parameters: dict[str, Any]) -> None:
    assert refused(one([1.0], parameters=parameters)).code == "wrong_parameter"


def test_switched_off_is_not_asked_for() -> None:
    decode(one([1.0]) | {"parameters": {"sequence_id": 0}})
    decode(one([1.0]) | {"outputs": [{"name": "y", "parameters": {"classification": 0}}]})


# -- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b'\xef\xbb\xbf{"inputs": []}', "malformed_json"),
        (b'{"inputs": []} x', "malformed_json"),
        (b'{"inputs": [], "id": "\xff"}', "malformed_json"),
        (b'{"inputs": [], "x": NaN}', "malformed_json"),
        (b'{"inputs": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed_json"),
        (b"[" * 100_000, "invalid_request"),
        (b"null", "invalid_request"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        ({"inputs": None}, "invalid_request"),
        ({"inputs": {}}, "invalid_request"),
        ({"inputs": [1]}, "invalid_request"),
        ({"inputs": [{}]}, "invalid_request"),
        (one([1.0]) | {"id": 5}, "invalid_request"),
        (one([1.0]) | {"outputs": {}}, "invalid_request"),
        (one([1.0]) | {"parameters": []}, "invalid_request"),
        (one([1.0], shape=[-1]), "invalid_request"),
        (one([1.0], shape=[1.0]), "invalid_request"),
        (one([1.0], shape=1), "invalid_request"),
        (one([1.0], shape=["1"]), "invalid_request"),
        (one([1.0], shape=[True]), "invalid_request"),
        (one([1.0], shape=[2**64]), None),
        (one([1.0], "FLOAT"), "unknown_datatype"),
        (one([1.0], "fp32"), "unknown_datatype"),
        (one([1.0], shape=[1] * 33), "wrong_shape"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}, "missing_data"),
        (one([1.0], shape=[2]), "shape_data_mismatch"),
        (one([1.0], shape=[2**62, 2**62]), "shape_data_mismatch"),
        (one([1.0] * 4, shape=[2, 3]), "shape_data_mismatch"),
        (one([[1.0, 2.0], [3.0]], shape=[2, 2]), "shape_data_mismatch"),
        (one([[1.0], [2.0]], shape=[1, 2]), "shape_data_mismatch"),
        (one([[1.0]], shape=[1]), "wrong_data"),
        (one([[[1.0]]], shape=[1, 1]), "wrong_data"),
        (one([[1.0], 2.0], shape=[2, 1]), "wrong_data"),
        (one([1.0, [2.0]], shape=[2, 1]), "wrong_data"),
        (one(None, shape=[1]), "wrong_data"),
        (one("1", shape=[1]), "wrong_data"),
        (one({}, shape=[1]), "wrong_data"),
        (one(["1"]), "wrong_data"),
        (one([None]), "wrong_data"),
        (one([True]), "wrong_data"),
        (one([1.5], "INT32"), "wrong_data"),
        (one([1], "BOOL"), "wrong_data"),
        (one(["a"], "BOOL"), "wrong_data"),
        (one([1], "BYTES"), "wrong_data"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', None),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[Infinity]}]}', None),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e999]}]}', None),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[1e2]}]}', None),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}', None),
        (
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":'
            + b"[" * 100_000
            + b"]" * 100_000
            + b"}]}",
            None,
        ),
    ],
)
def test_a_mistake_is_named(body: object, code: str | None) -> None:
    error = refused(body)
    assert error.message
    assert len(error.message) < 1000
    if code is not None:
        assert error.code == code


def test_a_mistake_in_data_names_its_input_and_what_was_expected() -> None:
    error = refused(one([1.5], "INT32"))
    assert "'x'" in error.message
    assert error.details["input"] == "x"
    assert error.details["expected"] == "INT32"
    assert "integers" in error.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=10,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | JSON,
        "shape": st.lists(st.integers(0, 3) | st.integers(), max_size=4) | JSON,
        "datatype": st.sampled_from(sorted(DTYPE_OF)) | JSON,
        "data": st.lists(st.integers(0, 1) | st.floats() | st.text(max_size=2), max_size=4) | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "x"]), JSON, max_size=2
        ),
    },
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "sequence_id", "binary_data_output", "x"]), JSON
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(FIELDS, max_size=2) | JSON},
    optional={
        "id": st.text(max_size=3) | JSON,
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("y") | JSON},
                optional={
                    "parameters": st.dictionaries(
                        st.sampled_from(["binary_data", "classification"]), JSON
                    )
                },
            ),
            max_size=2,
        ),
        "parameters": PARAMETERS | JSON,
    },
)


def only_our_errors(body: bytes, json_size: int | None) -> None:
    try:
        request = decode(body, json_size=json_size)
    except HeadraceError:
        return
    for tensor in request.inputs:
        assert tensor.data.shape == tuple(tensor.shape)
        assert tensor.data.dtype == DTYPE_OF[tensor.datatype]


@given(BODIES, st.booleans())
@settings(max_examples=200)
def test_requests_of_any_shape_raise_only_our_errors(body: Any, binary: bool) -> None:
    raw = json.dumps(body).encode()
    only_our_errors(raw, len(raw) if binary else None)


@given(st.binary(max_size=60), st.none() | st.integers(-1, 70))
@example(b"", 0)
def test_noise_raises_only_our_errors(noise: bytes, json_size: int | None) -> None:
    only_our_errors(noise, json_size)


@given(st.data())
@settings(max_examples=200)
def test_requests_with_bytes_changed_raise_only_our_errors(data: st.DataObject) -> None:
    body = bytearray(
        json.dumps(
            {
                "inputs": [
                    {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2.5], [0, -1]]},
                    {"name": "y", "shape": [1], "datatype": "BYTES", "data": ["text"]},
                ],
                "outputs": [{"name": "z", "parameters": {"binary_data": True}}],
                "parameters": {"timeout": 5, "priority": 1},
            }
        ).encode()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    only_our_errors(bytes(body), None)


# -- answers --------------------------------------------------------------------------------


def fp32(name: str, *values: float) -> Tensor:
    return Tensor(name, "FP32", (len(values),), np.array(values, dtype=np.float32))


def test_an_answer_has_the_fields_of_the_protocol() -> None:
    told, blobs = answer(fp32("y", 1.5, -2.0), id="7")
    assert not blobs
    assert told == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.5, -2.0]}],
    }


@pytest.mark.parametrize("request_id", ["", "a", 'quote " and é'])
@pytest.mark.parametrize("count", [1, 2])
def test_one_output_and_two_are_encoded_alike(request_id: str, count: int) -> None:
    """One has a way of its own, because it is common."""
    outputs = [fp32(f"y{number}", number) for number in range(count)]
    told, _ = answer(*outputs, id=request_id)
    assert told.get("id", "") == request_id
    assert [output["data"] for output in told["outputs"]] == [[n] for n in range(count)]
    again, _ = answer(*outputs, id=request_id)
    assert again == told


def test_what_json_has_no_number_for_becomes_null() -> None:
    told, _ = answer(fp32("y", np.nan, np.inf, -np.inf, 1.0))
    assert told["outputs"][0]["data"] == [None, None, None, 1.0]


def test_bytes_that_are_no_text_are_refused_with_the_way_out() -> None:
    array = np.empty(1, dtype=object)
    array[0] = b"\xff"
    with pytest.raises(InferenceFailed) as caught:
        answer(Tensor("y", "BYTES", (1,), array))
    assert caught.value.code == "not_json"
    assert "binary_data" in caught.value.hint


def test_an_answer_may_be_partly_binary() -> None:
    asked = InferenceRequest(
        "m", [], outputs=[RequestedOutput("a", True), RequestedOutput("b"), RequestedOutput("c")]
    )
    told, blobs = answer(fp32("a", 1.0), fp32("b", 2.0), fp32("c", 3.0), asked=asked)
    assert blobs == [np.float32(1.0).tobytes()]
    first, second, third = told["outputs"]
    assert first["parameters"] == {"binary_data_size": 4}
    assert "data" not in first
    assert (second["data"], third["data"]) == ([2.0], [3.0])


def test_all_outputs_may_be_binary() -> None:
    asked = InferenceRequest("m", [], parameters={"binary_data_output": True})
    told, blobs = answer(fp32("a", 1.0), fp32("b", 2.0), asked=asked)
    assert len(blobs) == 2
    assert all("data" not in output for output in told["outputs"])


def test_an_empty_output_has_empty_data() -> None:
    told, _ = answer(Tensor("y", "FP32", (0, 3), np.empty((0, 3), np.float32)))
    assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [0, 3], "data": []}]


def test_an_answer_keeps_its_parameters() -> None:
    for outputs in ([fp32("a", 1.0)], [fp32("a", 1.0), fp32("b", 2.0)]):
        told, _ = answer(*outputs, parameters={"p": 1})
        assert told["parameters"] == {"p": 1}
