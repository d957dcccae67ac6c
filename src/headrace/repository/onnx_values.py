"""Names, types and shapes of an ONNX graph's inputs and outputs, read from the wire."""

from __future__ import annotations

import msgspec

from headrace.repository import protobuf as pb
from headrace.repository.protobuf import LENGTH, VARINT, Buffer, FieldBudget

DATATYPES: dict[int, str] = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64",
    8: "BYTES", 9: "BOOL", 10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
"""``TensorProto.DataType`` -> the V2 protocol's name of it. The others have none."""

_KINDS = {1: "tensor", 4: "sequence", 5: "map", 8: "sparse_tensor", 9: "optional"}
_TENSOR_KINDS = (1, 8)


class OnnxValue(msgspec.Struct, frozen=True):
    """One input or output.

    Attributes:
        kind: ``tensor``, ``sequence``, ``map``, ``sparse_tensor``, ``optional``, or "" where
            the file does not say.
        datatype: the V2 protocol's name, "" where it has none or the value is no tensor.
        shape: sizes; a free dimension is its symbolic name, or -1 where it has none. None
            where even the rank is open.
    """

    name: str
    kind: str = ""
    datatype: str = ""
    shape: tuple[int | str, ...] | None = None


def read_value(buffer: Buffer, start: int, end: int, budget: FieldBudget) -> OnnxValue:
    """Reads a ``ValueInfoProto``.

    Raises:
        WireError: it is not one.
    """
    name = ""
    kind, datatype = "", ""
    shape: tuple[int | str, ...] | None = None
    for number, wire, value, stop in pb.fields(buffer, start, end, budget):
        if wire == LENGTH and number == 1:
            name = pb.text(buffer, value, stop)
        elif wire == LENGTH and number == 2:
            for which, inner, at, until in pb.fields(buffer, value, stop, budget):
                if inner != LENGTH or which not in _KINDS:
                    continue
                kind = _KINDS[which]
                if which in _TENSOR_KINDS:
                    datatype, shape = _read_tensor_type(buffer, at, until, budget)
    return OnnxValue(name=name, kind=kind, datatype=datatype, shape=shape)


def _read_tensor_type(
    buffer: Buffer, start: int, end: int, budget: FieldBudget
) -> tuple[str, tuple[int | str, ...] | None]:
    datatype = ""
    shape: tuple[int | str, ...] | None = None
    for number, wire, value, stop in pb.fields(buffer, start, end, budget):
        if number == 1 and wire == VARINT:
            datatype = DATATYPES.get(value, "")
        elif number == 2 and wire == LENGTH:
            shape = tuple(
                _read_dimension(buffer, at, until, budget)
                for which, inner, at, until in pb.fields(buffer, value, stop, budget)
                if which == 1 and inner == LENGTH
            )
    return datatype, shape


def _read_dimension(buffer: Buffer, start: int, end: int, budget: FieldBudget) -> int | str:
    size: int | str = -1
    for number, wire, value, stop in pb.fields(buffer, start, end, budget):
        if number == 1 and wire == VARINT:
            # Some exporters write 0 or a negative number where they mean "free"; a real
            # dimension of nothing would be of no use to anybody.
            size = max(pb.signed(value), -1) or -1
        elif number == 2 and wire == LENGTH:
            size = pb.text(buffer, value, stop) or -1
    return size
