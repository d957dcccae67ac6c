"""Small ONNX models for tests and benchmarks, made in milliseconds, with what they answer.

Every function returns the bytes of an ``.onnx`` file; ``*_reference`` says in numpy what the
model computes. Needs the package ``onnx`` (extra ``text`` or ``sklearn``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.types import DTYPE_OF

MLP_WIDTHS = (16, 64, 64, 2)
"""The tiny MLP of the benchmarks: cheap enough that what is measured is the server."""

_OPSET = 18
_IR_VERSION = 10
"""Read by every ONNX Runtime since 1.18 and every OpenVINO since 2024."""

_ELEMENT = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Axes = Sequence[int | str | None]


def mlp(seed: int = 0, widths: Sequence[int] = MLP_WIDTHS) -> bytes:
    """``x`` FP32 ``[batch, widths[0]]`` -> ``y`` FP32 ``[batch, widths[-1]]``, ReLU between."""
    nodes, weights, previous = [], [], "x"
    layers = _mlp_layers(seed, widths)
    for index, (weight, bias) in enumerate(layers):
        last = index == len(layers) - 1
        result = "y" if last else f"linear_{index}"
        weights += [
            numpy_helper.from_array(weight, f"weight_{index}"),
            numpy_helper.from_array(bias, f"bias_{index}"),
        ]
        nodes.append(
            helper.make_node("Gemm", [previous, f"weight_{index}", f"bias_{index}"], [result])
        )
        if not last:
            previous = f"hidden_{index}"
            nodes.append(helper.make_node("Relu", [result], [previous]))
    inputs = [_tensor("x", "FP32", ("batch", widths[0]))]
    return _model(nodes, inputs, [_tensor("y", "FP32", ("batch", widths[-1]))], weights)


def mlp_reference(x: np.ndarray, seed: int = 0, widths: Sequence[int] = MLP_WIDTHS) -> np.ndarray:
    """What :func:`mlp` answers, FP32 ``[batch, widths[-1]]``."""
    *hidden, (weight, bias) = _mlp_layers(seed, widths)
    for matrix, offset in hidden:
        x = np.maximum(x @ matrix + offset, 0)
    return np.asarray(x @ weight + bias)


def identity(datatype: str, shape: Axes = ("batch", 4)) -> bytes:
    """``x`` -> ``y``, unchanged, of any V2 datatype."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _model([node], [_tensor("x", datatype, shape)], [_tensor("y", datatype, shape)])


