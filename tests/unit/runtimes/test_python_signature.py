"""Type hints of ``predict`` -> inputs and outputs; what is unclear says which line to write."""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ModelLoadError
from headrace.runtimes.python.hints import HintError, parse_spec, read_hint
from headrace.runtimes.python.options import TensorOption, parse_options
from headrace.runtimes.python.signature import read_signature
from headrace.types import DTYPE_OF, TensorSpec

Table = Annotated[np.ndarray, "FP32[N,4]"]

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
FREE = st.one_of(st.just("-1"), NAMES)
DIMENSION = st.one_of(FREE, st.integers(1, 10_000).map(str))
SPACE = st.sampled_from(["", " ", "  "])


@given(st.sampled_from(list(DTYPE_OF)), FREE, st.lists(DIMENSION, max_size=5), SPACE)
def test_every_well_formed_spec_is_read(datatype, first, rest, space):
    text = f"{datatype}{space}[{space}{(space + ',' + space).join([first, *rest])}{space}]"
    expected = tuple(int(part) if part.isdecimal() else -1 for part in [first, *rest])
    assert parse_spec(text) == (datatype, expected)


@given(st.one_of(st.text(), st.text("FP32[]N,-1 0x²", max_size=14)))
def test_any_other_text_is_an_error_of_ours_or_a_valid_shape(text):
    try:
        datatype, shape = parse_spec(text)
    except HintError:
        return
    assert datatype in DTYPE_OF
    assert shape[0] == -1
    assert all(dimension == -1 or dimension > 0 for dimension in shape)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FP32", "form DATATYPE"),
        ("FP32[]", "'' in"),
        ("FP32[N,]", "'' in"),
        ("FP32[N,0]", "'0' in"),
        ("FP32[N,-2]", "'-2' in"),
        ("FP32[8,16]", "first dimension is the rows"),
        ("FLOAT[N]", "'FLOAT' is not one of BOOL"),
        ("fp32[N]", "'fp32' is not one of BOOL"),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(text, says):
    with pytest.raises(HintError, match=says):
        parse_spec(text)


@pytest.mark.parametrize(
    ("hint", "datatype", "shape", "container"),
    [
        (Annotated[np.ndarray, "FP32[-1,3]"], "FP32", (-1, 3), "array"),
        (Annotated[np.ndarray, "BF16[N]"], "BF16", (-1,), "array"),
        (Annotated[npt.NDArray[np.uint16], "BF16[N]"], "BF16", (-1,), "array"),
        (Annotated[npt.NDArray[np.floating], "FP16[N]"], "FP16", (-1,), "array"),
        (Annotated[np.ndarray, 42, "FP32[N]", "a note"], "FP32", (-1,), "array"),
        (Annotated[Any, "UINT8[N,H,W,3]"], "UINT8", (-1, -1, -1, 3), "array"),
        (npt.NDArray[np.float32], "FP32", (-1, -1), "array"),
        (npt.NDArray[np.bool_], "BOOL", (-1, -1), "array"),
        (npt.NDArray[np.object_], "BYTES", (-1, -1), "array"),
        (np.ndarray[tuple[int], np.dtype[np.int8]], "INT8", (-1,), "array"),
        (
            np.ndarray[tuple[int, Literal[16], int], np.dtype[np.float64]],
            "FP64",
            (-1, 16, -1),
            "array",
        ),
        (list[str], "BYTES", (-1,), "text"),
        (list[bytes], "BYTES", (-1,), "list"),
        (list[float], "FP64", (-1,), "list"),
        (list[int], "INT64", (-1,), "list"),
        (list[bool], "BOOL", (-1,), "list"),
        (list[list[str]], "BYTES", (-1, -1), "text"),
        (list[list[list[float]]], "FP64", (-1, -1, -1), "list"),
        (Annotated[list[float], "FP32[N]"], "FP32", (-1,), "list"),
        (Annotated[list[list[int]], "UINT8[N,3]"], "UINT8", (-1, 3), "list"),
        (Annotated[list[str] | None, "BYTES[N]"], "BYTES", (-1,), "text"),
        (typing.Optional[list[int]], "INT64", (-1,), "list"),  # noqa: UP045 - the older spelling
        (list[int] | None, "INT64", (-1,), "list"),
    ],
)
def test_the_vocabulary(hint, datatype, shape, container):
    assert read_hint(hint) == (datatype, shape, container)


