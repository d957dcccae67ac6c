"""Bodies: valid for the metadata they come from, the same for the same seed."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.inputs import Row, make_inputs
from headrace.client.payloads import PayloadPlan, Payloads, make_payloads
from headrace.client.spec import Lengths, PayloadSpec
from headrace.client.target import Target
from headrace.client.text import draw_lengths, make_text
from headrace.client.wire import HttpHead
from headrace.errors import ConfigError
from headrace.types import DTYPE_OF, ModelMetadata, TensorSpec

TARGET = Target("http://h:1", "h", "127.0.0.1", 1, socket.AF_INET, "", loopback=True)
HEAD = HttpHead(TARGET, "/v2/models/m/infer", (("X-A", "b"),))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def metadata(*inputs: TensorSpec) -> ModelMetadata:
    return ModelMetadata("m", ("1",), "test", inputs, (TensorSpec("y", "FP32", (-1,)),))


def plan(*inputs: TensorSpec, **changes: Any) -> PayloadPlan:
    spec = changes.pop("spec", PayloadSpec(distinct=4))
    given = {"head": HEAD, "spec": spec, "model": "m", "samples": 1, "seed": 1, **changes}
    return PayloadPlan(metadata=metadata(*inputs) if inputs else None, **given)


def body_of(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    assert int(lengths[0].split(b":")[1]) == len(body)
    return body


def decoded(payloads: Payloads, index: int = 0) -> dict[str, Any]:
    document = json.loads(body_of(payloads.request(index)))
    assert isinstance(document, dict)
    return document


X = TensorSpec("x", "FP32", (-1, 4))
TEXT = TensorSpec("text", "BYTES", (-1,))


# tensors


shapes = st.lists(st.sampled_from([-1, 1, 2, 5]), max_size=3).map(tuple)


@given(st.sampled_from(sorted(DTYPE_OF)), shapes, st.integers(1, 4), st.integers(1, 6))
def test_generated_tensors_fit_their_specification(datatype, shape, rows, length):
    spec = TensorSpec("x", datatype, shape)
    (tensor,) = make_inputs(rng(), (spec,), PayloadSpec(), Row(rows, length))
    assert tensor.data.dtype == DTYPE_OF[datatype]
    assert tensor.data.shape == tensor.shape
    wanted = [rows if axis == 0 else length for axis in range(len(shape))]
    for size, fixed, free in zip(tensor.shape, shape, wanted, strict=True):
        assert size == (free if fixed == -1 else fixed)


def test_names_decide_what_integers_mean():
    specs = tuple(
        TensorSpec(name, "INT64", (-1, -1))
        for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    ids, mask, types = make_inputs(rng(), specs, PayloadSpec(), Row(2, 8))
    assert 0 <= ids.data.min() <= ids.data.max() < 100
    assert (mask.data == 1).all()
    assert (types.data == 0).all()


def test_bf16_values_are_the_upper_halves_of_floats():
    spec = TensorSpec("x", "BF16", (1000,))
    (tensor,) = make_inputs(rng(), (spec,), PayloadSpec(ranges={"x": (2.0, 4.0)}), Row(1, 1))
    values = (tensor.data.astype(np.uint32) << 16).view(np.float32)
    assert ((values >= 2) & (values <= 4)).all()


def test_ranges_are_kept_and_checked_against_the_datatype():
    spec = (TensorSpec("x", "INT8", (1000,)),)
    (tensor,) = make_inputs(rng(), spec, PayloadSpec(ranges={"x": (-3, 3)}), Row(1, 1))
    assert set(tensor.data.tolist()) == set(range(-3, 4))
    with pytest.raises(ConfigError, match="not a range of INT8"):
        make_inputs(rng(), spec, PayloadSpec(ranges={"x": (0, 128)}), Row(1, 1))


def test_optional_inputs_are_left_out_unless_they_are_given_a_shape():
    specs = (X, TensorSpec("bias", "FP32", (-1,), optional=True))
    assert [t.name for t in make_inputs(rng(), specs, PayloadSpec(), Row(1, 1))] == ["x"]
    given_shape = PayloadSpec(shapes={"bias": (3,)})
    tensors = make_inputs(rng(), specs, given_shape, Row(1, 1))
    assert [t.shape for t in tensors] == [(1, 4), (3,)]


def test_unknown_datatypes_and_giants_are_refused():
    with pytest.raises(ConfigError, match="'COMPLEX', which V2 does not know"):
        make_inputs(rng(), (TensorSpec("x", "COMPLEX", (1,)),), PayloadSpec(), Row(1, 1))
    with pytest.raises(ConfigError, match="more than 67,108,864 elements"):
        make_inputs(rng(), (TensorSpec("x", "FP32", (1 << 30,)),), PayloadSpec(), Row(1, 1))


# texts


@given(st.integers(1, 300), st.integers(0, 1000))
def test_a_text_has_its_number_of_words_and_ends_as_a_sentence(words, seed):
    text = make_text(rng(seed), words)
    assert len(text.split()) == words
    assert text[0].isupper()
    assert text.endswith(".")


def test_lengths_are_log_normal_within_their_bounds():
    drawn = np.array(draw_lengths(rng(), Lengths(20, 0.5, 60), 20_000))
    assert drawn.min() >= 1
    assert drawn.max() == 60
    assert np.median(drawn) == pytest.approx(20, abs=1)
    assert np.log(drawn[drawn < 60]).std() == pytest.approx(0.5, abs=0.06)


# requests


def test_the_request_is_http_with_our_headers():
    request = make_payloads(plan(X)).request(0)
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[0] == b"POST /v2/models/m/infer HTTP/1.1"
    assert b"Host: h:1" in lines
    assert b"X-A: b" in lines
    assert b"Content-Type: application/json" in lines


def test_json_bodies_are_valid_v2_requests():
    payloads = make_payloads(plan(X, TEXT, samples=3))
    x, text = decoded(payloads)["inputs"]
    assert (x["name"], x["datatype"], x["shape"], len(x["data"])) == ("x", "FP32", [3, 4], 12)
    assert (text["datatype"], text["shape"], len(text["data"])) == ("BYTES", [3], 3)
    assert all(isinstance(each, str) and each for each in text["data"])
    assert payloads.rows_of(np.arange(5)).tolist() == [3] * 5


def test_binary_bodies_carry_the_same_values_as_json_ones():
    as_json = make_payloads(plan(X, TEXT))
    as_binary = make_payloads(plan(X, TEXT, spec=PayloadSpec(wire="binary", distinct=4)))
    for index in range(4):
        expected = decoded(as_json, index)["inputs"]
        request = as_binary.request(index)
        length = int(request.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
        body = body_of(request)
        header, blobs = json.loads(body[:length]), body[length:]
        assert header["parameters"] == {"binary_data_output": True}
        x, text = header["inputs"]
        size = x["parameters"]["binary_data_size"]
        assert (
            np.frombuffer(blobs[:size], "<f4").tolist() == np.float32(expected[0]["data"]).tolist()
        )
        blob = blobs[size : size + text["parameters"]["binary_data_size"]]
        assert int.from_bytes(blob[:4], "little") == len(blob) - 4
        assert blob[4:].decode() == expected[1]["data"][0]
        assert len(blobs) == size + len(blob)


def test_bf16_needs_the_binary_form():
    spec = TensorSpec("x", "BF16", (-1, 4))
    with pytest.raises(ConfigError) as caught:
        make_payloads(plan(spec))
    assert "--binary" in caught.value.hint
    assert make_payloads(plan(spec, spec=PayloadSpec(wire="binary", distinct=1))).bodies


def test_openai_bodies_have_one_text_or_several():
    one = decoded(make_payloads(plan(spec=PayloadSpec(wire="openai", distinct=2))))
    assert one["model"] == "m"
    assert isinstance(one["input"], str)
    two = decoded(make_payloads(plan(spec=PayloadSpec(wire="openai", distinct=2), samples=2)))
    assert len(two["input"]) == 2


def test_the_same_seed_is_the_same_bytes_in_the_same_order():
    first, again = make_payloads(plan(X, TEXT)), make_payloads(plan(X, TEXT))
    other = make_payloads(plan(X, TEXT, seed=2))
    sent = [first.request(index) for index in range(200)]
    assert sent == [again.request(index) for index in range(200)]
    assert sent != [other.request(index) for index in range(200)]
    assert set(sent[:4]) == set(first.bodies)


def test_free_axes_get_lengths_only_when_asked():
    spec = TensorSpec("input_ids", "INT64", (-1, -1))
    plain = make_payloads(plan(spec))
    assert {decoded(plain, i)["inputs"][0]["shape"][1] for i in range(4)} == {16}
    mixed = make_payloads(plan(spec, spec=PayloadSpec(distinct=50, lengths=Lengths(30, 0.8, 90))))
    assert len({decoded(mixed, i)["inputs"][0]["shape"][1] for i in range(50)}) > 10


def test_recorded_lengths_are_sent_in_their_order():
    lengths = np.array([7, 3, 7, 7, 1], np.int64)
    payloads = make_payloads(plan(TEXT, lengths=lengths))
    words = [len(decoded(payloads, i)["inputs"][0]["data"][0].split()) for i in range(5)]
    assert words == [7, 3, 7, 7, 1]
    assert len(payloads.bodies) == 3


def test_a_shape_decides_its_input_and_the_rows_of_all():
    spec = PayloadSpec(distinct=1, shapes={"ids": (2, 5)})
    payloads = make_payloads(plan(TensorSpec("ids", "INT64", (-1, -1)), TEXT, spec=spec))
    ids, text = decoded(payloads)["inputs"]
    assert ids["shape"] == [2, 5]
    assert text["shape"] == [2]
    assert payloads.rows.tolist() == [2]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, "names the input 'z'"),
        ({"x": (1, 5)}, "does not fit the model's"),
        ({"x": (1,)}, "does not fit the model's"),
        ({"x": (1, 4), "text": (2,)}, "different numbers of rows"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ConfigError, match=message):
        make_payloads(plan(X, TEXT, spec=PayloadSpec(shapes=shapes)))


def test_a_model_of_single_samples_gets_a_query_as_several_requests():
    fixed = TensorSpec("x", "FP32", (1, 4))
    payloads = make_payloads(plan(fixed, samples=8, fanout_allowed=True))
    assert payloads.fanout == 8
    assert payloads.rows_of(np.arange(3)).tolist() == [8, 8, 8]
    with pytest.raises(ConfigError, match="8 samples do not fit"):
        make_payloads(plan(fixed, spec=PayloadSpec(samples=8), samples=8))


# files


def written(tmp_path, text: str, name: str = "b.json") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


GIVEN = (
    '{"id": "7", "inputs": '
    '[{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}]}'
)


def test_a_body_from_a_file_is_sent_as_it_is(tmp_path):
    spec = PayloadSpec(input_file=written(tmp_path, GIVEN))
    payloads = make_payloads(plan(TensorSpec("x", "FP32", (-1, 2)), spec=spec))
    assert body_of(payloads.request(0)) == GIVEN.encode()
    assert payloads.rows.tolist() == [2]


def test_lines_are_bodies_of_their_own(tmp_path):
    lines = "\n".join(json.dumps({"model": "m", "input": text}) for text in ("a", ["b", "c"]))
    spec = PayloadSpec(wire="openai", input_file=written(tmp_path, f"{lines}\n\n", "b.jsonl"))
    payloads = make_payloads(plan(spec=spec))
    assert [decoded(payloads, i)["input"] for i in range(2)] == ["a", ["b", "c"]]
    assert payloads.rows.tolist() == [1, 2]


def test_a_body_from_a_file_becomes_binary_with_all_its_members(tmp_path):
    spec = PayloadSpec(wire="binary", input_file=written(tmp_path, GIVEN))
    request = make_payloads(plan(TensorSpec("x", "FP32", (-1, 2)), spec=spec)).request(0)
    body = body_of(request)
    length = int(request.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
    header = json.loads(body[:length])
    assert header["id"] == "7"
    assert header["inputs"][0]["shape"] == [2, 2]
    assert np.frombuffer(body[length:], "<f4").tolist() == [1, 2, 3, 4]


def test_outputs_that_were_not_asked_for_are_not_missed(tmp_path):
    text = GIVEN[:-1] + ', "outputs": [{"name": "z"}]}'
    spec = PayloadSpec(input_file=written(tmp_path, text))
    check = make_payloads(plan(TensorSpec("x", "FP32", (-1, 2)), spec=spec)).check
    assert check(200, -1, b'{"outputs": [{"name": "z", "data": [1]}]}') == ""
    assert check(200, -1, b'{"outputs": []}') == "an answer without outputs"


def one_input(datatype: str, size: int, value: int) -> str:
    tensor = {"name": "x", "datatype": datatype, "shape": [size], "data": [value]}
    return json.dumps({"inputs": [tensor]})


@pytest.mark.parametrize(
    ("text", "name", "wire"),
    [
        ("{", "b.json", "json"),
        ('{"input": "a"}', "b.json", "json"),
        ('{"inputs": [{"name": "x"}]}', "b.json", "binary"),
        (one_input("FP32", 3, 1), "b.json", "binary"),
        (one_input("BF16", 1, 1), "b.json", "binary"),
        (one_input("UINT8", 1, 300), "b.json", "binary"),
        ('{"texts": []}', "b.jsonl", "openai"),
    ],
)  # fmt: skip
def test_unusable_bodies_name_the_line(tmp_path, text, name, wire):
    spec = PayloadSpec(wire=wire, input_file=written(tmp_path, text, name))
    inputs = () if wire == "openai" else (X,)
    with pytest.raises(ConfigError, match="line 1: not a body"):
        make_payloads(plan(*inputs, spec=spec))


def test_an_empty_file_and_useless_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no bodies"):
        make_payloads(plan(X, spec=PayloadSpec(input_file=written(tmp_path, "\n", "b.jsonl"))))
    spec = PayloadSpec(input_file=written(tmp_path, GIVEN), lengths=Lengths())
    with pytest.raises(ConfigError, match="would have no effect"):
        make_payloads(plan(X, spec=spec))


# answers


def check_of(*inputs: TensorSpec):
    return make_payloads(plan(*(inputs or (X,)))).check


BINARY = b'{"outputs":[{"name":"y","parameters":{"binary_data_size":4}}]}'


@pytest.mark.parametrize(
    ("status", "header_length", "body", "wrong"),
    [
        (200, -1, b'{"outputs":[{"name":"y","shape":[1],"data":[1.5]}]}', ""),
        (200, -1, b'{"outputs":[{"name":"y"},{"name":"z","data":[1]}]}', "'y' has no data"),
        (200, -1, b'{"outputs":[{"name":"z","data":[1]}]}', "outputs missing: y"),
        (200, -1, b'{"outputs":[]}', "without outputs"),
        (200, -1, b"<html>", "not a V2 answer"),
        (200, -1, BINARY, "by 4 bytes"),
        (200, 61, BINARY[:61] + b"1234", "not a V2"),
        (200, 62, BINARY + b"1234", ""),
        (200, 62, BINARY + b"12", "by 2 bytes"),
        (503, -1, b'{"error":"queue is full"}', "queue is full"),
        (401, -1, b'{"error":{"message":"no key"}}', "no key"),
        (502, -1, b"<h1>Bad\x1b[2J\ngateway</h1>", "<h1>Bad [2J gateway</h1>"),
        (500, -1, b"", "no reason given"),
    ],
)  # fmt: skip
def test_answers_are_judged(status, header_length, body, wrong):
    verdict = check_of()(status, header_length, body)
    assert (wrong in verdict) if wrong else not verdict


@given(st.binary(max_size=200), st.integers(-1, 300), st.sampled_from([200, 404]))
def test_no_answer_breaks_the_judge(body, header_length, status):
    assert isinstance(check_of()(status, header_length, body), str)


def test_embeddings_are_counted():
    check = make_payloads(plan(spec=PayloadSpec(wire="openai", distinct=1), samples=2)).check
    assert check(200, -1, b'{"data":[{"embedding":[1]},{"embedding":"AAAA"}]}') == ""
    assert "1 embeddings for 2 texts" in check(200, -1, b'{"data":[{"embedding":[1]}]}')
    assert "not a list of embeddings" in check(200, -1, b'{"data":[{}]}')
