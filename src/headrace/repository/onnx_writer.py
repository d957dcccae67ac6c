"""Writes small ONNX files with numpy alone, so that the base install can make a model.

ONNX is a protobuf message, and writing one is easy: every field is a tag, then a varint,
four bytes, or a length and that many bytes. The field numbers are those of ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); the encoding is
https://protobuf.dev/programming-guides/encoding/. There is no reader here, no shape
inference and no external data: whoever needs those needs the ``onnx`` package.

::

    write_model(
        "identity.onnx",
        [Node("Identity", ["x"], ["y"])],
        inputs=[TensorSpec("x", "FP32", (-1, 4))],
        outputs=[TensorSpec("y", "FP32", (-1, 4))],
    )
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from headrace.errors import ConfigError
from headrace.types import DATATYPE_OF, DYNAMIC, TensorSpec

AttributeValue = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | np.ndarray

_ELEM_TYPE = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BYTES": 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    "BF16": 16,
}
"""V2 datatype -> ``TensorProto.DataType``."""

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_PRODUCER = b"headrace"


class Node(msgspec.Struct, frozen=True):
    """One operator: ``outputs = op_type(inputs)``; "" is an optional input left out.

    ``domain`` "" is ONNX itself; an attribute is a number, a text, a list of one of
    these, or an array (a tensor attribute such as the ``value`` of ``Constant``).
    """

    op_type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, AttributeValue] = {}
    domain: str = ""


def write_model(
    path: str | Path,
    nodes: Sequence[Node],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    initializers: Mapping[str, np.ndarray] | None = None,
    opset: int | Mapping[str, int] = 17,
) -> Path:
    """Writes the graph as one ``.onnx`` file and returns its path.

    Args:
        path: the file; its folder must exist.
        nodes: in an order in which every input is known before it is used.
        inputs: what a caller gives. ``-1`` as first dimension is the batch, one and the
            same for all; any other ``-1`` is a size of its own.
        outputs: what a caller gets.
        initializers: the weights. ``object`` arrays hold ``str`` or ``bytes``.
        opset: version of the ONNX operators, or ``{domain: version}`` for several.

    Raises:
        ConfigError: a datatype or attribute has no form in ONNX.
    """
    target = Path(path)
    target.write_bytes(
        model_bytes(nodes, inputs=inputs, outputs=outputs, initializers=initializers, opset=opset)
    )
    return target


def model_bytes(
    nodes: Sequence[Node],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    initializers: Mapping[str, np.ndarray] | None = None,
    opset: int | Mapping[str, int] = 17,
) -> bytes:
    """The content of the file that :func:`write_model` writes; same arguments and errors."""
    opsets = {"": opset} if isinstance(opset, int) else dict(opset)
    graph = b"".join(
        [
            *(_message(1, _node(node)) for node in nodes),
            _text(2, "headrace"),
            *(_message(5, _tensor(a, name)) for name, a in (initializers or {}).items()),
            *(_message(11, _value_info(spec)) for spec in inputs),
            *(_message(12, _value_info(spec)) for spec in outputs),
        ]
    )
    imports = (
        _message(8, _text(1, domain) + _integer(2, version)) for domain, version in opsets.items()
    )
    return b"".join(
        [
            _integer(1, _ir_version(opsets.get("", 1))),
            _message(2, _PRODUCER),
            _message(7, graph),
            *imports,
        ]
    )


def _ir_version(opset: int) -> int:
    """The oldest file version that may carry this opset (ONNX's docs/Versioning.md)."""
    return 8 if opset <= 18 else 9 if opset <= 20 else 10


def _node(node: Node) -> bytes:
    return b"".join(
        [
            *(_text(1, name) for name in node.inputs),
            *(_text(2, name) for name in node.outputs),
            _text(3, f"{node.op_type}_{node.outputs[0]}"),
            _text(4, node.op_type),
            *(_message(5, _attribute(k, v)) for k, v in node.attributes.items()),
            _text(7, node.domain),
        ]
    )


def _attribute(name: str, value: AttributeValue) -> bytes:
    """``AttributeProto``: the value in the field of its kind, then the kind (field 20)."""
    if isinstance(value, np.ndarray):
        body, kind = _message(5, _tensor(value, name)), 4
    elif isinstance(value, str):
        body, kind = _text(4, value), 3
    elif isinstance(value, int | np.integer):
        body, kind = _integer(3, int(value)), 2
    elif isinstance(value, float | np.floating):
        body, kind = _tag(2, _FIXED32) + struct.pack("<f", value), 1
    else:
        body, kind = _list_attribute(name, value)
    return _text(1, name) + body + _integer(20, kind)


def _list_attribute(name: str, values: Sequence[object]) -> tuple[bytes, int]:
    texts = [value for value in values if isinstance(value, str)]
    if texts and len(texts) == len(values):
        return b"".join(_text(9, text) for text in texts), 8
    numbers = np.asarray(values)
    if numbers.size and numbers.dtype.kind in "iu":
        return _message(8, b"".join(_varint(number) for number in numbers.tolist())), 7
    if numbers.size and numbers.dtype.kind == "f":
        return _message(7, numbers.astype("<f4").tobytes()), 6
    raise ConfigError(f"attribute {name!r} is {values!r}: a list is all numbers or all texts")


def _tensor(array: np.ndarray, name: str) -> bytes:
    """``TensorProto``: dims, kind, and the elements raw (little-endian) or as strings."""
    datatype = (
        "BYTES" if array.dtype.kind in "OUS" else DATATYPE_OF.get(array.dtype.newbyteorder("="))
    )
    if datatype is None:
        raise ConfigError(f"initializer {name!r} has dtype {array.dtype}, which ONNX has not")
    head = _message(1, b"".join(_varint(n) for n in array.shape)) if array.shape else b""
    head += _integer(2, _ELEM_TYPE[datatype]) + _text(8, name)
    if datatype == "BYTES":
        return head + b"".join(
            _message(6, e if isinstance(e, bytes) else str(e).encode()) for e in array.ravel()
        )
    return head + _message(9, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def _value_info(spec: TensorSpec) -> bytes:
    if spec.datatype not in _ELEM_TYPE:
        raise ConfigError(
            f"{spec.name!r} has datatype {spec.datatype!r}",
            hint=f"the datatypes are {', '.join(_ELEM_TYPE)}",
        )
    shape = b"".join(_message(1, _dimension(spec, axis)) for axis in range(len(spec.shape)))
    tensor_type = _integer(1, _ELEM_TYPE[spec.datatype]) + _message(2, shape)
    return _text(1, spec.name) + _message(2, _message(1, tensor_type))


def _dimension(spec: TensorSpec, axis: int) -> bytes:
    size = spec.shape[axis]
    if size != DYNAMIC:
        return _integer(1, size)
    return _text(2, "batch" if axis == 0 else f"{spec.name}_{axis}")


def _varint(value: int) -> bytes:
    """Seven bits at a time, lowest first; negative numbers as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value)


def _message(field: int, body: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(body)) + body


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def chain(operators: Iterable[tuple[str, Sequence[str]]], first: str, last: str) -> list[Node]:
    """A straight line of operators, each fed by the one before and its own weights.

    ``chain([("Gemm", ["w", "b"]), ("Relu", [])], "x", "y")`` is ``y = Relu(Gemm(x, w, b))``.
    """
    steps = list(operators)
    nodes = []
    current = first
    for index, (op_type, weights) in enumerate(steps):
        result = last if index == len(steps) - 1 else f"{last}_{index}"
        nodes.append(Node(op_type, [current, *weights], [result]))
        current = result
    return nodes
