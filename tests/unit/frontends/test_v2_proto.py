"""Requests of V2 as protobuf: every datatype, repeated messages, and every mistake named."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace import protos
from headrace.errors import HeadraceError, InvalidRequest
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.v2_parameters import NO_SHARED_MEMORY, SharedMemory
from headrace.frontends.codecs.v2_proto import RequestDecoder, varint
from headrace.types import DTYPE_OF, InferenceRequest, RequestedOutput, SharedMemoryRange, Tensor
from tests.unit.frontends.v2_tensors import FakeShared, assert_same, floats, tensors

Request = protos.message("inference.ModelInferRequest")


def decode(
    message: Any,
    decoder: RequestDecoder | None = None,
    shared: SharedMemory = NO_SHARED_MEMORY,
) -> InferenceRequest:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return (decoder or RequestDecoder()).decode(raw, shared)


def refused(message: Any, decoder: RequestDecoder | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(message, decoder)
    return caught.value


def raw_request(*sent: Tensor, **fields: Any) -> Any:
    message = Request(model_name="m", **fields)
    for tensor in sent:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(v2_binary.encode(tensor))
    return message


def typed(datatype: str, shape: Sequence[int], **contents: Any) -> Any:
    message = Request(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


# -- requests ---------------------------------------------------------------------------------


@given(st.lists(tensors(), max_size=3), st.text(max_size=5), st.text(max_size=5))
def test_raw_tensors_of_every_kind(sent: list[Tensor], request_id: str, version: str) -> None:
    message = raw_request(*sent, id=request_id, model_version=version)
    decoder = RequestDecoder()
    for _ in range(2):  # the second time from memory
        request = decode(message, decoder)
        assert (request.model_name, request.model_version) == ("m", version)
        assert request.id == request_id
        assert (request.outputs, request.parameters) == (None, None)
        for got, expected in zip(request.inputs, sent, strict=True):
            assert_same(got, expected)
            assert got.data.flags.aligned


def test_what_is_remembered_is_not_the_id_and_not_the_data() -> None:
    decoder = RequestDecoder()
    for request_id, values in (("a", (1, 2)), ("bb", (3, 4)), ("", (5, 6))):
        request = decode(raw_request(floats(*values), id=request_id), decoder)
        assert request.id == request_id
        assert request.inputs[0].data.tolist() == list(values)
    other = raw_request(floats(1, 2), id="a")
    other.model_name = "n"
    assert decode(other, decoder).model_name == "n"


def test_what_is_remembered_may_be_changed_by_whoever_has_it() -> None:
    decoder = RequestDecoder()
    message = raw_request(floats(1))
    message.parameters["colour"].string_param = "red"
    first = decode(message, decoder)
    assert first.parameters is not None
    first.parameters["colour"] = "blue"
    first.inputs.clear()
    again = decode(message, decoder)
    assert again.parameters == {"colour": "red"}
    assert len(again.inputs) == 1


def test_a_repeated_request_with_other_lengths_is_refused_as_the_first_is() -> None:
    good = raw_request(floats(1, 2))
    for wrong in ([b"1234"], [], [b"12345678", b""], [b"12345678" * 2]):
        decoder = RequestDecoder()
        bad = raw_request(floats(1, 2))
        del bad.raw_input_contents[:]
        bad.raw_input_contents.extend(wrong)
        unseen = refused(bad).message
        decode(good, decoder)
        assert refused(bad, decoder).message == unseen


def test_large_tensors_are_not_copied() -> None:
    # An offset that numpy can use: only then can there be a view.
    for pad in range(8):
        raw = raw_request(floats(*range(1000)), id="x" * pad).SerializeToString()
        decoder = RequestDecoder()
        decoder.decode(raw)
        array = decoder.decode(raw).inputs[0].data
        if raw.index(np.arange(1000, dtype=np.float32).tobytes()) % 8 == 0:
            assert not array.flags.owndata
            assert not array.flags.writeable
            return
    raise AssertionError("no offset was aligned")


UNKNOWN = b"\x82\x01\x03abc"  # field 16, LENGTH-delimited


@pytest.mark.parametrize(
    "extra", [UNKNOWN, b"\x78\x01", b"\x7d1234", b"\x79" + b"1" * 8, b"\x42\x00", UNKNOWN * 3]
)
def test_unknown_fields_are_passed_over_wherever_they_are(extra: bytes) -> None:
    message = raw_request(floats(1, 2), id="i")
    head = Request(model_name="m", id="i").SerializeToString()
    rest = message.SerializeToString().removeprefix(head)
    decoder = RequestDecoder()
    for raw in (extra + head + rest, head + extra + rest, head + rest + extra) * 2:
        request = decoder.decode(raw)
        assert (request.model_name, request.id) == ("m", "i")
        assert request.inputs[0].data.tolist() == [1, 2]


def test_fields_in_another_order_mean_the_same() -> None:
    message = raw_request(floats(1, 2))
    tail = b"\x1a\x01i"  # the id after the tensors
    assert decode(message.SerializeToString() + tail).id == "i"
    assert decode(b"\x1a\x01j" + message.SerializeToString() + tail).id == "i"


def test_many_kinds_of_requests_forget_the_oldest() -> None:
    decoder = RequestDecoder()
    for number in range(1500):
        message = raw_request(floats(1, name=f"x{number}"))
        assert decode(message, decoder).inputs[0].name == f"x{number}"


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [-1.5, float(np.float32(3.4e38))]),
        ("FP64", "fp64_contents", [-1.5, 1e300]),
        ("BYTES", "bytes_contents", [b"a\0", b""]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    (tensor,) = decode(typed(datatype, [2, 1], **{field: values})).inputs
    expected = np.empty(2, DTYPE_OF[datatype])
    expected[:] = values
    assert_same(tensor, Tensor("x", datatype, (2, 1), expected.reshape(2, 1)))
    assert decode(typed(datatype, [], **{field: values[:1]})).inputs[0].data.tolist() == values[0]
    assert decode(typed(datatype, [0, 3])).inputs[0].data.shape == (0, 3)
    assert refused(typed(datatype, [3], **{field: values})).code == "shape_data_mismatch"
    assert refused(typed(datatype, [1], **{field: values})).code == "shape_data_mismatch"


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("INT8", "int_contents", 128),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 2**15),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 2**16),
    ],
)
def test_numbers_that_do_not_fit(datatype: str, field: str, value: int) -> None:
    assert refused(typed(datatype, [1], **{field: [value]})).code == "out_of_range"


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_typed_contents(datatype: str) -> None:
    assert refused(typed(datatype, [1], fp32_contents=[1])).code == "wrong_contents"


def test_contents_in_the_wrong_field() -> None:
    error = refused(typed("FP32", [1], fp64_contents=[1]))
    assert error.message == "input 'x' of FP32 has fp64_contents, expected fp32_contents"


def test_unknown_fields_within_contents() -> None:
    contents = b"\x32\x04" + np.float32(1.5).tobytes() + b"\x7a\x04abcd"
    tensor = b"\x0a\x01x\x12\x04FP32\x1a\x01\x01\x2a" + varint(len(contents)) + contents
    (got,) = decode(b"\x0a\x01m\x2a" + varint(len(tensor)) + tensor).inputs
    assert got.data.tolist() == [1.5]


def both() -> Any:
    message = raw_request(floats(1))
    message.inputs[0].contents.fp32_contents.append(1)
    return message


def wrong_count(count: int) -> Any:
    message = raw_request(floats(1), floats(1, name="y"))
    del message.raw_input_contents[:]
    message.raw_input_contents.extend([b"1234"] * count)
    return message


def with_shape(*shape: int, datatype: str = "FP32", blob: bytes = b"1234") -> Any:
    message = Request(model_name="m", raw_input_contents=[blob])
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    return message


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (both(), "wrong_raw_contents", "contents field must not be specified when using raw"),
        (wrong_count(1), "wrong_raw_contents", "unexpected number of raw input contents: 1 for 2"),
        (wrong_count(3), "wrong_raw_contents", "unexpected number of raw input contents: 3 for 2"),
        (wrong_count(0), "shape_data_mismatch", "explicit tensor data for input tensor 'x'"),
        (with_shape(2), "shape_data_mismatch", "unexpected total byte size 4 for input 'x'"),
        (with_shape(1, datatype="FP31"), "unknown_datatype", "unknown datatype 'FP31'"),
        (with_shape(1, datatype=""), "unknown_datatype", "unknown datatype ''"),
        (with_shape(-1), "wrong_shape", "shape [-1]"),
        (with_shape(*[1] * 33), "wrong_shape", "at most 32"),
        (with_shape(2**62, 4), "shape_data_mismatch", "unexpected total byte size"),
        (with_shape(0, 2**62, blob=b""), "wrong_shape", "too large"),
        (with_shape(1, datatype="BYTES", blob=b"\xff\xff\xff\xff"), "wrong_bytes_length", "'x'"),
        (with_shape(2, datatype="BYTES", blob=b"\0\0\0\0"), "shape_data_mismatch", "BYTES"),
        (with_shape(1, datatype="BYTES", blob=b"\0\0"), "shape_data_mismatch", "BYTES"),
        (b"\x0a\x05m", "malformed_protobuf", "no ModelInferRequest"),
        (b"\x0a\x02\xff\xff", "malformed_protobuf", "no ModelInferRequest"),
        (b"\x1a\x02\xff\xff", "malformed_protobuf", "no ModelInferRequest"),
        (b"\x0a", "malformed_protobuf", "no ModelInferRequest"),
        (b"\x0b", "malformed_protobuf", "no ModelInferRequest"),
    ],
)
def test_mistakes_are_named(message: Any, code: str, text: str) -> None:
    error = refused(message)
    assert error.code == code
    assert text in error.message


@given(st.binary(max_size=80))
@example(b"\x3a\x00")
@example(b"\x82\x01")
def test_random_bytes_are_a_request_or_refused(raw: bytes) -> None:
    decoder = RequestDecoder()
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(decoder.decode(raw).model_name)
        except HeadraceError as error:
            outcomes.append(error.message)
    assert outcomes[0] == outcomes[1]


@given(st.data())
def test_a_damaged_request_means_the_same_to_a_decoder_that_knows_the_good_one(
    data: st.DataObject,
) -> None:
    message = raw_request(floats(1, 2), floats(3, name="y"), id="abc").SerializeToString()
    experienced = RequestDecoder()
    experienced.decode(message)
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        what = data.draw(st.sampled_from(["change", "remove", "insert"]))
        if what == "change":
            damaged[position] = data.draw(st.integers(0, 255))
        elif what == "remove":
            del damaged[position]
        else:
            damaged.insert(position, data.draw(st.integers(0, 255)))

    def outcome(decoder: RequestDecoder) -> Any:
        try:
            request = decoder.decode(bytes(damaged))
        except HeadraceError as error:
            return error.message
        return (
            request.model_name,
            request.model_version,
            request.id,
            request.outputs,
            request.parameters,
            [(t.name, t.datatype, t.shape, t.data.tobytes()) for t in request.inputs],
        )

    assert outcome(experienced) == outcome(RequestDecoder())


def test_a_length_of_megabytes_does_not_take_forever() -> None:
    """Put together bit by bit, this one would take hours."""
    begin = time.process_time()
    refused(b"\x0a" + b"\xff" * 10_000_000)
    refused(b"\x0a\x01m\x3a" + b"\xff" * 10_000_000)
    assert time.process_time() - begin < 5


# -- parameters ---------------------------------------------------------------------------------


def test_parameters_that_the_server_knows() -> None:
    message = raw_request(floats(1))
    for name, kind, value in (
        ("sequence_id", "uint64_param", 2**64 - 1),
        ("sequence_start", "bool_param", True),
        ("sequence_end", "bool_param", False),
        ("priority", "uint64_param", 2),
        ("timeout", "int64_param", 1500),
        ("weight", "double_param", 0.5),
        ("colour", "string_param", "red"),
    ):
        setattr(message.parameters[name], kind, value)
    message.parameters["empty"].SetInParent()
    decoder = RequestDecoder()
    for _ in range(2):
        request = decode(message, decoder)
        assert request.sequence_id == 2**64 - 1
        assert (request.sequence_start, request.sequence_end) == (True, False)
        assert (request.priority, request.timeout_ns) == (2, 1_500_000)
        assert request.parameters is not None
        assert (request.parameters["weight"], request.parameters["colour"]) == (0.5, "red")
        assert "empty" not in request.parameters


def test_a_sequence_may_be_named_by_a_string() -> None:
    message = raw_request(floats(1))
    message.parameters["sequence_id"].string_param = "s"
    assert decode(message).sequence_id == "s"


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("timeout", "int64_param", -1),
        ("timeout", "string_param", "soon"),
        ("priority", "bool_param", True),
        ("sequence_id", "double_param", 1.0),
        ("sequence_start", "int64_param", 1),
    ],
)
def test_parameters_that_cannot_be(name: str, kind: str, value: Any) -> None:
    message = raw_request(floats(1))
    message.parameters["sequence_id"].int64_param = 1
    setattr(message.parameters[name], kind, value)
    error = refused(message)
    assert (error.code, error.details["parameter"]) == ("wrong_parameter", name)


def test_requested_outputs() -> None:
    message = raw_request(floats(1))
    message.outputs.add(name="a")
    message.outputs.add(name="b").parameters["classification"].int64_param = 3
    shared = message.outputs.add(name="c").parameters
    shared["shared_memory_region"].string_param = "r"
    shared["shared_memory_byte_size"].int64_param = 64
    shared["shared_memory_offset"].int64_param = 8
    decoder, memory = RequestDecoder(), FakeShared()
    for number in range(1, 3):
        assert decode(message, decoder, memory).outputs == [
            RequestedOutput("a"),
            RequestedOutput("b", classification=3),
            RequestedOutput("c", shared_memory=SharedMemoryRange("r", 8, 64)),
        ]
        assert len(memory.reserved) == number  # each caller's own region, every time


# -- shared memory ------------------------------------------------------------------------------


def test_tensors_in_shared_memory_and_with_the_request() -> None:
    message = raw_request(floats(1, 2))
    shared = message.inputs.add(name="y", datatype="FP32", shape=[1])
    shared.parameters["shared_memory_region"].string_param = "r"
    shared.parameters["shared_memory_byte_size"].int64_param = 4
    shared.parameters["shared_memory_offset"].int64_param = 7
    decoder = RequestDecoder()
    for _ in range(2):  # what is there may change: it is read every time
        first, second = decode(message, decoder, FakeShared()).inputs
        assert (first.data.tolist(), second.data.tolist()) == ([1, 2], [7])
    message.raw_input_contents.append(b"1234")
    assert refused(message, decoder).code == "wrong_raw_contents"
    shared.parameters["shared_memory_byte_size"].Clear()
    assert refused(message, decoder).code == "wrong_parameter"