def embedder(seed: int = 0, vocabulary: int = 100, width: int = 8) -> bytes:
    """``input_ids`` and ``attention_mask`` INT64 ``[batch, sequence]`` -> ``embedding``.

    FP32 ``[batch, width]``: the mean of the rows of a table, over the tokens that the mask
    keeps. Padding is harmless as long as every row keeps at least one token.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["tokens", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["embedding"]),
    ]
    weights = [
        numpy_helper.from_array(_table(seed, vocabulary, width), "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    axes = ("batch", "sequence")
    inputs = [_tensor("input_ids", "INT64", axes), _tensor("attention_mask", "INT64", axes)]
    return _model(nodes, inputs, [_tensor("embedding", "FP32", ("batch", width))], weights)


def embedder_reference(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    seed: int = 0,
    vocabulary: int = 100,
    width: int = 8,
) -> np.ndarray:
    """What :func:`embedder` answers, FP32 ``[batch, width]``."""
    weights = attention_mask[:, :, None].astype(np.float32)
    total = (_table(seed, vocabulary, width)[input_ids] * weights).sum(1)
    return np.asarray(total / weights.sum(1))


def accumulator(datatype: str = "INT32", width: int = 1) -> bytes:
    """Adds up what a sequence sends: its state goes in and comes out.

    ``INPUT``, ``START`` and ``STATE_IN`` ``[batch, width]`` (``START`` ``[batch, 1]``) ->
    ``OUTPUT`` and ``STATE_OUT``: the state, 0 where ``START`` is not 0, and ``INPUT``.
    """
    wide, narrow = ("batch", width), ("batch", 1)
    weights = [
        numpy_helper.from_array(np.array([[value]], DTYPE_OF[datatype]), name)
        for name, value in (("one", 1), ("zero", 0))
    ]
    nodes = [
        helper.make_node("Equal", ["START", "zero"], ["goes_on"]),
        helper.make_node("Where", ["goes_on", "one", "zero"], ["kept"]),
        helper.make_node("Mul", ["STATE_IN", "kept"], ["before"]),
        helper.make_node("Add", ["before", "INPUT"], ["STATE_OUT"]),
        helper.make_node("Identity", ["STATE_OUT"], ["OUTPUT"]),
    ]
    inputs = [
        _tensor("INPUT", datatype, wide),
        _tensor("START", datatype, narrow),
        _tensor("STATE_IN", datatype, wide),
    ]
    outputs = [_tensor("OUTPUT", datatype, wide), _tensor("STATE_OUT", datatype, wide)]
    return _model(nodes, inputs, outputs, weights)


def history() -> bytes:
    """Answers all that a sequence has sent so far: a state that grows, and no rows.

    ``INPUT`` FP32 ``[1]`` and ``STATE_IN`` FP32 ``[seen]`` -> ``OUTPUT`` and ``STATE_OUT``: the
    state with the input behind it.
    """
    nodes = [
        helper.make_node("Concat", ["STATE_IN", "INPUT"], ["STATE_OUT"], axis=0),
        helper.make_node("Identity", ["STATE_OUT"], ["OUTPUT"]),
    ]
    inputs = [_tensor("INPUT", "FP32", (1,)), _tensor("STATE_IN", "FP32", ("seen",))]
    outputs = [_tensor("OUTPUT", "FP32", ("all",)), _tensor("STATE_OUT", "FP32", ("all",))]
    return _model(nodes, inputs, outputs)


def optional_bias() -> bytes:
    """``x`` FP32 ``[batch, 4]``, and ``bias`` of the same shape that may be left out -> ``y``."""
    axes = ("batch", 4)
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, axes)
    bias = helper.make_value_info("bias", helper.make_optional_type_proto(element))
    given = helper.make_graph(
        [
            helper.make_node("OptionalGetElement", ["bias"], ["added"]),
            helper.make_node("Add", ["x", "added"], ["sum"]),
        ],
        "given",
        [],
        [_tensor("sum", "FP32", axes)],
    )
    left_out = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])],
        "left_out",
        [],
        [_tensor("same", "FP32", axes)],
    )
    nodes = [
        helper.make_node("OptionalHasElement", ["bias"], ["has_bias"]),
        helper.make_node("If", ["has_bias"], ["y"], then_branch=given, else_branch=left_out),
    ]
    return _model(nodes, [_tensor("x", "FP32", axes), bias], [_tensor("y", "FP32", axes)])


def default_scale() -> bytes:
    """``x`` FP32 ``[batch, 4]`` times ``scale`` FP32 ``[1]``, a graph input that defaults to 2."""
    inputs = [_tensor("x", "FP32", ("batch", 4)), _tensor("scale", "FP32", (1,))]
    weights = [numpy_helper.from_array(np.array([2], np.float32), "scale")]
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    return _model([node], inputs, [_tensor("y", "FP32", ("batch", 4))], weights)


def only_even_rows() -> bytes:
    """``x`` FP32 ``[batch, 4]`` -> ``y``, unchanged; fails where there is an odd number of rows."""
    weights = [
        numpy_helper.from_array(np.array([-1, 2, 4]), "pairs"),
        numpy_helper.from_array(np.array([-1, 4]), "rows"),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "pairs"], ["paired"]),
        helper.make_node("Reshape", ["paired", "rows"], ["y"]),
    ]
    axes = ("batch", 4)
    return _model(nodes, [_tensor("x", "FP32", axes)], [_tensor("y", "FP32", axes)], weights)


def endless() -> bytes:
    """Runs for ever if an ``x`` is negative: ``x`` -> ``y``, both FP32 ``[batch, 4]`` and equal."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "body",
        [_tensor("i", "INT64", ()), _tensor("go", "BOOL", ()), _tensor("carried", "FP32", ())],
        [_tensor("go_on", "BOOL", ()), _tensor("carried_on", "FP32", ())],
    )
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Less", ["least", "zero"], ["hang"]),
        helper.make_node("Loop", ["", "hang", "zero"], ["last"], body=body),
        helper.make_node("Add", ["x", "last"], ["y"]),
    ]
    axes = ("batch", 4)
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    return _model(nodes, [_tensor("x", "FP32", axes)], [_tensor("y", "FP32", axes)], [zero])


def _model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
) -> bytes:
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _tensor(name: str, datatype: str, shape: Axes) -> Any:
    return helper.make_tensor_value_info(name, _ELEMENT[datatype], shape)


def _mlp_layers(seed: int, widths: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(0, width**-0.5, (width, following)).astype(np.float32),
            rng.normal(0, 1, following).astype(np.float32),
        )
        for width, following in pairwise(widths)
    ]


def _table(seed: int, vocabulary: int, width: int) -> np.ndarray:
    table = np.random.default_rng(seed).normal(0, 1, (vocabulary, width))
    return np.asarray(table, np.float32)