@pytest.mark.parametrize(
    ("hint", "says"),
    [
        (np.ndarray, "datatype and the shape"),
        (float, r"write list\[float\]"),
        (str, r"write list\[str\]"),
        (Any, "does not say which tensor"),
        (list, "does not say which tensor"),
        (list[Any], "does not say which tensor"),
        (list[complex], "list of complex"),
        (dict[str, int], "does not say which tensor"),
        ([1, 2], "does not say which tensor"),
        (int | str, "does not say which tensor"),
        (npt.NDArray[np.complex64], "array of complex64"),
        (npt.NDArray[np.floating], "array of floating"),
        (npt.NDArray[np.str_], "array of str_"),
        (npt.NDArray[Any], "array of"),
        (Annotated[list[str], "FP32[N]"], r"means BYTES\[-1\]"),
        (Annotated[list[int], "FP32[N]"], "contradicts"),
        (Annotated[list[float], "FP32[N,4]"], "contradicts"),
        (Annotated[npt.NDArray[np.float32], "FP64[N]"], "contradicts"),
        (Annotated[list[str], "a note", "BYTES[N]"], "form DATATYPE"),
        (Annotated[dict, "FP64[N]"], "does not say which tensor"),
        (np.ndarray[tuple[Literal[4], int], np.dtype[np.int8]], "rows of the batch"),
    ],
)
def test_a_hint_that_does_not_say_is_refused_with_the_reason(hint, says):
    with pytest.raises(HintError, match=says):
        read_hint(hint)


def test_a_function_s_parameters_are_the_inputs_and_defaults_make_them_optional():
    def predict(image: Table, *, boost: list[float] | None = None) -> list[str]:
        raise NotImplementedError

    signature = read_signature(predict)
    assert signature.inputs == (
        TensorSpec("image", "FP32", (-1, 4)),
        TensorSpec("boost", "FP64", (-1,), optional=True),
    )
    assert signature.outputs == (TensorSpec("output", "BYTES", (-1,)),)
    assert signature.single


def test_self_is_no_input():
    class Model:
        def predict(self, x: Table) -> Table:
            raise NotImplementedError

    assert [spec.name for spec in read_signature(Model().predict).inputs] == ["x"]


class Scores(TypedDict, total=False):
    label: list[str]
    score: typing.Required[Annotated[np.ndarray, "FP32[N]"]]


class Box(NamedTuple):
    corners: Annotated[np.ndarray, "INT32[N,4]"]
    sure: list[bool]


@pytest.mark.parametrize(
    ("hint", "names", "single"),
    [
        (Table, ["output"], True),
        (tuple[Table], ["output_0"], False),
        (tuple[Table, list[str]], ["output_0", "output_1"], False),
        (Scores, ["label", "score"], False),
        (Box, ["corners", "sure"], False),
    ],
)
def test_outputs_are_named_by_the_fields_or_by_number(hint, names, single):
    def predict(x: Table):
        raise NotImplementedError

    predict.__annotations__["return"] = hint
    signature = read_signature(predict)
    assert [spec.name for spec in signature.outputs] == names
    assert signature.single is single


def test_an_output_may_be_of_any_type_beside_its_spec():
    class Foreign: ...

    def predict(x: Table) -> Table:
        raise NotImplementedError

    predict.__annotations__["return"] = Annotated[Foreign, "FP32[N,2]"]
    assert read_signature(predict).outputs == (TensorSpec("output", "FP32", (-1, 2)),)


def _no_hint(image, scale=1.0): ...


def _no_return(image: Table): ...


def _no_inputs() -> Table: ...


