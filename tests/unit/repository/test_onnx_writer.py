from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from headrace.errors import ConfigError
from headrace.repository.onnx_writer import Node, chain, model_bytes, write_model
from headrace.types import DTYPE_OF, TensorSpec
from tests.unit.repository.onnx_trial import execute

NUMERIC = [name for name in DTYPE_OF if name not in ("BYTES", "BF16")]


def identity(datatype: str, shape: tuple[int, ...]) -> bytes:
    return model_bytes(
        [Node("Identity", ["x"], ["y"])],
        inputs=[TensorSpec("x", datatype, shape)],
        outputs=[TensorSpec("y", datatype, shape)],
    )


def constants(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    """What ``onnx`` reads back of the arrays we wrote as initializers."""
    data = model_bytes(
        [Node("Identity", ["x"], ["y"])],
        inputs=[TensorSpec("x", "FP32", (1,))],
        outputs=[TensorSpec("y", "FP32", (1,))],
        initializers=arrays,
    )
    graph = onnx.load_from_string(data).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def attribute(value: object) -> object:
    node = Node("Identity", ["x"], ["y"], {"a": value})  # type: ignore[dict-item]  # any kind
    data = model_bytes([node], inputs=[], outputs=[])
    return onnx.helper.get_attribute_value(onnx.load_from_string(data).graph.node[0].attribute[0])


@pytest.mark.parametrize("datatype", sorted(DTYPE_OF))
def test_every_datatype_is_one_that_onnx_accepts(datatype: str) -> None:
    model = onnx.load_from_string(identity(datatype, (-1, 3)))
    onnx.checker.check_model(model, full_check=True)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert shape[1].dim_value == 3


def test_the_first_free_dimension_is_one_batch_and_others_are_their_own() -> None:
    data = model_bytes(
        [],
        inputs=[TensorSpec("a", "FP32", (-1, -1)), TensorSpec("b", "FP32", (-1, -1))],
        outputs=[],
    )
    a, b = (tensor.type.tensor_type.shape.dim for tensor in onnx.load_from_string(data).graph.input)
    assert a[0].dim_param == b[0].dim_param
    assert a[1].dim_param != b[1].dim_param


@given(
    array=st.sampled_from(NUMERIC).flatmap(
        lambda name: hnp.arrays(
            DTYPE_OF[name], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
        )
    )
)
def test_initializers_come_back_as_they_were(array: np.ndarray) -> None:
    back = constants(weight=array)["weight"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_an_array_in_another_byte_order_or_layout_is_the_same_array() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert constants(weight=array)["weight"].tolist() == array.tolist()


def test_texts_come_back_as_they_were() -> None:
    back = constants(words=np.array(["moon", "größer", ""], dtype=object))["words"]
    assert [word.decode() if isinstance(word, bytes) else word for word in back] == [
        "moon",
        "größer",
        "",
    ]


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_attribute_comes_back(value: int) -> None:
    assert attribute(value) == value


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_a_list_of_integers_comes_back(values: list[int]) -> None:
    assert list(attribute(values)) == values  # type: ignore[call-overload]  # a list attribute


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_a_list_of_floats_comes_back(values: list[float]) -> None:
    assert list(attribute(values)) == values  # type: ignore[call-overload]  # a list attribute


def test_other_attributes_come_back() -> None:
    assert attribute("LOWER") == b"LOWER"
    assert attribute(0.5) == 0.5
    assert attribute(["a", "b"]) == [b"a", b"b"]
    tensor = attribute(np.array([1.5, 2.5]))
    assert numpy_helper.to_array(tensor).tolist() == [1.5, 2.5]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[], [1, "a"], [object()]])
def test_a_list_of_no_one_kind_is_refused(value: list[object]) -> None:
    with pytest.raises(ConfigError, match="attribute 'a'"):
        attribute(value)


def test_what_onnx_has_no_name_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype complex128"):
        constants(weight=np.zeros(1, complex))
    with pytest.raises(ConfigError, match="'FP8'"):
        identity("FP8", (1,))


def test_a_small_network_computes_what_numpy_computes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = (16, 64, 64, 2)
    weights: dict[str, np.ndarray] = {}
    operators: list[tuple[str, list[str]]] = []
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{layer}"] = rng.normal(size=(rows, columns)).astype(np.float32)
        weights[f"b{layer}"] = rng.normal(size=columns).astype(np.float32)
        operators += [("Gemm", [f"w{layer}", f"b{layer}"]), ("Relu", [])]
    path = write_model(
        tmp_path / "model.onnx",
        chain(operators, "x", "y"),
        inputs=[TensorSpec("x", "FP32", (-1, 16))],
        outputs=[TensorSpec("y", "FP32", (-1, 2))],
        initializers=weights,
    )
    onnx.checker.check_model(str(path), full_check=True)
    x = rng.normal(size=(5, 16)).astype(np.float32)
    expected = x
    for layer in range(3):
        expected = np.maximum(expected @ weights[f"w{layer}"] + weights[f"b{layer}"], 0)
    np.testing.assert_allclose(execute(path, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [13, 17, 20, 21])
def test_the_file_version_is_one_that_may_carry_the_opset(opset: int) -> None:
    data = model_bytes(
        [Node("Identity", ["x"], ["y"])],
        inputs=[TensorSpec("x", "FP32", (1,))],
        outputs=[TensorSpec("y", "FP32", (1,))],
        opset=opset,
    )
    onnx.checker.check_model(onnx.load_from_string(data))
