"""Where ONNX Runtime and headrace say a value differently: texts, bfloat16, maps."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.errors import InvalidRequest, ModelLoadError
from headrace.types import DYNAMIC, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
CLASS_SCORES = frozenset({"seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))"})
"""What scikit-learn converters make of ``predict_proba`` unless told not to (ZipMap)."""


def input_spec(node: Any, model: str) -> TensorSpec:
    """An input's spec, from ONNX Runtime's ``NodeArg``.

    ``optional(tensor(...))`` is an optional input.

    Raises:
        ModelLoadError: it is not a tensor of a V2 datatype.
    """
    kind = str(node.type)
    optional = kind.startswith("optional(")
    if optional:
        kind = kind.removeprefix("optional(").removesuffix(")")
    return TensorSpec(node.name, _datatype(kind, node.name, model), _shape(node), optional)


def output_spec(node: Any, model: str) -> TensorSpec:
    """An output's spec; class scores (:data:`CLASS_SCORES`) are FP32 ``[rows, classes]``.

    Raises:
        ModelLoadError: it is neither a tensor of a V2 datatype nor a list of class scores.
    """
    if node.type in CLASS_SCORES:
        return TensorSpec(node.name, "FP32", (DYNAMIC, DYNAMIC))
    return TensorSpec(node.name, _datatype(node.type, node.name, model), _shape(node))


def axis_names(node: Any) -> tuple[str, ...]:
    """The exporter's name of every axis, "" where it is fixed or has none."""
    return tuple(size if isinstance(size, str) else "" for size in node.shape or ())


def decode_texts(array: np.ndarray, name: str) -> np.ndarray:
    """BYTES (``bytes`` in an object array) -> ``str`` in an object array of the same shape.

    Raises:
        InvalidRequest: an element is not UTF-8, which is what ONNX says a string is.
    """
    texts = []
    for index, value in enumerate(array.ravel().tolist()):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"element {index} of input '{name}' is not UTF-8: {error.reason} at byte "
                f"{error.start}",
                hint="ONNX strings are UTF-8 text",
                input=name,
            ) from None
    return _objects(texts, array.shape)


def encode_texts(array: np.ndarray) -> np.ndarray:
    """The way back: ``str`` -> UTF-8 ``bytes``."""
    return _objects([str(value).encode() for value in array.ravel().tolist()], array.shape)


def class_scores(rows: Sequence[Mapping[Any, float]]) -> np.ndarray:
    """One map of class -> score for each row, as FP32 ``[rows, classes]``.

    ONNX Runtime gives every map in the order of its sorted keys, which is the order of
    scikit-learn's own ``classes_``.
    """
    return np.array([list(row.values()) for row in rows], np.float32).reshape(len(rows), -1)


def bfloat16_bits(value: Any) -> np.ndarray:
    """A bfloat16 ``OrtValue`` -> its raw bits as ``uint16``, copied.

    Through the address, because ONNX Runtime has no numpy dtype to hand it out as.
    """
    shape = tuple(value.shape())
    size = math.prod(shape)
    if size == 0:
        return np.empty(shape, np.uint16)
    buffer = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    return np.frombuffer(buffer, np.uint16).reshape(shape).copy()


def _objects(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else DYNAMIC for size in node.shape or ())


def _datatype(kind: str, name: str, model: str) -> str:
    datatype = _DATATYPES.get(kind)
    if datatype is None:
        served = ", ".join(_DATATYPES.values())
        raise ModelLoadError(
            f"'{name}' of model '{model}' is a {kind}; only tensors of {served} can be served",
            hint="export the model so that its inputs and outputs are such tensors",
            model=model,
        )
    return datatype