def _keywords(**features: Table) -> Table: ...


def _a_dict(image: Table) -> dict[str, Table]: ...


def _open_tuple(image: Table) -> tuple[Table, ...]: ...


@pytest.mark.parametrize(
    ("function", "says", "line"),
    [
        (
            _no_hint,
            "'image' has no type hint",
            'def _no_hint(image: Annotated[np.ndarray, "FP32[N,16]"], scale: Annotated',
        ),
        (
            _no_return,
            "return value has no type hint",
            "(image: Annotated[ndarray, 'FP32[N,4]']) ->",
        ),
        (_no_inputs, "has no inputs", "(x: Annotated"),
        (_keywords, "does not say which inputs", "(x: Annotated"),
        (_a_dict, "use a TypedDict", "-> Annotated"),
        (_open_tuple, "how many outputs", "-> Annotated"),
    ],
)
def test_a_missing_hint_is_answered_with_the_line_to_write(function, says, line):
    with pytest.raises(ModelLoadError, match=says) as caught:
        read_signature(function)
    assert line in caught.value.hint


@pytest.mark.parametrize("source", ["def f(x, /): ...", "def f(*x): ..."])
def test_parameters_that_have_no_name_to_be_given_by_are_refused(source):
    scope: dict[str, Any] = {}
    exec(source, scope)
    with pytest.raises(ModelLoadError, match="cannot be given by name"):
        read_signature(scope["f"])


def test_a_hint_that_cannot_be_evaluated_is_a_load_error():
    def predict(x: NoSuchName) -> Table: ...  # noqa: F821 - the point

    with pytest.raises(ModelLoadError, match="NoSuchName"):
        read_signature(predict)


def option(name, datatype="FP32", shape=(-1, 4), **rest):
    return TensorOption(name, datatype, shape, **rest)


def test_the_configuration_overrides_the_hints_and_defaults_stay_optional():
    def predict(image, text: list[str] = ()): ...

    signature = read_signature(
        predict,
        inputs=[option("text", "BYTES", (-1,)), option("image")],
        outputs=[option("a"), option("b", "INT64", (-1,))],
    )
    assert signature.inputs == (
        TensorSpec("text", "BYTES", (-1,), optional=True),
        TensorSpec("image", "FP32", (-1, 4)),
    )
    assert [argument.container for argument in signature.arguments] == ["text", "array"]
    assert [spec.name for spec in signature.outputs] == ["a", "b"]
    assert not signature.single


def test_declared_inputs_may_go_into_keywords():
    signature = read_signature(_keywords, inputs=[option("a"), option("b", optional=True)])
    assert [spec.optional for spec in signature.inputs] == [False, True]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "does not name its input 'image'"),
        ([option("other")], "does not name its input 'image'"),
        ([option("image"), option("other")], "names 'other'"),
        ([option("image", optional=True)], "optional and has no default"),
        ([option("image", "FP33")], "'FP33' is not one of"),
        ([option("image", shape=(4, 4))], "rows of the batch"),
        ([option("image", shape=())], "rows of the batch"),
        ([option("image", shape=(-1, 0))], "neither -1 nor positive"),
        ([option("image"), option("image")], "more than once"),
    ],
)
def test_a_declaration_that_does_not_fit_the_function_is_refused(inputs, says):
    with pytest.raises(ModelLoadError, match=says):
        read_signature(_no_return, inputs=inputs, outputs=[option("y")])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"entri": "Model"}, "entri"),
        ({"isolation": "fork"}, "fork"),
        ({"inputs": [{"name": "x", "datatype": "FP32"}]}, "shape"),
        ({"start_timeout_s": 0}, "start_timeout_s"),
        ({"max_shared_bytes": "much"}, "max_shared_bytes"),
    ],
)
def test_an_option_that_is_not_one_is_named_and_the_hint_lists_them(options, says):
    with pytest.raises(ModelLoadError, match=says) as caught:
        parse_options(options, model="m")
    assert "isolation" in caught.value.hint
