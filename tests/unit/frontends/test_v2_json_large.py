"""Large V2 JSON in steps: equal to the plain codec, and bounded whatever is sent."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidRequest, PayloadTooLarge
from headrace.frontends import slices
from headrace.frontends.codecs import v2_binary, v2_json, v2_json_answer, v2_json_large
from headrace.limits import HttpLimits
from headrace.types import (
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    SharedMemoryRange,
    Tensor,
)
from tests.fuzzing import examples
from tests.unit.frontends.v2_tensors import tensors

NAMES: dict[str, Any] = {"model_name": "m", "model_version": ""}

NUMBERS = {
    "FP64": ["0", "-0.0", "1e3", "1E-7", "0.1", "9007199254740993", "123456789.125", "1e308"],
    "FP32": ["0", "-1.5", "1e10", "3.4e38", "1E-45"],
    "BF16": ["1", "0.3", "-2e5"],
    "INT64": ["0", "-9223372036854775808", "9007199254740993", "17"],
    "UINT64": ["18446744073709551615", "0"],
    "INT8": ["-128", "127", "0"],
    "BOOL": ["true", "false"],
}
WRONG = ["null", "NaN", "1e999", "300", '"a"', "01", "[1]", "", "{}", "18446744073709551616", "1 2"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slices of a few bytes, so that small bodies are cut as large ones are."""
    monkeypatch.setattr(v2_json_large, "INLINE_BYTES", 6)
    monkeypatch.setattr(v2_json_large, "SLICE_BYTES", 5)
    monkeypatch.setattr(v2_json_large, "_SEARCHED_BYTES", 7)
    monkeypatch.setattr(v2_json_answer, "SLICE_VALUES", 3)
    with np.errstate(over="raise"):
        yield


blanks = st.sampled_from(["", "", "", " ", "\n\t", "  \r\n "])


@st.composite
def inputs(draw: st.DrawFn) -> str:
    datatype = draw(st.sampled_from(sorted(NUMBERS)))
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    wrong = draw(st.integers(0, 30)) == 0

    def number() -> str:
        kind = WRONG if wrong and draw(st.booleans()) else NUMBERS[datatype]
        return draw(blanks) + draw(st.sampled_from(kind)) + draw(blanks)

    def nested(sizes: list[int]) -> str:
        if not sizes:
            return number()
        return draw(blanks) + "[" + ",".join(nested(sizes[1:]) for _ in range(sizes[0])) + "]"

    data = nested([int(np.prod(shape))] if draw(st.booleans()) else shape)
    fields = [
        '"name":"x"',
        f'"datatype":"{datatype}"',
        f'"shape":{json.dumps(shape)}',
        f'"data"{draw(blanks)}:{draw(blanks)}{data}',
    ]
    return "{" + ",".join(draw(st.permutations(fields))) + "}"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    texts = '{"name":"t","datatype":"BYTES","shape":[2],"data":["\\"data\\":[1,2,3,4,5","]}"]}'
    others = [
        '"id":"\\"data\\":[1,2,3,4]"',
        '"parameters":{"data":[1,2,3,4,5,6]}',
        '"unknown":{"data":[1.5,2.5,3.5]}',
    ]
    items = draw(st.lists(inputs(), max_size=3)) + draw(st.sampled_from([[], [texts]]))
    fields = ['"inputs":[' + ",".join(items) + "]", *draw(st.lists(st.sampled_from(others)))]
    body = "{" + ",".join(fields) + "}"
    if draw(st.booleans()):
        place = draw(st.integers(0, len(body) - 1))
        dropped = draw(st.integers(0, 2))
        body = body[:place] + draw(st.sampled_from([*'[]{},:"0 -', ""])) + body[place + dropped :]
    return body.encode()


def outcome(request: InferenceRequest | HeadraceError) -> Any:
    if isinstance(request, HeadraceError):
        return "refused"
    return (
        request.id,
        request.parameters,
        [(each.name, each.datatype, each.shape, each.data.tolist()) for each in request.inputs],
    )


def plain(body: bytes) -> InferenceRequest | HeadraceError:
    try:
        return v2_json.decode_request(body, **NAMES)
    except HeadraceError as error:
        return error


def stepwise(body: bytes, **options: Any) -> InferenceRequest | HeadraceError:
    try:
        return slices.finished(v2_json_large.decode_steps(body, **NAMES, **options))
    except HeadraceError as error:
        return error


@settings(max_examples=examples(250), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies())
def test_the_same_requests_are_read_and_the_same_refused(body: bytes) -> None:
    assert outcome(stepwise(body)) == outcome(plain(body))


@pytest.mark.parametrize(
    ("shape", "data", "code"),
    [
        ([2, 2], "[[1,2],[3,4,5]]", "shape_data_mismatch"),
        ([2, 2], "[[1,2,3],[4]]", "shape_data_mismatch"),
        ([2, 2], "[1[,2],[3,4]]", "malformed_json"),
        ([2, 2], "[[1,2]3,[4,5]]", "malformed_json"),
        ([4], "[1,2,,,3]", "shape_data_mismatch"),
        ([4], "[1,2, ,4]", "malformed_json"),
        ([4], "[1,2,x,4]", "malformed_json"),
        ([4], "[1,2,null,4]", "wrong_data"),
        ([4], "[1,2,1e39,4]", "out_of_range"),
        ([1] * 40, "[1.000000000000]", "wrong_shape"),
    ],
)
def test_a_mistake_is_named(shape: list[int], data: str, code: str) -> None:
    error = stepwise(
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":%b,"data":%b}]}'
        % (str(shape).encode(), data.encode())
    )
    assert isinstance(error, InvalidRequest)
    assert error.code == code


