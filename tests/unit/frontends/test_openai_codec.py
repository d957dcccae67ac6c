"""OpenAI's embeddings: what is accepted, what is refused and where, what comes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from headrace.errors import InferenceFailed, InvalidRequest
from headrace.frontends.codecs.openai import (
    MAX_INPUTS,
    EmbeddingsRequest,
    check_dimensions,
    decode_embeddings,
    encode_embeddings,
)
from headrace.types import DYNAMIC

matrices = np_st.arrays(
    np.float32,
    np_st.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def decode(**body: Any) -> EmbeddingsRequest:
    return decode_embeddings(json.dumps(body).encode())


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_texts_arrive_in_order(texts: list[str]) -> None:
    sendable = [text.encode("utf-8", "replace").decode() for text in texts]
    assert decode(model="m", input=sendable).texts == sendable


def test_one_text_is_a_list_of_one() -> None:
    assert decode(model="m", input="a") == EmbeddingsRequest("m", ["a"])


def test_everything_can_be_said() -> None:
    request = decode(
        model="m", input=["a"], encoding_format="base64", dimensions=384, user="somebody"
    )
    assert request == EmbeddingsRequest("m", ["a"], "base64", 384, "somebody")


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"input": "a"}, "model", "model"),
        ({"model": "m"}, "input", "input"),
        ({"model": 1, "input": "a"}, "model", "Expected `str`"),
        ({"model": "", "input": "a"}, "model", "empty"),
        ({"model": "m", "input": None}, "input", "got `null`"),
        ({"model": "m", "input": ""}, "input[0]", "empty text"),
        ({"model": "m", "input": ["a", ""]}, "input[1]", "empty text"),
        ({"model": "m", "input": []}, "input", "empty list"),
        ({"model": "m", "input": ["a", {}]}, "input[1]", "got `object`"),
        ({"model": "m", "input": ["a"] * (MAX_INPUTS + 1)}, "input", str(MAX_INPUTS)),
        ({"model": "m", "input": [1, 2]}, "input", "token numbers"),
        ({"model": "m", "input": [[1, 2]]}, "input", "token numbers"),
        ({"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ({"model": "m", "input": "a", "dimensions": 0}, "dimensions", "at least 1"),
        ({"model": "m", "input": "a", "dimension": 3}, "dimension", "unknown field"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, part: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(**body)
    assert caught.value.details["param"] == param
    assert part in caught.value.message


def test_the_limit_itself_is_allowed() -> None:
    assert len(decode(model="m", input=["a"] * MAX_INPUTS).texts) == MAX_INPUTS


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "empty"),
        (b"{", "truncated"),
        (b'{"model" 1}', "byte 9"),
        (b"[1]", "Expected `object`"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'{"model": "m", "input": ' + b"[" * 100_000, "input"),
    ],
)
def test_what_is_no_request_says_where_it_ends(body: bytes, part: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_embeddings(body)
    assert part in caught.value.message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_invalid_one(body: bytes) -> None:
    try:
        request = decode_embeddings(body)
    except InvalidRequest:
        return
    assert request.texts


def test_dimensions_are_the_models_or_nothing() -> None:
    check_dimensions(EmbeddingsRequest("m", ["a"]), 384)
    check_dimensions(EmbeddingsRequest("m", ["a"], dimensions=384), 384)
    with pytest.raises(InvalidRequest, match="384 dimensions, 128 were asked for") as caught:
        check_dimensions(EmbeddingsRequest("m", ["a"], dimensions=128), 384)
    assert caught.value.details["param"] == "dimensions"


def test_dimensions_that_nobody_knows_cannot_be_asked_for() -> None:
    check_dimensions(EmbeddingsRequest("m", ["a"]), DYNAMIC)
    with pytest.raises(InvalidRequest, match="does not say"):
        check_dimensions(EmbeddingsRequest("m", ["a"], dimensions=128), DYNAMIC)


@given(matrices)
def test_floats_come_back_exactly(vectors: np.ndarray) -> None:
    body = json.loads(encode_embeddings("m", vectors, encoding="float", tokens=7))
    assert body["object"] == "list"
    assert body["model"] == "m"
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item["index"] for item in body["data"]] == list(range(len(vectors)))
    assert {item["object"] for item in body["data"]} == {"embedding"}
    got = np.array([item["embedding"] for item in body["data"]], dtype=np.float32)
    np.testing.assert_array_equal(got, vectors)


@given(matrices)
def test_base64_is_little_endian_float32(vectors: np.ndarray) -> None:
    body = json.loads(encode_embeddings("m", vectors, encoding="base64", tokens=1))
    for item, vector in zip(body["data"], vectors, strict=True):
        got = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
        np.testing.assert_array_equal(got, vector)


@pytest.mark.parametrize("layout", [">f4", "f8", "transposed"])
def test_base64_does_not_depend_on_the_layout_in_memory(layout: str) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    given_ = (
        np.asfortranarray(vectors) if layout == "transposed" else vectors.astype(np.dtype(layout))
    )
    assert encode_embeddings("m", given_, encoding="base64", tokens=1) == encode_embeddings(
        "m", vectors, encoding="base64", tokens=1
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_what_is_no_number_is_the_models_fault(bad: float, encoding: Any) -> None:
    vectors = np.array([[0.0, bad]], dtype=np.float32)
    with pytest.raises(InferenceFailed, match="NaN or infinity"):
        encode_embeddings("m", vectors, encoding=encoding, tokens=1)
