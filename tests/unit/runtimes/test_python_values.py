"""What ``predict`` is handed, and what of its answers is converted or refused."""

from __future__ import annotations

import warnings

import hypothesis.extra.numpy as nps
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InferenceFailed, InvalidRequest
from headrace.runtimes.python.signature import Argument, Signature
from headrace.runtimes.python.values import rows_of, to_arguments, to_outputs
from headrace.types import DTYPE_OF, TensorSpec


def returns(*specs, single=True):
    outputs = tuple(
        TensorSpec(f"o{index}", datatype, shape) for index, (datatype, shape) in enumerate(specs)
    )
    return Signature((), outputs, single)


def converted(datatype, value, shape=(-1,), rows=None):
    return to_outputs(returns((datatype, shape)), value, rows)[0]


def texts(*elements):
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


# What predict is handed


def argument(datatype, container, shape=(-1,)):
    return Argument(TensorSpec("x", datatype, shape), container)


@pytest.mark.parametrize(
    ("one", "array", "expected"),
    [
        (argument("FP32", "list"), np.float32([1, 2.5]), [1.0, 2.5]),
        (argument("INT8", "list", (-1, 2)), np.int8([[1, 2]]), [[1, 2]]),
        (argument("BYTES", "list"), texts(b"\xff", b""), [b"\xff", b""]),
        (argument("BYTES", "text"), texts("né".encode(), b""), ["né", ""]),
        (argument("BYTES", "text", (-1, 1)), texts(b"a", b"b").reshape(2, 1), [["a"], ["b"]]),
        (argument("BYTES", "text"), texts(), []),
    ],
)
def test_lists_hold_python_s_own_values(one, array, expected):
    value = to_arguments([one], [array])["x"]
    assert value == expected
    assert all(type(a) is type(b) for a, b in zip(value, expected, strict=True))


def test_an_array_is_handed_over_as_it_is_and_what_was_left_out_is_missing():
    array = np.zeros((2, 3))
    both = [argument("FP64", "array"), Argument(TensorSpec("y", "FP64", (-1,)), "array")]
    arguments = to_arguments(both, [array, None])
    assert list(arguments) == ["x"]
    assert arguments["x"] is array


def test_text_that_is_not_utf8_names_its_input():
    with pytest.raises(InvalidRequest, match=r"'x' is text.*not UTF-8") as caught:
        to_arguments([argument("BYTES", "text")], [texts(b"ok", b"\xff\xfe")])
    assert caught.value.details == {"input": "x"}


def test_rows_come_from_the_first_input_that_is_there():
    assert rows_of([None, np.zeros((7, 2)), np.zeros((7,))]) == 7
    assert rows_of([None]) is None


# What it returns


@given(
    st.sampled_from([name for name in DTYPE_OF if name != "BYTES"]).flatmap(
        lambda name: st.tuples(
            st.just(name), nps.arrays(DTYPE_OF[name], nps.array_shapes(max_dims=3, min_side=0))
        )
    )
)
def test_an_array_of_the_right_dtype_passes_untouched(pair):
    datatype, array = pair
    result = converted(datatype, array, (-1,) * array.ndim, rows=len(array))
    assert result is array


@given(
    st.sampled_from(["FP16", "FP32", "FP64"]),
    nps.arrays(nps.floating_dtypes(endianness="?"), st.integers(0, 6)),
)
def test_floats_of_any_width_and_byte_order_are_cast_as_ieee_says(datatype, array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of overflow; the result is what counts
        expected = array.astype(DTYPE_OF[datatype])
    result = converted(datatype, array)
    assert result.dtype == DTYPE_OF[datatype]
    assert np.array_equal(result, expected, equal_nan=True)


INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]


