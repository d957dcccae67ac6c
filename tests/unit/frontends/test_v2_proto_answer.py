"""Answers of V2 as protobuf: every datatype, parameters, shared memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import protos
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.proto_parameters import read_parameters, write_parameters
from headrace.frontends.codecs.v2_proto import (
    ResponseEncoder,
    varint,
)
from headrace.types import (
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    SharedMemoryRange,
    Tensor,
)
from tests.unit.frontends.v2_tensors import FakeShared, assert_same, floats, tensors

Response = protos.message("inference.ModelInferResponse")


def shown(response: InferenceResponse, extra: bytes = b"") -> Any:
    encoder = ResponseEncoder()
    first, again = (encoder.encode(response, InferenceRequest("m", []), extra) for _ in range(2))
    assert first == again
    return Response.FromString(first)


@given(st.lists(tensors(), max_size=3), st.text(st.characters(codec="utf-8"), max_size=5))
def test_answers_of_every_kind(sent: list[Tensor], request_id: str) -> None:
    message = shown(InferenceResponse("m", "3", request_id, sent))
    assert (message.model_name, message.model_version, message.id) == ("m", "3", request_id)
    for tensor, told, blob in zip(sent, message.outputs, message.raw_output_contents, strict=True):
        assert (told.name, told.datatype) == (tensor.name, tensor.datatype)
        assert tuple(told.shape) == tensor.shape
        got = v2_binary.decode(
            blob, 0, len(blob), name="x", datatype=told.datatype, shape=tensor.shape
        )
        assert_same(Tensor(tensor.name, told.datatype, tensor.shape, got), tensor)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bool", "uint16", "int64"])
def test_large_outputs(dtype: str) -> None:
    array = (np.arange(50_000) % 7).astype(dtype)
    tensor = Tensor("x", "FP32", array.shape, array)
    (blob,) = shown(InferenceResponse("m", "1", "", [tensor])).raw_output_contents
    assert blob == array.tobytes()


def test_answers_with_parameters() -> None:
    parameters = {"a": True, "b": 1, "c": "text", "d": 0.5}
    extra = Response()
    extra.parameters["e"].bool_param = False
    response = InferenceResponse("m", "1", "i", [floats(1)], parameters)
    message = shown(response, extra.SerializeToString())
    assert read_parameters(message.parameters) == parameters | {"e": False}
    assert list(message.raw_output_contents) == [np.float32(1).tobytes()]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**14, 2**21 - 1, 2**32])
def test_a_length_is_written_as_protobuf_does(number: int) -> None:
    shape = protos.message("inference.ModelInferRequest.InferInputTensor")(shape=[number])
    assert shape.SerializeToString()[2:] == varint(number)


def test_outputs_into_shared_memory() -> None:
    shared = FakeShared()
    where = SharedMemoryRange("r", 8, 64)
    request = InferenceRequest("m", [], outputs=[RequestedOutput("x", shared_memory=where)])
    response = InferenceResponse("m", "1", "i", [floats(1), floats(2, name="y")])
    message = Response.FromString(ResponseEncoder().encode(response, request, shared=shared))
    assert shared.written == [(where, np.float32(1).tobytes())]
    assert read_parameters(message.outputs[0].parameters) == {
        "shared_memory_region": "r",
        "shared_memory_byte_size": 4,
        "shared_memory_offset": 8,
    }
    assert list(message.raw_output_contents) == [np.float32(2).tobytes()]


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=5),
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), VALUES, max_size=4))
def test_parameters_there_and_back(parameters: dict[str, Any]) -> None:
    message = Response()
    write_parameters(message.parameters, parameters)
    got = read_parameters(Response.FromString(message.SerializeToString()).parameters)
    assert got == parameters
    assert {name: type(value) for name, value in got.items()} == {
        name: type(value) for name, value in parameters.items()
    }


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", None, [1]])
def test_values_that_protobuf_has_no_kind_for_are_told_as_text(value: Any) -> None:
    message = Response()
    write_parameters(message.parameters, {"a": value})
    assert message.parameters["a"].WhichOneof("parameter_choice") == "string_param"
