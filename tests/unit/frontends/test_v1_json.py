"""Rows as JSON objects: what becomes of them, and what is said of wrong ones."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.frontends.codecs import v1_json
from headrace.types import DTYPE_OF, Tensor, TensorSpec

TWO = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "BYTES", (-1,)))
ONE = (TensorSpec("n", "INT8", (-1,)),)


def test_objects_become_columns():
    a, b = v1_json.tensors_of([{"a": [1, 2], "b": "x"}, {"a": [3, 4.5], "b": "ü"}], TWO)

    assert a.data.tolist() == [[1, 2], [3, 4.5]]
    assert a.data.dtype == np.float32
    assert b.data.tolist() == [b"x", "ü".encode()]


def test_bare_values_do_where_there_is_one_input():
    (n,) = v1_json.tensors_of([1, -2, {"n": 3}], ONE)

    assert n.data.tolist() == [1, -2, 3]


def test_bytes_travel_as_base64():
    spec = (TensorSpec("image", "BYTES", (-1,)),)
    bare, named = (
        v1_json.tensors_of([value], spec)[0].data.tolist()
        for value in ({"b64": "/w=="}, {"image": {"b64": "/w=="}})
    )

    assert bare == named == [b"\xff"]


def test_optional_inputs_may_be_left_out_by_all_but_not_by_some():
    specs = (*ONE, TensorSpec("o", "FP32", (-1,), optional=True))

    assert len(v1_json.tensors_of([{"n": 1}, {"n": 2}], specs)) == 1
    with pytest.raises(InvalidRequest, match="instance 1 has no 'o'"):
        v1_json.tensors_of([{"n": 1, "o": 1.0}, {"n": 2}], specs)


@pytest.mark.parametrize(
    ("instances", "specs", "text"),
    [
        ([{"a": [1, 2]}], TWO, "instance 0 has no 'b'"),
        ([{"a": [1, 2], "b": "", "c": 1}], TWO, "unknown key 'c'"),
        ([5], TWO, "instance 0 is no object, and the model has 2 inputs"),
        ([{"a": [1, "x"], "b": ""}], TWO, "'a' are not FP32"),
        ([{"a": [1, 2], "b": ""}, {"a": [1], "b": ""}], TWO, "'a' are not FP32"),
        ([{"a": [1, 2], "b": 7}], TWO, "row 0: expected a text"),
        ([{"b64": "&"}], (TensorSpec("i", "BYTES", (-1,)),), "not base64"),
        ([1.5], ONE, "'n' are not INT8.*float64"),
        ([200], ONE, "out of the bounds of INT8"),
        ([True], ONE, "'n' are not INT8.*bool"),
    ],
)
def test_wrong_rows_are_named(instances, specs, text):
    with pytest.raises(InvalidRequest, match=text):
        v1_json.tensors_of(instances, specs)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"instances": []}', b'{"instances": 1}'])
def test_a_body_that_holds_no_rows_is_refused(body):
    with pytest.raises(InvalidRequest):
        v1_json.decode_instances(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(json_values, min_size=1, max_size=3),
    st.sampled_from(sorted(DTYPE_OF)),
    st.integers(1, 3),
)
def test_no_json_is_more_than_a_refused_request(instances, datatype, rank):
    specs = (TensorSpec("x", datatype, (-1,) * rank), TensorSpec("y", datatype, (-1,)))
    for signature in (specs, specs[:1]):
        with contextlib.suppress(InvalidRequest):
            v1_json.tensors_of(instances, signature)


def test_predictions_are_one_for_each_row():
    labels = np.empty(2, dtype=object)
    labels[:] = [b"yes", b"\xff"]
    several = [
        Tensor("label", "BYTES", (2,), labels),
        Tensor("p", "FP32", (2, 2), np.array([[0, 1], [0.5, 0.5]], dtype=np.float32)),
    ]

    assert json.loads(v1_json.encode_predictions(several)) == {
        "predictions": [
            {"label": "yes", "p": [0, 1]},
            {"label": {"b64": "/w=="}, "p": [0.5, 0.5]},
        ]
    }
    assert json.loads(v1_json.encode_predictions(several[1:])) == {
        "predictions": [[0, 1], [0.5, 0.5]]
    }
