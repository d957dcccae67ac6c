"""The binary tensor extension: every datatype there and back, and sizes that do not lie."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.v2_json import decode_request
from headrace.frontends.codecs.v2_json_answer import encode_response
from headrace.types import DTYPE_OF, InferenceRequest, InferenceResponse, Tensor
from tests.unit.frontends.v2_tensors import assert_same, tensors


def whole(outputs: list[Tensor]) -> tuple[bytes, list[bytes]]:
    """A request body made of an answer's parts; a client could do the same."""
    asked = InferenceRequest("m", [], parameters={"binary_data_output": True})
    told, blobs = encode_response(InferenceResponse("m", "1", "", outputs), asked)
    return json.dumps({"inputs": json.loads(told)["outputs"]}).encode(), list(blobs)


def decode(header: bytes, *blobs: bytes) -> InferenceRequest:
    return decode_request(
        b"".join((header, *blobs)), model_name="m", model_version="", json_size=len(header)
    )


def header(size: Any, datatype: str = "FP32", shape: Any = (1,), **more: Any) -> bytes:
    tensor = {"name": "x", "shape": shape, "datatype": datatype} | more
    return json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()


def refused(*args: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(*args)
    return caught.value


@given(st.lists(tensors(), min_size=1, max_size=4))
def test_what_is_encoded_decodes_to_the_same(sent: list[Tensor]) -> None:
    head, blobs = whole(sent)
    for got, expected in zip(decode(head, *blobs).inputs, sent, strict=True):
        assert_same(got, expected)


@given(tensors(), st.integers(0, 7))
def test_where_the_bytes_begin_does_not_matter(tensor: Tensor, padding: int) -> None:
    """Views must be aligned: some runtimes crash on others."""
    head, blobs = whole([tensor])
    (got,) = decode(head + b" " * padding, *blobs).inputs
    assert got.data.flags.aligned
    assert_same(got, tensor)


@given(tensors(), st.data())
def test_a_size_that_disagrees_with_the_shape_is_refused(
    tensor: Tensor, data: st.DataObject
) -> None:
    head, (blob,) = whole([tensor])
    other = data.draw(st.integers(0, len(blob) + 9).filter(lambda size: size != len(blob)))
    lying = json.loads(head)
    lying["inputs"][0]["parameters"]["binary_data_size"] = other
    error = refused(json.dumps(lying).encode(), blob.ljust(other, b"\0")[:other])
    assert error.code in ("shape_data_mismatch", "wrong_bytes_length")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((header(4), b"\0" * 3), "wrong_binary_size"),
        ((header(4), b"\0" * 5), "wrong_binary_size"),
        ((header(-4), b"\0" * 4), "wrong_binary_size"),
        ((header(4.0), b"\0" * 4), "wrong_binary_size"),
        ((header("4"), b"\0" * 4), "wrong_binary_size"),
        ((header(True), b"\0"), "wrong_binary_size"),
        ((header(2**64), b""), "wrong_binary_size"),
        ((header(4, data=[1.0]), b"\0" * 4), "wrong_binary_size"),
        ((header(4, shape=[2]), b"\0" * 4), "shape_data_mismatch"),
        ((header(16, shape=[2**32, 2**32]), b"\0" * 16), "shape_data_mismatch"),
        ((header(0, shape=[0, 2**62, 2**62]), b""), "wrong_shape"),
        ((header(0, shape=[2**63, 0]), b""), "wrong_shape"),
        ((header(5, "BYTES"), struct.pack("<I", 2) + b"a"), "wrong_bytes_length"),
        ((header(5, "BYTES"), struct.pack("<I", 2**32 - 1) + b"a"), "wrong_bytes_length"),
        ((header(3, "BYTES"), b"\0\0\0"), "shape_data_mismatch"),
        ((header(8, "BYTES"), b"\0" * 8), "shape_data_mismatch"),
        ((header(4, "BYTES", [2]), b"\0" * 4), "shape_data_mismatch"),
        ((header(4, "BYTES", [2**40]), b"\0" * 4), "shape_data_mismatch"),
        ((header(0, "BYTES", [0, 2**62, 2**62]), b""), "wrong_shape"),
    ],
)
def test_a_mistake_is_named(args: tuple[bytes, ...], code: str) -> None:
    assert refused(*args).code == code


def test_binary_data_needs_the_header() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_request(header(4) + b"\0" * 4, model_name="m", model_version="")
    assert caught.value.code in ("malformed_json", "missing_binary_header")
    with pytest.raises(InvalidRequest) as caught:
        decode_request(header(4), model_name="m", model_version="")
    assert caught.value.code == "missing_binary_header"
    assert "Inference-Header-Content-Length" in caught.value.hint


@pytest.mark.parametrize("size", [-1, 1000])
def test_a_header_longer_than_the_body_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest):
        decode_request(header(0, shape=[0]), model_name="m", model_version="", json_size=size)


def test_a_bool_is_0_or_1_whatever_was_sent() -> None:
    (tensor,) = decode(header(3, "BOOL", [3]), b"\x00\x02\xff").inputs
    assert tensor.data.view(np.uint8).tolist() == [0, 1, 1]


def test_binary_and_json_inputs_may_be_mixed() -> None:
    inputs = [
        {"name": "a", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}},
        {"name": "b", "shape": [1], "datatype": "INT8", "data": [2]},
        {"name": "c", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 1}},
    ]
    request = decode(json.dumps({"inputs": inputs}).encode(), b"\x01\x03")
    assert [tensor.data.tolist() for tensor in request.inputs] == [[1], [2], [3]]


@given(st.lists(tensors(), min_size=1, max_size=2), st.data())
@settings(max_examples=200)
def test_bodies_with_bytes_changed_raise_only_our_errors(
    sent: list[Tensor], data: st.DataObject
) -> None:
    head, blobs = whole(sent)
    body = bytearray(b"".join((head, *blobs)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body)))
        body[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    size = data.draw(st.sampled_from([len(head), len(head) - 1, len(head) + 1, len(body), 0]))
    try:
        request = decode_request(bytes(body), model_name="m", model_version="", json_size=size)
    except HeadraceError:
        return
    for tensor in request.inputs:
        assert tensor.data.shape == tuple(tensor.shape)
        assert tensor.data.dtype == DTYPE_OF[tensor.datatype]


# -- bfloat16 -------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFF))
def test_every_bfloat16_survives_float32(bits: int) -> None:
    array = np.array([bits], dtype=np.uint16)
    back = v2_binary.float32_to_bfloat16(v2_binary.bfloat16_to_float32(array))
    if (bits & 0x7F80) == 0x7F80 and bits & 0x7F:  # NaN: still one, of the same sign
        assert (int(back[0]) & 0x7F80) == 0x7F80
        assert int(back[0]) & 0x7F
        assert int(back[0]) >> 15 == bits >> 15
    else:
        assert back.tolist() == [bits]


@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_rounding_is_to_the_nearest(value: float) -> None:
    bits = int(v2_binary.float32_to_bfloat16(np.array([value], dtype=np.float32))[0])

    def value_of(candidate: int) -> float:
        return float(v2_binary.bfloat16_to_float32(np.array([candidate], dtype=np.uint16))[0])

    error = abs(value_of(bits) - value)
    for neighbour in (bits - 1, bits + 1):
        if 0 <= neighbour <= 0xFFFF and (neighbour & 0x7F80) != 0x7F80:
            assert error <= abs(value_of(neighbour) - value)