@given(
    st.sampled_from(INTEGERS),
    st.one_of(nps.integer_dtypes(), nps.unsigned_integer_dtypes()).flatmap(
        lambda dtype: nps.arrays(dtype, st.integers(0, 6))
    ),
)
def test_integers_are_cast_when_every_value_fits_and_refused_otherwise(datatype, array):
    limits = np.iinfo(DTYPE_OF[datatype])
    if all(limits.min <= value <= limits.max for value in array.tolist()):
        result = converted(datatype, array)
        assert result.dtype == DTYPE_OF[datatype]
        assert result.tolist() == array.tolist()
    else:
        with pytest.raises(InferenceFailed, match="expected " + datatype):
            converted(datatype, array)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", np.array([1, 2])),
        ("FP32", np.array([True])),
        ("FP32", np.array([1j])),
        ("FP32", [True]),
        ("FP32", ["1"]),
        ("FP32", [1, None]),
        ("INT64", np.array([1.0])),
        ("INT64", [1.5]),
        ("INT64", np.array([True])),
        ("INT64", [2**70]),
        ("BOOL", np.array([1])),
        ("BOOL", [0, 1]),
        ("BF16", np.float32([1])),
        ("BF16", np.int64([1])),
        ("BYTES", [1, 2]),
        ("BYTES", np.array([1.5])),
        ("BYTES", [None]),
    ],
)
def test_another_kind_of_value_is_refused_by_name(datatype, value):
    with pytest.raises(InferenceFailed, match="as 'o0'") as caught:
        converted(datatype, value)
    assert caught.value.details["output"] == "o0"


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("FP32", [1, 2.5], [1.0, 2.5]),
        ("FP32", [1, 2], [1.0, 2.0]),
        ("FP64", (1, 2), [1.0, 2.0]),
        ("INT8", [1, -128], [1, -128]),
        ("BOOL", [True, False], [True, False]),
        ("FP32", [], []),
        ("INT64", [], []),
        ("BF16", np.uint16([0x3F80]), [0x3F80]),
        ("BYTES", ["né", b"\x00\xff", bytearray(b"x"), memoryview(b"y")], None),
        ("BYTES", np.array(["né", "b"]), ["né".encode(), b"b"]),
        ("BYTES", np.array([b"a", b"bc"]), [b"a", b"bc"]),
        ("BYTES", [], []),
    ],
)
def test_lists_and_near_relatives_are_taken(datatype, value, expected):
    if expected is None:
        expected = ["né".encode(), b"\x00\xff", b"x", b"y"]
    result = converted(datatype, value)
    assert result.dtype == DTYPE_OF[datatype]
    assert result.tolist() == expected


def test_nested_lists_and_lists_of_rows_are_tables():
    assert converted("FP32", [[1, 2], [3, 4]], (-1, 2), rows=2).tolist() == [[1, 2], [3, 4]]
    assert converted("FP32", [np.ones(2), np.zeros(2)], (-1, 2)).tolist() == [[1, 1], [0, 0]]
    assert converted("BYTES", [["a"], ["b"]], (-1, 1)).tolist() == [[b"a"], [b"b"]]


def test_whatever_numpy_can_take_is_taken_and_its_own_complaint_is_passed_on():
    class Foreign:
        def __init__(self, dtype):
            self.dtype = dtype

        def __array__(self, dtype=None, copy=None):
            if self.dtype is None:
                raise RuntimeError("call detach() first")
            return np.ones(3, self.dtype)

    assert converted("FP32", Foreign("f8"), rows=3).tolist() == [1, 1, 1]
    with pytest.raises(InferenceFailed, match=r"Foreign that numpy cannot take: call detach\(\)"):
        converted("FP32", Foreign(None))


@pytest.mark.parametrize(
    ("shape", "value", "says"),
    [
        ((-1, 4), np.zeros((2, 5)), r"shape \[2, 5\] as 'o0', expected FP32\[-1, 4\]"),
        ((-1, 4), np.zeros(4), r"shape \[4\]"),
        ((-1,), np.float32(1), r"shape \[\]"),
        ((-1,), 1.0, r"shape \[\]"),
        ((-1, 4), np.zeros((3, 4)), "3 rows as 'o0', expected 2, as many as the batch"),
        ((-1,), [1.0], "1 rows as 'o0', expected 2"),
        ((-1, 2), [[1.0, 2.0], [3.0]], "numpy cannot take"),
        ((-1,), "a text", "expected FP32"),
    ],
)
def test_wrong_rows_and_shapes_say_what_came_and_what_was_expected(shape, value, says):
    with pytest.raises(InferenceFailed, match=says):
        converted("FP32", value, shape, rows=2)


def test_a_text_that_utf8_cannot_hold_is_refused():
    with pytest.raises(InferenceFailed, match="UTF-8 cannot hold"):
        converted("BYTES", ["\ud800"])


TWO = returns(("FP32", (-1,)), ("BYTES", (-1,)), single=False)


@pytest.mark.parametrize(
    "value",
    [
        ([1.0], ["a"]),
        {"o1": ["a"], "o0": [1.0]},
        __import__("collections").namedtuple("Pair", "o1 o0")(["a"], [1.0]),
    ],
)
def test_several_outputs_come_as_a_tuple_in_order_or_by_name(value):
    first, second = to_outputs(TWO, value, 1)
    assert first.tolist() == [1.0]
    assert second.tolist() == [b"a"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (([1.0],), "a tuple of 1, expected one of 2: o0, o1"),
        ([[1.0], ["a"]], "a list, expected the outputs o0, o1"),
        (None, "a NoneType, expected the outputs"),
        ({"o0": [1.0]}, "the outputs o0, expected the outputs o0, o1"),
        ({"o0": [1.0], "o1": ["a"], "more": 1}, "o0, o1, more, expected"),
        ({}, "the outputs nothing, expected"),
    ],
)
def test_missing_and_additional_outputs_are_named(value, says):
    with pytest.raises(InferenceFailed, match=says):
        to_outputs(TWO, value, 1)