def test_binary_tensors_may_follow() -> None:
    head = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[5],"data":[1,2,3,4,5]},'
        b'{"name":"y","datatype":"INT8","shape":[2],"parameters":{"binary_data_size":2}}]}'
    )
    request = stepwise(head + b"\x01\x02", json_size=len(head))
    assert isinstance(request, InferenceRequest)
    assert [each.data.tolist() for each in request.inputs] == [[1, 2, 3, 4, 5], [1, 2]]


LISTS = b"[]," * 200_000
NUMBER = b'{"inputs":[{"name":"x","datatype":"INT8","shape":[300000],"data":%b}]}'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"inputs":[],"parameters":{"a":[' + LISTS + b"1]}}", "too_many_values"),
        (b'{"inputs":[],"unknown":[' + LISTS + b"1]}", "too_many_values"),
        (b'{"inputs":[' + b'{"name":"","datatype":"","shape":[]},' * 20_000, "too_many_values"),
        (b'{"inputs":[],"outputs":[' + b'{"name":""},' * 20_000, "too_many_values"),
        (NUMBER % (b"[" + b'"",' * 300_000 + b'""]'), "too_many_values"),
        (NUMBER % (b"[" + LISTS + b"1]"), "shape_data_mismatch"),
        (NUMBER % (b"[" + b"1," * 500_000 + b"1]"), "shape_data_mismatch"),
        (b'{"id":"' + b"a" * 500_000 + b'","inputs":[]}', "request_too_complex"),
    ],
)
def test_a_bomb_is_refused_before_it_goes_off(
    body: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    tracemalloc.start()
    try:
        error = stepwise(body, limits=HttpLimits(max_values=10_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, HeadraceError)
    assert error.code == code
    assert peak < 4_000_000  # of 13 to 40 million


def test_numbers_of_tensors_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    request = stepwise(NUMBER % (b"[" + b"1," * 299_999 + b"1]"), limits=HttpLimits(max_values=100))
    assert isinstance(request, InferenceRequest)
    assert request.inputs[0].data.sum() == 300_000


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(tensors(), min_size=1, max_size=3),
    st.text(max_size=3),
    st.sampled_from([None, {"a": 1}, {}]),
    st.lists(st.sampled_from([None, True, False]), min_size=3, max_size=3),
    st.sampled_from([None, {"binary_data_output": True}]),
)
def test_answers_are_encoded_the_same(
    outputs: list[Tensor], name: str, said: Any, binary: list[bool | None], asked: Any
) -> None:
    response = InferenceResponse("m", "1", name, outputs, said)
    request = InferenceRequest("m", [], parameters=asked)
    if binary[0] is not None:
        each = zip(outputs, binary, strict=False)
        request.outputs = [RequestedOutput(tensor.name, wish) for tensor, wish in each]
    try:
        expected = v2_json_answer.encode_response(response, request)
    except HeadraceError as error:
        with pytest.raises(type(error)):
            slices.finished(v2_json_answer.encode_steps(response, request))
        return
    parts, blobs = slices.finished(v2_json_answer.encode_steps(response, request))
    assert json.loads(b"".join(parts)) == json.loads(expected[0])
    assert list(blobs) == list(expected[1])


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_that_is_too_large_is_not_put_together(*, binary: bool) -> None:
    tensor = Tensor("y", "FP32", (1000,), np.zeros(1000, np.float32))
    request = InferenceRequest("m", [], outputs=[RequestedOutput("y", binary)])
    steps = v2_json_answer.encode_steps(
        InferenceResponse("m", "1", "", [tensor]), request, max_bytes=100
    )
    with pytest.raises(PayloadTooLarge) as caught:
        slices.finished(steps)
    assert caught.value.code == "answer_too_large"


def test_the_number_of_texts_is_bounded_over_all_tensors() -> None:
    reader = v2_binary.Reader(b"\0" * 80, 0, strings_max=15)
    assert reader.read("a", "BYTES", (10,), 40).tolist() == [b""] * 10
    with pytest.raises(PayloadTooLarge):
        reader.read("b", "BYTES", (10,), 40)


def test_outputs_are_in_shared_memory_before_the_first_step() -> None:
    written: list[str] = []

    class Shared:
        def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
            written.append(where.region)
            return 4

    tensor = Tensor("y", "FP32", (1,), np.ones(1, np.float32))
    response = InferenceResponse("m", "1", "", [tensor])
    outputs = [RequestedOutput("y", None, 0, SharedMemoryRange("r", 0, 4))]
    request = InferenceRequest("m", [], outputs=outputs)
    steps = v2_json_answer.encode_steps(response, request, Shared())  # type: ignore[arg-type]
    assert written == ["r"]
    parts, blobs = slices.finished(steps)
    assert not blobs
    assert json.loads(b"".join(parts))["outputs"][0]["parameters"]["shared_memory_region"] == "r"
    assert written == ["r"]
